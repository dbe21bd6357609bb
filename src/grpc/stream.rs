//! What the two streaming methods share: opening a stream, ending it at its deadline or when its
//! caller has gone, and reporting how it ended.

use std::{future::Future, panic::AssertUnwindSafe, pin::pin, time::Instant};

use futures_util::FutureExt;
use tokio::{sync::mpsc, time::timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Response, Status};

use super::call::{context::CallGuard, status::CallError};
use crate::state::StateCell;

/// Answers a call with the stream that `run` fills. The answer's headers go out at once: a caller
/// may wait for them before it sends anything.
pub(super) fn open<T, Run>(
    state: &StateCell,
    run: impl FnOnce(mpsc::Sender<Result<T, Status>>) -> Run,
) -> Response<ReceiverStream<Result<T, Status>>>
where
    Run: Future<Output = ()> + Send + 'static,
{
    let (answers, receiver) = mpsc::channel(1);
    let in_progress = state.call();
    let run = run(answers);
    tokio::spawn(async move {
        let _in_progress = in_progress;
        run.await;
    });
    Response::new(ReceiverStream::new(receiver))
}

/// Runs the work of a stream until it ends, its deadline passes, or its caller has gone (`None`).
pub(super) async fn supervise<T>(
    deadline: Option<Instant>,
    answers: &mpsc::Sender<T>,
    work: impl Future<Output = Result<(), CallError>>,
) -> Option<Result<(), CallError>> {
    let work = async {
        match deadline {
            None => work.await,
            Some(deadline) => timeout_at(deadline.into(), work)
                .await
                .unwrap_or(Err(CallError::StreamDeadline)),
        }
    };
    // A bug must not look like a stream that ended well.
    let work = AssertUnwindSafe(work)
        .catch_unwind()
        .map(|ended| ended.unwrap_or(Err(CallError::Panicked)));
    tokio::select! {
        ended = work => Some(ended),
        () = answers.closed() => None,
    }
}

/// Ends the stream's measurement and tells its caller how it ended.
pub(super) async fn conclude<T>(
    ended: Option<Result<(), CallError>>,
    guard: CallGuard,
    answers: &mpsc::Sender<Result<T, Status>>,
) {
    if let Some(Err(CallError::Panicked)) = ended {
        let trace = guard.trace_id();
        tracing::error!(trace_id = %trace, "a stream was ended by a panic, of which standard error tells");
    }
    match ended {
        None => {}
        Some(Ok(())) => guard.finish(Code::Ok),
        Some(Err(error)) => {
            guard.finish(error.code());
            // The caller may have gone in this very moment.
            let _ = answers.send(Err(error.into())).await;
        }
    }
}

/// Runs reading and answering side by side. Reading ends first, then what was read is answered,
/// then the caller learns why reading ended; but when answering fails, nothing more is read.
pub(super) async fn both(
    read: impl Future<Output = Result<(), CallError>>,
    answer: impl Future<Output = Result<(), CallError>>,
) -> Result<(), CallError> {
    let (mut read, mut answer) = (pin!(read), pin!(answer));
    tokio::select! {
        ended = &mut read => answer.await.and(ended),
        answered = &mut answer => match answered {
            Ok(()) => read.await,
            Err(error) => Err(error),
        },
    }
}
