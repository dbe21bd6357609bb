//! Models on Hugging Face: `model.safetensors` with the labels of `config.json` and the preprocessing
//! of `preprocessor_config.json`.

use std::{collections::BTreeMap, fmt, path::Path};

use serde::Deserialize;
use serde_json::Value;

use super::{HubError, LARGEST_JSON};
use crate::{files::read_limited, model::Overrides};

/// The site.
pub(super) const URL: &str = "https://huggingface.co";
/// Side of the largest image that is taken for a size, in pixels.
const LARGEST_SIDE: u64 = 4096;
/// Size from which images are scaled to it without a margin around the crop.
const WITHOUT_MARGIN: u32 = 384;

/// A repository and a revision of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repository {
    owner: String,
    name: String,
    /// A commit, tag or branch; `None` means what is current when it is fetched.
    revision: Option<String>,
}

impl Repository {
    /// Reads `OWNER/NAME[@REVISION]`.
    ///
    /// # Errors
    /// A text of another form.
    pub(super) fn parse(text: &str) -> Result<Self, HubError> {
        let (path, revision) = match text.split_once('@') {
            Some((path, revision)) => (path, Some(revision)),
            None => (text, None),
        };
        let is_name = |part: &str| {
            !part.is_empty()
                && part.len() <= 96
                && !part.starts_with('.')
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        };
        match path.split_once('/') {
            Some((owner, name))
                if is_name(owner) && is_name(name) && revision.is_none_or(is_name) =>
            {
                Ok(Self {
                    owner: owner.to_owned(),
                    name: name.to_owned(),
                    revision: revision.map(str::to_owned),
                })
            }
            _ => Err(HubError::Name(format!(
                "hf:{text}: expected hf:OWNER/NAME or hf:OWNER/NAME@REVISION"
            ))),
        }
    }

    fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    /// Where the files are kept, within the folder of models.
    pub(super) fn folder(&self) -> String {
        format!("hf--{}--{}--{}", self.owner, self.name, self.revision())
    }

    /// Where a file is fetched from.
    pub(super) fn url(&self, base: &str, file: &str) -> String {
        format!(
            "{}/{}/{}/resolve/{}/{file}",
            base.trim_end_matches('/'),
            self.owner,
            self.name,
            self.revision()
        )
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)?;
        match &self.revision {
            Some(revision) => write!(f, "@{revision}"),
            None => Ok(()),
        }
    }
}

/// What the files beside the tensors say.
pub(super) struct Settings {
    labels: Option<Vec<String>>,
    pixels: Option<Pixels>,
}

impl Settings {
    /// Reads `config.json`, which has the labels and, as timm writes it, the preprocessing.
    ///
    /// # Errors
    /// A file that cannot be read, or is not as Hugging Face writes it.
    pub(super) fn read(config: &Path) -> Result<Self, HubError> {
        let Config {
            id2label,
            pretrained_cfg,
        } = read(config)?;
        let labels = id2label.unwrap_or_default();
        if !labels.keys().copied().eq(0..labels.len() as u32) {
            return Err(HubError::Model {
                file: config.display().to_string(),
                reason: "its id2label does not name each class from 0 on".into(),
            });
        }
        Ok(Self {
            labels: (!labels.is_empty()).then(|| labels.into_values().collect()),
            pixels: pretrained_cfg.map(Pixels::from),
        })
    }

    /// Whether the preprocessing is known.
    pub(super) fn has_preprocessing(&self) -> bool {
        self.pixels.is_some()
    }

    /// Reads `preprocessor_config.json`.
    ///
    /// # Errors
    /// As for [`Self::read`].
    pub(super) fn add_preprocessing(&mut self, path: &Path) -> Result<(), HubError> {
        self.pixels = Some(read(path)?);
        Ok(())
    }

    /// The settings as those of a model.
    pub(super) fn overrides(self, repository: &Repository) -> Overrides {
        let pixels = self.pixels.unwrap_or_default();
        let known = Overrides {
            name: Some(repository.name.clone()),
            labels: self.labels,
            ..Overrides::default()
        };
        Overrides {
            mean: pixels.image_mean,
            std: pixels.image_std,
            resize_shorter_side: pixels.resize(),
            ..known
        }
    }
}

/// What is read of `config.json`.
#[derive(Deserialize)]
struct Config {
    id2label: Option<BTreeMap<u32, String>>,
    pretrained_cfg: Option<TimmSettings>,
}

/// What is read of `preprocessor_config.json`.
#[derive(Default, Deserialize)]
struct Pixels {
    image_mean: Option<[f32; 3]>,
    image_std: Option<[f32; 3]>,
    size: Option<Value>,
    crop_pct: Option<f64>,
}

/// The preprocessing as timm writes it.
#[derive(Deserialize)]
struct TimmSettings {
    mean: Option<[f32; 3]>,
    std: Option<[f32; 3]>,
    /// Channels, height and width.
    input_size: Option<[u32; 3]>,
    crop_pct: Option<f64>,
}

impl From<TimmSettings> for Pixels {
    fn from(settings: TimmSettings) -> Self {
        Self {
            image_mean: settings.mean,
            image_std: settings.std,
            size: settings.input_size.map(|[_, height, _]| height.into()),
            crop_pct: settings.crop_pct,
        }
    }
}

impl Pixels {
    /// Length of the shorter side before the crop: the size, divided by the part of it that is kept.
    fn resize(&self) -> Option<u32> {
        let size = self.size.as_ref()?;
        let number = size
            .as_u64()
            .or_else(|| size.get("shortest_edge")?.as_u64())
            .or_else(|| size.get("height")?.as_u64())?;
        let size = u32::try_from(number.min(LARGEST_SIDE)).ok()?;
        match self.crop_pct {
            Some(part) if part > 0.1 && part <= 1.0 && size < WITHOUT_MARGIN => {
                Some((f64::from(size) / part) as u32)
            }
            _ => Some(size),
        }
    }
}

fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T, HubError> {
    let failed = |reason: String| HubError::Model {
        file: path.display().to_string(),
        reason,
    };
    let content =
        read_limited(path, LARGEST_JSON).map_err(|error| failed(error.reason.to_string()))?;
    serde_json::from_slice(&content)
        .map_err(|error| failed(format!("is not as Hugging Face writes it: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_repositories() {
        let parsed = Repository::parse("microsoft/resnet-18@main").unwrap();
        assert_eq!(
            parsed.url(URL, "config.json"),
            "https://huggingface.co/microsoft/resnet-18/resolve/main/config.json"
        );
        assert_eq!(parsed.to_string(), "microsoft/resnet-18@main");
        for wrong in [
            "a", "a/b/c", "../b", "a/..", "a/b@", "a/b@c/d", "a /b", "a/b?x",
        ] {
            assert!(Repository::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_size_before_the_crop_is_read() {
        let resize = |json: &str| serde_json::from_str::<Pixels>(json).unwrap().resize();
        let of = resize(r#"{"size": {"shortest_edge": 224}, "crop_pct": 0.875}"#);
        assert_eq!(of, Some(256));
        assert_eq!(resize(r#"{"size": 224, "crop_pct": 0.875}"#), Some(256));
        assert_eq!(
            resize(r#"{"size": {"height": 384, "width": 384}, "crop_pct": 0.875}"#),
            Some(384)
        );
        assert_eq!(resize("{}"), None);
        let timm = r#"{"input_size": [3, 224, 224], "crop_pct": 0.95, "mean": [0.5, 0.5, 0.5]}"#;
        let timm: TimmSettings = serde_json::from_str(timm).unwrap();
        assert_eq!(Pixels::from(timm).resize(), Some(235));
    }
}
