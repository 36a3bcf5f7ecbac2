//! The fields of a request's JSON: the one place where types and ranges are checked.
//!
//! A field that is null counts as absent, a field that nobody asks for is not looked at. Every
//! error names the field as OpenAI does: `messages[3].content`.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::ApiError;

/// The fields of one object of a request.
#[derive(Clone, Debug)]
pub struct Fields<'v> {
    object: &'v Map<String, Value>,
    /// What the names of the fields begin with.
    path: String,
}

impl<'v> Fields<'v> {
    /// The fields of a request's body.
    ///
    /// # Errors
    /// The body is no object.
    pub fn body(body: &'v Value) -> Result<Self, ApiError> {
        match body {
            Value::Object(object) => Ok(Self { object, path: String::new() }),
            other => {
                let found = kind(other);
                Err(ApiError::field("body", format!("the body must be a JSON object, not {found}")))
            }
        }
    }

    /// The fields of an object that is called `path`.
    ///
    /// # Errors
    /// It is no object.
    pub fn of(value: &'v Value, path: &str) -> Result<Self, ApiError> {
        match value {
            Value::Object(object) => Ok(Self { object, path: format!("{path}.") }),
            other => Err(wrong(path, "an object", other)),
        }
    }

    /// What a client calls a field of this object.
    pub fn path(&self, name: &str) -> String {
        format!("{}{name}", self.path)
    }

    /// An error about a field.
    pub fn error(&self, name: &str, problem: impl std::fmt::Display) -> ApiError {
        let path = self.path(name);
        let message = format!("{path}: {problem}");
        ApiError::field(path, message)
    }

    /// The object itself.
    pub fn object(&self) -> &'v Map<String, Value> {
        self.object
    }

    /// A field of any type.
    pub fn value(&self, name: &str) -> Option<&'v Value> {
        self.object.get(name).filter(|value| !value.is_null())
    }

    /// A field that must be there.
    ///
    /// # Errors
    /// It is not.
    pub fn required(&self, name: &str) -> Result<&'v Value, ApiError> {
        self.value(name).ok_or_else(|| self.error(name, "is missing"))
    }

    fn wrong(&self, name: &str, wanted: &str, found: &Value) -> ApiError {
        wrong(&self.path(name), wanted, found)
    }

    /// A field that is a string.
    ///
    /// # Errors
    /// It is something else.
    pub fn string(&self, name: &str) -> Result<Option<&'v str>, ApiError> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(name, "a string", other)),
        }
    }

    /// A field that is true or false.
    ///
    /// # Errors
    /// It is something else.
    pub fn boolean(&self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(self.wrong(name, "true or false", other)),
        }
    }

    /// A field that is a number in a range.
    ///
    /// # Errors
    /// It is something else, or out of range.
    pub fn number(&self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f64>, ApiError> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let wanted = || format!("a number between {} and {}", range.start(), range.end());
        match value.as_f64() {
            // Not a number is in no range.
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ => Err(self.wrong(name, &wanted(), value)),
        }
    }

    /// A field that is a whole number in a range; `4.0` is one.
    ///
    /// # Errors
    /// It is something else, or out of range.
    pub fn integer(
        &self,
        name: &str,
        range: RangeInclusive<i128>,
    ) -> Result<Option<i128>, ApiError> {
        let Some(value) = self.value(name) else { return Ok(None) };
        match whole(value) {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ => {
                let (low, high) = (range.start(), range.end());
                Err(self.wrong(name, &format!("a whole number between {low} and {high}"), value))
            }
        }
    }

    /// A field that counts something: a whole number from `low` up to `high`.
    ///
    /// # Errors
    /// It is something else, or out of range.
    pub fn count(&self, name: &str, low: usize, high: usize) -> Result<Option<usize>, ApiError> {
        let number = self.integer(name, low as i128..=high as i128)?;
        Ok(number.and_then(|number| usize::try_from(number).ok()))
    }

    /// A field that is a list.
    ///
    /// # Errors
    /// It is something else.
    pub fn list(&self, name: &str) -> Result<Option<&'v [Value]>, ApiError> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(other) => Err(self.wrong(name, "a list", other)),
        }
    }

    /// A field that is an object.
    ///
    /// # Errors
    /// It is something else.
    pub fn fields(&self, name: &str) -> Result<Option<Fields<'v>>, ApiError> {
        self.value(name).map(|value| Fields::of(value, &self.path(name))).transpose()
    }

    /// A field that is one of several words.
    ///
    /// # Errors
    /// It is something else.
    pub fn word<T: Copy>(&self, name: &str, words: &[(&str, T)]) -> Result<Option<T>, ApiError> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let found = value.as_str().and_then(|text| words.iter().find(|(word, _)| *word == text));
        match found {
            Some((_, meaning)) => Ok(Some(*meaning)),
            None => {
                let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
                Err(self.wrong(name, &words.join(", "), value))
            }
        }
    }
}

/// A whole number, written as an integer or as a float without a fraction.
fn whole(value: &Value) -> Option<i128> {
    let number = value.as_number()?;
    let integer = number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from));
    // Beyond 2^53 a float is no longer what was meant.
    let float =
        || number.as_f64().filter(|n| n.fract() == 0.0 && n.abs() <= 9_007_199_254_740_992.0);
    integer.or_else(|| float().map(|n| n as i128))
}

fn wrong(path: &str, wanted: &str, found: &Value) -> ApiError {
    ApiError::field(path, format!("{path}: must be {wanted}, not {}", shown(found)))
}

/// A value as an error shows it: short, and without what a user may have written.
fn shown(value: &Value) -> String {
    match value {
        Value::Number(number) => number.to_string(),
        Value::Bool(flag) => flag.to_string(),
        Value::String(text) if text.len() <= 40 && text.chars().all(is_plain) => {
            format!("{text:?}")
        }
        other => kind(other).to_owned(),
    }
}

fn is_plain(character: char) -> bool {
    character.is_ascii_alphanumeric() || "-_. ".contains(character)
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_have_types_and_ranges() {
        let body = json!({"a": 4.0, "b": 4.5, "c": "4", "d": 1e308, "e": 9223372036854775808u64,
            "f": -1, "g": null, "h": []});
        let fields = Fields::body(&body).unwrap();
        assert_eq!(fields.count("a", 0, 9), Ok(Some(4)));
        assert_eq!(fields.count("g", 0, 9), Ok(None));
        assert_eq!(fields.count("nowhere", 0, 9), Ok(None));
        for name in ["b", "c", "d", "e", "f", "h"] {
            let error = fields.count(name, 0, 9).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(name));
            assert!(error.message.contains("between 0 and 9"), "{error}");
        }
        assert_eq!(fields.integer("e", 0..=i128::from(u64::MAX)), Ok(Some(1 << 63)));
        assert_eq!(fields.number("b", 0.0..=5.0), Ok(Some(4.5)));
        assert!(fields.number("d", 0.0..=2.0).is_err());
    }

    #[test]
    fn a_field_is_named_with_its_path() {
        let body = json!({"stream_options": {"include_usage": 3}, "x": 1});
        let fields = Fields::body(&body).unwrap();
        let options = fields.fields("stream_options").unwrap().unwrap();
        let error = options.boolean("include_usage").unwrap_err();
        assert_eq!(error.param.as_deref(), Some("stream_options.include_usage"));
        assert_eq!(fields.fields("x").unwrap_err().param.as_deref(), Some("x"));
        assert!(Fields::body(&json!([1])).is_err());
    }
}
