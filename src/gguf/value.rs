//! Metadata values: scalars, strings, typed arrays.

#![forbid(unsafe_code)]

use bytes::Bytes;

use super::Strings;

/// Declares the scalar-like types once: enum variant, id in the file, name, Rust type.
macro_rules! values {
    ($($(#[$doc:meta])* $variant:ident($rust:ty) = $id:literal, $name:literal, $size:literal;)*) => {
        /// The type of a metadata value or of an array's items, by the format's numbering.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum ValueType {
            $($(#[$doc])* $variant,)*
            /// Bytes with a length, by convention UTF-8.
            String,
            /// Items of one type with a count.
            Array,
        }

        impl ValueType {
            /// The type numbered `id`, if there is one.
            pub fn from_id(id: u32) -> Option<Self> {
                match id {
                    $($id => Some(Self::$variant),)*
                    8 => Some(Self::String),
                    9 => Some(Self::Array),
                    _ => None,
                }
            }

            /// The format's number for the type.
            pub fn id(self) -> u32 {
                match self {
                    $(Self::$variant => $id,)*
                    Self::String => 8,
                    Self::Array => 9,
                }
            }

            /// A short name: `u32`, `string`, `array`.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                    Self::String => "string",
                    Self::Array => "array",
                }
            }

            /// The fewest bytes that a value of the type takes in a file.
            pub(super) fn least_bytes(self) -> u64 {
                match self {
                    $(Self::$variant => $size,)*
                    Self::String => 8,
                    Self::Array => 12,
                }
            }
        }

        /// One metadata value.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Value {
            $($(#[$doc])* $variant($rust),)*
            /// Bytes, by convention UTF-8; kept as they are. See [`Value::as_str`].
            String(Bytes),
            /// An array.
            Array(Array),
        }

        impl Value {
            /// The value's type.
            pub fn value_type(&self) -> ValueType {
                match self {
                    $(Self::$variant(_) => ValueType::$variant,)*
                    Self::String(_) => ValueType::String,
                    Self::Array(_) => ValueType::Array,
                }
            }
        }

        $(impl From<$rust> for Value {
            fn from(v: $rust) -> Self {
                Self::$variant(v)
            }
        }

        impl From<Vec<$rust>> for Value {
            fn from(v: Vec<$rust>) -> Self {
                Self::Array(Array::$variant(v))
            }
        })*

        /// A metadata array; all items have one type.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Array {
            $($(#[$doc])* $variant(Vec<$rust>),)*
            /// Strings.
            String(Strings),
            /// Arrays, each with an item type of its own.
            Array(Vec<Array>),
        }

        impl Array {
            /// The number of items.
            pub fn len(&self) -> usize {
                match self {
                    $(Self::$variant(v) => v.len(),)*
                    Self::String(v) => v.len(),
                    Self::Array(v) => v.len(),
                }
            }

            /// The type of the items.
            pub fn item_type(&self) -> ValueType {
                match self {
                    $(Self::$variant(_) => ValueType::$variant,)*
                    Self::String(_) => ValueType::String,
                    Self::Array(_) => ValueType::Array,
                }
            }

            /// A copy of item `i`.
            pub fn get(&self, i: usize) -> Option<Value> {
                match self {
                    $(Self::$variant(v) => v.get(i).copied().map(Value::$variant),)*
                    Self::String(v) => {
                        v.get(i).map(|s| Value::String(Bytes::copy_from_slice(s)))
                    }
                    Self::Array(v) => v.get(i).cloned().map(Value::Array),
                }
            }
        }
    };
}

values! {
    /// 8-bit unsigned integer.
    U8(u8) = 0, "u8", 1;
    /// 8-bit integer.
    I8(i8) = 1, "i8", 1;
    /// 16-bit unsigned integer.
    U16(u16) = 2, "u16", 2;
    /// 16-bit integer.
    I16(i16) = 3, "i16", 2;
    /// 32-bit unsigned integer.
    U32(u32) = 4, "u32", 4;
    /// 32-bit integer.
    I32(i32) = 5, "i32", 4;
    /// 32-bit float.
    F32(f32) = 6, "f32", 4;
    /// True or false.
    Bool(bool) = 7, "bool", 1;
    /// 64-bit unsigned integer.
    U64(u64) = 10, "u64", 8;
    /// 64-bit integer.
    I64(i64) = 11, "i64", 8;
    /// 64-bit float.
    F64(f64) = 12, "f64", 8;
}

impl Value {
    /// The text of a string value, `None` for other types and for bytes that are not UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(self.as_bytes()?).ok()
    }

    /// The bytes of a string value.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Self::String(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The value of any integer type.
    pub fn as_integer(&self) -> Option<i128> {
        Some(match *self {
            Self::U8(v) => v.into(),
            Self::I8(v) => v.into(),
            Self::U16(v) => v.into(),
            Self::I16(v) => v.into(),
            Self::U32(v) => v.into(),
            Self::I32(v) => v.into(),
            Self::U64(v) => v.into(),
            Self::I64(v) => v.into(),
            _ => return None,
        })
    }

    /// The value of either float type.
    pub fn as_float(&self) -> Option<f64> {
        match *self {
            Self::F32(v) => Some(v.into()),
            Self::F64(v) => Some(v),
            _ => None,
        }
    }

    /// The array, if it is one.
    pub fn as_array(&self) -> Option<&Array> {
        match self {
            Self::Array(array) => Some(array),
            _ => None,
        }
    }

    /// The type in words, for messages: `u32`, `array of string`.
    pub fn describe(&self) -> String {
        match self {
            Self::Array(array) => format!("array of {}", array.item_type().name()),
            other => other.value_type().name().to_owned(),
        }
    }
}

impl From<&str> for Value {
    fn from(v: &str) -> Self {
        Self::String(Bytes::copy_from_slice(v.as_bytes()))
    }
}

impl From<String> for Value {
    fn from(v: String) -> Self {
        Self::String(v.into())
    }
}

impl From<Strings> for Value {
    fn from(v: Strings) -> Self {
        Self::Array(Array::String(v))
    }
}

impl From<Array> for Value {
    fn from(v: Array) -> Self {
        Self::Array(v)
    }
}

impl Array {
    /// Whether there is no item.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Levels of nesting: 1 for an array of scalars.
    pub(super) fn depth(&self) -> usize {
        match self {
            Self::Array(v) => 1 + v.iter().map(Array::depth).max().unwrap_or(0),
            _ => 1,
        }
    }
}
