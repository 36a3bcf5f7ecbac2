//! Many jobs at a time answer as each would alone, and what happens to one is nothing to the
//! others.

#[path = "support/ids.rs"]
mod ids;
#[path = "support/jobs.rs"]
mod jobs;
#[path = "service/speed.rs"]
mod speed;
#[path = "support/wait.rs"]
mod wait;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;

use candle_ds4::candle::Device;
use candle_ds4::engine::{
    EngineError, Finish, Guide, GuideError, Job, Limits, Namespace, Refused, Service,
};
use candle_ds4::sample::Sampling;
use ids::ids;
use jobs::{endless, engine, eos, listen, Answer};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use wait::until;

fn limits() -> Limits {
    Limits { chunk_tokens: 128, ..Limits::of(&Device::Cpu) }
}

fn service() -> Service {
    Service::start_with(engine(), limits()).unwrap()
}

impl Answer {
    fn tokens(&self) -> Vec<u32> {
        self.chosen.iter().map(|chosen| chosen.token).collect()
    }

    fn cached(&self) -> usize {
        self.end.unwrap().cached_tokens
    }
}

fn ask(service: &Service, job: Job) -> Answer {
    listen(service.submit(job).unwrap())
}

#[test]
fn jobs_that_come_and_go_answer_as_each_would_alone() {
    let mut rng = StdRng::seed_from_u64(11);
    let mut jobs: Vec<Job> = (0..24)
        .map(|index| {
            let mut job = endless(
                ids(rng.random_range(0..4) * 300, rng.random_range(1..700)),
                rng.random_range(0..40),
            );
            if index % 2 == 0 {
                job.sampling = Sampling {
                    seed: index,
                    temperature: 0.9,
                    repetition_penalty: 1.1,
                    frequency_penalty: 0.2,
                    top_p: 0.9,
                    min_p: 0.0,
                    ..Sampling::default()
                };
                job.logprobs = Some(3);
            }
            let len = job.prompt.len();
            job.landmarks = (0..3).map(|_| rng.random_range(0..len + 9)).collect();
            job
        })
        .collect();
    let copy = |job: &Job| Job {
        prompt: job.prompt.clone(),
        sampling: job.sampling.clone(),
        landmarks: job.landmarks.clone(),
        guide: None,
        ..*job
    };
    let alone: Vec<Answer> = jobs
        .iter()
        .map(|job| {
            // A namespace of its own: nothing is shared.
            let mut job = copy(job);
            job.namespace = Namespace(rng.random());
            job
        })
        .scan(service(), |service, job| Some(ask(service, job)))
        .collect();

    let together = Service::start_with(engine(), Limits { parallel: 7, ..limits() }).unwrap();
    let listeners: Vec<_> = jobs
        .drain(..)
        .map(|job| {
            if rng.random_bool(0.5) {
                let steps = together.stats().steps;
                let more = rng.random_range(0..6);
                until("no passes", || {
                    let stats = together.stats();
                    stats.steps >= steps + more || stats.running + stats.waiting == 0
                });
            }
            let updates = together.submit(job).unwrap();
            std::thread::spawn(move || listen(updates))
        })
        .collect();
    let mut cached = 0;
    for (index, (listener, alone)) in listeners.into_iter().zip(alone).enumerate() {
        let answer = listener.join().unwrap();
        assert_eq!(answer.chosen, alone.chosen, "job {index}");
        let (end, alone) = (answer.end.unwrap(), alone.end.unwrap());
        assert_eq!((end.finish, end.generated_tokens), (alone.finish, alone.generated_tokens));
        cached += end.cached_tokens;
    }
    assert!(cached > 0, "prompts share prefixes");
    assert_eq!(together.stats().failed, 0);
}

#[test]
fn a_prompt_that_parts_anywhere_answers_as_a_fresh_one() {
    let mut rng = StdRng::seed_from_u64(5);
    let (warm, cold) = (service(), service());
    let mut history = ids(1, 1500);
    let mut total = 0;
    let mut cached = 0;
    for round in 0..16 {
        let mut prompt = history.clone();
        prompt.truncate(rng.random_range(1..=prompt.len()));
        prompt.extend(ids(round * 91 + 7, rng.random_range(1..120)));
        let landmarks = vec![prompt.len() / 3, prompt.len() / 2];
        let answer = ask(&warm, Job { landmarks, ..endless(prompt.clone(), 6) });
        let fresh = Job { namespace: Namespace(rng.random()), ..endless(prompt.clone(), 6) };
        assert_eq!(answer.chosen, ask(&cold, fresh).chosen, "round {round}");
        total += prompt.len();
        cached += answer.cached();
        if rng.random_bool(0.5) {
            history = [prompt, answer.tokens()].concat();
        }
    }
    assert!(cached * 4 > total, "{cached} of {total} tokens were not computed again");
}

#[test]
fn a_conversation_computes_only_what_is_new() {
    let service = service();
    let mut prompt = ids(0, 700);
    for turn in 0..4 {
        let answer = ask(&service, endless(prompt.clone(), 20));
        if turn > 0 {
            let known = prompt.len() - 50;
            assert!(answer.cached() + 1 >= known, "{} of {known}", answer.cached());
        }
        prompt.extend(answer.tokens());
        prompt.extend(ids(turn * 5 + 1, 50));
    }
}

#[test]
fn namespaces_never_share_and_one_does() {
    let service = service();
    let job = |who| Job { namespace: Namespace([who; 16]), ..endless(ids(3, 300), 4) };
    let first = ask(&service, job(1));
    assert_eq!(first.cached(), 0);
    let other = ask(&service, job(2));
    assert_eq!((other.cached(), other.tokens()), (0, first.tokens()));
    let again = ask(&service, job(1));
    assert_eq!((again.cached(), again.tokens()), (299, first.tokens()));
    // At the same time too: nobody waits for a stranger's prefix.
    let both = [service.submit(job(3)).unwrap(), service.submit(job(4)).unwrap()];
    for updates in both {
        assert_eq!(listen(updates).cached(), 0);
    }
}

#[test]
fn a_reader_that_goes_away_stops_its_job_and_leaves_what_it_had() {
    let service = service();
    let bystander = service.submit(endless(ids(8, 60), 400)).unwrap();
    for (prompt, updates_heard) in [(ids(0, 3000), 2), (ids(5, 200), 30)] {
        let mut updates = service.submit(endless(prompt.clone(), 100_000)).unwrap();
        for _ in 0..updates_heard {
            updates.blocking_recv().unwrap();
        }
        drop(updates);
        until("the job goes on", || service.stats().running <= 1);
        let again = ask(&service, endless(prompt.clone(), 2));
        assert!(again.cached() >= 64, "{} of {} kept", again.cached(), prompt.len());
    }
    assert_eq!(service.stats().cancelled, 2);
    assert_eq!(listen(bystander).chosen.len(), 400);
}

#[test]
fn jobs_that_are_given_up_at_once_leave_nothing_behind() {
    let service = service();
    for round in 0..400 {
        match service.submit(endless(ids(round, 40), 50)) {
            Ok(updates) if round % 3 == 0 => drop(updates),
            Ok(mut updates) => drop(updates.blocking_recv()),
            Err(refused) => assert_eq!(refused, Refused::Busy { waiting: 256 }),
        }
    }
    until("jobs stay", || {
        let stats = service.stats();
        stats.running + stats.waiting == 0 && stats.reserved_bytes == 0
    });
}

#[test]
fn a_slow_reader_stops_its_own_answer_only_and_misses_nothing() {
    let service = service();
    let slow = service.submit(endless(ids(1, 30), 700)).unwrap();
    until("it does not pause", || service.stats().paused == 1);
    let quick = ask(&service, endless(ids(2, 30), 500));
    assert_eq!(quick.chosen.len(), 500);
    assert_eq!(service.stats().paused, 1);
    let alone = ask(&service, Job { namespace: Namespace([9; 16]), ..endless(ids(1, 30), 700) });
    assert_eq!(listen(slow).chosen, alone.chosen);
}

/// Allows tokens of a range, some of them only; fails or panics at a given token.
struct Fence {
    least: u32,
    told: Arc<AtomicUsize>,
    at: usize,
    then: Then,
}

#[derive(Clone, Copy)]
enum Then {
    Refuse,
    Panic,
    End,
    Nothing,
}

impl Guide for Fence {
    fn restrict(&mut self, logits: &mut [f32], _: Option<f32>) -> Result<(), GuideError> {
        let told = self.told.load(Ordering::SeqCst);
        if told == self.at {
            match self.then {
                Then::Refuse => return Err(GuideError("nothing fits".to_owned())),
                Then::Panic => panic!("a guide's defect"),
                Then::Nothing => logits.fill(f32::NEG_INFINITY),
                Then::End => {
                    for (id, logit) in logits.iter_mut().enumerate() {
                        if id != eos() as usize {
                            *logit = f32::NEG_INFINITY;
                        }
                    }
                    return Ok(());
                }
            }
        }
        logits[..self.least as usize].fill(f32::NEG_INFINITY);
        Ok(())
    }

    fn accept(&mut self, _: u32) -> Result<(), GuideError> {
        self.told.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

#[test]
fn a_guide_restricts_ends_and_fails_its_own_answer_only() {
    let service = service();
    let bystander = service.submit(endless(ids(8, 60), 200)).unwrap();
    let guided = |then| {
        let told = Arc::new(AtomicUsize::new(0));
        let fence = Fence { least: 1000, told: told.clone(), at: 12, then };
        let job = Job {
            guide: Some(Box::new(fence)),
            sampling: Sampling { seed: 5, ..Sampling::default() },
            ..endless(ids(2, 90), 50)
        };
        let answer = ask(&service, job);
        assert!(answer.chosen.iter().all(|chosen| chosen.token >= 1000));
        assert_eq!(answer.chosen.len(), 12);
        (answer, told.load(Ordering::SeqCst))
    };
    for (then, says) in [
        (Then::Refuse, "nothing fits"),
        (Then::Panic, "a guide's defect"),
        (Then::Nothing, "no token is left"),
    ] {
        let (answer, told) = guided(then);
        let error = answer.failed.unwrap().to_string();
        assert!(error.contains(says), "{error}");
        assert_eq!(told, 12);
    }
    let (answer, told) = guided(Then::End);
    assert_eq!(answer.end.unwrap().finish, Finish::Stop);
    assert_eq!(told, 13, "the end is told like any other token");
    assert_eq!(listen(bystander).chosen.len(), 200);
    assert_eq!(service.stats().failed, 3);
}

#[test]
fn probabilities_are_the_models_own_whatever_is_biased_or_forbidden() {
    let service = service();
    let plain = ask(&service, Job { logprobs: Some(4), ..endless(ids(4, 50), 1) });
    let (_, best) = plain.chosen[0].logprobs.clone().unwrap();
    assert_eq!(best.len(), 4);
    assert!(best.is_sorted_by(|a, b| a.logprob >= b.logprob) && best[0].logprob < 0.0);
    let third = best[2].clone();
    let mut job = Job { logprobs: Some(0), ..endless(ids(4, 50), 1) };
    job.sampling.logit_bias.insert(third.token, 100.0);
    let biased = ask(&service, job);
    let (own, best) = biased.chosen[0].logprobs.clone().unwrap();
    assert_eq!((own, best), (third, vec![]));
}

#[test]
fn a_job_that_cannot_be_run_is_refused_with_numbers_and_a_full_queue_says_so() {
    let tight = Limits { kv_bytes: 8 << 20, waiting: 3, parallel: 1, ..limits() };
    let service = Service::start_with(engine(), tight).unwrap();
    let refused = service.submit(endless(ids(0, 10), 100_000)).unwrap_err();
    let Refused::Memory { needed, budget, .. } = refused else { panic!("{refused}") };
    assert!(needed > budget && budget == 8 << 20, "{refused}");
    let error = |job| ask(&service, job).failed.unwrap().to_string();
    assert!(error(endless(vec![], 5)).contains("empty"));
    assert!(error(endless(ids(0, 1 << 15), 0)).contains("--ctx"));
    let mut hot = endless(ids(0, 5), 5);
    hot.sampling.temperature = -1.0;
    assert!(error(hot).contains("temperature"));

    let first = service.submit(endless(ids(1, 10), 300)).unwrap();
    until("it does not begin", || service.stats().running == 1);
    let rest: Vec<_> = (0..3).map(|i| service.submit(endless(ids(i, 10), 2)).unwrap()).collect();
    assert_eq!(service.submit(endless(ids(1, 10), 2)).unwrap_err(), Refused::Busy { waiting: 3 });
    assert_eq!(listen(first).chosen.len(), 300);
    assert!(rest.into_iter().all(|updates| listen(updates).chosen.len() == 2));
}

#[test]
fn stopping_lets_jobs_finish_cuts_those_that_do_not_and_turns_the_rest_away() {
    let service = Service::start_with(engine(), Limits { parallel: 2, ..limits() }).unwrap();
    let long = service.submit(endless(ids(0, 10), 100_000)).unwrap();
    // More than wait for a reader: it cannot end before it is read.
    let short = service.submit(endless(ids(1, 10), 300)).unwrap();
    until("they do not begin", || service.stats().running == 2);
    let waits = service.submit(endless(ids(2, 10), 5)).unwrap();
    let long = std::thread::spawn(move || listen(long));
    let stopping = service.clone();
    let stopping = std::thread::spawn(move || stopping.stop(Duration::from_secs(600)));
    assert!(matches!(*listen(waits).failed.unwrap(), EngineError::Stopping));
    assert_eq!(service.submit(endless(ids(0, 10), 5)).unwrap_err(), Refused::Stopping);
    let short = listen(short);
    assert_eq!((short.end.unwrap().finish, short.chosen.len()), (Finish::Length, 300));
    // Who is more impatient decides, and the other is done then too.
    service.stop(Duration::ZERO);
    stopping.join().unwrap();
    let long = long.join().unwrap();
    let end = long.end.unwrap();
    assert_eq!((end.finish, end.generated_tokens), (Finish::Stopping, long.chosen.len()));
    assert!(matches!(service.submit(endless(ids(0, 10), 5)), Err(Refused::Stopping)));
}

#[test]
fn dropping_the_handles_finishes_what_was_asked_for() {
    let service = service();
    let updates = service.submit(endless(ids(0, 10), 50)).unwrap();
    let clone = service.clone();
    drop(service);
    let more = clone.submit(endless(ids(3, 10), 50)).unwrap();
    clone.join();
    assert_eq!(listen(updates).chosen.len() + listen(more).chosen.len(), 100);
}
