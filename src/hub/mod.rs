//! Published models by name: `torchvision:resnet18` and `hf:OWNER/NAME`. Each is looked for in
//! PyTorch's own cache and in this program's, else fetched over HTTPS, verified, and converted to an
//! ONNX file in the cache.
//!
//! `torchvision` and `hugging_face` know the names, the files and the preprocessing; `fetch` gets one
//! file, with `http` for the connection; `convert` makes the ONNX file. Everything here blocks.

mod convert;
mod error;
mod fetch;
mod http;
mod hugging_face;
mod torchvision;

use std::{
    env, fmt,
    fs::{self, File},
    path::{Path, PathBuf},
};

use self::fetch::Wanted;
pub use self::{error::HubError, fetch::Deadline, hugging_face::Repository, torchvision::Weights};
use crate::{cache::ArtifactCache, files, model::Overrides};

/// Limit for a file of JSON or of labels, in bytes.
const LARGEST_JSON: u64 = 16 << 20;

/// The name of a published model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    /// `torchvision:NETWORK[@SET]`.
    Torchvision(&'static Weights),
    /// `hf:OWNER/NAME[@REVISION]`.
    HuggingFace(Repository),
}

impl Reference {
    /// Reads a name; `None` for the path of a file.
    ///
    /// # Errors
    /// A name of nothing that is published.
    pub fn parse(text: &str) -> Option<Result<Self, HubError>> {
        if let Some(name) = text.strip_prefix("torchvision:") {
            return Some(Weights::find(name).map(Self::Torchvision));
        }
        let name = text.strip_prefix("hf:")?;
        Some(Repository::parse(name).map(Self::HuggingFace))
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Torchvision(weights) => {
                write!(f, "torchvision:{}@{}", weights.network, weights.set)
            }
            Self::HuggingFace(repository) => write!(f, "hf:{repository}"),
        }
    }
}

/// How much of a file has come.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// In bytes, with what had come before.
    pub done: u64,
    /// Size of the file in bytes, if the server says it.
    pub total: Option<u64>,
}

/// Where models are looked for and fetched from.
#[derive(Clone, Debug, Default)]
pub struct HubConfig {
    /// Where models are kept; `None` means [`default_folder`].
    pub folder: Option<PathBuf>,
    /// Where they are fetched from in place of their publisher: for torchvision the folder of its
    /// files, for Hugging Face the site. `http://` is taken for this machine only.
    pub url: Option<String>,
    /// Where PyTorch keeps what it has fetched; `None` means where the environment says.
    pub torch_folder: Option<PathBuf>,
    /// Whether nothing is fetched.
    pub offline: bool,
    /// When to give up.
    pub deadline: Option<Deadline>,
}

/// A model that is on this machine.
#[derive(Clone, Debug)]
pub struct Found {
    /// The checkpoint.
    pub path: PathBuf,
    /// Whether it was fetched now.
    pub fetched: bool,
    /// The settings that belong to it: name, labels, normalization and size.
    pub overrides: Overrides,
}

/// The folder of models in the user's cache: `$XDG_CACHE_HOME/resnet18/models`, else
/// `~/.cache/resnet18/models`.
pub fn default_folder() -> Option<PathBuf> {
    Some(ArtifactCache::default_folder()?.join("models"))
}

/// Finds or fetches a checkpoint. `progress` is called while it comes.
///
/// # Errors
/// A checkpoint that is not here and cannot be fetched.
pub fn checkpoint(
    reference: &Reference,
    config: &HubConfig,
    progress: &mut dyn FnMut(Progress),
) -> Result<Found, HubError> {
    let hub = Hub::new(config)?;
    match reference {
        Reference::Torchvision(weights) => hub.torchvision(weights, progress),
        Reference::HuggingFace(repository) => hub.hugging_face(repository, progress),
    }
}

/// Finds, fetches or converts a model. Returns its ONNX file, and whether its checkpoint was fetched
/// now.
///
/// # Errors
/// A model that cannot be had or converted.
pub fn model(
    reference: &Reference,
    config: &HubConfig,
    progress: &mut dyn FnMut(Progress),
) -> Result<(PathBuf, bool), HubError> {
    let hub = Hub::new(config)?;
    let found = checkpoint(reference, config, progress)?;
    let onnx = convert::convert(&found, &hub.folder)?;
    Ok((onnx, found.fetched))
}

struct Hub<'a> {
    config: &'a HubConfig,
    folder: PathBuf,
}

impl<'a> Hub<'a> {
    fn new(config: &'a HubConfig) -> Result<Self, HubError> {
        let folder = config.folder.clone().or_else(default_folder);
        if let Some(url) = &config.url
            && !url.starts_with("https://")
            && !http::is_plain_loopback(url)
        {
            return Err(HubError::Name(format!(
                "--hub-url {url}: https:// is needed; http:// is taken for this machine only"
            )));
        }
        Ok(Self {
            config,
            folder: folder.ok_or(HubError::NoFolder)?,
        })
    }

    fn torchvision(
        &self,
        weights: &Weights,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Found, HubError> {
        let overrides = Overrides {
            name: Some(weights.network.to_owned()),
            resize_shorter_side: Some(weights.resize_shorter_side),
            ..Overrides::default()
        };
        let kept = self.folder.join(weights.file);
        let torch = self.config.torch_folder.clone().or_else(torch_folder);
        let places = torch.map(|folder| folder.join(weights.file));
        for path in places.into_iter().chain([kept.clone()]) {
            if path.exists() {
                verify(&path, weights.hash())?;
                return Ok(Found {
                    path,
                    fetched: false,
                    overrides,
                });
            }
        }

        let base = self.config.url.as_deref().unwrap_or(torchvision::URL);
        let url = format!("{}/{}", base.trim_end_matches('/'), weights.file);
        let fetched = self.fetch(
            &Wanted {
                url: &url,
                path: &kept,
                hash: Some(weights.hash()),
                limit: files::LARGEST_CHECKPOINT,
                deadline: self.config.deadline,
                hint: &by_hand(&url, &kept),
            },
            progress,
        );
        fetched.map(|()| Found {
            path: kept,
            fetched: true,
            overrides,
        })
    }

    fn hugging_face(
        &self,
        repository: &Repository,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Found, HubError> {
        let folder = self.folder.join(repository.folder());
        let base = self.config.url.as_deref().unwrap_or(hugging_face::URL);
        let mut fetched = false;
        let mut get = |file: &str, limit: u64, progress: &mut dyn FnMut(Progress)| {
            let path = folder.join(file);
            if !path.exists() {
                let url = repository.url(base, file);
                let wanted = Wanted {
                    url: &url,
                    path: &path,
                    hash: None,
                    limit,
                    deadline: self.config.deadline,
                    hint: &by_hand(&url, &path),
                };
                self.fetch(&wanted, progress)?;
                fetched = true;
            }
            Ok(path)
        };
        // The small files first: they say whether this is an image classifier at all.
        let config = get("config.json", LARGEST_JSON, &mut |_| {})?;
        let mut settings = hugging_face::Settings::read(&config)?;
        if !settings.has_preprocessing() {
            let pixels = get("preprocessor_config.json", LARGEST_JSON, &mut |_| {})?;
            settings.add_preprocessing(&pixels)?;
        }
        let overrides = settings.overrides(repository);
        let path = get("model.safetensors", files::LARGEST_CHECKPOINT, progress)?;
        Ok(Found {
            path,
            fetched,
            overrides,
        })
    }

    fn fetch(&self, wanted: &Wanted, progress: &mut dyn FnMut(Progress)) -> Result<(), HubError> {
        if self.config.offline {
            let file = wanted.path.file_name().unwrap_or_default();
            return Err(HubError::Offline {
                file: file.to_string_lossy().into_owned(),
                hint: wanted.hint.to_owned(),
            });
        }
        fetch::fetch(wanted, progress)
    }
}

/// How to fetch a file by hand.
fn by_hand(url: &str, path: &Path) -> String {
    let folder = path.parent().unwrap_or(Path::new("."));
    format!(
        "by hand: mkdir -p {} && curl -L -o {} {url}",
        folder.display(),
        path.display()
    )
}

/// Checks the hash of a file that was found, as another program may have written it.
fn verify(path: &Path, expected: &str) -> Result<(), HubError> {
    let failed = |source| fetch::disk(path, source);
    let (mut file, _) = files::TimedFile::open(path, files::LARGEST_CHECKPOINT)
        .map_err(|reason| failed(std::io::Error::other(reason.to_string())))?;
    let found = fetch::digest(&mut file).map_err(failed)?;
    if found.starts_with(expected) {
        return Ok(());
    }
    Err(HubError::Hash {
        place: path.display().to_string(),
        expected: expected.to_owned(),
        found: found[..expected.len()].to_owned(),
        removed: "; remove it, and it is fetched again",
    })
}

/// Where PyTorch keeps what it has fetched.
fn torch_folder() -> Option<PathBuf> {
    let absolute = |variable| {
        env::var_os(variable)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let home = absolute("TORCH_HOME")
        .or_else(|| Some(absolute("XDG_CACHE_HOME")?.join("torch")))
        .or_else(|| Some(absolute("HOME")?.join(".cache/torch")))?;
    Some(home.join("hub/checkpoints"))
}

/// Writes a file whole or not at all.
fn write(path: &Path, content: &[u8]) -> Result<(), HubError> {
    use std::io::Write;

    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let written = File::create(&temporary)
        .and_then(|mut file| {
            file.write_all(content)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&temporary, path));
    written.map_err(|source| {
        let _ = fs::remove_file(&temporary);
        fetch::disk(path, source)
    })
}

/// A number of bytes, as in `44.7 MB`.
fn format_bytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_paths() {
        for path in [
            "model.onnx",
            "/a/torchvision",
            "hf",
            "C:/a.pth",
            "torchvision/resnet18",
        ] {
            assert!(Reference::parse(path).is_none(), "{path}");
        }
        let name = |text| Reference::parse(text).unwrap().map(|name| name.to_string());
        assert_eq!(
            name("torchvision:resnet18").unwrap(),
            "torchvision:resnet18@IMAGENET1K_V1"
        );
        assert_eq!(
            name("hf:microsoft/resnet-18").unwrap(),
            "hf:microsoft/resnet-18"
        );
        assert!(name("torchvision:vit_b_16").is_err());
        assert!(name("hf:resnet-18").is_err());
    }

    #[test]
    fn plain_http_is_for_this_machine_only() {
        let with = |url: &str| HubConfig {
            url: Some(url.to_owned()),
            folder: Some("/none".into()),
            ..HubConfig::default()
        };
        for (url, is_taken) in [
            ("https://mirror.example/models", true),
            ("http://127.0.0.1:8000", true),
            ("http://localhost/x", true),
            ("http://mirror.example/models", false),
            ("ftp://127.0.0.1", false),
        ] {
            assert_eq!(Hub::new(&with(url)).is_ok(), is_taken, "{url}");
        }
    }
}
