//! Runs a model in this process on many image files, at full speed, for `train` and `evaluate`.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use serde::Serialize;
use thiserror::Error;

use crate::{
    engine::{self, EngineConfig, EngineError, EngineInfo},
    files::{self, ReadFailure},
    image::{ImageError, PreprocessConfig, Source},
    metrics::{ModelMetrics, statistics::RequestKind},
    model::Model,
    offline::dataset::Labelled,
    scheduler::{
        Capacity, ClientId, InputImage, Job, JobError, LoadedModel, Priority, Queue, Scheduler,
        SchedulerConfig, SpawnError,
    },
};

/// How to run a model.
#[derive(Clone, Debug)]
pub struct OfflineConfig {
    pub engine: EngineConfig,
    pub preprocess: PreprocessConfig,
}

/// A loaded model that classifies files instead of clients' requests.
pub struct OfflineModel {
    pub engine: EngineInfo,
    queue: Queue,
    /// Its worker threads serve the queue for as long as it lives.
    _scheduler: Scheduler,
}

/// An image file, and whether to use its mirror image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Photo {
    pub path: PathBuf,
    /// Whether the crop is mirrored left to right.
    pub mirrored: bool,
}

/// Why one file has no output; the other files are not affected.
#[derive(Debug, Error)]
pub enum PhotoError {
    #[error(transparent)]
    Read(#[from] ReadFailure),
    /// It isn't an image that can be decoded.
    #[error(transparent)]
    Image(#[from] ImageError),
}

/// Why no file has an output.
#[derive(Debug, Error)]
pub enum OfflineError {
    #[error(transparent)]
    Start(#[from] EngineError),
    #[error(transparent)]
    Thread(#[from] SpawnError),
    /// The engine failed while it was running.
    #[error(transparent)]
    Engine(#[from] Arc<EngineError>),
    #[error("the worker threads stopped: {0}")]
    Stopped(String),
}

impl OfflineModel {
    /// Loads `model`. This blocks the thread, for seconds with a large model.
    ///
    /// # Errors
    /// [`OfflineError::Start`] when the engine can't start.
    pub fn start(config: &OfflineConfig, model: &Model) -> Result<Self, OfflineError> {
        let mut lanes = engine::start(&config.engine, model)?;
        // The engine for wide batches rounds slightly differently. When it is used depends on
        // timing, but equal runs must give equal numbers.
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
            // Jobs with `counted: false` are not limited by it.
            queue_capacity: Capacity::default(),
            max_queue_delay: Duration::ZERO,
            preprocess: config.preprocess,
            stall_timeout: STALL_TIMEOUT,
        })?;

        Ok(Self {
            engine,
            queue: scheduler.add(loaded)?,
            _scheduler: scheduler,
        })
    }

    /// Runs the model on each photo and returns the outputs, `[classes]` or `[features]` each, in
    /// the order of the photos. `progress` is called with the number of photos done.
    ///
    /// # Errors
    /// An engine that fails. A file that can't be used is an error in its place in the result.
    pub async fn run(
        &self,
        photos: &[Photo],
        mut progress: impl FnMut(usize),
    ) -> Result<Vec<Result<Vec<f32>, PhotoError>>, OfflineError> {
        // Enough to keep every worker busy while the oldest photo is awaited.
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
        let source = match files::read_limited_async(&photo.path, files::LARGEST_PHOTO).await {
            Ok(content) => Source::Encoded(content.into()),
            Err(error) => return Ok(Err(error.reason.into())),
        };

        let image = InputImage {
            source,
            regions: [].into(),
            arrived: Instant::now(),
            mirrored: photo.mirrored,
        };
        let job = Job {
            client: ClientId::alone(0),
            called: Instant::now(),
            priority: Priority::default(),
            deadline: None,
            counted: false,
            // Nobody else waits.
            decode_estimate: Some(Duration::ZERO),
            crops: 1,
            wants_embedding: false,
            fetch: Box::new(move || Some(image)),
            span: None,
            kind: RequestKind::Contract,
        };

        let stopped = |error: &dyn std::fmt::Display| OfflineError::Stopped(error.to_string());
        let outcome = self.queue.submit(job).map_err(|error| stopped(&error))?;
        match outcome.await.map_err(|error| stopped(&error))? {
            Ok(mut reply) => Ok(Ok(std::mem::take(&mut reply.outputs[0].logits))),
            Err(JobError::Image(error)) => Ok(Err(error.into())),
            Err(JobError::Engine(error)) => Err(error.into()),
            Err(error) => Err(stopped(&error)),
        }
    }
}

/// A file that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SkippedPhoto {
    pub file: String,
    pub reason: String,
}

/// So many files can't be used that something must be wrong with the dataset.
#[derive(Debug, Error)]
#[error(
    "{} of {photos} photos can't be used, more than {} %:{}\nremove or replace them",
    skipped.len(),
    TOLERATED * 100.0,
    list(skipped)
)]
pub struct TooManyUnreadable {
    skipped: Vec<SkippedPhoto>,
    photos: usize,
}

/// Nobody waits for an answer, so even the largest image on the slowest machine has time.
const STALL_TIMEOUT: Duration = Duration::from_secs(600);

/// The largest share of the files that may be unusable, 0 to 1.
const TOLERATED: f64 = 0.05;

/// How many unusable files an error names.
const NAMED: usize = 10;

fn list(skipped: &[SkippedPhoto]) -> String {
    let mut text: String = skipped
        .iter()
        .take(NAMED)
        .map(|SkippedPhoto { file, reason }| format!("\n  {file}: {reason}"))
        .collect();
    if skipped.len() > NAMED {
        text += &format!("\n  and {} more", skipped.len() - NAMED);
    }
    text
}

/// The outputs of a set of photos, apart from the photos that have none.
#[derive(Clone, Debug, Default)]
pub struct UsableOutputs {
    /// The index of each photo that has an output, and the output.
    pub usable: Vec<(usize, Vec<f32>)>,
    /// The photos without an output.
    pub skipped: Vec<SkippedPhoto>,
}

/// Separates the photos that have an output from those that can't be used.
///
/// # Errors
/// More than 5 % that can't be used.
pub fn separate_unusable<E: std::fmt::Display>(
    photos: &[Labelled],
    outputs: Vec<Result<Vec<f32>, E>>,
) -> Result<UsableOutputs, TooManyUnreadable> {
    let mut separated = UsableOutputs::default();
    for ((index, photo), output) in photos.iter().enumerate().zip(outputs) {
        match output {
            Ok(output) => separated.usable.push((index, output)),
            Err(error) => {
                let file = photo.path.display().to_string();
                separated.skipped.push(SkippedPhoto {
                    file,
                    reason: error.to_string(),
                });
            }
        }
    }

    if separated.skipped.len() as f64 > photos.len() as f64 * TOLERATED {
        return Err(TooManyUnreadable {
            skipped: separated.skipped,
            photos: photos.len(),
        });
    }
    Ok(separated)
}

#[cfg(test)]
mod tests {
    use std::{num::NonZeroUsize, path::Path};

    use super::*;
    use crate::{
        engine::EngineKind,
        model::{
            Overrides,
            onnx::tensor_proto::DataType,
            testing::{self, CLASSES, tiny},
        },
    };

    fn start(batch: i64) -> OfflineModel {
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
        OfflineModel::start(
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
        let UsableOutputs { usable, skipped } = separate_unusable(&photos, outputs(2)).unwrap();
        assert_eq!((usable.len(), usable[0].0, skipped.len()), (38, 2, 2));
        let error = separate_unusable(&photos, outputs(3))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("3 of 40") && error.contains("1.jpg: torn"),
            "{error}"
        );
    }
}
