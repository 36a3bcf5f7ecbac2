//! Quantising: sizes of the real model, the demo model in every recipe, interrupted runs, bad input.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use candle_ds4::candle::Device;
use candle_ds4::config::Config;
use candle_ds4::engine::Engine;
use candle_ds4::gguf::{Gguf, Metadata, TensorType, Writer};
use candle_ds4::model::{Input as Tokens, Logits, Model};
use candle_ds4::quantize::{
    quantize, synth, Collector, Imatrix, Input, LayerType, Options, Plan, Progress, Recipe, Synth,
};

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny/tiny.gguf")
}

fn on(_: Progress<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// The held-out contexts of the demo model, in tokens.
fn texts(engine: &Engine) -> Vec<Vec<u32>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny/heldout/recall_4000.jsonl");
    let text = fs::read_to_string(path).unwrap();
    let content = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let messages = line["messages"].as_array().unwrap();
        let text: String = messages.iter().map(|m| m["content"].as_str().unwrap()).collect();
        engine.tokenizer().encode(&text)
    };
    text.lines().map(content).collect()
}

/// Perplexity over the first tokens of some texts.
fn perplexity(engine: &Engine, texts: &[Vec<u32>], tokens: usize) -> f64 {
    let (mut sum, mut count) = (0f64, 0);
    for text in texts {
        let text = &text[..tokens.min(text.len())];
        let mut cache = engine.model().new_cache().unwrap();
        let input = Tokens { tokens: text, cache: &mut cache };
        let ws = engine.workspace();
        let logits = engine.model().forward(&mut [input], Logits::All, ws).unwrap();
        for (row, next) in logits.to_vec2::<f32>().unwrap().iter().zip(&text[1..]) {
            let most = row.iter().copied().fold(f32::MIN, f32::max);
            let all: f64 = row.iter().map(|x| f64::from(x - most).exp()).sum();
            sum += all.ln() - f64::from(row[*next as usize] - most);
            count += 1;
        }
    }
    (sum / f64::from(count)).exp()
}

#[test]
fn the_demo_model_keeps_its_perplexity_in_every_recipe() {
    let folder = tempfile::tempdir().unwrap();
    let full = Engine::load(demo(), &Device::Cpu).unwrap();
    let texts = texts(&full);
    let (held_out, seen) = (&texts[..4], &texts[20..28]);

    let collector = Collector::new();
    for text in seen {
        let mut cache = full.model().new_cache().unwrap();
        let input = Tokens { tokens: &text[..1000], cache: &mut cache };
        let ws = full.workspace();
        full.model().forward_observed(&mut [input], Logits::None, ws, &collector).unwrap();
    }
    assert_eq!(collector.unseen().1, 6 * 4);
    let imatrix = collector.finish(seen.len() as u32, "recall");
    let path = folder.path().join("demo.dat");
    imatrix.save(&path).unwrap();
    assert_eq!(Imatrix::open(&path).unwrap().entries.len(), 6 * 3);

    let reference = perplexity(&full, held_out, 1000);
    println!("as it is: perplexity {reference:.4}");
    let mut found = Vec::new();
    for recipe in [Recipe::F16, Recipe::Q8, Recipe::Q4, Recipe::Q2] {
        for weighted in [false, true] {
            let out = folder.path().join("out.gguf");
            let imatrix = weighted.then(|| Imatrix::open(&path).unwrap());
            let options = Options { imatrix, ..Options::new(recipe) };
            let bytes = quantize(&Input::open(demo()).unwrap(), &options, &out, &mut on).unwrap();
            assert_eq!(bytes, fs::metadata(&out).unwrap().len());
            let engine = Engine::load(&out, &Device::Cpu).unwrap();
            let this = perplexity(&engine, held_out, 1000);
            let with = if weighted { "with" } else { "without" };
            let more = 100.0 * (this / reference - 1.0);
            let name = recipe.name();
            println!("{name} {with} imatrix: perplexity {this:.4} ({more:+.2} %), {bytes} bytes");
            found.push((recipe, weighted, this / reference));
        }
    }
    for (recipe, weighted, ratio) in found {
        let most = match recipe {
            Recipe::F16 | Recipe::Q8 => 1.001,
            Recipe::Q4 => 1.02,
            Recipe::Q2 => 1.5,
        };
        assert!(ratio < most, "{} {weighted}: {ratio}", recipe.name());
    }
}

#[test]
fn the_real_model_has_its_published_sizes() {
    for (recipe, bytes) in [(Recipe::Q2, 86_714_777_664), (Recipe::Q4, 164_628_168_768)] {
        let plan = Synth::flash(recipe).unwrap().plan().unwrap();
        assert_eq!(plan.tensor_count(), 1328);
        assert_eq!(plan.data_bytes(), bytes);
    }
    let plan = Synth::flash(Recipe::Q2).unwrap().plan().unwrap();
    let count = |ty| plan.by_type().into_iter().find(|t| t.0 == ty).map(|t| t.1);
    assert_eq!(count(TensorType::IQ2_XXS), Some(86));
    assert_eq!(count(TensorType::Q2_K), Some(43));
    assert_eq!(count(TensorType::I32), Some(3));
}

#[test]
fn a_synthetic_model_loads_and_runs() {
    let folder = tempfile::tempdir().unwrap();
    let demo = Gguf::open(demo()).unwrap();
    let mut sizes = Vec::new();
    for distinct_layers in [None, Some(1)] {
        let out = folder.path().join("synth.gguf");
        let what = Synth { metadata: demo.metadata().clone(), recipe: Recipe::Q2, distinct_layers };
        sizes.push(synth(&what, &out, &mut on).unwrap());
        let engine = Engine::load(&out, &Device::Cpu).unwrap();
        let mut cache = engine.model().new_cache().unwrap();
        let input = Tokens { tokens: &[0; 20], cache: &mut cache };
        let ws = engine.workspace();
        let logits = engine.model().forward(&mut [input], Logits::Last, ws).unwrap();
        let logits = logits.to_vec2::<f32>().unwrap();
        assert!(logits[0].iter().all(|x| x.is_finite()));
    }
    assert!(sizes[1] < sizes[0] * 9 / 10, "shared layers take no room: {sizes:?}");
    // The vocabulary of the full shape serves the prompt template.
    let flash = Synth::flash(Recipe::Q2).unwrap();
    let tokenizer = candle_ds4::tokenizer::Tokenizer::from_metadata(&flash.metadata).unwrap();
    assert_eq!(tokenizer.vocab_size(), 129_280);
    assert_eq!(tokenizer.decode(&tokenizer.encode("naïve 世界")), "naïve 世界");
}

#[test]
fn types_of_single_layers_are_obeyed_and_the_rest_copied() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.gguf");
    let mut options = Options::new(Recipe::Q2);
    options.overrides =
        vec!["1-4=q4_k".parse().unwrap(), "2=q8_0".parse().unwrap(), "0=f16".parse().unwrap()];
    quantize(&Input::open(demo()).unwrap(), &options, &out, &mut on).unwrap();
    let (from, to) = (Gguf::open(demo()).unwrap(), Gguf::open(&out).unwrap());
    let types = [
        TensorType::F16,
        TensorType::Q4_K,
        TensorType::Q8_0,
        TensorType::Q4_K,
        TensorType::Q4_K,
        TensorType::IQ2_XXS,
    ];
    for (layer, ty) in types.into_iter().enumerate() {
        assert_eq!(to.tensor(&format!("blk.{layer}.ffn_up_exps.weight")).unwrap().ty, ty);
    }
    assert_eq!(to.tensor("blk.5.ffn_down_exps.weight").unwrap().ty, TensorType::Q2_K);
    assert_eq!(to.tensors().len(), from.tensors().len());
    for info in to.tensors() {
        let old = from.tensor(&info.name).unwrap();
        assert_eq!(old.dims, info.dims);
        if old.ty == info.ty {
            assert!(from.data(old).unwrap() == to.data(info).unwrap(), "{}", info.name);
        }
    }
    let [a, b] = [&from, &to].map(|file| Config::from_metadata(file.metadata()).unwrap());
    assert_eq!(a, b);
}

#[test]
fn an_interrupted_run_goes_on_and_ends_in_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, out) = (folder.path().join("whole.gguf"), folder.path().join("out.gguf"));
    let options = Options::new(Recipe::Q4);
    let input = Input::open(demo()).unwrap();
    quantize(&input, &options, &whole, &mut on).unwrap();
    let part = folder.path().join("out.gguf.part");
    let mut begun_at = Vec::new();
    for stop in [1, 30, 31, 90, 177] {
        let mut first = None;
        let error = quantize(&input, &options, &out, &mut |p| {
            first.get_or_insert(p.number);
            if p.number == stop {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })
        .unwrap_err();
        assert!(error.to_string().contains("stopped"), "{error}");
        assert!(!out.exists() && part.exists());
        begun_at.push(first.unwrap());
    }
    assert_eq!(begun_at, [1, 1, 30, 31, 90]);
    // What a crash may leave behind the last finished tensor is not trusted.
    let mut bytes = fs::read(&part).unwrap();
    bytes.extend([0xaa; 5000]);
    fs::write(&part, bytes).unwrap();
    let mut last = None;
    quantize(&input, &options, &out, &mut |p| {
        last = Some((p.written, p.total));
        ControlFlow::Continue(())
    })
    .unwrap();
    let (written, total) = last.unwrap();
    assert_eq!(written, total, "an earlier run's bytes count too");
    assert!(fs::read(&out).unwrap() == fs::read(&whole).unwrap());
    let left: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");

    // Another recipe does not go on where this one stopped.
    let stop = |p: Progress<'_>| {
        if p.number == 60 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    quantize(&input, &options, &out, &mut { stop }).unwrap_err();
    let mut first = None;
    let other = Options { overrides: vec!["3=q8_0".parse().unwrap()], ..options.clone() };
    quantize(&input, &other, &out, &mut |p| {
        first.get_or_insert(p.number);
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(first, Some(1));
    // Nor does a run whose part is gone, or shorter than its journal says.
    for damage in [0, 5000] {
        quantize(&input, &options, &out, &mut { stop }).unwrap_err();
        fs::write(&part, vec![0; damage]).unwrap();
        quantize(&input, &options, &out, &mut on).unwrap();
        assert!(fs::read(&out).unwrap() == fs::read(&whole).unwrap());
    }
}

/// The demo model with one tensor changed.
fn changed(
    folder: &Path,
    change: impl Fn(&str, &[u64], &[u8]) -> Option<(String, Vec<u64>, Vec<u8>)>,
) -> PathBuf {
    let demo = Gguf::open(demo()).unwrap();
    let mut writer = Writer::new(demo.metadata().clone());
    for info in demo.tensors() {
        let bytes = demo.data(info).unwrap();
        if let Some((name, dims, bytes)) = change(&info.name, &info.dims, &bytes) {
            writer.tensor_bytes(name, &dims, info.ty, bytes).unwrap();
        }
    }
    let path = folder.join("changed.gguf");
    writer.save(&path).unwrap();
    path
}

fn refused(path: &Path, options: &Options, folder: &Path) -> String {
    let out = folder.join("out.gguf");
    let error = Input::open(path)
        .and_then(|input| quantize(&input, options, &out, &mut on))
        .unwrap_err()
        .to_string();
    assert!(!out.exists());
    error
}

#[test]
fn files_that_do_not_fit_are_refused_by_tensor() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let q4 = Options::new(Recipe::Q4);
    let same =
        |name: &str, dims: &[u64], bytes: &[u8]| (name.to_owned(), dims.to_vec(), bytes.to_vec());
    let path = changed(folder, |name, dims, bytes| {
        (name != "blk.3.attn_kv.weight").then(|| same(name, dims, bytes))
    });
    let error = refused(&path, &q4, folder);
    assert!(error.contains("blk.3.attn_kv.weight") && error.contains("missing"), "{error}");

    let path = changed(folder, |name, dims, bytes| {
        let name = if name == "output_norm.weight" { "output_nrom.weight" } else { name };
        Some(same(name, dims, bytes))
    });
    assert!(refused(&path, &q4, folder).contains("output_norm.weight"));

    let path = changed(folder, |name, dims, bytes| {
        let (name, mut dims, bytes) = same(name, dims, bytes);
        if name == "blk.0.attn_q_a.weight" {
            dims.reverse();
        }
        Some((name, dims, bytes))
    });
    let error = refused(&path, &q4, folder);
    assert!(error.contains("[64, 256]") && error.contains("[256, 64]"), "{error}");

    // Values that no block can hold: a NaN in a scale.
    let path = changed(folder, |name, dims, bytes| {
        let (name, dims, mut bytes) = same(name, dims, bytes);
        if name == "blk.2.ffn_up_exps.weight" {
            bytes[34 * 8 * 300 + 1] = 0x7e;
        }
        Some((name, dims, bytes))
    });
    let error = refused(&path, &q4, folder);
    assert!(error.contains("blk.2.ffn_up_exps.weight"), "{error}");
    assert!(error.contains("expert 1, row 44"), "{error}");

    let cut = folder.join("cut.gguf");
    let bytes = fs::read(demo()).unwrap();
    fs::write(&cut, &bytes[..bytes.len() - 1000]).unwrap();
    assert!(refused(&cut, &q4, folder).contains("cut.gguf"));
    assert!(refused(&folder.join("nowhere.gguf"), &q4, folder).contains("nowhere.gguf"));

    let mut options = q4.clone();
    options.overrides = vec!["4-6=q4_k".parse::<LayerType>().unwrap()];
    assert!(refused(&demo(), &options, folder).contains("layers 0 to 5"));

    let mut imatrix = Imatrix::default();
    options = q4.clone();
    options.imatrix = Some(imatrix.clone());
    assert!(refused(&demo(), &options, folder).contains("another model"));
    let name = "blk.0.ffn_up_exps.weight".to_owned();
    imatrix.entries.push(candle_ds4::quantize::ImatrixEntry {
        name,
        calls: 1,
        means: vec![1.0; 3],
    });
    options.imatrix = Some(imatrix);
    assert!(refused(&demo(), &options, folder).contains("3 values"));

    // Rows too short for the blocks of the recipe.
    let narrow = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/model/mixed.gguf");
    let error = refused(&narrow, &q4, folder);
    assert!(error.contains("16 values") && error.contains("f16"), "{error}");
}

#[test]
fn a_full_disk_leaves_no_output() {
    // A child, since a limit on file sizes holds for a whole process.
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.gguf");
    if std::env::var_os("QUANTIZE_INTO").is_none() {
        let this = std::env::current_exe().unwrap();
        let shell = format!(
            "trap '' XFSZ; ulimit -f 2000; exec '{}' a_full_disk_leaves_no_output --exact --nocapture",
            this.display()
        );
        let child = std::process::Command::new("bash")
            .args(["-c", &shell])
            .env("QUANTIZE_INTO", &out)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success(), "{text} {}", String::from_utf8_lossy(&child.stderr));
        assert!(text.contains("out.gguf: cannot write: "), "{text}");
        assert!(!out.exists());
        // With room again, the same call goes on and ends well.
        let mut first = None;
        let input = Input::open(demo()).unwrap();
        quantize(&input, &Options::new(Recipe::Q4), &out, &mut |p| {
            first.get_or_insert(p.number);
            ControlFlow::Continue(())
        })
        .unwrap();
        assert!(first.unwrap() > 1);
        Model::load(&Gguf::open(&out).unwrap(), &Device::Cpu).unwrap();
    } else {
        let out = PathBuf::from(std::env::var_os("QUANTIZE_INTO").unwrap());
        let input = Input::open(demo()).unwrap();
        let error = quantize(&input, &Options::new(Recipe::Q4), &out, &mut on).unwrap_err();
        println!("{error}");
    }
}

/// `mount -t tmpfs -o size=16m tmpfs DIR && DS4_SMALL_DISK=DIR cargo test --release --test quantize
/// -- --ignored small_disk`.
#[test]
#[ignore = "needs DS4_SMALL_DISK, a folder on a disk of about 16 MiB"]
fn a_small_disk_is_measured_first_and_told_when_others_fill_it() {
    use std::io::Write;
    let disk = PathBuf::from(std::env::var_os("DS4_SMALL_DISK").unwrap());
    let (out, filler) = (disk.join("out.gguf"), disk.join("filler"));
    let input = Input::open(demo()).unwrap();
    let error = quantize(&input, &Options::new(Recipe::F16), &out, &mut on).unwrap_err();
    assert!(error.to_string().contains("still to be written"), "{error}");
    assert!(!out.exists());

    let options = Options::new(Recipe::Q2);
    let fill = &mut |p: Progress<'_>| {
        if p.number == 9 && !filler.exists() {
            let mut file = fs::File::create(&filler).unwrap();
            while file.write_all(&[1; 4096]).is_ok() {}
        }
        ControlFlow::Continue(())
    };
    let error = quantize(&input, &options, &out, fill).unwrap_err();
    assert!(error.to_string().contains("No space left"), "{error}");
    assert!(!out.exists());
    fs::remove_file(&filler).unwrap();
    quantize(&input, &options, &out, &mut on).unwrap();
    Model::load(&Gguf::open(&out).unwrap(), &Device::Cpu).unwrap();
}

#[test]
fn plans_need_no_values() {
    let demo = Gguf::open(demo()).unwrap();
    let plan = Plan::new(demo.metadata(), &Options::new(Recipe::Q2)).unwrap();
    assert_eq!(plan.tensor_count(), 178);
    let sum: u64 = plan.by_type().iter().map(|t| t.2).sum();
    assert!(plan.data_bytes() >= sum && plan.data_bytes() < sum + 178 * 32);
    assert!(Plan::new(&Metadata::new(), &Options::new(Recipe::Q2)).is_err());
}

#[test]
fn the_commands_say_what_they_wrote() {
    use candle_ds4::cli::{self, quantize::Quantize};
    let folder = tempfile::tempdir().unwrap();
    let run = |what: &dyn Fn(&mut Vec<u8>) -> Result<(), String>| {
        let mut out = Vec::new();
        what(&mut out).map(|()| String::from_utf8(out).unwrap())
    };
    let sizes = run(&|out| {
        cli::synth::run("q2", None, None, true, false, out).map_err(|e| format!("{e:#}"))
    })
    .unwrap();
    assert!(sizes.contains("1328 tensors, 86714777664 bytes of tensor data"), "{sizes}");

    let (text, dat) = (folder.path().join("text.txt"), folder.path().join("out.dat"));
    fs::write(&text, "Which month follows March? The capital of Ukraine is Kyiv. ".repeat(20))
        .unwrap();
    let said = run(&|out| {
        cli::imatrix::run(&demo(), &text, &dat, 100, false, out).map_err(|e| format!("{e:#}"))
    })
    .unwrap();
    assert!(said.contains("18 tensors from"), "{said}");

    let output = folder.path().join("out.gguf");
    let types = ["5=q4_k".to_owned()];
    let what = Quantize {
        input: &demo(),
        output: Some(&output),
        recipe: "q2",
        layer_types: &types,
        imatrix: Some(&dat),
        dry_run: false,
        terminal: false,
    };
    let quantize = |what: Quantize<'_>| {
        run(&|out| cli::quantize::run(&what, out).map_err(|e| format!("{e:#}")))
    };
    let dry = quantize(Quantize { output: None, dry_run: true, ..what }).unwrap();
    assert!(dry.contains("178 tensors") && !output.exists(), "{dry}");
    let said = quantize(what).unwrap();
    assert!(said.starts_with(&dry) && said.contains("Q4_K"), "{said}");
    let file = Gguf::open(&output).unwrap();
    assert_eq!(file.metadata().u32("quantize.imatrix.entries_count").unwrap(), 18);
    assert_eq!(file.metadata().str("quantize.imatrix.dataset").unwrap(), "text.txt");
    for (wrong, part) in [
        (Quantize { recipe: "q3", ..what }, "q3"),
        (Quantize { output: None, ..what }, "output file"),
        (Quantize { output: Some(folder.path()), ..what }, "folder"),
        (Quantize { imatrix: Some(&text), ..what }, "text.txt"),
        (Quantize { layer_types: &["9=q4_k".to_owned()], ..what }, "layer 9"),
    ] {
        let error = quantize(wrong).unwrap_err();
        assert!(error.contains(part), "{part}: {error}");
    }
}
