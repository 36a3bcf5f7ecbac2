//! What the README says to type, typed.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

const README: &str = include_str!("../README.md");

/// A server with the demo model on a port of its own; ended with the test.
struct Server {
    child: Child,
    address: String,
    _folder: tempfile::TempDir,
}

impl Server {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_ds4-server"))
            .args(["--port", "0", "--kv-disk-dir"])
            .arg(folder.path().join("kv"))
            .env_remove("DS4_MODEL")
            .env_remove("DS4_API_KEY")
            .current_dir(folder.path())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        let address = lines
            .filter_map(|line| {
                let (_, after) = line.split_once("listening on http://")?;
                Some(after.split([' ', '/']).next()?.to_owned())
            })
            .next();
        Self { child, _folder: folder, address: address.expect("the server says where it listens") }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The README's blocks of a language.
fn blocks(language: &str) -> Vec<&'static str> {
    let opening = format!("```{language}\n");
    let after = README.split(opening.as_str()).skip(1);
    after.map(|rest| rest.split("```").next().unwrap()).collect()
}

#[test]
fn the_curl_commands_answer() {
    let server = Server::start();
    let commands = blocks("sh");
    assert!(commands.len() >= 2 && commands.iter().all(|command| command.contains("curl")));
    for command in commands {
        let command = command.replace("127.0.0.1:8000", &server.address);
        let output = Command::new("sh").args(["-c", &command]).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && !said.is_empty(), "{command}");
        let text: String = if said.starts_with('{') {
            let answer: serde_json::Value = serde_json::from_str(&said).unwrap();
            answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
        } else {
            let frames = said.lines().filter_map(|line| line.strip_prefix("data: "));
            let frames =
                frames.map(|data| serde_json::from_str::<serde_json::Value>(data).unwrap());
            frames.filter_map(|frame| Some(frame["delta"]["text"].as_str()?.to_owned())).collect()
        };
        assert!(text.contains("42"), "{command}: {said}");
    }
}

/// `python3 -m venv V && V/bin/pip install openai && DS4_TEST_PYTHON=V/bin/python cargo test --release
/// --test readme -- --ignored`.
#[test]
#[ignore = "needs DS4_TEST_PYTHON, an interpreter that has the package openai"]
fn the_python_program_answers() {
    let server = Server::start();
    let python = std::env::var_os("DS4_TEST_PYTHON").unwrap();
    let [program] = blocks("python")[..] else { panic!("one program in Python") };
    let program = program.replace("127.0.0.1:8000", &server.address);
    let output = Command::new(python).args(["-c", &program]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout).matches("Paris").count(), 2);
}
