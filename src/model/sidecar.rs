//! Settings that lie beside a model's file, or in its metadata, as other projects write them:
//! Hugging Face's `preprocessor_config.json` and `config.json`, timm's `pretrained_cfg`,
//! Ultralytics's metadata, and those of training services, see [`exports`].
//!
//! Flags and the manifest override them. Every setting is applied, or rejected by its name; none is
//! ignored silently.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

use super::{
    ModelError,
    exports::{self, CUSTOM_VISION, LABELS, TAO, TEACHABLE_MACHINE},
    image_processors::{hugging_face, timm_settings},
    onnx::ModelProto,
    preprocessing::{Preprocessing, Preset},
};
use crate::{files, image::Fit};

/// Hugging Face's settings of preprocessing.
const PREPROCESSOR: &str = "preprocessor_config.json";
/// Hugging Face's and timm's description of a network.
const CONFIG: &str = "config.json";
/// The most entries of a folder that are looked at, to tell whether it belongs to one model.
const MOST_ENTRIES: usize = 4096;
/// The most labels that are read.
const MOST_LABELS: usize = 1 << 20;

/// What is known of a model besides its graph and its manifest.
#[derive(Clone, Debug, Default)]
pub(super) struct Sidecar {
    pub(super) settings: Preprocessing,
    /// Class names, in the order of the logits, and where they come from, with a verb.
    pub(super) labels: Option<(Vec<String>, String)>,
    /// What was read from which file, in words, for the log.
    pub(super) sources: Vec<String>,
}

/// The files beside the model file `path` that may describe it.
pub(crate) fn files_beside(path: &Path) -> [PathBuf; 6] {
    [
        PREPROCESSOR,
        CONFIG,
        CUSTOM_VISION,
        TEACHABLE_MACHINE,
        TAO,
        LABELS,
    ]
    .map(|name| path.with_file_name(name))
}

impl Sidecar {
    /// Reads the files beside the model file `path`, if its folder belongs to one model.
    ///
    /// # Errors
    /// Files that can't be read or are no JSON; settings that are not supported.
    pub(super) fn read(path: &Path) -> Result<Self, ModelError> {
        let mut sidecar = Self::default();
        let files = files_beside(path);
        if !files.iter().any(|file| file.exists()) || !belongs_to_one_model(path) {
            return Ok(sidecar);
        }
        let [preprocessor, config, exported @ ..] = files;

        if let Some(json) = object(&preprocessor)? {
            let settings = hugging_face(&json).map_err(in_file(PREPROCESSOR))?;
            sidecar.add(settings, PREPROCESSOR);
        }
        if let Some(json) = object(&config)? {
            if let Some(Value::Object(timm)) = json.get("pretrained_cfg") {
                let settings = timm_settings(timm).map_err(in_file(CONFIG))?;
                sidecar.add(settings, "config.json (pretrained_cfg)");
            }
            let labels = labels(&json).map_err(in_file(CONFIG))?;
            if let Some(labels) = labels {
                sidecar.sources.push(format!("labels from {CONFIG}"));
                sidecar.labels = Some((labels, format!("{CONFIG} holds")));
            }
        }
        sidecar.read_exported(exported)?;
        Ok(sidecar)
    }

    /// Reads what training services write.
    fn read_exported(&mut self, files: [PathBuf; 4]) -> Result<(), ModelError> {
        let [custom_vision, teachable_machine, tao, labels] = files;
        if let Some(json) = object(&custom_vision)? {
            let property = |key: &str| exports::text_of(&json, key);
            if exports::is_custom_visions(property) {
                let settings = exports::custom_vision(property).map_err(in_file(CUSTOM_VISION))?;
                self.add(settings, CUSTOM_VISION);
            }
        }
        // Its name is a common one.
        if let Ok(Some(json)) = object(&teachable_machine)
            && let Some((settings, labels)) =
                exports::teachable_machine(&json).map_err(in_file(TEACHABLE_MACHINE))?
        {
            self.add(settings, TEACHABLE_MACHINE);
            self.add_labels(labels, TEACHABLE_MACHINE);
        }
        if let Some(text) = text(&tao)? {
            let settings = exports::tao(&text).map_err(in_file(TAO))?;
            self.add(settings, TAO);
        }
        if let Some(text) = text(&labels)? {
            self.add_labels(exports::labels(&text), LABELS);
        }
        Ok(())
    }

    /// Adds the labels of a file, unless there are some.
    fn add_labels(&mut self, labels: Vec<String>, file: &str) {
        if self.labels.is_none() {
            self.sources.push(format!("labels from {file}"));
            self.labels = Some((labels, format!("{file} holds")));
        }
    }

    /// Adds what the metadata of the model say, with less weight than what is there.
    ///
    /// # Errors
    /// Metadata that can't be read.
    pub(super) fn with_metadata(mut self, model: &ModelProto) -> Result<Self, ModelError> {
        let property = |key: &str| exports::property(model, key);
        let in_metadata = |reason| ModelError::Sidecar {
            file: "its metadata".into(),
            reason,
        };
        if exports::is_custom_visions(property) {
            let settings = exports::custom_vision(property).map_err(in_metadata)?;
            self.add(settings, "the metadata of Custom Vision");
        } else if let Some(settings) = exports::image_properties(property).map_err(in_metadata)? {
            self.add(settings, "its metadata");
        }
        let is_classifier = property("author") == Some("Ultralytics")
            && property("task").is_none_or(|task| task == "classify");
        if !is_classifier {
            return Ok(self);
        }

        let mut settings = Preset::YoloCls.settings();
        if let Some(size) = property("imgsz") {
            let [width, height] = height_and_width(size).map_err(in_metadata)?;
            settings.input_size = Some([width, height]);
            if width != height {
                settings.fit = Some(Fit::Squash);
            }
        }
        self.add(settings, "the metadata of Ultralytics");
        if let Some(names) = property("names").filter(|_| self.labels.is_none()) {
            let names = python_names(names).map_err(in_metadata)?;
            self.sources
                .push("labels from the metadata of Ultralytics".into());
            self.labels = Some((names, "its metadata hold".into()));
        }
        Ok(self)
    }

    fn add(&mut self, settings: Preprocessing, origin: &str) {
        self.settings = std::mem::take(&mut self.settings).or(&settings);
        self.sources.push(format!("preprocessing from {origin}"));
    }
}

/// Whether no other model's file lies beside this one, but for further versions of it in Hugging
/// Face's layout, such as `model_fp16.onnx`.
fn belongs_to_one_model(path: &Path) -> bool {
    let is_hugging_faces = |path: &Path| {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        stem == "model" || stem.starts_with("model_")
    };
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let Ok(entries) = fs::read_dir(folder) else {
        return false;
    };
    for (index, entry) in entries.flatten().enumerate() {
        let other = entry.path();
        let is_other = other.extension() == path.extension()
            && other.file_name() != path.file_name()
            && !(is_hugging_faces(path) && is_hugging_faces(&other));
        if is_other || index >= MOST_ENTRIES {
            return false;
        }
    }
    true
}

/// Reads a file of JSON; `None` if there is no such file.
fn object(path: &Path) -> Result<Option<Map<String, Value>>, ModelError> {
    if !path.exists() {
        return Ok(None);
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let content = files::read_limited(path, files::LARGEST_TEXT)
        .map_err(|error| in_file(&name)(error.reason.to_string()))?;
    serde_json::from_slice(&content)
        .map(Some)
        .map_err(|error| in_file(&name)(format!("is no JSON object: {error}")))
}

/// Reads a file of text; `None` if there is no such file.
fn text(path: &Path) -> Result<Option<String>, ModelError> {
    if !path.exists() {
        return Ok(None);
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let content = files::read_limited(path, files::LARGEST_TEXT)
        .map_err(|error| in_file(&name)(error.reason.to_string()))?;
    let text = String::from_utf8(content);
    text.map(Some)
        .map_err(|_| in_file(&name)("must be UTF-8 text".into()))
}

fn in_file(name: &str) -> impl Fn(String) -> ModelError {
    move |reason| ModelError::Sidecar {
        file: format!("{name} beside it"),
        reason,
    }
}

/// The names of the classes: Hugging Face's `id2label`, or timm's `label_names`, with their
/// descriptions where there are some.
fn labels(json: &Map<String, Value>) -> Result<Option<Vec<String>>, String> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    if let Some(Value::Object(names)) = json.get("id2label") {
        if names.len() > MOST_LABELS {
            return Err(format!("\"id2label\" holds more than {MOST_LABELS} labels"));
        }
        let labels: Option<Vec<String>> = (0..names.len())
            .map(|id| names.get(&id.to_string()).and_then(text))
            .collect();
        return match labels {
            Some(labels) => Ok(Some(labels)),
            None => Err("\"id2label\" does not name each class from 0 on".into()),
        };
    }
    let Some(Value::Array(names)) = json.get("label_names") else {
        return Ok(None);
    };
    let described = |name: &Value| {
        let name = name.as_str()?;
        let description = json.get("label_descriptions").and_then(|all| all.get(name));
        Some(
            description
                .and_then(text)
                .unwrap_or_else(|| name.to_owned()),
        )
    };
    let labels: Option<Vec<String>> = names.iter().map(described).collect();
    labels
        .map(Some)
        .ok_or_else(|| "\"label_names\" must be a list of strings".into())
}

/// Reads a size such as `[224, 224]`, height and width, or `224`. Returns width and height.
fn height_and_width(text: &str) -> Result<[u32; 2], String> {
    let numbers: Option<Vec<u32>> = text
        .trim()
        .trim_start_matches(['[', '('])
        .trim_end_matches([']', ')'])
        .split(',')
        .map(|number| number.trim().parse().ok().filter(|pixels| *pixels > 0))
        .collect();
    match numbers.as_deref() {
        Some(&[side]) => Ok([side; 2]),
        Some(&[height, width]) => Ok([width, height]),
        _ => Err(format!(
            "`imgsz` is {text:?}; expected a size such as `224` or `[224, 224]`"
        )),
    }
}

/// Reads the literal of a Python dictionary from class numbers to names, such as
/// `{0: 'tench', 1: "cock's comb"}`. Nothing is evaluated.
fn python_names(text: &str) -> Result<Vec<String>, String> {
    let wrong =
        || "`names` must be a Python dictionary such as {0: 'tench', 1: 'goldfish'}".to_owned();
    let inner = text.trim().strip_prefix('{').ok_or_else(wrong)?;
    let mut rest = inner.strip_suffix('}').ok_or_else(wrong)?.trim_start();
    let mut names = Vec::new();
    while !rest.is_empty() {
        let (key, value) = rest.split_once(':').ok_or_else(wrong)?;
        if key.trim().parse() != Ok(names.len()) || names.len() >= MOST_LABELS {
            return Err("`names` does not number the classes from 0 on".into());
        }
        let (name, after) = python_string(value.trim_start()).ok_or_else(wrong)?;
        names.push(name);
        rest = after.trim_start();
        rest = match rest.strip_prefix(',') {
            Some(next) => next.trim_start(),
            None if rest.is_empty() => rest,
            None => return Err(wrong()),
        };
    }
    Ok(names)
}

/// Reads a string literal at the start of `text`. Returns it and what follows.
fn python_string(text: &str) -> Option<(String, &str)> {
    let quote = text
        .chars()
        .next()
        .filter(|quote| ['\'', '"'].contains(quote))?;
    let mut string = String::new();
    let mut characters = text[1..].char_indices();
    while let Some((index, character)) = characters.next() {
        if character == quote {
            return Some((string, &text[1 + index + 1..]));
        }
        if character != '\\' {
            string.push(character);
            continue;
        }
        let digits = match characters.next()?.1 {
            'n' => {
                string.push('\n');
                0
            }
            't' => {
                string.push('\t');
                0
            }
            'x' => 2,
            'u' => 4,
            'U' => 8,
            other => {
                string.push(other);
                0
            }
        };
        if digits > 0 {
            let mut code = 0;
            for _ in 0..digits {
                code = code * 16 + characters.next()?.1.to_digit(16)?;
            }
            string.push(char::from_u32(code)?);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn labels_are_in_the_order_of_their_numbers() {
        let config = json!({"id2label": {"1": "wren", "0": "owl", "2": "finch"}});
        assert_eq!(
            labels(config.as_object().unwrap()).unwrap().unwrap(),
            ["owl", "wren", "finch"]
        );
        let config = json!({"label_names": ["n1", "n2"], "label_descriptions": {"n2": "wren"}});
        assert_eq!(
            labels(config.as_object().unwrap()).unwrap().unwrap(),
            ["n1", "wren"]
        );
        assert!(labels(json!({"id2label": {"1": "wren"}}).as_object().unwrap()).is_err());
        assert_eq!(labels(json!({}).as_object().unwrap()).unwrap(), None);
    }

    #[test]
    fn pythons_dictionaries_are_read_as_data() {
        assert_eq!(
            python_names(r#"{0: 'tench', 1: "cock's comb", 2: 'caf\xe9, \'au lait\'', }"#).unwrap(),
            ["tench", "cock's comb", "café, 'au lait'"]
        );
        assert_eq!(python_names("{}").unwrap(), [""; 0]);
        for wrong in [
            "",
            "[1]",
            "{0}",
            "{0: tench}",
            "{1: 'a'}",
            "{0: 'a' 1: 'b'}",
            "{0: 'a}",
            r"{0: '\x1'}",
            r"{0: '\ud800'}",
            "{0: print('a')}",
        ] {
            assert!(python_names(wrong).is_err(), "{wrong}");
        }
        assert_eq!(height_and_width("[64, 96]").unwrap(), [96, 64]);
        assert_eq!(height_and_width("64").unwrap(), [64, 64]);
        assert!(height_and_width("[64, 96, 3]").is_err());
    }

    #[test]
    fn a_folder_of_several_models_says_nothing_of_one() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        fs::write(file("a.onnx"), "").unwrap();
        fs::write(file("config.json"), r#"{"id2label": {"0": "owl"}}"#).unwrap();
        assert!(Sidecar::read(&file("a.onnx")).unwrap().labels.is_some());
        fs::write(file("b.onnx"), "").unwrap();
        assert!(Sidecar::read(&file("a.onnx")).unwrap().labels.is_none());

        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        for name in ["model.onnx", "model_fp16.onnx"] {
            fs::write(file(name), "").unwrap();
        }
        fs::write(file("config.json"), r#"{"id2label": {"0": "owl"}}"#).unwrap();
        assert!(Sidecar::read(&file("model.onnx")).unwrap().labels.is_some());
        fs::write(file("config.json"), "[]").unwrap();
        let error = Sidecar::read(&file("model.onnx")).unwrap_err().to_string();
        assert!(error.contains("config.json beside it"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn what_is_no_regular_file_of_json_is_rejected_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        fs::write(file("a.onnx"), "").unwrap();
        let made = std::process::Command::new("mkfifo")
            .arg(file("config.json"))
            .status()
            .unwrap();
        assert!(made.success());
        let refusal = || Sidecar::read(&file("a.onnx")).unwrap_err().to_string();
        let error = refusal();
        assert!(error.contains("named pipe"), "{error}");

        fs::remove_file(file("config.json")).unwrap();
        let large = fs::File::create(file("config.json")).unwrap();
        large.set_len(files::LARGEST_TEXT + 1).unwrap();
        let error = refusal();
        assert!(error.contains("larger than"), "{error}");

        let deep = "[".repeat(100_000);
        fs::write(file("config.json"), format!("{{\"id2label\": {deep}")).unwrap();
        let error = refusal();
        assert!(error.contains("no JSON object"), "{error}");
    }
}
