//! Benchmarks of image preprocessing: decoding, resizing and both together, for files of several
//! formats and sizes, by one thread and by two; and raw frames.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use resnet18_server::image::{
    Assist, Geometry, Helpers, JpegScaling, PixelFormat, PreprocessConfig, Preprocessor, RawFrame,
    Resizer, Source, decode,
};

const GEOMETRY: Geometry = Geometry::cropped(224, 224, 256);

/// Photos of this repository, and larger ones from `../shared`, which are skipped if missing.
const FILES: [&str; 9] = [
    "tests/data/cat.jpg",
    "tests/data/cat_lossy.webp",
    "tests/data/moon_16bit.png",
    "../shared/golden/images/bench_500x375.jpg",
    "../shared/golden/images/bench_12mp.jpg",
    "../shared/golden/images/coffee.png",
    "../shared/golden/images/cat.gif",
    "../shared/golden/images/sunflower.bmp",
    "../shared/golden/images/sunflower_lossless.webp",
];

/// A thread that has nothing to do but to help.
#[derive(Debug)]
struct Idle {
    calls: mpsc::Sender<Call>,
    waiting: Arc<AtomicUsize>,
}

struct Call(Arc<dyn Assist>);

impl Idle {
    fn start() -> Arc<dyn Helpers> {
        let (calls, called) = mpsc::channel::<Call>();
        let waiting = Arc::new(AtomicUsize::new(0));
        let left = Arc::clone(&waiting);
        thread::spawn(move || {
            for Call(work) in called {
                left.fetch_sub(1, Ordering::Relaxed);
                work.assist();
            }
        });
        Arc::new(Self { calls, waiting })
    }
}

impl Helpers for Idle {
    fn idle(&self) -> usize {
        1
    }

    fn call(&self, work: Arc<dyn Assist>) -> bool {
        // As the server's scheduler, which has one core beside the one that decodes.
        let is_first = self.waiting.fetch_max(1, Ordering::Relaxed) == 0;
        is_first && self.calls.send(Call(work)).is_ok()
    }
}

fn files(c: &mut Criterion) {
    let config = PreprocessConfig::default();
    let helpers = Idle::start();
    let mut crop = vec![0; GEOMETRY.bytes()];
    for file in FILES {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        let Ok(bytes) = fs::read(&path) else {
            eprintln!("skipped {file}: not found");
            continue;
        };
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let mut group = c.benchmark_group(name);
        group
            .sample_size(20)
            .throughput(Throughput::Bytes(bytes.len() as u64));

        group.bench_function("decode", |b| {
            b.iter(|| decode(&bytes, &config).expect("the image is valid"));
        });

        let pixels = decode(&bytes, &config).expect("the image is valid");
        let mut resizer = Resizer::default();
        group.bench_function("resize", |b| {
            b.iter(|| {
                resizer
                    .crop(&pixels, &GEOMETRY, &mut crop)
                    .expect("the image is valid");
            });
        });

        let source = Source::Encoded(Bytes::from(bytes));
        let mut preprocessor = Preprocessor::new(config);
        group.bench_function("preprocess", |b| {
            b.iter(|| {
                preprocessor
                    .crop(&source, &GEOMETRY, &mut crop)
                    .expect("the image is valid");
            });
        });

        let mut preprocessor = Preprocessor::new(config).with_helpers(Arc::clone(&helpers));
        group.bench_function("preprocess with two threads", |b| {
            b.iter(|| {
                preprocessor
                    .crop(&source, &GEOMETRY, &mut crop)
                    .expect("the image is valid");
            });
        });

        // Smaller images are not scaled down while they are decoded.
        if pixels.width.min(pixels.height) >= 4 * GEOMETRY.resize_shorter_side {
            let mut preprocessor = Preprocessor::new(PreprocessConfig {
                jpeg_scaling: JpegScaling::Auto,
                ..config
            });
            group.bench_function("preprocess scaled", |b| {
                b.iter(|| {
                    preprocessor
                        .crop(&source, &GEOMETRY, &mut crop)
                        .expect("the image is valid");
                });
            });
        }
        group.finish();
    }
}

fn raw_frames(c: &mut Criterion) {
    let mut crop = vec![0; GEOMETRY.bytes()];
    let mut preprocessor = Preprocessor::new(PreprocessConfig::default());
    let mut group = c.benchmark_group("raw 1280x720");
    for (format, bits_per_pixel) in [
        (PixelFormat::Rgb8, 24),
        (PixelFormat::Bgra8, 32),
        (PixelFormat::Gray8, 8),
        (PixelFormat::Nv12, 12),
        (PixelFormat::I420, 12),
    ] {
        let data = Bytes::from(vec![100; 1280 * 720 * bits_per_pixel / 8]);
        let frame = Source::Raw(RawFrame {
            format,
            width: 1280,
            height: 720,
            stride: 0,
            data,
        });
        group.bench_function(format!("{format:?}"), |b| {
            b.iter(|| {
                preprocessor
                    .crop(&frame, &GEOMETRY, &mut crop)
                    .expect("the frame is valid");
            });
        });
    }
    group.finish();
}

criterion_group!(benches, files, raw_frames);
criterion_main!(benches);
