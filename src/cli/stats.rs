//! An answer in numbers, on one line.

use crate::engine::Outcome;

/// `prompt 812 (780 cached) 343 tok/s · gen 256 27.1 tok/s · ctx 3 %`; `used` of `context` tokens
/// are taken.
pub fn line(outcome: &Outcome, used: usize, context: usize) -> String {
    let mut line = format!("prompt {}", outcome.prompt_tokens);
    if outcome.cached_tokens > 0 {
        line.push_str(&format!(" ({} cached)", outcome.cached_tokens));
    }
    line.push_str(&rate(outcome.prefill_rate()));
    line.push_str(&format!(" · gen {}", outcome.generated_tokens));
    line.push_str(&rate(outcome.decode_rate()));
    let percent = 100.0 * used as f64 / context.max(1) as f64;
    line.push_str(&format!(" · ctx {} %", percent.ceil()));
    line
}

/// A speed with three digits, if there is one.
fn rate(tokens_per_second: f64) -> String {
    match tokens_per_second {
        r if r <= 0.0 => String::new(),
        r if r < 10.0 => format!(" {r:.2} tok/s"),
        r if r < 100.0 => format!(" {r:.1} tok/s"),
        r => format!(" {r:.0} tok/s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Finish;
    use std::time::Duration;

    #[test]
    fn the_line_has_every_number_that_there_is() {
        let outcome = Outcome {
            prompt_tokens: 812,
            cached_tokens: 780,
            generated_tokens: 256,
            finish: Finish::Stop,
            prefill: Duration::from_millis(100),
            decode: Duration::from_secs(10),
        };
        assert_eq!(
            line(&outcome, 1068, 32_768),
            "prompt 812 (780 cached) 320 tok/s · gen 256 25.6 tok/s · ctx 4 %"
        );
        let nothing = Outcome { cached_tokens: 812, generated_tokens: 0, ..outcome };
        assert_eq!(line(&nothing, 0, 32_768), "prompt 812 (812 cached) · gen 0 · ctx 0 %");
    }
}
