//! Items that were sent, for clients that refer to them by id.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

use crate::engine::Namespace;

/// Bytes of items that are kept, about.
const BYTES: usize = 64 << 20;

/// Items by id, each namespace its own; the oldest are forgotten first.
#[derive(Default)]
pub struct Kept(Mutex<Items>);

#[derive(Default)]
struct Items {
    items: HashMap<(Namespace, String), (usize, Value)>,
    order: VecDeque<(Namespace, String)>,
    bytes: usize,
}

impl Kept {
    /// Keeps an item that has an id.
    pub fn keep(&self, namespace: Namespace, item: &Value) {
        let Some(id) = item.get("id").and_then(Value::as_str) else { return };
        // What is kept is as long as what was sent, give or take the tables.
        let bytes = 256 + item.to_string().len();
        let key = (namespace, id.to_owned());
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if bytes > BYTES || kept.items.contains_key(&key) {
            return;
        }
        kept.order.push_back(key.clone());
        kept.items.insert(key, (bytes, item.clone()));
        kept.bytes += bytes;
        while kept.bytes > BYTES {
            let Some(oldest) = kept.order.pop_front() else { break };
            let freed = kept.items.remove(&oldest).map_or(0, |(bytes, _)| bytes);
            kept.bytes -= freed;
        }
    }

    /// The item with this id.
    pub fn find(&self, namespace: Namespace, id: &str) -> Option<Value> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.items.get(&(namespace, id.to_owned())).map(|(_, item)| item.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_oldest_items_make_room() {
        let kept = Kept::default();
        let large = "x".repeat(BYTES / 4);
        let owner = Namespace([1; 16]);
        for id in ["a", "b", "c", "d", "e"] {
            kept.keep(owner, &json!({ "id": id, "text": large }));
        }
        let known = ["a", "b", "c", "d", "e"].map(|id| kept.find(owner, id).is_some());
        assert_eq!(known, [false, false, true, true, true]);
        assert_eq!(kept.find(Namespace::default(), "e"), None, "another's item");
        kept.keep(owner, &json!({ "text": "no id" }));
        kept.keep(owner, &json!({ "id": "f", "text": "x".repeat(BYTES) }));
        assert_eq!(kept.find(owner, "f"), None, "an item larger than all there is room for");
    }
}
