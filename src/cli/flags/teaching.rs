//! Flags of `serve` for teaching it one's own classes while it runs.

use std::{num::NonZeroUsize, path::PathBuf};

use clap::Args;

use crate::{
    cli::CliError,
    server::{ModelSource, TeachingConfig, TeachingLimits},
};

/// Where and how much callers may teach.
#[derive(Debug, Args)]
#[command(next_help_heading = "Teaching")]
pub struct TeachingFlags {
    /// Let callers teach their own classes (resnet18 teach): a folder for their pictures, as
    /// NAME/train/CLASS/*.jpg, and the models that are learned from them, NAME.onnx, which are served
    /// under these names. It is made if it is not there.
    #[arg(long, env = "RESNET18_TEACH", value_name = "DIR")]
    teach: Option<PathBuf>,
    /// The ONNX model that gets new last layers [default: the bundled one].
    #[arg(
        long,
        env = "RESNET18_TEACH_BASE",
        value_name = "FILE",
        requires = "teach"
    )]
    teach_base: Option<PathBuf>,
    /// Maximum size of all pictures, in MiB.
    #[arg(long, env = "RESNET18_TEACH_MIB", value_name = "MIB", default_value = "1024",
          value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
    teach_mib: u64,
    /// Maximum number of pictures in a class.
    #[arg(
        long,
        env = "RESNET18_TEACH_PICTURES",
        value_name = "N",
        default_value = "1000"
    )]
    teach_pictures: NonZeroUsize,
    /// Maximum number of classes in a dataset.
    #[arg(
        long,
        env = "RESNET18_TEACH_CLASSES",
        value_name = "N",
        default_value = "100"
    )]
    teach_classes: NonZeroUsize,
    /// Maximum number of datasets. Each may have a model, which is in memory.
    #[arg(
        long,
        env = "RESNET18_TEACH_DATASETS",
        value_name = "N",
        default_value = "16"
    )]
    teach_datasets: NonZeroUsize,
}

impl TeachingFlags {
    /// Whether something may be taught.
    pub fn is_on(&self) -> bool {
        self.teach.is_some()
    }

    /// The folder of what is taught.
    pub fn folder(&self) -> Option<PathBuf> {
        self.teach.clone()
    }

    /// What may be taught beside the models of `source`, learned on half of these threads.
    ///
    /// # Errors
    /// If it is the folder of other models too, or there is no such base.
    pub fn config(
        &self,
        source: &ModelSource,
        threads: NonZeroUsize,
    ) -> Result<Option<TeachingConfig>, CliError> {
        let Some(folder) = self.folder() else {
            return Ok(None);
        };
        if let ModelSource::Folder(models) = source
            && is_same(models, &folder)
        {
            return Err(CliError::Usage(
                "--teach and --model-dir need folders of their own: models that were not taught are \
                 never replaced"
                    .into(),
            ));
        }
        if let Some(base) = &self.teach_base
            && !base.is_file()
        {
            return Err(CliError::Usage(format!(
                "--teach-base {}: there is no such file",
                base.display()
            )));
        }
        Ok(Some(TeachingConfig {
            folder,
            base: self.teach_base.clone(),
            limits: TeachingLimits {
                bytes: self.teach_mib << 20,
                pictures: self.teach_pictures.get(),
                classes: self.teach_classes.get(),
                datasets: self.teach_datasets.get(),
            },
            threads: NonZeroUsize::new(threads.get() / 2).unwrap_or(NonZeroUsize::MIN),
        }))
    }
}

/// Whether the paths lead to the same folder.
fn is_same(one: &std::path::Path, other: &std::path::Path) -> bool {
    match (one.canonicalize(), other.canonicalize()) {
        (Ok(one), Ok(other)) => one == other,
        _ => one == other,
    }
}
