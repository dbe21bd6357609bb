//! Helpers that make calls with a token and a trace context.

use std::{fs, time::Duration};

use resnet18_server::proto::{
    ClassifyRequest, Frame, FramePolicy, Image, PixelFormat, RawFrame, StreamClassifyRequest,
    StreamClassifyResponse, StreamConfig, classifier_client::ClassifierClient, image::Source,
    stream_classify_request::Message,
};
use tonic::{Request, transport::Channel};

use crate::common::{Server, config, data, image, request};

pub const TOKEN: &str = "0123456789abcdef-shop";
pub const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
pub const PARENT: &str = "00f067aa0ba902b7";

/// A token file with one caller, `shop`.
pub fn tokens() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), format!("shop {TOKEN}\n")).unwrap();
    file
}

/// A request with the token and these metadata.
pub fn call<T>(message: T, metadata: &[(&'static str, &str)]) -> Request<T> {
    let mut request = Request::new(message);
    let headers = request.metadata_mut();
    headers.insert("authorization", format!("Bearer {TOKEN}").parse().unwrap());
    for (name, value) in metadata {
        headers.append(*name, value.parse().unwrap());
    }
    request
}

pub fn traceparent(flags: &str) -> String {
    format!("00-{TRACE}-{PARENT}-{flags}")
}

pub fn photo() -> ClassifyRequest {
    request(image(data("cat.jpg")))
}

/// A raw frame whose bytes repeat `PIXELS`, to find them in a log.
pub fn pixels() -> Image {
    let data = b"PIXELS".repeat(8 * 8 / 2);
    let raw = RawFrame {
        format: PixelFormat::Rgb8.into(),
        width: 8,
        height: 8,
        stride: 0,
        data: data.into(),
    };
    Image {
        source: Some(Source::Raw(raw)),
    }
}

/// Sends these frames on one stream and reads all answers.
pub async fn stream(
    client: &mut ClassifierClient<Channel>,
    policy: FramePolicy,
    images: Vec<Image>,
    metadata: &[(&'static str, &str)],
) -> Vec<StreamClassifyResponse> {
    let first = config(StreamConfig {
        policy: policy.into(),
        ..Default::default()
    });
    let frames = images
        .into_iter()
        .zip(1..)
        .map(|(image, id)| StreamClassifyRequest {
            message: Some(Message::Frame(Frame {
                id,
                captured_at: None,
                image: Some(image),
                regions: Vec::new(),
            })),
        });
    let messages = tokio_stream::iter([first].into_iter().chain(frames).collect::<Vec<_>>());
    let mut answers = client
        .stream_classify(call(messages, metadata))
        .await
        .unwrap()
        .into_inner();
    let mut all = Vec::new();
    while let Some(answer) = answers.message().await.unwrap() {
        all.push(answer);
    }
    all
}

pub fn stop(server: &mut Server) {
    server.signal("TERM");
    assert!(
        server
            .wait(Duration::from_secs(20))
            .expect("the server ends in time")
            .success()
    );
}
