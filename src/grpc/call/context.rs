//! What the methods of all services share: the models, the server's state and the open streams.

use std::sync::Arc;

use tokio::sync::{Semaphore, SemaphorePermit};

use super::{record::CallRecord, status::CallError};
use crate::{
    metrics::Rejection,
    registry::{Entry, Registry, Served},
    state::{NotReady, StateCell},
};

/// What every call of a classifying service needs.
pub(in crate::grpc) struct Context {
    pub registry: Arc<Registry>,
    pub state: StateCell,
    max_streams: usize,
    /// One permit for each stream that may still be opened.
    streams: Semaphore,
}

impl Context {
    pub fn new(registry: Arc<Registry>, state: StateCell, max_streams: usize) -> Self {
        Self {
            registry,
            state,
            max_streams,
            streams: Semaphore::new(max_streams),
        }
    }

    /// The model with that name, if it and the server are ready. The call is recorded as the
    /// model's.
    pub fn model(&self, name: &str, record: &CallRecord) -> Result<Arc<Served>, CallError> {
        let entry = match self.registry.find(name) {
            Ok(entry) => entry,
            Err(unknown) => {
                // Before the first scan of the models, report "starting" rather than "unknown".
                self.state.get().admits()?;
                return Err(unknown.into());
            }
        };
        record.model(&entry.name, &entry.metrics);

        let ready = match self.state.get().admits() {
            // What is wrong with this model says more than that none is served.
            Ok(()) | Err(NotReady::NoModel(_)) => self.newest(&entry),
            Err(error) => Err(error.into()),
        };
        ready.inspect_err(|_| entry.metrics.rejected(Rejection::NotReady))
    }

    /// Counts one more open stream until the permit is dropped.
    pub fn stream_permit(&self) -> Result<SemaphorePermit<'_>, CallError> {
        self.streams.try_acquire().map_err(|_| {
            self.registry.count_rejection(Rejection::StreamLimit);
            CallError::TooManyStreams {
                open: self.max_streams,
            }
        })
    }

    /// The version of a model that answers now.
    ///
    /// # Errors
    /// When no version has been loaded yet, or loading it failed.
    pub fn newest(&self, entry: &Entry) -> Result<Arc<Served>, CallError> {
        match (&entry.served, &entry.problem) {
            (Some(served), _) => Ok(Arc::clone(served)),
            (None, Some(problem)) => Err(CallError::ModelFailed {
                name: entry.name.clone(),
                reason: problem.to_string(),
            }),
            (None, None) => Err(NotReady::Starting.into()),
        }
    }
}
