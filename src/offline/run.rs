//! Many image files through a model in this process, at full speed: what `train` and `evaluate` run
//! on.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde::Serialize;
use thiserror::Error;

use crate::{
    engine::{self, EngineConfig, EngineError, EngineInfo},
    image::{ImageError, PreprocessConfig, Source},
    metrics::ModelMetrics,
    model::Model,
    offline::dataset::Labelled,
    scheduler::{
        Capacity, ClientId, InputImage, Job, JobError, LoadedModel, Priority, Queue, Scheduler,
        SchedulerConfig, SpawnError,
    },
};

/// Larger files are not read, in bytes.
const LARGEST_FILE: u64 = 256 << 20;

/// How to run a model.
#[derive(Clone, Debug)]
pub struct OfflineConfig {
    /// What runs it.
    pub engine: EngineConfig,
    /// How images are decoded.
    pub preprocess: PreprocessConfig,
}

/// A model that has been loaded, for files instead of clients.
pub struct Offline {
    /// What runs it.
    pub engine: EngineInfo,
    queue: Queue,
    /// Its threads serve the queue.
    _scheduler: Scheduler,
}

/// An image file, as it is or mirrored left to right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Photo {
    /// Where it is.
    pub path: PathBuf,
    /// Whether its crop is mirrored.
    pub mirrored: bool,
}

/// Why one file has no answer; the others may have.
#[derive(Debug, Error)]
pub enum PhotoError {
    /// The system can't read it.
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
    /// It is larger than any photo.
    #[error("is larger than {} MiB, the most that is read", LARGEST_FILE >> 20)]
    TooLarge,
    /// It is no image that can be decoded.
    #[error(transparent)]
    Image(#[from] ImageError),
}

/// Why no file has an answer.
#[derive(Debug, Error)]
pub enum OfflineError {
    /// The engine can't start.
    #[error(transparent)]
    Start(#[from] EngineError),
    /// A worker thread can't be started.
    #[error(transparent)]
    Thread(#[from] SpawnError),
    /// The engine failed on the way.
    #[error(transparent)]
    Engine(#[from] Arc<EngineError>),
    /// A worker thread ended early.
    #[error("the worker threads stopped: {0}")]
    Stopped(String),
}

impl Offline {
    /// Loads `model`; it blocks for as long as that takes.
    ///
    /// # Errors
    /// An engine that can't start.
    pub fn start(config: &OfflineConfig, model: &Model) -> Result<Self, OfflineError> {
        let mut lanes = engine::start(&config.engine, model)?;
        // It rounds a little differently: when it is used depends on timing, and the same run must
        // give the same numbers.
        lanes.wide = None;
        let engine = lanes.info.clone();
        let metrics = Arc::new(ModelMetrics::new(&model.name));
        let loaded = LoadedModel {
            lanes,
            geometry: model.geometry,
            classes: model.graph.classes,
            metrics,
        };
        let scheduler = Scheduler::new(SchedulerConfig {
            threads: config.engine.threads,
            // What is submitted here does not count against it.
            queue_capacity: Capacity::default(),
            max_queue_delay: Duration::ZERO,
            preprocess: config.preprocess,
        })?;
        Ok(Self {
            engine,
            queue: scheduler.add(loaded)?,
            _scheduler: scheduler,
        })
    }

    /// The network's output for each photo, in their order; `progress` hears how many are done.
    ///
    /// # Errors
    /// An engine that fails. A file that can't be used is an error in its place.
    pub async fn run(
        &self,
        photos: &[Photo],
        mut progress: impl FnMut(usize),
    ) -> Result<Vec<Result<Vec<f32>, PhotoError>>, OfflineError> {
        // Enough to keep every worker busy while the oldest one is waited for.
        let in_flight = 4 * (self.queue.parallelism() + self.engine.max_batch);
        let mut answers = stream::iter(photos)
            .map(|photo| self.one(photo))
            .buffered(in_flight);
        let mut outputs = Vec::with_capacity(photos.len());
        while let Some(answer) = answers.next().await {
            outputs.push(answer?);
            progress(outputs.len());
        }
        Ok(outputs)
    }

    async fn one(&self, photo: &Photo) -> Result<Result<Vec<f32>, PhotoError>, OfflineError> {
        let path = photo.path.clone();
        let read = tokio::task::spawn_blocking(move || read(&path)).await;
        let source = match read.map_err(|error| OfflineError::Stopped(error.to_string()))? {
            Ok(content) => Source::Encoded(content),
            Err(error) => return Ok(Err(error)),
        };
        let image = InputImage {
            source,
            arrived: Instant::now(),
            mirrored: photo.mirrored,
        };
        let job = Job {
            client: ClientId(0),
            priority: Priority::default(),
            deadline: None,
            counted: false,
            fetch: Box::new(move || Some(image)),
            span: None,
        };
        let stopped = |error: &dyn std::fmt::Display| OfflineError::Stopped(error.to_string());
        let outcome = self.queue.submit(job).map_err(|error| stopped(&error))?;
        match outcome.await.map_err(|error| stopped(&error))? {
            Ok(reply) => Ok(Ok(reply.logits)),
            Err(JobError::Image(error)) => Ok(Err(error.into())),
            Err(JobError::Engine(error)) => Err(error.into()),
            Err(error) => Err(stopped(&error)),
        }
    }
}

fn read(path: &Path) -> Result<Bytes, PhotoError> {
    let mut content = Vec::new();
    File::open(path)?
        .take(LARGEST_FILE + 1)
        .read_to_end(&mut content)?;
    if content.len() as u64 > LARGEST_FILE {
        Err(PhotoError::TooLarge)
    } else {
        Ok(content.into())
    }
}

/// A file that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// Which file.
    pub file: String,
    /// What is wrong with it.
    pub reason: String,
}

/// More files than a few can't be used, so something is wrong with all.
#[derive(Debug, Error)]
#[error(
    "{} of {photos} photos can't be used, more than {} %:{}\nremove or replace them", skipped.len(), TOLERATED * 100.0, list(skipped)
)]
pub struct TooManyUnreadable {
    skipped: Vec<Skipped>,
    photos: usize,
}

/// The share of files that may be unusable, 0 to 1.
const TOLERATED: f64 = 0.05;

/// Files that a message names.
const NAMED: usize = 10;

fn list(skipped: &[Skipped]) -> String {
    let mut text: String = skipped
        .iter()
        .take(NAMED)
        .map(|Skipped { file, reason }| format!("\n  {file}: {reason}"))
        .collect();
    if skipped.len() > NAMED {
        text += &format!("\n  and {} more", skipped.len() - NAMED);
    }
    text
}

/// Photos by whether they have an output.
#[derive(Clone, Debug, Default)]
pub struct SortedOut {
    /// The indices of those that have one, and what it is.
    pub usable: Vec<(usize, Vec<f32>)>,
    /// The others.
    pub skipped: Vec<Skipped>,
}

/// Separates the photos that have an output from those that can't be used.
///
/// # Errors
/// More than 5 % that can't be used.
pub fn sort_out<E: std::fmt::Display>(
    photos: &[Labelled],
    outputs: Vec<Result<Vec<f32>, E>>,
) -> Result<SortedOut, TooManyUnreadable> {
    let mut sorted = SortedOut::default();
    for ((index, photo), output) in photos.iter().enumerate().zip(outputs) {
        match output {
            Ok(output) => sorted.usable.push((index, output)),
            Err(error) => {
                let file = photo.path.display().to_string();
                sorted.skipped.push(Skipped {
                    file,
                    reason: error.to_string(),
                });
            }
        }
    }
    match sorted.skipped.len() as f64 > photos.len() as f64 * TOLERATED {
        true => Err(TooManyUnreadable {
            skipped: sorted.skipped,
            photos: photos.len(),
        }),
        false => Ok(sorted),
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;
    use crate::{
        engine::EngineKind,
        model::{
            Overrides,
            onnx::tensor_proto::DataType,
            testing::{self, CLASSES, tiny},
        },
    };

    fn start(batch: i64) -> Offline {
        let mut network = tiny();
        let graph = testing::graph(&mut network);
        graph.input = vec![testing::value("pixels", DataType::Float, &[batch, 3, 4, 6])];
        graph.output = vec![testing::value(
            "scores",
            DataType::Float,
            &[batch, CLASSES as i64],
        )];
        let labels = Some(["a", "b", "c", "d"].map(str::to_owned).to_vec());
        let model = Model::from_bytes(
            testing::bytes(&network),
            &Overrides {
                labels,
                ..Default::default()
            },
        )
        .unwrap();
        let engine = EngineConfig {
            kind: Some(EngineKind::Embedded),
            ..EngineConfig::new(NonZeroUsize::new(2).unwrap())
        };
        Offline::start(
            &OfflineConfig {
                engine,
                preprocess: PreprocessConfig::default(),
            },
            &model,
        )
        .unwrap()
    }

    fn photos(mirrored: bool) -> Vec<Photo> {
        let data = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data"));
        let names = [
            "cat.jpg",
            "README.md",
            "moon_16bit.png",
            "no_such.jpg",
            "tiny_33x47.png",
        ];
        names
            .map(|name| Photo {
                path: data.join(name),
                mirrored,
            })
            .into()
    }

    #[tokio::test]
    async fn outputs_come_in_order_and_broken_files_are_errors_in_their_place() {
        let mut heard = Vec::new();
        let outputs = start(-1)
            .run(&photos(false), |done| heard.push(done))
            .await
            .unwrap();
        assert_eq!(heard, [1, 2, 3, 4, 5]);
        let lengths: Vec<_> = outputs
            .iter()
            .map(|output| output.as_ref().map_or(0, Vec::len))
            .collect();
        assert_eq!(lengths, [CLASSES, 0, CLASSES, 0, CLASSES]);
        assert!(
            matches!(outputs[1], Err(PhotoError::Image(_)))
                && matches!(outputs[3], Err(PhotoError::Read(_)))
        );
        assert_ne!(outputs[0].as_ref().unwrap(), outputs[2].as_ref().unwrap());

        // A mean over the image is the same for the mirror image.
        let mirrored = start(-1).run(&photos(true), |_| {}).await.unwrap();
        for (one, other) in outputs
            .iter()
            .zip(&mirrored)
            .filter_map(|(one, other)| one.as_ref().ok().zip(other.as_ref().ok()))
        {
            testing::assert_close(one, other, 1e-4);
        }
    }

    #[tokio::test]
    async fn a_network_of_a_fixed_batch_gives_the_same() {
        let any = start(-1).run(&photos(false), |_| {}).await.unwrap();
        let fixed = start(3).run(&photos(false), |_| {}).await.unwrap();
        for (any, fixed) in any.iter().zip(&fixed) {
            assert_eq!(any.is_ok(), fixed.is_ok());
            if let (Ok(any), Ok(fixed)) = (any, fixed) {
                testing::assert_close(fixed, any, 1e-5);
            }
        }
    }

    #[test]
    fn a_few_unreadable_files_are_set_apart_and_many_are_an_error() {
        let photos: Vec<Labelled> = (0..40)
            .map(|i| Labelled {
                path: format!("{i}.jpg").into(),
                class: 0,
            })
            .collect();
        let outputs = |broken: usize| {
            (0..40)
                .map(|i| {
                    if i < broken {
                        Err("torn")
                    } else {
                        Ok(vec![0.0])
                    }
                })
                .collect()
        };
        let SortedOut { usable, skipped } = sort_out(&photos, outputs(2)).unwrap();
        assert_eq!((usable.len(), usable[0].0, skipped.len()), (38, 2, 2));
        let error = sort_out(&photos, outputs(3)).unwrap_err().to_string();
        assert!(
            error.contains("3 of 40") && error.contains("1.jpg: torn"),
            "{error}"
        );
    }
}
