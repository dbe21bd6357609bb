//! The locks and threads of the scheduler: the standard library's, or shuttle's where the crate is
//! compiled with `--cfg shuttle` to explore the orders of their steps (see `interleavings`).

use std::time::Duration;
#[cfg(not(shuttle))]
pub(super) use std::{
    sync::{Condvar, Mutex, MutexGuard},
    thread::{Builder, JoinHandle},
};

#[cfg(shuttle)]
pub(super) use shuttle::{
    sync::{Condvar, Mutex, MutexGuard},
    thread::{Builder, JoinHandle},
};

/// Locks `mutex`, also after another thread panicked while it held it, as [`crate::sync::lock`].
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Releases the lock until `signal` is notified or `timeout` has passed; `None` means no timeout.
#[cfg(not(shuttle))]
pub(super) fn wait<'a, T>(
    _: &'a Mutex<T>,
    guard: MutexGuard<'a, T>,
    signal: &Condvar,
    timeout: Option<Duration>,
) -> MutexGuard<'a, T> {
    match timeout {
        None => signal
            .wait(guard)
            .unwrap_or_else(|poisoned| poisoned.into_inner()),
        Some(timeout) => {
            signal
                .wait_timeout(guard, timeout)
                .unwrap_or_else(|poisoned| poisoned.into_inner())
                .0
        }
    }
}

/// Shuttle has no clock: there a timeout may pass at any moment.
#[cfg(shuttle)]
pub(super) fn wait<'a, T>(
    mutex: &'a Mutex<T>,
    guard: MutexGuard<'a, T>,
    signal: &Condvar,
    timeout: Option<Duration>,
) -> MutexGuard<'a, T> {
    if timeout.is_none() {
        return signal
            .wait(guard)
            .unwrap_or_else(|poisoned| poisoned.into_inner());
    }
    drop(guard);
    shuttle::thread::yield_now();
    lock(mutex)
}

/// Whether a thread has ended, so that joining it does not block.
pub(super) fn is_finished<T>(thread: &JoinHandle<T>) -> bool {
    #[cfg(not(shuttle))]
    return thread.is_finished();
    // Shuttle does not tell.
    #[cfg(shuttle)]
    {
        let _ = thread;
        false
    }
}
