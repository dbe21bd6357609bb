//! What callers ask for: adding and removing pictures, training, and what there is.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::{
    sync::{Semaphore, oneshot, watch},
    time::timeout,
};

use super::{
    StartError, TeachError, TeachingConfig,
    backbone::Backbone,
    download::Download,
    lesson::{Lesson, Material, Skipped},
    names,
    store::{self, DatasetContent, Reservation, Store},
};
use crate::{
    files,
    model::{Description, Model, Overrides, training_record},
    offline::{evaluation::Evaluation, training::softmax_layer::Example as Learned},
    registry::{
        Registry,
        loader::{Loader, ModelSource},
    },
    scheduler::ClientId,
    sync::lock,
};

/// Marks the record of a training that took place here.
const MARK: &str = "taught";
/// How long a call waits for the base at the start.
const PATIENCE: Duration = Duration::from_secs(60);
/// By how much the thread that learns yields to others (`nice`).
#[cfg(target_os = "linux")]
const NICE: i32 = 5;

/// Teaches, one dataset at a time.
pub struct Teacher {
    config: TeachingConfig,
    store: Arc<Store>,
    /// Which models were there without being taught.
    source: ModelSource,
    registry: Arc<Registry>,
    /// There once the base is ready.
    backbone: watch::Sender<Option<Arc<Backbone>>>,
    /// The models that were taught, by their names.
    records: Mutex<BTreeMap<String, Record>>,
    lesson: Arc<Semaphore>,
}

/// What is known of a model that was taught.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub version: String,
    /// By cross-validation, 0 to 1.
    pub accuracy: f64,
    /// How many pictures it was learned from.
    pub examples: usize,
}

/// A picture for a class.
#[derive(Clone, Debug)]
pub struct Example {
    pub dataset: String,
    pub class: String,
    pub image: Bytes,
}

/// What became of a picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Added {
    /// It is kept, under this name.
    Kept(String),
    /// It was there, under this name.
    Known(String),
    /// It is not kept, for this reason.
    Refused(String),
}

/// What was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removed {
    pub pictures: usize,
}

/// What is to be learned.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub dataset: String,
    /// Whether the class for everything else is learned without pictures of it.
    pub reject_unknown: bool,
}

/// A model that was learned and is served.
#[derive(Debug)]
pub struct Trained {
    pub model: String,
    pub version: String,
    /// In the order of the model's classes.
    pub labels: Vec<String>,
    pub examples: usize,
    pub skipped: Vec<Skipped>,
    /// By cross-validation.
    pub evaluation: Evaluation,
    pub took: Duration,
}

/// A dataset and its model.
#[derive(Clone, Debug)]
pub struct Listed {
    pub name: String,
    pub content: DatasetContent,
    pub record: Option<Record>,
}

impl Teacher {
    /// Opens the folder and finds what was taught before; `source` are the models that were not.
    ///
    /// # Errors
    /// If the folder can't be used.
    pub fn open(
        config: TeachingConfig,
        source: ModelSource,
        registry: Arc<Registry>,
    ) -> Result<Self, StartError> {
        let store =
            Store::open(&config.folder, config.limits).map_err(|source| StartError::Folder {
                path: config.folder.clone(),
                source,
            })?;
        let mut records = BTreeMap::new();
        let models = store.models().map_err(|source| StartError::Folder {
            path: config.folder.clone(),
            source,
        })?;
        for name in models {
            if let Some(record) = read_record(&store, &name) {
                records.insert(name, record);
            }
        }
        Ok(Self {
            config,
            store: Arc::new(store),
            source,
            registry,
            backbone: watch::Sender::new(None),
            records: Mutex::new(records),
            lesson: Arc::new(Semaphore::new(1)),
        })
    }

    /// Reads the base and starts an engine for it. This blocks the thread.
    ///
    /// # Errors
    /// If the base can't be used.
    pub fn start(&self, loader: &Loader) -> Result<(), StartError> {
        let backbone = Backbone::start(self.config.base.as_deref(), loader)?;
        self.backbone.send_replace(Some(Arc::new(backbone)));
        Ok(())
    }

    /// How many pictures may be added at once by one caller.
    pub fn parallelism(&self) -> usize {
        let backbone = self.backbone.borrow();
        backbone.as_ref().map_or(1, |base| base.parallelism())
    }

    /// Checks a picture, computes its features and keeps both.
    ///
    /// # Errors
    /// When that fails through no fault of the picture.
    pub async fn add(&self, example: Example, client: ClientId) -> Result<Added, TeachError> {
        let backbone = self.backbone().await?;
        let Example {
            dataset,
            class,
            image,
        } = example;
        let store = Arc::clone(&self.store);
        let content = image.clone();
        let taken = self.source.clone();
        let is_taught = lock(&self.records).contains_key(&dataset);
        let reserved = blocking(move || {
            names::check("dataset", &dataset)?;
            if taken.holds(&dataset) || !is_taught && store.model(&dataset).exists() {
                return Err(TeachError::Foreign(dataset));
            }
            store.reserve(&dataset, &class, &content)
        })
        .await?;
        let room = match reserved {
            Ok(Reservation::Room(room)) => room,
            Ok(Reservation::Known(name)) => return Ok(Added::Known(name)),
            Ok(Reservation::Refused(reason)) => return Ok(Added::Refused(reason)),
            Err(error @ (TeachError::Name(_) | TeachError::Foreign(_))) => {
                return Ok(Added::Refused(error.to_string()));
            }
            Err(error) => return Err(error),
        };
        let features = match backbone.features(image.clone(), client).await? {
            Ok(features) => features,
            Err(error) => return Ok(Added::Refused(error.to_string())),
        };
        let name = blocking(move || {
            room.store()
                .keep_features(room.dataset(), &backbone.key, room.hash(), &features);
            let name = room.file().to_owned();
            room.keep(&image).map(|()| name)
        })
        .await??;
        Ok(Added::Kept(name))
    }

    /// Removes pictures, a class (no pictures named) or a dataset with its model (no class named).
    ///
    /// # Errors
    /// If there is nothing of that name, or a file can't be removed.
    pub async fn remove(
        &self,
        dataset: String,
        class: Option<String>,
        pictures: Vec<String>,
    ) -> Result<Removed, TeachError> {
        let store = Arc::clone(&self.store);
        let name = dataset.clone();
        let whole = class.is_none();
        let removed = blocking(move || {
            names::check("dataset", &name)?;
            let removed = store.remove(&name, class.as_deref(), &pictures)?;
            // Only a model that was taught here goes with its pictures.
            let model = store.model(&name);
            if whole && read_record(&store, &name).is_some() {
                std::fs::remove_file(&model).map_err(TeachError::file(&model))?;
            }
            Ok::<_, TeachError>(removed)
        })
        .await??;
        if whole && lock(&self.records).remove(&dataset).is_some() {
            self.registry.controller().taught(&dataset).await?;
        }
        Ok(Removed { pictures: removed })
    }

    /// Learns a layer from a dataset, writes the model and waits until it is served. It goes on if
    /// nobody waits.
    ///
    /// # Errors
    /// If there is too little to learn from, another dataset is being learned, the name belongs to
    /// another model, or the model is not served.
    pub async fn train(self: &Arc<Self>, wanted: Wanted) -> Result<Trained, TeachError> {
        let Wanted {
            dataset,
            reject_unknown,
        } = wanted;
        names::check("dataset", &dataset)?;
        let backbone = self.backbone().await?;
        let turn = Arc::clone(&self.lesson).try_acquire_owned();
        let turn = turn.map_err(|_| TeachError::Busy)?;
        let teacher = Arc::clone(self);
        let work = tokio::spawn(async move {
            let _turn = turn;
            teacher.teach(dataset, reject_unknown, backbone).await
        });
        work.await.unwrap_or(Err(TeachError::Interrupted))
    }

    async fn teach(
        &self,
        dataset: String,
        reject_unknown: bool,
        backbone: Arc<Backbone>,
    ) -> Result<Trained, TeachError> {
        let started = Instant::now();
        let store = Arc::clone(&self.store);
        let (taken, name) = (self.source.clone(), dataset.clone());
        let content = blocking(move || {
            if is_foreign(&taken, &store, &name) {
                return Err(TeachError::Foreign(name));
            }
            store.dataset(&name)
        })
        .await??;
        let mut material = self.material(&dataset, content, &backbone).await?;
        if reject_unknown {
            let rows = backbone.base.rows().ok_or(TeachError::NoRows)?;
            material.reject_unknown(&rows);
        }
        material.check()?;

        let threads = self.config.threads;
        let (material, lesson) = behind_others(move || {
            let lesson = material.learn(threads);
            (material, lesson)
        })
        .await?;
        let lesson = lesson?;

        let store = Arc::clone(&self.store);
        let examples = material.examples.len();
        let labels = material.labels.clone();
        let name = dataset.clone();
        let (version, lesson) = blocking(move || {
            let written = Written {
                name,
                labels,
                examples,
                reject_unknown,
                lesson: &lesson,
            };
            let version = written.write(&store, &backbone)?;
            Ok::<_, TeachError>((version, lesson))
        })
        .await??;
        let record = Record {
            version: version.clone(),
            accuracy: lesson.evaluation.top1,
            examples,
        };
        lock(&self.records).insert(dataset.clone(), record);
        self.registry.controller().taught(&dataset).await?;
        tracing::info!(
            model = dataset,
            examples,
            accuracy = lesson.evaluation.top1,
            "taught in {:.0?}",
            started.elapsed()
        );
        Ok(Trained {
            model: dataset,
            version,
            labels: material.labels,
            examples,
            skipped: material.skipped,
            evaluation: lesson.evaluation,
            took: started.elapsed(),
        })
    }

    /// The datasets, or the one of this name, as they are on the disk.
    ///
    /// # Errors
    /// An unknown name, or a folder that can't be read.
    pub async fn list(&self, dataset: Option<String>) -> Result<Vec<Listed>, TeachError> {
        let store = Arc::clone(&self.store);
        let found = blocking(move || {
            let is_named = dataset.is_some();
            let names = dataset.map_or_else(|| store.names(), |name| vec![name]);
            let mut found = Vec::new();
            for name in names {
                match store.dataset(&name) {
                    Ok(content) => found.push((name, content)),
                    // Removed by hand since.
                    Err(TeachError::Unknown(_)) if !is_named => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(found)
        })
        .await??;
        let records = lock(&self.records);
        let listed = found.into_iter().map(|(name, content)| Listed {
            record: records.get(&name).cloned(),
            name,
            content,
        });
        Ok(listed.collect())
    }

    /// The file of a picture, by its names in a list.
    ///
    /// # Errors
    /// If there is nothing of that name, or it can't be read.
    pub async fn picture(
        &self,
        dataset: String,
        class: String,
        file: String,
    ) -> Result<Download, TeachError> {
        let store = Arc::clone(&self.store);
        blocking(move || {
            names::check("dataset", &dataset)?;
            Download::open(store.find(&dataset, &class, &file)?, files::LARGEST_PHOTO)
        })
        .await?
    }

    /// The ONNX file of the model that was learned last from a dataset.
    ///
    /// # Errors
    /// If there is none, or it can't be read.
    pub async fn model(&self, dataset: String) -> Result<Download, TeachError> {
        names::check("dataset", &dataset)?;
        if !lock(&self.records).contains_key(&dataset) {
            return Err(TeachError::Unknown(format!(
                "no model was learned from a dataset \"{dataset}\""
            )));
        }
        let path = self.store.model(&dataset);
        blocking(move || Download::open(path, files::LARGEST_MODEL)).await?
    }

    /// The base, which is ready a moment after the server is.
    async fn backbone(&self) -> Result<Arc<Backbone>, TeachError> {
        let mut ready = self.backbone.subscribe();
        let ready = timeout(PATIENCE, ready.wait_for(Option::is_some)).await;
        let backbone = ready.ok().and_then(Result::ok);
        let backbone = backbone.and_then(|backbone| backbone.clone());
        backbone.ok_or(TeachError::Starting)
    }

    /// The features of a dataset's pictures: as they were kept, or computed now for pictures that
    /// were put there by hand or came with another base.
    async fn material(
        &self,
        dataset: &str,
        content: DatasetContent,
        backbone: &Arc<Backbone>,
    ) -> Result<Material, TeachError> {
        let mut pictures = Vec::new();
        let mut material = Material::default();
        for (class, files) in content {
            let index = material.labels.len();
            pictures.extend(files.into_keys().map(|file| (index, class.clone(), file)));
            material.labels.push(class);
        }

        let mut hashes = Vec::with_capacity(pictures.len());
        let mut found = stream::iter(pictures)
            .map(|(index, class, file)| {
                let backbone = Arc::clone(backbone);
                async move {
                    let features = self.features(dataset, &class, &file, &backbone).await?;
                    Ok::<_, TeachError>((index, class, file, features))
                }
            })
            .buffered(backbone.parallelism());
        while let Some(picture) = found.next().await {
            let (class, label, file, features) = picture?;
            match features {
                Ok((hash, features)) => {
                    hashes.push(hash);
                    material.files.push(file);
                    material.examples.push(Learned {
                        class,
                        features,
                        mirrored: None,
                    });
                }
                Err(reason) => material.skipped.push(Skipped {
                    class: label,
                    file,
                    reason,
                }),
            }
        }
        drop(found);
        let (store, key) = (Arc::clone(&self.store), backbone.key.clone());
        let dataset = dataset.to_owned();
        blocking(move || store.tidy_features(&dataset, &key, &hashes)).await?;
        Ok(material)
    }

    /// The hash of a picture and its features, or why it can't be used.
    async fn features(
        &self,
        dataset: &str,
        class: &str,
        file: &str,
        backbone: &Arc<Backbone>,
    ) -> Result<Result<(String, Vec<f32>), String>, TeachError> {
        let store = Arc::clone(&self.store);
        let path = self.store.path(dataset, class, file);
        let (name, file, key) = (dataset.to_owned(), file.to_owned(), backbone.key.clone());
        let length = backbone.base.features();
        let read = blocking(move || {
            let known = |hash: &str| store.features(&name, &key, hash, length);
            if let Some(hash) = store::hash_in_name(&file)
                && let Some(features) = known(hash)
            {
                return Ok((hash.to_owned(), Ok(features)));
            }
            let content = files::read_limited(&path, files::LARGEST_PHOTO)
                .map_err(|error| error.reason.to_string())?;
            let hash =
                store::hash_in_name(&file).map_or_else(|| store::hash(&content), str::to_owned);
            let features = known(&hash).ok_or_else(|| Bytes::from(content));
            Ok((hash, features))
        })
        .await?;
        let (hash, image) = match read {
            Ok((hash, Ok(features))) => return Ok(Ok((hash, features))),
            Ok((hash, Err(image))) => (hash, image),
            Err(reason) => return Ok(Err(reason)),
        };
        let features = match backbone.features(image, ClientId::alone(0)).await? {
            Ok(features) => features,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let store = Arc::clone(&self.store);
        let (name, key) = (dataset.to_owned(), backbone.key.clone());
        let kept = blocking(move || {
            store.keep_features(&name, &key, &hash, &features);
            (hash, features)
        })
        .await?;
        Ok(Ok(kept))
    }
}

/// Whether the name belongs to a model that was not taught here.
fn is_foreign(source: &ModelSource, store: &Store, dataset: &str) -> bool {
    source.holds(dataset)
        || (store.model(dataset).exists() && read_record(store, dataset).is_none())
}

/// What a model's file says of its training, if that took place here.
fn read_record(store: &Store, dataset: &str) -> Option<Record> {
    let path = store.model(dataset);
    if !path.exists() {
        return None;
    }
    let (version, training) = match training_record(&path) {
        Ok(record) => record,
        Err(error) => {
            tracing::warn!("{error}");
            return None;
        }
    };
    let training = training?;
    if training.get(MARK).and_then(Value::as_bool) != Some(true) {
        return None;
    }
    let number = |name: &str| training.get(name).and_then(Value::as_f64);
    Some(Record {
        version,
        accuracy: number("cross_validated_accuracy")?,
        examples: number("train_photos")? as usize,
    })
}

/// A model as it is written.
struct Written<'a> {
    name: String,
    labels: Vec<String>,
    examples: usize,
    reject_unknown: bool,
    lesson: &'a Lesson,
}

impl Written<'_> {
    /// Writes the base with the new layer, once it is certain that it can be read. Returns its
    /// version.
    fn write(self, store: &Store, backbone: &Backbone) -> Result<String, TeachError> {
        let (engine, precision) = &backbone.engine;
        let lesson = self.lesson;
        let path = store.model(&self.name);
        let description = Description {
            name: self.name,
            labels: self.labels,
            training: json!({
                MARK: true,
                "cross_validated_accuracy": (lesson.evaluation.top1 * 1e4).round() / 1e4,
                "train_photos": self.examples,
                "reject_unknown": self.reject_unknown,
                "features": { "engine": engine, "precision": precision },
                "settings": lesson.settings.json(true, false),
            }),
        };
        let onnx: Bytes = backbone.base.with_layer(&lesson.layer, description)?.into();
        let model = Model::from_bytes(onnx.clone(), &Overrides::default())?;
        store::write(&path, &onnx).map_err(TeachError::file(&path))?;
        backbone.mark_checked(&model.name, &path, &model.version);
        Ok(model.version)
    }
}

/// Runs work that blocks its thread for a moment.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, TeachError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| TeachError::Interrupted)
}

/// Runs work that computes, in a thread that yields to those of requests.
async fn behind_others<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, TeachError> {
    let (done, outcome) = oneshot::channel();
    let spawned = std::thread::Builder::new()
        .name("teacher".into())
        .spawn(move || {
            // On Linux this is of the thread, and of those that it starts.
            #[cfg(target_os = "linux")]
            if let Err(error) = rustix::process::setpriority_process(None, NICE) {
                tracing::debug!("learning does not yield to requests: {error}");
            }
            // The caller waits, unless the server ends.
            let _ = done.send(work());
        });
    if let Err(error) = spawned {
        tracing::error!("the system could not start a thread to learn: {error}");
        return Err(TeachError::Interrupted);
    }
    outcome.await.map_err(|_| TeachError::Interrupted)
}
