//! Models that are gone: their series are left out of `/metrics`.
//!
//! The recorder keeps every series for as long as the process runs, so that the counters of a model
//! that comes back go on where they were.

use std::{collections::BTreeSet, sync::Mutex};

use super::exposition::{escaped, label};
use crate::sync::lock;

/// The values of the label `model` that are left out, as they are written.
static REMOVED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// From now on the series of this model are left out.
pub(super) fn remove(model: &str) {
    lock(&REMOVED).insert(escaped(model));
}

/// From now on the series of this model are written, also if it was removed before.
pub(super) fn restore(model: &str) {
    lock(&REMOVED).remove(&escaped(model));
}

/// The text of all metrics without the series of removed models.
pub(super) fn without_removed(text: String) -> String {
    let removed = lock(&REMOVED);
    if removed.is_empty() {
        return text;
    }
    let is_kept = |line: &&str| label(line, "model").is_none_or(|model| !removed.contains(model));
    text.split_inclusive('\n').filter(is_kept).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_of_removed_models_are_left_out_until_they_come_back() {
        let text = "# TYPE a counter\n\
                    a{model=\"gone with \\\"it\\\"\",method=\"x\"} 1\n\
                    a{code=\"OK\",model=\"gone with \\\"it\\\"\"} 1\n\
                    a{model=\"gone with\"} 2\n\
                    a{name=\"gone with \\\"it\\\"\"} 3\n\
                    b 4\n";
        let name = "gone with \"it\"";
        assert_eq!(without_removed(text.to_owned()), text);
        remove(name);
        let rest = without_removed(text.to_owned());
        assert_eq!(rest.lines().count(), 4, "{rest}");
        assert!(!rest.contains("1\n"), "{rest}");
        restore(name);
        assert_eq!(without_removed(text.to_owned()), text);
    }
}
