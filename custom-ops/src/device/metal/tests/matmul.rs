//! Products in every format, by one token, few and many, and the table of embeddings.

use rand::Rng;

use super::{assert_close, floats, matrix, places, rng};
use crate::{embed, grouped_matmul, Format, Workspace};
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
