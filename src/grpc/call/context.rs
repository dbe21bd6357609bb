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

        let ready = self.state.get().admits().and_then(|()| self.newest(&entry));
        ready.map_err(|error| {
            entry.metrics.rejected(Rejection::NotReady);
            error.into()
        })
    }

    /// Counts one more open stream until the permit is dropped.
    pub fn stream_permit(&self) -> Result<SemaphorePermit<'_>, CallError> {
        self.streams.try_acquire().map_err(|_| {
            // Which model the stream is for is not known yet.
            if let Ok(default) = self.registry.find("") {
                default.metrics.rejected(Rejection::StreamLimit);
            }
            CallError::TooManyStreams {
                open: self.max_streams,
            }
        })
    }

    /// The version of a model that answers now.
    ///
    /// # Errors
    /// When no version has been loaded yet, or loading it failed.
    pub fn newest(&self, entry: &Entry) -> Result<Arc<Served>, NotReady> {
        entry.served.clone().ok_or(if entry.problem.is_some() {
            NotReady::ModelFailed
        } else {
            NotReady::Starting
        })
    }
}
