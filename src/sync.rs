//! Locks, and the crate's one policy for poisoned ones.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks `mutex`, also after another thread panicked while it held it.
///
/// No critical section of this crate leaves its data half changed, so one that panicked must not
/// take every later caller with it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
