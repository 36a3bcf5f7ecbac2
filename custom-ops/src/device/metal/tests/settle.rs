//! What one token of each sequence leaves, in one launch for each; of one alone with products of its latent.

use candle_core::{DType, Device, Result, Tensor};

use super::{assert_close, floats, matrix, places, rng, Go};
use crate::device::metal::record;
use crate::{
    settle_and_project, Compression, Finish, Format, Matrix, PoolState, Pooling, Ragged, Ring,
    RopeTable, Rounding, RowFormat, Rows, Settle, Workspace,
};

/// Where the sequences stand: no window of four ends; one does, one of 128 too; the first one.
const POSITIONS: [usize; 3] = [1001, 383, 3];
const SLOTS: usize = 136;
const LATENT: usize = 320;

struct Compressor {
    pooling: Pooling,
    rounding: Rounding,
    format: RowFormat,
    values: Tensor,
    gates: Tensor,
    bias: Tensor,
    norm: Tensor,
    past: Vec<[Tensor; 2]>,
}

/// Products of the latent, and rows.
type Settled = (Vec<Tensor>, Tensor);

/// Whether all values of each row are those wanted, but for a few that lie where two codes meet.
fn assert_same_codes(case: &str, got: &Tensor, want: &Tensor) {
    let rows = |t: &Tensor| t.to_device(&Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
    for (row, (got, want)) in rows(got).iter().zip(&rows(want)).enumerate() {
        let most = want.iter().fold(0f32, |most, v| most.max(v.abs()));
        let others: Vec<_> = got.iter().zip(want).filter(|(a, b)| a != b).collect();
        assert!(others.len() * 50 <= want.len(), "{case}: row {row}: {others:?} differ");
        // The largest codes of four bits are 4 and 6.
        let next = others.iter().all(|(a, b)| (**a - **b).abs() <= 0.34 * most);
        assert!(next, "{case}: row {row}: {others:?}");
    }
}

/// The rows that a list's last page has of it.
fn last_rows(list: &Rows) -> Tensor {
    let Some(page) = list.pages().last() else {
        return Tensor::zeros((0, list.width()), DType::F32, &Device::Cpu).unwrap();
    };
    let count = (list.len() - 1) % list.page_rows() + 1;
    let format = list.format();
    let page = page.to_device(&Device::Cpu).unwrap();
    if let RowFormat::F32 { .. } = format {
        return page.narrow(0, 0, count).unwrap();
    }
    let bytes = page.flatten_all().unwrap().to_vec1::<u8>().unwrap();
    let mut values = vec![0f32; count * format.width()];
    let rows = bytes.chunks_exact(format.row_bytes());
    for (row, bytes) in values.chunks_exact_mut(format.width()).zip(rows) {
        format.unpack(bytes, row);
    }
    Tensor::from_vec(values, (count, format.width()), &Device::Cpu).unwrap()
}

fn check(row: Rounding, compressors: &[(usize, bool, Rounding, RowFormat)]) -> Result<()> {
    check_at(&POSITIONS, row, compressors)?;
    POSITIONS.iter().try_for_each(|&position| check_at(&[position], row, compressors))
}

fn check_at(
    positions: &[usize],
    row: Rounding,
    compressors: &[(usize, bool, Rounding, RowFormat)],
) -> Result<()> {
    let mut rng = rng();
    let cpu = Device::Cpu;
    let tokens = positions.len();
    let spans: Vec<_> = positions.iter().map(|&position| (position, 1)).collect();
    let weights = [(Format::Q8_0, 70), (Format::F16, 33)]
        .map(|(format, rows)| matrix(format, [1, rows, LATENT], &mut rng));
    let latent = floats((tokens, LATENT), 2.0, &mut rng);
    let latent_norm = floats(LATENT, 1.0, &mut rng);
    let kv = floats((tokens, 512), 2.0, &mut rng);
    let kv_norm = floats(512, 1.0, &mut rng);
    let rope = RopeTable::plain(10_000.0, 64);
    let compressors: Vec<Compressor> = compressors
        .iter()
        .map(|&(ratio, overlap, rounding, format)| {
            let pooling = Pooling { ratio, overlap };
            let width = pooling.width(format.width());
            let mut of = |rows: usize, size| floats((rows, width), size, &mut rng);
            let (values, gates, bias) = (of(tokens, 2.0), of(tokens, 4.0), of(ratio, 2.0));
            let past =
                positions.iter().map(|p| [(); 2].map(|()| of(*p.clamp(&1, &SLOTS), 3.0))).collect();
            let norm = floats(format.width(), 1.0, &mut rng);
            Compressor { pooling, rounding, format, values, gates, bias, norm, past }
        })
        .collect();

    // The latent, the rows, then of each compressor the last rows of each list and its rings.
    let run = |device: &Device, of_latent: &[&Matrix], go: Go<'_, Settled>| {
        let on = |t: &Tensor| t.to_device(device).unwrap();
        let batch = Ragged::new(&spans, device).unwrap();
        let finish = |norm, rounding| Finish { norm, eps: 1e-6, rope: &rope, rounding };
        let mut states = Vec::new();
        let lists = std::cell::RefCell::new(Vec::new());
        let mut weights = Vec::new();
        for of in &compressors {
            let ring = |past: &Tensor, position: usize| {
                let ring = Ring::new(SLOTS, of.values.dim(1).unwrap(), device).unwrap();
                let remembered = position.min(SLOTS);
                let span =
                    Ragged::new(&[(position - remembered, remembered)], &cpu).unwrap().spans()[0];
                ring.write(&on(past), &span).unwrap();
                ring
            };
            let of_sequences =
                positions.iter().zip(&of.past).map(|(&position, [values, gates])| PoolState {
                    values: ring(values, position),
                    gates: ring(gates, position),
                });
            states.push(of_sequences.collect::<Vec<_>>());
            let list = |&position: &usize| {
                let mut list = Rows::with_format(of.pooling.ratio, of.format, device);
                let before = Tensor::zeros(
                    (position / of.pooling.ratio, of.format.width()),
                    DType::F32,
                    device,
                );
                list.append(&before.unwrap(), 0, position / of.pooling.ratio).unwrap();
                list
            };
            lists.borrow_mut().push(positions.iter().map(list).collect::<Vec<_>>());
            weights.push([&of.values, &of.gates, &of.bias, &of.norm].map(on));
        }
        let [latent, latent_norm, kv, kv_norm] = [&latent, &latent_norm, &kv, &kv_norm].map(on);
        let (latent, rows) = go(&|ws| {
            let mut lists = lists.borrow_mut();
            let compressions =
                compressors.iter().zip(&weights).zip(states.iter().zip(lists.iter_mut()));
            let compressions =
                compressions.map(|((of, [values, gates, bias, norm]), (states, lists))| {
                    Compression {
                        values,
                        gates,
                        bias,
                        pooling: of.pooling,
                        finish: finish(norm, of.rounding),
                        states: states.iter().collect(),
                        lists: lists.iter_mut().collect(),
                    }
                });
            let whole = Settle {
                latent: &latent,
                latent_norm: (&latent_norm, 1e-6),
                kv: &kv,
                finish: finish(&kv_norm, row),
                compressions: compressions.collect(),
            };
            settle_and_project(whole, of_latent, &batch, ws)
        });
        let pages: Vec<Vec<Tensor>> = lists
            .into_inner()
            .iter()
            .map(|lists| {
                let last = |(list, position): (&Rows, &usize)| {
                    assert_eq!(list.len(), (position + 1) / (1024 / list.page_rows()));
                    last_rows(list)
                };
                lists.iter().zip(positions).map(last).collect()
            })
            .collect();
        let rings: Vec<Tensor> = states
            .iter()
            .flatten()
            .flat_map(|state| [state.values.data().clone(), state.gates.data().clone()])
            .collect();
        (latent, rows, pages, rings)
    };
    let want = run(&cpu, &weights.each_ref(), &|f| f(&Workspace::new(&cpu)).unwrap());
    for place in places() {
        let case = format!("{row:?}, {place}");
        let weights = weights.each_ref().map(|w| place.matrix(w));
        let (got, log) = record(|| run(&place.device(), &weights.each_ref(), &|f| place.run(f)));
        let launches = log.iter().filter(|launch| launch.kernel == "settle").count();
        assert_eq!(launches, tokens, "{case}");
        let others = log.iter().filter(|launch| launch.kernel.starts_with("matvecs")).count();
        assert_eq!(others, usize::from(tokens > 1), "{case}");
        for (got, want) in got.0.iter().zip(&want.0) {
            assert_close(&case, got, want, 3e-5);
        }
        match row {
            Rounding::Off => assert_close(&case, &got.1, &want.1, 1e-5),
            _ => assert_same_codes(&case, &got.1, &want.1),
        }
        for ((got, want), of) in got.2.iter().zip(&want.2).zip(&compressors) {
            for (got, want) in got.iter().zip(want) {
                match of.rounding {
                    Rounding::Off => assert_close(&case, got, want, 2e-5),
                    _ => assert_same_codes(&case, got, want),
                }
            }
        }
        for (got, want) in got.3.iter().zip(&want.3) {
            assert_close(&case, got, want, 0.0);
        }
    }
    Ok(())
}

#[test]
fn rows_that_are_not_rounded() -> Result<()> {
    let [rows, keys] = [512, 128].map(|width| RowFormat::F32 { width });
    check(Rounding::Off, &[])?;
    check(Rounding::Off, &[(128, false, Rounding::Off, rows)])?;
    check(Rounding::Off, &[(4, true, Rounding::Off, rows), (4, true, Rounding::Off, keys)])
}

#[test]
fn rows_that_are_rounded_and_packed() -> Result<()> {
    let (fp8, rows) = (Rounding::Fp8 { nope_dim: 448 }, RowFormat::Fp8 { nope: 448, rope: 64 });
    let keys = RowFormat::Fp4 { width: 128 };
    check(fp8, &[(128, false, fp8, rows)])?;
    check(fp8, &[(4, true, fp8, rows), (4, true, Rounding::HadamardFp4, keys)])
}
