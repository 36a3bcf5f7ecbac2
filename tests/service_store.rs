//! What a service has computed outlives it: a stop, a kill, a full memory; and never changes an
//! answer.

#[path = "support/ids.rs"]
mod ids;
#[path = "support/jobs.rs"]
mod jobs;
#[path = "support/wait.rs"]
mod wait;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use candle_ds4::candle::Device;
use candle_ds4::engine::{
    open_store, Attach, Chosen, Job, Limits, Namespace, Outcome, Service, Updates,
};
use ids::ids;
use jobs::{endless, engine, gguf};
use wait::until;

const BUDGET: u64 = 1 << 30;
/// Tells a child where its store is.
const FOLDER: &str = "SERVICE_STORE_TEST_FOLDER";

fn limits() -> Limits {
    Limits { chunk_tokens: 256, ..Limits::of(&Device::Cpu) }
}

fn service(folder: &Path) -> Service {
    service_with(folder, limits())
}

fn service_with(folder: &Path, limits: Limits) -> Service {
    let engine = engine();
    let store = open_store(&gguf(), &engine, folder, BUDGET).unwrap();
    Service::start_with_store(engine, limits, store).unwrap()
}

/// With the probabilities of its tokens, which tell more than the tokens.
fn job(prompt: Vec<u32>, max_tokens: usize) -> Job {
    Job { logprobs: Some(5), ..endless(prompt, max_tokens) }
}

fn listen(updates: Updates) -> (Vec<Chosen>, Outcome) {
    let answer = jobs::listen(updates);
    let Some(end) = answer.end else { panic!("no end: {:?}", answer.failed) };
    (answer.chosen, end)
}

fn ask(service: &Service, job: Job) -> (Vec<Chosen>, Outcome) {
    listen(service.submit(job).unwrap())
}

/// Greedy tokens and their probabilities, to the bit, without any cache.
fn fresh(prompt: &[u32], max_tokens: usize) -> Vec<Chosen> {
    let service = Service::start_with(engine(), limits()).unwrap();
    ask(&service, job(prompt.to_vec(), max_tokens)).0
}

fn tokens(chosen: &[Chosen]) -> Vec<u32> {
    chosen.iter().map(|chosen| chosen.token).collect()
}

/// 99 % of what could be reused were.
fn assert_reused(outcome: &Outcome, shared: usize) {
    let cached = outcome.cached_tokens;
    assert!(cached * 100 >= shared * 99, "{cached} of {shared} tokens from disk");
}

#[test]
fn a_service_that_was_stopped_goes_on_where_it_was_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    let mut prompt = ids(0, 900);
    let mut known = 0;
    for turn in 0..3 {
        let service = service(folder.path());
        let (answer, outcome) = ask(&service, job(prompt.clone(), 30));
        assert_eq!(answer, fresh(&prompt, 30), "turn {turn}");
        assert_reused(&outcome, known);
        let stats = service.stats();
        assert_eq!(stats.cached_disk_tokens as usize, outcome.cached_tokens);
        service.stop(Duration::from_secs(60));
        prompt.extend(tokens(&answer));
        known = prompt.len() - 1;
        prompt.extend(ids(turn * 7 + 3, 40));
    }
}

#[test]
fn the_same_prompt_and_one_that_parts_before_its_end_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let prompt = ids(5, 700);
    let first = service(folder.path());
    let landmarks = vec![300];
    ask(&first, Job { landmarks, ..job(prompt.clone(), 3) });
    first.stop(Duration::from_secs(60));
    let second = service(folder.path());
    // Another owner first: nothing is there for it.
    let stranger = Job { namespace: Namespace([7; 16]), ..job(prompt.clone(), 3) };
    assert_eq!(ask(&second, stranger).1.cached_tokens, 0);
    let (answer, outcome) = ask(&second, job(prompt.clone(), 3));
    assert_eq!((answer, outcome.cached_tokens), (fresh(&prompt, 3), 699));
    let third = service(folder.path());
    let other = [&prompt[..400], &ids(900, 50)].concat();
    let (answer, outcome) = ask(&third, job(other.clone(), 3));
    assert_eq!((answer, outcome.cached_tokens), (fresh(&other, 3), 300));
}

#[test]
fn what_memory_has_no_room_for_comes_back_from_disk() {
    let folder = tempfile::tempdir().unwrap();
    let large = service(folder.path());
    let prompts: Vec<_> = (0..4).map(|who| ids(who * 200, 600)).collect();
    let ask_all = |service: &Service| -> Vec<_> {
        prompts.iter().map(|prompt| ask(service, job(prompt.clone(), 5))).collect()
    };
    let want: Vec<_> = ask_all(&large).into_iter().map(|(answer, _)| answer).collect();
    large.stop(Duration::from_secs(60));

    let one = large.stats().kept_bytes / prompts.len();
    let tight = Limits { kv_bytes: one * 2, parallel: 1, ..limits() };
    let small = service_with(folder.path(), tight);
    for _ in 0..2 {
        for ((answer, outcome), want) in ask_all(&small).into_iter().zip(&want) {
            assert_eq!(&answer, want);
            assert_reused(&outcome, 599);
        }
    }
    let stats = small.stats();
    assert!(stats.evicted > 0 && stats.cached_disk_tokens >= 4 * 599, "{stats:?}");
}

#[test]
fn jobs_that_come_together_after_a_restart_read_their_prefix_once() {
    let folder = tempfile::tempdir().unwrap();
    let shared = ids(2, 1000);
    let first = service(folder.path());
    ask(&first, job(shared.clone(), 1));
    first.stop(Duration::from_secs(60));
    let second = service(folder.path());
    let prompts: Vec<_> = (0..6).map(|who| [shared.clone(), ids(who * 90, 20)].concat()).collect();
    let updates: Vec<_> =
        prompts.iter().map(|prompt| second.submit(job(prompt.clone(), 4)).unwrap()).collect();
    for (updates, prompt) in updates.into_iter().zip(&prompts) {
        let (answer, outcome) = listen(updates);
        assert_eq!(answer, fresh(prompt, 4));
        assert!(outcome.cached_tokens >= 999);
    }
    assert_eq!(second.store().unwrap().stats().hit_tokens, 999);
}

#[test]
fn a_damaged_store_costs_time_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let prompt = ids(4, 800);
    let want = fresh(&prompt, 8);
    let first = service(folder.path());
    ask(&first, job(prompt.clone(), 8));
    first.stop(Duration::from_secs(60));
    let mut damaged = 0;
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            let mut bytes = std::fs::read(&path).unwrap();
            if let Some(last) = bytes.last_mut() {
                *last ^= 0x40;
                std::fs::write(&path, bytes).unwrap();
                damaged += 1;
            }
        }
    }
    assert!(damaged > 1);
    let second = service(folder.path());
    assert_eq!(ask(&second, job(prompt.clone(), 8)).0, want);
    second.stop(Duration::from_secs(60));
    // And it is whole again.
    let third = service(folder.path());
    let (answer, outcome) = ask(&third, job(prompt, 8));
    assert_eq!(answer, want);
    assert_reused(&outcome, 799);
}

#[test]
fn an_answer_that_a_stop_cuts_is_saved_as_far_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let first = service(folder.path());
    let updates = first.submit(job(ids(1, 200), 100_000)).unwrap();
    let listener = std::thread::spawn(move || listen(updates));
    until("no tokens", || first.stats().generated_tokens > 300);
    first.stop(Duration::ZERO);
    let (answer, _) = listener.join().unwrap();
    let second = service(folder.path());
    let prompt = [ids(1, 200), tokens(&answer)].concat();
    let shared = prompt.len() - 1;
    let (_, outcome) = ask(&second, job(prompt, 1));
    assert_reused(&outcome, shared);
}

/// Remembers what it was asked for and given.
#[derive(Default)]
struct Notes(Mutex<Vec<(Namespace, Vec<u8>)>>);

impl Attach for Notes {
    fn attachment(&self, _: Namespace, tokens: &[u32]) -> Vec<u8> {
        format!("{} tokens", tokens.len()).into_bytes()
    }

    fn restore(&self, namespace: Namespace, attachment: &[u8]) {
        self.0.lock().unwrap().push((namespace, attachment.to_vec()));
    }
}

#[test]
fn what_goes_with_a_sequence_comes_back_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let owner = Namespace([3; 16]);
    let first = service(folder.path());
    let notes = Arc::new(Notes::default());
    first.attach(notes.clone());
    ask(&first, Job { namespace: owner, ..job(ids(0, 300), 1) });
    first.stop(Duration::from_secs(60));
    assert!(notes.0.lock().unwrap().is_empty());
    let second = service(folder.path());
    second.attach(notes.clone());
    assert_eq!(*notes.0.lock().unwrap(), [(owner, b"299 tokens".to_vec())]);
}

#[test]
fn a_kill_loses_nothing_that_was_saved() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "child_that_is_killed", "--nocapture"])
        .env(FOLDER, folder.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let said = lines.map_while(Result::ok).find_map(|line| {
        let (_, tokens) = line.split_once("said: ")?;
        Some(tokens.split(' ').map(|id| id.parse().unwrap()).collect::<Vec<u32>>())
    });
    // SIGKILL: it has no chance to do anything about it.
    child.kill().unwrap();
    child.wait().unwrap();
    let said = said.expect("the child said something");
    let prompt = ids(6, 1200);
    assert_eq!(said, tokens(&fresh(&prompt, 20)));

    let service = service(folder.path());
    let (again, outcome) = ask(&service, job(prompt.clone(), 20));
    assert_eq!(tokens(&again), said);
    assert_reused(&outcome, prompt.len() - 1);
    let next = [prompt, said, ids(8, 30)].concat();
    let shared = next.len() - 31;
    let (answer, outcome) = ask(&service, job(next.clone(), 10));
    assert_eq!(answer, fresh(&next, 10));
    assert_reused(&outcome, shared);
}

#[test]
#[ignore = "not a test: what a_kill_loses_nothing_that_was_saved kills"]
fn child_that_is_killed() {
    let folder = std::env::var_os(FOLDER).expect("run by another test");
    let service = service(folder.as_ref());
    let (answer, _) = ask(&service, job(ids(6, 1200), 20));
    until("nothing is saved", || service.stats().saves >= 2);
    let said: Vec<_> = tokens(&answer).iter().map(u32::to_string).collect();
    println!("said: {}", said.join(" "));
    // For the kill.
    std::thread::sleep(wait::PATIENCE);
}
