//! A sequence whose state went through bytes continues as if it had never left memory.

use std::path::Path;

use candle_ds4::cache::image::ImageLayout;
use candle_ds4::cache::{Cache, CacheError, Snapshot, REWIND_TOKENS};
use candle_ds4::candle::Device;
use candle_ds4::gguf::Gguf;
use candle_ds4::model::{Input, Logits, Model};
use candle_ds4_ops::Workspace;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Rounded and not, every kind of layer, windows of 8 and 16.
const MODELS: [&str; 4] = ["rounded", "rounded_wide", "mixed", "heavy16"];
const TOKENS: usize = 290;

fn model(name: &str) -> Model {
    let file = format!("tests/golden/model/{name}.gguf");
    let gguf = Gguf::open(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
    Model::load(&gguf, &Device::Cpu).unwrap()
}

fn tokens(model: &Model, seed: u64) -> Vec<u32> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..TOKENS).map(|_| rng.random_range(0..model.config().vocab_size as u32)).collect()
}

/// Logits of each of these tokens.
fn forward(model: &Model, cache: &mut Cache, tokens: &[u32], ws: &Workspace) -> Vec<Vec<f32>> {
    let input = Input { tokens, cache };
    model.forward(&mut [input], Logits::All, ws).unwrap().to_vec2().unwrap()
}

struct Images {
    pages: Vec<Vec<u8>>,
    frontier: Vec<u8>,
}

fn images(layout: &ImageLayout, snapshot: &Snapshot) -> Images {
    let page = |page| {
        let mut image = vec![0; layout.page_bytes()];
        layout.write_page(snapshot, page, &mut image).unwrap();
        image
    };
    let mut frontier = vec![0; layout.frontier_bytes(snapshot.len())];
    layout.write_frontier(snapshot, &mut frontier).unwrap();
    Images { pages: (0..layout.pages(snapshot.len())).map(page).collect(), frontier }
}

fn restored(layout: &ImageLayout, len: usize, images: &Images) -> Snapshot {
    let mut restore = layout.restore(len, &Device::Cpu).unwrap();
    images.pages.iter().for_each(|page| restore.push(page).unwrap());
    restore.finish(&images.frontier).unwrap()
}

#[test]
fn state_from_bytes_continues_to_the_bit_from_every_length() {
    for name in MODELS {
        let model = model(name);
        let layout = ImageLayout::new(model.config()).unwrap();
        let tokens = tokens(&model, 7);
        let ws = Workspace::new(&Device::Cpu);
        let whole = forward(&model, &mut model.new_cache().unwrap(), &tokens, &ws);
        let mut cache = model.new_cache().unwrap();
        let mut first_page = None;
        for len in 0..TOKENS {
            let images = images(&layout, &cache.snapshot().unwrap());
            if let Some(page) = images.pages.first() {
                let kept = first_page.get_or_insert_with(|| page.clone());
                assert_eq!(kept, page, "{name}: a page changed after its tokens");
            }
            let mut other = model.new_cache().unwrap();
            other.restore(&restored(&layout, len, &images)).unwrap();
            assert_eq!(other.len(), len);
            // Past the next end of a window, now and then to the end.
            let to = if len % 16 == 3 { TOKENS } else { (len + 17).min(TOKENS) };
            let got = forward(&model, &mut other, &tokens[len..to], &ws);
            assert!(got == whole[len..to], "{name}: other logits after {len} tokens");
            forward(&model, &mut cache, &tokens[len..=len], &ws);
        }
    }
}

#[test]
fn sequences_that_share_a_prefix_have_its_pages_and_go_on_from_them() {
    for name in MODELS {
        let model = model(name);
        let layout = ImageLayout::new(model.config()).unwrap();
        let ws = Workspace::new(&Device::Cpu);
        let (one, mut two) = (tokens(&model, 1), tokens(&model, 2));
        two[..200].copy_from_slice(&one[..200]);
        let mut snapshots = Vec::new();
        for tokens in [&one, &two] {
            let mut cache = model.new_cache().unwrap();
            forward(&model, &mut cache, &tokens[..270], &ws);
            snapshots.push(cache.snapshot().unwrap());
        }
        let [a, b] = [&snapshots[0], &snapshots[1]].map(|snapshot| images(&layout, snapshot));
        assert_eq!((a.pages.len(), b.pages.len()), (2, 2));
        assert!(a.pages[0] == b.pages[0] && a.pages[1] != b.pages[1], "{name}");

        // The second one from the first one's page in memory and its own bytes.
        let mut restore = layout.restore_on(&snapshots[0], 1, 270, &Device::Cpu).unwrap();
        restore.push(&b.pages[1]).unwrap();
        let mut cache = model.new_cache().unwrap();
        cache.restore(&restore.finish(&b.frontier).unwrap()).unwrap();
        let got = forward(&model, &mut cache, &two[270..], &ws);
        let whole = forward(&model, &mut model.new_cache().unwrap(), &two, &ws);
        assert!(got == whole[270..], "{name}: other logits");
        // And the first one has not noticed.
        cache.restore(&snapshots[0]).unwrap();
        let got = forward(&model, &mut cache, &one[270..], &ws);
        let whole = forward(&model, &mut model.new_cache().unwrap(), &one, &ws);
        assert!(got == whole[270..], "{name}: other logits of the first");
    }
}

#[test]
fn only_what_rings_still_have_can_be_taken_back() {
    let model = model("rounded");
    let layout = ImageLayout::new(model.config()).unwrap();
    let tokens = tokens(&model, 3);
    let ws = Workspace::new(&Device::Cpu);
    let whole = forward(&model, &mut model.new_cache().unwrap(), &tokens, &ws);
    let mut cache = model.new_cache().unwrap();
    forward(&model, &mut cache, &tokens[..150], &ws);
    assert_eq!(cache.oldest(), 150 - REWIND_TOKENS);
    let images = images(&layout, &cache.snapshot().unwrap());

    // Twice the least, in two steps, is as far as in one.
    cache.truncate(150 - REWIND_TOKENS).unwrap();
    let error = cache.truncate(149 - REWIND_TOKENS).unwrap_err();
    assert!(matches!(error, CacheError::TooFarBack { oldest: 142, .. }), "{error}");
    let got = forward(&model, &mut cache, &tokens[142..], &ws);
    assert!(got == whole[142..], "other logits after taking eight back");

    // From bytes, what was before them is gone.
    cache.restore(&restored(&layout, 150, &images)).unwrap();
    assert_eq!(cache.oldest(), 150);
    assert!(cache.truncate(149).is_err());
    forward(&model, &mut cache, &[1, 2, 3], &ws);
    assert_eq!(cache.oldest(), 150);
    cache.truncate(150).unwrap();
    let got = forward(&model, &mut cache, &tokens[150..], &ws);
    assert!(got == whole[150..], "other logits after taking three back");
    assert_eq!(cache.oldest(), TOKENS - REWIND_TOKENS);
}
