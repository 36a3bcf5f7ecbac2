//! How hard the model is asked to think before it answers.

use std::str::FromStr;

/// Reasoning effort of the next reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Thinking {
    /// Answer at once.
    Off,
    /// Reason, then answer.
    #[default]
    On,
    /// Reason exhaustively: the `max` of the original release (April 2026), which the refreshed
    /// one (31 July 2026) calls `high`. The model card wants a context of at least 384K tokens.
    Max,
    /// The `max` of the refreshed release, whose weights were trained for it; others do no better
    /// with it than with [`Max`](Self::Max).
    Beyond,
}

/// An effort that no dialect defines.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
#[error(
    "unknown reasoning effort {0:?}: use none, minimal, low, medium, high, xhigh (think as the \
     model sees fit) or max"
)]
pub struct UnknownEffort(pub String);

impl Thinking {
    /// Tokens of context that the model card wants for [`Max`](Self::Max): 384K.
    pub const MAX_CONTEXT: usize = 393_216;

    /// What a context of so many tokens has room for: [`On`](Self::On) in place of [`Max`](Self::Max) if it
    /// is too short.
    pub fn within(self, context: usize) -> Self {
        match self {
            Self::Max if context < Self::MAX_CONTEXT => Self::On,
            other => other,
        }
    }

    /// Whether the reply begins with reasoning.
    pub fn is_on(self) -> bool {
        self != Self::Off
    }

    /// What is written between BOS and the first message.
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Self::Off | Self::On => "",
            Self::Max => MAX,
            Self::Beyond => BEYOND,
        }
    }
}

impl FromStr for Thinking {
    type Err = UnknownEffort;

    /// Reads the effort names of the OpenAI and DeepSeek dialects as the original release means
    /// them: everything from `minimal` to `xhigh` is plain thinking.
    fn from_str(effort: &str) -> Result<Self, UnknownEffort> {
        match effort {
            "none" | "off" => Ok(Self::Off),
            "minimal" | "low" | "medium" | "high" | "xhigh" => Ok(Self::On),
            "max" => Ok(Self::Max),
            other => Err(UnknownEffort(other.to_owned())),
        }
    }
}

const MAX: &str = "\
Reasoning Effort: Absolute maximum with no shortcuts permitted.
You MUST be very thorough in your thinking and comprehensively decompose the problem to resolve \
the root cause, rigorously stress-testing your logic against all potential paths, edge cases, and \
adversarial scenarios.
Explicitly write out your entire deliberation process, documenting every intermediate step, \
considered alternative, and rejected hypothesis to ensure absolutely no assumption is left \
unchecked.

";

const BEYOND: &str = "\
Reasoning Effort: Beyond maximum — exhaustive, relentless, and uncompromising.
You MUST reason with the utmost depth and rigor, leaving absolutely nothing to chance: \
exhaustively decompose the problem into its most fundamental components, trace every causal chain \
to its root, and resolve the underlying cause rather than any surface symptom.
Do not stop reasoning until you have independently verified the solution from multiple angles and \
are certain that no assumption remains unchecked and no error remains undiscovered.

";

#[cfg(test)]
mod tests {
    use super::Thinking;

    #[test]
    fn thinking_hardest_needs_room() {
        let most = Thinking::MAX_CONTEXT;
        assert_eq!(Thinking::Max.within(most), Thinking::Max);
        assert_eq!(Thinking::Max.within(most - 1), Thinking::On);
        assert_eq!(Thinking::Off.within(2), Thinking::Off);
    }
}
