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
    registry::{Registry, Running, Served},
    scheduler::ClientId,
    state::StateCell,
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

    /// The model of that name, if the server is ready to run it.
    pub fn model(&self, name: &str, guard: &mut RequestGuard) -> Result<&Arc<Served>, CallError> {
        let served = self.registry.find(name)?;
        guard.model(&served.metrics);
        self.state.get().ready().inspect_err(|_| served.metrics.rejected(Rejection::NotReady))?;
        Ok(served)
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

/// What runs a model of a server that is ready.
pub(super) fn running(served: &Served) -> &Running {
    served.running().expect("the state becomes Ready after every model has been started")
}
