//! Counts open connections and refused ones.

use metrics::{Counter, Gauge, counter, gauge};

use super::{
    labels::{Closure, Refusal},
    table::{CONNECTIONS_ACTIVE, CONNECTIONS_CLOSED, CONNECTIONS_REFUSED},
};

/// The series of one listener.
#[derive(Clone)]
pub struct ConnectionMetrics {
    active: Gauge,
    refused: [Counter; Refusal::LABELS.len()],
    closed: [Counter; Closure::LABELS.len()],
}

/// Counts one open connection until it is dropped.
pub struct ConnectionGuard(ConnectionMetrics);

impl Default for ConnectionMetrics {
    /// Registers the series, so that they exist, at 0, before the first connection.
    fn default() -> Self {
        Self {
            active: gauge!(CONNECTIONS_ACTIVE),
            refused: Refusal::LABELS
                .map(|reason| counter!(CONNECTIONS_REFUSED, "reason" => reason)),
            closed: Closure::LABELS.map(|reason| counter!(CONNECTIONS_CLOSED, "reason" => reason)),
        }
    }
}

impl ConnectionMetrics {
    /// Counts a new connection.
    pub fn opened(&self) -> ConnectionGuard {
        self.active.increment(1.0);
        ConnectionGuard(self.clone())
    }

    /// Counts a connection that was closed before its first call.
    pub fn refused(&self, reason: Refusal) {
        self.refused[reason as usize].increment(1);
    }

    /// Counts a connection that the server closes while it has no call in progress.
    pub fn closed(&self, reason: Closure) {
        self.closed[reason as usize].increment(1);
    }
}

impl ConnectionGuard {
    /// Counts this connection as closed before its first call.
    pub fn refused(&self, reason: Refusal) {
        self.0.refused(reason);
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.0.active.decrement(1.0);
    }
}
