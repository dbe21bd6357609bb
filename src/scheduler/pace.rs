//! The measured pace of a model, and the delay after which a rejected client should retry.

use std::time::{Duration, Instant};

/// The assumed cost of decoding and of inference until the first image has been measured.
const INITIAL_DECODE: Duration = Duration::from_millis(1);
const INITIAL_INFERENCE: Duration = Duration::from_millis(9);

/// How many times as long as the mean an image counts at most. One that is far heavier than usual
/// says little about the next; many of them still raise the mean as far as it takes.
const MAX_STEP: f64 = 4.0;

/// The longest delay that a rejected client is given.
const MAX_DELAY: Duration = Duration::from_secs(10);

/// Exponential means of what an image costs, in seconds of the whole machine.
pub(super) struct Pace {
    decode: f64,
    inference: f64,
    /// When the last client that was rejected has been told to retry.
    last_retry: Option<Instant>,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            decode: INITIAL_DECODE.as_secs_f64(),
            inference: INITIAL_INFERENCE.as_secs_f64(),
            last_retry: None,
        }
    }
}

impl Pace {
    /// Records that decoding an image kept `share` (0 to 1] of the machine busy for `busy`.
    pub fn record_decode(&mut self, busy: Duration, share: f64) {
        let cost = busy.as_secs_f64() * share;
        let most = MAX_STEP * self.decode.max(INITIAL_DECODE.as_secs_f64());
        update(&mut self.decode, cost.min(most));
    }

    /// Records that inferring `images` images kept `share` (0 to 1] of the machine busy for `busy`.
    pub fn record_inference(&mut self, images: usize, busy: Duration, share: f64) {
        let cost = busy.as_secs_f64() * share;
        update(&mut self.inference, cost / images as f64);
    }

    /// The cost of decoding an image, in seconds of the whole machine.
    pub fn decode_cost(&self) -> f64 {
        self.decode
    }

    /// The cost of inferring `images` images, in seconds of the whole machine.
    pub fn inference_cost(&self, images: usize) -> f64 {
        self.inference * images as f64
    }

    /// How many images are completed in `time`.
    pub fn images_in(&self, time: Duration) -> usize {
        (time.as_secs_f64() / (self.decode + self.inference).max(1e-6)) as usize
    }

    /// When the next client that is rejected should retry, while `waiting` images wait for their
    /// `share` (0 to 1] of the machine.
    ///
    /// At the earliest when the queue is empty. Successive clients are spaced one image apart, so
    /// that they return at the rate at which they can be served instead of all at once.
    pub fn retry_delay(&mut self, waiting: usize, share: f64) -> Duration {
        self.retry_delay_at(waiting, share, Instant::now())
    }

    fn retry_delay_at(&mut self, waiting: usize, share: f64, now: Instant) -> Duration {
        let image = Duration::from_secs_f64((self.decode + self.inference) / share);
        let queue_empty = now + image * u32::try_from(waiting).unwrap_or(u32::MAX);
        let retry = match self.last_retry {
            Some(last) => (last + image).max(queue_empty),
            None => queue_empty,
        };
        let retry = retry.min(now + MAX_DELAY);
        self.last_retry = Some(retry);

        // Whole milliseconds, rounded up, so that no client retries at once.
        Duration::from_millis((retry - now).as_millis() as u64 + 1)
    }
}

/// Moves an exponential mean a little towards a new value.
fn update(mean: &mut f64, value: f64) {
    *mean += (value - *mean) * 0.05;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_follows_the_measurements() {
        let mut pace = Pace::default();
        for _ in 0..200 {
            pace.record_decode(Duration::from_millis(8), 0.5);
            pace.record_inference(2, Duration::from_millis(64), 0.5);
        }
        assert_eq!(pace.images_in(Duration::from_millis(205)), 10);
    }

    #[test]
    fn a_few_heavy_images_leave_the_pace_as_it_is_and_many_change_it() {
        let mut pace = Pace::default();
        let mut record = |heavy_in: usize| {
            for i in 0..1000 {
                let heavy = i % heavy_in == 0;
                pace.record_decode(Duration::from_millis(if heavy { 2000 } else { 2 }), 0.5);
            }
            pace.images_in(Duration::from_secs(1))
        };
        let few = record(40);
        assert!((80..=100).contains(&few), "{few} images a second");
        let all = record(1);
        assert!(all <= 1, "{all} images a second");
    }

    #[test]
    fn rejected_clients_retry_one_after_the_other() {
        let mut pace = Pace::default();
        let now = Instant::now();
        let delays: Vec<_> = (0..3)
            .map(|_| pace.retry_delay_at(20, 1.0, now).as_millis())
            .collect();
        assert_eq!(delays, [201, 211, 221]);
        let later = pace
            .retry_delay_at(20, 1.0, now + Duration::from_millis(500))
            .as_millis();
        assert_eq!(later, 201, "a retry in the past is forgotten");
        let half = Pace::default().retry_delay_at(20, 0.5, now).as_millis();
        assert_eq!(half, 401, "half the machine takes twice as long");
    }

    #[test]
    fn the_delay_is_limited() {
        let mut pace = Pace::default();
        let now = Instant::now();
        let last = (0..5000).map(|_| pace.retry_delay_at(20, 1.0, now)).last();
        assert_eq!(last, Some(Duration::from_millis(10_001)));
    }
}
