//! The gRPC contract, through a real server process and tonic's client.

mod answers;
mod classify;
mod lifecycle;
mod overload;
mod streams;

use resnet18_server::proto::{
    ClassifyRequest, Frame, Image, PixelFormat, RawFrame, StreamClassifyRequest,
    StreamClassifyResponse, image::Source, stream_classify_request::Message,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::common::{Server, data, image, request};

/// A message of a stream with one frame.
fn frame(id: u64, image: Image) -> StreamClassifyRequest {
    StreamClassifyRequest {
        message: Some(Message::Frame(Frame {
            id,
            captured_at: None,
            image: Some(image),
            regions: Vec::new(),
        })),
    }
}

/// A raw frame as the image of a request.
fn raw(format: PixelFormat, width: u32, height: u32, stride: u32, data: Vec<u8>) -> Image {
    let frame = RawFrame {
        format: format.into(),
        width,
        height,
        stride,
        data: data.into(),
    };
    Image {
        source: Some(Source::Raw(frame)),
    }
}

fn request_cat() -> ClassifyRequest {
    request(image(data("cat.jpg")))
}

/// Opens a stream with this first message; the sender adds further ones.
async fn open(
    server: &Server,
    first: StreamClassifyRequest,
) -> (
    mpsc::Sender<StreamClassifyRequest>,
    tonic::Streaming<StreamClassifyResponse>,
) {
    let (sender, receiver) = mpsc::channel(4);
    sender.send(first).await.unwrap();
    let answers = server
        .client()
        .await
        .stream_classify(ReceiverStream::new(receiver))
        .await
        .unwrap()
        .into_inner();
    (sender, answers)
}
