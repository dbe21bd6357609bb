//! The whole server, as a separate process, under load: latency alone, throughput, overload, and every term of the limit.
//!
//! `cargo bench --bench serving [-- IMAGE]`; RESNET18_BENCH_SECONDS sets the length of each measurement (default 10).
//! The server takes its flags from the environment: RESNET18_MODEL=int8.onnx measures that model, RESNET18_JPEG_SCALING=auto
//! that way to decode. Server and load share the machine, so the client's own cost is part of what is measured.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use bytes::Bytes;
use resnet18_server::{
    client::load::{LoadConfig, LoadMode, LoadReport, OnRejection, run_load},
    engine::{self, Engine, EngineConfig},
    image::{Geometry, JpegScaling, PreprocessConfig, Preprocessor, Source},
    model::{Model, Overrides},
};
use tonic::Code;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let image = image_path();
    let seconds = std::env::var("RESNET18_BENCH_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(10.0);
    let duration = Duration::from_secs_f64(seconds);
    let bytes = Bytes::from(fs::read(&image)?);
    println!("{} ({} kB), {seconds} s a measurement\n", image.display(), bytes.len() / 1000);

    let limit = terms(&bytes, duration.min(Duration::from_secs(5)))?;

    let server = Server::start()?;
    let runtime = tokio::runtime::Runtime::new()?;
    let measure = |clients, on_rejection| -> Result<LoadReport, Box<dyn std::error::Error>> {
        let mut config = LoadConfig::new(server.url.parse()?, vec![bytes.clone()]);
        config.mode = LoadMode::Closed { clients };
        config.duration = duration;
        config.on_rejection = on_rejection;
        Ok(runtime.block_on(run_load(config))?)
    };
    println!("clients  images/s  of limit     p50     p99     max  refused  refusal p99  server CPU  RSS MiB");
    for (clients, on_rejection) in [
        (1, OnRejection::Wait),
        (2, OnRejection::Wait),
        (4, OnRejection::Wait),
        (16, OnRejection::Wait),
        (64, OnRejection::Wait),
        (256, OnRejection::Wait),
        (256, OnRejection::Retry),
    ] {
        let cpu = server.cpu_seconds();
        let started = Instant::now();
        let report = measure(clients, on_rejection)?;
        let cpu = (server.cpu_seconds() - cpu) / started.elapsed().as_secs_f64();
        let latency = report.latency_ms.as_ref().ok_or("no request was answered")?;
        let refusal = report.rejection_latency_ms.as_ref().map_or("-".into(), |r| format!("{:.1} ms", r.p99));
        println!(
            "{clients:>7}  {:>8.1}  {:>8.2}  {:>6.1}  {:>6.1}  {:>6.1}  {:>7}  {refusal:>11}  {cpu:>10.2}  {:>7}{}",
            report.goodput,
            report.goodput / limit,
            latency.p50,
            latency.p99,
            latency.max,
            report.count(Code::ResourceExhausted),
            server.resident_mib(),
            if on_rejection == OnRejection::Retry { "  (clients retry)" } else { "" },
        );
        if let Some(means) = &report.server_mean_ms {
            println!(
                "         server means: decode {:.2}, queue {:.2}, inference {:.2}, total {:.2} ms; latency mean {:.2}",
                means.decode, means.queue, means.inference, means.total, latency.mean
            );
        }
    }
    let idle = server.cpu_seconds();
    std::thread::sleep(Duration::from_secs(5));
    println!("\nidle: {:.1} ms of CPU a second", (server.cpu_seconds() - idle) * 200.0);
    Ok(())
}

fn image_path() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let given = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let shared = root.join("../shared/golden/images/bench_500x375.jpg");
    match given {
        Some(path) => path.into(),
        None if shared.exists() => shared,
        None => root.join("tests/data/cat.jpg"),
    }
}

/// Measures each term alone and returns the limit: cores / (decode + resize + inference CPU seconds an image).
fn terms(bytes: &Bytes, duration: Duration) -> Result<f64, Box<dyn std::error::Error>> {
    let cores = std::thread::available_parallelism()?;
    let model = match std::env::var_os("RESNET18_MODEL") {
        Some(path) => Model::from_file(Path::new(&path), &Overrides::default())?,
        None => Model::bundled(&Overrides::default())?,
    };
    let jpeg_scaling = match std::env::var("RESNET18_JPEG_SCALING").as_deref() {
        Ok("auto") => JpegScaling::Auto,
        _ => JpegScaling::Off,
    };
    let mut preprocessor = Preprocessor::new(PreprocessConfig { jpeg_scaling, ..PreprocessConfig::default() });
    let mut crop = vec![0; model.geometry.bytes()];
    let mut preprocess = |geometry: &Geometry, crop: &mut [u8]| {
        preprocessor.crop(&Source::Encoded(bytes.clone()), geometry, crop).expect("the image can be decoded");
    };
    let preprocessing = seconds_each(duration / 2, || preprocess(&model.geometry, &mut crop));

    let config = EngineConfig::new(cores);
    let mut lanes = engine::start(&config, &model)?;
    let classes = model.graph.classes;
    let infer = |engine: &mut Box<dyn Engine>| {
        let mut logits = vec![0.0; classes];
        engine.infer(&crop, 1, &mut logits).expect("the engine works");
    };
    let wide = lanes.wide.as_mut().map(|wide| seconds_each(duration, || infer(wide)));
    let narrow = std::thread::scope(|scope| {
        let lanes: Vec<_> =
            lanes.narrow.iter_mut().map(|lane| scope.spawn(|| seconds_each(duration, || infer(lane)))).collect();
        let each: Vec<f64> = lanes.into_iter().map(|lane| lane.join().expect("no lane panics")).collect();
        each.iter().sum::<f64>() / each.len() as f64
    });
    let limit = cores.get() as f64 / (preprocessing + narrow);
    println!("engine                 {} {} ({})", lanes.info.kind, lanes.info.version, lanes.info.precision);
    println!("decode + resize        {:.2} ms on one core", preprocessing * 1e3);
    println!("inference              {:.2} ms on one core, all cores busy", narrow * 1e3);
    if let Some(wide) = wide {
        println!("inference              {:.2} ms on all {cores} cores together", wide * 1e3);
    }
    println!(
        "limit                  {limit:.1} images/s = {cores} / ({:.2} + {:.2}) ms\n",
        preprocessing * 1e3,
        narrow * 1e3
    );
    Ok(limit)
}

fn seconds_each(duration: Duration, mut work: impl FnMut()) -> f64 {
    for _ in 0..5 {
        work();
    }
    let started = Instant::now();
    let mut count = 0;
    while started.elapsed() < duration {
        work();
        count += 1;
    }
    started.elapsed().as_secs_f64() / f64::from(count)
}

/// `resnet18 serve` in a process of its own.
struct Server {
    child: Child,
    url: String,
}

impl Server {
    fn start() -> Result<Self, Box<dyn std::error::Error>> {
        let started = Instant::now();
        let mut child = Command::new(env!("CARGO_BIN_EXE_resnet18"))
            .args(["serve", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"])
            .stderr(Stdio::piped())
            .spawn()?;
        let lines = BufReader::new(child.stderr.take().ok_or("stderr is piped")?).lines();
        let mut url = None;
        for line in lines {
            let line = line?;
            if let Some((_, rest)) = line.split_once("serving gRPC on ") {
                url = rest.split(' ').next().map(|address| format!("http://{address}"));
            }
            if line.contains("serving, loaded") {
                break;
            }
        }
        println!("start to ready         {:.0?}\n", started.elapsed());
        Ok(Self { child, url: url.ok_or("the server says where it listens")? })
    }

    /// CPU seconds used so far; 0 where there is no /proc.
    fn cpu_seconds(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        let after_name = stat.rsplit(") ").next().unwrap_or_default();
        let ticks: f64 = after_name.split(' ').skip(11).take(2).filter_map(|t| t.parse::<f64>().ok()).sum();
        ticks / 100.0
    }

    fn resident_mib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).unwrap_or(0) / 1024
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
