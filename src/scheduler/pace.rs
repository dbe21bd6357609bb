//! How fast images are worked off, and when a refused client should come again.

use std::time::{Duration, Instant};

/// What is assumed of decoding and inference before the first image is done.
const FIRST_GUESS: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(9)];

/// No client is sent away for longer than this.
const LONGEST_DELAY: Duration = Duration::from_secs(10);

/// A running mean of the time an image costs, all cores together.
pub(super) struct Pace {
    decode: f64,
    inference: f64,
    /// Until when places are promised to clients that were refused.
    promised: Option<Instant>,
}

impl Default for Pace {
    fn default() -> Self {
        let [decode, inference] = FIRST_GUESS.map(|guess| guess.as_secs_f64());
        Self {
            decode,
            inference,
            promised: None,
        }
    }
}

impl Pace {
    /// Takes in that decoding an image kept `share` (0 to 1] of the machine busy for `busy`.
    pub fn record_decode(&mut self, busy: Duration, share: f64) {
        follow(&mut self.decode, busy.as_secs_f64() * share);
    }

    /// Takes in that inferring `images` images kept `share` (0 to 1] of the machine busy for
    /// `busy`.
    pub fn record_inference(&mut self, images: usize, busy: Duration, share: f64) {
        follow(
            &mut self.inference,
            busy.as_secs_f64() * share / images as f64,
        );
    }

    /// Seconds of the whole machine that decoding an image takes.
    pub fn decode(&self) -> f64 {
        self.decode
    }

    /// Seconds of the whole machine that inferring `images` images takes.
    pub fn inference(&self, images: usize) -> f64 {
        self.inference * images as f64
    }

    /// How many images are worked off in `time`.
    pub fn images_in(&self, time: Duration) -> usize {
        (time.as_secs_f64() / (self.decode + self.inference).max(1e-6)) as usize
    }

    /// When the next client that is refused should try again, while `waiting` images wait for their
    /// `share` (0 to 1] of the machine.
    ///
    /// Not before the queue has been worked off, and each refused client one image later than the
    /// one before, so that they come back at the rate at which they can be served instead of all at
    /// once.
    pub fn next_place(&mut self, waiting: usize, share: f64) -> Duration {
        self.next_place_at(waiting, share, Instant::now())
    }

    fn next_place_at(&mut self, waiting: usize, share: f64, now: Instant) -> Duration {
        let image = Duration::from_secs_f64((self.decode + self.inference) / share);
        let worked_off = now + image * u32::try_from(waiting).unwrap_or(u32::MAX);
        let place = self
            .promised
            .map_or(worked_off, |promised| (promised + image).max(worked_off));
        let place = place.min(now + LONGEST_DELAY);
        self.promised = Some(place);
        // Whole milliseconds, rounded up, so that no client comes back at once.
        Duration::from_millis((place - now).as_millis() as u64 + 1)
    }
}

/// Moves an exponential mean a little towards a new value.
fn follow(mean: &mut f64, value: f64) {
    *mean += (value - *mean) * 0.05;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_follows_what_is_measured() {
        let mut pace = Pace::default();
        for _ in 0..200 {
            pace.record_decode(Duration::from_millis(8), 0.5);
            pace.record_inference(2, Duration::from_millis(64), 0.5);
        }
        assert_eq!(pace.images_in(Duration::from_millis(205)), 10);
    }

    #[test]
    fn refused_clients_come_back_one_after_the_other() {
        let mut pace = Pace::default();
        let now = Instant::now();
        let delays: Vec<_> = (0..3)
            .map(|_| pace.next_place_at(20, 1.0, now).as_millis())
            .collect();
        assert_eq!(delays, [201, 211, 221]);
        let later = pace
            .next_place_at(20, 1.0, now + Duration::from_millis(500))
            .as_millis();
        assert_eq!(later, 201, "promises that have passed are forgotten");
        let half = Pace::default().next_place_at(20, 0.5, now).as_millis();
        assert_eq!(half, 401, "half the machine takes twice as long");
    }

    #[test]
    fn nobody_is_sent_away_for_ever() {
        let mut pace = Pace::default();
        let now = Instant::now();
        let last = (0..5000).map(|_| pace.next_place_at(20, 1.0, now)).last();
        assert_eq!(last, Some(Duration::from_millis(10_001)));
    }
}
