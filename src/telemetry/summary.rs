//! Warnings about callers: the first of a kind from an address is logged at once, further ones are
//! summed up, so that no caller can fill the log.

use std::{
    collections::HashMap,
    sync::{LazyLock, Mutex},
    time::{Duration, Instant},
};

use crate::sync::lock;

/// For how long further warnings are summed up.
const INTERVAL: Duration = Duration::from_secs(1);
/// The most kinds and addresses that are told apart; all others are summed up together.
const MAX_ENTRIES: usize = 256;

/// A warning about a caller.
#[derive(Clone, Copy, Debug)]
pub struct Warning<'a> {
    /// What kind of warning it is, with its reason. Warnings of one kind from one address are summed
    /// up.
    pub kind: &'a str,
    /// The caller's address without its port.
    pub host: &'a str,
}

/// The kind and the address.
type Key = (String, String);

#[derive(Default)]
struct Summaries(HashMap<Key, Summary>);

struct Summary {
    /// When a line was last written.
    logged: Instant,
    /// How many warnings have come since.
    further: u64,
}

static SUMMARIES: LazyLock<Mutex<Summaries>> = LazyLock::new(Mutex::default);

/// Logs a warning with `log`, unless one like it was logged just now. `log` gets the number of those
/// that were only counted since the last one, if there were any.
pub fn warn(warning: Warning<'_>, log: impl FnOnce(Option<u64>)) {
    let admitted = lock(&SUMMARIES).admit(warning, Instant::now());
    if let Some(further) = admitted {
        log(Some(further).filter(|further| *further > 0));
    }
}

/// Logs what was summed up. Must be called regularly.
pub fn flush() {
    for ((kind, host), further) in lock(&SUMMARIES).due(Instant::now()) {
        tracing::warn!(host, further, "{kind}: repeated since the last line");
    }
}

impl Summaries {
    /// How many warnings like this one were only counted; `None` if this one is counted too.
    fn admit(&mut self, warning: Warning<'_>, now: Instant) -> Option<u64> {
        let mut key = (warning.kind.to_owned(), warning.host.to_owned());
        if self.0.len() >= MAX_ENTRIES && !self.0.contains_key(&key) {
            key = ("warnings".into(), "several".into());
        }

        let Some(summary) = self.0.get_mut(&key) else {
            let first = Summary {
                logged: now,
                further: 0,
            };
            self.0.insert(key, first);
            return Some(0);
        };
        if now - summary.logged < INTERVAL {
            summary.further += 1;
            return None;
        }
        summary.logged = now;
        Some(std::mem::take(&mut summary.further))
    }

    /// The sums whose time has come; kinds and addresses without any are forgotten.
    fn due(&mut self, now: Instant) -> Vec<(Key, u64)> {
        let mut due = Vec::new();
        self.0.retain(|key, summary| {
            if now - summary.logged < INTERVAL {
                return true;
            }
            if summary.further == 0 {
                return false;
            }
            due.push((key.clone(), std::mem::take(&mut summary.further)));
            summary.logged = now;
            true
        });
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_logged_and_the_rest_are_counted() {
        let mut summaries = Summaries::default();
        let start = Instant::now();
        let mut admit = |kind: &str, host: &str, milliseconds| {
            let now = start + Duration::from_millis(milliseconds);
            summaries.admit(Warning { kind, host }, now)
        };
        assert_eq!(admit("tls", "10.0.0.1", 0), Some(0));
        assert_eq!(admit("tls", "10.0.0.1", 1), None);
        assert_eq!(admit("tls", "10.0.0.1", 999), None);
        assert_eq!(admit("tls", "10.0.0.2", 2), Some(0));
        assert_eq!(admit("token", "10.0.0.1", 3), Some(0));
        assert_eq!(admit("tls", "10.0.0.1", 1000), Some(2));
        assert_eq!(admit("tls", "10.0.0.1", 1001), None);

        let later = start + Duration::from_secs(3);
        let due = summaries.due(later);
        assert_eq!(due, [(("tls".to_owned(), "10.0.0.1".to_owned()), 1)]);
        assert!(summaries.due(later).is_empty());
        summaries.due(later + INTERVAL);
        assert!(summaries.0.is_empty(), "nothing is remembered for ever");
    }

    #[test]
    fn many_addresses_take_no_more_memory_than_a_few() {
        let mut summaries = Summaries::default();
        let now = Instant::now();
        let mut logged = 0;
        for address in 0..10_000 {
            let host = address.to_string();
            let warning = Warning {
                kind: "tls",
                host: &host,
            };
            logged += usize::from(summaries.admit(warning, now).is_some());
        }
        assert_eq!(logged, MAX_ENTRIES + 1);
        assert_eq!(summaries.0.len(), MAX_ENTRIES + 1);
    }
}
