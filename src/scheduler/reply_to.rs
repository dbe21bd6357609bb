//! Where the outcome of a crop goes: to the caller, or to the other crops of the same image first.

use std::sync::{Arc, Mutex};

use tokio::sync::oneshot;

use super::{JobError, Outcome, Output, Reply};
use crate::sync::lock;

/// Takes the outcome of one crop. Dropping it without one abandons the whole image.
pub(super) enum ReplyTo {
    /// The image is one crop.
    Caller(oneshot::Sender<Outcome>),
    /// It is one of several.
    Others {
        index: usize,
        gathered: Arc<Mutex<Gathered>>,
    },
}

/// What has come in of an image's crops.
pub(super) struct Gathered {
    /// `None` once the caller has been answered.
    caller: Option<oneshot::Sender<Outcome>>,
    /// Of the crops in their order; `None` while one is missing.
    outputs: Vec<Option<Output>>,
    /// The reply that took longest, without its outputs.
    slowest: Option<Reply>,
}

impl ReplyTo {
    /// One for each of the crops of an image.
    pub fn split(caller: oneshot::Sender<Outcome>, crops: usize) -> Vec<Self> {
        if crops == 1 {
            return vec![Self::Caller(caller)];
        }
        let gathered = Arc::new(Mutex::new(Gathered {
            caller: Some(caller),
            outputs: vec![None; crops],
            slowest: None,
        }));
        (0..crops)
            .map(|index| Self::Others {
                index,
                gathered: Arc::clone(&gathered),
            })
            .collect()
    }

    /// Whether nobody waits for it any more: the caller has gone, or another crop failed.
    pub fn is_closed(&self) -> bool {
        match self {
            Self::Caller(caller) => caller.is_closed(),
            Self::Others { gathered, .. } => {
                let caller = &lock(gathered).caller;
                caller.as_ref().is_none_or(oneshot::Sender::is_closed)
            }
        }
    }

    /// Whether this crop speaks for its image, where images are counted rather than crops.
    pub fn is_first(&self) -> bool {
        match self {
            Self::Caller(_) => true,
            Self::Others { index, .. } => *index == 0,
        }
    }

    /// Passes a crop's outcome on. The image has the outcome of the first crop that fails.
    pub fn send(self, outcome: Outcome) {
        let (index, gathered) = match self {
            Self::Caller(caller) => {
                // The caller may have gone.
                let _ = caller.send(outcome);
                return;
            }
            Self::Others { index, gathered } => (index, gathered),
        };
        let mut gathered = lock(&gathered);
        let answer = match outcome {
            Ok(reply) => gathered.add(index, reply).map(Ok),
            Err(error) => Some(Err(error)),
        };
        if let Some(answer) = answer
            && let Some(caller) = gathered.caller.take()
        {
            let _ = caller.send(answer);
        }
    }

    /// Reports an error.
    pub fn fail(self, error: JobError) {
        self.send(Err(error));
    }
}

impl Gathered {
    /// Adds a crop's output; returns the image's reply once it is the last one.
    fn add(&mut self, index: usize, mut reply: Reply) -> Option<Reply> {
        self.outputs[index] = reply.outputs.pop();
        let ends = |reply: &Reply| reply.timeline.inferred + reply.stages.inference;
        if self
            .slowest
            .as_ref()
            .is_none_or(|slowest| ends(slowest) < ends(&reply))
        {
            self.slowest = Some(reply);
        }
        if self.outputs.iter().any(Option::is_none) {
            return None;
        }
        let outputs = self.outputs.drain(..).flatten().collect();
        Some(Reply {
            outputs,
            ..self.slowest.take()?
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::{metrics::statistics::Stages, scheduler::Timeline};

    fn reply(logit: f32, inference: Duration) -> Reply {
        let now = Instant::now();
        Reply {
            outputs: vec![Output {
                logits: vec![logit],
                embedding: None,
            }],
            stages: Stages {
                inference,
                ..Stages::default()
            },
            timeline: Timeline {
                decoded: now,
                inferred: now,
                batch: 1,
                span: None,
            },
        }
    }

    #[test]
    fn the_caller_gets_all_crops_in_their_order_once_the_last_is_there() {
        let (caller, mut outcome) = oneshot::channel();
        let mut crops = ReplyTo::split(caller, 3);
        assert_eq!(crops.iter().filter(|crop| crop.is_first()).count(), 1);
        for (crop, (logit, millis)) in [(2.0, 1), (1.0, 900), (0.0, 2)].into_iter().enumerate() {
            assert!(outcome.try_recv().is_err(), "{crop}");
            let last = crops.pop().unwrap();
            last.send(Ok(reply(logit, Duration::from_millis(millis))));
        }
        let reply = outcome.try_recv().unwrap().unwrap();
        let logits: Vec<f32> = reply.outputs.iter().map(|crop| crop.logits[0]).collect();
        assert_eq!(logits, [0.0, 1.0, 2.0]);
        assert_eq!(reply.stages.inference, Duration::from_millis(900));
    }

    #[test]
    fn the_first_crop_that_fails_ends_the_wait_for_the_others() {
        let (caller, mut outcome) = oneshot::channel();
        let mut crops = ReplyTo::split(caller, 3);
        crops.remove(1).fail(JobError::DeadlineExceeded);
        assert!(matches!(
            outcome.try_recv().unwrap(),
            Err(JobError::DeadlineExceeded)
        ));
        assert!(crops.iter().all(ReplyTo::is_closed));
        crops
            .into_iter()
            .for_each(|crop| crop.send(Ok(reply(1.0, Duration::ZERO))));
    }

    #[test]
    fn crops_that_are_dropped_abandon_the_image() {
        let (caller, outcome) = oneshot::channel();
        let mut crops = ReplyTo::split(caller, 2);
        crops.remove(0).send(Ok(reply(1.0, Duration::ZERO)));
        drop(crops);
        assert!(outcome.blocking_recv().is_err());
    }
}
