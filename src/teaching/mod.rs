//! Teaching a server one's own classes while it runs.
//!
//! Pictures are kept as an ordinary dataset ([`store`]), each one's features are computed once as it
//! comes in, behind the requests for other models ([`backbone`]), and a new last layer is learned from
//! them and cross-validated ([`lesson`]). The model's file is then loaded like any other. Pictures and
//! models can be fetched again ([`download`]).

mod backbone;
mod download;
mod lesson;
mod names;
mod store;
mod teacher;
#[cfg(test)]
mod tests;

use std::{io, num::NonZeroUsize, path::PathBuf, sync::Arc};

pub use self::{
    download::Download,
    store::{ClassContent, Limits},
    teacher::{Added, Example, Listed, Teacher, Trained, Wanted},
};
use crate::{
    engine::EngineError,
    model::{ModelError, UNKNOWN_LABEL},
    registry::{control::ControlError, loader::LoadError},
    scheduler::{JobError, QueueFull, SpawnError},
};

/// Where and how much is taught.
#[derive(Clone, Debug)]
pub struct TeachingConfig {
    /// The folder of the datasets and their models.
    pub folder: PathBuf,
    /// The ONNX file of the model that gets new last layers; `None` means the bundled one.
    pub base: Option<PathBuf>,
    /// How much is kept.
    pub limits: Limits,
    /// How many threads learn a layer, at a low priority of the system.
    pub threads: NonZeroUsize,
}

/// Why nothing can be taught, which ends the server.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The folder can't be used.
    #[error("{}: the folder of --teach cannot be used: {source}", path.display())]
    Folder {
        /// Which folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The base has no last layer, or is no model.
    #[error("the model that is taught new classes can't be used: {0}")]
    Model(#[from] ModelError),
    /// The base did not survive being tried.
    #[error("the model that is taught new classes can't be used: {0}")]
    Load(#[from] LoadError),
    /// No engine runs the base.
    #[error("the model that is taught new classes can't be used: {0}")]
    Engine(#[from] EngineError),
    /// A thread for the engine can't be started.
    #[error(transparent)]
    Thread(#[from] SpawnError),
}

/// Why something was not taught.
#[derive(Debug, thiserror::Error)]
pub enum TeachError {
    /// The name is not one that is safe as a path.
    #[error(transparent)]
    Name(#[from] names::BadName),
    /// There is no such dataset, class or picture.
    #[error("{0}")]
    Unknown(String),
    /// The name belongs to a model that was not taught here.
    #[error(
        "a model called \"{0}\" is served or lies in the folder that was not taught here, and is not \
         replaced; choose another name"
    )]
    Foreign(String),
    /// There are not enough classes or pictures.
    #[error("{0}")]
    TooFew(String),
    /// The base's last layer can't be read.
    #[error(
        "reject_unknown can't be had with this base: the weights of its last layer are not stored as \
         floats; add pictures of other things to the class \"{UNKNOWN_LABEL}\" instead"
    )]
    NoRows,
    /// Another dataset is being learned.
    #[error("another dataset is being learned; retry in a moment")]
    Busy,
    /// The base is being loaded.
    #[error("the model that is taught new classes is being loaded; retry in a moment")]
    Starting,
    /// The dataset changed so that nothing was learned.
    #[error("training diverged; remove pictures that do not belong to their classes")]
    Diverged,
    /// Computing features failed, through no fault of the picture.
    #[error(transparent)]
    Job(JobError),
    /// The queue of features does not accept the picture.
    #[error(transparent)]
    Queue(#[from] QueueFull),
    /// The new layer does not fit the base.
    #[error("the model can't be written: {0}")]
    Model(#[from] ModelError),
    /// A file can't be read or written; the path is for the log only.
    #[error("{}: {source}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: Arc<io::Error>,
    },
    /// The model was written but is not served.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The thread that learns failed.
    #[error("learning was interrupted")]
    Interrupted,
}

impl TeachError {
    fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File {
            path,
            source: Arc::new(source),
        }
    }
}
