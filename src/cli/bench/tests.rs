use super::*;
use crate::demo::demo_model;
use crate::gguf::Gguf;

fn bench() -> Bench {
    Bench {
        prompt: Prompt::Synthetic,
        ctx_start: 16,
        ctx_max: 40,
        ctx_alloc: None,
        step_mul: 1.0,
        step_incr: 16,
        gen_tokens: 3,
        batch: 1,
        chunk: Some(7),
        csv: None,
        json: false,
        svg: None,
        made_up_cache: false,
        profile: false,
    }
}

fn engine() -> Engine {
    let gguf = Gguf::from_bytes(demo_model()).unwrap();
    Engine::from_gguf(&gguf, "demo", &Device::Cpu).unwrap()
}

fn run(bench: &Bench, engine: &Engine) -> Result<String> {
    let mut out = Vec::new();
    bench.run(engine, &mut out, &mut |_| {})?;
    Ok(String::from_utf8(out)?)
}

fn refused(bench: &Bench, engine: &Engine, needles: &[&str]) {
    let error = format!("{:#}", run(bench, engine).unwrap_err());
    for needle in needles {
        assert!(error.contains(needle), "{needle} is not in: {error}");
    }
}

#[test]
fn contexts_grow_by_steps_or_by_factors_and_end_at_the_last() {
    let at = |start, max, mul, incr| {
        let bench =
            Bench { ctx_start: start, ctx_max: max, step_mul: mul, step_incr: incr, ..bench() };
        bench.frontiers().map_err(|error| error.to_string())
    };
    assert_eq!(at(2048, 8192, 1.0, 2048).unwrap(), [2048, 4096, 6144, 8192]);
    assert_eq!(at(2048, 7000, 1.0, 2048).unwrap(), [2048, 4096, 6144, 7000]);
    assert_eq!(at(512, 8192, 4.0, 1).unwrap(), [512, 2048, 8192]);
    assert_eq!(at(1, 5, 1.1, 0).unwrap(), [1, 2, 3, 4, 5], "always onwards");
    assert_eq!(at(7, 7, 1.0, 0).unwrap(), [7]);
    assert!(at(0, 7, 1.0, 1).unwrap_err().contains("--ctx-start 0"));
    assert!(at(9, 7, 1.0, 1).unwrap_err().contains("--ctx-max 7"));
    assert!(at(1, 7, 1.0, 0).unwrap_err().contains("--step-incr 0"));
    assert!(at(1, 7, 0.5, 1).unwrap_err().contains("--step-mul 0.5"));
}

#[test]
fn the_table_has_ds4_benchs_columns_and_each_context_reads_only_what_is_new() {
    let table = run(&bench(), &engine()).unwrap();
    let mut lines = table.lines();
    let columns = lines.next().unwrap();
    assert!(columns
        .starts_with("ctx_tokens,prefill_tokens,prefill_tps,gen_tokens,gen_tps,kvcache_bytes"));
    let rows: Vec<Vec<f64>> =
        lines.map(|line| line.split(',').map(|cell| cell.parse().unwrap()).collect()).collect();
    let column = |at: usize| rows.iter().map(|row| row[at]).collect::<Vec<_>>();
    assert_eq!(columns.split(',').count(), rows[0].len());
    assert_eq!(column(0), [16.0, 32.0, 40.0]);
    assert_eq!(column(1), [16.0, 16.0, 8.0]);
    assert_eq!(column(3), [3.0; 3]);
    for positive in [2, 4, 5, 6] {
        assert!(column(positive).iter().all(|&value| value > 0.0), "column {positive}: {rows:?}");
    }
}

/// Generating must leave the sequence as it was: later contexts go on from the prompt alone.
#[test]
fn a_sequence_is_back_where_it_was_after_each_context() {
    let engine = engine();
    let bench = Bench { batch: 2, profile: true, ..bench() };
    let ids = bench.ids(&engine).unwrap();
    let mut measured = Run::new(&engine, &bench).unwrap();
    measured.measure(&ids[..16], true).unwrap();
    let scores = measured.read(&ids[16..40]).unwrap();
    let mut plain = Run::new(&engine, &bench).unwrap();
    assert_eq!(scores, plain.read(&ids[..40]).unwrap());
    assert_eq!(measured.cache.len(), 40);
}

#[test]
fn contexts_that_are_made_up_are_not_read() {
    let table = run(&Bench { made_up_cache: true, ctx_max: 16, ..bench() }, &engine()).unwrap();
    let row = table.lines().nth(1).unwrap();
    assert!(row.starts_with("16,1,"), "{row}");
}

#[test]
fn json_a_chart_and_a_profile_of_several_sequences() {
    let folder = tempfile::tempdir().unwrap();
    let (csv, svg) = (folder.path().join("t.csv"), folder.path().join("t.svg"));
    let bench = Bench {
        batch: 3,
        json: true,
        profile: true,
        csv: Some(csv.clone()),
        svg: Some(svg.clone()),
        ..bench()
    };
    let object: serde_json::Value = serde_json::from_str(&run(&bench, &engine()).unwrap()).unwrap();
    assert_eq!((&object["batch"], object["rows"].as_array().unwrap().len()), (&3.into(), 3));
    let classes = object["profile"].as_array().unwrap();
    let of = |name: &str| {
        let class = classes.iter().find(|class| class["name"].as_str().unwrap().starts_with(name));
        class.unwrap_or_else(|| panic!("{name} is not in {classes:?}")).clone()
    };
    // Six layers of the demo model.
    assert_eq!(of("experts Q8_0 / Q8_0")["calls"], 6.0);
    assert_eq!(of("attention")["calls"], 6.0);
    assert!(of("matmul Q8_0 [2688, 256]")["gb_s"].as_f64().unwrap() > 0.0);
    assert_eq!(std::fs::read_to_string(csv).unwrap().lines().count(), 4);
    let svg = std::fs::read_to_string(svg).unwrap();
    assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
    assert_eq!(svg.matches("<circle").count(), 6, "two curves with three points");
    assert!(svg.contains("3 sequences"));
}

#[test]
fn text_and_chat_prompts_are_read_and_short_ones_refused() {
    let engine = engine();
    let text = "The river runs to the sea. ".repeat(20);
    for prompt in
        [Prompt::Text(text.clone()), Prompt::Chat { text, system: Some("Be brief.".to_owned()) }]
    {
        let table = run(&Bench { prompt, ..bench() }, &engine).unwrap();
        assert_eq!(table.lines().count(), 4);
    }
    let prompt = Prompt::Text("Short.".to_owned());
    refused(&Bench { prompt, ..bench() }, &engine, &["--ctx-max is 40", "longer file"]);
}

#[test]
fn mistakes_are_known_before_anything_is_measured() {
    let engine = engine();
    let most = engine.model().config().context_length;
    refused(&Bench { ctx_max: most, ..bench() }, &engine, &["room", &most.to_string()]);
    refused(&Bench { ctx_alloc: Some(most + 1), ..bench() }, &engine, &["--ctx-alloc"]);
    refused(&Bench { batch: 0, ..bench() }, &engine, &["--batch 0"]);
    refused(&Bench { chunk: Some(0), ..bench() }, &engine, &["--chunk 0"]);
    let svg = Some(PathBuf::from("/nowhere/at/all.svg"));
    refused(&Bench { svg, ..bench() }, &engine, &["/nowhere/at/all.svg", "another file"]);
}

#[test]
fn the_likeliest_tokens_in_order_without_the_end() {
    let scores = [0.5, 3.0, 9.0, 3.0, -1.0];
    assert_eq!(likeliest(&scores, 2, 3), [1, 3, 0]);
    assert_eq!(likeliest(&scores, 0, 1), [2]);
    assert_eq!(likeliest(&scores, 0, 6), [2, 1, 3, 4, 2, 1], "a batch larger than the vocabulary");
}
