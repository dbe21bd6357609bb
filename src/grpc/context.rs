//! What the methods of the `Classifier` service share: the models, the state, and what is known of a call.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use tokio::sync::Semaphore;
use tonic::Request;

use super::{arrival::Arrived, status::CallError};
use crate::{
    metrics::{Method, Rejection, RequestGuard},
    registry::{Registry, Served},
    scheduler::{ClientId, Scheduler},
    state::{NotReady, StateCell},
};

/// What every call of the `Classifier` service needs.
pub(super) struct Context {
    pub registry: Arc<Registry>,
    pub state: StateCell,
    pub max_streams: usize,
    /// One permit for each stream that may still be opened.
    pub streams: Semaphore,
}

impl Context {
    pub fn new(registry: Arc<Registry>, state: StateCell, max_streams: usize) -> Self {
        Self { registry, state, max_streams, streams: Semaphore::new(max_streams) }
    }

    /// The model of that name and what runs it, if the server is ready.
    pub fn model(&self, name: &str, guard: &mut RequestGuard) -> Result<(&Arc<Served>, &Scheduler), CallError> {
        let served = self.registry.find(name)?;
        guard.model(&served.metrics);
        let ready = self.state.get().ready().and_then(|()| served.running().ok_or(NotReady::Starting));
        let running = ready.inspect_err(|_| served.metrics.rejected(Rejection::NotReady))?;
        Ok((served, &running.scheduler))
    }
}

/// What is known of a call besides its message.
#[derive(Clone, Copy)]
pub(super) struct Call {
    pub arrived: Arrived,
    pub client: ClientId,
}

impl Call {
    pub fn of<T>(request: &Request<T>) -> Self {
        let mut hasher = DefaultHasher::new();
        request.remote_addr().hash(&mut hasher);
        Self { arrived: Arrived::of(request), client: ClientId(hasher.finish()) }
    }

    pub fn guard(&self, method: Method) -> RequestGuard {
        RequestGuard::new(method, self.arrived.at, self.arrived.deadline)
    }
}
