//! Which type each tensor gets.

use std::ops::RangeInclusive;
use std::str::FromStr;

use super::{Role, Slot};
use crate::gguf::TensorType;

/// The type of the routed experts, which are nearly all of the model; the rest follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recipe {
    /// Gate and up projections IQ2_XXS, down projections Q2_K.
    Q2,
    /// Routed experts Q4_K.
    Q4,
    /// Routed experts Q8_0.
    Q8,
    /// All matrices F16.
    F16,
}

impl Recipe {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q2 => "q2",
            Self::Q4 => "q4",
            Self::Q8 => "q8",
            Self::F16 => "f16",
        }
    }

    /// What llama.cpp calls a file of these types (`general.file_type`).
    pub(super) fn file_type(self) -> u32 {
        match self {
            Self::Q2 => 19,
            Self::Q4 => 15,
            Self::Q8 => 7,
            Self::F16 => 1,
        }
    }

    /// The type of a tensor, unless an override says otherwise.
    pub fn type_of(self, role: Role) -> TensorType {
        match role {
            Role::Embedding | Role::Fine => TensorType::F16,
            Role::Vector => TensorType::F32,
            Role::Indices => TensorType::I32,
            Role::Output | Role::Dense => match self {
                Self::F16 => TensorType::F16,
                _ => TensorType::Q8_0,
            },
            Role::RoutedUp | Role::RoutedDown => match (self, role) {
                (Self::Q2, Role::RoutedUp) => TensorType::IQ2_XXS,
                (Self::Q2, _) => TensorType::Q2_K,
                (Self::Q4, _) => TensorType::Q4_K,
                (Self::Q8, _) => TensorType::Q8_0,
                (Self::F16, _) => TensorType::F16,
            },
        }
    }

    /// The type of a tensor, the last override of its layer counting.
    pub(super) fn type_of_slot(self, slot: &Slot, overrides: &[LayerType]) -> TensorType {
        let routed = matches!(slot.role, Role::RoutedUp | Role::RoutedDown);
        let of_layer = |o: &&LayerType| slot.layer.is_some_and(|layer| o.layers.contains(&layer));
        match overrides.iter().rev().find(of_layer) {
            Some(found) if routed => found.ty,
            _ => self.type_of(slot.role),
        }
    }
}

impl FromStr for Recipe {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Q2, Self::Q4, Self::Q8, Self::F16];
        let found = all.into_iter().find(|recipe| recipe.name().eq_ignore_ascii_case(text));
        found.ok_or_else(|| format!("recipe {text:?} is not known (have q2, q4, q8, f16)"))
    }
}

/// Another type for the routed experts of some layers: `37-42=q4_k`, `7=q8_0`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerType {
    /// The layers, from zero.
    pub layers: RangeInclusive<usize>,
    /// Their type.
    pub ty: TensorType,
}

impl FromStr for LayerType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("layer type {text:?}: {why}; write 37-42=q4_k, or 7=q8_0");
        let (layers, name) = text.split_once('=').ok_or_else(|| wrong("there is no '='"))?;
        let (first, last) = layers.split_once('-').unwrap_or((layers, layers));
        let number =
            |n: &str| n.trim().parse().map_err(|_| wrong(&format!("{n:?} is no layer number")));
        let layers = number(first)?..=number(last)?;
        if layers.is_empty() {
            return Err(wrong("the first layer comes after the last"));
        }
        let types = [
            TensorType::IQ2_XXS,
            TensorType::Q2_K,
            TensorType::Q4_K,
            TensorType::Q8_0,
            TensorType::F16,
        ];
        let name = name.trim();
        let named = |ty: &&TensorType| ty.name().is_some_and(|n| n.eq_ignore_ascii_case(name));
        let ty = types.iter().find(named).ok_or_else(|| {
            wrong(&format!("{name:?} is no type of experts (have iq2_xxs, q2_k, q4_k, q8_0, f16)"))
        })?;
        Ok(Self { layers, ty: *ty })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layer_types_are_read_or_refused_with_a_reason() {
        let read = |text: &str| text.parse::<LayerType>();
        let wanted = LayerType { layers: 37..=42, ty: TensorType::Q4_K };
        assert_eq!(read("37-42=q4_k"), Ok(wanted));
        let wanted = LayerType { layers: 7..=7, ty: TensorType::Q8_0 };
        assert_eq!(read("7=Q8_0"), Ok(wanted));
        for (text, part) in [
            ("37-42", "no '='"),
            ("a=q4_k", "\"a\""),
            ("9-3=q4_k", "after"),
            ("1=q5_k", "q5_k"),
            ("-1=q8_0", "\"\""),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(part) && error.contains(text), "{error}");
        }
        assert_eq!("Q4".parse(), Ok(Recipe::Q4));
        assert!("q3".parse::<Recipe>().unwrap_err().contains("q3"));
    }
}
