//! The checks on a card.

use std::{
    any::Any,
    env,
    fmt::Write,
    fs,
    num::NonZeroUsize,
    panic::{AssertUnwindSafe, catch_unwind},
    process::{Command, ExitCode},
    sync::{Arc, Barrier},
    thread,
    time::{Duration, Instant},
};

use cudarc::driver::CudaSlice;
use resnet18_server::{
    engine::{
        self, Engine, EngineConfig, EngineError, EngineKind,
        tensorrt::plumbing::{Card, Lane, Shape, Stage, Step},
    },
    image::{PreprocessConfig, Preprocessor, Source},
    model::{Model, Overrides},
};
use rustix::time::{ClockId, clock_gettime};

use crate::{
    IS_SIMULATED,
    common::{Server, skipped, text},
    kernels::{self, Module},
    mix::{Mix, Settings, expected},
    resnet::{Graph, Resnet},
};

const SHAPE: Shape = Shape {
    image: [224, 224, 3],
    classes: 1000,
    max_batch: 32,
};

const SETTINGS: Settings = Settings {
    shape: SHAPE,
    rounds: 1,
    scratch: 0,
    is_faulty: false,
};

const PHOTOS: [&[u8]; 7] = [
    include_bytes!("../../data/photos/cat.jpg"),
    include_bytes!("../../data/photos/dolphin.jpg"),
    include_bytes!("../../data/photos/grand_piano.jpg"),
    include_bytes!("../../data/photos/leopard.jpg"),
    include_bytes!("../../data/photos/pizza.jpg"),
    include_bytes!("../../data/photos/sunflower.jpg"),
    include_bytes!("../../data/photos/umbrella.jpg"),
];

/// How far FP16 may move a probability; docs/gpu.md tells 0.0008.
const TOLERANCE: f32 = 0.002;

fn is_simulated() -> bool {
    env::var_os(IS_SIMULATED).is_some()
}

/// What a check has found; it panics if that is wrong.
type Check = fn(&Bench) -> String;

/// A card with the kernels on it.
struct Bench {
    card: Card,
    module: Arc<Module>,
}

/// Runs every check, and says what each has found.
pub fn check() -> ExitCode {
    let card = match Card::open(0) {
        Ok(card) => card,
        Err(error) if is_simulated() => panic!("the simulated driver: {error}"),
        Err(error) => {
            skipped(&format!("the checks on a card: {error}"));
            return ExitCode::SUCCESS;
        }
    };
    println!(
        "--      {}, compute capability {}, driver for CUDA {}",
        card.name(),
        card.capability(),
        card.driver()
    );
    let target = card.capability().sm();
    let image = if is_simulated() {
        Ok((vec![0], "compiled for the simulated driver".to_owned()))
    } else {
        kernels::image(target)
    };
    let module = match &image {
        Ok((image, from)) => {
            println!("--      kernels for sm_{target}: {from}");
            Module::load(card.context(), image).map_err(|error| error.to_string())
        }
        Err(reason) => Err(reason.clone()),
    };
    let module = match module {
        Ok(module) => module,
        Err(reason) => {
            println!("FAILED  the kernels: {reason}");
            return ExitCode::FAILURE;
        }
    };

    let bench = Bench { card, module };
    let checks: [(&str, Check); 9] = [
        ("the engine refuses the card, or starts on it", refusal),
        ("the server says so too, and serves without it", server),
        (
            "batches of 1 to 32 on two lanes, graphs recorded",
            batches::<true>,
        ),
        (
            "batches of 1 to 32 on two lanes, without graphs",
            batches::<false>,
        ),
        ("one lane copies while the other computes", overlap),
        ("a thread that waits for the card takes no core", waiting),
        ("little memory makes batches smaller and loses none", memory),
        ("a fault of the card ends both of its lanes", fault),
        ("the model in FP16 answers as in fp32", fp16),
    ];
    let mut failed = 0;
    for (name, check) in checks {
        let started = Instant::now();
        match catch_unwind(AssertUnwindSafe(|| check(&bench))) {
            Ok(found) => {
                println!("ok      {name} ({:.1} s)", started.elapsed().as_secs_f64());
                found.lines().for_each(|line| println!("        {line}"));
            }
            Err(reason) => {
                failed += 1;
                println!("FAILED  {name}: {}", panic_text(&*reason));
            }
        }
    }
    println!("--      {} checks, {failed} failed", checks.len());
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn panic_text(reason: &(dyn Any + Send)) -> String {
    let text = reason.downcast_ref::<String>().cloned();
    text.or_else(|| reason.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_default()
}

fn threads() -> NonZeroUsize {
    thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

fn bundled() -> Model {
    Model::bundled(&Overrides::default()).unwrap()
}

/// The message of the engine, which has to name the card and the other feature where TensorRT-RTX
/// does not know the card.
fn refusal(bench: &Bench) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut config = EngineConfig {
        kind: Some(EngineKind::TensorRt),
        ..EngineConfig::new(threads())
    };
    config.tensorrt.cache = Some(folder.path().to_owned());
    let capability = bench.card.capability();
    match engine::start(&config, &bundled()) {
        Ok(lanes) => format!(
            "TensorRT runs here: {} {}",
            lanes.info.version, lanes.info.device
        ),
        Err(error @ EngineError::Unavailable { .. }) => {
            let said = error.to_string();
            if capability.major == 9 {
                assert!(
                    said.contains("does not support GPU 0")
                        && said.contains("compute capability 9.0")
                        && said.contains("--features tensorrt-enterprise"),
                    "{said}"
                );
            }
            said
        }
        Err(error) => panic!("{error}"),
    }
}

/// The whole program: refused by name it ends, and by itself it goes on with another engine.
fn server(bench: &Bench) -> String {
    let program = || {
        let mut program = Command::new(env::current_exe().unwrap());
        program.env_remove("RESNET18_ENGINE");
        program
    };
    let mut found = String::new();
    if bench.card.capability().major == 9 {
        let output = program()
            .args(["serve", "--engine", "tensorrt"])
            .args(["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"])
            .output()
            .unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("compute capability 9.0"), "{said}");
    }

    let server = Server::start_as(program(), &[]);
    let log = server.log();
    for line in log.lines().filter(|line| line.contains("tensorrt engine")) {
        writeln!(found, "{}", line.trim()).unwrap();
    }
    let (_, metrics) = server.get("/metrics");
    let gpus: Vec<&str> = metrics
        .lines()
        .filter(|line| line.starts_with("classifier_gpu_"))
        .collect();
    if has_nvml() {
        assert!(
            !gpus.is_empty(),
            "no metrics of the GPU, see the log:\n{log}"
        );
    } else {
        writeln!(
            found,
            "no metrics of the GPU: there is no libnvidia-ml.so.1"
        )
        .unwrap();
    }
    for line in gpus {
        writeln!(found, "{line}").unwrap();
    }
    found
}

/// Whether the driver's library for readings is here; the simulated driver has none.
fn has_nvml() -> bool {
    // SAFETY: NVML only sets up its own state when it is loaded, and may be unloaded again.
    unsafe { libloading::Library::new("libnvidia-ml.so.1") }.is_ok()
}

impl Bench {
    fn lanes<const RECORDED: bool>(&self, settings: Settings) -> Vec<Lane<Mix<RECORDED>>> {
        let network = || Mix::new(&self.module, settings);
        self.card.lanes(settings.shape, network).unwrap()
    }
}

/// Bytes without a pattern (xorshift).
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| next()).collect()
}

fn image_len() -> usize {
    SHAPE.image.iter().product::<i64>() as usize
}

/// Every size of batch on both lanes at once, each image with an answer of its own.
fn batches<const RECORDED: bool>(bench: &Bench) -> String {
    let images: Vec<Vec<u8>> = (0..70).map(|seed| noise(seed, image_len())).collect();
    let answers: Vec<Vec<f32>> = images
        .iter()
        .map(|image| expected(image, SHAPE.classes, 1))
        .collect();
    let compute = |lane: &mut Lane<Mix<RECORDED>>, first: usize, n: usize| {
        let images = &images[first..first + n];
        let mut logits = vec![f32::NAN; n * SHAPE.classes];
        if n.is_multiple_of(2) {
            lane.infer_apart(images, &mut Vec::new(), &mut logits)
        } else {
            lane.infer(&images.concat(), n, &mut logits)
        }
        .unwrap();
        for (index, (found, expected)) in logits
            .chunks(SHAPE.classes)
            .zip(&answers[first..])
            .enumerate()
        {
            assert!(found == expected, "image {index} of {n} has another answer");
        }
    };
    let compute = &compute;
    let lanes = bench.lanes::<RECORDED>(SETTINGS);
    let count = lanes.len();
    thread::scope(|scope| {
        for (index, mut lane) in lanes.into_iter().enumerate() {
            scope.spawn(move || {
                for n in 1..=SHAPE.max_batch {
                    compute(&mut lane, index * 38, n);
                }
                // More than a batch is computed in parts.
                compute(&mut lane, 0, 70);
                compute(&mut lane, 69, 1);
            });
        }
    });
    format!("{count} lanes, 599 images each, exact")
}

/// How long two sets of periods overlap.
fn common_time<'a>(a: impl Iterator<Item = &'a Step> + Clone, b: &[&Step]) -> Duration {
    let overlap = |x: &Step, y: &Step| x.end.min(y.end).saturating_sub(x.start.max(y.start));
    b.iter()
        .map(|y| a.clone().map(|x| overlap(x, y)).sum::<Duration>())
        .sum()
}

/// Copies of one lane while the other one's kernel runs, by CUDA's clock.
fn overlap(bench: &Bench) -> String {
    const BATCHES: usize = 50;

    let settings = Settings {
        rounds: rounds(bench, SHAPE.max_batch, Duration::from_millis(1)),
        ..SETTINGS
    };
    let n = SHAPE.max_batch;
    let images = noise(1, n * image_len());
    let run = |lane: &mut Lane<Mix<true>>, batches: usize| {
        let mut logits = vec![0.0; n * SHAPE.classes];
        for _ in 0..batches {
            lane.infer(&images, n, &mut logits).unwrap();
        }
    };

    let mut lanes = bench.lanes::<true>(settings);
    lanes.iter_mut().for_each(|lane| run(lane, 2));
    let started = Instant::now();
    run(&mut lanes[0], BATCHES);
    let alone = started.elapsed();

    lanes.iter_mut().for_each(Lane::record);
    let barrier = Barrier::new(lanes.len());
    let started = Instant::now();
    thread::scope(|scope| {
        for lane in &mut lanes {
            scope.spawn(|| {
                barrier.wait();
                run(lane, BATCHES);
            });
        }
    });
    let together = started.elapsed();
    let steps: Vec<Vec<Step>> = lanes.iter_mut().map(|lane| lane.steps().unwrap()).collect();

    let mut found = String::new();
    let is_copy = |step: &&Step| step.stage != Stage::Run;
    let is_run = |step: &&Step| step.stage == Stage::Run;
    for (lane, other) in [(0, 1), (1, 0)] {
        let copies = steps[lane].iter().filter(is_copy);
        let runs: Vec<&Step> = steps[other].iter().filter(is_run).collect();
        let hidden = common_time(copies.clone(), &runs);
        let total: Duration = copies.map(|step| step.end - step.start).sum();
        assert!(
            !hidden.is_zero(),
            "lane {lane} never copied while the other one computed"
        );
        writeln!(
            found,
            "lane {lane}: copies took {total:.1?}, of which {hidden:.1?} beside the other's kernel"
        )
        .unwrap();
    }
    for stage in [Stage::Upload, Stage::Run, Stage::Download] {
        let times: Vec<Duration> = steps
            .iter()
            .flatten()
            .filter(|step| step.stage == stage)
            .map(|step| step.end - step.start)
            .collect();
        let mean = times.iter().sum::<Duration>() / times.len() as u32;
        writeln!(found, "{stage:?} of {n} images: {mean:.1?}").unwrap();
    }
    let rate = |images: usize, time: Duration| images as f64 / time.as_secs_f64();
    writeln!(
        found,
        "{:.0} images/s on one lane, {:.0} on two",
        rate(n * BATCHES, alone),
        rate(2 * n * BATCHES, together)
    )
    .unwrap();
    found
}

/// How often images are gone through for the kernel to take this long.
fn rounds(bench: &Bench, n: usize, time: Duration) -> i32 {
    let mut rounds = 1;
    loop {
        let settings = Settings { rounds, ..SETTINGS };
        let mut lane = bench.lanes::<false>(settings).remove(0);
        let found = lane.device_time(n, 1).and_then(|_| lane.device_time(n, 3));
        if found.unwrap() >= time || rounds >= 1 << 20 {
            return rounds;
        }
        rounds *= 2;
    }
}

/// The CPU time of the calling thread.
fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// How often the calling thread has gone to sleep by itself.
fn sleeps() -> u64 {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.unwrap().trim().parse().unwrap()
}

fn waiting(bench: &Bench) -> String {
    const BATCHES: u32 = 10;

    let settings = Settings {
        rounds: rounds(bench, 1, Duration::from_millis(20)),
        ..SETTINGS
    };
    let mut lane = bench.lanes::<true>(settings).remove(0);
    let image = noise(1, image_len());
    let mut logits = vec![0.0; SHAPE.classes];
    lane.infer(&image, 1, &mut logits).unwrap();
    let (started, used, slept) = (Instant::now(), thread_time(), sleeps());
    for _ in 0..BATCHES {
        lane.infer(&image, 1, &mut logits).unwrap();
    }
    let (took, used, slept) = (started.elapsed(), thread_time() - used, sleeps() - slept);
    // A thread that spins hardly sleeps, and uses all of the CPU that others leave it.
    assert!(
        slept >= u64::from(BATCHES) && used < took / 10,
        "it slept {slept} times for {BATCHES} batches, and used the CPU for {used:?} of {took:?}"
    );
    format!("{BATCHES} batches: it slept {slept} times, {used:.1?} on the CPU in {took:.1?}")
}

/// Lanes where only a few MiB are free: the largest batch that fits is taken, and all are answered.
fn memory(bench: &Bench) -> String {
    const SCRATCH: usize = 16 << 20;

    let context = bench.card.context();
    context.bind_to_thread().unwrap();
    let (free, _) = context.mem_get_info().unwrap();
    let stream = context.default_stream();
    // The first lane finds room for 16 images, the second for 8.
    let leave = 24 * (SCRATCH + 2 * image_len());
    let taken: CudaSlice<u8> = stream.alloc_zeros(free.saturating_sub(leave)).unwrap();
    stream.synchronize().unwrap();

    let settings = Settings {
        scratch: SCRATCH,
        ..SETTINGS
    };
    let started = bench
        .card
        .lanes(settings.shape, || Mix::<true>::new(&bench.module, settings));
    drop(taken);
    let mut lanes = started.unwrap();
    let n = 32;
    let images = noise(3, n * image_len());
    let mut largest = Vec::new();
    for lane in &mut lanes {
        lane.record();
        let mut logits = vec![f32::NAN; n * SHAPE.classes];
        lane.infer(&images, n, &mut logits).unwrap();
        for (image, logits) in images.chunks(image_len()).zip(logits.chunks(SHAPE.classes)) {
            assert!(
                logits == expected(image, SHAPE.classes, 1),
                "another answer"
            );
        }
        let steps = lane.steps().unwrap();
        let runs = steps.iter().filter(|step| step.stage == Stage::Run).count();
        assert!(runs > 1, "there was room for a batch of {n}");
        largest.push(n / runs);
    }
    format!("{} MiB free: batches of {largest:?}", leave >> 20)
}

/// In a process of its own: nothing works on the card any more after a fault.
fn fault(_: &Bench) -> String {
    let output = Command::new(env::current_exe().unwrap())
        .arg("lost")
        .output()
        .unwrap();
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}{}", text(&output.stderr));
    said
}

/// Makes the card fail, and checks how both lanes end.
pub fn lose() -> ExitCode {
    let card = Card::open(0).unwrap();
    let image = if is_simulated() {
        vec![0]
    } else {
        kernels::image(card.capability().sm()).unwrap().0
    };
    let module = Module::load(card.context(), &image).unwrap();
    let settings = Settings {
        is_faulty: true,
        ..SETTINGS
    };
    let mut lanes = card
        .lanes(settings.shape, || Mix::<true>::new(&module, settings))
        .unwrap();
    let image = noise(1, image_len());
    let mut logits = vec![0.0; SHAPE.classes];
    for lane in &mut lanes {
        match lane.infer(&image, 1, &mut logits) {
            Err(error @ EngineError::Lost { .. }) => println!("{error}"),
            Err(error) => panic!("it is not lost: {error}"),
            Ok(()) => panic!("nothing failed"),
        }
    }
    ExitCode::SUCCESS
}

fn softmax(logits: &[f32]) -> Vec<f32> {
    let largest = logits.iter().copied().fold(f32::MIN, f32::max);
    let powers: Vec<f32> = logits.iter().map(|logit| (logit - largest).exp()).collect();
    let sum: f32 = powers.iter().sum();
    powers.iter().map(|power| power / sum).collect()
}

fn best(values: &[f32]) -> usize {
    let best = values.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    best.expect("there are classes").0
}

/// The typed graph on the card, beside the embedded engine in fp32.
fn fp16(bench: &Bench) -> String {
    let model = bundled();
    // A CPU takes seconds for each image.
    let photos = if is_simulated() {
        &PHOTOS[..1]
    } else {
        &PHOTOS
    };
    let mut preprocessor = Preprocessor::new(PreprocessConfig::default());
    let crops: Vec<Vec<u8>> = photos
        .iter()
        .map(|photo| {
            let mut crop = vec![0; model.geometry.bytes()];
            let source = Source::Encoded((*photo).into());
            preprocessor
                .crop(&source, &model.geometry, &mut crop)
                .unwrap();
            crop
        })
        .collect();
    let config = EngineConfig {
        kind: Some(EngineKind::Embedded),
        ..EngineConfig::new(threads())
    };
    let mut reference = engine::start(&config, &model).unwrap().narrow.remove(0);
    let classes = model.graph.classes;
    let references: Vec<Vec<f32>> = crops
        .iter()
        .map(|crop| {
            let mut logits = vec![0.0; classes];
            reference.infer(crop, 1, &mut logits).unwrap();
            logits
        })
        .collect();

    let max_batch = photos.len().next_power_of_two();
    let graph = Graph::load(&bench.module, &model, max_batch).unwrap();
    let mut lanes = bench
        .card
        .lanes(graph.shape, || Ok(Resnet::new(&graph)))
        .unwrap();
    let (mut by_logit, mut by_probability) = (0.0_f32, 0.0_f32);
    let mut compare = |lane: &mut Lane<Resnet>, n: usize| {
        let mut logits = vec![f32::NAN; n * classes];
        lane.infer_apart(&crops[..n], &mut Vec::new(), &mut logits)
            .unwrap();
        for (found, expected) in logits.chunks(classes).zip(&references) {
            assert!(found.iter().all(|logit| logit.is_finite()), "not a number");
            assert_eq!(best(found), best(expected), "another first class");
            let pairs = found.iter().zip(expected);
            by_logit = pairs.map(|(a, b)| (a - b).abs()).fold(by_logit, f32::max);
            let (found, expected) = (softmax(found), softmax(expected));
            let pairs = found.iter().zip(&expected);
            by_probability = pairs
                .map(|(a, b)| (a - b).abs())
                .fold(by_probability, f32::max);
        }
    };
    if is_simulated() {
        lanes.truncate(1);
    }
    for lane in &mut lanes {
        for n in 1..=photos.len() {
            compare(lane, n);
        }
    }
    assert!(by_probability < TOLERANCE, "moved by {by_probability}");
    // Exactly the values of fp32 would mean that nothing was computed in FP16.
    assert!(by_logit > 0.0, "it was computed in fp32");
    let mut found = format!(
        "{} kernels, {} photos: logits moved by {by_logit:.4}, probabilities by {by_probability:.6}",
        graph.len(),
        photos.len()
    );
    if !is_simulated() {
        let time = lanes[0].device_time(photos.len(), 10).unwrap();
        write!(
            found,
            "; {time:.1?} a batch, by kernels that are written to be read"
        )
        .unwrap();
    }
    found
}
