//! Attention at the family's head, over every kind of row.

use candle_core::{Device, Result, Tensor};
use rand::Rng;

use super::{assert_close, floats, places, rng, Go};
use crate::device::metal::record;
use crate::{
    kv_round_trip, sink_attention, turned_attention, Attention, Compressed, Ragged, Ring,
    RopeTable, RowFormat, Rows, Selection, Workspace, NO_ROW,
};

const DIM: usize = 512;
const WINDOW: usize = 128;

#[derive(Clone, Copy)]
enum Kind {
    Window,
    Visible(usize),
    Chosen(usize),
}

const PLAIN: RowFormat = RowFormat::F32 { width: DIM };
const PACKED: RowFormat = RowFormat::Fp8 { nope: 448, rope: 64 };

fn check(kind: Kind, format: RowFormat, heads: usize, spans: &[(usize, usize)]) -> Result<()> {
    check_with(kind, format, heads, spans, None)
}

/// The same with all that surrounds it, in as many launches; what the rings hold at the end included.
fn check_turned(
    kind: Kind,
    format: RowFormat,
    heads: usize,
    spans: &[(usize, usize)],
    launches: usize,
) -> Result<()> {
    check_with(kind, format, heads, spans, Some(launches))
}

fn check_with(
    kind: Kind,
    format: RowFormat,
    heads: usize,
    spans: &[(usize, usize)],
    turned: Option<usize>,
) -> Result<()> {
    let rope = RopeTable::plain(10_000.0, 64);
    let mut rng = rng();
    let cpu = Device::Cpu;
    let tokens = spans.iter().map(|s| s.1).sum();
    let q = floats((tokens, heads, DIM), 1.0, &mut rng);
    let kv = floats((tokens, DIM), 1.0, &mut rng);
    let sinks = floats(heads, 2.0, &mut rng);
    let ratio = match kind {
        Kind::Visible(ratio) => ratio,
        _ => 4,
    };
    let past: Vec<Tensor> =
        spans.iter().map(|s| floats((s.0.clamp(1, 200), DIM), 1.0, &mut rng)).collect();
    let rows: Vec<Tensor> =
        spans.iter().map(|s| floats(((s.0 + s.1) / ratio + 1, DIM), 1.0, &mut rng)).collect();
    if format == PACKED {
        rows.iter().try_for_each(|rows| kv_round_trip(rows, 448))?;
    }
    // Ascending, ended early by some.
    let k = match kind {
        Kind::Chosen(k) => k,
        _ => 1,
    };
    let mut ids = Vec::new();
    for &(start, len) in spans {
        for i in 0..len {
            let visible = (start + i + 1) / ratio;
            let count = rng.random_range(0..=k.min(visible));
            let mut list = rand::seq::index::sample(&mut rng, visible, count).into_vec();
            list.sort_unstable();
            ids.extend(list.into_iter().map(|row| row as u32));
            ids.extend(std::iter::repeat_n(NO_ROW, k - count));
        }
    }
    let ids = Tensor::from_vec(ids, (tokens, k), &cpu)?;

    let attend = |device: &Device, run: Go<'_, Tensor>| -> (Tensor, Vec<Tensor>) {
        let on = |t: &Tensor| t.to_device(device).unwrap();
        let rings: Vec<Ring> = spans
            .iter()
            .zip(&past)
            .map(|(&(start, _), past)| {
                let ring = Ring::new(WINDOW + 8, DIM, device).unwrap();
                let remembered = start.min(past.dim(0).unwrap());
                let batch = Ragged::new(&[(start - remembered, remembered)], &cpu).unwrap();
                ring.write(&on(past), &batch.spans()[0]).unwrap();
                ring
            })
            .collect();
        let lists: Vec<Rows> = rows
            .iter()
            .map(|rows| {
                let mut list = Rows::with_format(ratio, format, device);
                list.append(&on(rows), 0, rows.dim(0).unwrap()).unwrap();
                list
            })
            .collect();
        let (rings, lists): (Vec<_>, Vec<_>) = (rings.iter().collect(), lists.iter().collect());
        let batch = Ragged::new(spans, device).unwrap();
        // Queries may be changed: each place has its own.
        let q = on(&q).copy().unwrap();
        let (kv, sinks, ids) = (on(&kv), on(&sinks), on(&ids));
        let selection = match kind {
            Kind::Chosen(_) => Selection::Chosen(&ids),
            _ => Selection::Visible { ratio },
        };
        let compressed = match kind {
            Kind::Window => None,
            _ => Some(Compressed { rows: &lists, selection }),
        };
        let attention = Attention {
            q: &q,
            kv: &kv,
            windows: &rings,
            window: WINDOW,
            compressed,
            sinks: &sinks,
            scale: 0.0442,
            batch: &batch,
        };
        let out = run(&|ws| match turned {
            Some(_) => turned_attention(attention, &rope, 1e-6, ws),
            None => sink_attention(attention, ws),
        });
        (out, rings.iter().map(|ring| ring.data().clone()).collect())
    };
    let want = attend(&cpu, &|f| f(&Workspace::new(&cpu)).unwrap());
    for place in places() {
        let (got, log) = record(|| attend(&place.device(), &|f| place.run(f)));
        assert_close(&place.to_string(), &got.0, &want.0, 1e-5);
        let of_op = log.iter().filter(|launch| !launch.kernel.starts_with("kv_")).count();
        assert!(turned.is_none_or(|launches| of_op == launches), "{place}: {log:?}");
        for (got, want) in got.1.iter().zip(&want.1) {
            assert_close(&format!("ring, {place}"), got, want, 0.0);
        }
    }
    Ok(())
}

#[test]
fn over_the_window_alone() -> Result<()> {
    // Split rows; a chunk that begins a sequence; both in one batch.
    check(Kind::Window, PLAIN, 64, &[(300, 1)])?;
    check(Kind::Window, PLAIN, 5, &[(0, 9)])?;
    check(Kind::Window, PLAIN, 2, &[(0, 2), (131, 9), (127, 1)])
}

#[test]
fn over_all_visible_rows() -> Result<()> {
    check(Kind::Visible(128), PACKED, 16, &[(1500, 1), (255, 2)])?;
    check(Kind::Visible(4), PACKED, 17, &[(4400, 1), (2, 11)])?;
    check(Kind::Visible(4), PLAIN, 3, &[(700, 9)])
}

#[test]
fn over_chosen_rows() -> Result<()> {
    check(Kind::Chosen(40), PLAIN, 16, &[(900, 2), (3, 1)])?;
    check(Kind::Chosen(24), PACKED, 3, &[(2200, 9), (0, 1)])
}

#[test]
fn few_tokens_turn_and_write_the_ring_on_the_way() -> Result<()> {
    // Few rows; the whole window; more rows than a threadgroup takes; few tokens of two sequences.
    check_turned(Kind::Window, PLAIN, 3, &[(20, 1)], 1)?;
    check_turned(Kind::Window, PLAIN, 20, &[(400_300, 1)], 1)?;
    check_turned(Kind::Visible(4), PACKED, 3, &[(4500, 2)], 2)?;
    check_turned(Kind::Chosen(40), PACKED, 16, &[(900, 3), (0, 1)], 2)?;
    // The ring has no place for so many.
    check_turned(Kind::Window, PLAIN, 2, &[(131, 9)], 4)
}
