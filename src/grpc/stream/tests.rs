//! The slot of `FRAME_POLICY_LATEST` in every order of coming and taking.

use proptest::{collection::vec, prelude::*};

use super::*;

fn frame(id: u64) -> Incoming {
    let stamp = FrameStamp {
        id,
        captured_at: None,
        arrived: Instant::now(),
    };
    Incoming {
        stamp,
        image: Err(CallError::Panicked),
    }
}

fn id(frame: Option<Incoming>) -> Option<u64> {
    frame.map(|frame| frame.stamp.id)
}

proptest! {
    /// What is taken is the newest that came, once; every other frame was counted as dropped.
    #[test]
    fn the_newest_frame_is_taken_and_the_others_are_counted(takes in vec(any::<bool>(), 1..200)) {
        let slot = Newest::default();
        let (mut newest, mut waiting, mut taken) = (0, None, 0);
        for take in takes {
            if take {
                assert_eq!(id(slot.take()), waiting.take().inspect(|_| taken += 1));
            } else {
                newest += 1;
                assert_eq!(slot.put(frame(newest)), waiting.replace(newest).is_some());
            }
            assert_eq!(slot.dropped() + taken + u64::from(waiting.is_some()), newest);
        }
        slot.close();
        let filled = tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(slot.filled());
        assert_eq!(filled, waiting.is_some(), "what came before the end is still answered");
    }
}

/// Reader and workers are different threads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_frame_is_older_than_one_before_and_the_last_is_never_missed() {
    const FRAMES: u64 = 20_000;
    let slot = Arc::new(Newest::default());
    let reader = tokio::spawn({
        let slot = Arc::clone(&slot);
        async move {
            for id in 1..=FRAMES {
                slot.put(frame(id));
                if id % 64 == 0 {
                    tokio::task::yield_now().await;
                }
            }
            slot.close();
        }
    });
    let (mut last, mut taken) = (0, 0);
    while slot.filled().await {
        let id = id(slot.take()).expect("only one takes");
        assert!(id > last, "{id} after {last}");
        last = id;
        taken += 1;
    }
    reader.await.unwrap();
    assert_eq!((last, taken + slot.dropped()), (FRAMES, FRAMES));
}
