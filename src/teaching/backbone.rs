//! The base model without its last layer, which computes the features of pictures behind requests.

use std::{path::Path, sync::Arc, time::Instant};

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::{StartError, TeachError};
use crate::{
    cache::hex,
    image::{ImageError, Source},
    metrics::{EngineLabels, ModelMetrics, statistics::RequestKind},
    model::{Base, Overrides},
    registry::{
        check::CheckConfig,
        loader::{ListedModel, Loader},
    },
    scheduler::{ClientId, InputImage, Job, JobError, LoadedModel, Priority, Queue},
};

/// What the metrics call the base.
const METRICS_NAME: &str = "(teaching)";

/// A base whose features can be computed.
pub struct Backbone {
    pub base: Base,
    /// What the features depend on besides the picture.
    pub key: String,
    /// How the engine that computes them is recorded in a model.
    pub engine: (String, String),
    /// How models are tried before they are loaded.
    check: Option<CheckConfig>,
    queue: Queue,
}

/// The features of a picture, or why it has none.
pub type Features = Result<Vec<f32>, ImageError>;

impl Backbone {
    /// Reads the base and starts an engine for it. This blocks the thread.
    ///
    /// # Errors
    /// If the base can't be used.
    pub fn start(path: Option<&Path>, loader: &Loader) -> Result<Self, StartError> {
        let started = Instant::now();
        let overrides = Overrides::default();
        let base = match path {
            None => Base::bundled(&overrides)?,
            Some(path) => {
                if let Some(check) = &loader.config.check {
                    let listed = ListedModel {
                        name: METRICS_NAME.into(),
                        path: Some(path.to_owned()),
                        overrides: overrides.clone(),
                    };
                    check.check(&listed, path)?;
                }
                Base::from_file(path, &overrides)?
            }
        };
        let mut lanes = (loader.start)(&loader.config.engine.while_serving(), &base.backbone)?;
        // It would take all cores for one picture, and rounds slightly differently.
        lanes.wide = None;
        let info = lanes.info.clone();
        let engine = (info.kind.to_string(), info.precision.to_string());
        let preprocess = loader.scheduler.preprocess();
        let depends_on = format!(
            "{} {engine:?} {} {:?} {:?} {:?}",
            base.backbone.version,
            info.version,
            base.backbone.geometry,
            preprocess.exif,
            preprocess.jpeg_scaling
        );
        let metrics = Arc::new(ModelMetrics::new(METRICS_NAME));
        let labels = EngineLabels {
            engine: engine.0.clone(),
            precision: engine.1.clone(),
            device: info.device.clone(),
            version: info.version.clone(),
        };
        metrics.loaded(labels, started.elapsed());
        let queue = loader.scheduler.add_background(LoadedModel {
            lanes,
            geometry: base.backbone.geometry,
            classes: base.backbone.graph.classes,
            metrics,
        })?;
        tracing::info!(
            base = base.backbone.name,
            version = base.backbone.version,
            "ready to be taught"
        );
        Ok(Self {
            base,
            key: hex(&Sha256::digest(depends_on))[..16].to_owned(),
            engine,
            check: loader.config.check.clone(),
            queue,
        })
    }

    /// Decodes a picture and computes its features, after what is more urgent.
    ///
    /// # Errors
    /// When that fails through no fault of the picture.
    pub async fn features(&self, image: Bytes, client: ClientId) -> Result<Features, TeachError> {
        let source = Source::Encoded(image);
        let now = Instant::now();
        let decode_estimate = Some(self.queue.estimate(&source, &[]));
        let image = InputImage {
            source,
            regions: [].into(),
            arrived: now,
            mirrored: false,
        };
        let outcome = self.queue.submit(Job {
            client,
            priority: Priority::Low,
            called: now,
            deadline: None,
            counted: false,
            decode_estimate,
            crops: 1,
            wants_embedding: false,
            fetch: Box::new(move || Some(image)),
            span: None,
            kind: RequestKind::Contract,
        })?;
        match outcome.await.unwrap_or(Err(JobError::Abandoned)) {
            Ok(mut reply) => Ok(Ok(std::mem::take(&mut reply.outputs[0].logits))),
            Err(JobError::Image(error)) => Ok(Err(error)),
            Err(error) => Err(TeachError::Job(error)),
        }
    }

    /// Lets a model of this base, which has passed, be loaded without being tried: only the numbers
    /// of its last layer are new. This reads the file.
    pub fn mark_checked(&self, name: &str, path: &Path, version: &str) {
        if let Some(check) = &self.check {
            let listed = ListedModel {
                name: name.to_owned(),
                path: Some(path.to_owned()),
                overrides: Overrides::default(),
            };
            check.mark_checked(&listed, path, version);
        }
    }

    /// How many pictures may be in work at once: one for each lane, and few enough that a request
    /// hardly waits for them.
    pub fn parallelism(&self) -> usize {
        self.queue.parallelism().min(4)
    }
}
