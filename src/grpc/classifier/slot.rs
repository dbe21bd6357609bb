//! The slot of one frame between a live stream's reader and the worker that decodes it.

use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use tokio::sync::Notify;

/// Holds the newest item; putting a newer one in replaces the one that waits.
pub(super) struct Slot<T> {
    state: Mutex<SlotState<T>>,
    changed: Notify,
    dropped: AtomicU64,
}

struct SlotState<T> {
    item: Option<T>,
    closed: bool,
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self {
            state: Mutex::new(SlotState {
                item: None,
                closed: false,
            }),
            changed: Notify::new(),
            dropped: AtomicU64::new(0),
        }
    }
}

impl<T> Slot<T> {
    /// Puts an item in and returns whether an older one was dropped for it.
    pub fn put(&self, item: T) -> bool {
        let replaced = self.lock().item.replace(item).is_some();
        self.dropped.fetch_add(replaced.into(), Relaxed);
        self.changed.notify_one();
        replaced
    }

    /// Takes the item that waits, if there is one.
    pub fn take(&self) -> Option<T> {
        self.lock().item.take()
    }

    /// No more items will be put in; one that waits can still be taken.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_one();
    }

    /// Waits for an item; false once the slot is closed and empty.
    pub async fn filled(&self) -> bool {
        loop {
            {
                let state = self.lock();
                if state.item.is_some() {
                    return true;
                }
                if state.closed {
                    return false;
                }
            }
            self.changed.notified().await;
        }
    }

    /// How many items were replaced by newer ones.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, SlotState<T>> {
        self.state
            .lock()
            .expect("nothing panics while it holds the slot")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        /// What is taken is the newest item, once; every other one is counted as dropped.
        #[test]
        fn the_newest_item_is_taken_and_the_others_are_counted(
            takes in vec(any::<bool>(), 1..200)
        ) {
            let slot = Slot::default();
            let (mut newest, mut waiting, mut taken) = (0, None, 0);
            for take in takes {
                if take {
                    assert_eq!(slot.take(), waiting.take().inspect(|_| taken += 1));
                } else {
                    newest += 1;
                    assert_eq!(slot.put(newest), waiting.replace(newest).is_some());
                }
                assert_eq!(slot.dropped() + taken + u64::from(waiting.is_some()), newest);
            }
            slot.close();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let filled = runtime.block_on(slot.filled());
            assert_eq!(filled, waiting.is_some(), "what came before the end is still taken");
        }
    }

    /// Reader and workers are different threads.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn items_are_taken_in_order_and_the_last_is_never_missed() {
        const ITEMS: u64 = 20_000;
        let slot = Arc::new(Slot::default());
        let reader = tokio::spawn({
            let slot = Arc::clone(&slot);
            async move {
                for item in 1..=ITEMS {
                    slot.put(item);
                    if item % 64 == 0 {
                        tokio::task::yield_now().await;
                    }
                }
                slot.close();
            }
        });

        let (mut last, mut taken) = (0, 0);
        while slot.filled().await {
            let item = slot.take().expect("only one task takes");
            assert!(item > last, "{item} after {last}");
            last = item;
            taken += 1;
        }
        reader.await.unwrap();
        assert_eq!((last, taken + slot.dropped()), (ITEMS, ITEMS));
    }
}
