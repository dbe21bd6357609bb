//! The `Classifier` service: single images, streams of frames, and the list of models.

mod answers;
mod batch;
mod convert;
mod slot;
mod stream;

use std::sync::Arc;

use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

pub(in crate::grpc) use self::answers::{Classes, EmbeddingForm, gives_embeddings};
use self::answers::{Options, Wanted};
use super::{
    call::{Call, context::Context, status::CallError},
    stream::open,
};
use crate::{
    metrics::statistics::RequestKind,
    proto::{
        Classifications, ClassifyBatchRequest, ClassifyBatchResponse, ClassifyRequest,
        ClassifyResponse, ListModelsRequest, ListModelsResponse, StreamClassifyRequest,
        StreamClassifyResponse, classifier_server::Classifier,
    },
    scheduler::{InputImage, Job, JobError},
};

/// The service as tonic calls it. Streams keep its context beyond the call that opened them.
pub(in crate::grpc) struct ClassifierService(pub Arc<Context>);

#[tonic::async_trait]
impl Classifier for ClassifierService {
    type StreamClassifyStream = ReceiverStream<Result<StreamClassifyResponse, Status>>;

    async fn classify(
        &self,
        request: Request<ClassifyRequest>,
    ) -> Result<Response<ClassifyResponse>, Status> {
        let call = Call::of(&request);
        call.answer(classify(&self.0, request.into_inner(), &call).await)
    }

    async fn classify_batch(
        &self,
        request: Request<ClassifyBatchRequest>,
    ) -> Result<Response<ClassifyBatchResponse>, Status> {
        let call = Call::of(&request);
        call.answer(batch::classify(&self.0, request.into_inner(), &call).await)
    }

    async fn stream_classify(
        &self,
        request: Request<Streaming<StreamClassifyRequest>>,
    ) -> Result<Response<Self::StreamClassifyStream>, Status> {
        let call = Call::of(&request);
        let context = Arc::clone(&self.0);
        let run = |answers| stream::run(context, request.into_inner(), call, answers);
        Ok(open(&self.0.state, run))
    }

    async fn list_models(
        &self,
        request: Request<ListModelsRequest>,
    ) -> Result<Response<ListModelsResponse>, Status> {
        let call = Call::of(&request);
        let models = self.0.registry.list().iter().map(convert::model).collect();
        call.answer(Ok(ListModelsResponse { models }))
    }
}

async fn classify(
    context: &Context,
    request: ClassifyRequest,
    call: &Call,
) -> Result<ClassifyResponse, CallError> {
    let served = context.model(&request.model, &call.record)?;
    let wanted = Wanted::new(
        &Options {
            top_k: request.top_k,
            min_probability: request.min_probability,
            want_embedding: request.want_embedding,
            normalize_embedding: request.normalize_embedding,
            allow_labels: request.allow_labels,
            deny_labels: request.deny_labels,
        },
        &served,
    )?;
    let regions = convert::regions(&request.regions)?;
    let has_regions = !regions.is_empty();
    let source = convert::source(request.image)?;
    served.metrics.received(source.bytes());
    call.record.received(source.bytes());

    let _crops = call.memory.crops(regions.len(), served.geometry.bytes())?;
    let decode_estimate = Some(served.queue.estimate(&source, &regions));
    let crops = regions.len().max(1);
    let image = InputImage {
        source,
        regions,
        arrived: call.timing.arrived,
        mirrored: false,
    };
    let outcome = served.queue.submit(Job {
        client: call.client,
        priority: call.timing.priority,
        called: call.timing.arrived,
        deadline: call.timing.deadline,
        counted: true,
        decode_estimate,
        crops,
        wants_embedding: wanted.wants_embedding(),
        fetch: Box::new(move || Some(image)),
        span: Some(call.record.trace().context()),
        kind: RequestKind::Contract,
    })?;
    // A scheduler that stops drops the sender.
    let reply = outcome.await.unwrap_or(Err(JobError::Abandoned))?;
    call.record.classified(&reply);

    let probabilities: Vec<_> = reply
        .outputs
        .iter()
        .map(|output| served.activation.probabilities(&output.logits))
        .collect();
    let Classifications {
        classifications,
        embedding,
        regions,
    } = wanted.answer(&reply.outputs, &probabilities, has_regions, &served);
    Ok(ClassifyResponse {
        model: served.name.clone(),
        model_version: served.version.clone(),
        classifications,
        timing: Some(convert::timing(reply.stages, call.timing.arrived)),
        embedding,
        regions,
    })
}
