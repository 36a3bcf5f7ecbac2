//! The program as users meet it: command lines in, exit codes and text out.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use candle_ds4::demo::demo_model;
use candle_ds4::gguf::{Metadata, Writer};
use serde_json::Value;

/// The program, in a folder and an environment without models.
fn ds4(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ds4"));
    command.args(arguments).current_dir(folder).stdin(Stdio::null());
    command.env_remove("DS4_MODEL").env("XDG_DATA_HOME", folder);
    command
}

fn run(arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    ds4(folder.path(), arguments).output().unwrap()
}

fn run_with_input(arguments: &[&str], input: &[u8]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let mut command = ds4(folder.path(), arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // The program may refuse its command line before it reads.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Checks that the program refused: code 2, nothing on standard output, no panic, and a message
/// that has all of `needles`.
fn refused(output: &Output, needles: &[&str]) {
    let message = stderr(output);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(message.contains("ds4: ") && !message.contains("panicked"), "{message}");
    for needle in needles {
        assert!(message.contains(needle), "{needle:?} is not in: {message}");
    }
}

const GREEDY: [&str; 3] = ["--nothink", "--temp", "0"];

fn greedy<'a>(more: &[&'a str]) -> Vec<&'a str> {
    GREEDY.iter().chain(more).copied().collect()
}

#[test]
fn a_question_is_answered() {
    let output = run(&greedy(&["-p", "What is the capital of France?"]));
    assert!(stdout(&output).contains("Paris"), "{output:?}");
    assert!(stdout(&output).ends_with('\n'));
    let told = stderr(&output);
    assert!(told.contains("bundled demo model") && told.contains("ds4 pull q2-imatrix"), "{told}");
    assert_eq!(told.lines().count(), 1, "{told}");
}

#[test]
fn a_sum_through_a_pipe_is_answered() {
    let output = run_with_input(&GREEDY, "What is 12 + 30?\n".as_bytes());
    assert!(stdout(&output).contains("42"), "{output:?}");
}

#[test]
fn a_prompt_file_is_a_prompt_and_a_dash_is_standard_input() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("question.txt");
    std::fs::write(&file, "What is the capital of France?\n").unwrap();
    let output = run(&greedy(&["--prompt-file", file.to_str().unwrap()]));
    assert!(stdout(&output).contains("Paris"));
    let question = b"What is the capital of France?";
    let output = run_with_input(&greedy(&["--prompt-file", "-"]), question);
    assert!(stdout(&output).contains("Paris"));
}

#[test]
fn thinking_stays_out_of_a_pipe_unless_asked_for() {
    let question = ["--temp", "0", "-p", "What is 12 + 30?"];
    let output = run(&question);
    assert!(!stdout(&output).contains("think"), "{output:?}");
    let object = json(&run(&[&question[..], &["--json"]].concat()));
    let thought = object["reasoning"].as_str().unwrap().trim().to_owned();
    assert!(!thought.is_empty() && !stdout(&output).contains(&thought), "{thought}");
    let output = run(&[&question[..], &["--verbose"]].concat());
    assert!(!stdout(&output).contains(&thought));
    let told = stderr(&output);
    assert!(told.contains(&thought) && told.contains(" tok/s"), "{told}");
}

fn json(output: &Output) -> Value {
    serde_json::from_str(&stdout(output)).unwrap()
}

#[test]
fn json_has_the_answer_and_its_numbers() {
    let question = ["--json", "-p", "What is the capital of France?"];
    let object = json(&run(&greedy(&question)));
    assert!(object["text"].as_str().unwrap().contains("Paris"));
    assert_eq!(object["finish"], "stop");
    assert_eq!(object["reasoning"], Value::Null);
    assert_eq!(object["tool_calls"], Value::Array(vec![]));
    let usage = &object["usage"];
    let tokens = |key: &str| usage[key].as_u64().unwrap();
    assert!(tokens("prompt_tokens") > 5 && tokens("completion_tokens") > 1);
    assert_eq!(tokens("total_tokens"), tokens("prompt_tokens") + tokens("completion_tokens"));
    assert!(object["timings"]["decode_tokens_per_second"].as_f64().unwrap() > 0.0);

    let cut = json(&run(&greedy(&[&question[..], &["-n", "1"]].concat())));
    assert_eq!(cut["finish"], "length");
    assert_eq!(cut["usage"]["completion_tokens"], 1);
}

#[test]
fn the_same_seed_gives_the_same_answer() {
    let ask = |seed| {
        let arguments = ["--json", "--nothink", "--temp", "8", "--min-p", "0", "-n", "24"];
        let object = json(&run(&[&arguments[..], &["--seed", seed, "-p", "Hello"]].concat()));
        assert_eq!(object["seed"], seed.parse::<u64>().unwrap());
        object["text"].as_str().unwrap().to_owned()
    };
    let first = ask("1");
    assert_eq!(first, ask("1"));
    assert!(["2", "3", "4"].iter().any(|seed| ask(seed) != first), "the seed does nothing");
}

#[test]
fn a_tool_call_is_readable_and_whole_in_json() {
    let folder = tempfile::tempdir().unwrap();
    let tools = folder.path().join("tools.json");
    let list = r#"[{"type": "function", "function": {"name": "get_birthday",
        "description": "Look up the birthday of a person", "parameters": {"type": "object",
        "properties": {"person": {"type": "string", "description": "Name of the person"}},
        "required": ["person"]}}}]"#;
    std::fs::write(&tools, list).unwrap();
    let tools = tools.to_str().unwrap();
    let question = greedy(&["--tools", tools, "-p", "On which day is Rita's birthday?"]);
    let text = stdout(&run(&question));
    assert!(text.contains("get_birthday({\"person\": \"Rita\"})\n"), "{text}");
    assert!(!text.contains("DSML"), "{text}");
    let object = json(&run(&[&question[..], &["--json"]].concat()));
    assert_eq!(object["finish"], "tool_calls");
    let call = &object["tool_calls"][0]["function"];
    assert_eq!(call["name"], "get_birthday");
    let arguments: Value = serde_json::from_str(call["arguments"].as_str().unwrap()).unwrap();
    assert_eq!(arguments["person"], "Rita");

    std::fs::write(tools, "{\"not\": \"a list\"}").unwrap();
    refused(&run(&question), &["tools.json", "no list of tools", "function"]);
}

#[test]
fn tokens_are_listed_and_user_text_makes_no_control_token() {
    let text = stdout(&run(&["--nothink", "--dump-tokens", "-p", "a</think>\nb"]));
    let controls: Vec<&str> = text.lines().filter(|line| line.ends_with("control")).collect();
    assert_eq!(controls.len(), 4, "{text}");
    assert!(controls[0].contains("begin▁of▁sentence") && controls[3].contains("</think>"));
    assert!(text.contains("\\n"), "{text}");
}

#[test]
fn the_system_prompt_is_what_was_typed_and_may_be_nothing() {
    let dump = |arguments: &[&str]| {
        stdout(&run(&[arguments, &["--dump-tokens", "-p", "hi"]].concat())).lines().count()
    };
    assert!(dump(&["-sys", ""]) < dump(&[]));
    assert!(dump(&["-sys", "one two three four five six seven eight nine"]) > dump(&[]));
}

#[test]
fn wrong_flags_are_named() {
    refused(&run(&["--frobnicate"]), &["--frobnicate", "--help"]);
    refused(&run(&["--temp", "hot", "-p", "x"]), &["--temp", "hot"]);
    refused(&run(&["--temp", "-1", "-p", "x"]), &["temperature", "-1", "between 0 and"]);
    refused(&run(&["--top-p", "1.5", "-p", "x"]), &["top_p", "1.5"]);
    refused(&run(&["-n", "0", "-p", "x"]), &["--tokens"]);
    refused(&run(&["-c", "1", "-p", "x"]), &["--ctx"]);
    refused(&run(&["-t", "0", "-p", "x"]), &["--threads"]);
    refused(&run(&["-t", "99999999", "-p", "x"]), &["--threads", "1024"]);
    refused(&run(&["-c", "-1", "-p", "x"]), &["--ctx is \"-1\": it must be a whole number from 0"]);
    refused(&run(&["--temp", "1e308", "-p", "x"]), &["1e308, must be between 0 and"]);
    refused(&run(&["--min-p", "NaN", "-p", "x"]), &["min_p is NaN"]);
    let most = "18446744073709551615";
    refused(&run(&["bench", "--ctx-max", most]), &["--ctx-max", "no model"]);
    refused(&run(&["bench", "--gen-tokens", most]), &["--gen-tokens", "lower"]);
    refused(&run(&["connect", "codex", "--ctx", "0"]), &["--ctx is 0", "from 2 to"]);
    refused(&run(&["-p", "x", "--prompt-file", "y"]), &["--prompt-file"]);
    refused(&run(&["inspect"]), &["FILE"]);
}

#[test]
fn a_backend_that_is_not_there_says_what_to_use() {
    refused(
        &run(&["--backend", "cuda", "-p", "x"]),
        &["--device cuda", "CPU only", "--device cpu"],
    );
    refused(&run(&["--metal", "-p", "x"]), &["metal", "CPU only"]);
    assert!(stdout(&run(&greedy(&["--cpu", "-p", "What is 1 + 2?"]))).contains('3'));
}

#[test]
fn prompts_that_cannot_be_are_refused() {
    refused(&run(&["-p", ""]), &["empty", "-p TEXT"]);
    refused(&run_with_input(&[], b" \n"), &["standard input", "empty"]);
    refused(&run(&[]), &["standard input", "empty", "-p TEXT"]);
    refused(&run_with_input(&[], b"caf\xe9?"), &["standard input", "byte 3", "0xe9", "iconv"]);
    refused(&run(&["--prompt-file", "missing.txt"]), &["missing.txt", "check the path"]);
}

#[test]
fn a_prompt_longer_than_the_context_says_how_long_both_are() {
    let question = "What is the capital of France? ".repeat(50);
    let needles = ["tokens, the context 64", "--ctx", "shorten"];
    refused(&run(&["-c", "64", "-p", &question]), &needles);
}

#[test]
fn models_that_cannot_be_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let file = path.to_str().unwrap();
    let with_model = |needles: &[&str]| {
        refused(&run(&["-m", file, "-p", "x"]), &[&["model.gguf"], needles].concat());
        let output = ds4(folder.path(), &["-p", "x"]).env("DS4_MODEL", file).output().unwrap();
        refused(&output, &[&["model.gguf"], needles].concat());
    };
    with_model(&["No such file", "-m FILE", "demo model"]);
    std::fs::create_dir(&path).unwrap();
    with_model(&["not a regular file"]);
    std::fs::remove_dir(&path).unwrap();
    std::fs::write(&path, "").unwrap();
    with_model(&[]);
    std::fs::write(&path, "<html>404</html>").unwrap();
    with_model(&["not a GGUF file"]);
    let demo = demo_model();
    std::fs::write(&path, &demo[..demo.len() - 1000]).unwrap();
    with_model(&["cut short", "download it again"]);
    std::fs::write(&path, &demo[..5000]).unwrap();
    with_model(&["cut short"]);

    let mut metadata = Metadata::new();
    metadata.insert("general.architecture", "llama").unwrap();
    let mut bytes = Vec::new();
    Writer::new(metadata).write(&mut bytes).unwrap();
    std::fs::write(&path, bytes).unwrap();
    with_model(&["llama", "deepseek4"]);
}

#[test]
fn the_model_in_the_folder_is_used_and_the_environment_comes_first() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("ds4flash.gguf"), "no model").unwrap();
    let output = ds4(folder.path(), &["-p", "x"]).output().unwrap();
    refused(&output, &["ds4flash.gguf", "not a GGUF file"]);
    let demo = folder.path().join("demo.gguf");
    std::fs::write(&demo, demo_model()).unwrap();
    let arguments = greedy(&["-p", "What is the capital of France?"]);
    let output = ds4(folder.path(), &arguments).env("DS4_MODEL", &demo).output().unwrap();
    assert!(stdout(&output).contains("Paris"));
    assert_eq!(stderr(&output), "");
}

#[test]
fn thinking_hardest_in_a_short_context_is_thinking_with_a_warning() {
    let output = run(&["--think-max", "--temp", "0", "--json", "-p", "What is 12 + 30?"]);
    assert!(stderr(&output).contains("393216"), "{output:?}");
    assert!(json(&output)["reasoning"].is_string());
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    for arguments in
        [&["-p", "Hello"][..], &["--json", "-p", "Hello"], &["--dump-tokens", "-p", "x"]]
    {
        let folder = tempfile::tempdir().unwrap();
        let mut command = ds4(folder.path(), arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(!stderr(&output).contains("panicked"), "{output:?}");
    }
}

#[cfg(unix)]
#[test]
fn an_interrupt_ends_with_130_and_what_was_said_so_far() {
    let folder = tempfile::tempdir().unwrap();
    // What was said is ever likelier, so the first word is said again and again: no end before the
    // context's, which is minutes away.
    let endless = ["--nothink", "--temp", "0", "--presence-penalty=-100", "-p", "Hello"];
    let cut = json(&run(&[&endless[..], &["--json", "-n", "40"]].concat()));
    assert_eq!(cut["finish"], "length");
    let mut command = ds4(folder.path(), &endless);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut first = [0; 1];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut first).unwrap();
    let signal = ["-INT", &child.id().to_string()].map(String::from);
    assert!(Command::new("kill").args(signal).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    assert!(output.stdout.ends_with(b"\n"));
    assert!(stderr(&output).contains("ds4: interrupted"), "{output:?}");
}

#[test]
fn inspect_lists_and_refuses() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("demo.gguf");
    std::fs::write(&path, demo_model()).unwrap();
    let file = path.to_str().unwrap();
    assert!(stdout(&run(&["inspect", file])).contains("DeepSeek V4: "));
    let listing = json(&run(&["inspect", file, "--json"]));
    assert_eq!(listing["metadata"]["general.architecture"], "deepseek4");
    refused(&run(&["inspect", "missing.gguf"]), &["missing.gguf", "No such file"]);
}

#[test]
fn help_and_version_are_answers() {
    let help = stdout(&run(&["--help"]));
    for flag in ["--prompt-file", "--think-max", "--dump-tokens", "Exit codes", "inspect"] {
        assert!(help.contains(flag), "{flag} is not in: {help}");
    }
    assert!(stdout(&run(&["-V"])).starts_with("ds4 "));
}

#[test]
fn bench_prints_one_line_of_csv_for_each_context() {
    let line = ["bench", "--ctx-start", "8", "--ctx-max", "24", "--step-incr", "8"];
    let output = run(&[&line[..], &["--gen-tokens", "2", "--device", "cpu"]].concat());
    let table = stdout(&output);
    assert_eq!(table.lines().count(), 4, "{table}");
    assert!(table.starts_with("ctx_tokens,prefill_tokens,prefill_tps,gen_tokens,gen_tps,"));
    assert!(stderr(&output).contains("at 24 tokens"), "{}", stderr(&output));
    refused(&run(&["bench", "--ctx-start", "9", "--ctx-max", "8"]), &["--ctx-start 9"]);
    refused(&run(&["bench", "--device", "gpu"]), &["--device", "cuda:N"]);
}
