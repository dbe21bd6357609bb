//! Turns on the machine: the few tests that measure time run while no other test runs a server.
//!
//! The tests of one binary run beside each other. Every [`Server`](super::Server) holds a shared
//! turn while it lives; a test that compares latencies or rates begins with [`exclusive`].

use std::{
    collections::HashMap,
    sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError},
    thread::{self, ThreadId},
};

/// Turns are counted by the thread that runs the test, so that a test may take several: it never
/// waits for a turn while it has one.
#[derive(Default)]
struct Holders {
    /// The number of shared turns of each test.
    shared: HashMap<ThreadId, usize>,
    exclusive: Option<ThreadId>,
    /// How many tests wait for an exclusive turn. They come before new shared turns.
    waiting: usize,
}

static HOLDERS: LazyLock<Mutex<Holders>> = LazyLock::new(Mutex::default);
static CHANGED: Condvar = Condvar::new();

/// A turn on the machine, which ends when it is dropped.
#[must_use]
pub struct Turn {
    test: ThreadId,
    kind: TurnKind,
}

enum TurnKind {
    Shared,
    Exclusive,
}

/// Waits until no other test has a turn; meanwhile other tests wait for theirs.
///
/// A test takes it before it starts a server.
pub fn exclusive() -> Turn {
    let test = thread::current().id();
    let mut holders = lock();

    holders.waiting += 1;
    holders = wait_while(holders, |holders| {
        holders.exclusive.is_some() || !holders.shared.is_empty()
    });

    holders.waiting -= 1;
    holders.exclusive = Some(test);
    Turn {
        test,
        kind: TurnKind::Exclusive,
    }
}

/// A turn beside other tests. Tests without a server take one if they keep the processor busy.
pub fn shared_turn() -> Turn {
    let test = thread::current().id();
    let mut holders = wait_while(lock(), |holders| {
        let has_turn = holders.shared.contains_key(&test) || holders.exclusive == Some(test);
        !has_turn && (holders.exclusive.is_some() || holders.waiting > 0)
    });

    *holders.shared.entry(test).or_default() += 1;
    Turn {
        test,
        kind: TurnKind::Shared,
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut holders = lock();
        match self.kind {
            TurnKind::Exclusive => holders.exclusive = None,
            TurnKind::Shared => {
                let count = holders.shared.entry(self.test).or_default();
                *count -= 1;
                if *count == 0 {
                    holders.shared.remove(&self.test);
                }
            }
        }
        CHANGED.notify_all();
    }
}

/// A test that failed while it held the lock does not fail the others.
fn lock() -> MutexGuard<'static, Holders> {
    HOLDERS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wait_while(
    holders: MutexGuard<'static, Holders>,
    condition: impl Fn(&Holders) -> bool,
) -> MutexGuard<'static, Holders> {
    CHANGED
        .wait_while(holders, |holders| condition(holders))
        .unwrap_or_else(PoisonError::into_inner)
}
