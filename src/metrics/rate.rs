//! Events a second over the last few seconds.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// Images a second are counted over this time.
const FPS_WINDOW: Duration = Duration::from_secs(5);

/// Events a second over the last few seconds, without a thread that ticks.
#[derive(Debug)]
pub struct RateMeter {
    start: Instant,
    slots: [Slot; SLOTS],
}

/// What happened in one [`SLOT`] of time.
#[derive(Debug, Default)]
struct Slot {
    /// Which slot of time, counted from the start; 0 = never used.
    tick: AtomicU64,
    count: AtomicU64,
}

const SLOT: Duration = Duration::from_millis(100);
const SLOTS: usize = 64;

impl RateMeter {
    /// A meter that starts now.
    pub fn new(now: Instant) -> Self {
        Self {
            start: now,
            slots: std::array::from_fn(|_| Slot::default()),
        }
    }

    /// Takes in that `events` things happened.
    pub fn add(&self, events: u64) {
        self.add_at(events, Instant::now());
    }

    /// Events a second.
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

    /// The whole slots of the window before now; the slot that is still filling is left out.
    fn rate_at(&self, now: Instant) -> f64 {
        let tick = self.tick(now);
        let window = (FPS_WINDOW.as_millis() / SLOT.as_millis()) as u64;
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
    fn the_rate_is_taken_over_the_last_seconds_and_falls_to_zero() {
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
