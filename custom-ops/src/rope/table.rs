//! The frequencies of a rotary embedding.

use std::f64::consts::PI;

/// Context extension by YaRN: low frequencies are divided by `factor`, high ones kept, and a ramp
/// lies between. DeepSeek V4 scales neither sines nor softmax ("no magnitude factor").
#[derive(Clone, Debug, PartialEq)]
pub struct Yarn {
    /// How much longer the context becomes.
    pub factor: f64,
    /// The context before extension, in tokens.
    pub original_context: f64,
    /// Channels that turn more often than this over the original context are kept.
    pub beta_fast: f64,
    /// Channels that turn less often than this are divided by `factor`.
    pub beta_slow: f64,
}

impl Default for Yarn {
    /// DeepSeek V4 Flash's: 65,536 tokens times 16.
    fn default() -> Self {
        Self { factor: 16.0, original_context: 65_536.0, beta_fast: 32.0, beta_slow: 1.0 }
    }
}

/// Frequencies in radians per position, one for each pair of channels.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeTable {
    frequencies: Vec<f32>,
}

impl RopeTable {
    /// `f_i = theta^(-2i/channels)`.
    pub fn plain(theta: f64, channels: usize) -> Self {
        let frequencies = (0..channels / 2)
            .map(|i| theta.powf(-2.0 * i as f64 / channels as f64) as f32)
            .collect();
        Self { frequencies }
    }

    /// The same, extended by YaRN (Peng et al., 2023).
    pub fn yarn(theta: f64, channels: usize, yarn: &Yarn) -> Self {
        let dims = channels as f64;
        // The channel pair that turns `turns` times over the original context.
        let pair = |turns: f64| {
            dims * (yarn.original_context / (2.0 * PI * turns)).ln() / (2.0 * theta.ln())
        };
        let low = pair(yarn.beta_fast).floor().max(0.0);
        let high = pair(yarn.beta_slow).ceil().min(dims - 1.0);
        let width = if high > low { high - low } else { 0.001 };
        let frequencies = (0..channels / 2)
            .map(|i| {
                let kept = theta.powf(-2.0 * i as f64 / dims);
                let ramp = ((i as f64 - low) / width).clamp(0.0, 1.0);
                (kept * (1.0 - ramp) + kept / yarn.factor * ramp) as f32
            })
            .collect();
        Self { frequencies }
    }

    /// One per pair of channels.
    pub fn frequencies(&self) -> &[f32] {
        &self.frequencies
    }

    /// Channels that turn.
    pub fn channels(&self) -> usize {
        2 * self.frequencies.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_familys_frequencies() {
        let table = RopeTable::yarn(160_000.0, 64, &Yarn::default());
        let want = [
            (0, 1.0),
            (1, 0.687_656_022),
            (15, 0.003_635_538_58),
            (16, 0.002_265_625),
            (20, 2.969_777_78e-4),
            (24, 1.953_125e-5),
            (25, 5.372_312_67e-6),
            (31, 5.680_529_04e-7),
        ];
        for (i, f) in want {
            let got = f64::from(table.frequencies()[i]);
            assert!((got / f - 1.0).abs() < 2e-7, "f_{i} is {got}, not {f}");
        }
        assert_eq!(RopeTable::plain(10_000.0, 64).frequencies()[0], 1.0);
    }
}
