//! Measures events per second over the last few seconds.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// The time that a rate is averaged over.
const WINDOW: Duration = Duration::from_secs(5);

/// Events per second over the last `WINDOW`, without locks or a background thread.
///
/// Time is divided into slots, whose counters form a ring that is longer than the window.
#[derive(Debug)]
pub struct RateMeter {
    start: Instant,
    slots: [Slot; SLOTS],
}

/// The events in one slot of time.
#[derive(Debug, Default)]
struct Slot {
    /// The slot's number, counted from the start; 0 if it was never used.
    tick: AtomicU64,
    count: AtomicU64,
}

/// The length of one slot.
const SLOT: Duration = Duration::from_millis(100);
const SLOTS: usize = 64;

impl RateMeter {
    /// Creates a meter that starts at `now`.
    pub fn new(now: Instant) -> Self {
        Self {
            start: now,
            slots: std::array::from_fn(|_| Slot::default()),
        }
    }

    /// Adds events that happen now.
    pub fn add(&self, events: u64) {
        self.add_at(events, Instant::now());
    }

    /// The current rate, in events per second.
    pub fn rate(&self) -> f64 {
        self.rate_at(Instant::now())
    }

    fn tick(&self, now: Instant) -> u64 {
        1 + (now.saturating_duration_since(self.start).as_millis() / SLOT.as_millis()) as u64
    }

    fn add_at(&self, events: u64, now: Instant) {
        let tick = self.tick(now);
        let slot = &self.slots[tick as usize % SLOTS];
        if slot.tick.swap(tick, Relaxed) != tick {
            slot.count.store(0, Relaxed);
        }
        slot.count.fetch_add(events, Relaxed);
    }

    /// Averages over the complete slots of the window; the current one is left out.
    fn rate_at(&self, now: Instant) -> f64 {
        let tick = self.tick(now);
        let window = (WINDOW.as_millis() / SLOT.as_millis()) as u64;
        let window = window.min(tick - 1);
        if window == 0 {
            return 0.0;
        }

        let inside = |slot: &&Slot| (tick - window..tick).contains(&slot.tick.load(Relaxed));
        let events: u64 = self
            .slots
            .iter()
            .filter(inside)
            .map(|slot| slot.count.load(Relaxed))
            .sum();
        events as f64 / (SLOT * window as u32).as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_covers_the_window_and_falls_to_zero() {
        let start = Instant::now();
        let meter = RateMeter::new(start);
        for ms in (0..20_000).step_by(40) {
            meter.add_at(1, start + Duration::from_millis(ms));
        }
        let rate = |ms| meter.rate_at(start + Duration::from_millis(ms));
        assert!((rate(20_000) - 25.0).abs() < 0.5, "{}", rate(20_000));
        assert!((rate(22_500) - 12.5).abs() < 0.5, "{}", rate(22_500));
        assert_eq!(rate(26_000), 0.0);
    }

    #[test]
    fn a_young_meter_does_not_underrate() {
        let start = Instant::now();
        let meter = RateMeter::new(start);
        for ms in (0..1000).step_by(20) {
            meter.add_at(1, start + Duration::from_millis(ms));
        }
        assert!((meter.rate_at(start + Duration::from_secs(1)) - 50.0).abs() < 1.0);
        assert_eq!(RateMeter::new(start).rate_at(start), 0.0);
    }
}
