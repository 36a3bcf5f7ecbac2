//! Products in every format, by one token, few and many, and the table of embeddings.

use rand::Rng;

use super::{assert_close, floats, matrix, places, rng};
use crate::device::metal::record;
use crate::{embed, grouped_matmul, matmuls, Format, Workspace};
use candle_core::{Device, Result, Tensor};

#[test]
fn products_are_those_of_the_cpu_in_every_format() -> Result<()> {
    let mut rng = rng();
    let ws = Workspace::new(&Device::Cpu);
    for format in Format::ALL {
        // Columns that leave lanes idle, rows that leave tiles half empty.
        let cols = if format.block_len() == 256 { 768 } else { 352 };
        let w = matrix(format, [1, 70, cols], &mut rng);
        for tokens in [1, 2, 3, 8, 9, 37] {
            let x = floats((tokens, cols), 1.0, &mut rng);
            let want = grouped_matmul(&x, &w, 1, &ws)?;
            for place in places() {
                let (x, w) = (place.tensor(&x), place.matrix(&w));
                let got = place.run(|ws| grouped_matmul(&x, &w, 1, ws));
                let case = format!("{format}, {tokens} tokens, {place}");
                assert_close(&case, &got, &want, 3e-5);
            }
        }
    }
    Ok(())
}

#[test]
fn groups_have_their_own_rows_and_columns() -> Result<()> {
    let mut rng = rng();
    let ws = Workspace::new(&Device::Cpu);
    for (format, tokens) in [(Format::Q8_0, 1), (Format::Q8_0, 5), (Format::F16, 33)] {
        let w = matrix(format, [1, 3 * 11, 64], &mut rng);
        let x = floats((tokens, 3 * 64), 1.0, &mut rng);
        let want = grouped_matmul(&x, &w, 3, &ws)?;
        for place in places() {
            let (x, w) = (place.tensor(&x), place.matrix(&w));
            let got = place.run(|ws| grouped_matmul(&x, &w, 3, ws));
            assert_close(&format!("{format}, {tokens} tokens, {place}"), &got, &want, 3e-5);
        }
    }
    Ok(())
}

/// Formats and rows of a layer's kind, ragged; launches as few as can be.
#[test]
fn products_with_the_same_activations_are_one_launch() -> Result<()> {
    let mut rng = rng();
    let ws = Workspace::new(&Device::Cpu);
    let (cols, dense) = (96, [Format::Q8_0, Format::F32, Format::F16, Format::BF16]);
    for (count, tokens) in [(2, 1), (8, 1), (3, 2), (7, 3), (4, 8), (3, 9)] {
        let weights: Vec<_> = (0..count)
            .map(|i| {
                // Errors are measured by the largest of a row, which of one product may be none.
                let rows = rng.random_range(8..40);
                matrix(dense[i % dense.len()], [1, rows, cols], &mut rng)
            })
            .collect();
        let x = floats((tokens, cols), 1.0, &mut rng);
        let want = matmuls(&x, &weights.iter().collect::<Vec<_>>(), &ws)?;
        for place in places() {
            let x = place.tensor(&x);
            let weights: Vec<_> = weights.iter().map(|w| place.matrix(w)).collect();
            let weights: Vec<_> = weights.iter().collect();
            let (got, log) = record(|| place.run(|ws| matmuls(&x, &weights, ws)));
            let case = format!("{count} weights, {tokens} tokens, {place}");
            assert_eq!(log.len(), if tokens <= 8 { 1 } else { count }, "{case}");
            assert_eq!(
                log.iter().map(|launch| launch.weight_bytes).sum::<usize>(),
                weights.iter().map(|w| w.byte_len()).sum::<usize>(),
                "{case}"
            );
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                assert_close(&format!("{case}, weight {i}"), got, want, 3e-5);
            }
        }
    }
    // A format that the launch has no branch for.
    let weights = [Format::Q8_0, Format::Q4K].map(|format| matrix(format, [1, 9, 256], &mut rng));
    let x = floats((1, 256), 1.0, &mut rng);
    let want = matmuls(&x, &[&weights[0], &weights[1]], &ws)?;
    for place in places() {
        let (x, weights) = (place.tensor(&x), weights.each_ref().map(|w| place.matrix(w)));
        let got = place.run(|ws| matmuls(&x, &[&weights[0], &weights[1]], ws));
        for (got, want) in got.iter().zip(&want) {
            assert_close(&place.to_string(), got, want, 3e-5);
        }
    }
    Ok(())
}

#[test]
fn embeddings_are_rows_of_the_table_bit_for_bit() -> Result<()> {
    let mut rng = rng();
    let ws = Workspace::new(&Device::Cpu);
    for format in Format::ALL {
        let table = matrix(format, [1, 9, 512], &mut rng);
        let ids: Vec<u32> = (0..7).map(|_| rng.random_range(0..9)).collect();
        let ids = Tensor::new(ids, &Device::Cpu)?;
        let want = embed(&ids, &table, 4, &ws)?;
        for place in places() {
            let (ids, table) = (place.tensor(&ids), place.matrix(&table));
            let got = place.run(|ws| embed(&ids, &table, 4, ws));
            assert_close(&format!("{format}, {place}"), &got, &want, 0.0);
        }
    }
    Ok(())
}

#[test]
fn rows_that_no_kernel_reads_are_refused_by_name() {
    let mut rng = rng();
    let w = matrix(Format::F32, [1, 4, 12], &mut rng);
    let x = floats((1, 12), 1.0, &mut rng);
    for place in places() {
        let (x, w) = (place.tensor(&x), place.matrix(&w));
        let error = place.run(|ws| Ok(grouped_matmul(&x, &w, 1, ws).unwrap_err().to_string()));
        assert!(error.contains("multiples of 8 columns, not 12"), "{error}");
    }
}
