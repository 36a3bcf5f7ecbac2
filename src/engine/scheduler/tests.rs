//! Passes counted one by one: who waits for whom, and for how long.

use candle_core::Device;

use super::*;
use crate::demo::demo_model;
use crate::engine::Updates;
use crate::gguf::Gguf;
use crate::sample::Sampling;

const CHUNK: usize = 64;

fn engine() -> Engine {
    Engine::from_gguf(&Gguf::from_bytes(demo_model()).unwrap(), "demo", &Device::Cpu).unwrap()
}

fn limits() -> Limits {
    Limits { chunk_tokens: CHUNK, ..Limits::of(&Device::Cpu) }
}

fn scheduler(engine: &Engine) -> Scheduler {
    Scheduler::new(engine, limits()).unwrap()
}

/// Ids that are text of a kind, the same every time.
fn ids(from: u32, count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| 300 + (from + i * 37) % 1500).collect()
}

fn job(engine: &Engine, prompt: Vec<u32>, max_tokens: usize) -> Job {
    let eos = engine.tokenizer().control().eos;
    Job {
        prompt,
        sampling: Sampling { logit_bias: [(eos, f32::NEG_INFINITY)].into(), ..Sampling::greedy() },
        max_tokens,
        room: max_tokens,
        guide: None,
        logprobs: None,
        namespace: Namespace::default(),
        landmarks: Vec::new(),
    }
}

fn enqueue(scheduler: &mut Scheduler, engine: &Engine, job: Job) -> Updates {
    let (reply, updates) = Reply::channel();
    scheduler.enqueue(engine, job, reply);
    updates
}

/// Tokens heard since the last call; `Err` at the end.
fn heard(updates: &mut Updates) -> (Vec<u32>, Option<Result<Finish, String>>) {
    let mut tokens = Vec::new();
    while let Ok(update) = updates.try_recv() {
        match update {
            Update::Prefill { .. } => {}
            Update::Token(chosen) => tokens.push(chosen.token),
            Update::End(outcome) => return (tokens, Some(Ok(outcome.finish))),
            Update::Failed(error) => return (tokens, Some(Err(error.to_string()))),
        }
    }
    (tokens, None)
}

fn run_out(scheduler: &mut Scheduler, engine: &Engine) {
    while scheduler.step(engine) == Step::Worked {}
}

#[test]
fn a_short_prompt_beside_a_long_one_is_answered_within_two_passes() {
    let engine = engine();
    let mut jobs = scheduler(&engine);
    let mut long = enqueue(&mut jobs, &engine, job(&engine, ids(0, 16 * 1024 / 4), 4));
    for _ in 0..5 {
        assert_eq!(jobs.step(&engine), Step::Worked);
    }
    let mut short = enqueue(&mut jobs, &engine, job(&engine, ids(9, CHUNK / 2), 3));
    jobs.step(&engine);
    jobs.step(&engine);
    assert!(!heard(&mut short).0.is_empty());
    assert!(heard(&mut long).0.is_empty());
    // And from now on the answer grows with every pass, while the long prompt is still read.
    jobs.step(&engine);
    assert_eq!(heard(&mut short).0.len(), 1);
    assert!(heard(&mut long).0.is_empty());
}

#[test]
fn a_chunk_is_shorter_while_an_answer_waits_for_it() {
    let engine = engine();
    let whole = 3 * CHUNK as u64;
    let limits = Limits { chunk_tokens: 3 * CHUNK, chunk_beside_answers: CHUNK, ..limits() };
    let mut jobs = Scheduler::new(&engine, limits).unwrap();
    let pass = |jobs: &mut Scheduler| {
        let before = jobs.stats().step_tokens;
        assert_eq!(jobs.step(&engine), Step::Worked);
        jobs.stats().step_tokens - before
    };
    let _long = enqueue(&mut jobs, &engine, job(&engine, ids(0, 20 * CHUNK), 1));
    assert_eq!(pass(&mut jobs), whole);
    let mut short = enqueue(&mut jobs, &engine, job(&engine, ids(9, CHUNK / 2), 3));
    assert_eq!(pass(&mut jobs), whole, "both are prompts yet");
    for _ in 0..2 {
        assert_eq!(pass(&mut jobs), CHUNK as u64 + 1);
    }
    assert_eq!(heard(&mut short).0.len(), 3);
    assert_eq!(pass(&mut jobs), whole, "nobody waits any more");
}

#[test]
fn many_short_prompts_do_not_starve_a_long_one() {
    let engine = engine();
    let mut jobs = scheduler(&engine);
    let mut long = enqueue(&mut jobs, &engine, job(&engine, ids(0, 10 * CHUNK), 1));
    let mut passes = 0;
    let mut others = Vec::new();
    while heard(&mut long).0.is_empty() {
        let prompt = ids(1000 + passes * 3, CHUNK);
        others.push(enqueue(&mut jobs, &engine, job(&engine, prompt, 1)));
        jobs.step(&engine);
        passes += 1;
        assert!(passes <= 22, "half of each pass belongs to the oldest");
    }
}

#[test]
fn a_prefix_that_is_being_computed_is_waited_for_and_computed_once() {
    let engine = engine();
    let mut jobs = scheduler(&engine);
    let prompt = ids(5, 6 * CHUNK);
    let with = |tail: &[u32]| [prompt.clone(), tail.to_vec()].concat();
    let prompts = [with(&[]), with(&[]), with(&ids(800, 20)), with(&ids(900, 30))];
    let mut updates: Vec<_> = prompts
        .iter()
        .map(|prompt| enqueue(&mut jobs, &engine, job(&engine, prompt.clone(), 6)))
        .collect();
    run_out(&mut jobs, &engine);
    let shared: Vec<_> = updates.iter_mut().map(|updates| heard(updates).0).collect();
    let stats = jobs.stats();
    assert_eq!(stats.prompt_tokens as usize, prompts.iter().map(Vec::len).sum::<usize>());
    let computed = stats.prompt_tokens - stats.cached_memory_tokens;
    assert!(computed as usize <= prompt.len() + 1 + 21 + 31, "{computed} tokens computed");
    assert_eq!(stats.prefix_waits, 3);
    for (prompt, shared) in prompts.iter().zip(shared) {
        let mut alone = scheduler(&engine);
        let mut updates = enqueue(&mut alone, &engine, job(&engine, prompt.clone(), 6));
        run_out(&mut alone, &engine);
        assert_eq!(heard(&mut updates).0, shared);
    }
}

#[test]
fn a_job_that_waits_for_a_prefix_goes_on_without_the_one_that_computed_it() {
    let engine = engine();
    let mut jobs = scheduler(&engine);
    let prompt = ids(5, 6 * CHUNK);
    let first = enqueue(&mut jobs, &engine, job(&engine, prompt.clone(), 6));
    let mut second = enqueue(&mut jobs, &engine, job(&engine, prompt.clone(), 6));
    jobs.step(&engine);
    jobs.step(&engine);
    assert_eq!((jobs.running.len(), jobs.waiting.len()), (1, 1));
    drop(first);
    run_out(&mut jobs, &engine);
    assert_eq!(heard(&mut second).0.len(), 6);
    let stats = jobs.stats();
    assert_eq!(stats.cancelled, 1);
    assert_eq!(stats.cached_memory_tokens as usize, 2 * CHUNK, "what it had is not lost");
}

#[test]
fn a_pass_that_fails_fails_only_the_job_that_it_fails_for() {
    let engine = engine();
    let good = ids(3, 3 * CHUNK + 7);
    let mut bad = ids(4, 2 * CHUNK);
    bad[CHUNK + 3] = 1 << 30;
    let mut jobs = scheduler(&engine);
    let mut updates: Vec<_> = [&good, &bad, &good[5..].to_vec()]
        .into_iter()
        .map(|prompt| enqueue(&mut jobs, &engine, job(&engine, prompt.clone(), 9)))
        .collect();
    run_out(&mut jobs, &engine);
    let (tokens, end) = heard(&mut updates[1]);
    assert!(tokens.is_empty());
    assert!(end.unwrap().unwrap_err().contains("1073741824"));
    for (index, prompt) in [(0, &good[..]), (2, &good[5..])] {
        let mut alone = scheduler(&engine);
        let mut want = enqueue(&mut alone, &engine, job(&engine, prompt.to_vec(), 9));
        run_out(&mut alone, &engine);
        assert_eq!(heard(&mut updates[index]), heard(&mut want));
    }
    assert_eq!((jobs.stats().failed, jobs.stats().ended), (1, 3));
}

/// What a pass takes of memory, and what is kept for others, must not stand in the way of a job that could
/// run; and a job that cannot must go alone.
#[test]
fn a_job_that_finds_no_memory_fails_alone_and_the_next_one_runs() {
    let engine = engine();
    let prompt = ids(3, 3 * CHUNK + 7);
    let alone = |prompt: &[u32]| {
        let mut alone = scheduler(&engine);
        let mut want = enqueue(&mut alone, &engine, job(&engine, prompt.to_vec(), 9));
        run_out(&mut alone, &engine);
        heard(&mut want)
    };
    engine.workspace.shed().unwrap();
    let want = alone(&prompt[..CHUNK / 8]);
    let of_few = engine.workspace.bytes();
    let (whole, other) = (alone(&prompt), alone(&prompt[5..]));
    assert!(engine.workspace.bytes() > 2 * of_few, "no chunk without memory");

    let mut jobs = scheduler(&engine);
    let ask = |jobs: &mut Scheduler, prompt: &[u32]| {
        let mut updates = enqueue(jobs, &engine, job(&engine, prompt.to_vec(), 9));
        run_out(jobs, &engine);
        heard(&mut updates)
    };
    assert_eq!(ask(&mut jobs, &prompt), whole);
    assert!(jobs.kept_bytes() > 0);
    // A whole chunk no longer fits, a part of it does.
    engine.workspace.shed().unwrap();
    engine.workspace.set_limit(2 * of_few);
    assert_eq!(ask(&mut jobs, &prompt[5..]), other);
    assert!(jobs.stats().evicted > 0 && jobs.stats().failed == 0);
    // Nothing fits.
    engine.workspace.shed().unwrap();
    engine.workspace.set_limit(of_few / 2);
    let (tokens, end) = ask(&mut jobs, &prompt[9..]);
    let error = end.unwrap().unwrap_err();
    assert!(tokens.is_empty() && error.contains("no memory left"), "{error}");
    assert!(error.contains("--kv-memory-mb"), "{error}");
    // The memory is back.
    engine.workspace.set_limit(usize::MAX);
    assert_eq!(ask(&mut jobs, &prompt), whole);
    assert_eq!(ask(&mut jobs, &prompt[..CHUNK / 8]), want);
    assert_eq!((jobs.stats().failed, jobs.stats().ended), (1, 5));
}

#[test]
fn a_state_whose_scores_are_no_numbers_is_told_and_not_kept() {
    let mut bytes = demo_model().to_vec();
    let gguf = Gguf::from_bytes(demo_model()).unwrap();
    let scores = gguf.data(gguf.get("output.weight").unwrap()).unwrap();
    let at = bytes.windows(scores.len()).position(|found| found == &scores[..]).unwrap();
    // The scale of a block of Q8_0 comes first.
    bytes[at..at + 2].copy_from_slice(&0x7e00u16.to_le_bytes());
    let gguf = Gguf::from_bytes(bytes.into()).unwrap();
    let engine = Engine::from_gguf(&gguf, "demo", &Device::Cpu).unwrap();
    let mut jobs = scheduler(&engine);
    for _ in 0..2 {
        let prompt = ids(3, CHUNK / 2);
        let mut updates = enqueue(&mut jobs, &engine, job(&engine, prompt, 9));
        run_out(&mut jobs, &engine);
        let (tokens, end) = heard(&mut updates);
        let error = end.unwrap().unwrap_err();
        assert!(tokens.is_empty() && error.contains("not finite at token 0"), "{error}");
    }
    assert_eq!((jobs.stats().failed, jobs.stats().cached_memory_tokens), (2, 0));
    assert_eq!(jobs.kept_bytes(), 0);
}

#[test]
fn caches_that_a_failed_pass_has_torn_are_mended_at_any_moment() {
    let engine = engine();
    let prompts = [ids(3, 3 * CHUNK + 7), ids(4, CHUNK), ids(6, 2 * CHUNK)];
    let run = |fail_before: Option<usize>| {
        let mut jobs = scheduler(&engine);
        let mut updates: Vec<_> = prompts
            .iter()
            .map(|prompt| enqueue(&mut jobs, &engine, job(&engine, prompt.clone(), 12)))
            .collect();
        let mut passes = 0;
        loop {
            if Some(passes) == fail_before {
                // As if the device had failed in the middle of a pass.
                for running in &mut jobs.running {
                    let _ = running.cache.begin();
                }
            }
            if jobs.step(&engine) != Step::Worked {
                break;
            }
            passes += 1;
        }
        (updates.iter_mut().map(heard).collect::<Vec<_>>(), passes)
    };
    let (want, passes) = run(None);
    for fail_before in 1..passes {
        let (got, _) = run(Some(fail_before));
        // A lone job has nobody to blame, so it is not tried again.
        let lone = got.iter().filter(|(_, end)| matches!(end, Some(Err(_)))).count();
        assert!(lone == 0 || fail_before + 4 > passes, "failed before pass {fail_before}");
        if lone == 0 {
            assert_eq!(got, want, "failed before pass {fail_before}");
        }
    }
}

#[test]
fn namespaces_take_turns_and_none_has_more_than_its_share() {
    let engine = engine();
    let limits = Limits { parallel: 3, per_namespace: 2, ..scheduler(&engine).limits };
    let mut jobs = Scheduler::new(&engine, limits).unwrap();
    let submit = |jobs: &mut Scheduler, who: u8, from: u32| {
        let job = Job { namespace: Namespace([who; 16]), ..job(&engine, ids(from, 9), 30) };
        enqueue(jobs, &engine, job)
    };
    let greedy: Vec<_> = (0..6).map(|from| submit(&mut jobs, 1, from * 50)).collect();
    jobs.step(&engine);
    assert_eq!((jobs.running.len(), jobs.waiting.len()), (2, 4));
    let _modest = submit(&mut jobs, 2, 700);
    jobs.step(&engine);
    assert_eq!((jobs.running.len(), jobs.waiting.len()), (3, 4));
    assert!(jobs.running.iter().any(|job| job.namespace == Namespace([2; 16])));
    run_out(&mut jobs, &engine);
    assert_eq!(jobs.stats().ended, 7);
    drop(greedy);
}

#[test]
fn memory_is_reserved_before_a_job_begins_and_what_is_kept_makes_room() {
    let engine = engine();
    let footprint = scheduler(&engine).footprint;
    let one = footprint.reserve(300, 0);
    let limits = Limits { kv_bytes: one * 5 / 2, ..scheduler(&engine).limits };
    let budget = limits.kv_bytes;
    let mut jobs = Scheduler::new(&engine, limits).unwrap();
    let updates: Vec<_> = (0..9)
        .map(|from| enqueue(&mut jobs, &engine, job(&engine, ids(from * 100, 270), 30)))
        .collect();
    let mut most = 0;
    while jobs.step(&engine) == Step::Worked {
        most = most.max(jobs.running.len());
        let stats = jobs.stats();
        assert!(stats.reserved_bytes + stats.kept_bytes <= budget, "{stats:?}");
    }
    assert_eq!(most, 2);
    for mut updates in updates {
        let (tokens, end) = heard(&mut updates);
        assert_eq!((tokens.len(), end), (30, Some(Ok(Finish::Length))));
    }
    assert!(jobs.stats().evicted > 0);

    let limits = Limits { kv_bytes: one - 1, ..jobs.limits.clone() };
    let mut jobs = Scheduler::new(&engine, limits).unwrap();
    let mut large = enqueue(&mut jobs, &engine, job(&engine, ids(0, 270), 30));
    let error = heard(&mut large).1.unwrap().unwrap_err();
    assert!(error.contains("300 tokens") && error.contains("--kv-memory-mb"), "{error}");
}

#[test]
fn answers_that_outgrow_memory_wait_for_each_other_and_the_youngest_ends_if_all_do() {
    let engine = engine();
    let footprint = scheduler(&engine).footprint;
    let one = footprint.reserve(1000, 0);
    // Both can begin, and then one or none of them can have another page.
    for (budget, younger_ends) in
        [(footprint.reserve(1200, 0) + one, Finish::Length), (2 * one, Finish::Context)]
    {
        let limits = Limits { kv_bytes: budget, ..scheduler(&engine).limits };
        let mut jobs = Scheduler::new(&engine, limits).unwrap();
        let growing = |from| Job { room: 100, ..job(&engine, ids(from, 600), 600) };
        let wanted = [growing(0), growing(700), job(&engine, ids(300, 90), 100)];
        let mut updates = wanted.map(|job| enqueue(&mut jobs, &engine, job));
        let (mut counts, mut ends) = ([0; 3], [None; 3]);
        let mut stalled = false;
        while jobs.step(&engine) == Step::Worked {
            let stats = jobs.stats();
            assert!(stats.reserved_bytes + stats.kept_bytes <= budget, "{budget}: {stats:?}");
            stalled |= jobs.running.iter().any(|running| running.stalled);
            for (index, updates) in updates.iter_mut().enumerate() {
                if ends[index].is_none() {
                    let (tokens, end) = heard(updates);
                    counts[index] += tokens.len();
                    ends[index] = end.map(|end| end.unwrap());
                }
            }
        }
        assert_eq!(ends, [Some(Finish::Length), Some(younger_ends), Some(Finish::Length)]);
        assert!(stalled && counts[0] == 600 && counts[2] == 100, "{counts:?}");
        // A page has 1,024 tokens.
        assert_eq!(counts[1], if younger_ends == Finish::Length { 600 } else { 425 });
    }
}
