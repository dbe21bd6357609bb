//! A scripted server, for tests that need certain answers or errors.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{Stream, StreamExt};
use resnet18_server::proto::{
    Classification, Classifications, ClassifyBatchRequest, ClassifyBatchResponse, ClassifyRequest,
    ClassifyResponse, FrameError, Image, ListModelsRequest, ListModelsResponse, Model, PixelFormat,
    StreamClassifyRequest, StreamClassifyResponse, Timing,
    classifier_server::{Classifier, ClassifierServer},
    image::Source,
    stream_classify_request::Message,
    stream_classify_response::Outcome,
};
use tokio::net::TcpListener;
use tonic::{Code, Request, Response, Status, Streaming, transport::server::TcpIncoming};
use tonic_types::{ErrorDetails, StatusExt};

/// The server's behaviour, and its counters.
#[derive(Debug, Default)]
pub struct Script {
    /// How long an answer takes.
    pub delay: Duration,
    /// How many requests are rejected with a full queue before any is accepted.
    pub rejections: AtomicU64,
    /// The retry delay in a rejection.
    pub retry_delay: Duration,
    /// After how many answers a stream is cut off, once; 0 for never.
    pub cut_after: AtomicU64,
    /// How many requests and frames have arrived.
    pub requests: AtomicU64,
}

/// The content of an image file that the server can't decode.
pub const BROKEN: &[u8] = b"broken";

/// Starts the server on a free port.
pub async fn start(script: Script) -> (SocketAddr, Arc<Script>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let script = Arc::new(script);
    let service = ClassifierServer::new(Fake(script.clone()));
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true))));
    (address, script)
}

struct Fake(Arc<Script>);

/// Decrements a counter; false if it is zero.
fn take_one(counter: &AtomicU64) -> bool {
    counter
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
        .is_ok()
}

fn classes() -> Vec<Classification> {
    [
        (207, "golden retriever", 0.75),
        (208, "Labrador retriever", 0.125),
    ]
    .map(|(class_id, label, probability)| Classification {
        class_id,
        label: label.into(),
        probability,
    })
    .into()
}

fn timing(inference: Duration) -> Timing {
    let inference = prost_types::Duration::try_from(inference).unwrap();
    Timing {
        inference: Some(inference),
        total: Some(inference),
        ..Timing::default()
    }
}

/// Accepts image files, and I420 frames of at most the size that the model needs.
fn check(image: Option<Image>) -> Result<(), String> {
    match image.and_then(|image| image.source) {
        Some(Source::Encoded(data)) if data != BROKEN => Ok(()),
        Some(Source::Raw(frame)) if frame.format() == PixelFormat::I420 => {
            let (width, height) = (frame.width as usize, frame.height as usize);
            let expected = width * height + 2 * width.div_ceil(2) * height.div_ceil(2);
            if width.min(height) <= 256 && frame.data.len() == expected {
                Ok(())
            } else {
                Err("wrong size".into())
            }
        }
        _ => Err("the image can't be decoded".into()),
    }
}

#[tonic::async_trait]
impl Classifier for Fake {
    async fn classify(
        &self,
        request: Request<ClassifyRequest>,
    ) -> Result<Response<ClassifyResponse>, Status> {
        self.0.requests.fetch_add(1, Ordering::Relaxed);
        if take_one(&self.0.rejections) {
            let details = ErrorDetails::with_retry_info(Some(self.0.retry_delay));
            return Err(Status::with_error_details(
                Code::ResourceExhausted,
                "the queue is full",
                details,
            ));
        }
        tokio::time::sleep(self.0.delay).await;
        let request = request.into_inner();
        check(request.image).map_err(Status::invalid_argument)?;
        let mut classifications = classes();
        classifications.truncate(request.top_k as usize);
        Ok(Response::new(ClassifyResponse {
            model: "fake".into(),
            model_version: "1".into(),
            classifications,
            timing: Some(timing(self.0.delay)),
            ..ClassifyResponse::default()
        }))
    }

    async fn classify_batch(
        &self,
        _: Request<ClassifyBatchRequest>,
    ) -> Result<Response<ClassifyBatchResponse>, Status> {
        Err(Status::unimplemented("no client sends batches"))
    }

    type StreamClassifyStream =
        Pin<Box<dyn Stream<Item = Result<StreamClassifyResponse, Status>> + Send>>;

    async fn stream_classify(
        &self,
        request: Request<Streaming<StreamClassifyRequest>>,
    ) -> Result<Response<Self::StreamClassifyStream>, Status> {
        let mut requests = request.into_inner();
        let first = requests
            .message()
            .await?
            .and_then(|request| request.message);
        let Some(Message::Config(_)) = first else {
            return Err(Status::invalid_argument("the config comes first"));
        };
        let script = self.0.clone();
        let answers = requests.then(move |request| {
            let script = script.clone();
            async move {
                let Some(Message::Frame(frame)) = request?.message else {
                    return Err(Status::invalid_argument("not a frame"));
                };
                script.requests.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(script.delay).await;
                if script.cut_after.load(Ordering::Relaxed) > 0
                    && take_one(&script.cut_after)
                    && script.cut_after.load(Ordering::Relaxed) == 0
                {
                    return Err(Status::unavailable("the server is shutting down"));
                }
                Ok(StreamClassifyResponse {
                    frame_id: frame.id,
                    outcome: Some(match check(frame.image) {
                        Ok(()) => Outcome::Result(Classifications {
                            classifications: classes(),
                            ..Classifications::default()
                        }),
                        Err(message) => Outcome::Error(FrameError {
                            code: Code::InvalidArgument.into(),
                            message,
                        }),
                    }),
                    dropped_frames: 0,
                    fps: 25.0,
                    timing: Some(timing(script.delay)),
                })
            }
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn list_models(
        &self,
        _: Request<ListModelsRequest>,
    ) -> Result<Response<ListModelsResponse>, Status> {
        let model = Model {
            name: "fake".into(),
            resize_shorter_side: 256,
            ..Model::default()
        };
        Ok(Response::new(ListModelsResponse {
            models: vec![model],
        }))
    }
}
