//! Measurements: run one at a time, on a quiet machine for wall time.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use candle_ds4::candle::Device;
use candle_ds4::engine::{Guide, GuideError, Job, Limits, Namespace, Service, Update};
use candle_ds4::guide::{Calls, Guides, Text, Wanted};
use candle_ds4::model::{Input, Logits};
use candle_ds4::prompt::Tool;
use serde_json::json;

use crate::{endless, engine, ids, listen, until};

/// Processor time of this process, threads that have ended included; zero where the system does
/// not tell.
fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // User and system time are fields 14 and 15, and the name before them may hold anything.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

/// What some work took.
#[derive(Clone, Copy, Default)]
struct Took {
    wall: Duration,
    processor: Duration,
}

impl Took {
    fn of(work: impl FnOnce()) -> Self {
        let (start, before) = (Instant::now(), processor_time());
        work();
        Self { wall: start.elapsed(), processor: processor_time() - before }
    }

    fn add(&mut self, other: Self) {
        self.wall += other.wall;
        self.processor += other.processor;
    }
}

fn milliseconds(time: Duration, of: usize) -> f64 {
    time.as_secs_f64() * 1e3 / of as f64
}

/// Asks for several answers at a time and waits for all.
fn run(service: &Service, jobs: Vec<Job>) {
    let tokens: Vec<usize> = jobs.iter().map(|job| job.max_tokens).collect();
    let submit = |job| service.submit(job).unwrap();
    let listeners: Vec<_> = jobs
        .into_iter()
        .map(submit)
        .map(|updates| std::thread::spawn(move || listen(updates)))
        .collect();
    for (listener, tokens) in listeners.into_iter().zip(tokens) {
        assert_eq!(listener.join().unwrap().chosen.len(), tokens);
    }
}

/// Aggregate speed of several answers at a time against that of one.
///
/// `cargo test --release --test service -- --ignored --nocapture throughput`
#[test]
#[ignore = "a measurement: run it alone on a quiet machine"]
fn throughput() {
    const COUNTS: [usize; 6] = [1, 2, 4, 8, 16, 32];
    for (what, prompt, answer) in [("short prompts", 10, 400), ("chats", 200, 200)] {
        // In turns, so that all of them have what the machine has to give.
        let mut took = [Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new()];
        for round in 0..5 {
            for (count, took) in COUNTS.into_iter().zip(&mut took) {
                let limits = Limits { parallel: count, ..Limits::of(&Device::Cpu) };
                let service = Service::start_with(engine(), limits).unwrap();
                let job = |job: u32| {
                    let namespace = Namespace([job as u8; 16]);
                    Job { namespace, ..endless(ids(job * 40 + round, prompt), answer) }
                };
                let jobs = (0..count as u32).map(job).collect();
                took.push(Took::of(|| run(&service, jobs)));
            }
        }
        let median = |mut times: Vec<Duration>| {
            times.sort_unstable();
            times[times.len() / 2]
        };
        let mut of_one = 0.0;
        for (count, took) in COUNTS.into_iter().zip(took) {
            let tokens = count * answer;
            let wall = median(took.iter().map(|took| took.wall).collect());
            let processor = median(took.iter().map(|took| took.processor).collect());
            let rate = tokens as f64 / wall.as_secs_f64();
            if count == 1 {
                of_one = rate;
            }
            println!(
                "{what}, {count} at a time: {rate:.0} tok/s, {:.2} × one, {:.2} ms of processor \
                 time a token (medians of {})",
                rate / of_one,
                milliseconds(processor, tokens),
                took.len()
            );
        }
    }
}

/// A guide whose time is taken, token by token.
struct Timed {
    guide: Box<dyn Guide>,
    /// Whether it has to look at all tokens.
    masks: bool,
    token: Duration,
    tokens: Arc<Mutex<Vec<Duration>>>,
}

impl Guide for Timed {
    fn restrict(&mut self, logits: &mut [f32], reach: Option<f32>) -> Result<(), GuideError> {
        let start = Instant::now();
        let reach = reach.filter(|_| !self.masks);
        let restricted = self.guide.restrict(logits, reach);
        self.token = start.elapsed();
        restricted
    }

    fn accept(&mut self, token: u32) -> Result<(), GuideError> {
        let start = Instant::now();
        let accepted = self.guide.accept(token);
        self.tokens.lock().unwrap().push(self.token + start.elapsed());
        accepted
    }
}

/// Mean of times on a machine that has other things to do as well: those in which others must have had
/// the core, since no guide takes as long over the demo's vocabulary, are left out.
fn mean_undisturbed(mut times: Vec<Duration>) -> Duration {
    times.retain(|time| *time < Duration::from_millis(2));
    times.iter().sum::<Duration>() / times.len().max(1) as u32
}

/// Answers that follow a schema or make a call against free ones, the same prompts and as many
/// tokens each; the guides' own time beside it, which other work on the machine blurs less.
///
/// `cargo test --release --test service -- --ignored --nocapture constrained`; with `DS4_MASKS=1` guides
/// look at all tokens at each step, as they do where any token can be chosen.
#[test]
#[ignore = "a measurement"]
fn constrained_against_free_decoding() {
    const TOKENS: usize = 200;
    const ROUNDS: u32 = 6;
    let service = Service::start_with(engine(), Limits::of(&Device::Cpu)).unwrap();
    let guides = Guides::new(Arc::clone(service.tokenizer())).unwrap();
    // None of them can end before the tokens do.
    let people = json!({ "type": "object", "properties": { "people": { "type": "array",
        "minItems": 1000, "items": { "type": "object", "properties": {
            "name": { "type": "string", "maxLength": 20 },
            "age": { "type": "integer", "minimum": 0, "maximum": 120 },
            "email": { "type": "string", "pattern": "^[a-z]{2,9}@[a-z]{2,9}[.]com$" },
            "kind": { "enum": ["friend", "colleague", "neighbour"] },
            "tags": { "type": "array", "items": { "type": "string" }, "maxItems": 3 } },
        "required": ["name", "age", "email", "kind"], "additionalProperties": false } } },
        "required": ["people"], "additionalProperties": false });
    let numbers = json!({ "type": "array", "items": { "type": "integer" }, "minItems": 5000 });
    let texts = json!({ "type": "array", "items": { "type": "string" }, "minItems": 5000 });
    let counted = json!({ "type": "string", "minLength": 5000 });
    let write = json!({ "type": "object", "properties": {
        "path": { "type": "string" }, "lines": numbers }, "required": ["lines", "path"] });
    let tools = [Tool::new("write", "", write)];
    let free = Wanted::default();
    let shapes = [
        ("records", Wanted { text: Text::Schema(&people), ..free }),
        ("numbers", Wanted { text: Text::Schema(&numbers), ..free }),
        ("texts", Wanted { text: Text::Schema(&texts), ..free }),
        ("a text whose characters are counted", Wanted { text: Text::Schema(&counted), ..free }),
        ("a call", Wanted { tools: &tools, calls: Calls::Required, ..free }),
        ("a call if it likes", Wanted { tools: &tools, calls: Calls::Optional, ..free }),
    ];
    for (what, wanted) in shapes {
        let start = Instant::now();
        guides.guide(&wanted).unwrap();
        let preparing = start.elapsed();
        for count in [1, 8] {
            let (mut with, mut without) = (Took::default(), Took::default());
            let guiding = Arc::new(Mutex::new(Vec::new()));
            for round in 0..ROUNDS {
                let job = |index: u32, guided: bool| {
                    let mut job = endless(ids(round * 91 + index * 7, 100), TOKENS);
                    // As most requests have it.
                    job.sampling.temperature = 1.0;
                    job.sampling.seed = u64::from(round);
                    job.guide = guided.then(|| {
                        let guide = guides.guide(&wanted).unwrap();
                        let tokens = Arc::clone(&guiding);
                        let masks = std::env::var_os("DS4_MASKS").is_some();
                        Box::new(Timed { guide, masks, token: Duration::ZERO, tokens })
                            as Box<dyn Guide>
                    });
                    job
                };
                let jobs = |guided| (0..count).map(|index| job(index, guided)).collect();
                // Read once: what is measured is decoding.
                run(
                    &service,
                    (0..count).map(|index| Job { max_tokens: 1, ..job(index, false) }).collect(),
                );
                for guided in [round % 2 == 0, round % 2 != 0] {
                    let jobs = jobs(guided);
                    let took = Took::of(|| run(&service, jobs));
                    if guided {
                        with.add(took)
                    } else {
                        without.add(took)
                    }
                }
            }
            let tokens = TOKENS * count as usize * ROUNDS as usize;
            println!(
                "{what}, {count} at a time: {:.3} ms of processor time a token, free {:.3}: {:+.1} \
                 %; wall {:+.1} %; the guide {:.1?} a token; prepared in {preparing:.1?}",
                milliseconds(with.processor, tokens),
                milliseconds(without.processor, tokens),
                100.0 * (with.processor.as_secs_f64() / without.processor.as_secs_f64() - 1.0),
                100.0 * (with.wall.as_secs_f64() / without.wall.as_secs_f64() - 1.0),
                mean_undisturbed(std::mem::take(&mut guiding.lock().unwrap())),
            );
        }
    }
}

/// A short request beside a prompt of 16,000 tokens that is being read.
///
/// `cargo test --release --test service -- --nocapture short_request`
#[test]
fn a_short_request_beside_a_long_prompt_has_its_first_token_within_two_chunks() {
    const CHUNK: usize = 512;
    let limits = Limits { chunk_tokens: CHUNK, ..Limits::of(&Device::Cpu) };
    let service = Service::start_with(engine(), limits).unwrap();
    let long = service.submit(endless(ids(1, 16_000), 2)).unwrap();
    let long = std::thread::spawn(move || listen(long));
    until("it is not read", || service.stats().steps >= 3);
    let mut waits = Vec::new();
    for round in 0..5 {
        let before = service.stats();
        let start = Instant::now();
        let mut updates = service.submit(endless(ids(700 + 90 * round, 100), 1)).unwrap();
        while !matches!(updates.blocking_recv().unwrap(), Update::Token(_)) {}
        let wait = start.elapsed();
        let after = service.stats();
        let passes = after.steps - before.steps;
        waits.push((passes, wait, (after.step_time - before.step_time) / passes.max(1) as u32));
    }
    assert_eq!(service.stats().running, 1, "the long prompt was read too soon");
    println!("passes to a first token, its time, and that of a pass: {waits:.1?}");
    // The pass that it came in the middle of, and the one that read it; a busy machine may look too
    // late at most of them. That it holds each time is tested without clocks, in the scheduler's tests.
    let least = waits.iter().map(|(passes, ..)| passes).min();
    assert!(least <= Some(&2), "{waits:?}");
    service.stop(Duration::ZERO);
    assert!(long.join().unwrap().end.is_some());
}

/// Whether tokens of answers ride along with a chunk of a prompt, or take turns with it.
///
/// `cargo test --release --test service -- --ignored --nocapture riding_along`
#[test]
#[ignore = "a measurement: run it alone on a quiet machine"]
fn riding_along_with_a_chunk_against_taking_turns() {
    let engine = engine();
    let (model, ws) = (engine.model(), engine.workspace());
    let fresh = |len: usize| {
        let mut cache = model.new_cache().unwrap();
        let tokens = ids(len as u32, len);
        let input = Input { tokens: &tokens, cache: &mut cache };
        model.forward(&mut [input], Logits::None, ws).unwrap();
        cache
    };
    let token = [700];
    for chunk in [128, 512, 1024] {
        let (mut together, mut turns) = (Vec::new(), Vec::new());
        let tokens = ids(9, chunk);
        for _ in 0..15 {
            for (mixed, times) in [(true, &mut together), (false, &mut turns)] {
                let mut prompt = fresh(1000);
                let mut answers: Vec<_> = (0..8).map(|i| fresh(200 + i)).collect();
                let start = Instant::now();
                let answers = answers.iter_mut();
                let mut inputs: Vec<_> =
                    answers.map(|cache| Input { tokens: &token, cache }).collect();
                let chunk = Input { tokens: &tokens, cache: &mut prompt };
                if mixed {
                    inputs.push(chunk);
                    model.forward(&mut inputs, Logits::Last, ws).unwrap();
                } else {
                    model.forward(&mut inputs, Logits::Last, ws).unwrap();
                    model.forward(&mut [chunk], Logits::None, ws).unwrap();
                }
                times.push(start.elapsed().as_secs_f64() * 1e3);
            }
        }
        let [together, turns] = [together, turns].map(|mut times| {
            times.sort_unstable_by(f64::total_cmp);
            (times[0], times[times.len() / 2])
        });
        println!(
            "chunk {chunk} and 8 answers: together {together:.2?} ms, in turns {turns:.2?} ms"
        );
    }
}
