//! Watches the worker threads: replaces those that hang, and notices when nothing moves although
//! work waits.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Shared,
    running::{Loss, RunId, Stage},
    sync,
};
use crate::sync::lock;

/// A step that comes later than it should by this factor was held up with the whole process, for
/// example while a debugger had stopped it.
const LATE: u32 = 2;

/// How long work may take, and nothing may move.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// For decoding an image.
    pub decode: Duration,
    /// For a call of an engine.
    pub inference: Duration,
    /// For nothing to move while work waits.
    pub stall: Duration,
}

impl Limits {
    /// How often the threads are looked at.
    fn interval(&self) -> Duration {
        let shortest = self.decode.min(self.inference).min(self.stall);
        (shortest / 8).clamp(Duration::from_millis(5), Duration::from_secs(1))
    }
}

/// What the watchdog reports to other threads. It has a lock of its own, because a thread may hang
/// while it holds the scheduler's.
#[derive(Debug)]
pub(super) struct Pulse {
    /// When the watchdog last looked.
    beat: Instant,
    /// For how long nothing has moved, where that is too long.
    stalled: Option<Duration>,
}

impl Default for Pulse {
    fn default() -> Self {
        Self {
            beat: Instant::now(),
            stalled: None,
        }
    }
}

impl Pulse {
    /// For how long work has waited without anything moving, if that is longer than it may be.
    pub fn stalled(&self, limits: Limits, now: Instant) -> Option<Duration> {
        let silent = now.saturating_duration_since(self.beat);
        self.stalled
            .or_else(|| Some(silent).filter(|silent| *silent > limits.stall + limits.interval()))
    }
}

pub(super) struct Watchdog {
    shared: Arc<Shared>,
    limits: Limits,
    last: Instant,
    /// The number of moves at the last step, and whether work waited then.
    moves: u64,
    waited: bool,
    still: Duration,
}

impl Watchdog {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self {
            limits: shared.limits(),
            last: Instant::now(),
            moves: 0,
            waited: false,
            still: Duration::ZERO,
            shared,
        }
    }

    pub fn run(mut self) {
        let interval = self.limits.interval();
        loop {
            let state = self.shared.lock();
            if state.stopping {
                return;
            }
            let state = sync::wait(
                &self.shared.state,
                state,
                &self.shared.stop_watching,
                Some(interval),
            );
            drop(state);
            self.step(Instant::now());
        }
    }

    /// Looks at all threads once.
    pub fn step(&mut self, now: Instant) {
        let interval = self.limits.interval();
        let passed = now
            .saturating_duration_since(self.last)
            .min(interval * LATE);
        self.last = now;

        for (run, after) in self.hanging(now, passed) {
            self.shared.give_up(run, Loss::Hangs(after));
        }
        self.shared.replace_missing();
        self.note_stall(now, passed);
    }

    /// The work that has taken longer than it may, and for how long it has been watched.
    fn hanging(&self, now: Instant, passed: Duration) -> Vec<(RunId, Duration)> {
        let mut state = self.shared.lock();
        let mut hanging = Vec::new();
        for (run, running) in &mut state.running {
            running.watched += passed.min(now.saturating_duration_since(running.since));
            let limit = match running.stage {
                Stage::Decode(_) => self.limits.decode,
                Stage::Infer { .. } => self.limits.inference,
            };
            if running.watched > limit {
                hanging.push((*run, running.watched));
            }
        }
        for (run, helping) in &mut state.helping {
            helping.watched += passed;
            if helping.watched > self.limits.decode {
                hanging.push((*run, helping.watched));
            }
        }
        hanging
    }

    fn note_stall(&mut self, now: Instant, passed: Duration) {
        let state = self.shared.lock();
        let waits = state.queues.values().any(|queue| !queue.is_empty());
        let moved = state.moves != self.moves;
        self.moves = state.moves;
        drop(state);

        self.still = if waits && self.waited && !moved {
            self.still + passed
        } else {
            Duration::ZERO
        };
        self.waited = waits;

        let stalled = Some(self.still).filter(|still| *still >= self.limits.stall);
        let mut pulse = lock(&self.shared.pulse);
        pulse.beat = now;
        pulse.stalled = stalled;
    }
}
