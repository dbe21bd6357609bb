//! `ClassifyBatch`: several images in one call, each with a result of its own.

use std::time::Instant;

use tokio::sync::oneshot;
use tonic::Code;

use super::{
    answers::{Options, Wanted},
    convert,
};
use crate::{
    grpc::call::{Call, context::Context, status::CallError},
    image::Source,
    metrics::statistics::RequestKind,
    proto::{
        ClassifyBatchRequest, ClassifyBatchResponse, FrameError, Image, ImageResult,
        image_result::Outcome as Wire,
    },
    registry::Served,
    scheduler::{InputImage, Job, JobError, Outcome, Reply},
};

/// The most images in one call.
const MAX_IMAGES: usize = 64;

pub(super) async fn classify(
    context: &Context,
    request: ClassifyBatchRequest,
    call: &Call,
) -> Result<ClassifyBatchResponse, CallError> {
    let served = context.model(&request.model, &call.record)?;
    let wanted = Wanted::new(&options(&request), &served)?;
    if !(1..=MAX_IMAGES).contains(&request.images.len()) {
        return Err(CallError::Invalid(format!(
            "the request has {} images; send 1 to {MAX_IMAGES}",
            request.images.len()
        )));
    }

    let sources: Vec<_> = request.images.into_iter().map(source).collect();
    let bytes = sources.iter().flatten().map(Source::bytes).sum();
    served.metrics.received(bytes);
    call.record.received(bytes);
    let mut submitted = served
        .queue
        .submit_all(
            sources
                .iter()
                .flatten()
                .map(|source| job(source.clone(), call, &served, &wanted)),
        )?
        .into_iter();
    let mut pending = Vec::with_capacity(sources.len());
    for source in sources {
        pending.push(source.map(|_| submitted.next()));
    }

    let mut outcomes = Vec::with_capacity(pending.len());
    for pending in pending {
        let outcome = match pending {
            Ok(receiver) => received(receiver).await.map_err(CallError::from),
            Err(error) => Err(error),
        };
        outcomes.push(outcome);
    }
    let replies = outcomes.iter().flatten();
    if let Some(slowest) = replies.max_by_key(|reply| reply.timeline.inferred) {
        call.record.classified(slowest);
    }
    if let Some(error) = fails_as_a_whole(&mut outcomes) {
        return Err(error);
    }
    Ok(ClassifyBatchResponse {
        model: served.name.clone(),
        model_version: served.version.clone(),
        results: outcomes
            .into_iter()
            .map(|outcome| result(outcome, &wanted, &served, call.timing.arrived))
            .collect(),
    })
}

fn options(request: &ClassifyBatchRequest) -> Options {
    Options {
        top_k: request.top_k,
        min_probability: request.min_probability,
        want_embedding: request.want_embedding,
        normalize_embedding: request.normalize_embedding,
        allow_labels: request.allow_labels.clone(),
        deny_labels: request.deny_labels.clone(),
    }
}

fn source(image: Image) -> Result<Source, CallError> {
    convert::source(Some(image))
}

fn job(source: Source, call: &Call, served: &Served, wanted: &Wanted) -> Job {
    let decode_estimate = Some(served.queue.estimate(&source, &[]));
    let image = InputImage {
        source,
        regions: [].into(),
        arrived: call.timing.arrived,
        mirrored: false,
    };
    Job {
        client: call.client,
        priority: call.timing.priority,
        called: call.timing.arrived,
        deadline: call.timing.deadline,
        counted: true,
        decode_estimate,
        crops: 1,
        wants_embedding: wanted.wants_embedding(),
        fetch: Box::new(move || Some(image)),
        span: Some(call.record.trace().context()),
        kind: RequestKind::Contract,
    }
}

async fn received(receiver: Option<oneshot::Receiver<Outcome>>) -> Outcome {
    match receiver {
        // A scheduler that stops drops the sender.
        Some(receiver) => receiver.await.unwrap_or(Err(JobError::Abandoned)),
        None => Err(JobError::Abandoned),
    }
}

/// The error of the whole call: when the scheduler stops, or no image was classified and one of them
/// failed for another reason than what it holds, so that trying again may help.
fn fails_as_a_whole(outcomes: &mut Vec<Result<Reply, CallError>>) -> Option<CallError> {
    let abandons = |outcome: &Result<_, CallError>| {
        matches!(outcome, Err(CallError::Job(JobError::Abandoned)))
    };
    let is_own = |error: &CallError| error.code() == Code::InvalidArgument;
    let place = outcomes.iter().position(abandons).or_else(|| {
        let none = outcomes.iter().all(Result::is_err);
        none.then(|| {
            outcomes
                .iter()
                .position(|outcome| outcome.as_ref().is_err_and(|error| !is_own(error)))
        })
        .flatten()
    })?;
    outcomes.swap_remove(place).err()
}

fn result(
    outcome: Result<Reply, CallError>,
    wanted: &Wanted,
    served: &Served,
    arrived: Instant,
) -> ImageResult {
    match outcome {
        Ok(Reply {
            outputs, stages, ..
        }) => {
            let probabilities: Vec<_> = outputs
                .iter()
                .map(|output| served.activation.probabilities(&output.logits))
                .collect();
            ImageResult {
                outcome: Some(Wire::Result(wanted.answer(
                    &outputs,
                    &probabilities,
                    false,
                    served,
                ))),
                timing: Some(convert::timing(stages, arrived)),
            }
        }
        Err(error) => ImageResult {
            outcome: Some(Wire::Error(FrameError {
                code: error.code() as i32,
                message: error.message(),
            })),
            timing: None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{image::ImageError, metrics::statistics::Stages, scheduler::Timeline};

    fn reply() -> Result<Reply, CallError> {
        let now = Instant::now();
        Ok(Reply {
            outputs: Vec::new(),
            stages: Stages::default(),
            timeline: Timeline {
                decoded: now,
                inferred: now,
                batch: 1,
                span: None,
            },
        })
    }

    fn failed(error: JobError) -> Result<Reply, CallError> {
        Err(error.into())
    }

    #[test]
    fn the_call_fails_only_where_trying_again_may_help() {
        let bad = || failed(JobError::Image(ImageError::Empty));
        let late = || failed(JobError::DeadlineExceeded);
        let gone = || failed(JobError::Abandoned);
        let code = |mut outcomes: Vec<_>| fails_as_a_whole(&mut outcomes).map(|e| e.code());
        assert_eq!(code(vec![reply(), bad()]), None);
        assert_eq!(code(vec![bad(), bad()]), None);
        assert_eq!(code(vec![reply(), late()]), None);
        assert_eq!(code(vec![bad(), late()]), Some(Code::DeadlineExceeded));
        assert_eq!(code(vec![reply(), gone()]), Some(Code::Unavailable));
    }
}
