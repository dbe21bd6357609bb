//! Loads models from files into the registry: at the start, and whenever the files change.

mod explicit;
mod taught;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use crate::{
    cache::Origin,
    engine::{EngineConfig, EngineError, Lanes, memory},
    files::{self, ReadFailure},
    metrics::{EngineLabels, ModelMetrics, engine_plan},
    model::{self, Model, ModelError, Overrides, files_beside},
    quantization::{QuantizationError, StartupQuantization},
    registry::{
        Registry, Served,
        check::{CheckConfig, CheckError},
        control::Commands,
        weights::WeightFiles,
    },
    scheduler::{LoadedModel, Scheduler, SpawnError},
    state::{State, StateCell},
    watch::Stamp,
};

/// The most models that are served from a folder. Each has its own engines in memory.
const MAX_MODELS: usize = 64;
/// How many times a model is tried whose file keeps changing.
const MAX_ATTEMPTS: usize = 5;

/// Which models are served.
#[derive(Clone, Debug)]
pub enum ModelSource {
    /// These models, in this order; the first is the default.
    Listed(Vec<ListedModel>),
    /// Every `*.onnx` in a folder, named after its file.
    Folder(PathBuf),
}

/// One model.
#[derive(Clone, Debug)]
pub struct ListedModel {
    /// The name that callers use.
    pub name: String,
    /// Its ONNX file; `None` means the bundled model.
    pub path: Option<PathBuf>,
    /// The user's settings, which override those in the file.
    pub overrides: Overrides,
}

/// How models are loaded.
#[derive(Clone, Debug)]
pub struct LoaderConfig {
    /// Which models.
    pub source: ModelSource,
    /// A folder with models that come and go while the server runs, because it is taught; those of
    /// `source` come first.
    pub taught: Option<PathBuf>,
    /// The engine that runs them.
    pub engine: EngineConfig,
    /// How floating-point models are quantized first; `None` means that they are served as they
    /// are.
    pub quantization: Option<StartupQuantization>,
    /// How models are tried in a process of their own first, so that a model that crashes a library
    /// is rejected instead of crashing the server; `None` means that they are not. The bundled model
    /// is never tried.
    pub check: Option<CheckConfig>,
    /// How often the files are checked for changes; `None` means only on request.
    pub watch_interval: Option<Duration>,
}

/// Why a model can't be served.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file is not a model that can be served.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The model did not pass the check in a process of its own.
    #[error(transparent)]
    Check(#[from] CheckError),
    /// The model can't be quantized, or not well enough.
    #[error(transparent)]
    Quantization(#[from] QuantizationError),
    /// No engine runs the model.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A thread for the engine can't be started.
    #[error(transparent)]
    Thread(#[from] SpawnError),
    /// A library panicked on the file.
    #[error("loading it was interrupted: {0}")]
    Panicked(String),
    /// The folder can't be read.
    #[error("the models' folder {} can't be read: {source}", path.display())]
    Folder {
        /// Which folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file system that holds a model or the folder does not answer.
    #[error("{}: {reason}", path.display())]
    Unresponsive {
        /// Which file or folder.
        path: PathBuf,
        /// What happened.
        reason: ReadFailure,
    },
}

impl LoadError {
    /// Whether the engine that was asked for can't run any model here.
    fn is_unavailable(&self) -> bool {
        match self {
            Self::Engine(error) => matches!(error, EngineError::Unavailable { .. }),
            Self::Check(error) => error.is_unavailable(),
            _ => false,
        }
    }

    /// The message for callers, which does not contain the server's paths.
    pub(super) fn for_callers(&self) -> String {
        match self {
            Self::Model(error) => error.reason(),
            Self::Check(error) => error.for_callers(),
            Self::Quantization(_) => {
                "it can't be quantized; the server's log has the reason".into()
            }
            Self::Engine(
                error @ (EngineError::Disagreement { .. } | EngineError::NotFinite { .. }),
            ) => error.to_string(),
            Self::Engine(_) => "no engine runs it; the server's log has the reason".into(),
            Self::Thread(_)
            | Self::Panicked(_)
            | Self::Folder { .. }
            | Self::Unresponsive { .. } => {
                "loading it was interrupted; the server's log has the reason".into()
            }
        }
    }
}

impl ModelSource {
    /// Whether a model of this name belongs to it.
    pub fn holds(&self, name: &str) -> bool {
        match self {
            Self::Listed(models) => models.iter().any(|model| model.name == name),
            Self::Folder(path) => path.join(format!("{name}.onnx")).exists(),
        }
    }
}

impl ListedModel {
    /// The model that is bundled with the program.
    pub fn bundled() -> Self {
        Self {
            name: "resnet18-demo".into(),
            path: None,
            overrides: Overrides::default(),
        }
    }

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
}

/// Starts engines for a model: [`engine::start`](crate::engine::start), or a test's own.
pub type StartEngine = fn(&EngineConfig, &Model) -> Result<Lanes, EngineError>;

/// Loads models and puts them into the registry.
#[derive(Clone)]
pub struct Loader {
    pub config: LoaderConfig,
    pub start: StartEngine,
    pub registry: Arc<Registry>,
    pub scheduler: Arc<Scheduler>,
    /// Becomes ready with the first model.
    pub state: StateCell,
}

impl Loader {
    /// Loads the models, then follows changes of their files, or `commands` where callers control
    /// the models. `reload` asks to check the files at once.
    ///
    /// # Errors
    /// At the start only: when a listed model can't be served, or when the engine that was asked
    /// for can't start.
    pub async fn run(
        self,
        reload: Arc<Notify>,
        mut commands: Commands,
    ) -> Result<std::convert::Infallible, LoadError> {
        let mut known = BTreeMap::new();
        let weights = Arc::new(WeightFiles::default());
        let first = self.scan(&mut known, &weights, ScanReason::Start).await;
        if let Err(error) = first {
            self.state.set(State::Failed(error.to_string().into()));
            return Err(error);
        }

        if commands.are_explicit() {
            return Ok(self.serve_commands(commands, &reload, &weights).await);
        }
        let mut last_problem = String::new();
        loop {
            let reason = tokio::select! {
                reason = self.next_scan(&reload) => reason,
                command = commands.next() => {
                    self.follow_taught(command, &mut known, &weights).await;
                    continue;
                }
            };
            let problem = match self.scan(&mut known, &weights, reason).await {
                Ok(()) => String::new(),
                Err(error) => error.to_string(),
            };
            if !problem.is_empty() && problem != last_problem {
                tracing::warn!("{problem}; the loaded models are still served");
            }
            last_problem = problem;
        }
    }

    /// Waits until the files are to be checked again.
    async fn next_scan(&self, reload: &Notify) -> ScanReason {
        let Some(interval) = self.config.watch_interval else {
            reload.notified().await;
            return ScanReason::Requested;
        };
        match tokio::time::timeout(interval, reload.notified()).await {
            Ok(()) => ScanReason::Requested,
            Err(_) => ScanReason::Interval,
        }
    }

    /// Checks every file once, and loads new models and new versions.
    async fn scan(
        &self,
        known: &mut BTreeMap<String, Known>,
        weights: &Arc<WeightFiles>,
        reason: ScanReason,
    ) -> Result<(), LoadError> {
        let mut found = self.find(weights).await?;
        if found.len() > MAX_MODELS {
            if reason != ScanReason::Interval {
                tracing::warn!(
                    "there are {} models; the first {MAX_MODELS} by name are served",
                    found.len()
                );
            }
            found.truncate(MAX_MODELS);
        }

        if reason == ScanReason::Start {
            // In their order, so that the first becomes the default.
            for (model, _) in &found {
                self.registry.announce(&model.name);
            }
            if let (true, ModelSource::Folder(path)) = (found.is_empty(), &self.config.source) {
                tracing::warn!(
                    "there is no *.onnx in {} yet; the server is not ready until there is",
                    path.display()
                );
            }
        }

        self.remove_missing(known, &found, reason);
        for (model, stamp) in found {
            self.load_if_due(known, model, stamp, reason).await?;
        }
        self.report_whether_any_is_served();
        Ok(())
    }

    /// The models to serve now, with the fingerprints of their files.
    async fn find(
        &self,
        weights: &Arc<WeightFiles>,
    ) -> Result<Vec<(ListedModel, Stamp)>, LoadError> {
        let source = self.config.source.clone();
        let taught = self.config.taught.clone();
        let weights = Arc::clone(weights);
        blocking(move || {
            let mut found = find(source, &weights)?;
            if let Some(folder) = taught {
                let taught = find(ModelSource::Folder(folder), &weights)?;
                let is_new = |name: &str| found.iter().all(|(model, _)| model.name != name);
                let taught: Vec<_> = taught
                    .into_iter()
                    .filter(|(model, _)| is_new(&model.name))
                    .collect();
                found.extend(taught);
            }
            Ok(found)
        })
        .await
    }

    /// Makes the server unready while a folder has no model that can be served.
    fn report_whether_any_is_served(&self) {
        let ModelSource::Folder(path) = &self.config.source else {
            return;
        };
        if self.registry.serving() > 0 {
            return;
        }
        // Callers are not told where the folder is.
        let folder = path.file_name().unwrap_or(".".as_ref()).to_string_lossy();
        let models = self.registry.list();
        let reason = if models.is_empty() {
            format!("the folder \"{folder}\" holds no model (*.onnx)")
        } else if models.iter().all(|model| model.unloaded) {
            "all models are unloaded; RepositoryModelLoad loads them again".into()
        } else {
            format!(
                "no model in the folder \"{folder}\" could be loaded; ListModels gives the reasons"
            )
        };
        let next = State::NoModel(reason.into());
        if self.state.get() != next && self.state.get() == State::Ready {
            tracing::warn!("no model is served any more; the server is not ready until one is");
        }
        self.state.set(next);
    }

    /// Stops serving models whose files have been removed.
    fn remove_missing(
        &self,
        known: &mut BTreeMap<String, Known>,
        found: &[(ListedModel, Stamp)],
        reason: ScanReason,
    ) {
        known.retain(|name, known| {
            if found.iter().any(|(model, _)| model.name == *name) {
                known.missing = 0;
            } else {
                known.missing += 1;
            }
            // A file that is being replaced by hand may be missing for a moment.
            let removed =
                known.missing > 1 || known.missing == 1 && reason == ScanReason::Requested;
            if removed {
                tracing::info!(model = name, "its file was removed: no longer served");
                self.registry.remove(name);
            }
            !removed
        });
    }

    /// Loads a model whose file is new or has changed, and is no longer being written.
    async fn load_if_due(
        &self,
        known: &mut BTreeMap<String, Known>,
        model: ListedModel,
        stamp: Stamp,
        reason: ScanReason,
    ) -> Result<(), LoadError> {
        let before = known.get(&model.name);
        let due = match (reason, before) {
            (ScanReason::Start, _) => true,
            (ScanReason::Requested, None) => true,
            (ScanReason::Requested, Some(known)) => known.tried != stamp || known.failed,
            (ScanReason::Interval, None) => false,
            // A file that is still being written differs from one scan to the next.
            (ScanReason::Interval, Some(known)) => known.tried != stamp && known.seen == stamp,
        };

        let now = if due {
            let failed = self.load(&model, reason == ScanReason::Start).await?;
            Known {
                tried: stamp.clone(),
                seen: stamp,
                failed,
                missing: 0,
            }
        } else {
            Known {
                tried: before.map(|known| known.tried.clone()).unwrap_or_default(),
                seen: stamp,
                failed: before.is_some_and(|known| known.failed),
                missing: 0,
            }
        };
        known.insert(model.name, now);
        Ok(())
    }

    /// Loads one model beside the version that is served, and publishes it. Returns whether that
    /// failed; an error ends the server.
    async fn load(&self, model: &ListedModel, first: bool) -> Result<bool, LoadError> {
        let metrics = self.registry.announce(&model.name);
        let loader = self.clone();
        let listed = model.clone();
        let loading = Arc::clone(&metrics);
        let engine = if first && self.registry.serving() == 0 {
            self.config.engine.clone()
        } else {
            self.config.engine.while_serving()
        };
        let work = move || loader.load_and_publish(&listed, &engine, loading);
        let Err(error) = blocking(work).await else {
            return Ok(false);
        };
        if self.was_removed(model).await {
            return Ok(false);
        }

        metrics.load_failed();
        self.registry.report(&model.name, &error.for_callers());
        let fatal = first
            && (matches!(&self.config.source, ModelSource::Listed(_))
                && self.config.source.holds(&model.name)
                || error.is_unavailable());
        if fatal {
            return Err(error);
        }
        let consequence = match self.registry.find(&model.name) {
            Ok(entry) if entry.served.is_some() => "the previous version is still served",
            _ => "it is not served",
        };
        tracing::error!(model = model.name, "{error}; {consequence}");
        Ok(true)
    }

    /// Blocks until the model has been read, started, checked and warmed up.
    fn load_and_publish(
        &self,
        listed: &ListedModel,
        engine: &EngineConfig,
        metrics: Arc<ModelMetrics>,
    ) -> Result<(), LoadError> {
        let started = Instant::now();
        let mut attempts = 1;
        let mut model = loop {
            match self.read_checked(listed) {
                // A newer file has come meanwhile, which is the one to load.
                Err(LoadError::Check(CheckError::Changed)) if attempts < MAX_ATTEMPTS => {
                    attempts += 1;
                }
                read => break read?,
            }
        };
        for taken in &model.sources {
            tracing::info!(model = model.name, "{taken}");
        }
        if let Some(quantization) = &self.config.quantization {
            model = quantization.apply(model)?;
        }
        let lanes = (self.start)(engine, &model)?;
        if listed.path.is_none() {
            memory::forget(model::bundled_file());
        }
        memory::return_freed_memory();
        for plan in &lanes.plans {
            engine_plan(plan.origin == Origin::Hit, plan.build_time);
        }

        let engine = lanes.info.clone();
        let labels = EngineLabels {
            engine: engine.kind.to_string(),
            precision: engine.precision.to_string(),
            device: engine.device.clone(),
            version: engine.version.clone(),
        };
        metrics.loaded(labels, started.elapsed());
        let queue = self.scheduler.add(LoadedModel {
            lanes,
            geometry: model.geometry,
            classes: model.graph.classes,
            metrics: Arc::clone(&metrics),
        })?;
        tracing::info!(
            model = model.name,
            version = model.version,
            classes = model.graph.classes,
            engine = %engine.kind,
            precision = %engine.precision,
            "serving, loaded in {:.0?}",
            started.elapsed(),
        );

        self.registry
            .publish(Served::new(&model, engine, queue, metrics));
        self.state.set(State::Ready);
        Ok(())
    }

    /// Reads a model whose file has survived being tried in a process of its own.
    fn read_checked(&self, listed: &ListedModel) -> Result<Model, LoadError> {
        let checked = match (&self.config.check, &listed.path) {
            (Some(check), Some(path)) => check.check(listed, path)?,
            _ => None,
        };
        let model = listed.read()?;
        if checked.is_some_and(|version| version != model.version) {
            return Err(CheckError::Changed.into());
        }
        Ok(model)
    }

    /// Whether the model's file was removed from the folder while it was being loaded, which is not
    /// a load error.
    async fn was_removed(&self, model: &ListedModel) -> bool {
        let (ModelSource::Folder(_), Some(path)) = (&self.config.source, &model.path) else {
            return false;
        };
        let path = path.clone();
        // The entry of the folder itself: what a link leads to may not answer.
        let found = blocking(move || answered(&path, |path| fs::symlink_metadata(path))).await;
        let removed = matches!(found, Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound);

        // A version that is served stays until the next scan: the file may just be being replaced.
        if removed
            && let Ok(entry) = self.registry.find(&model.name)
            && entry.served.is_none()
        {
            self.registry.remove(&model.name);
        }
        removed
    }
}

/// Why the files are scanned.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ScanReason {
    /// The server starts.
    Start,
    /// The watch interval has passed.
    Interval,
    /// A reload was requested: files need not have settled, and failed ones are tried again.
    Requested,
}

/// What is known of a model's files from earlier scans.
struct Known {
    /// The files as they were at the last scan.
    seen: Stamp,
    /// The files as they were when loading them was last tried.
    tried: Stamp,
    failed: bool,
    /// How many scans in a row did not find them.
    missing: u32,
}

/// The models to serve now, with the fingerprints of their files.
fn find(
    source: ModelSource,
    weights: &Arc<WeightFiles>,
) -> Result<Vec<(ListedModel, Stamp)>, LoadError> {
    let (models, in_folder) = match source {
        ModelSource::Listed(models) => (models, false),
        ModelSource::Folder(path) => match answered(&path, models_in)? {
            Ok(models) => (models, true),
            Err(source) => return Err(LoadError::Folder { path, source }),
        },
    };

    let mut found = Vec::with_capacity(models.len());
    for model in models {
        let Some(path) = &model.path else {
            found.push((model, Stamp::default()));
            continue;
        };
        let weights = Arc::clone(weights);
        let asked = answered(path, move |path| {
            let is_model = !in_folder || is_file(path);
            is_model.then(|| stamp(path, &weights))
        });
        match asked {
            Ok(Some(stamp)) => found.push((model, stamp)),
            // A link to nothing, or a folder whose name ends in .onnx.
            Ok(None) => {}
            // A link to a file system that does not answer: loading the model fails for the same
            // reason, and the other models are served.
            Err(_) if in_folder => found.push((model, Stamp::default())),
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Whether a path leads to something other than a folder. What is no regular file gets a reason why
/// it is not served.
fn is_file(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| !metadata.is_dir())
}

/// What `ask` finds out about a path, unless its file system does not answer.
fn answered<T: Send + 'static>(
    path: &Path,
    ask: impl FnOnce(&Path) -> T + Send + 'static,
) -> Result<T, LoadError> {
    let asked = path.to_owned();
    files::within(files::READ_TIMEOUT, move || ask(&asked)).map_err(|reason| {
        LoadError::Unresponsive {
            path: path.to_owned(),
            reason,
        }
    })
}

/// The fingerprint of a model's files.
fn stamp(path: &Path, weights: &WeightFiles) -> Stamp {
    // A change of what describes the model beside it, or of its weights there, is a change of the
    // model.
    let mut files = vec![path.to_owned(), path.with_extension("labels.txt")];
    files.extend(files_beside(path));
    files.extend(weights.of(path));
    Stamp::of(files)
}

/// Every `*.onnx` in a folder, in the order of their names. Hidden files are ignored.
fn models_in(folder: &Path) -> io::Result<Vec<ListedModel>> {
    let mut models = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let is_onnx = path
            .extension()
            .is_some_and(|extension| extension == "onnx");
        let name = path.file_stem().and_then(|stem| stem.to_str());
        if is_onnx && let Some(name) = name.filter(|name| !name.starts_with('.')) {
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

/// Runs work that blocks its thread. Engine libraries and model files are untrusted, so a panic is
/// reported as an error.
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

    #[test]
    fn what_describes_a_model_beside_it_is_part_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("guest.onnx");
        fs::write(&path, "a model").unwrap();
        let weights = WeightFiles::default();
        let mut stamps = vec![stamp(&path, &weights)];
        for name in [
            "guest.labels.txt",
            "preprocessor_config.json",
            "config.json",
        ] {
            fs::write(folder.path().join(name), "{}").unwrap();
            stamps.push(stamp(&path, &weights));
        }
        stamps.dedup();
        assert_eq!(stamps.len(), 4);
    }

    #[tokio::test]
    async fn a_file_that_goes_while_it_is_loaded_is_not_a_bad_one() {
        let folder = tempfile::tempdir().unwrap();
        let scheduler = Scheduler::new(SchedulerConfig {
            threads: NonZeroUsize::MIN,
            queue_capacity: Capacity::default(),
            max_queue_delay: Duration::ZERO,
            preprocess: PreprocessConfig::default(),
            stall_timeout: SchedulerConfig::STALL_TIMEOUT,
        })
        .unwrap();
        let loader = Loader {
            config: LoaderConfig {
                source: ModelSource::Folder(folder.path().to_owned()),
                taught: None,
                engine: EngineConfig::new(NonZeroUsize::MIN),
                quantization: None,
                check: None,
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
