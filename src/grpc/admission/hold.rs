//! Holds rejections back from callers that do not wait before they call again, so that they cost
//! the server no more than callers that do.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::Semaphore, time::sleep};
use tonic::{Code, Status};

use crate::grpc::call::{
    caller::Peer,
    status::{RETRY_DELAY, pushback},
};

/// The longest that a rejection is held back.
const LONGEST: Duration = Duration::from_millis(500);
/// The most rejections that are held back at once; further ones are sent at once.
const MAX_HELD: usize = 1024;

/// The rejections that are held back. Clones share them.
#[derive(Clone)]
pub(in crate::grpc) struct HeldBack(Arc<Semaphore>);

impl Default for HeldBack {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_HELD)))
    }
}

impl HeldBack {
    /// Waits for half of the status's retry delay, if the connection retries before the time that an
    /// earlier rejection asked for. Other statuses, and a connection's first rejection, are not held
    /// back.
    pub async fn hold(&self, peer: Option<&Peer>, status: &Status, deadline: Option<Instant>) {
        let (Some(peer), Some(delay)) = (peer, retry_delay(status)) else {
            return;
        };
        if !peer.rejected(delay) {
            return;
        }
        let Ok(_permit) = self.0.try_acquire() else {
            return;
        };

        let mut held = (delay / 2).min(LONGEST);
        // The caller prefers this answer to none.
        if let Some(deadline) = deadline {
            held = held.min(deadline.saturating_duration_since(Instant::now()) / 2);
        }
        sleep(held).await;
    }
}

/// When the caller should call again; `None` if the call was not rejected.
fn retry_delay(status: &Status) -> Option<Duration> {
    match status.code() {
        Code::ResourceExhausted => pushback(status),
        Code::Unauthenticated => Some(RETRY_DELAY),
        _ => None,
    }
}
