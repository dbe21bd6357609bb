//! Metrics of the engine plans that a model was loaded with.

use std::time::Duration;

use metrics::{counter, gauge};

use super::table::{ENGINE_BUILD, ENGINE_CACHE};

/// A plan was looked for in the cache, and built if `build_time` says so.
pub(crate) fn engine_plan(cache_hit: bool, build_time: Option<Duration>) {
    if let Some(build_time) = build_time {
        gauge!(ENGINE_BUILD).set(build_time.as_secs_f64());
    }
    let result = if cache_hit { "hit" } else { "miss" };
    counter!(ENGINE_CACHE, "result" => result).increment(1);
}
