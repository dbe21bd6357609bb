//! Flags for published models, which are named instead of files: `torchvision:resnet18`.

use std::{
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use clap::Args;
use indicatif::{DecimalBytes, ProgressBar};

use crate::{
    cli::{CliError, blocking, output},
    hub::{self, Deadline, Found, HubConfig, HubError, Progress, Reference},
};

/// The style of the bar that shows how much of a file has come.
const BAR: &str = "{msg:<12} {bar:32.cyan} {bytes} of {total_bytes}  {bytes_per_sec}  {eta} left";

/// Flags for models that are fetched by name.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Published models")]
pub struct HubFlags {
    /// Fetch torchvision:NETWORK and hf:OWNER/NAME from this mirror: for torchvision, the folder of
    /// its files; for Hugging Face, the site.
    #[arg(long, env = "RESNET18_HUB_URL", value_name = "URL")]
    hub_url: Option<String>,
    /// Keep fetched models in this folder [default: resnet18/models in $XDG_CACHE_HOME or ~/.cache].
    #[arg(long, env = "RESNET18_HUB_CACHE", value_name = "DIR")]
    hub_cache: Option<PathBuf>,
    /// Fetch nothing: use only models that are on this machine, here or in PyTorch's cache.
    #[arg(long, env = "RESNET18_OFFLINE")]
    offline: bool,
}

impl HubFlags {
    /// The published model that a path on the command line names, if it names one.
    ///
    /// # Errors
    /// A name of nothing that is published.
    pub fn reference(path: &Path) -> Result<Option<Reference>, CliError> {
        let reference = path.to_str().and_then(Reference::parse).transpose();
        reference.map_err(|error| CliError::Usage(error.to_string()))
    }

    /// The ONNX file at `path`, or of the published model that it names, which is fetched first if
    /// need be.
    ///
    /// # Errors
    /// A model that cannot be had.
    pub async fn file(&self, path: PathBuf) -> Result<PathBuf, CliError> {
        self.file_within(path, None)
            .await?
            .map_err(CliError::failed)
    }

    /// As [`Self::file`], for an argument that may be missing.
    ///
    /// # Errors
    /// A model that cannot be had.
    pub async fn optional_file(&self, path: Option<PathBuf>) -> Result<Option<PathBuf>, CliError> {
        match path {
            Some(path) => Ok(Some(self.file(path).await?)),
            None => Ok(None),
        }
    }

    /// As [`Self::file`], giving up after `patience`. The inner error is that the model can't be had.
    ///
    /// # Errors
    /// A name of nothing that is published.
    pub async fn file_within(
        &self,
        path: PathBuf,
        patience: Option<Duration>,
    ) -> Result<Result<PathBuf, HubError>, CliError> {
        let Some(reference) = Self::reference(&path)? else {
            return Ok(Ok(path));
        };
        let config = self.config(patience);
        let got = blocking(move || {
            let mut bar = Bar::new(&reference);
            let got = hub::model(&reference, &config, &mut |progress| bar.show(progress));
            bar.end();
            got.map(|(path, fetched)| {
                if fetched {
                    output::print_note(&format_args!("{reference} was fetched and verified"));
                }
                path
            })
        });
        Ok(got.await)
    }

    /// The checkpoint of a published model, and the settings that belong to it. Blocks.
    ///
    /// # Errors
    /// A model that cannot be had.
    pub fn checkpoint(&self, reference: &Reference) -> Result<Found, CliError> {
        let mut bar = Bar::new(reference);
        let found = hub::checkpoint(reference, &self.config(None), &mut |progress| {
            bar.show(progress);
        });
        bar.end();
        found.map_err(CliError::failed)
    }

    fn config(&self, patience: Option<Duration>) -> HubConfig {
        HubConfig {
            folder: self.hub_cache.clone(),
            url: self.hub_url.clone(),
            offline: self.offline,
            torch_folder: None,
            deadline: patience.map(|whole| Deadline {
                at: Instant::now() + whole,
                whole,
            }),
        }
    }
}

/// A progress bar on a terminal, which appears when something is fetched; elsewhere a line.
struct Bar {
    bar: ProgressBar,
    /// What is fetched, until that has been said.
    unsaid: Option<String>,
}

impl Bar {
    fn new(reference: &Reference) -> Self {
        let bar = ProgressBar::no_length()
            .with_style(output::progress_style(BAR))
            .with_message(reference.to_string());
        let unsaid = (!io::stderr().is_terminal()).then(|| reference.to_string());
        Self { bar, unsaid }
    }

    fn show(&mut self, progress: Progress) {
        if let Some(reference) = self.unsaid.take() {
            let size = progress
                .total
                .map(|total| format!(" ({})", DecimalBytes(total)));
            let size = size.unwrap_or_default();
            output::print_note(&format_args!("fetching {reference}{size}"));
        }
        if let Some(total) = progress.total {
            self.bar.set_length(total);
        }
        self.bar.set_position(progress.done);
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }
}
