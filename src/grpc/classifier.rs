//! The `Classifier` service.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::{
    arrival::Arrived,
    convert::{self, Wanted},
    status::CallError,
    stream,
};
use crate::{
    answer::softmax,
    metrics::{Method, Rejection, RequestGuard},
    proto::{
        ClassifyRequest, ClassifyResponse, ListModelsRequest, ListModelsResponse, StreamClassifyRequest,
        StreamClassifyResponse, classifier_server::Classifier,
    },
    registry::{Registry, Running, Served},
    scheduler::{Arrival, ClientId, Job, JobError},
    state::StateCell,
};

pub(super) struct ClassifierService {
    registry: Arc<Registry>,
    pub state: StateCell,
    pub max_streams: usize,
    /// One permit for each stream that may still be opened.
    pub streams: Semaphore,
}

impl ClassifierService {
    pub fn new(registry: Arc<Registry>, state: StateCell, max_streams: usize) -> Self {
        Self {
            registry,
            state,
            max_streams,
            streams: Semaphore::new(max_streams),
        }
    }

    /// The model of that name, if the server is ready to run it.
    pub fn model(&self, name: &str, guard: &mut RequestGuard) -> Result<&Arc<Served>, CallError> {
        let served = self.registry.find(name)?;
        guard.model(&served.metrics);
        self.state
            .get()
            .ready()
            .inspect_err(|_| served.metrics.rejected(Rejection::NotReady))?;
        Ok(served)
    }

    async fn classify(
        &self,
        request: ClassifyRequest,
        call: Call,
        guard: &mut RequestGuard,
    ) -> Result<ClassifyResponse, CallError> {
        let served = self.model(&request.model, guard)?;
        let wanted = Wanted::new(request.top_k, request.min_probability)?;
        let image = convert::source(request.image)?;
        let Call {
            arrived: Arrived { at, deadline },
            client,
        } = call;
        let fetch = Box::new(move || Some(Arrival { image, at }));
        let outcome = running(served).scheduler.submit(Job {
            client,
            deadline,
            counts: true,
            fetch,
        })?;
        // A sender that is dropped without an answer belongs to a scheduler that has stopped.
        let reply = outcome.await.unwrap_or(Err(JobError::Abandoned))?;
        Ok(ClassifyResponse {
            model: served.name.clone(),
            model_version: served.version.clone(),
            classifications: wanted.classifications(&softmax(&reply.logits), served),
            timing: Some(convert::timing(reply.stages, at)),
        })
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
        Self {
            arrived: Arrived::of(request),
            client: ClientId(hasher.finish()),
        }
    }

    pub fn guard(&self, method: Method) -> RequestGuard {
        RequestGuard::new(method, self.arrived.at, self.arrived.deadline)
    }
}

/// What runs a model of a server that is ready.
pub(super) fn running(served: &Served) -> &Running {
    served
        .running()
        .expect("the state becomes Ready after every model has been started")
}

/// Ends the request's measurement and makes its answer.
fn answer<T>(guard: RequestGuard, result: Result<T, CallError>) -> Result<Response<T>, Status> {
    guard.finish(result.as_ref().err().map_or(Code::Ok, CallError::code));
    result.map(Response::new).map_err(Status::from)
}

/// The service as tonic calls it; streams outlive the call that opened them.
pub(super) struct Shared(pub Arc<ClassifierService>);

#[tonic::async_trait]
impl Classifier for Shared {
    type StreamClassifyStream = ReceiverStream<Result<StreamClassifyResponse, Status>>;

    async fn classify(&self, request: Request<ClassifyRequest>) -> Result<Response<ClassifyResponse>, Status> {
        let call = Call::of(&request);
        let mut guard = call.guard(Method::Classify);
        let result = self.0.classify(request.into_inner(), call, &mut guard).await;
        answer(guard, result)
    }

    async fn stream_classify(
        &self,
        request: Request<Streaming<StreamClassifyRequest>>,
    ) -> Result<Response<Self::StreamClassifyStream>, Status> {
        let call = Call::of(&request);
        let guard = call.guard(Method::StreamClassify);
        // The answer's headers go out at once: a caller may wait for them before it sends the config.
        let (answers, receiver) = mpsc::channel(1);
        tokio::spawn(stream::run(
            Arc::clone(&self.0),
            request.into_inner(),
            call,
            guard,
            answers,
        ));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn list_models(&self, request: Request<ListModelsRequest>) -> Result<Response<ListModelsResponse>, Status> {
        let guard = Call::of(&request).guard(Method::ListModels);
        let models = self.0.registry.iter().map(|served| convert::model(served)).collect();
        answer(guard, Ok(ListModelsResponse { models }))
    }
}
