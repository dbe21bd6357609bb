//! gRPC-Web for all services, in binary and as text.

use prost::Message;
use resnet18_server::{
    inference::{
        ModelInferRequest, ModelInferResponse, ServerMetadataRequest, ServerMetadataResponse,
        model_infer_request::InferInputTensor,
    },
    proto::{
        Frame, StreamClassifyRequest, StreamClassifyResponse, StreamConfig,
        stream_classify_request::Message as Part, stream_classify_response::Outcome,
    },
};
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::{
    common::{Server, data, image, request},
    web::{Answer, framed, send},
};

const BINARY: &str = "application/grpc-web+proto";
const TEXT: &str = "application/grpc-web-text";
const SERVICE: &str = "/inference.GRPCInferenceService";

fn call(server: &Server, method: &str, kind: &str, body: &[u8]) -> Answer {
    let headers = [
        ("content-type", kind),
        ("accept", kind),
        ("x-grpc-web", "1"),
    ];
    send(server.http, &format!("POST {method}"), &headers, body)
}

/// The one message of an answer in binary.
fn answer<T: Message + Default>(answer: &Answer) -> T {
    T::decode(answer.call().unwrap()).unwrap()
}

#[test]
fn every_service_is_called_in_binary() {
    let server = Server::start(&["--engine", "embedded"]);
    let metadata = framed(&ServerMetadataRequest {});
    let metadata = call(
        &server,
        &format!("{SERVICE}/ServerMetadata"),
        BINARY,
        &metadata,
    );
    assert_eq!(answer::<ServerMetadataResponse>(&metadata).name, "resnet18");

    let check = framed(&HealthCheckRequest::default());
    let health = call(&server, "/grpc.health.v1.Health/Check", BINARY, &check);
    assert_eq!(answer::<HealthCheckResponse>(&health).status, 1);

    let photo = std::fs::read(data("cat.jpg")).unwrap();
    let raw = [&(photo.len() as u32).to_le_bytes()[..], &photo].concat();
    let infer = framed(&ModelInferRequest {
        model_name: "resnet18-demo".into(),
        inputs: vec![InferInputTensor {
            name: "images".into(),
            datatype: "BYTES".into(),
            shape: vec![1],
            ..Default::default()
        }],
        raw_input_contents: vec![raw.into()],
        ..Default::default()
    });
    let infer = call(&server, &format!("{SERVICE}/ModelInfer"), BINARY, &infer);
    assert!(!answer::<ModelInferResponse>(&infer).outputs.is_empty());

    let unknown = call(&server, &format!("{SERVICE}/Nothing"), BINARY, &framed(&()));
    assert_eq!(unknown.call().unwrap_err().0, Code::Unimplemented);
    let wrong = call(&server, &format!("{SERVICE}/ModelInfer"), "text/plain", b"");
    assert_eq!(wrong.status, 415);
}

#[test]
fn a_stream_of_frames_is_answered_frame_by_frame() {
    let server = Server::start(&["--engine", "embedded"]);
    let config = StreamClassifyRequest {
        message: Some(Part::Config(StreamConfig::default())),
    };
    let frame = |id| StreamClassifyRequest {
        message: Some(Part::Frame(Frame {
            id,
            captured_at: None,
            image: Some(image(data("cat.jpg"))),
            regions: Vec::new(),
        })),
    };
    let body = [framed(&config), framed(&frame(7)), framed(&frame(8))].concat();
    let method = "/resnet18.v1.Classifier/StreamClassify";
    let answer = call(&server, method, BINARY, &body);
    let mut rest = &answer.body[..];
    let mut ids = Vec::new();
    while let [0, a, b, c, d, more @ ..] = rest {
        let (frame, after) = more.split_at(u32::from_be_bytes([*a, *b, *c, *d]) as usize);
        let frame = StreamClassifyResponse::decode(frame).unwrap();
        assert!(matches!(frame.outcome, Some(Outcome::Result(_))));
        ids.push(frame.frame_id);
        rest = after;
    }
    assert_eq!(ids, [7, 8]);
    assert!(String::from_utf8_lossy(rest).contains("grpc-status:0"));
}

#[test]
fn calls_are_made_as_text() {
    let server = Server::start(&["--engine", "embedded"]);
    let method = "/resnet18.v1.Classifier/Classify";
    let binary = framed(&request(image(data("cat.jpg"))));
    let text = base64(&binary);
    let answer = call(&server, method, TEXT, text.as_bytes());
    assert_eq!(answer.status, 200);
    let kind = answer.header("content-type").unwrap();
    assert!(kind.starts_with(TEXT), "{kind}");
    let decoded = Answer {
        body: unbase64(&answer.text()),
        ..answer
    };
    let of_text = decoded.call().unwrap();
    let in_binary = call(&server, method, BINARY, &binary);
    let label = |message| {
        let answer = resnet18_server::proto::ClassifyResponse::decode(message).unwrap();
        answer.classifications[0].clone()
    };
    assert_eq!(label(of_text), label(in_binary.call().unwrap()));
    let bad = call(&server, method, TEXT, b"~~~~");
    assert!(
        bad.status == 200 && !bad.text().contains("panic"),
        "{}",
        bad.text()
    );
}

const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

pub fn base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for part in bytes.chunks(3) {
        let mut group = [0; 4];
        group[1..=part.len()].copy_from_slice(part);
        let bits = u32::from_be_bytes(group);
        for digit in 0..4 {
            text.push(if digit <= part.len() {
                ALPHABET[(bits >> (18 - 6 * digit) & 63) as usize] as char
            } else {
                '='
            });
        }
    }
    text
}

/// Frames may be encoded one by one, each with its own padding.
fn unbase64(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for group in text.trim().as_bytes().chunks(4) {
        let digits: Vec<u32> = group
            .iter()
            .filter_map(|digit| ALPHABET.iter().position(|known| known == digit))
            .map(|digit| digit as u32)
            .collect();
        let bits = (0..4).fold(0, |bits, i| bits << 6 | digits.get(i).unwrap_or(&0));
        bytes.extend(&bits.to_be_bytes()[1..digits.len().max(1)]);
    }
    bytes
}
