//! What the two streaming methods share: opening a stream, ending it at its deadline or when its
//! caller has gone, and reporting how it ended.

use std::{future::Future, panic::AssertUnwindSafe, pin::pin};

use futures_util::FutureExt;
use tokio::{sync::mpsc, time::timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status};

use super::call::{record::CallRecord, status::CallError};
use crate::state::StateCell;

/// Answers a call with the stream that `run` fills. The answer's headers are sent at once: a caller
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

/// Runs the work of a stream until it ends or its deadline passes, then tells the caller how it
/// ended. The work is dropped when the caller goes away.
pub(super) async fn supervise<T>(
    record: &CallRecord,
    answers: &mpsc::Sender<Result<T, Status>>,
    work: impl Future<Output = Result<(), CallError>>,
) {
    let work = async {
        match record.timing.deadline {
            None => work.await,
            Some(deadline) => timeout_at(deadline.into(), work)
                .await
                .unwrap_or(Err(CallError::StreamDeadline)),
        }
    };
    // A panic must not look like a stream that ended well.
    let work = AssertUnwindSafe(work)
        .catch_unwind()
        .map(|ended| ended.unwrap_or(Err(CallError::Panicked)));
    let ended = tokio::select! {
        ended = work => ended,
        () = answers.closed() => return,
    };

    if let Err(CallError::Panicked) = ended {
        tracing::error!(
            trace_id = %record.trace().context().trace,
            "a stream panicked; details are on standard error"
        );
    }
    match ended {
        Ok(()) => record.succeeded(),
        Err(error) => {
            record.failed(&error);
            // The caller may have gone at this very moment.
            let _ = answers.send(Err(error.into())).await;
        }
    }
}

/// Reads and answers at the same time. The stream ends when both have ended, or when answering
/// fails.
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
