//! A slot between the task that reads frames and the one that sends them: at most one frame waits.

use std::sync::{Mutex, MutexGuard};

use tokio::sync::Notify;

use crate::{proto::FramePolicy, sync};

/// A slot for at most one item, between one producer and one consumer.
///
/// With [`FramePolicy::Latest`] a newer item replaces the waiting one, so the consumer always gets
/// the newest. Otherwise the producer waits until the slot is empty.
#[derive(Debug)]
pub struct FrameSlot<T> {
    state: Mutex<SlotState<T>>,
    filled: Notify,
    emptied: Notify,
    replace: bool,
}

#[derive(Debug)]
struct SlotState<T> {
    item: Option<T>,
    replaced: u64,
    closed: bool,
}

impl<T> FrameSlot<T> {
    /// Creates an empty slot.
    pub fn new(policy: FramePolicy) -> Self {
        Self {
            state: Mutex::new(SlotState {
                item: None,
                replaced: 0,
                closed: false,
            }),
            filled: Notify::new(),
            emptied: Notify::new(),
            replace: policy == FramePolicy::Latest,
        }
    }

    /// Puts an item in. Returns false, and drops the item, if the slot is closed.
    pub async fn put(&self, item: T) -> bool {
        loop {
            {
                let mut state = self.state();
                if state.closed {
                    return false;
                }
                if state.item.is_none() || self.replace {
                    state.replaced += u64::from(state.item.is_some());
                    state.item = Some(item);
                    self.filled.notify_one();
                    return true;
                }
            }
            self.emptied.notified().await;
        }
    }

    /// Waits for an item and takes it out. Returns `None` once the slot is closed and empty.
    pub async fn take(&self) -> Option<T> {
        loop {
            {
                let mut state = self.state();
                if let Some(item) = state.item.take() {
                    self.emptied.notify_one();
                    return Some(item);
                }
                if state.closed {
                    return None;
                }
            }
            self.filled.notified().await;
        }
    }

    /// Closes the slot for new items; a waiting one can still be taken.
    pub fn close(&self) {
        self.state().closed = true;
        self.filled.notify_one();
        self.emptied.notify_one();
    }

    /// Whether the slot is closed and empty, so that [`take`](Self::take) returns `None`.
    pub fn is_finished(&self) -> bool {
        let state = self.state();
        state.closed && state.item.is_none()
    }

    /// How many items have been replaced by newer ones so far.
    pub fn replaced(&self) -> u64 {
        self.state().replaced
    }

    fn state(&self) -> MutexGuard<'_, SlotState<T>> {
        sync::lock(&self.state)
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use tokio::time::timeout;

    use super::*;

    const SHORT: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn latest_keeps_only_the_newest() {
        let slot = FrameSlot::new(FramePolicy::Latest);
        for frame in 0..5 {
            assert!(slot.put(frame).await);
        }
        assert_eq!(slot.take().await, Some(4));
        assert_eq!(slot.replaced(), 4);
        assert!(timeout(SHORT, slot.take()).await.is_err());
    }

    #[tokio::test]
    async fn every_makes_the_producer_wait() {
        let slot = Arc::new(FrameSlot::new(FramePolicy::Every));
        assert!(slot.put(0).await);
        assert!(timeout(SHORT, slot.put(1)).await.is_err());
        let producer = tokio::spawn({
            let slot = slot.clone();
            async move {
                for frame in 1..100 {
                    assert!(slot.put(frame).await);
                }
                slot.close();
            }
        });
        for frame in 0..100 {
            assert_eq!(slot.take().await, Some(frame));
        }
        assert_eq!(slot.take().await, None);
        producer.await.unwrap();
        assert_eq!(slot.replaced(), 0);
    }

    #[tokio::test]
    async fn closing_wakes_both_sides_and_keeps_the_last_item() {
        let slot = Arc::new(FrameSlot::new(FramePolicy::Every));
        slot.put(7).await;
        let blocked = tokio::spawn({
            let slot = slot.clone();
            async move { slot.put(8).await }
        });
        tokio::time::sleep(SHORT).await;
        slot.close();
        assert!(!blocked.await.unwrap());
        assert_eq!(slot.take().await, Some(7));
        assert_eq!(slot.take().await, None);
        assert!(!slot.put(9).await && slot.is_finished());
    }
}
