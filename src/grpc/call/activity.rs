//! How a connection is used: its open calls, how long it has been idle, and whether it is to close.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicU8, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures_util::task::AtomicWaker;

use crate::sync::lock;

/// What is known of the use of one connection; admission writes it, the transport reads it.
pub(in crate::grpc) struct Activity {
    usage: Mutex<Usage>,
    /// A [`Closing`].
    closing: AtomicU8,
    /// The task that reads the connection.
    reader: AtomicWaker,
}

struct Usage {
    /// Admitted calls that have not been answered in full.
    calls: usize,
    /// Whether a classifying call was ever admitted: its caller is one that may call.
    has_called: bool,
    /// When the last call ended, or the connection was opened.
    idle_since: Instant,
}

/// How a connection is to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(in crate::grpc) enum Closing {
    Not,
    /// GOAWAY is sent, and the client gets time to close the connection.
    Gracefully,
    AtOnce,
}

/// A connection without open calls.
#[derive(Clone, Copy, Debug)]
pub(in crate::grpc) struct Idle {
    pub has_called: bool,
    pub since: Instant,
}

impl Activity {
    pub fn new() -> Self {
        Self {
            usage: Mutex::new(Usage {
                calls: 0,
                has_called: false,
                idle_since: Instant::now(),
            }),
            closing: AtomicU8::new(Closing::Not as u8),
            reader: AtomicWaker::new(),
        }
    }

    /// How long the connection has had no open call; `None` while it has one.
    pub fn idle(&self) -> Option<Idle> {
        let usage = lock(&self.usage);
        (usage.calls == 0).then_some(Idle {
            has_called: usage.has_called,
            since: usage.idle_since,
        })
    }

    /// Whether the connection has been without a call for at least this long.
    pub fn is_idle_for(&self, time: Duration) -> bool {
        self.idle().is_some_and(|idle| idle.since.elapsed() >= time)
    }

    /// Asks for the connection to be closed. Only the first request counts.
    pub fn close(&self, how: Closing) {
        let _ = self
            .closing
            .compare_exchange(Closing::Not as u8, how as u8, SeqCst, SeqCst);
        self.reader.wake();
    }

    /// How the connection is to be closed; `Pending` while it is not. Wakes the last task that
    /// asked.
    pub fn poll_closing(&self, cx: &mut Context<'_>) -> Poll<Closing> {
        self.reader.register(cx.waker());
        match self.closing() {
            Closing::Not => Poll::Pending,
            closing => Poll::Ready(closing),
        }
    }

    /// How the connection is to be closed, as far as that is asked for.
    pub fn closing(&self) -> Closing {
        match self.closing.load(SeqCst) {
            0 => Closing::Not,
            1 => Closing::Gracefully,
            _ => Closing::AtOnce,
        }
    }

    /// A call has been admitted; `is_known` if it shows that its caller may call.
    pub fn call_begins(&self, is_known: bool) {
        let mut usage = lock(&self.usage);
        usage.calls += 1;
        usage.has_called |= is_known;
    }

    pub fn call_ends(&self) {
        let mut usage = lock(&self.usage);
        usage.calls -= 1;
        usage.idle_since = Instant::now();
    }
}
