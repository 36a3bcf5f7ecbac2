//! The element types of ggml: id, name, and how many bytes a block of elements takes.

#![forbid(unsafe_code)]

use std::fmt;

/// How a type packs its elements: `elements` of them in `bytes` bytes, innermost dimension first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Block {
    /// Elements in one block; a row is a whole number of blocks.
    pub elements: u64,
    /// Bytes of one block.
    pub bytes: u64,
}

/// Declares the enum and its table from one list, so that the two cannot disagree.
macro_rules! tensor_types {
    ($($(#[$doc:meta])* $variant:ident = $id:literal, $name:literal, $elements:literal, $bytes:literal;)*) => {
        /// The element type of a tensor, as ggml numbers them.
        ///
        /// Ids that ggml has retired (4, 5, 31 to 33, 36 to 38) count as unknown.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[allow(non_camel_case_types)] // ggml's own spelling
        pub enum TensorType {
            $($(#[$doc])* $variant,)*
            /// An id that is not in the table; how many bytes it takes is unknown.
            Unknown(u32),
        }

        impl TensorType {
            /// Every known type, by rising id.
            pub const ALL: &'static [TensorType] = &[$(TensorType::$variant,)*];

            /// The type that ggml numbers `id`.
            pub fn from_id(id: u32) -> Self {
                match id {
                    $($id => TensorType::$variant,)*
                    other => TensorType::Unknown(other),
                }
            }

            /// ggml's number for the type.
            pub fn id(self) -> u32 {
                match self {
                    $(TensorType::$variant => $id,)*
                    TensorType::Unknown(id) => id,
                }
            }

            /// ggml's name for the type, or `None` if it is unknown.
            pub fn name(self) -> Option<&'static str> {
                match self {
                    $(TensorType::$variant => Some($name),)*
                    TensorType::Unknown(_) => None,
                }
            }

            /// The type's block, or `None` if the type is unknown.
            pub fn block(self) -> Option<Block> {
                match self {
                    $(TensorType::$variant => Some(Block { elements: $elements, bytes: $bytes }),)*
                    TensorType::Unknown(_) => None,
                }
            }
        }
    };
}

tensor_types! {
    /// 32-bit float.
    F32 = 0, "F32", 1, 4;
    /// 16-bit float, IEEE half.
    F16 = 1, "F16", 1, 2;
    /// 4 bits, one scale a block.
    Q4_0 = 2, "Q4_0", 32, 18;
    /// 4 bits, scale and minimum.
    Q4_1 = 3, "Q4_1", 32, 20;
    /// 5 bits, one scale a block.
    Q5_0 = 6, "Q5_0", 32, 22;
    /// 5 bits, scale and minimum.
    Q5_1 = 7, "Q5_1", 32, 24;
    /// 8 bits, one scale a block.
    Q8_0 = 8, "Q8_0", 32, 34;
    /// 8 bits with the block's sum; a format for activations.
    Q8_1 = 9, "Q8_1", 32, 36;
    /// 2-bit k-quant.
    Q2_K = 10, "Q2_K", 256, 84;
    /// 3-bit k-quant.
    Q3_K = 11, "Q3_K", 256, 110;
    /// 4-bit k-quant.
    Q4_K = 12, "Q4_K", 256, 144;
    /// 5-bit k-quant.
    Q5_K = 13, "Q5_K", 256, 176;
    /// 6-bit k-quant.
    Q6_K = 14, "Q6_K", 256, 210;
    /// 8-bit k-quant; a format for activations.
    Q8_K = 15, "Q8_K", 256, 292;
    /// 2.06 bits, grid of 256 vectors of 8.
    IQ2_XXS = 16, "IQ2_XXS", 256, 66;
    /// 2.31 bits, grid of 512 vectors of 8.
    IQ2_XS = 17, "IQ2_XS", 256, 74;
    /// 3.06 bits, grid of 256 vectors of 4.
    IQ3_XXS = 18, "IQ3_XXS", 256, 98;
    /// 1.56 bits.
    IQ1_S = 19, "IQ1_S", 256, 50;
    /// 4 bits through a table of 16 uneven steps.
    IQ4_NL = 20, "IQ4_NL", 32, 18;
    /// 3.44 bits, grid of 512 vectors of 4.
    IQ3_S = 21, "IQ3_S", 256, 110;
    /// 2.56 bits, grid of 1024 vectors of 8.
    IQ2_S = 22, "IQ2_S", 256, 82;
    /// 4.25 bits through the table of IQ4_NL, with sub-block scales.
    IQ4_XS = 23, "IQ4_XS", 256, 136;
    /// 8-bit integer.
    I8 = 24, "I8", 1, 1;
    /// 16-bit integer.
    I16 = 25, "I16", 1, 2;
    /// 32-bit integer.
    I32 = 26, "I32", 1, 4;
    /// 64-bit integer.
    I64 = 27, "I64", 1, 8;
    /// 64-bit float.
    F64 = 28, "F64", 1, 8;
    /// 1.75 bits.
    IQ1_M = 29, "IQ1_M", 256, 56;
    /// 16-bit float with the exponent of F32.
    BF16 = 30, "BF16", 1, 2;
    /// Ternary, 1.69 bits.
    TQ1_0 = 34, "TQ1_0", 256, 54;
    /// Ternary, 2.06 bits.
    TQ2_0 = 35, "TQ2_0", 256, 66;
    /// OCP microscaling FP4: E2M1 with one power-of-two scale a block.
    MXFP4 = 39, "MXFP4", 32, 17;
    /// NVIDIA FP4: E2M1 with four E4M3 scales a block.
    NVFP4 = 40, "NVFP4", 64, 36;
    /// One bit, one scale a block.
    Q1_0 = 41, "Q1_0", 128, 18;
}

impl TensorType {
    /// Whether this program can compute with tensors of the type; the others it can only list.
    pub fn is_loadable(self) -> bool {
        use TensorType::*;
        matches!(self, F32 | F16 | BF16 | I8 | I32 | I64 | Q8_0 | Q2_K | Q4_K | IQ2_XXS)
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.pad(name),
            None => f.pad(&format!("type {}", self.id())),
        }
    }
}
