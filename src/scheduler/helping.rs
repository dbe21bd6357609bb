//! Cores that have nothing to do help others to decode: an image that is alone on the machine is
//! decoded by all of them.
//!
//! A decoder calls for help, and a worker that finds no other work answers with one task of it, a few
//! milliseconds at most, before it looks for work of its own again.

use std::{sync::Arc, time::Duration};

use super::{
    Failure, Shared,
    model_queue::ModelQueue,
    running::{Loss, RunId},
    state::SchedulerState,
};
use crate::{
    image::{Assist, Helpers},
    metrics::{self, Restart},
};

/// The core workers of a scheduler, as decoders know them.
pub(super) struct IdleCores(pub Arc<Shared>);

impl std::fmt::Debug for IdleCores {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("IdleCores")
    }
}

impl Helpers for IdleCores {
    fn idle(&self) -> usize {
        let Self(shared) = self;
        shared.lock().idle_cores(shared.config.threads.get())
    }

    fn call(&self, work: Arc<dyn Assist>) -> bool {
        let Self(shared) = self;
        let mut state = shared.lock();
        // As many calls may wait as there are cores to answer them.
        let is_taken = state.calls.len() < state.idle_cores(shared.config.threads.get());
        if is_taken {
            state.calls.push_back(work);
        }
        drop(state);
        if is_taken {
            shared.work_available.notify_one();
        }
        is_taken
    }
}

/// Help that a worker gives.
pub(super) struct Helping {
    /// For how long it has been seen in progress.
    pub watched: Duration,
}

impl SchedulerState {
    /// How many of the cores have no work but to help others.
    fn idle_cores(&self, cores: usize) -> usize {
        let has_work = self.exclusive || !self.queues.values().all(ModelQueue::leaves_cores_idle);
        if has_work {
            return 0;
        }
        cores.saturating_sub(self.active)
    }

    /// Takes a call for help and registers it as work in progress under the returned id.
    pub fn answer_call(&mut self) -> Option<(RunId, Arc<dyn Assist>)> {
        let work = self.calls.pop_front()?;
        let run = self.next_run_id();
        let watched = Duration::ZERO;
        self.helping.insert(run, Helping { watched });
        Some((run, work))
    }

    /// A worker has helped; false if it has been given up meanwhile.
    pub fn end_helping(&mut self, run: RunId) -> bool {
        self.helping.remove(&run).is_some()
    }
}

impl Shared {
    /// Gives up a worker that will not come back from helping. False if it has ended.
    pub fn give_up_helping(&self, run: RunId, loss: Loss) -> bool {
        let mut state = self.lock();
        if !state.end_helping(run) {
            return false;
        }
        if loss != Loss::Panicked {
            state.threads -= 1;
            state.lost += 1;
            state.missing += 1;
        }
        let lost = state.lost;
        drop(state);
        let (reason, happened) = match loss {
            Loss::Stopping => return true,
            Loss::Panicked => (Restart::Panic, "panicked, and goes on"),
            Loss::Hangs(_) => (Restart::Hang, "hung; it is left behind and replaced"),
        };
        metrics::worker_restarted(reason);
        tracing::error!("a worker thread that helped to decode an image {happened}");
        if lost >= self.max_lost() {
            self.fail(Failure::Hanging { threads: lost });
        }
        true
    }
}
