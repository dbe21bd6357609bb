//! The file of a picture or of a model, as a stream of its parts.

use std::future::Future;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::logged;
use crate::{
    grpc::{
        call::{record::CallRecord, status::CallError},
        stream::supervise,
    },
    proto::FileChunk,
    teaching::{Download, TeachError},
};

/// The parts as tonic sends them.
pub(super) type Chunks = ReceiverStream<Result<FileChunk, Status>>;

/// Sends the parts of a file until its end; one part is read ahead.
pub(super) async fn run(
    record: &CallRecord,
    file: impl Future<Output = Result<Download, TeachError>>,
    answers: mpsc::Sender<Result<FileChunk, Status>>,
) {
    let work = async {
        let mut file = file.await.map_err(logged)?;
        let file_bytes = file.bytes();
        while let Some((content, rest)) = file.next().await.map_err(logged)? {
            file = rest;
            let chunk = FileChunk {
                content,
                file_bytes,
            };
            if answers.send(Ok(chunk)).await.is_err() {
                break;
            }
        }
        Ok::<_, CallError>(())
    };
    supervise(record, &answers, work).await;
}
