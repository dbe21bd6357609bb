//! What the methods of the services share: the models, the state, and what is known of a call.

use std::sync::Arc;

use tokio::sync::{Semaphore, SemaphorePermit};
use tonic::{Code, Request};

use super::{arrival::Arrived, caller::client, record::Record, status::CallError};
use crate::{
    metrics::{Rejection, RequestGuard},
    registry::{Entry, Registry, Served},
    scheduler::ClientId,
    state::{NotReady, StateCell},
    telemetry::context::TraceId,
};

/// What every call of a service that does work needs.
pub(in crate::grpc) struct Context {
    pub registry: Arc<Registry>,
    pub state: StateCell,
    pub max_streams: usize,
    /// One permit for each stream that may still be opened.
    pub streams: Semaphore,
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

    /// The model of that name, if it and the server are ready.
    pub fn model(&self, name: &str, guard: &mut CallGuard) -> Result<Arc<Served>, CallError> {
        let entry = match self.registry.find(name) {
            Ok(entry) => entry,
            // A server that has not looked for its models yet does not know what there is.
            Err(unknown) => {
                return Err(self
                    .state
                    .get()
                    .admits()
                    .map_or_else(CallError::from, |()| unknown.into()));
            }
        };
        guard.model(&entry);
        let ready = self.state.get().admits().and_then(|()| self.newest(&entry));
        ready.map_err(|why| {
            entry.metrics.rejected(Rejection::NotReady);
            why.into()
        })
    }

    /// A place for one more stream.
    pub fn stream_permit(&self) -> Result<SemaphorePermit<'_>, CallError> {
        self.streams.try_acquire().map_err(|_| {
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
    /// There is none yet, or there won't be.
    pub fn newest(&self, entry: &Entry) -> Result<Arc<Served>, NotReady> {
        let missing = if entry.problem.is_some() {
            NotReady::ModelFailed
        } else {
            NotReady::Starting
        };
        entry.served.clone().ok_or(missing)
    }
}

/// What is known of a call besides its message.
#[derive(Clone)]
pub(in crate::grpc) struct Call {
    pub arrived: Arrived,
    pub client: ClientId,
    pub record: Arc<Record>,
}

impl Call {
    pub fn of<T>(request: &Request<T>) -> Self {
        let (caller, peer) = (request.extensions().get(), request.extensions().get());
        Self {
            arrived: Arrived::of(request),
            client: client(caller, peer),
            record: Record::of(request),
        }
    }

    /// Measures the call until it is answered.
    pub fn guard(&self) -> CallGuard {
        CallGuard {
            request: self.record.guard(),
            record: Arc::clone(&self.record),
        }
    }
}

/// Counts, times and records a call when it ends, also when its caller goes away.
pub(in crate::grpc) struct CallGuard {
    request: RequestGuard,
    record: Arc<Record>,
}

impl CallGuard {
    /// The model that it is for.
    pub fn model(&mut self, entry: &Entry) {
        self.request.model(&entry.metrics);
        self.record.model(&entry.name);
    }

    /// It is answered with `code`.
    pub fn finish(self, code: Code) {
        self.record.finish(code);
        self.request.finish(code);
    }

    pub fn trace_id(&self) -> TraceId {
        self.record.trace().context().trace
    }
}
