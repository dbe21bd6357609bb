//! The whole server, as a separate process, under load: latency of a single client, throughput,
//! overload, and what an image costs, by terms of which the theoretical limit is made.
//!
//! `cargo bench --bench serving [-- IMAGE]`; RESNET18_BENCH_SECONDS sets the length of each
//! measurement (default 10). RESNET18_BENCH_PRECISIONS=fp32,bf16,int8 measures one after the other
//! in one run, int8 with the model RESNET18_BENCH_INT8; by default the engine chooses one. The server
//! reads its other flags from the environment: RESNET18_MODEL=model.onnx measures that model,
//! RESNET18_JPEG_SCALING=auto that decoding. Server and clients share the machine, so the clients' own
//! cost is part of the results.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use bytes::Bytes;
use clap::ValueEnum;
use resnet18_server::{
    client::load::{LoadConfig, LoadMode, LoadReport, OnRejection, run_load},
    engine::{self, Engine, EngineConfig, Precision},
    image::{JpegScaling, PreprocessConfig, Preprocessor, Resizer, Source, decode},
    model::{Model, Overrides},
};
use tonic::Code;

type Error = Box<dyn std::error::Error>;

/// The clients of the measurement that the costs are taken from.
const TYPICAL_CLIENTS: usize = 16;

fn main() -> Result<(), Error> {
    let image = image_path();
    let seconds = std::env::var("RESNET18_BENCH_SECONDS")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(10.0);
    let duration = Duration::from_secs_f64(seconds);
    let bytes = Bytes::from(fs::read(&image)?);
    let cores = std::thread::available_parallelism()?;
    let (name, features) = processor();
    println!("{name}, {cores} cores: {features}");
    println!(
        "{} ({} kB), {seconds} s per measurement\n",
        image.display(),
        bytes.len() / 1000
    );

    let mut costs = Vec::new();
    for variant in Variant::all()? {
        costs.push(measure(&variant, &bytes, duration)?);
    }
    println!(
        "CPU ms an image at {TYPICAL_CLIENTS} clients; the limit is {cores} cores / (decode + resize \
         + inference):"
    );
    println!(
        "precision  decode  resize  inference  kernel, network  the rest  limit/s  \
         images/s  share"
    );
    for cost in costs {
        let Cost {
            precision,
            terms,
            user,
            system,
            rate,
        } = cost;
        let limit = terms.limit(cores.get());
        let precision = precision.to_string();
        println!(
            "{precision:>9}  {:>6.2}  {:>6.2}  {:>9.2}  {:>15.2}  {:>8.2}  {limit:>7.1}  \
             {rate:>8.1}  {:>5.2}",
            terms.decode,
            terms.resize,
            terms.inference,
            system,
            user - terms.sum(),
            rate / limit,
        );
    }
    Ok(())
}

/// The processor's name, and those of its features that matter to engines and decoders.
fn processor() -> (String, String) {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let value = |keys: [&str; 2]| {
        let line = info
            .lines()
            .find(|line| keys.iter().any(|key| line.starts_with(key)));
        line.and_then(|line| Some(line.split_once(':')?.1.trim().to_owned()))
    };
    let name = value(["model name", "CPU part"]);
    let features = value(["flags", "Features"]).unwrap_or_default();
    let known = [
        "avx2", "bmi2", "avx512", "avx_vnni", "amx", "asimd", "bf16", "i8mm", "sve",
    ];
    let features: Vec<_> = features
        .split(' ')
        .filter(|feature| known.iter().any(|known| feature.starts_with(known)))
        .collect();
    (
        name.unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
        features.join(" "),
    )
}

/// What is measured: a precision, and the model for it.
#[derive(Default)]
struct Variant {
    precision: Option<Precision>,
    model: Option<PathBuf>,
}

impl Variant {
    fn all() -> Result<Vec<Self>, Error> {
        let Ok(precisions) = std::env::var("RESNET18_BENCH_PRECISIONS") else {
            return Ok(vec![Self::default()]);
        };
        let variant = |name: &str| -> Result<Self, Error> {
            let precision = Precision::from_str(name, true)?;
            let model = match precision {
                Precision::Int8 => {
                    let path = std::env::var_os("RESNET18_BENCH_INT8");
                    Some(
                        path.ok_or("int8 needs RESNET18_BENCH_INT8=model-int8.onnx")?
                            .into(),
                    )
                }
                _ => None,
            };
            Ok(Self {
                precision: Some(precision),
                model,
            })
        };
        precisions.split(',').map(variant).collect()
    }

    fn model(&self) -> Result<Model, Error> {
        let given = self.model.clone();
        let path = given.or_else(|| std::env::var_os("RESNET18_MODEL").map(PathBuf::from));
        Ok(match path {
            Some(path) => Model::from_file(&path, &Overrides::default())?,
            None => Model::bundled(&Overrides::default())?,
        })
    }
}

/// What an image costs, in CPU milliseconds.
struct Cost {
    precision: Precision,
    terms: Terms,
    /// What the server took in all, by itself and in the kernel.
    user: f64,
    system: f64,
    /// Images per second.
    rate: f64,
}

/// The parts of which the limit is made, each with all cores busy.
#[derive(Clone, Copy)]
struct Terms {
    decode: f64,
    resize: f64,
    inference: f64,
}

impl Terms {
    fn sum(self) -> f64 {
        self.decode + self.resize + self.inference
    }

    /// Images per second.
    fn limit(self, cores: usize) -> f64 {
        1e3 * cores as f64 / self.sum()
    }

    fn middle(self, other: Self) -> Self {
        Self {
            decode: f64::midpoint(self.decode, other.decode),
            resize: f64::midpoint(self.resize, other.resize),
            inference: f64::midpoint(self.inference, other.inference),
        }
    }
}

fn measure(variant: &Variant, bytes: &Bytes, duration: Duration) -> Result<Cost, Error> {
    let (precision, before) = terms(variant, bytes, duration.min(Duration::from_secs(5)))?;

    let server = Server::start(variant)?;
    let runtime = tokio::runtime::Runtime::new()?;
    let measure = |clients, on_rejection| -> Result<LoadReport, Error> {
        let mut config = LoadConfig::new(server.url.parse()?, vec![bytes.clone()]);
        config.mode = LoadMode::Closed { clients };
        config.duration = duration;
        config.on_rejection = on_rejection;
        Ok(runtime.block_on(run_load(config))?)
    };
    let mut rates = Vec::new();
    let mut typical = None;
    println!(
        "clients  images/s     p50     p99     max  refused  refusal p99  server CPU  RSS MiB"
    );
    for (clients, on_rejection) in [
        (1, OnRejection::Wait),
        (2, OnRejection::Wait),
        (4, OnRejection::Wait),
        (TYPICAL_CLIENTS, OnRejection::Wait),
        (64, OnRejection::Wait),
        (256, OnRejection::Wait),
        (256, OnRejection::Retry),
    ] {
        let [user, system] = server.cpu_seconds();
        let started = Instant::now();
        let report = measure(clients, on_rejection)?;
        let elapsed = started.elapsed().as_secs_f64();
        let [user, system] = [
            server.cpu_seconds()[0] - user,
            server.cpu_seconds()[1] - system,
        ];
        let cpu = (user + system) / elapsed;
        if clients == TYPICAL_CLIENTS {
            let each = 1e3 / (report.goodput * report.duration_s);
            typical = Some((user * each, system * each, report.goodput));
        }
        let latency = report
            .latency_ms
            .as_ref()
            .ok_or("no request was answered: measure longer (RESNET18_BENCH_SECONDS)")?;
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
    let total = |[user, system]: [f64; 2]| user + system;
    let idle = total(server.cpu_seconds());
    std::thread::sleep(Duration::from_secs(5));
    println!(
        "\nidle: {:.1} ms of CPU per second\n",
        (total(server.cpu_seconds()) - idle) * 200.0
    );
    drop(server);

    // The speed of a shared machine drifts by a few percent within minutes, so the terms of the limit
    // are measured before and after.
    let (_, after) = terms(variant, bytes, duration.min(Duration::from_secs(5)))?;
    let terms = before.middle(after);
    let limit = terms.limit(std::thread::available_parallelism()?.get());
    println!("share of the limit, {limit:.1} images/s (mean of before and after):");
    for (clients, rate) in rates {
        println!("{clients:>7} clients  {:.2}", rate / limit);
    }
    println!();
    let (user, system, rate) =
        typical.expect("TYPICAL_CLIENTS is one of the measured numbers of clients");
    Ok(Cost {
        precision,
        terms,
        user,
        system,
        rate,
    })
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

/// Measures each term with all cores busy, in CPU milliseconds an image, and tells the precision.
fn terms(
    variant: &Variant,
    bytes: &Bytes,
    duration: Duration,
) -> Result<(Precision, Terms), Error> {
    let cores = std::thread::available_parallelism()?;
    let model = variant.model()?;
    let geometry = model.geometry;
    let jpeg_scaling = match std::env::var("RESNET18_JPEG_SCALING").as_deref() {
        Ok("auto") => JpegScaling::Auto,
        _ => JpegScaling::Off,
    };
    let config = PreprocessConfig {
        jpeg_scaling,
        ..PreprocessConfig::default()
    };
    let source = Source::Encoded(bytes.clone());
    let mut crop = vec![0; geometry.bytes()];
    Preprocessor::new(config).crop(&source, &geometry, &mut crop)?;
    let mut preprocessors: Vec<_> = (0..cores.get())
        .map(|_| (Preprocessor::new(config), crop.clone()))
        .collect();
    let preprocessing = mean_of_all(&mut preprocessors, |(preprocessor, crop)| {
        seconds_each(duration / 2, || {
            preprocessor
                .crop(&source, &geometry, crop)
                .expect("the image can be decoded");
        })
    });
    // Decoding and resizing take turns with the rows of an image, so that only one of them can be
    // measured by itself. Of a scaled image it is not known.
    let pixels = decode(bytes, &config)?;
    let mut resizers: Vec<_> = (0..cores.get())
        .map(|_| (Resizer::default(), crop.clone()))
        .collect();
    let resizing = match jpeg_scaling {
        JpegScaling::Auto => 0.0,
        JpegScaling::Off => mean_of_all(&mut resizers, |(resizer, crop)| {
            seconds_each(duration / 4, || {
                resizer
                    .crop(&pixels, &geometry, crop)
                    .expect("the image can be resized");
            })
        }),
    };

    let mut engine_config = EngineConfig::new(cores);
    engine_config.precision = variant.precision;
    let mut lanes = engine::start(&engine_config, &model)?;
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
    let terms = Terms {
        decode: (preprocessing - resizing) * 1e3,
        resize: resizing * 1e3,
        inference: narrow * 1e3,
    };
    println!(
        "engine                 {} {} ({})",
        lanes.info.kind, lanes.info.version, lanes.info.precision
    );
    println!(
        "decode, resize         {:.2}, {:.2} ms on one core, all cores busy",
        terms.decode, terms.resize
    );
    println!(
        "inference              {:.2} ms on one core, all cores busy",
        terms.inference
    );
    if let Some(wide) = wide {
        println!(
            "inference              {:.2} ms on all {cores} cores together",
            wide * 1e3
        );
    }
    println!(
        "limit                  {:.1} images/s = {cores} / ({:.2} + {:.2} + {:.2}) ms\n",
        terms.limit(cores.get()),
        terms.decode,
        terms.resize,
        terms.inference
    );
    Ok((lanes.info.precision, terms))
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
    fn start(variant: &Variant) -> Result<Self, Error> {
        let started = Instant::now();
        let mut command = Command::new(env!("CARGO_BIN_EXE_resnet18"));
        command
            .args(["serve", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"])
            .stderr(Stdio::piped());
        if let Some(model) = &variant.model {
            command.env("RESNET18_MODEL", model);
        }
        if let Some(precision) = variant.precision {
            command.args(["--precision", &precision.to_string()]);
        }
        let mut child = command.spawn()?;
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
            url: url
                .ok_or("the server ended before it listened; run `resnet18 serve` to see why")?,
        })
    }

    /// CPU seconds used so far, by itself and in the kernel; 0 on systems without /proc.
    fn cpu_seconds(&self) -> [f64; 2] {
        let stat =
            fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        let after_name = stat.rsplit(") ").next().unwrap_or_default();
        let mut ticks = after_name
            .split(' ')
            .skip(11)
            .map(|ticks| ticks.parse().unwrap_or(0.0));
        [(); 2].map(|()| ticks.next().unwrap_or(0.0) / 100.0)
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
