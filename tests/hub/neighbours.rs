//! Programs that share the cache or the network: Python's `huggingface_hub` and `curl`.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use candle_ds4::hub::{Cache, Name, Transfer};

use crate::server::{noise, Server, Stored, COMMIT};
use crate::{pull, settings};

/// Runs a script; `DS4_TEST_PYTHON` names an interpreter that has `huggingface_hub`.
fn python(script: &str, endpoint: &str, cache: &Path) -> String {
    let program = std::env::var("DS4_TEST_PYTHON").unwrap_or_else(|_| "python3".to_string());
    let output = Command::new(program)
        .args(["-c", script])
        .env("HF_ENDPOINT", endpoint)
        .env("HF_HUB_CACHE", cache)
        .env("HF_HUB_DISABLE_TELEMETRY", "1")
        .env("HF_HUB_DISABLE_XET", "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_string()
}

#[test]
fn hf_hub_finds_what_we_wrote_and_we_find_what_it_would_write() {
    let server = Server::start([("sub/ours.gguf", Stored::large(noise(70_000, 11)))]);
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(&server.endpoint(), folder.path());
    let ours = pull(&settings, "org/repo:sub/ours.gguf", &mut Vec::new()).unwrap().path;
    let theirs = hf_hub::Cache::new(folder.path().to_owned()).model("org/repo".to_owned());
    assert_eq!(theirs.get("sub/ours.gguf"), Some(ours));

    let other = "0123456789abcdef0123456789abcdef01234567";
    let snapshot = theirs.pointer_path(other);
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::write(snapshot.join("theirs.gguf"), b"x").unwrap();
    theirs.create_ref(other).unwrap();
    let name: Name = "org/repo:theirs.gguf".parse().unwrap();
    let found = Cache::at(folder.path()).find(&name).unwrap();
    assert_eq!(found, theirs.get("theirs.gguf"));
    assert!(found.is_some());
}

#[test]
#[ignore = "needs huggingface_hub: set DS4_TEST_PYTHON to an interpreter that has it"]
fn python_finds_what_we_wrote_and_we_find_what_python_wrote() {
    let bytes = noise(300_000, 8);
    let server = Server::start([
        ("ours.gguf", Stored::large(bytes.clone())),
        ("theirs.gguf", Stored::large(noise(200_000, 9))),
        ("dir/theirs.json", Stored::small(b"{}".to_vec())),
    ]);
    let cache = tempfile::tempdir().unwrap();
    let settings = settings(&server.endpoint(), cache.path());
    let ours = pull(&settings, "org/repo:ours.gguf", &mut Vec::new()).unwrap().path;
    let found = python(
        "from huggingface_hub import try_to_load_from_cache as find\n\
         print(find('org/repo', 'ours.gguf'))",
        &server.endpoint(),
        cache.path(),
    );
    assert_eq!(Path::new(&found), ours);
    let scanned = python(
        "from huggingface_hub import scan_cache_dir\n\
         info = scan_cache_dir()\n\
         assert not info.warnings, info.warnings\n\
         [repo] = info.repos\n\
         print(repo.repo_id, repo.nb_files, repo.size_on_disk, list(repo.refs))",
        &server.endpoint(),
        cache.path(),
    );
    assert_eq!(scanned, "org/repo 1 300000 ['main']");

    let name: Name = "org/repo:theirs.gguf".parse().unwrap();
    assert_eq!(Cache::at(cache.path()).find(&name).unwrap(), None);
    let theirs = python(
        "from huggingface_hub import hf_hub_download as get\n\
         get('org/repo', 'dir/theirs.json')\n\
         print(get('org/repo', 'theirs.gguf'))",
        &server.endpoint(),
        cache.path(),
    );
    assert_eq!(Cache::at(cache.path()).find(&name).unwrap().as_deref(), Some(Path::new(&theirs)));
    let before = server.data_requests();
    assert!(pull(&settings, "org/repo:theirs.gguf", &mut Vec::new()).unwrap().was_cached);
    assert!(pull(&settings, "org/repo:dir/theirs.json", &mut Vec::new()).unwrap().was_cached);
    assert_eq!(server.data_requests(), before);
    let commit = cache.path().join("models--org--repo/snapshots").join(COMMIT);
    assert!(commit.join("ours.gguf").exists() && commit.join("theirs.gguf").exists());
}

#[test]
#[ignore = "a measurement; needs curl, and a machine with nothing else to do"]
fn a_pull_is_nearly_as_fast_as_curl() {
    let size = 2 << 30;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("served");
    let mut stored = Stored::large(noise(size, 10));
    std::fs::write(&path, stored.bytes.as_slice()).unwrap();
    stored.on_disk = Some(std::sync::Arc::new(std::fs::File::open(path).unwrap()));
    let server = Server::start([("model.gguf", stored)]);
    let url = format!("{}/org/repo/resolve/main/model.gguf", server.endpoint());
    let curl = |number: usize| {
        let start = Instant::now();
        let target = folder.path().join(format!("curl{number}"));
        let status = Command::new("curl").args(["-sfL", "-o"]).arg(&target).arg(&url).status();
        assert!(status.unwrap().success());
        let took = start.elapsed();
        assert_eq!(std::fs::metadata(&target).unwrap().len(), size as u64);
        std::fs::remove_file(target).unwrap();
        took
    };
    let ours = |number: usize| {
        let cache = folder.path().join(format!("ours{number}"));
        let mut settings = settings(&server.endpoint(), &cache);
        settings.transfer = Transfer::default();
        let start = Instant::now();
        pull(&settings, "org/repo", &mut Vec::new()).unwrap();
        let took = start.elapsed();
        std::fs::remove_dir_all(cache).unwrap();
        took
    };
    let rate = |took: Duration| size as f64 / took.as_secs_f64() / 1e6;
    let mut rates: Vec<(f64, f64)> = (0..5).map(|i| (rate(curl(i)), rate(ours(i)))).collect();
    rates.sort_by(|a, b| (a.1 / a.0).total_cmp(&(b.1 / b.0)));
    println!("{} cores", std::thread::available_parallelism().unwrap());
    for (curl, ours) in &rates {
        println!("curl {curl:.0} MB/s, pull {ours:.0} MB/s, ratio {:.2}", ours / curl);
    }
    let (curl, ours) = rates[rates.len() / 2];
    assert!(ours >= 0.8 * curl, "pull {ours:.0} MB/s, curl {curl:.0} MB/s");
}
