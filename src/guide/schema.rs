//! JSON Schemas on their way into a grammar.

use llguidance::earley::SlicedBiasComputer;
use serde_json::{json, Map, Value};

/// White space between the elements of JSON: enough to read it, too little to stay in it.
const BLANKS: &str = r"[ ]?|\n[ ]{0,24}";

/// How JSON may be written, for the grammar engine.
fn options(lenient: bool) -> Value {
    json!({"whitespace_flexible": true, "whitespace_pattern": BLANKS, "lenient": lenient})
}

/// Regular expressions whose tokens are found ahead of time: the insides of strings.
pub(super) fn slices() -> Vec<String> {
    SlicedBiasComputer::json_slices()
}

/// Any JSON object.
pub(super) fn object() -> Value {
    json!({"type": "object", "x-guidance": options(false)})
}

/// The schema of a response.
pub(super) fn response(schema: &Value) -> Value {
    match schema {
        Value::Object(schema) => {
            let mut schema = schema.clone();
            schema.insert("x-guidance".to_owned(), options(false));
            Value::Object(schema)
        }
        other => json!({"allOf": [other], "x-guidance": options(false)}),
    }
}

/// What a tool's schema says of its parameters.
pub(super) struct Parameters<'a> {
    /// Required ones first, otherwise in the schema's order.
    pub(super) declared: Vec<Parameter<'a>>,
    /// How many are required.
    pub(super) required: usize,
    /// Whether others may be given.
    pub(super) open: bool,
    definitions: Vec<(&'a str, &'a Value)>,
}

/// One parameter.
pub(super) struct Parameter<'a> {
    pub(super) name: &'a str,
    pub(super) schema: &'a Value,
}

/// How a parameter may be written.
pub(super) enum Spelling<'a> {
    /// As one of these texts.
    OneOf(Vec<&'a str>),
    /// As text of so many characters, that a regular expression may describe.
    Text { min: u64, max: Option<u64>, pattern: Option<&'a str> },
}

static ANY: Value = Value::Bool(true);

impl<'a> Parameters<'a> {
    /// Reads the schema of a tool; `None` if it describes no plain object, whose parameters can
    /// then be anything.
    pub(super) fn read(schema: Option<&'a Value>) -> Option<Self> {
        let schema = schema?.as_object()?;
        if ["$ref", "allOf", "anyOf", "oneOf"].iter().any(|key| schema.contains_key(*key)) {
            return None;
        }
        let properties = match schema.get("properties") {
            Some(properties) => Some(properties.as_object()?),
            None => None,
        };
        let mut names: Vec<&str> = match schema.get("required") {
            Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        // In the order of the properties; then those that have no schema.
        let place = |name: &str| properties.and_then(|all| all.keys().position(|key| key == name));
        names.sort_by_key(|name| place(name).unwrap_or(usize::MAX));
        names.dedup();
        let mut declared: Vec<_> = names
            .iter()
            .map(|name| {
                let schema = properties.and_then(|all| all.get(*name)).unwrap_or(&ANY);
                Parameter { name, schema }
            })
            .collect();
        let required = declared.len();
        let optional = properties.into_iter().flatten();
        let optional = optional.filter(|(name, _)| !names.contains(&name.as_str()));
        declared.extend(optional.map(|(name, schema)| Parameter { name, schema }));
        let closed = schema.get("additionalProperties") == Some(&Value::Bool(false));
        let open = declared.is_empty() && !closed;
        let definitions = ["$defs", "definitions"]
            .iter()
            .filter_map(|key| Some((*key, schema.get(*key)?)))
            .collect();
        Some(Self { declared, required, open, definitions })
    }

    /// What a reference to the tool's own definitions refers to; other schemas as they are.
    fn resolve(&self, schema: &'a Value) -> &'a Value {
        let path =
            schema.get("$ref").and_then(Value::as_str).and_then(|path| path.strip_prefix("#/"));
        let found = path.and_then(|path| path.split_once('/')).and_then(|(key, name)| {
            self.definitions.iter().find(|(of, _)| *of == key)?.1.get(name)
        });
        found.unwrap_or(schema)
    }

    /// How a parameter may be written as plain text; `None` if it cannot be text.
    pub(super) fn spelling(&self, schema: &'a Value) -> Option<Spelling<'a>> {
        let schema = self.resolve(schema);
        let branches = ["anyOf", "oneOf"].iter().find_map(|key| schema.get(*key)?.as_array());
        match branches {
            Some(branches) => {
                branches.iter().find_map(|branch| Spelling::read(self.resolve(branch)))
            }
            None => Spelling::read(schema),
        }
    }

    /// Whether a parameter of this schema can only be text.
    pub(super) fn is_text(&self, schema: &'a Value) -> bool {
        let schema = self.resolve(schema);
        match (schema.get("type"), schema.get("enum"), schema.get("const")) {
            (Some(Value::String(name)), ..) => name == "string",
            (_, Some(Value::Array(values)), _) => values.iter().all(Value::is_string),
            (_, _, Some(value)) => value.is_string(),
            _ => false,
        }
    }

    /// A parameter's schema that stands alone, written leniently or not.
    pub(super) fn alone(&self, schema: &Value, lenient: bool) -> Value {
        let mut alone = match schema {
            Value::Object(schema) => schema.clone(),
            Value::Bool(false) => [("not".to_owned(), json!({}))].into_iter().collect(),
            _ => Map::new(),
        };
        for (key, definitions) in &self.definitions {
            alone.insert((*key).to_owned(), (*definitions).clone());
        }
        alone.insert("x-guidance".to_owned(), options(lenient));
        Value::Object(alone)
    }
}

impl<'a> Spelling<'a> {
    /// How a parameter of this schema may be written as plain text; `None` if it is no text.
    fn read(schema: &'a Value) -> Option<Self> {
        let free = Self::Text { min: 0, max: None, pattern: None };
        let Some(schema) = schema.as_object() else { return Some(free) };
        if schema.contains_key("$ref") || schema.contains_key("allOf") {
            return None;
        }
        if let Some(Value::Array(values)) = schema.get("enum") {
            let texts: Vec<&str> = values.iter().filter_map(Value::as_str).collect();
            return (!texts.is_empty()).then_some(Self::OneOf(texts));
        }
        if let Some(value) = schema.get("const") {
            return value.as_str().map(|text| Self::OneOf(vec![text]));
        }
        match schema.get("type") {
            Some(Value::String(name)) if name != "string" => return None,
            Some(Value::Array(names)) if !names.iter().any(|name| name == "string") => return None,
            _ => {}
        }
        Some(Self::Text {
            min: schema.get("minLength").and_then(Value::as_u64).unwrap_or(0),
            max: schema.get("maxLength").and_then(Value::as_u64),
            pattern: schema.get("pattern").and_then(Value::as_str),
        })
    }
}

/// Any JSON.
pub(super) fn any() -> Value {
    json!({"x-guidance": options(true)})
}
