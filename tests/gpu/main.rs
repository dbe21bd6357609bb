//! Tests on a real NVIDIA GPU, run by `make test-gpu`: the cache, memory that runs out, and the
//! time that the server adds to the GPU's own. `make test-gpu` also runs
//! `tests/integration/golden.rs` on it. Without a GPU every test here says that it is skipped.
#![cfg(feature = "tensorrt")]

#[path = "../common/mod.rs"]
mod common;

use std::{num::NonZeroUsize, process::Command, time::Duration};

use common::{Server, data, image, request, resnet18, skipped};
use cudarc::driver::{CudaContext, DriverError};
use resnet18_server::{
    engine::{
        EngineConfig, EngineError,
        tensorrt::{TensorRtConfig, measure},
    },
    model::{Model, Overrides},
};
use serde_json::Value;

/// Those that have kernels of their own; others are padded.
const BATCHES: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];

fn config(cache: &std::path::Path) -> EngineConfig {
    EngineConfig {
        max_batch: NonZeroUsize::new(64),
        tensorrt: TensorRtConfig {
            cache: Some(cache.to_owned()),
            ..TensorRtConfig::default()
        },
        ..EngineConfig::new(NonZeroUsize::MIN)
    }
}

/// Whether TensorRT runs here, with a visible message if it does not.
fn has_gpu() -> bool {
    let folder = tempfile::tempdir().unwrap();
    let model = Model::bundled(&Overrides::default()).unwrap();
    match measure(&config(folder.path()), &model, &[]) {
        Ok(_) => true,
        Err(EngineError::Unavailable { reason, .. }) => {
            skipped(&reason);
            false
        }
        Err(error) => panic!("{error}"),
    }
}

async fn assert_answers(server: &Server) {
    let answer = server
        .client()
        .await
        .classify(request(image(data("cat.jpg"))))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer.classifications[0].label, "cat");
}

#[tokio::test]
async fn the_second_start_finds_the_engine() {
    if !has_gpu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().to_str().unwrap();
    for result in ["miss", "hit"] {
        let server = Server::start(&["--engine", "tensorrt", "--engine-cache", cache]);
        let label = format!("result=\"{result}\"");
        assert_eq!(
            server.metric("classifier_engine_cache_total", &[&label]),
            1.0,
            "{}",
            server.log()
        );
        assert_eq!(
            server.metric(
                "classifier_engine_info",
                &["engine=\"tensorrt\"", "precision=\"fp16\""]
            ),
            1.0
        );
        assert!(server.metric("classifier_gpu_memory_bytes", &["gpu=\"0\""]) > 0.0);
        assert_answers(&server).await;
        eprintln!(
            "{result}: loaded in {:.2} s",
            server.metric("classifier_model_load_seconds", &[])
        );
    }
}

/// Allocates all of the GPU's memory except for `leave` MiB.
fn fill_memory(leave: usize) -> Result<(std::sync::Arc<CudaContext>, impl Sized), DriverError> {
    let context = CudaContext::new(0)?;
    let (free, _) = context.mem_get_info()?;
    let taken = context
        .default_stream()
        .alloc_zeros::<u8>(free.saturating_sub(leave << 20))?;
    context.synchronize()?;
    Ok((context, taken))
}

#[tokio::test]
async fn with_too_little_memory_it_takes_smaller_batches_or_says_so() {
    if !has_gpu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().to_str().unwrap();
    let flags = [
        "--engine",
        "tensorrt",
        "--max-batch",
        "64",
        "--engine-cache",
        cache,
    ];
    drop(Server::start(&flags));
    let mut tight = false;
    for leave in [1200, 900, 700, 600, 500, 400, 300, 200] {
        let (_context, _taken) = fill_memory(leave).unwrap();
        let mut server = Server::spawn(&flags);
        while server
            .try_get("/readyz")
            .is_some_and(|(code, _)| code != 200)
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let ended = server.wait(Duration::from_millis(300));
        let log = server.log();
        let halved = log.contains("set --max-batch");
        match ended {
            None => assert_answers(&server).await,
            Some(status) => {
                assert_eq!(status.code(), Some(1), "{log}");
                assert!(log.to_lowercase().contains("memory"), "{log}");
            }
        }
        eprintln!(
            "{leave} MiB free: {}",
            if ended.is_some() {
                "refused"
            } else if halved {
                "halved"
            } else {
                "enough"
            }
        );
        tight |= ended.is_some() || halved;
    }
    assert!(tight, "memory never ran out");
}

#[test]
fn the_time_that_the_server_adds_to_the_gpus_own() {
    if !has_gpu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let model = Model::bundled(&Overrides::default()).unwrap();
    let times = measure(&config(folder.path()), &model, &BATCHES).unwrap();
    let rate = |batch: usize, time: Duration| batch as f64 / time.as_secs_f64();
    eprintln!("batch  device ms  images/s   lane ms  images/s  lane/device  after");
    let mut best = 0.0_f64;
    for time in &times {
        let [device, lane] = [time.device, time.lane].map(|t| rate(time.batch, t));
        best = best.max(device);
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        eprintln!(
            "{:5}  {:9.3}  {device:8.0}  {:8.3}  {lane:8.0}  {:11.2}  {} runs{}",
            time.batch,
            ms(time.device),
            ms(time.lane),
            lane / device,
            time.warm_up,
            if time.settled {
                ""
            } else {
                ", and still changing"
            }
        );
    }
    let cache = folder.path().to_str().unwrap();
    let server = Server::start(&[
        "--engine",
        "tensorrt",
        "--max-batch",
        "64",
        "--engine-cache",
        cache,
    ]);
    for concurrency in ["1", "16", "64", "256"] {
        let photo = data("cat.jpg");
        let arguments = [
            "load",
            "--json",
            "--duration",
            "5s",
            "--concurrency",
            concurrency,
            "--server",
            &server.url(),
        ];
        let output = {
            let mut load: Command = resnet18();
            load.args(arguments).arg(photo).output().unwrap()
        };
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let goodput = report["goodput"].as_f64().unwrap();
        eprintln!(
            "server, {concurrency} clients: {goodput:.0} images/s, p50 {} ms, p99 {} ms, {:.2} of \
             the GPU alone",
            report["latency_ms"]["p50"],
            report["latency_ms"]["p99"],
            goodput / best
        );
    }
}
