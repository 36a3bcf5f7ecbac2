use std::fs::File;
use std::io::{Read, Seek, Write};
use std::time::Instant;

use candle_core::Device;
use candle_ds4_ops::RowFormat;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::cache::{Cache, Footprint, Snapshot};
use crate::config::tests::flash as flash_metadata;
use crate::config::{Config, LayerKind};

fn flash() -> Config {
    Config::from_metadata(&flash_metadata()).unwrap()
}

/// Small enough to try every byte: two compressing layers, one of them with an indexer.
fn small(rounding: bool) -> Config {
    let mut config = flash();
    config.activation_rounding = rounding;
    config.sliding_window = 3;
    (config.head_dim, config.rope_dim) = (6, 2);
    config.layers =
        vec![LayerKind::Window, LayerKind::Sparse { ratio: 4 }, LayerKind::Heavy { ratio: 32 }];
    let indexer = config.indexer.as_mut().unwrap();
    indexer.head_dim = 4;
    config
}

/// Values that every format holds, whichever of them share a scale.
const EXACT: [f32; 7] = [0.0, -0.0, 0.5, 1.0, -1.0, 2.0, -2.0];

/// Random bytes that are rows.
fn rows(rng: &mut StdRng, format: RowFormat, bytes: &mut [u8]) {
    for row in bytes.chunks_exact_mut(format.row_bytes()) {
        let values: Vec<f32> =
            (0..format.width()).map(|_| EXACT[rng.random_range(0..EXACT.len())]).collect();
        format.pack(&values, row).unwrap();
    }
}

fn page(rng: &mut StdRng, layout: &ImageLayout) -> Vec<u8> {
    let mut page = vec![0; layout.page_bytes()];
    let mut rest = &mut page[..];
    for list in layout.layers.iter().flat_map(|layer| &layer.lists) {
        let (part, after) = rest.split_at_mut(list.page_bytes(layout.page_tokens()));
        rows(rng, list.row, part);
        rest = after;
    }
    assert!(rest.is_empty());
    page
}

fn frontier(rng: &mut StdRng, layout: &ImageLayout, len: usize) -> Vec<u8> {
    let mut image = (len as u64).to_le_bytes().to_vec();
    let mut put = |format: RowFormat, count: usize| {
        let from = image.len();
        image.resize(from + count * format.row_bytes(), 0);
        rows(rng, format, &mut image[from..]);
    };
    let first = layout.pages(len) * layout.page_tokens();
    for layer in &layout.layers {
        put(layer.row, layer.recent(len).len());
        for list in &layer.lists {
            put(list.pooled(), 2 * list.unfinished(len).len());
            put(list.row, list.rows(first..len).len());
        }
    }
    image
}

/// Random images of `len` tokens, and the snapshot that they make.
fn random(rng: &mut StdRng, layout: &ImageLayout, len: usize) -> (Vec<Vec<u8>>, Vec<u8>, Snapshot) {
    let pages: Vec<_> = (0..layout.pages(len)).map(|_| page(rng, layout)).collect();
    let frontier = frontier(rng, layout, len);
    let snapshot = restored(layout, len, &pages, &frontier).unwrap();
    (pages, frontier, snapshot)
}

fn restored(
    layout: &ImageLayout,
    len: usize,
    pages: &[Vec<u8>],
    frontier: &[u8],
) -> Result<Snapshot, ImageError> {
    let mut restore = layout.restore(len, &Device::Cpu)?;
    for page in pages {
        restore.push(page)?;
    }
    restore.finish(frontier)
}

fn written(layout: &ImageLayout, snapshot: &Snapshot) -> (Vec<Vec<u8>>, Vec<u8>) {
    let page = |page| {
        let mut image = vec![0xa5; layout.page_bytes()];
        layout.write_page(snapshot, page, &mut image).unwrap();
        image
    };
    let pages = (0..layout.pages(snapshot.len())).map(page).collect();
    let mut frontier = vec![0xa5; layout.frontier_bytes(snapshot.len())];
    layout.write_frontier(snapshot, &mut frontier).unwrap();
    (pages, frontier)
}

#[test]
fn images_make_a_snapshot_that_writes_the_same_images() {
    let mut rng = StdRng::seed_from_u64(1);
    for rounding in [true, false] {
        let layout = ImageLayout::new(&small(rounding)).unwrap();
        // Past one page in memory, too.
        for len in (0..=300).chain([1023, 1024, 1025, 1151, 1152, 2311]) {
            let (pages, frontier, snapshot) = random(&mut rng, &layout, len);
            assert_eq!(written(&layout, &snapshot), (pages, frontier), "{len} tokens");
        }
    }
}

#[test]
fn sizes_of_the_full_model_are_within_their_bounds() {
    let config = flash();
    let layout = ImageLayout::new(&config).unwrap();
    assert_eq!(layout.page_tokens(), 128);
    // Of 128 tokens: 32 rows and keys in 21 layers, one row in 20.
    assert_eq!(layout.page_bytes(), 21 * 32 * (584 + 68) + 20 * 584);
    assert!(layout.page_bytes() <= 128 * 3_800);
    let least = (128..256).map(|len| layout.frontier_bytes(len)).min().unwrap();
    assert_eq!(least, layout.frontier_bytes(128));
    let aligned = layout.frontier_bytes(1 << 20);
    assert!(aligned <= 4_100_000, "{aligned} bytes at a page's end");
    let most = (0..128).map(|past| layout.frontier_bytes((1 << 19) + past)).max().unwrap();
    assert!(most <= 15_600_000, "{most} bytes at most");
    let within = (0..128).filter(|past| layout.frontier_bytes((1 << 19) + past) <= 12_000_000);
    assert!(within.count() >= 88, "up to 12 MB at most lengths");
}

/// What a million tokens take, from the pages that the lists would have.
#[test]
fn a_million_tokens_fit_in_3_8_gb_and_an_empty_sequence_takes_none_of_it() {
    let cache = Cache::new(&flash(), &Device::Cpu).unwrap();
    let empty = cache.bytes();
    assert!(empty < 40_000_000, "{empty} bytes before the first token");
    let lists = cache.layers.iter().flat_map(|layer| layer.lists());
    let pages: usize = lists
        .map(|list| {
            (1usize << 20).div_ceil(list.ratio() * list.rows.page_rows()) * list.rows.page_bytes()
        })
        .sum();
    let full = empty + pages;
    assert!(full <= 3_800_000_000, "{full} bytes");
    assert!(full >= 3_500_000_000, "{full} bytes: fewer than the rows have");
}

#[test]
fn memory_is_taken_page_by_page_and_shared_pages_count_once() {
    let mut rng = StdRng::seed_from_u64(2);
    let config = small(true);
    let layout = ImageLayout::new(&config).unwrap();
    let (pages, frontier, snapshot) = random(&mut rng, &layout, 1024 + 130);
    let (_, _, shorter) = random(&mut rng, &layout, 900);
    let empty = Cache::new(&config, &Device::Cpu).unwrap().bytes();
    let page: usize =
        snapshot.layers.iter().flat_map(|l| l.lists()).map(|list| list.rows.page_bytes()).sum();
    assert_eq!(shorter.bytes(), empty + page);
    assert_eq!(snapshot.bytes(), empty + 2 * page);
    assert_eq!(snapshot.own_bytes(), snapshot.bytes(), "nobody shares it yet");

    let mut cache = Cache::new(&config, &Device::Cpu).unwrap();
    cache.restore(&snapshot).unwrap();
    assert_eq!((snapshot.own_bytes(), cache.own_bytes()), (empty, empty));
    let mut footprint = Footprint::new();
    assert_eq!(footprint.add_snapshot(&snapshot), empty + 2 * page);
    assert_eq!(footprint.add_cache(&cache), empty, "its pages are the snapshot's");
    assert_eq!(footprint.add_snapshot(&shorter), empty + page);
    assert_eq!(footprint.bytes(), 3 * empty + 3 * page);
    drop(cache);
    assert_eq!(snapshot.own_bytes(), snapshot.bytes());

    // On what the two share, and on nothing.
    for shared in [0, 1, 8, 9] {
        let len = snapshot.len();
        let mut restore = layout.restore_on(&snapshot, shared, len, &Device::Cpu).unwrap();
        while let Some(next) = restore.next_page() {
            restore.push(&pages[next]).unwrap();
        }
        let again = restore.finish(&frontier).unwrap();
        assert_eq!(written(&layout, &again), (pages.clone(), frontier.clone()), "{shared} shared");
        let own = again.own_bytes();
        // Eight images fill a page in memory. After the ninth there is no row to copy one for.
        let pages = match shared {
            0..8 => 2,
            8 => 1,
            _ => 0,
        };
        assert_eq!(own, empty + pages * page, "{shared} shared");
    }
    assert!(layout.restore_on(&snapshot, 10, 2000, &Device::Cpu).is_err(), "a page too many");
    assert!(layout.restore_on(&snapshot, 9, 1151, &Device::Cpu).is_err(), "shorter than shared");
}

#[test]
fn images_cut_anywhere_or_of_another_length_are_refused() {
    let mut rng = StdRng::seed_from_u64(3);
    for rounding in [true, false] {
        let layout = ImageLayout::new(&small(rounding)).unwrap();
        let (pages, frontier, snapshot) = random(&mut rng, &layout, 261);
        let refused = |pages: &[Vec<u8>], frontier: &[u8]| {
            restored(&layout, 261, pages, frontier).unwrap_err().to_string()
        };
        for cut in 0..frontier.len() {
            let error = refused(&pages, &frontier[..cut]);
            assert!(error.contains("frontier image has"), "{error}");
        }
        for cut in 0..pages[1].len() {
            let cut = vec![pages[0].clone(), pages[1][..cut].to_vec()];
            assert!(refused(&cut, &frontier).contains("page image has"));
        }
        let longer = [&frontier[..], &[0]].concat();
        assert!(refused(&pages, &longer).contains("frontier image has"));
        assert!(refused(&pages[..1], &frontier).contains("1 of 2 pages"));
        let more = [&pages[..], &pages[..1]].concat();
        assert!(refused(&more, &frontier).contains("page 2 of a sequence of 261 tokens"));
        let mut other = frontier.clone();
        other[0] ^= 1;
        assert!(refused(&pages, &other).contains("is of 260 tokens, not of 261"));

        let small_buffer = &mut vec![0; layout.page_bytes() - 1];
        assert!(layout.write_page(&snapshot, 0, small_buffer).is_err());
        let buffer = &mut vec![0; layout.page_bytes()];
        assert!(layout.write_page(&snapshot, 2, buffer).is_err(), "it has two pages");
        let other = ImageLayout::new(&small(!rounding)).unwrap();
        let buffer = &mut vec![0; other.page_bytes()];
        assert!(matches!(other.write_page(&snapshot, 0, buffer), Err(ImageError::Shape)));
        assert!(matches!(other.write_frontier(&snapshot, buffer), Err(ImageError::Shape)));
        assert!(matches!(other.restore_on(&snapshot, 0, 0, &Device::Cpu), Err(ImageError::Shape)));
    }
    let layout = ImageLayout::new(&flash()).unwrap();
    for len in [(1 << 20) + 1, usize::MAX] {
        let error = layout.restore(len, &Device::Cpu).unwrap_err();
        assert!(matches!(error, ImageError::Tokens { .. }), "{error}");
    }
}

#[test]
fn a_wrong_byte_anywhere_is_refused_or_makes_another_row_that_is_finite() {
    let mut rng = StdRng::seed_from_u64(4);
    for rounding in [true, false] {
        let layout = ImageLayout::new(&small(rounding)).unwrap();
        let (pages, frontier, _) = random(&mut rng, &layout, 131);
        let mut refused = 0;
        for at in 0..pages[0].len() + frontier.len() {
            let (mut pages, mut frontier) = (pages.clone(), frontier.clone());
            match at.checked_sub(pages[0].len()) {
                None => pages[0][at] = rng.random(),
                Some(at) => frontier[at] = rng.random(),
            }
            match restored(&layout, 131, &pages, &frontier) {
                // What was accepted is written again to the byte: it was rows and nothing else.
                Ok(snapshot) => {
                    let (_, again) = written(&layout, &snapshot);
                    assert_eq!(again.len(), frontier.len());
                }
                Err(ImageError::Part { .. } | ImageError::Length { .. }) => refused += 1,
                Err(other) => panic!("byte {at}: {other}"),
            }
        }
        assert!(refused > 0);
    }
}

#[test]
fn after_a_refused_page_nothing_more_is_taken() {
    let mut rng = StdRng::seed_from_u64(5);
    let layout = ImageLayout::new(&small(true)).unwrap();
    let (pages, frontier, _) = random(&mut rng, &layout, 256);
    let mut restore = layout.restore(256, &Device::Cpu).unwrap();
    let mut bad = pages[0].clone();
    bad[0] = 0xff;
    let error = restore.push(&bad).unwrap_err().to_string();
    assert_eq!(
        error,
        "layer 1, compressed rows: row 0: byte 0 of a packed row is 0xff, which is no E4M3 number"
    );
    assert!(matches!(restore.push(&pages[0]), Err(ImageError::Broken)));
    assert!(matches!(restore.finish(&frontier), Err(ImageError::Broken)));
}

#[test]
fn other_shapes_have_other_fingerprints() {
    let mut configs = vec![flash(), small(true), small(false)];
    let change = |change: &dyn Fn(&mut Config)| {
        let mut config = small(true);
        change(&mut config);
        config
    };
    configs.push(change(&|c| c.sliding_window += 1));
    configs.push(change(&|c| c.rope_dim = 4));
    configs.push(change(&|c| c.layers.swap(1, 2)));
    configs.push(change(&|c| c.layers[2] = LayerKind::Heavy { ratio: 16 }));
    configs.push(change(&|c| c.layers.push(LayerKind::Window)));
    configs.push(change(&|c| c.indexer.as_mut().unwrap().head_dim = 8));
    let of = |config| ImageLayout::new(config).unwrap().fingerprint();
    let fingerprints: std::collections::HashSet<_> = configs.iter().map(of).collect();
    assert_eq!(fingerprints.len(), configs.len());
    assert_eq!(of(&configs[0]), of(&flash()));
}

#[test]
fn a_page_holds_whole_windows_or_the_model_has_no_images() {
    let tokens = |ratios: &[usize]| {
        let mut config = small(true);
        config.layers = ratios.iter().map(|&ratio| LayerKind::Heavy { ratio }).collect();
        ImageLayout::new(&config).map(|layout| layout.page_tokens())
    };
    for (ratios, wanted) in
        [(&[][..], 128), (&[4, 128], 128), (&[256], 256), (&[3, 4], 384), (&[100, 6], 9600)]
    {
        assert_eq!(tokens(ratios).unwrap(), wanted, "{ratios:?}");
    }
    let error = tokens(&[127, 131, 137]).unwrap_err().to_string();
    assert!(error.contains("[127, 131, 137] have no common page"), "{error}");
    assert!(tokens(&[(1 << 24) - 1, 1 << 24]).is_err());
}

/// Prints how long 100,000 tokens of the full shape take. Run with
/// `cargo test --release --lib -- --ignored --nocapture restoring_100_000_tokens`.
#[test]
#[ignore = "a measurement: wants a quiet machine, 1 GB of memory and 0.4 GB of disk"]
fn restoring_100_000_tokens() {
    let mut rng = StdRng::seed_from_u64(6);
    let layout = ImageLayout::new(&flash()).unwrap();
    let len = 100_000;
    let frontier = frontier(&mut rng, &layout, len);
    let pages: Vec<_> = (0..8).map(|_| page(&mut rng, &layout)).collect();
    let mut file = tempfile::tempfile().unwrap();
    for index in 0..layout.pages(len) {
        file.write_all(&pages[index % 8]).unwrap();
    }
    let bytes = layout.pages(len) * layout.page_bytes() + frontier.len();
    println!("{:.1} MB of {len} tokens", bytes as f64 / 1e6);
    let timed = |what: &str, run: &mut dyn FnMut() -> Snapshot| {
        for _ in 0..4 {
            let start = Instant::now();
            let snapshot = run();
            let seconds = start.elapsed().as_secs_f64();
            assert_eq!(snapshot.len(), len);
            println!("{what}: {seconds:.3} s, {:.2} GB/s", bytes as f64 / seconds / 1e9);
        }
    };
    timed("from memory", &mut || {
        let mut restore = layout.restore(len, &Device::Cpu).unwrap();
        while let Some(next) = restore.next_page() {
            restore.push(&pages[next % 8]).unwrap();
        }
        restore.finish(&frontier).unwrap()
    });
    let from_file = |file: &mut File| {
        file.rewind().unwrap();
        let mut buffer = vec![0; layout.page_bytes()];
        let mut restore = layout.restore(len, &Device::Cpu).unwrap();
        while restore.next_page().is_some() {
            file.read_exact(&mut buffer).unwrap();
            restore.push(&buffer).unwrap();
        }
        restore.finish(&frontier).unwrap()
    };
    timed("from a file in the page cache", &mut || from_file(&mut file));
    let snapshot = from_file(&mut file);
    let start = Instant::now();
    let (pages, _) = written(&layout, &snapshot);
    println!("written to memory: {:.3} s", start.elapsed().as_secs_f64());
    assert_eq!(pages.len(), layout.pages(len));
}
