//! What the methods of all services share: the models, the server's state and the open streams.

use std::sync::Arc;

use super::{
    places::{Holder, NoPlace, Place, Places, Share},
    record::CallRecord,
    status::CallError,
};
use crate::{
    metrics::Rejection,
    registry::{Entry, Registry, Served},
    state::{NotReady, StateCell},
};

/// What every call of a classifying service needs.
pub(in crate::grpc) struct Context {
    pub registry: Arc<Registry>,
    pub state: StateCell,
    streams: Arc<Places>,
}

impl Context {
    /// At most `max_streams` streams are open at once, and at most this `share` of them for one
    /// caller.
    pub fn new(
        registry: Arc<Registry>,
        state: StateCell,
        max_streams: usize,
        share: Share,
    ) -> Self {
        Self {
            registry,
            state,
            streams: Places::new(max_streams, share),
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

    /// Counts one more open stream until the returned place is dropped.
    pub fn stream_place(&self, holder: Option<Holder>) -> Result<Place, CallError> {
        self.streams.take(holder).map_err(|none| {
            let (reason, error) = match none {
                NoPlace::Taken { limit } => (
                    Rejection::StreamLimit,
                    CallError::TooManyStreams { open: limit },
                ),
                NoPlace::Share { held, limit } => (
                    Rejection::ClientLimit,
                    CallError::ClientLimit {
                        held,
                        limit,
                        what: "streams",
                    },
                ),
            };
            // Which model the stream is for is not known yet.
            self.registry.count_rejection(reason);
            error
        })
    }

    /// The version of a model that answers now.
    ///
    /// # Errors
    /// When no version has been loaded yet, loading it failed, or it was unloaded.
    pub fn newest(&self, entry: &Entry) -> Result<Arc<Served>, CallError> {
        match (&entry.served, &entry.problem) {
            (Some(served), _) => Ok(Arc::clone(served)),
            (None, Some(problem)) => Err(CallError::ModelFailed {
                name: entry.name.clone(),
                reason: problem.to_string(),
            }),
            (None, None) if entry.unloaded => Err(CallError::Unloaded(entry.name.clone())),
            (None, None) => Err(NotReady::Starting.into()),
        }
    }
}
