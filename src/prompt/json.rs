//! JSON as Python's `json.dumps(value, ensure_ascii=False)` writes it, since that is what the
//! model was trained to read.

use std::io;

use serde::Serialize;
use serde_json::ser::Formatter;
use serde_json::Value;

/// `", "` between items, `": "` after keys, floats as Python's `repr`.
struct Python;

impl Formatter for Python {
    fn begin_array_value<W>(&mut self, writer: &mut W, first: bool) -> io::Result<()>
    where
        W: ?Sized + io::Write,
    {
        separate(writer, first)
    }

    fn begin_object_key<W>(&mut self, writer: &mut W, first: bool) -> io::Result<()>
    where
        W: ?Sized + io::Write,
    {
        separate(writer, first)
    }

    fn begin_object_value<W>(&mut self, writer: &mut W) -> io::Result<()>
    where
        W: ?Sized + io::Write,
    {
        writer.write_all(b": ")
    }

    fn write_f64<W>(&mut self, writer: &mut W, value: f64) -> io::Result<()>
    where
        W: ?Sized + io::Write,
    {
        writer.write_all(float(value).as_bytes())
    }
}

fn separate<W: ?Sized + io::Write>(writer: &mut W, first: bool) -> io::Result<()> {
    if first {
        Ok(())
    } else {
        writer.write_all(b", ")
    }
}

/// Python's `repr`: the shortest digits that read back, with an exponent below 1e-4 and from 1e16.
fn float(value: f64) -> String {
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>() {
        Ok(exponent) if !(-4..16).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
        _ => {
            let plain = value.to_string();
            let point = if plain.contains('.') { "" } else { ".0" };
            plain + point
        }
    }
}

/// `value` in Python's style. Integers beyond 64 bits come out as floats, unlike Python's.
pub(super) fn dumps(value: &(impl Serialize + ?Sized)) -> String {
    let mut bytes = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, Python);
    match value.serialize(&mut serializer) {
        Ok(()) => String::from_utf8(bytes).unwrap_or_default(),
        // Nothing that is serialised here has keys other than strings, and memory does not fail.
        Err(_) => String::new(),
    }
}

/// Appends `text` as the inside of a JSON string. Works piece by piece: escapes never depend on
/// what came before.
pub(super) fn escape_into(text: &str, out: &mut String) {
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            control if control < ' ' => out.push_str(&format!("\\u{:04x}", control as u32)),
            other => out.push(other),
        }
    }
}

/// Whether `text` is one JSON value.
pub(super) fn is_valid(text: &str) -> bool {
    serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
}

/// The parameters of a call from its arguments text. Blank text, which clients send for a call
/// without parameters, is none; text that is no JSON object is one parameter called `arguments`.
pub(super) fn parameters(arguments: &str) -> serde_json::Map<String, Value> {
    if arguments.trim().is_empty() {
        return serde_json::Map::new();
    }
    serde_json::from_str(arguments).unwrap_or_else(|_| {
        [("arguments".to_owned(), Value::String(arguments.to_owned()))].into_iter().collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn values_are_written_as_python_writes_them() {
        let value: Value = serde_json::from_str(
            r#"{"é":[1,-2.0,1e-7,1E16,123456789012345680.0,1e3,0.0001,0.00001,-0.0,true,null],
                "b":{"c":"\u0001\"\\/\n\u007f"},"d":[],"e":{}}"#,
        )
        .unwrap();
        assert_eq!(
            dumps(&value),
            "{\"é\": [1, -2.0, 1e-07, 1e+16, 1.2345678901234568e+17, 1000.0, 0.0001, 1e-05, -0.0, \
             true, null], \"b\": {\"c\": \"\\u0001\\\"\\\\/\\n\u{7f}\"}, \"d\": [], \"e\": {}}"
        );
    }

    #[test]
    fn arguments_that_are_no_object_become_one_parameter() {
        assert!(parameters("").is_empty());
        assert!(parameters(" \n").is_empty());
        assert!(parameters("{}").is_empty());
        for arguments in ["[1]", "3", "{\"a\":", "{\"a\": NaN}", "plain"] {
            assert_eq!(parameters(arguments)["arguments"], arguments);
        }
    }

    proptest! {
        #[test]
        fn floats_read_back(value in prop::num::f64::NORMAL) {
            prop_assert_eq!(float(value).parse::<f64>().unwrap(), value);
        }

        #[test]
        fn escapes_agree_with_serde_json(text in any::<String>()) {
            let mut escaped = String::new();
            escape_into(&text, &mut escaped);
            prop_assert_eq!(format!("\"{escaped}\""), serde_json::to_string(&text).unwrap());
        }
    }
}
