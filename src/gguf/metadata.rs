//! The key–value part of a header, in file order, with typed look-ups.

#![forbid(unsafe_code)]

use super::{Array, Error, Strings, Value, MAX_NAME_BYTES};

/// Metadata entries in file order.
///
/// The typed look-ups (`u32`, `f32s`, …) name the key, what was wanted and what was found when
/// they fail. For keys that may be absent, see [`Optional`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
    /// Positions in `entries`, sorted by key.
    by_key: Vec<usize>,
}

/// Turns "the key is missing" into `None`; other failures stay.
///
/// ```
/// use candle_ds4::gguf::{Metadata, Optional};
/// # fn main() -> Result<(), candle_ds4::gguf::Error> {
/// let metadata = Metadata::new();
/// assert_eq!(metadata.u32("deepseek4.expert_group_count").optional()?, None);
/// # Ok(())
/// # }
/// ```
pub trait Optional<T> {
    /// `Ok(None)` for a missing key.
    fn optional(self) -> Result<Option<T>, Error>;
}

impl<T> Optional<T> for Result<T, Error> {
    fn optional(self) -> Result<Option<T>, Error> {
        match self {
            Ok(value) => Ok(Some(value)),
            Err(Error::MissingKey { .. }) => Ok(None),
            Err(other) => Err(other),
        }
    }
}

impl Metadata {
    /// No entries.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes entries as a file lists them.
    ///
    /// # Errors
    /// A key that occurs twice.
    pub(super) fn from_entries(entries: Vec<(String, Value)>) -> Result<Self, Error> {
        let by_key =
            sorted_by_name(&entries, |(key, _)| key).map_err(|key| Error::DuplicateKey { key })?;
        Ok(Self { entries, by_key })
    }

    /// Appends an entry.
    ///
    /// # Errors
    /// The key is there already, or is longer than the format allows.
    pub fn insert(&mut self, key: impl Into<String>, value: impl Into<Value>) -> Result<(), Error> {
        let key = key.into();
        if key.len() > MAX_NAME_BYTES {
            return Err(Error::NameTooLong {
                place: "metadata key".into(),
                offset: 0,
                len: key.len() as u64,
            });
        }
        match self.position(&key) {
            Ok(_) => Err(Error::DuplicateKey { key }),
            Err(at) => {
                self.by_key.insert(at, self.entries.len());
                self.entries.push((key, value.into()));
                Ok(())
            }
        }
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entries in file order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> + '_ {
        self.entries.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// The value of `key`, if there is one.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let at = self.position(key).ok()?;
        let entry = self.entries.get(*self.by_key.get(at)?)?;
        Some(&entry.1)
    }

    /// Where `key` is, or would be, in `by_key`.
    fn position(&self, key: &str) -> Result<usize, usize> {
        self.by_key.binary_search_by(|i| self.entries.get(*i).map(|e| e.0.as_str()).cmp(&Some(key)))
    }

    fn require(&self, key: &str) -> Result<&Value, Error> {
        self.get(key).ok_or_else(|| Error::MissingKey { key: key.to_owned() })
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        wanted: &'static str,
        pick: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<T, Error> {
        let value = self.require(key)?;
        pick(value).ok_or_else(|| Error::WrongType {
            key: key.to_owned(),
            wanted,
            found: match value {
                Value::String(_) if value.as_str().is_none() => {
                    "string that is not UTF-8".to_owned()
                }
                other => other.describe(),
            },
        })
    }

    fn integer<T: TryFrom<i128>>(&self, key: &str, wanted: &'static str) -> Result<T, Error> {
        let value = self.typed(key, wanted, Value::as_integer)?;
        fit(key, value, wanted)
    }

    fn integers<T: TryFrom<i128>>(&self, key: &str, wanted: &'static str) -> Result<Vec<T>, Error> {
        let items: Vec<i128> = self.typed(key, wanted, |v| as_integers(v.as_array()?))?;
        items.into_iter().map(|v| fit(key, v, wanted)).collect()
    }

    /// An integer of any width, if it fits.
    pub fn u32(&self, key: &str) -> Result<u32, Error> {
        self.integer(key, "u32")
    }

    /// An integer of any width, if it fits.
    pub fn u64(&self, key: &str) -> Result<u64, Error> {
        self.integer(key, "u64")
    }

    /// An integer of any width, if it fits.
    pub fn i64(&self, key: &str) -> Result<i64, Error> {
        self.integer(key, "i64")
    }

    /// An integer of any width, if it fits.
    pub fn usize(&self, key: &str) -> Result<usize, Error> {
        self.integer(key, "usize")
    }

    /// A float of either width; an f64 is rounded.
    pub fn f32(&self, key: &str) -> Result<f32, Error> {
        self.typed(key, "f32", |v| v.as_float().map(|v| v as f32))
    }

    /// A float of either width.
    pub fn f64(&self, key: &str) -> Result<f64, Error> {
        self.typed(key, "f64", Value::as_float)
    }

    /// A boolean.
    pub fn bool(&self, key: &str) -> Result<bool, Error> {
        self.typed(key, "bool", |v| match v {
            Value::Bool(v) => Some(*v),
            _ => None,
        })
    }

    /// A string that is UTF-8.
    pub fn str(&self, key: &str) -> Result<&str, Error> {
        self.typed(key, "string", Value::as_str)
    }

    /// A string of any bytes.
    pub fn bytes(&self, key: &str) -> Result<&[u8], Error> {
        self.typed(key, "string", Value::as_bytes)
    }

    /// An array of integers of any width, if each fits.
    pub fn u32s(&self, key: &str) -> Result<Vec<u32>, Error> {
        self.integers(key, "array of u32")
    }

    /// An array of integers of any width, if each fits.
    pub fn i64s(&self, key: &str) -> Result<Vec<i64>, Error> {
        self.integers(key, "array of i64")
    }

    /// An array of floats of either width; f64s are rounded.
    pub fn f32s(&self, key: &str) -> Result<Vec<f32>, Error> {
        self.typed(key, "array of f32", |v| match v.as_array()? {
            Array::F32(items) => Some(items.clone()),
            Array::F64(items) => Some(items.iter().map(|v| *v as f32).collect()),
            _ => None,
        })
    }

    /// An array of strings of any bytes.
    pub fn strings(&self, key: &str) -> Result<&Strings, Error> {
        self.typed(key, "array of string", |v| match v.as_array()? {
            Array::String(items) => Some(items),
            _ => None,
        })
    }
}

fn fit<T: TryFrom<i128>>(key: &str, value: i128, wanted: &'static str) -> Result<T, Error> {
    T::try_from(value).map_err(|_| Error::OutOfRange { key: key.to_owned(), value, wanted })
}

fn as_integers(array: &Array) -> Option<Vec<i128>> {
    fn widen<T: Copy + Into<i128>>(items: &[T]) -> Option<Vec<i128>> {
        Some(items.iter().map(|v| (*v).into()).collect())
    }
    match array {
        Array::U8(v) => widen(v),
        Array::I8(v) => widen(v),
        Array::U16(v) => widen(v),
        Array::I16(v) => widen(v),
        Array::U32(v) => widen(v),
        Array::I32(v) => widen(v),
        Array::U64(v) => widen(v),
        Array::I64(v) => widen(v),
        _ => None,
    }
}

/// Positions of `items` by rising name, or a name that occurs twice.
///
/// Sorting keeps one small integer an item, needs no second copy of the names, and no file can
/// be made to hit a hash function's worst case.
pub(super) fn sorted_by_name<T>(
    items: &[T],
    name: impl Fn(&T) -> &String,
) -> Result<Vec<usize>, String> {
    let at = |i: &usize| items.get(*i).map(&name);
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_unstable_by(|a, b| at(a).cmp(&at(b)));
    for pair in order.windows(2) {
        if let [Some(a), Some(b)] = [pair.first().and_then(at), pair.last().and_then(at)] {
            if a == b {
                return Err(a.clone());
            }
        }
    }
    Ok(order)
}
