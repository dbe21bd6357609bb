//! Brings models into the registry: at the start, and whenever their files change.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use crate::{
    engine::{EngineConfig, EngineError, Lanes},
    metrics::EngineLabels,
    model::{Model, ModelError, Overrides},
    quantization::{QuantizationError, StartupQuantization},
    registry::{Registry, Served},
    scheduler::{LoadedModel, Scheduler, SpawnError},
    state::{State, StateCell},
    watch::Stamp,
};

/// The most models that are served out of a folder; each has engines of its own in memory.
const MAX_MODELS: usize = 64;

/// Which models are served.
#[derive(Clone, Debug)]
pub enum ModelSource {
    /// These, by name, in this order.
    Listed(Vec<ListedModel>),
    /// Every `*.onnx` of a folder, by its file's name.
    Folder(PathBuf),
}

/// One model.
#[derive(Clone, Debug)]
pub struct ListedModel {
    /// What callers call it.
    pub name: String,
    /// Its ONNX file; `None` = the bundled model.
    pub path: Option<PathBuf>,
    /// What the user says about it.
    pub overrides: Overrides,
}

/// How models are loaded.
#[derive(Clone, Debug)]
pub struct LoaderConfig {
    /// Which.
    pub source: ModelSource,
    /// What runs them.
    pub engine: EngineConfig,
    /// How float models are quantised first; `None` = they are served as they are.
    pub quantization: Option<StartupQuantization>,
    /// How often their files are looked at; `None` = only when asked to.
    pub watch_interval: Option<Duration>,
}

/// Why a model can't be served.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file is no model that can be served.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// It can't be quantised, or not well enough.
    #[error(transparent)]
    Quantization(#[from] QuantizationError),
    /// No engine runs it.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A thread for the engine can't be started.
    #[error(transparent)]
    Thread(#[from] SpawnError),
    /// A library stumbled over the file.
    #[error("loading it broke off: {0}")]
    Panicked(String),
    /// The folder can't be read.
    #[error("the models' folder {} can't be read: {source}", path.display())]
    Folder {
        /// Which folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl LoadError {
    /// What callers may read of it: nothing of where the server has its files.
    fn for_callers(&self) -> String {
        match self {
            Self::Model(error) => error.reason(),
            Self::Quantization(_) => "it can't be quantised; the server's log says why".into(),
            Self::Engine(_) => "no engine runs it; the server's log says why".into(),
            Self::Thread(_) | Self::Panicked(_) | Self::Folder { .. } => {
                "loading it broke off; the server's log says why".into()
            }
        }
    }
}

impl ListedModel {
    /// Reads the model's file.
    ///
    /// # Errors
    /// As for [`Model::from_file`].
    pub fn read(&self) -> Result<Model, ModelError> {
        let overrides = Overrides {
            name: Some(self.name.clone()),
            ..self.overrides.clone()
        };
        match &self.path {
            Some(path) => Model::from_file(path, &overrides),
            None => Model::bundled(&overrides),
        }
    }

    fn stamp(&self) -> Stamp {
        // The labels beside it count too.
        let files = self
            .path
            .iter()
            .flat_map(|path| [path.clone(), path.with_extension("labels.txt")]);
        Stamp::of(files)
    }
}

/// What makes an engine of a model; [`engine::start`](crate::engine::start), or a test's own.
pub type StartEngine = fn(&EngineConfig, &Model) -> Result<Lanes, EngineError>;

/// Loads models and puts them into the registry.
#[derive(Clone)]
pub struct Loader {
    /// How.
    pub config: LoaderConfig,
    /// What makes their engines.
    pub start: StartEngine,
    /// Where they go.
    pub registry: Arc<Registry>,
    /// What runs them.
    pub scheduler: Arc<Scheduler>,
    /// Becomes ready with the first model.
    pub state: StateCell,
}

impl Loader {
    /// Loads what there is, then keeps it as the files are. `reload` asks for a look at them at
    /// once.
    ///
    /// # Errors
    /// At the start only: a listed model that can't be served, or an engine that was asked for and
    /// can't start.
    pub async fn run(self, reload: Arc<Notify>) -> Result<std::convert::Infallible, LoadError> {
        let mut known = BTreeMap::new();
        self.look(&mut known, Look::First)
            .await
            .inspect_err(|error| {
                self.state.set(State::Failed(error.to_string().into()));
            })?;
        let mut told = String::new();
        loop {
            let asked = match self.config.watch_interval {
                Some(interval) => tokio::time::timeout(interval, reload.notified())
                    .await
                    .is_ok(),
                None => {
                    reload.notified().await;
                    true
                }
            };
            let look = if asked { Look::Asked } else { Look::Watching };
            let trouble = self
                .look(&mut known, look)
                .await
                .err()
                .map(|error| error.to_string())
                .unwrap_or_default();
            if !trouble.is_empty() && trouble != told {
                tracing::warn!("{trouble}; what was loaded is served on");
            }
            told = trouble;
        }
    }

    /// Looks at every file once, and loads what is new.
    async fn look(&self, known: &mut BTreeMap<String, Known>, look: Look) -> Result<(), LoadError> {
        let mut found = {
            let source = self.config.source.clone();
            blocking(move || find(source)).await?
        };
        if found.len() > MAX_MODELS {
            if look != Look::Watching {
                tracing::warn!(
                    "there are {} models; the first {MAX_MODELS} by name are served",
                    found.len()
                );
            }
            found.truncate(MAX_MODELS);
        }
        if look == Look::First {
            // In their order, so that the first is the default.
            found
                .iter()
                .for_each(|(model, _)| drop(self.registry.announce(&model.name)));
            if let (true, ModelSource::Folder(path)) = (found.is_empty(), &self.config.source) {
                tracing::warn!(
                    "there is no *.onnx in {} yet; not ready until one comes",
                    path.display()
                );
            }
        }
        known.retain(|name, known| {
            known.missing = if found.iter().any(|(model, _)| model.name == *name) {
                0
            } else {
                known.missing + 1
            };
            // A file that is replaced by hand may be gone for a moment.
            let gone = known.missing > 1 || known.missing == 1 && look == Look::Asked;
            if gone {
                tracing::info!(model = name, "its file is gone: no longer served");
                self.registry.remove(name);
            }
            !gone
        });
        for (model, stamp) in found {
            let before = known.get(&model.name);
            // While somebody still writes it, a file changes from one look to the next.
            let due = match before {
                _ if look == Look::Asked => {
                    before.is_none_or(|known| known.tried != stamp || known.failed)
                }
                _ if look == Look::First => true,
                None => false,
                Some(known) => known.tried != stamp && known.seen == stamp,
            };
            let failed = match due {
                true => self.load(&model, look == Look::First).await?,
                false => before.is_some_and(|known| known.failed),
            };
            let tried = match due {
                true => stamp.clone(),
                false => before.map(|known| known.tried.clone()).unwrap_or_default(),
            };
            known.insert(
                model.name.clone(),
                Known {
                    seen: stamp,
                    tried,
                    failed,
                    missing: 0,
                },
            );
        }
        Ok(())
    }

    /// Loads one model beside the running ones and puts it in its place. Whether that failed;
    /// failing for good is an error.
    async fn load(&self, model: &ListedModel, first: bool) -> Result<bool, LoadError> {
        let metrics = self.registry.announce(&model.name);
        let loaded = {
            let (loader, model, metrics) = (self.clone(), model.clone(), Arc::clone(&metrics));
            blocking(move || -> Result<(), LoadError> {
                let started = Instant::now();
                let mut model = model.read()?;
                if let Some(quantization) = &loader.config.quantization {
                    model = quantization.apply(model)?;
                }
                let lanes = (loader.start)(&loader.config.engine, &model)?;
                let engine = lanes.info.clone();
                let loaded = LoadedModel {
                    lanes,
                    geometry: model.geometry,
                    classes: model.graph.classes,
                    metrics: Arc::clone(&metrics),
                };
                let labels = EngineLabels {
                    engine: engine.kind.to_string(),
                    precision: engine.precision.to_string(),
                    device: engine.device.clone(),
                    version: engine.version.clone(),
                };
                metrics.loaded(labels, started.elapsed());
                let queue = loader.scheduler.add(loaded)?;
                tracing::info!(
                    model = model.name,
                    version = model.version,
                    classes = model.graph.classes,
                    engine = %engine.kind,
                    precision = %engine.precision,
                    "serving, loaded in {:.0?}",
                    started.elapsed(),
                );
                loader
                    .registry
                    .publish(Served::new(&model, engine, queue, metrics));
                loader.state.set(State::Ready);
                Ok(())
            })
            .await
        };
        let Err(error) = loaded else { return Ok(false) };
        if self.is_gone(model).await {
            return Ok(false);
        }
        metrics.load_failed();
        self.registry.report(&model.name, &error.for_callers());
        let fatal = first
            && (matches!(self.config.source, ModelSource::Listed(_))
                || matches!(error, LoadError::Engine(EngineError::Unavailable { .. })));
        if fatal {
            return Err(error);
        }
        let still = match self.registry.find(&model.name) {
            Ok(entry) if entry.served.is_some() => "the version before is served on",
            _ => "it is not served",
        };
        tracing::error!(model = model.name, "{error}; {still}");
        Ok(true)
    }

    /// Whether the model's file was taken out of the folder while it was being loaded, which is no
    /// fault of the file's.
    async fn is_gone(&self, model: &ListedModel) -> bool {
        let (ModelSource::Folder(_), Some(path)) = (&self.config.source, &model.path) else {
            return false;
        };
        let gone = tokio::fs::try_exists(path)
            .await
            .is_ok_and(|exists| !exists);
        // A version that is served stays until the next look, for the case that the file is being
        // replaced.
        if gone
            && self
                .registry
                .find(&model.name)
                .is_ok_and(|entry| entry.served.is_none())
        {
            self.registry.remove(&model.name);
        }
        gone
    }
}

/// Why the files are looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    /// The server starts.
    First,
    /// The time has come.
    Watching,
    /// Somebody asked for it: without waiting for files to settle, and what failed is tried again.
    Asked,
}

/// What is known of a model's files.
struct Known {
    /// As they were at the last look.
    seen: Stamp,
    /// As they were when they were loaded, well or badly.
    tried: Stamp,
    failed: bool,
    /// Looks since they were there.
    missing: u32,
}

/// The models that there are, with their files' stamps.
fn find(source: ModelSource) -> Result<Vec<(ListedModel, Stamp)>, LoadError> {
    let models = match source {
        ModelSource::Listed(models) => models,
        ModelSource::Folder(path) => models_in(&path).map_err(|source| LoadError::Folder {
            path: path.clone(),
            source,
        })?,
    };
    Ok(models
        .into_iter()
        .map(|model| (model.stamp(), model))
        .map(|(stamp, model)| (model, stamp))
        .collect())
}

/// Every `*.onnx` of the folder, in the order of their names.
fn models_in(folder: &Path) -> io::Result<Vec<ListedModel>> {
    let mut models = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .filter(|stem| !stem.starts_with('.'));
        if let (Some(name), true, true) = (
            name,
            path.extension().is_some_and(|e| e == "onnx"),
            path.is_file(),
        ) {
            models.push(ListedModel {
                name: name.into(),
                path: Some(path),
                overrides: Overrides::default(),
            });
        }
    }
    models.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(models)
}

/// Runs work that keeps a thread busy. Engines are other people's code, and the files anybody's: a
/// panic is an error.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LoadError> + Send + 'static,
) -> Result<T, LoadError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|panic| Err(LoadError::Panicked(panic.to_string())))
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;
    use crate::{
        image::PreprocessConfig,
        scheduler::{Capacity, SchedulerConfig},
    };

    #[tokio::test]
    async fn a_file_that_goes_while_it_is_loaded_is_not_a_bad_one() {
        let folder = tempfile::tempdir().unwrap();
        let scheduler = Scheduler::new(SchedulerConfig {
            threads: NonZeroUsize::MIN,
            queue_capacity: Capacity::default(),
            max_queue_delay: Duration::ZERO,
            preprocess: PreprocessConfig::default(),
        })
        .unwrap();
        let loader = Loader {
            config: LoaderConfig {
                source: ModelSource::Folder(folder.path().to_owned()),
                engine: EngineConfig::new(NonZeroUsize::MIN),
                quantization: None,
                watch_interval: None,
            },
            start: |_, _| panic!("there is nothing to start"),
            registry: Arc::new(Registry::new(None)),
            scheduler: Arc::new(scheduler),
            state: StateCell::default(),
        };
        let path = folder.path().join("guest.onnx");
        let model = ListedModel {
            name: "guest".into(),
            path: Some(path.clone()),
            overrides: Overrides::default(),
        };
        assert!(
            !loader.load(&model, false).await.unwrap(),
            "it was there when somebody looked"
        );
        assert!(loader.registry.find("guest").is_err());

        fs::write(&path, "no model").unwrap();
        assert!(loader.load(&model, false).await.unwrap());
        assert!(loader.registry.find("guest").unwrap().problem.is_some());
    }
}
