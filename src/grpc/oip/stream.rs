//! `ModelStreamInfer`: requests that are answered in their order, a few in work at once.

use std::{sync::Arc, time::Instant};

use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::{
    infer::{self, Admitted, Answered, Submitted},
    names,
};
use crate::{
    grpc::{
        call::{
            arrival::Arrived,
            context::{Call, CallGuard, Context},
            record::{FrameRecord, Record},
            status::CallError,
        },
        stream::{both, conclude, supervise},
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

pub(super) type Answers = mpsc::Sender<Result<ModelStreamInferResponse, Status>>;

/// The most requests of a stream that wait for their answers; while they do, no further one is
/// read.
const MAX_IN_WORK: usize = 4;

/// Runs a stream to its end and tells the caller how it ended, unless the caller has gone.
pub(super) async fn run(
    context: Arc<Context>,
    inbound: Streaming<ModelInferRequest>,
    call: Call,
    mut guard: CallGuard,
    answers: Answers,
) {
    let deadline = call.arrived.deadline;
    let ended = supervise(
        deadline,
        &answers,
        answer_all(&context, inbound, call, &mut guard, &answers),
    )
    .await;
    conclude(ended, guard, &answers).await;
}

async fn answer_all(
    context: &Context,
    mut inbound: Streaming<ModelInferRequest>,
    call: Call,
    guard: &mut CallGuard,
    answers: &Answers,
) -> Result<(), CallError> {
    let _permit = context.stream_permit()?;
    let (pending, mut in_order) = mpsc::channel(MAX_IN_WORK);
    // A stream has no model, its requests have: it counts for that of the first.
    let mut open = None;
    let first = &mut open;
    let record = Arc::clone(&call.record);
    let read = async move {
        while let Some(request) = next(&mut inbound, context).await? {
            let arrived = Arrived {
                at: Instant::now(),
                ..call.arrived
            };
            let admitted = Admitted {
                arrived,
                span: call.record.trace().frame(),
            };
            let id = request.id.clone();
            let metrics = names::metrics(&context.registry, &request.model_name);
            let submitted = infer::submit(context, request, &call, admitted, guard);
            if let (None, Ok(submitted)) = (&first, &submitted) {
                *first = Some(submitted.served().metrics.stream());
            }
            if pending
                .send(Pending {
                    id,
                    metrics,
                    admitted,
                    submitted,
                })
                .await
                .is_err()
            {
                break;
            }
        }
        Ok(())
    };
    // Owns the receiver, so that reading ends when answering fails.
    let answer = async move {
        let mut number = 0;
        while let Some(pending) = in_order.recv().await {
            // A caller that has gone is noticed by `supervise`.
            let _ = answers
                .send(Ok(answer_one(pending, number, &record).await?))
                .await;
            number += 1;
        }
        Ok(())
    };
    both(read, answer).await
}

/// The next request; `None` when the caller has sent its last.
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
    /// Those of its model, if there is such a model.
    metrics: Option<Arc<ModelMetrics>>,
    admitted: Admitted,
    submitted: Result<Submitted, CallError>,
}

/// A request that failed gets its error, and the stream goes on. It is the stream's `number`-th.
async fn answer_one(
    pending: Pending,
    number: u64,
    record: &Record,
) -> Result<ModelStreamInferResponse, CallError> {
    let Pending {
        id,
        metrics,
        admitted: Admitted { arrived, span, .. },
        submitted,
    } = pending;
    let outcome = match submitted {
        Ok(submitted) => submitted.answer().await,
        Err(error) => Err(error),
    };
    if let Some(metrics) = metrics {
        metrics.frame(if outcome.is_ok() {
            FrameOutcome::Classified
        } else {
            FrameOutcome::Failed
        });
        metrics.frame_answered(arrived.at.elapsed());
    }
    let answer = outcome
        .as_ref()
        .map(|answered| &answered.reply)
        .map_err(CallError::code);
    record.frame(FrameRecord {
        id: number,
        arrived: arrived.at,
        span,
        answer,
    });
    let (error_message, mut response) = match outcome {
        Ok(Answered { response, .. }) => (String::new(), response),
        // A server that goes says so once, by ending the stream.
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
