//! The whole server, as a separate process, under load: latency of a single client, throughput,
//! overload, and each term of the theoretical limit.
//!
//! `cargo bench --bench serving [-- IMAGE]`; RESNET18_BENCH_SECONDS sets the length of each
//! measurement (default 10). The server reads its flags from the environment:
//! RESNET18_MODEL=int8.onnx measures that model, RESNET18_JPEG_SCALING=auto that decoding.
//! Server and clients share the machine, so the clients' own cost is part of the results.

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
    image::{JpegScaling, PreprocessConfig, Preprocessor, Source},
    model::{Model, Overrides},
};
use tonic::Code;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let image = image_path();
    let seconds = std::env::var("RESNET18_BENCH_SECONDS")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(10.0);
    let duration = Duration::from_secs_f64(seconds);
    let bytes = Bytes::from(fs::read(&image)?);
    println!(
        "{} ({} kB), {seconds} s per measurement\n",
        image.display(),
        bytes.len() / 1000
    );

    let before = limit(&bytes, duration.min(Duration::from_secs(5)))?;

    let server = Server::start()?;
    let runtime = tokio::runtime::Runtime::new()?;
    let measure = |clients, on_rejection| -> Result<LoadReport, Box<dyn std::error::Error>> {
        let mut config = LoadConfig::new(server.url.parse()?, vec![bytes.clone()]);
        config.mode = LoadMode::Closed { clients };
        config.duration = duration;
        config.on_rejection = on_rejection;
        Ok(runtime.block_on(run_load(config))?)
    };
    let mut rates = Vec::new();
    println!(
        "clients  images/s     p50     p99     max  refused  refusal p99  server CPU  RSS MiB"
    );
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
        let latency = report
            .latency_ms
            .as_ref()
            .ok_or("no request was answered")?;
        let refusal = report
            .rejection_latency_ms
            .as_ref()
            .map_or("-".into(), |r| format!("{:.1} ms", r.p99));
        println!(
            "{clients:>7}  {:>8.1}  {:>6.1}  {:>6.1}  {:>6.1}  {:>7}  \
             {refusal:>11}  {cpu:>10.2}  {:>7}{}",
            report.goodput,
            latency.p50,
            latency.p99,
            latency.max,
            report.count(Code::ResourceExhausted),
            server.resident_mib(),
            if on_rejection == OnRejection::Retry {
                "  (clients retry)"
            } else {
                ""
            },
        );
        if let Some(means) = &report.server_mean_ms {
            println!(
                "         server means: decode {:.2}, queue {:.2}, inference {:.2}, \
                 total {:.2} ms; latency mean {:.2}",
                means.decode, means.queue, means.inference, means.total, latency.mean
            );
        }
        rates.push((clients, report.goodput));
    }
    let idle = server.cpu_seconds();
    std::thread::sleep(Duration::from_secs(5));
    println!(
        "\nidle: {:.1} ms of CPU per second\n",
        (server.cpu_seconds() - idle) * 200.0
    );
    drop(server);

    // The speed of a shared machine drifts by a few percent within minutes, so the limit is
    // measured before and after.
    let after = limit(&bytes, duration.min(Duration::from_secs(5)))?;
    let limit = f64::midpoint(before, after);
    println!("share of the limit, {limit:.1} images/s (mean of before and after):");
    for (clients, rate) in rates {
        println!("{clients:>7} clients  {:.2}", rate / limit);
    }
    Ok(())
}

fn image_path() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let given = std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with('-'));
    let shared = root.join("../shared/golden/images/bench_500x375.jpg");
    match given {
        Some(path) => path.into(),
        None if shared.exists() => shared,
        None => root.join("tests/data/cat.jpg"),
    }
}

/// Measures each term with all cores busy, and returns the limit in images per second: cores /
/// (decode + resize + inference, in CPU seconds per image).
fn limit(bytes: &Bytes, duration: Duration) -> Result<f64, Box<dyn std::error::Error>> {
    let cores = std::thread::available_parallelism()?;
    let model = match std::env::var_os("RESNET18_MODEL") {
        Some(path) => Model::from_file(Path::new(&path), &Overrides::default())?,
        None => Model::bundled(&Overrides::default())?,
    };
    let jpeg_scaling = match std::env::var("RESNET18_JPEG_SCALING").as_deref() {
        Ok("auto") => JpegScaling::Auto,
        _ => JpegScaling::Off,
    };
    let config = PreprocessConfig {
        jpeg_scaling,
        ..PreprocessConfig::default()
    };
    let source = Source::Encoded(bytes.clone());
    let mut crop = vec![0; model.geometry.bytes()];
    Preprocessor::new(config).crop(&source, &model.geometry, &mut crop)?;
    let mut preprocessors: Vec<_> = (0..cores.get())
        .map(|_| (Preprocessor::new(config), crop.clone()))
        .collect();
    let preprocessing = mean_of_all(&mut preprocessors, |(preprocessor, crop)| {
        seconds_each(duration / 2, || {
            preprocessor
                .crop(&source, &model.geometry, crop)
                .expect("the image can be decoded");
        })
    });

    let mut lanes = engine::start(&EngineConfig::new(cores), &model)?;
    let classes = model.graph.classes;
    let infer = |engine: &mut Box<dyn Engine>| {
        let mut logits = vec![0.0; classes];
        engine
            .infer(&crop, 1, &mut logits)
            .expect("the engine works");
    };
    let wide = lanes
        .wide
        .as_mut()
        .map(|wide| seconds_each(duration, || infer(wide)));
    let narrow = mean_of_all(&mut lanes.narrow, |lane| {
        seconds_each(duration, || infer(lane))
    });
    let limit = cores.get() as f64 / (preprocessing + narrow);
    println!(
        "engine                 {} {} ({})",
        lanes.info.kind, lanes.info.version, lanes.info.precision
    );
    println!(
        "decode + resize        {:.2} ms on one core, all cores busy",
        preprocessing * 1e3
    );
    println!(
        "inference              {:.2} ms on one core, all cores busy",
        narrow * 1e3
    );
    if let Some(wide) = wide {
        println!(
            "inference              {:.2} ms on all {cores} cores together",
            wide * 1e3
        );
    }
    println!(
        "limit                  {limit:.1} images/s = {cores} / ({:.2} + {:.2}) ms\n",
        preprocessing * 1e3,
        narrow * 1e3
    );
    Ok(limit)
}

/// The mean of `measure` over all workers, which run at the same time.
fn mean_of_all<T: Send>(workers: &mut [T], measure: impl Fn(&mut T) -> f64 + Sync) -> f64 {
    let measure = &measure;
    let sum: f64 = std::thread::scope(|scope| {
        let threads: Vec<_> = workers
            .iter_mut()
            .map(|worker| scope.spawn(move || measure(worker)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("no worker panics"))
            .sum()
    });
    sum / workers.len() as f64
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

/// `resnet18 serve` in a separate process.
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
                url = rest
                    .split(' ')
                    .next()
                    .map(|address| format!("http://{address}"));
            }
            if line.contains("serving, loaded") {
                break;
            }
        }
        println!("start to ready         {:.0?}\n", started.elapsed());
        Ok(Self {
            child,
            url: url.ok_or("the server says where it listens")?,
        })
    }

    /// CPU seconds used so far; 0 on systems without /proc.
    fn cpu_seconds(&self) -> f64 {
        let stat =
            fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        let after_name = stat.rsplit(") ").next().unwrap_or_default();
        let ticks: f64 = after_name
            .split(' ')
            .skip(11)
            .take(2)
            .filter_map(|t| t.parse::<f64>().ok())
            .sum();
        ticks / 100.0
    }

    fn resident_mib(&self) -> u64 {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
            .unwrap_or(0)
            / 1024
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
