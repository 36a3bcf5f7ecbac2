//! The disk store of KV pages and frontiers: what it shares, what it survives, what it removes.
//!
//! Larger counts: `cargo test --release --test kv_store -- --ignored`

#[path = "kv_store/support.rs"]
mod support;

#[path = "kv_store/crash.rs"]
mod crash;
#[path = "kv_store/damage.rs"]
mod damage;
#[path = "kv_store/eviction.rs"]
mod eviction;
#[path = "kv_store/faults.rs"]
mod faults;
#[path = "kv_store/format.rs"]
mod format;
#[path = "kv_store/privacy.rs"]
mod privacy;
#[path = "kv_store/processes.rs"]
mod processes;
#[path = "kv_store/sharing.rs"]
mod sharing;
#[path = "kv_store/speed.rs"]
mod speed;
