//! Schemas and tools that a program might come with.

use rand::rngs::StdRng;
use rand::Rng;
use serde_json::{json, Map, Value};

/// Any schema.
fn schema(random: &mut StdRng, depth: usize) -> Value {
    let kinds = if depth == 0 { 7 } else { 10 };
    match random.random_range(0..kinds) {
        0 => json!({"type": "string"}),
        1 => {
            let low = random.random_range(0..4);
            json!({"type": "string", "minLength": low, "maxLength": low + random.random_range(0..9)})
        }
        2 => {
            let colours = &["red", "rot", "r<b>", "", "roteiche"][..random.random_range(1..5)];
            json!({ "enum": colours })
        }
        3 => {
            let low = random.random_range(-50..50);
            json!({"type": "integer", "minimum": low, "maximum": low + random.random_range(0..100)})
        }
        // Without bounds a number may be larger than programs can read.
        4 => json!({"type": ["number", "null"], "minimum": -1e6, "maximum": 1e6}),
        5 => json!({"type": "boolean"}),
        6 => json!({"type": "string", "pattern": "^[a-z]{2,5}-[0-9]+$"}),
        7 => {
            let items = schema(random, depth - 1);
            let low = random.random_range(0..2);
            json!({"type": "array", "items": items, "minItems": low, "maxItems": low + 2})
        }
        8 => json!({"anyOf": [schema(random, 0), {"type": "null"}]}),
        _ => object(random, depth - 1),
    }
}

/// The schema of an object.
pub fn object(random: &mut StdRng, depth: usize) -> Value {
    let mut properties = Map::new();
    for _ in 0..random.random_range(0..5) {
        let name = ["city", "a b", "größe", "x", "max_results", "q"][random.random_range(0..6)];
        properties.insert(name.to_owned(), schema(random, depth));
    }
    let required: Vec<&String> = properties.keys().filter(|_| random.random()).collect();
    let required = json!(required);
    json!({"type": "object", "properties": properties, "required": required,
        "additionalProperties": false})
}

/// Names and parameters of some tools.
pub fn tools(random: &mut StdRng) -> Vec<(&'static str, Value)> {
    let names = &["get", "get_weather", "Suche"][..random.random_range(1..4)];
    names.iter().map(|name| (*name, object(random, 2))).collect()
}
