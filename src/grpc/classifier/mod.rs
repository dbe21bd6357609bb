//! The `Classifier` service as tonic calls it.

mod convert;
mod slot;
mod stream;

use std::sync::Arc;

use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use self::convert::Wanted;
use crate::{
    answer::softmax,
    grpc::{
        call::{
            answer,
            arrival::Arrived,
            context::{Call, CallGuard, Context},
            status::CallError,
        },
        stream::open,
    },
    proto::{
        ClassifyRequest, ClassifyResponse, ListModelsRequest, ListModelsResponse,
        StreamClassifyRequest, StreamClassifyResponse, classifier_server::Classifier,
    },
    scheduler::{Arrival, Job, JobError},
};

async fn classify(
    context: &Context,
    request: ClassifyRequest,
    call: Call,
    guard: &mut CallGuard,
) -> Result<ClassifyResponse, CallError> {
    let served = context.model(&request.model, guard)?;
    let wanted = Wanted::new(request.top_k, request.min_probability)?;
    let image = convert::source(request.image)?;
    served.metrics.received(image.bytes());
    call.record.received(image.bytes());
    let Call {
        arrived: Arrived {
            at,
            deadline,
            priority,
        },
        client,
        record,
    } = call;
    let span = Some(record.trace().context());
    let fetch = Box::new(move || {
        Some(Arrival {
            image,
            at,
            mirrored: false,
        })
    });
    let outcome = served.queue.submit(Job {
        client,
        priority,
        deadline,
        counts: true,
        fetch,
        span,
    })?;
    // A sender that is dropped without an answer belongs to a scheduler that has stopped.
    let reply = outcome.await.unwrap_or(Err(JobError::Abandoned))?;
    record.classified(&reply);
    Ok(ClassifyResponse {
        model: served.name.clone(),
        model_version: served.version.clone(),
        classifications: wanted.classifications(&softmax(&reply.logits), &served),
        timing: Some(convert::timing(reply.stages, at)),
    })
}

/// The service; streams keep its context beyond the call that opened them.
pub(in crate::grpc) struct ClassifierService(pub Arc<Context>);

#[tonic::async_trait]
impl Classifier for ClassifierService {
    type StreamClassifyStream = ReceiverStream<Result<StreamClassifyResponse, Status>>;

    async fn classify(
        &self,
        request: Request<ClassifyRequest>,
    ) -> Result<Response<ClassifyResponse>, Status> {
        let call = Call::of(&request);
        let mut guard = call.guard();
        let result = classify(&self.0, request.into_inner(), call, &mut guard).await;
        answer(guard, result)
    }

    async fn stream_classify(
        &self,
        request: Request<Streaming<StreamClassifyRequest>>,
    ) -> Result<Response<Self::StreamClassifyStream>, Status> {
        let call = Call::of(&request);
        let guard = call.guard();
        let run = |answers| {
            stream::run(
                Arc::clone(&self.0),
                request.into_inner(),
                call,
                guard,
                answers,
            )
        };
        Ok(open(&self.0.state, run))
    }

    async fn list_models(
        &self,
        request: Request<ListModelsRequest>,
    ) -> Result<Response<ListModelsResponse>, Status> {
        let call = Call::of(&request);
        let guard = call.guard();
        let models = self.0.registry.list().iter().map(convert::model).collect();
        answer(guard, Ok(ListModelsResponse { models }))
    }
}
