//! `ModelStreamInfer`: requests that are answered in order, a few of them in flight at once.

use std::{sync::Arc, time::Instant};

use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::{
    infer::{self, Answered, RequestContext, Submitted},
    names,
};
use crate::{
    budget::Reservation,
    grpc::{
        call::{
            Call,
            context::Context,
            record::{CallRecord, FrameRecord},
            status::CallError,
            timing::CallTiming,
        },
        stream::{both, supervise},
    },
    inference::{
        InferParameter, ModelInferRequest, ModelInferResponse, ModelStreamInferResponse,
        infer_parameter::ParameterChoice,
    },
    metrics::{FrameOutcome, ModelMetrics},
    proto::code_name,
    scheduler::JobError,
    state::NotReady,
};

type Answers = mpsc::Sender<Result<ModelStreamInferResponse, Status>>;

/// How many requests of a stream may be in flight; meanwhile no other is read.
const MAX_IN_FLIGHT: usize = 4;

pub(super) async fn run(
    context: Arc<Context>,
    inbound: Streaming<ModelInferRequest>,
    call: Call,
    answers: Answers,
) {
    let record = Arc::clone(&call.record);
    let work = answer_all(&context, inbound, call, &answers);
    supervise(&record, &answers, work).await;
}

async fn answer_all(
    context: &Context,
    mut inbound: Streaming<ModelInferRequest>,
    call: Call,
    answers: &Answers,
) -> Result<(), CallError> {
    let _place = context.stream_place(call.holder.clone())?;
    let (pending, mut in_order) = mpsc::channel(MAX_IN_FLIGHT);

    // The stream counts as one of the model of its first valid request.
    let mut open = None;
    let first = &mut open;
    let record = Arc::clone(&call.record);
    let read = async move {
        while let Some(request) = next(&mut inbound, context).await? {
            let memory = call.memory.take();
            let admitted = RequestContext {
                timing: CallTiming {
                    arrived: Instant::now(),
                    ..call.timing
                },
                span: call.record.trace().frame(),
            };
            let id = request.id.clone();
            let metrics = names::metrics(&context.registry, &request.model_name);
            let submitted = infer::submit(context, request, &call, admitted);
            if let (None, Ok(submitted)) = (&first, &submitted) {
                *first = Some(submitted.served().metrics.stream());
            }
            let request = Pending {
                id,
                metrics,
                admitted,
                submitted,
                memory,
            };
            if pending.send(request).await.is_err() {
                break;
            }
        }
        Ok(())
    };

    // Owns the receiver, so that reading ends when answering fails.
    let answer = async move {
        let mut number = 0;
        while let Some(pending) = in_order.recv().await {
            let answer = answer_one(pending, number, &record).await?;
            // `supervise` notices a caller that has gone.
            let _ = answers.send(Ok(answer)).await;
            number += 1;
        }
        Ok(())
    };
    both(read, answer).await
}

/// The next request; `None` when the caller has sent all of its requests.
async fn next(
    inbound: &mut Streaming<ModelInferRequest>,
    context: &Context,
) -> Result<Option<ModelInferRequest>, CallError> {
    tokio::select! {
        message = inbound.message() => Ok(message?),
        () = context.state.draining() => Err(NotReady::Draining.into()),
    }
}

/// A request that waits for its turn to be answered.
struct Pending {
    id: String,
    /// The metrics of its model, if that exists.
    metrics: Option<Arc<ModelMetrics>>,
    admitted: RequestContext,
    submitted: Result<Submitted, CallError>,
    /// The memory of its message.
    memory: Option<Reservation>,
}

/// Answers the `number`-th request of the stream. A request that failed gets its error, and the
/// stream goes on.
async fn answer_one(
    pending: Pending,
    number: u64,
    record: &CallRecord,
) -> Result<ModelStreamInferResponse, CallError> {
    let Pending {
        id,
        metrics,
        admitted: RequestContext { timing, span },
        submitted,
        memory,
    } = pending;
    let outcome = match submitted {
        Ok(submitted) => submitted.answer().await,
        Err(error) => Err(error),
    };
    drop(memory);
    if let Some(metrics) = metrics {
        metrics.frame(if outcome.is_ok() {
            FrameOutcome::Classified
        } else {
            FrameOutcome::Failed
        });
        metrics.frame_answered(timing.arrived.elapsed());
    }
    let answer = outcome.as_ref().map(|answered| &answered.reply);
    record.frame(FrameRecord {
        id: number,
        arrived: timing.arrived,
        span,
        answer,
    });
    let (error_message, mut response) = match outcome {
        Ok(Answered { response, .. }) => (String::new(), response),
        // On shutdown, end the stream instead of failing each request.
        Err(
            error @ (CallError::Job(JobError::Abandoned) | CallError::NotReady(NotReady::Draining)),
        ) => {
            return Err(error);
        }
        Err(error) => {
            let message = format!("{}: {}", code_name(error.code()), error.message());
            (
                message,
                ModelInferResponse {
                    id,
                    ..Default::default()
                },
            )
        }
    };
    // There is one answer for each request.
    let last = InferParameter {
        parameter_choice: Some(ParameterChoice::BoolParam(true)),
    };
    response
        .parameters
        .insert("triton_final_response".into(), last);
    Ok(ModelStreamInferResponse {
        error_message,
        infer_response: Some(response),
    })
}
