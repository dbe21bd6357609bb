//! False input: image bombs, raw frames with wrong sizes, compressed bombs, malformed calls.

use bytes::Bytes;
use resnet18_server::proto::{Image, PixelFormat, RawFrame, image::Source};
use tonic::Code;

use super::{
    assert_discreet, assert_serves, bombs, cat,
    common::{
        Server,
        http2::{self, CLASSIFY, Encoding, compressed_call, framed},
        request,
    },
};

#[tokio::test]
async fn image_bombs_are_refused_before_they_take_memory() {
    let server = Server::start(&["--engine", "embedded", "--threads", "1"]);
    assert_serves(&server).await;
    let before = server.usage();
    let mut client = server.client().await;

    for (name, bytes) in bombs::headers() {
        let bomb = Image {
            source: Some(Source::Encoded(bytes.into())),
        };
        let status = client.classify(request(bomb)).await.expect_err(name);
        assert_eq!(status.code(), Code::InvalidArgument, "{name}: {status:?}");
        assert_discreet(name, &status);
    }
    let after = server.usage();
    assert!(
        after.peak_mib < before.peak_mib + 64,
        "{before:?}, then {after:?}"
    );

    // Images within the limit of pixels may take the memory of their pixels, and no more.
    for (name, bytes) in bombs::within_the_limit() {
        assert!(bytes.len() < 1 << 20, "{name} has {} bytes", bytes.len());
        let bomb = Image {
            source: Some(Source::Encoded(bytes.into())),
        };
        if let Err(status) = client.classify(request(bomb)).await {
            assert_eq!(status.code(), Code::InvalidArgument, "{name}: {status:?}");
            assert_discreet(name, &status);
        }
    }
    let after = server.usage();
    assert!(
        after.peak_mib < before.peak_mib + 600,
        "{before:?}, then {after:?}"
    );
    assert_serves(&server).await;
}

#[tokio::test]
async fn raw_frames_with_false_sizes_are_refused() {
    let server = Server::start(&["--engine", "embedded"]);
    let mut client = server.client().await;
    let (max, one) = (u32::MAX, 1);
    for (width, height, stride) in [
        (max, max, 0),
        (max, max, max),
        (max, one, 0),
        (one, max, max),
        (65_535, 65_535, 0),
    ] {
        for format in [PixelFormat::Rgb8, PixelFormat::Nv12, PixelFormat::I420] {
            let frame = RawFrame {
                format: format.into(),
                width,
                height,
                stride,
                data: Bytes::from_static(&[0; 300]),
            };
            let image = Image {
                source: Some(Source::Raw(frame)),
            };
            let status = client.classify(request(image)).await.unwrap_err();
            assert_eq!(
                status.code(),
                Code::InvalidArgument,
                "{width}x{height}, {stride}: {status:?}"
            );
            assert_discreet("a raw frame", &status);
        }
    }
    assert_serves(&server).await;
}

#[tokio::test]
async fn compressed_messages_are_not_decompressed_beyond_the_limit() {
    let server = Server::start(&["--engine", "embedded", "--max-message-mib", "1"]);
    assert_serves(&server).await;
    let before = server.usage();
    let bomb = request(Image {
        source: Some(Source::Encoded(vec![0; 64 << 20].into())),
    });
    for encoding in [Encoding::Deflate, Encoding::Gzip, Encoding::Zstd] {
        let status = compressed_call(&server, encoding, &bomb).await;
        assert_eq!(status.code(), Code::OutOfRange, "{encoding:?}: {status:?}");
        assert_discreet("a compressed bomb", &status);
    }

    let after = server.usage();
    assert!(
        after.peak_mib < before.peak_mib + 32,
        "{before:?}, then {after:?}"
    );
}

#[tokio::test]
async fn malformed_calls_are_refused_without_revealing_internals() {
    let server = Server::start(&["--engine", "embedded"]);
    let message = framed(&cat());
    let garbage = [&[0, 0, 0, 0, 9][..], b"\x0a\xff\xff\xff\xff\x0f....."].concat();
    let huge = [0, 0xff, 0xff, 0xff, 0xff, 1, 2, 3];
    let compressed = [&[1], &message[1..]].concat();
    let flag = [&[7], &message[1..]].concat();
    let cut = message[..message.len() - 1].to_vec();
    let plain = || http2::call(CLASSIFY);
    let calls = [
        ("no message", plain(), vec![]),
        ("not protobuf", plain(), garbage),
        ("a message of 4 GiB", plain(), huge.to_vec()),
        ("compressed without saying how", plain(), compressed.clone()),
        (
            "an unknown encoding",
            plain().header("grpc-encoding", "../../etc/passwd"),
            compressed.clone(),
        ),
        (
            "not gzip",
            plain().header("grpc-encoding", "gzip"),
            compressed.clone(),
        ),
        (
            "not zstd",
            plain().header("grpc-encoding", "zstd"),
            compressed,
        ),
        ("an unknown flag", plain(), flag),
        ("a cut message", plain(), cut),
        (
            "an unknown method",
            http2::call("/resnet18.v1.Classifier/../../etc/passwd"),
            message.clone(),
        ),
        (
            "an unknown service",
            http2::call("/etc/passwd"),
            message.clone(),
        ),
        (
            "an invalid timeout",
            plain().header("grpc-timeout", "99999999999999S"),
            vec![],
        ),
    ];

    for (what, call, body) in calls {
        let mut connection = http2::connect(&server.grpc).await;
        let (response, mut sender) = connection
            .send_request(call.body(()).unwrap(), false)
            .unwrap();
        sender.send_data(body.into(), true).unwrap();
        let status = http2::status(response)
            .await
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_ne!(status.code(), Code::Ok, "{what}");
        if [
            "no message",
            "not protobuf",
            "not gzip",
            "not zstd",
            "a cut message",
        ]
        .contains(&what)
        {
            assert_eq!(status.code(), Code::InvalidArgument, "{what}: {status:?}");
        }
        if !what.contains("encoding") {
            assert_discreet(what, &status);
        }
    }

    assert_serves(&server).await;
}

#[tokio::test]
async fn what_is_no_grpc_is_refused_as_http() {
    let server = Server::start(&["--engine", "embedded"]);
    let mut connection = http2::connect(&server.grpc).await;
    for kind in [
        None,
        Some("application/json"),
        Some("application/grpc-web+proto"),
        Some("application/grpc+json"),
    ] {
        let mut call = http::Request::post(format!("http://test{CLASSIFY}"));
        if let Some(kind) = kind {
            call = call.header("content-type", kind);
        }
        let (response, _) = connection
            .send_request(call.body(()).unwrap(), true)
            .unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), 415, "{kind:?}");
        assert!(!response.headers().contains_key("grpc-status"));
    }
    assert_serves(&server).await;
}

#[tokio::test]
async fn malformed_messages_count_as_the_callers_mistake_in_every_method() {
    let server = Server::start(&["--engine", "embedded"]);
    let garbage = [&[0, 0, 0, 0, 9][..], b"\x0a\xff\xff\xff\xff\x0f....."].concat();
    for (service, method) in [
        ("resnet18.v1.Classifier", "Classify"),
        ("resnet18.v1.Classifier", "StreamClassify"),
        ("inference.GRPCInferenceService", "ModelInfer"),
        ("inference.GRPCInferenceService", "ModelStreamInfer"),
    ] {
        let mut connection = http2::connect(&server.grpc).await;
        let call = http2::call(&format!("/{service}/{method}"))
            .body(())
            .unwrap();
        let (response, mut sender) = connection.send_request(call, false).unwrap();
        sender.send_data(garbage.clone().into(), true).unwrap();
        let status = http2::status(response).await.unwrap();
        assert_eq!(status.code(), Code::InvalidArgument, "{method}: {status:?}");
        let method = format!("method=\"{method}\"");
        let count = |code| server.sum("classifier_requests_total", &[&method, code]);
        assert_eq!(count("\"INVALID_ARGUMENT\""), 1.0, "{method}");
        assert_eq!(count("\"INTERNAL\""), 0.0, "{method}");
    }
}

#[tokio::test]
async fn large_metadata_is_refused_without_harm_to_the_calls_beside_it() {
    let server = Server::start(&["--engine", "embedded"]);
    let mut connection = http2::connect(&server.grpc).await;
    let message = framed(&cat());
    let mut classify = |kib: usize| {
        let call = http2::call(CLASSIFY).header("x-large", "x".repeat(kib << 10));
        let (response, mut sender) = connection
            .send_request(call.body(()).unwrap(), false)
            .unwrap();
        // A call that was refused meanwhile takes no message.
        let _ = sender.send_data(message.clone().into(), true);
        http2::status(response)
    };
    let beside = classify(1);
    assert_eq!(classify(60).await.unwrap().code(), Code::Ok);
    for kib in [65, 200] {
        let status = classify(kib).await.unwrap();
        assert_eq!(status.code(), Code::ResourceExhausted, "{kib}: {status:?}");
        assert!(
            status.message().contains("metadata") && status.message().contains("at most 65536"),
            "{kib}: {status:?}"
        );
    }
    // HTTP/2 itself answers a call that is larger still.
    let status = classify(300).await;
    assert!(
        status
            .as_ref()
            .is_ok_and(|status| status.message().contains("431"))
            || status.as_ref().is_err_and(h2::Error::is_reset),
        "{status:?}"
    );
    assert_eq!(beside.await.unwrap().code(), Code::Ok);
    assert_eq!(classify(1).await.unwrap().code(), Code::Ok);
    assert_serves(&server).await;
}
