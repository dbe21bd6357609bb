//! What training services write beside the models that they export, and ONNX's own properties of
//! images: Custom Vision, Teachable Machine, and NVIDIA's TAO.

use serde_json::{Map, Value};

use super::{
    onnx::ModelProto,
    preprocessing::{ChannelOrder, Interpolation, Preprocessing, Resize, Scale},
};
use crate::image::Fit;

/// Custom Vision's properties of a model, which are also in its metadata.
pub(super) const CUSTOM_VISION: &str = "metadata_properties.json";
/// Teachable Machine's description of a model for TensorFlow.js.
pub(super) const TEACHABLE_MACHINE: &str = "metadata.json";
/// The configuration for DeepStream that TAO exports.
pub(super) const TAO: &str = "nvinfer_config.txt";
/// Class names, as all three write them.
pub(super) const LABELS: &str = "labels.txt";

/// What the properties that ONNX defines for images say; `None` if they say nothing.
///
/// # Errors
/// A format or a range that is not supported.
pub(super) fn image_properties<'a>(
    property: impl Fn(&str) -> Option<&'a str>,
) -> Result<Option<Preprocessing>, String> {
    let format = property("Image.BitmapPixelFormat");
    let range = property("Image.NominalPixelRange");
    if format.is_none() && range.is_none() {
        return Ok(None);
    }
    let not_computed = |key: &str, value: &str| {
        Err(format!(
            "{key:?} is {value:?}, which is not supported; remove it from the file"
        ))
    };
    let channels = match format {
        None => None,
        Some("Rgb8" | "Rgba8") => Some(ChannelOrder::Rgb),
        Some("Bgr8" | "Bgra8") => Some(ChannelOrder::Bgr),
        Some("Gray8") => Some(ChannelOrder::Gray),
        Some(other) => return not_computed("Image.BitmapPixelFormat", other),
    };
    let values = match range {
        None => None,
        Some("Normalized_0_1") => Some((Scale::Unit, 0.0, 1.0)),
        Some("Normalized_1_1") => Some((Scale::Byte, 127.5, 127.5)),
        Some("NominalRange_0_255") => Some((Scale::Byte, 0.0, 1.0)),
        Some(other) => return not_computed("Image.NominalPixelRange", other),
    };
    Ok(Some(Preprocessing {
        channels,
        scale: values.map(|(scale, ..)| scale),
        mean: values.map(|(_, mean, _)| [mean; 3]),
        std: values.map(|(.., std)| [std; 3]),
        ..Preprocessing::default()
    }))
}

/// A property in a model's metadata.
pub(super) fn property<'a>(model: &'a ModelProto, key: &str) -> Option<&'a str> {
    let entry = model.metadata_props.iter().find(|entry| entry.key() == key);
    entry.map(|entry| entry.value())
}

/// What Custom Vision's own examples do with a model of these properties: pictures are squashed
/// whatever the way in which they were resized for training.
///
/// # Errors
/// Settings that are not supported.
pub(super) fn custom_vision<'a>(
    property: impl Fn(&str) -> Option<&'a str>,
) -> Result<Preprocessing, String> {
    let mut settings = image_properties(&property)?.unwrap_or_default();
    for (key, usual) in [("NormalizeMean", 0.0), ("NormalizeStd", 1.0)] {
        let key = format!("CustomVision.Preprocess.{key}");
        let numbers = |text: &str| serde_json::from_str::<Vec<f64>>(text).ok();
        if let Some(text) = property(&key)
            && numbers(text).is_none_or(|values| values.iter().any(|value| *value != usual))
        {
            return Err(format!(
                "{key:?} is {text}, which is not supported; give the preprocessing in flags, and \
                 remove it from the file"
            ));
        }
    }
    let side = |name: &str| -> Option<u32> {
        let text = property(&format!("CustomVision.Preprocess.Target{name}"))?;
        text.parse().ok().filter(|pixels| *pixels > 0)
    };
    settings.input_size = side("Width")
        .zip(side("Height"))
        .map(|(width, height)| [width, height]);
    settings.fit = Some(Fit::Squash);
    settings.resize = Some(Resize::Fraction(1.0));
    settings.interpolation = Some(Interpolation::Bicubic);
    settings.antialias = Some(true);
    Ok(settings)
}

/// Whether these properties are Custom Vision's.
pub(super) fn is_custom_visions<'a>(property: impl Fn(&str) -> Option<&'a str>) -> bool {
    property("CustomVision.Metadata.Version").is_some()
}

/// The properties in Custom Vision's file, all of which are texts.
pub(super) fn text_of<'a>(json: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    json.get(key).and_then(Value::as_str)
}

/// What Teachable Machine's own examples do, and the labels; `None` if it is another's file.
///
/// # Errors
/// Labels that are no texts.
pub(super) fn teachable_machine(
    json: &Map<String, Value>,
) -> Result<Option<(Preprocessing, Vec<String>)>, String> {
    if text_of(json, "packageName") != Some("@teachablemachine/image") {
        return Ok(None);
    }
    let labels = json.get("labels").and_then(Value::as_array);
    let labels = labels.and_then(|labels| {
        let texts = labels.iter().map(|label| label.as_str().map(str::to_owned));
        texts.collect::<Option<Vec<_>>>()
    });
    let size = json.get("imageSize").and_then(Value::as_u64);
    let size = size
        .and_then(|size| u32::try_from(size).ok())
        .filter(|size| *size > 0);
    let settings = Preprocessing {
        input_size: size.map(|size| [size; 2]),
        channels: Some(ChannelOrder::Rgb),
        scale: Some(Scale::Byte),
        mean: Some([127.5; 3]),
        std: Some([127.5; 3]),
        fit: Some(Fit::Crop),
        interpolation: Some(Interpolation::Lanczos),
        antialias: Some(true),
        resize: Some(Resize::Fraction(1.0)),
        recompress: None,
    };
    let labels = labels.ok_or("\"labels\" must be a list of strings")?;
    Ok(Some((settings, labels)))
}

/// What DeepStream does by TAO's configuration: each value less the offset of its colour, times a
/// factor.
///
/// # Errors
/// Settings that are no numbers, or are not supported.
pub(super) fn tao(text: &str) -> Result<Preprocessing, String> {
    let value = |key: &str| {
        text.lines().find_map(|line| {
            let (name, value) = line.split_once('=')?;
            (name.trim() == key).then(|| value.split('#').next().unwrap_or_default().trim())
        })
    };
    let wrong = |key: &str, value: &str| format!("{key:?} is {value:?}, which is not supported");
    let numbers = |key: &str| -> Result<Option<Vec<f32>>, String> {
        let Some(text) = value(key) else {
            return Ok(None);
        };
        let parts = text.split(';').filter(|part| !part.trim().is_empty());
        let numbers = parts.map(|part| part.trim().parse());
        let numbers = numbers.collect::<Result<Vec<f32>, _>>();
        numbers.map(Some).map_err(|_| wrong(key, text))
    };

    let channels = match value("model-color-format") {
        None | Some("0") => ChannelOrder::Rgb,
        Some("1") => ChannelOrder::Bgr,
        Some("2") => ChannelOrder::Gray,
        Some(other) => return Err(wrong("model-color-format", other)),
    };
    let factor = match numbers("net-scale-factor")?.as_deref() {
        None => 1.0,
        Some(&[factor]) if factor.is_normal() && factor > 0.0 => factor,
        Some(_) => {
            return Err(wrong(
                "net-scale-factor",
                value("net-scale-factor").unwrap_or_default(),
            ));
        }
    };
    // The offsets are in the order of the network's colours.
    let mean = match numbers("offsets")?.as_deref() {
        None => [0.0; 3],
        Some(&[one]) => [one; 3],
        Some(&[blue, green, red]) if channels == ChannelOrder::Bgr => [red, green, blue],
        Some(&[red, green, blue]) => [red, green, blue],
        Some(_) => return Err(wrong("offsets", value("offsets").unwrap_or_default())),
    };
    let dims = match numbers("infer-dims")? {
        Some(dims) => Some(dims),
        None => numbers("uff-input-dims")?,
    };
    let keeps_proportions = matches!(value("maintain-aspect-ratio"), Some("1"));
    if keeps_proportions {
        return Err(wrong("maintain-aspect-ratio", "1"));
    }
    Ok(Preprocessing {
        input_size: match dims.as_deref() {
            Some(&[_, height, width, ..]) => Some([width as u32, height as u32]),
            _ => None,
        },
        channels: Some(channels),
        scale: Some(Scale::Byte),
        mean: Some(mean),
        std: Some([1.0 / factor; 3]),
        fit: Some(Fit::Squash),
        resize: Some(Resize::Fraction(1.0)),
        interpolation: Some(Interpolation::Bilinear),
        antialias: Some(false),
        recompress: None,
    })
}

/// The class names in a `labels.txt`: one a line, with their numbers as Teachable Machine writes
/// them, or all in one line with semicolons, as TAO does.
pub(super) fn labels(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let lines = match lines.iter().rposition(|line| !line.is_empty()) {
        Some(last) => &lines[..=last],
        None => &[],
    };
    if let [line] = lines
        && line.contains(';')
    {
        let names = line.trim_end_matches(';').split(';');
        return names.map(|name| name.trim().to_owned()).collect();
    }
    let numbered: Option<Vec<_>> = lines
        .iter()
        .enumerate()
        .map(|(index, line)| {
            let (number, name) = line.split_once(' ')?;
            (number.parse() == Ok(index)).then(|| name.trim().to_owned())
        })
        .collect();
    numbered.unwrap_or_else(|| lines.iter().map(|line| (*line).to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        let Value::Object(map) = value else {
            unreachable!()
        };
        map
    }

    #[test]
    fn custom_visions_properties_say_colours_range_and_size() {
        let mut json = object(json!({"CustomVision.Metadata.Version": "1.2",
            "CustomVision.Preprocess.NormalizeMean": "[0.0, 0.0, 0.0]",
            "CustomVision.Preprocess.NormalizeStd": "[1.0, 1.0, 1.0]",
            "CustomVision.Preprocess.ResizeMethod": "Stretch",
            "CustomVision.Preprocess.TargetHeight": "300",
            "CustomVision.Preprocess.TargetWidth": "320",
            "Image.BitmapPixelFormat": "Bgr8", "Image.NominalPixelRange": "NominalRange_0_255"}));
        assert!(is_custom_visions(|key| text_of(&json, key)));
        assert_eq!(
            custom_vision(|key| text_of(&json, key)).unwrap(),
            Preprocessing {
                input_size: Some([320, 300]),
                channels: Some(ChannelOrder::Bgr),
                scale: Some(Scale::Byte),
                mean: Some([0.0; 3]),
                std: Some([1.0; 3]),
                fit: Some(Fit::Squash),
                interpolation: Some(Interpolation::Bicubic),
                antialias: Some(true),
                resize: Some(Resize::Fraction(1.0)),
                recompress: None,
            }
        );
        json["CustomVision.Preprocess.NormalizeStd"] = "[0.5]".into();
        let error = custom_vision(|key| text_of(&json, key)).unwrap_err();
        assert!(error.contains("NormalizeStd"), "{error}");
        let error = image_properties(|key| {
            (key == "Image.NominalPixelRange").then_some("NominalRange_16_235")
        });
        assert!(error.unwrap_err().contains("NominalRange_16_235"));
        assert_eq!(image_properties(|_| None), Ok(None));
    }

    #[test]
    fn teachable_machines_description_is_told_from_others() {
        let json = object(
            json!({"packageName": "@teachablemachine/image", "imageSize": 224,
            "labels": ["owl", "wren"]}),
        );
        let (settings, labels) = teachable_machine(&json).unwrap().unwrap();
        assert_eq!(labels, ["owl", "wren"]);
        assert_eq!(settings.input_size, Some([224, 224]));
        assert_eq!(
            (settings.mean, settings.scale),
            (Some([127.5; 3]), Some(Scale::Byte))
        );
        let other = object(json!({"labels": ["owl"], "version": 3}));
        assert_eq!(teachable_machine(&other), Ok(None));
        let wrong = object(json!({"packageName": "@teachablemachine/image"}));
        assert!(teachable_machine(&wrong).is_err());
    }

    #[test]
    fn taos_configuration_becomes_mean_and_deviation() {
        let text = "[property]\ngpu-id=0\nnet-scale-factor=1.0\noffsets=103.939;116.779;123.68\n\
                    infer-dims=3;224;256\nmodel-color-format=1 # BGR\n";
        let settings = tao(text).unwrap();
        assert_eq!(settings.channels, Some(ChannelOrder::Bgr));
        assert_eq!(settings.mean, Some([123.68, 116.779, 103.939]));
        assert_eq!(settings.std, Some([1.0; 3]));
        assert_eq!(settings.input_size, Some([256, 224]));
        let settings = tao("net-scale-factor=0.5\n").unwrap();
        assert_eq!(
            (settings.mean, settings.std),
            (Some([0.0; 3]), Some([2.0; 3]))
        );
        for wrong in [
            "offsets=a;b;c",
            "offsets=1;2",
            "net-scale-factor=0",
            "model-color-format=7",
            "maintain-aspect-ratio=1",
        ] {
            let error = tao(wrong).unwrap_err();
            assert!(error.contains(wrong.split('=').next().unwrap()), "{error}");
        }
    }

    #[test]
    fn labels_are_read_as_each_service_writes_them() {
        assert_eq!(labels("owl\nwren\n\n"), ["owl", "wren"]);
        assert_eq!(labels("0 owl\r\n1 house wren\r\n"), ["owl", "house wren"]);
        assert_eq!(labels("owl;wren;\n"), ["owl", "wren"]);
        // Numbers that are a part of the name.
        assert_eq!(labels("7 up\n0 cola\n"), ["7 up", "0 cola"]);
        assert_eq!(labels(""), [""; 0]);
    }
}
