//! Images that cost far more than their size: what is not rejected is bounded in memory and time.

use std::{fs, io::Read, time::Instant};

use bytes::Bytes;
use resnet18_server::{
    image::{Estimate, Geometry, PreprocessConfig, Source, estimate},
    proto::{Image, image},
};
use tonic::Code;

use super::{
    assert_discreet, assert_serves, bombs, cat,
    common::{Server, request, shared},
};

fn encoded(bytes: Vec<u8>) -> Image {
    Image {
        source: Some(image::Source::Encoded(bytes.into())),
    }
}

fn estimate_of(bytes: &[u8]) -> Estimate {
    let source = Source::Encoded(Bytes::copy_from_slice(bytes));
    let geometry = Geometry::cropped(224, 224, 256);
    estimate(&source, &[], PreprocessConfig::default(), &geometry)
}

#[tokio::test]
async fn images_of_hostile_structure_are_rejected_before_they_cost_anything() {
    let server = Server::start(&["--engine", "embedded", "--threads", "1"]);
    assert_serves(&server).await;
    let before = server.usage();
    let mut client = server.client().await;
    for (name, bytes, reason) in bombs::rejected_by_their_structure() {
        let status = client
            .classify(request(encoded(bytes)))
            .await
            .expect_err(name);
        assert_eq!(status.code(), Code::InvalidArgument, "{name}: {status:?}");
        assert!(status.message().contains(reason), "{name}: {status:?}");
        assert_discreet(name, &status);
    }
    let after = server.usage();
    assert!(
        after.peak_mib < before.peak_mib + 32,
        "{before:?}, then {after:?}"
    );
    assert_serves(&server).await;
}

#[tokio::test]
async fn the_memory_of_large_pictures_is_what_their_headers_were_estimated_to_need() {
    // What the server takes beside decoding: messages, and what its allocator keeps.
    const SLACK_MIB: u64 = 24;
    for (name, bytes) in bombs::flat() {
        let server = Server::start(&[
            "--engine",
            "embedded",
            "--threads",
            "1",
            "--max-decode-time",
            "60s",
        ]);
        assert_serves(&server).await;
        let before = server.usage();
        let estimate = estimate_of(&bytes);
        let [width, height] = bombs::FLAT.map(u64::from);
        assert_eq!(estimate.pixels, width * height, "{name}");

        let start = Instant::now();
        let mut client = server.client().await;
        let result = client.classify(request(encoded(bytes))).await;
        let took = start.elapsed();
        if let Err(status) = result {
            panic!("{name}: {status:?}");
        }
        let grown = server.usage().peak_mib - before.peak_mib;
        let estimated = estimate.memory_bytes >> 20;
        println!(
            "{name}: {grown} MiB of {estimated}, {took:?} of {:?}",
            estimate.time
        );
        assert!(
            grown <= estimated + SLACK_MIB,
            "{name} took {grown} MiB, and was estimated to take {estimated}"
        );
    }
}

#[tokio::test]
async fn an_image_that_takes_too_long_is_abandoned_and_counted() {
    let server = Server::start(&[
        "--engine",
        "embedded",
        "--threads",
        "1",
        "--max-decode-time",
        "2ms",
    ]);
    let mut client = server.client().await;
    let mut abandoned = 0;
    for (name, bytes) in bombs::flat() {
        let start = Instant::now();
        let status = client
            .classify(request(encoded(bytes)))
            .await
            .expect_err(name);
        assert_eq!(status.code(), Code::InvalidArgument, "{name}: {status:?}");
        assert!(
            status
                .message()
                .contains("longer than 2ms, the limit of --max-decode-time"),
            "{name}: {status:?}"
        );
        println!("{name}: {:?}", start.elapsed());
        abandoned += 1;
    }
    assert_eq!(
        server.metric("classifier_decode_timeouts_total", &[]),
        f64::from(abandoned)
    );
    let tiny = client.classify(request(super::tiny())).await;
    assert!(tiny.is_ok(), "{tiny:?}");
}

#[tokio::test]
async fn the_image_bombs_that_were_found_are_rejected_or_bounded() {
    let Some(folder) = shared("cases/bombs") else {
        return;
    };
    let server = Server::start(&["--engine", "embedded", "--threads", "1"]);
    assert_serves(&server).await;
    let mut client = server.client().await;
    let mut images = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let mut bytes = fs::read(&path).unwrap();
        if name.ends_with(".gz") {
            let mut unpacked = Vec::new();
            let mut reader = flate2::read::GzDecoder::new(&bytes[..]);
            reader.read_to_end(&mut unpacked).unwrap();
            bytes = unpacked;
        }
        if name.contains(".onnx") {
            continue;
        }
        images += 1;
        let before = server.usage();
        let estimated = estimate_of(&bytes).memory_bytes >> 20;
        let start = Instant::now();
        let result = client.classify(request(encoded(bytes))).await;
        let took = start.elapsed();
        println!(
            "{name}: {took:?}, {:?}",
            result.as_ref().map(|_| "answered")
        );
        if let Err(status) = result {
            assert_eq!(status.code(), Code::InvalidArgument, "{name}: {status:?}");
            assert_discreet(&name, &status);
        }
        let grown = server.usage().peak_mib.saturating_sub(before.peak_mib);
        assert!(
            grown <= estimated + 24,
            "{name}: {grown} MiB of {estimated}"
        );
    }
    assert!(images >= 5, "{images} images");
    assert!(client.classify(request(super::tiny())).await.is_ok());
    let _ = client.classify(cat()).await.unwrap();
}
