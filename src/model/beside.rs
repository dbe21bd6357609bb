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
    onnx::ModelProto,
    preprocessing::{ChannelOrder, Interpolation, Preprocessing, Preset, Resize, Scale},
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
pub(super) struct Beside {
    pub(super) settings: Preprocessing,
    /// Class names, in the order of the logits, and where they come from, with a verb.
    pub(super) labels: Option<(Vec<String>, String)>,
    /// What was taken from where.
    pub(super) taken: Vec<String>,
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

impl Beside {
    /// Reads the files beside the model file `path`, if its folder belongs to one model.
    ///
    /// # Errors
    /// Files that can't be read or are no JSON; settings that are not supported.
    pub(super) fn read(path: &Path) -> Result<Self, ModelError> {
        let mut beside = Self::default();
        let files = files_beside(path);
        if !files.iter().any(|file| file.exists()) || !belongs_to_one_model(path) {
            return Ok(beside);
        }
        let [preprocessor, config, exported @ ..] = files;

        if let Some(json) = object(&preprocessor)? {
            let settings = hugging_face(&json).map_err(in_file(PREPROCESSOR))?;
            beside.add(settings, PREPROCESSOR);
        }
        if let Some(json) = object(&config)? {
            if let Some(Value::Object(timm)) = json.get("pretrained_cfg") {
                let settings = timm_settings(timm).map_err(in_file(CONFIG))?;
                beside.add(settings, "config.json (pretrained_cfg)");
            }
            let labels = labels(&json).map_err(in_file(CONFIG))?;
            if let Some(labels) = labels {
                beside.taken.push(format!("labels from {CONFIG}"));
                beside.labels = Some((labels, format!("{CONFIG} holds")));
            }
        }
        beside.read_exported(exported)?;
        Ok(beside)
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
            self.taken.push(format!("labels from {file}"));
            self.labels = Some((labels, format!("{file} holds")));
        }
    }

    /// Adds what the metadata of the model say, with less weight than what is there.
    ///
    /// # Errors
    /// Metadata that can't be read.
    pub(super) fn with_metadata(mut self, model: &ModelProto) -> Result<Self, ModelError> {
        let property = |key: &str| exports::property(model, key);
        let in_metadata = |reason| ModelError::Beside {
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
            self.taken
                .push("labels from the metadata of Ultralytics".into());
            self.labels = Some((names, "its metadata hold".into()));
        }
        Ok(self)
    }

    fn add(&mut self, settings: Preprocessing, origin: &str) {
        self.settings = std::mem::take(&mut self.settings).or(&settings);
        self.taken.push(format!("preprocessing from {origin}"));
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
        .map_err(|_| in_file(&name)("is no UTF-8 text".into()))
}

fn in_file(name: &str) -> impl Fn(String) -> ModelError {
    move |reason| ModelError::Beside {
        file: format!("{name} beside it"),
        reason,
    }
}

/// The message for a setting that is not supported.
fn not_computed(key: &str, value: &Value) -> String {
    format!(
        "{key:?} is {value}, which is not supported; give the preprocessing in flags, and move the \
         file away"
    )
}

/// What Hugging Face's image processors do.
fn hugging_face(json: &Map<String, Value>) -> Result<Preprocessing, String> {
    let is_set = |key: &str, default: bool| match json.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(Value::Bool(value)) => Ok(*value),
        Some(other) => Err(not_computed(key, other)),
    };
    for key in [
        "do_pad",
        "do_thumbnail",
        "do_align_long_axis",
        "do_convert_grayscale",
        "do_color_quantize",
        "include_top",
        "rescale_offset",
        "offset",
    ] {
        if is_set(key, false)? {
            return Err(not_computed(key, &json[key]));
        }
    }

    let mut settings = Preprocessing {
        channels: is_set("do_flip_channel_order", false)?.then_some(ChannelOrder::Bgr),
        scale: Some(rescaling(json, is_set("do_rescale", true)?)?),
        ..Preprocessing::default()
    };
    (settings.mean, settings.std) = if is_set("do_normalize", true)? {
        (colours(json, "image_mean")?, colours(json, "image_std")?)
    } else {
        (Some([0.0; 3]), Some([1.0; 3]))
    };

    if is_set("do_resize", true)? {
        let resample = json.get("resample").unwrap_or(&Value::Null);
        settings.interpolation = match resample {
            Value::Null => None,
            value => Some(
                value
                    .as_u64()
                    .and_then(Interpolation::by_pillows_number)
                    .ok_or_else(|| not_computed("resample", value))?,
            ),
        };
        settings.antialias = Some(true);
        resizing(json, &mut settings, is_set("do_center_crop", false)?)?;
    } else {
        return Err(not_computed("do_resize", &Value::Bool(false)));
    }
    // Each processor has another default for these.
    let missing = [
        ("resample", settings.interpolation.is_none()),
        ("image_mean", settings.mean.is_none()),
        ("image_std", settings.std.is_none()),
    ];
    match missing.iter().find(|(_, is_missing)| *is_missing) {
        Some((key, _)) => Err(format!(
            "there is no {key:?}; give the preprocessing in flags"
        )),
        None => Ok(settings),
    }
}

/// The scale that `rescale_factor` asks for.
fn rescaling(json: &Map<String, Value>, rescales: bool) -> Result<Scale, String> {
    if !rescales {
        return Ok(Scale::Byte);
    }
    match json.get("rescale_factor") {
        None | Some(Value::Null) => Ok(Scale::Unit),
        Some(value) => match value.as_f64() {
            Some(factor) if (factor * 255.0 - 1.0).abs() < 1e-4 => Ok(Scale::Unit),
            Some(factor) if (factor - 1.0).abs() < 1e-4 => Ok(Scale::Byte),
            _ => Err(not_computed("rescale_factor", value)),
        },
    }
}

/// What `size`, `crop_size` and `crop_pct` ask for.
fn resizing(
    json: &Map<String, Value>,
    settings: &mut Preprocessing,
    crops: bool,
) -> Result<(), String> {
    let size = json.get("size").unwrap_or(&Value::Null);
    let kind = ["image_processor_type", "feature_extractor_type"]
        .iter()
        .find_map(|key| json.get(*key)?.as_str())
        .unwrap_or_default();
    let is_convnext = json.contains_key("crop_pct");

    // Older files have one number, which each processor understands in its own way.
    let size = match size {
        Value::Number(_) if is_convnext || kind.starts_with("CLIP") => Size::Shorter(pixels(size)?),
        Value::Number(_)
            if ["ViT", "DeiT", "Beit"]
                .iter()
                .any(|known| kind.starts_with(known)) =>
        {
            Size::Both([pixels(size)?; 2])
        }
        Value::Object(sides) => match (sides.get("shortest_edge"), sides.get("longest_edge")) {
            (Some(shorter), None) => Size::Shorter(pixels(shorter)?),
            (None, None) => Size::Both(width_and_height("size", size)?),
            _ => return Err(not_computed("size", size)),
        },
        _ => return Err(not_computed("size", size)),
    };

    if is_convnext {
        return convnext(json, settings, size);
    }
    let crop = match (crops, json.get("crop_size")) {
        (true, Some(crop)) => Some(match crop {
            Value::Number(_) => [pixels(crop)?; 2],
            crop => width_and_height("crop_size", crop)?,
        }),
        (true, None) => {
            return Err("\"do_center_crop\" is true, but there is no \"crop_size\"".into());
        }
        (false, _) => None,
    };
    match (size, crop) {
        (Size::Shorter(shorter), Some(crop)) => {
            settings.fit = Some(Fit::Crop);
            settings.input_size = Some(crop);
            settings.resize = Some(Resize::Pixels(shorter));
        }
        (Size::Both(size), None) => {
            settings.fit = Some(Fit::Squash);
            settings.input_size = Some(size);
            settings.resize = Some(Resize::Fraction(1.0));
        }
        (Size::Both([width, height]), Some([crop_width, crop_height])) => {
            // Sides of other proportions than the crop's can't be told by one number.
            if width != height || crop_width != crop_height {
                return Err(not_computed("size", &json["size"]));
            }
            settings.fit = Some(Fit::Squash);
            settings.input_size = Some([crop_width, crop_height]);
            settings.resize = Some(Resize::Pixels(width));
        }
        (Size::Shorter(_), None) => return Err(not_computed("size", &json["size"])),
    }
    Ok(())
}

/// ConvNeXT's processor, which others use as well: up to 384 pixels a crop of the centre, and from
/// there on each side by itself.
fn convnext(
    json: &Map<String, Value>,
    settings: &mut Preprocessing,
    size: Size,
) -> Result<(), String> {
    const FIRST_SQUASHED: u32 = 384;

    let Size::Shorter(side) = size else {
        return Err(not_computed("size", &json["size"]));
    };
    settings.input_size = Some([side; 2]);
    if side >= FIRST_SQUASHED {
        settings.fit = Some(Fit::Squash);
        settings.resize = Some(Resize::Fraction(1.0));
    } else {
        settings.fit = Some(Fit::Crop);
        settings.resize = Some(Resize::Fraction(fraction("crop_pct", &json["crop_pct"])?));
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Size {
    /// The shorter side.
    Shorter(u32),
    /// Width and height.
    Both([u32; 2]),
}

fn pixels(value: &Value) -> Result<u32, String> {
    value
        .as_u64()
        .and_then(|pixels| u32::try_from(pixels).ok())
        .filter(|pixels| *pixels > 0)
        .ok_or_else(|| format!("{value} is no number of pixels"))
}

fn width_and_height(key: &str, value: &Value) -> Result<[u32; 2], String> {
    match (value.get("width"), value.get("height")) {
        (Some(width), Some(height)) => Ok([pixels(width)?, pixels(height)?]),
        _ => Err(not_computed(key, value)),
    }
}

fn fraction(key: &str, value: &Value) -> Result<f64, String> {
    value
        .as_f64()
        .filter(|fraction| *fraction > 0.0 && *fraction <= 1.0)
        .ok_or_else(|| not_computed(key, value))
}

/// A number for each colour; `None` if the key is not there.
fn colours(json: &Map<String, Value>, key: &str) -> Result<Option<[f32; 3]>, String> {
    let Some(value) = json.get(key).filter(|value| !value.is_null()) else {
        return Ok(None);
    };
    let numbers: Option<Vec<f32>> = match value {
        Value::Array(numbers) => numbers
            .iter()
            .map(|number| number.as_f64().map(|number| number as f32))
            .collect(),
        number => number.as_f64().map(|number| vec![number as f32]),
    };
    match numbers.as_deref() {
        Some(&[one]) => Ok(Some([one; 3])),
        Some(&[red, green, blue]) => Ok(Some([red, green, blue])),
        _ => Err(not_computed(key, value)),
    }
}

/// What timm's transforms for evaluation do.
fn timm_settings(json: &Map<String, Value>) -> Result<Preprocessing, String> {
    let mut settings = Preprocessing {
        scale: Some(Scale::Unit),
        mean: colours(json, "mean")?,
        std: colours(json, "std")?,
        antialias: Some(true),
        ..Preprocessing::default()
    };
    if let Some(size) = json.get("input_size") {
        let dims: Option<Vec<u64>> = size
            .as_array()
            .and_then(|dims| dims.iter().map(Value::as_u64).collect());
        let Some(&[channels @ (1 | 3), height, width]) = dims.as_deref() else {
            return Err(not_computed("input_size", size));
        };
        if channels == 1 {
            settings.channels = Some(ChannelOrder::Gray);
        }
        settings.input_size = Some([pixels(&width.into())?, pixels(&height.into())?]);
    }
    if let Some(value) = json.get("interpolation") {
        settings.interpolation = match value.as_str() {
            Some("bilinear") => Some(Interpolation::Bilinear),
            Some("bicubic") => Some(Interpolation::Bicubic),
            Some("lanczos") => Some(Interpolation::Lanczos),
            Some("nearest") => Some(Interpolation::Nearest),
            _ => return Err(not_computed("interpolation", value)),
        };
    }
    if let Some(value) = json.get("crop_pct") {
        settings.resize = Some(Resize::Fraction(fraction("crop_pct", value)?));
    }
    settings.fit = match json.get("crop_mode").map(|mode| (mode, mode.as_str())) {
        None | Some((_, Some("center"))) => Some(Fit::Crop),
        Some((_, Some("squash"))) => Some(Fit::Squash),
        Some((value, _)) => return Err(not_computed("crop_mode", value)),
    };
    Ok(settings)
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
        .ok_or_else(|| "\"label_names\" holds something else than texts".into())
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
        _ => Err(format!("`imgsz` is {text:?}, which is no size")),
    }
}

/// Reads the literal of a Python dictionary from class numbers to names, such as
/// `{0: 'tench', 1: "cock's comb"}`. Nothing is evaluated.
fn python_names(text: &str) -> Result<Vec<String>, String> {
    let wrong = || "`names` is no dictionary of class names".to_owned();
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

    fn object(value: Value) -> Map<String, Value> {
        let Value::Object(object) = value else {
            panic!("{value} is no object")
        };
        object
    }

    #[test]
    fn hugging_faces_processors_are_understood() {
        let vit = json!({"do_normalize": true, "do_resize": true, "do_rescale": true,
            "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 2,
            "rescale_factor": 0.00392156862745098, "size": {"height": 224, "width": 192},
            "image_processor_type": "ViTImageProcessor"});
        assert_eq!(
            hugging_face(&object(vit)).unwrap(),
            Preprocessing {
                recompress: None,
                input_size: Some([192, 224]),
                scale: Some(Scale::Unit),
                mean: Some([0.5; 3]),
                std: Some([0.5; 3]),
                fit: Some(Fit::Squash),
                interpolation: Some(Interpolation::Bilinear),
                antialias: Some(true),
                resize: Some(Resize::Fraction(1.0)),
                channels: None,
            }
        );

        let resnet = json!({"crop_pct": 0.875, "do_normalize": true, "do_resize": true,
            "feature_extractor_type": "ConvNextFeatureExtractor",
            "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
            "resample": 3, "size": 224});
        let resnet = hugging_face(&object(resnet)).unwrap();
        assert_eq!(
            (resnet.fit, resnet.resize, resnet.interpolation),
            (
                Some(Fit::Crop),
                Some(Resize::Fraction(0.875)),
                Some(Interpolation::Bicubic)
            )
        );

        let mobilevit = json!({"do_center_crop": true, "do_flip_channel_order": true,
            "do_normalize": false, "crop_size": {"height": 256, "width": 256},
            "size": {"shortest_edge": 288}, "resample": 2});
        let mobilevit = hugging_face(&object(mobilevit)).unwrap();
        assert_eq!(
            (
                mobilevit.channels,
                mobilevit.resize,
                mobilevit.mean,
                mobilevit.input_size
            ),
            (
                Some(ChannelOrder::Bgr),
                Some(Resize::Pixels(288)),
                Some([0.0; 3]),
                Some([256; 2])
            )
        );

        let raw = json!({"do_rescale": false, "do_normalize": false, "resample": 0,
            "size": {"height": 8, "width": 8}});
        assert_eq!(hugging_face(&object(raw)).unwrap().scale, Some(Scale::Byte));
    }

    #[test]
    fn what_is_not_computed_is_rejected_by_its_name() {
        for (json, name) in [
            (json!({"size": 224}), "size"),
            (json!({"size": {"longest_edge": 224}}), "size"),
            (json!({"size": {"shortest_edge": 224}}), "size"),
            (
                json!({"size": {"height": 8, "width": 8}, "resample": 5}),
                "resample",
            ),
            (
                json!({"size": {"height": 8, "width": 8}, "do_pad": true}),
                "do_pad",
            ),
            (
                json!({"size": {"height": 8, "width": 8}, "rescale_factor": 0.5}),
                "rescale_factor",
            ),
            (
                json!({"size": {"height": 8, "width": 8}, "image_mean": [1, 2]}),
                "image_mean",
            ),
            (json!({"size": {"height": 0, "width": 8}}), "pixels"),
            (json!({"do_resize": false}), "do_resize"),
            (
                json!({"size": {"height": 8, "width": 8}, "do_normalize": false}),
                "resample",
            ),
            (
                json!({"size": {"height": 8, "width": 8}, "resample": 2}),
                "image_mean",
            ),
            (
                json!({"do_center_crop": true, "size": {"shortest_edge": 9}}),
                "crop_size",
            ),
        ] {
            let error = hugging_face(&object(json)).unwrap_err();
            assert!(error.contains(name), "{name}: {error}");
        }
        for (json, name) in [
            (json!({"crop_mode": "border"}), "crop_mode"),
            (json!({"interpolation": "random"}), "interpolation"),
            (json!({"crop_pct": 1.5}), "crop_pct"),
            (json!({"input_size": [4, 224, 224]}), "input_size"),
        ] {
            let error = timm_settings(&object(json)).unwrap_err();
            assert!(error.contains(name), "{name}: {error}");
        }
    }

    #[test]
    fn timms_configurations_are_understood() {
        let config = json!({"input_size": [1, 28, 32], "interpolation": "bicubic",
            "crop_pct": 0.95, "crop_mode": "squash", "mean": [0.5], "std": [0.25]});
        assert_eq!(
            timm_settings(&object(config)).unwrap(),
            Preprocessing {
                recompress: None,
                input_size: Some([32, 28]),
                channels: Some(ChannelOrder::Gray),
                scale: Some(Scale::Unit),
                mean: Some([0.5; 3]),
                std: Some([0.25; 3]),
                fit: Some(Fit::Squash),
                interpolation: Some(Interpolation::Bicubic),
                antialias: Some(true),
                resize: Some(Resize::Fraction(0.95)),
            }
        );
    }

    #[test]
    fn labels_are_in_the_order_of_their_numbers() {
        let config = json!({"id2label": {"1": "wren", "0": "owl", "2": "finch"}});
        assert_eq!(
            labels(&object(config)).unwrap().unwrap(),
            ["owl", "wren", "finch"]
        );
        let config = json!({"label_names": ["n1", "n2"], "label_descriptions": {"n2": "wren"}});
        assert_eq!(labels(&object(config)).unwrap().unwrap(), ["n1", "wren"]);
        assert!(labels(&object(json!({"id2label": {"1": "wren"}}))).is_err());
        assert_eq!(labels(&object(json!({}))).unwrap(), None);
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
        assert!(Beside::read(&file("a.onnx")).unwrap().labels.is_some());
        fs::write(file("b.onnx"), "").unwrap();
        assert!(Beside::read(&file("a.onnx")).unwrap().labels.is_none());

        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        for name in ["model.onnx", "model_fp16.onnx"] {
            fs::write(file(name), "").unwrap();
        }
        fs::write(file("config.json"), r#"{"id2label": {"0": "owl"}}"#).unwrap();
        assert!(Beside::read(&file("model.onnx")).unwrap().labels.is_some());
        fs::write(file("config.json"), "[]").unwrap();
        let error = Beside::read(&file("model.onnx")).unwrap_err().to_string();
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
        let refusal = || Beside::read(&file("a.onnx")).unwrap_err().to_string();
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
