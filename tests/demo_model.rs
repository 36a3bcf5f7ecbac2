//! The bundled demo model through the whole library: what it answers, that every way of running it
//! gives the same, and (on request) how often it is right and how fast it is.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use candle_ds4::candle::Device;
use candle_ds4::engine::{Engine, Outcome, Progress, Request, Sequence};
use candle_ds4::model::{Input, Logits};
use candle_ds4::prompt::{Conversation, Event, Message, Reader, Thinking, Tool};
use candle_ds4::sample::Sampling;
use serde::Deserialize;
use serde_json::{json, Value};

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny").join(name)
}

/// The bundled model, or one made from it: `DS4_TEST_MODEL=FILE`.
fn engine() -> Engine {
    let file = std::env::var_os("DS4_TEST_MODEL").map_or_else(|| path("tiny.gguf"), PathBuf::from);
    Engine::load(file, &Device::Cpu).unwrap()
}

/// What came back, in the terms of the prompt's parser.
#[derive(Default)]
struct Reply {
    reasoning: String,
    text: String,
    calls: Vec<(String, String)>,
    malformed: bool,
    tokens: Vec<u32>,
}

fn reply(engine: &Engine, sequence: &mut Sequence, asked: &Conversation) -> (Reply, Outcome) {
    let mut reader = Reader::new(engine.tokenizer(), asked.thinking);
    let mut reply = Reply::default();
    let mut events = Vec::new();
    let request = Request {
        prompt: asked.render().ids(engine.tokenizer()).unwrap(),
        sampling: Sampling::greedy(),
        max_tokens: 200,
    };
    let outcome = engine.generate(sequence, &request, &mut |progress| {
        if let Progress::Token(token) = progress {
            reply.tokens.push(token);
            events.extend(reader.push(engine.tokenizer(), token));
        }
        ControlFlow::Continue(())
    });
    events.extend(reader.finish());
    for event in events {
        match event {
            Event::Reasoning(text) => reply.reasoning.push_str(&text),
            Event::Text(text) => reply.text.push_str(&text),
            Event::ToolCallBegin { name, .. } => reply.calls.push((name, String::new())),
            Event::ToolArguments { index, fragment } => reply.calls[index].1.push_str(&fragment),
            Event::Malformed { .. } => reply.malformed = true,
            Event::ToolCallEnd { .. } | Event::ToolCallsEnd => {}
        }
    }
    (reply, outcome.unwrap())
}

fn ask(engine: &Engine, thinking: Thinking, messages: &[Message]) -> Reply {
    let messages = messages.to_vec();
    let asked = Conversation { messages, thinking, ..Conversation::default() };
    reply(engine, &mut engine.new_sequence().unwrap(), &asked).0
}

#[test]
fn it_answers_a_question_and_a_sum_with_and_without_thinking() {
    let engine = engine();
    for thinking in [Thinking::Off, Thinking::On] {
        for (question, answer) in [
            ("What is the capital of France?", "Paris"),
            ("What is 17 + 25?", "42"),
            ("What is the capital of Japan?", "Tokyo"),
        ] {
            let reply = ask(&engine, thinking, &[Message::user(question)]);
            assert!(reply.text.contains(answer), "{question} ({thinking:?}): {}", reply.text);
            assert_eq!(!reply.reasoning.is_empty(), thinking.is_on(), "{}", reply.reasoning);
            assert!(reply.calls.is_empty() && !reply.malformed);
        }
    }
}

#[test]
fn it_calls_the_tool_that_fits_and_reads_its_result() {
    let engine = engine();
    let city = json!({"type": "object", "required": ["city"], "properties": {
        "city": {"type": "string", "description": "Name of the city"}}});
    let tools = vec![Tool::new("get_weather", "Get the weather in a city", city)];
    let mut asked = Conversation {
        messages: vec![Message::user("What is the weather in Paris?")],
        tools,
        thinking: Thinking::Off,
        ..Conversation::default()
    };
    let mut sequence = engine.new_sequence().unwrap();
    let (first, _) = reply(&engine, &mut sequence, &asked);
    assert_eq!(first.calls.len(), 1, "{}", first.text);
    let (name, arguments) = &first.calls[0];
    let arguments: Value = serde_json::from_str(arguments).unwrap();
    assert_eq!((name.as_str(), &arguments), ("get_weather", &json!({"city": "Paris"})));

    let call = json!({"role": "assistant", "content": "", "tool_calls": [
        {"id": "c", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}]});
    asked.messages.push(serde_json::from_value(call).unwrap());
    asked.messages.push(Message::tool("c", "condition: snowy, temperature: 3"));
    let (second, outcome) = reply(&engine, &mut sequence, &asked);
    assert!(second.text.contains("snowy") || second.text.contains('3'), "{}", second.text);
    assert!(outcome.cached_tokens > 0, "the second turn starts over");
}

/// Around 700 tokens: six windows of the slow layers, more rows than the fast layers attend to.
fn long_prompt(engine: &Engine, tokens: usize) -> Vec<u32> {
    let filler = "The river came from the forest while the sun was shining. A black bird crossed \
                  the library in the morning. The doctor talked about the sea once more. ";
    let mut ids = Vec::new();
    let mut times = 1;
    while ids.len() < tokens {
        let text = format!("The code word is Live. {}What is the code word?", filler.repeat(times));
        let messages = vec![Message::user(text)];
        let asked = Conversation { messages, thinking: Thinking::Off, ..Conversation::default() };
        ids = asked.render().ids(engine.tokenizer()).unwrap();
        times += 1;
    }
    ids
}

#[test]
fn every_cut_of_a_long_prompt_gives_the_same_logits_and_answer() {
    let engine = engine();
    let prompt = long_prompt(&engine, 700);
    let model = engine.model();
    let run = |cuts: &[usize]| {
        let mut cache = model.new_cache().unwrap();
        let (mut rows, mut cuts) = (Vec::new(), cuts.iter().cycle());
        while cache.len() < prompt.len() {
            let from = cache.len();
            let to = (from + cuts.next().unwrap()).min(prompt.len());
            let input = Input { tokens: &prompt[from..to], cache: &mut cache };
            let logits = model.forward(&mut [input], Logits::All, engine.workspace()).unwrap();
            rows.extend(logits.to_vec2::<f32>().unwrap());
        }
        // Greedy from there.
        let mut answer = Vec::new();
        let mut last = rows.last().unwrap().clone();
        for _ in 0..20 {
            let token = (0..last.len()).max_by(|&a, &b| last[a].total_cmp(&last[b])).unwrap();
            answer.push(token as u32);
            let input = Input { tokens: &answer[answer.len() - 1..], cache: &mut cache };
            let logits = model.forward(&mut [input], Logits::Last, engine.workspace()).unwrap();
            last = logits.flatten_all().unwrap().to_vec1().unwrap();
        }
        (rows, answer)
    };
    let whole = run(&[prompt.len()]);
    assert!(whole.0.iter().flatten().all(|value| value.is_finite()));
    for cuts in [&[1][..], &[128], &[127, 1, 4, 3], &[512]] {
        assert!(run(cuts) == whole, "cut into {cuts:?}");
    }

    // The engine's own chunks, and its sequence reused.
    let request = Request { prompt, sampling: Sampling::greedy(), max_tokens: 20 };
    let eos = engine.tokenizer().control().eos;
    let want: Vec<u32> = whole.1.iter().copied().take_while(|&token| token != eos).collect();
    let mut sequence = engine.new_sequence().unwrap();
    for _ in 0..2 {
        let mut tokens = Vec::new();
        let outcome = engine.generate(&mut sequence, &request, &mut |progress| {
            if let Progress::Token(token) = progress {
                tokens.push(token);
            }
            ControlFlow::Continue(())
        });
        outcome.unwrap();
        assert_eq!(tokens, want);
    }
}

/// A question of a held-out set and what makes a reply to it right.
#[derive(Deserialize)]
struct Item {
    messages: Vec<Message>,
    #[serde(default)]
    tools: Vec<Tool>,
    thinking: String,
    expect: Expect,
}

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Expect {
    Contains { all: Vec<String> },
    ToolCall { name: String, arguments: Value },
    Json { value: Value },
}

impl Item {
    fn right(&self, reply: &Reply) -> bool {
        match &self.expect {
            Expect::Contains { all } => all.iter().all(|word| stands_in(word, &reply.text)),
            Expect::ToolCall { name, arguments } => match &reply.calls[..] {
                [(called, with)] if !reply.malformed => {
                    called == name
                        && serde_json::from_str::<Value>(with).is_ok_and(|with| with == *arguments)
                }
                _ => false,
            },
            Expect::Json { value } => {
                serde_json::from_str::<Value>(&reply.text).is_ok_and(|found| found == *value)
            }
        }
    }
}

/// Whether `word` is in `text` and not part of a longer word or number.
fn stands_in(word: &str, text: &str) -> bool {
    let part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    text.match_indices(word).any(|(at, _)| {
        !part(text[..at].chars().next_back()) && !part(text[at + word.len()..].chars().next())
    })
}

#[test]
fn a_word_inside_another_is_not_an_answer() {
    assert!(stands_in("42", "It is 42."));
    assert!(stands_in("42", "142 or 42"));
    assert!(!stands_in("42", "It is 142."));
    assert!(!stands_in("Oslo", "Osloer"));
}

/// Prints the table of the model card; takes minutes. Run with
/// `cargo test --release --test demo_model -- --ignored --nocapture held_out_accuracy`.
#[test]
#[ignore = "takes minutes; prints the accuracy of the demo model"]
fn held_out_accuracy() {
    let bars = [
        ("facts", 95.0),
        ("sums", 90.0),
        ("tools", 90.0),
        ("results", 90.0),
        ("json", 0.0),
        ("recall_4000", 90.0),
    ];
    let mut short = Vec::new();
    println!(
        "{:<12} {:>5} {:>5} {:>6} {:>9} {:>7}",
        "set", "items", "right", "%", "prefill", "gen"
    );
    for (set, bar) in bars {
        let lines = std::fs::read_to_string(path("heldout").join(set).with_extension("jsonl"));
        let items: Vec<Item> =
            lines.unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let (right, outcomes) = score(&items);
        let percent = 100.0 * right as f64 / items.len() as f64;
        let rate = |count: fn(&Outcome) -> usize, time: fn(&Outcome) -> Duration| {
            let time = outcomes.iter().map(time).sum::<Duration>().as_secs_f64();
            outcomes.iter().map(count).sum::<usize>() as f64 / time
        };
        println!(
            "{set:<12} {:>5} {right:>5} {percent:>6.1} {:>9.0} {:>7.1}",
            items.len(),
            rate(|o| o.prompt_tokens, |o| o.prefill),
            rate(|o| o.generated_tokens, |o| o.decode),
        );
        if percent < bar {
            short.push(format!("{set}: {percent:.1} % is below {bar} %"));
        }
    }
    assert!(short.is_empty(), "{}", short.join("; "));
}

/// Asks every item on all cores; returns how many replies are right.
fn score(items: &[Item]) -> (usize, Vec<Outcome>) {
    let next = AtomicUsize::new(0);
    let work = || {
        // One product at a time on each thread: the items are what runs in parallel.
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        pool.install(|| {
            let engine = engine();
            let (mut right, mut outcomes) = (0, Vec::new());
            while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                let asked = Conversation {
                    messages: item.messages.clone(),
                    tools: item.tools.clone(),
                    thinking: match item.thinking.as_str() {
                        "on" => Thinking::On,
                        _ => Thinking::Off,
                    },
                    ..Conversation::default()
                };
                let mut sequence = engine.new_sequence().unwrap();
                let (reply, outcome) = reply(&engine, &mut sequence, &asked);
                right += usize::from(item.right(&reply));
                outcomes.push(outcome);
            }
            (right, outcomes)
        })
    };
    let threads = std::thread::available_parallelism().unwrap().get();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let (mut right, mut outcomes) = (0, Vec::new());
        for worker in workers {
            let (n, more) = worker.join().unwrap();
            right += n;
            outcomes.extend(more);
        }
        (right, outcomes)
    })
}

/// Prints decode and prefill rates and resident memory. Run with
/// `cargo test --release --test demo_model -- --ignored --nocapture speed`.
#[test]
#[ignore = "a measurement: wants a quiet machine"]
fn speed() {
    let start = Instant::now();
    let engine = engine();
    println!("load          {:8.1} ms", start.elapsed().as_secs_f64() * 1e3);
    let prompt = long_prompt(&engine, 2048 + 512);
    let best = |runs: usize, mut run: Box<dyn FnMut() -> f64 + '_>| {
        let rates: Vec<f64> = (0..runs).map(|_| run()).collect();
        rates.into_iter().fold(0.0, f64::max)
    };
    let prefill = best(
        3,
        Box::new(|| {
            let mut cache = engine.model().new_cache().unwrap();
            let start = Instant::now();
            for tokens in prompt[..2048].chunks(512) {
                let input = Input { tokens, cache: &mut cache };
                engine.model().forward(&mut [input], Logits::Last, engine.workspace()).unwrap();
            }
            2048.0 / start.elapsed().as_secs_f64()
        }),
    );
    println!("prefill 2048  {prefill:8.1} tok/s");
    let decode = best(
        3,
        Box::new(|| {
            let mut sequence = engine.new_sequence().unwrap();
            let eos = engine.tokenizer().control().eos;
            let sampling =
                Sampling { logit_bias: [(eos, f32::NEG_INFINITY)].into(), ..Sampling::greedy() };
            let prompt = prompt[..512].to_vec();
            let request = Request { prompt, sampling, max_tokens: 256 };
            let on = &mut |_: Progress| ControlFlow::Continue(());
            engine.generate(&mut sequence, &request, on).unwrap().decode_rate()
        }),
    );
    println!("decode 256    {decode:8.1} tok/s");
    if let Ok(status) = std::fs::read_to_string("/proc/self/status") {
        for line in status.lines().filter(|l| l.starts_with("VmRSS") || l.starts_with("VmHWM")) {
            println!("{line}");
        }
    }
}
