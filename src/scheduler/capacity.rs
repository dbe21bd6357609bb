//! How many single requests may wait for a model: few while its queue stands, more in a burst.
//!
//! A queue that has been empty a moment ago absorbs a burst, in which a request may wait as long as
//! its own deadline allows. One that has not is a sign of overload: waiting longer would help nobody,
//! so only what is answered soon is accepted. This is the distinction of controlled delay (Nichols
//! and Jacobson, "Controlling Queue Delay", 2012), made when a request comes instead of when it is
//! served, so that nothing is dropped that has been accepted.

use std::{
    num::NonZeroUsize,
    time::{Duration, Instant},
};

use super::{fair_queue::QueueLimits, pace::Pace};

/// How long after a queue was empty the calls of a burst begin.
const BURST: Duration = Duration::from_millis(500);
/// How long after that their images may arrive.
const ARRIVAL: Duration = Duration::from_secs(5);

/// How many single requests may wait for one model.
#[derive(Clone, Copy, Debug)]
pub enum Capacity {
    /// As many as take about 0.2 s, but at least 16; while other models are busy, this model's
    /// share of that.
    Usual {
        /// Maximum number of requests in a burst.
        burst: NonZeroUsize,
    },
    /// As many as are answered within this time at the measured pace; while other models are busy,
    /// this model's share of that.
    Within {
        /// The latency of accepted requests while the queue stands.
        target: Duration,
        /// Maximum number of requests in a burst.
        burst: NonZeroUsize,
    },
    /// A fixed number of requests, in a burst as well.
    Exactly(NonZeroUsize),
}

impl Default for Capacity {
    fn default() -> Self {
        Self::Usual { burst: Self::BURST }
    }
}

impl Capacity {
    /// The usual maximum number of requests in a burst.
    pub const BURST: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

    const USUAL_TIME: Duration = Duration::from_millis(200);
    const USUAL_MINIMUM: usize = 16;

    /// How many requests may wait in the standing queue of a model that works at `pace` with its
    /// `share` of the machine, and that has `ahead` images in progress.
    pub(super) fn standing(self, pace: &Pace, share: f64, ahead: usize) -> usize {
        let requests = match self {
            Self::Exactly(requests) => return requests.get(),
            Self::Usual { .. } => pace.images_in(Self::USUAL_TIME).max(Self::USUAL_MINIMUM),
            // The images in progress are answered before those that wait.
            Self::Within { target, .. } => pace.images_in(target).saturating_sub(ahead),
        };
        ((requests as f64 * share) as usize).max(1)
    }

    /// How many requests may wait in all, at any time.
    fn total(self, standing: usize) -> usize {
        match self {
            Self::Exactly(requests) => requests.get(),
            Self::Usual { burst } | Self::Within { burst, .. } => burst.get().max(standing),
        }
    }

    /// The limits for a request that meets a queue which was empty at `emptied`.
    pub(super) fn limits(
        self,
        queue: &QueueLoad<'_>,
        request: Arrival,
        emptied: Instant,
    ) -> QueueLimits {
        let standing = self.standing(queue.pace, queue.share, queue.ahead);
        let in_burst = !matches!(self, Self::Exactly(_)) && request.belongs_to_burst(emptied);
        let burst = match request.deadline {
            _ if !in_burst => 0,
            None => usize::MAX,
            Some(deadline) => {
                let left = deadline.saturating_duration_since(request.now);
                let answered = queue.pace.images_in(left.mul_f64(queue.share));
                answered.saturating_sub(queue.ahead)
            }
        };
        QueueLimits {
            standing,
            burst,
            total: self.total(standing),
        }
    }
}

/// What tells how fast a queue moves.
pub(super) struct QueueLoad<'a> {
    pub pace: &'a Pace,
    /// The queue's share of the machine, 0 to 1.
    pub share: f64,
    /// How many images are answered before those that wait.
    pub ahead: usize,
}

/// A request that comes to a queue.
#[derive(Clone, Copy)]
pub(super) struct Arrival {
    /// When its call began.
    pub called: Instant,
    pub deadline: Option<Instant>,
    pub now: Instant,
}

impl Arrival {
    fn belongs_to_burst(self, emptied: Instant) -> bool {
        self.called <= emptied + BURST && self.now <= emptied + BURST + ARRIVAL
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The limits of a request to an idle machine with a usual queue, so long after the queue was
    /// empty.
    fn limits(
        capacity: Capacity,
        called: Duration,
        arrives: Duration,
        wait: Option<Duration>,
    ) -> QueueLimits {
        let emptied = Instant::now();
        let now = emptied + arrives;
        let request = Arrival {
            called: emptied + called,
            deadline: wait.map(|wait| now + wait),
            now,
        };
        let queue = QueueLoad {
            pace: &Pace::default(),
            share: 0.5,
            ahead: 10,
        };
        capacity.limits(&queue, request, emptied)
    }

    #[test]
    fn a_standing_queue_follows_the_pace_and_the_share() {
        let mut pace = Pace::default();
        (0..300).for_each(|_| pace.record_inference(1, Duration::from_millis(18), 0.5));
        // 1 ms of decoding and 9 of inference an image.
        let standing = |capacity: Capacity, share| capacity.standing(&pace, share, 2);
        let usual = Capacity::default();
        assert_eq!((standing(usual, 1.0), standing(usual, 0.5)), (20, 10));

        let within = |millis, share| {
            let target = Duration::from_millis(millis);
            let burst = Capacity::BURST;
            standing(Capacity::Within { target, burst }, share)
        };
        assert_eq!((within(105, 1.0), within(105, 0.5)), (8, 4));
        assert_eq!(within(1, 1.0), 1);

        let three = NonZeroUsize::new(3).unwrap();
        assert_eq!(standing(Capacity::Exactly(three), 0.1), 3);
    }

    #[test]
    fn a_burst_may_wait_as_long_as_its_deadlines_allow() {
        let usual = Capacity::default();
        let [at_once, late] = [Duration::ZERO, BURST + Duration::from_millis(1)];
        let second = Some(Duration::from_secs(1));

        // 100 images a second, of which this model has half.
        let inside = limits(usual, at_once, late, second);
        assert_eq!(
            (inside.standing, inside.burst, inside.total),
            (10, 40, 1024)
        );
        assert_eq!(limits(usual, at_once, at_once, None).burst, usize::MAX);

        assert_eq!(limits(usual, late, late, second).burst, 0);
        let slowly_sent = late + ARRIVAL;
        assert_eq!(limits(usual, at_once, slowly_sent, second).burst, 0);
    }

    #[test]
    fn a_fixed_number_holds_for_bursts_too() {
        let fixed = Capacity::Exactly(NonZeroUsize::new(7).unwrap());
        let limits = limits(fixed, Duration::ZERO, Duration::ZERO, None);
        assert_eq!((limits.standing, limits.burst, limits.total), (7, 0, 7));
    }
}
