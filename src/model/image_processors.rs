//! Preprocessing as Hugging Face's image processors and timm's configurations describe it.

use serde_json::{Map, Value};

use super::preprocessing::{ChannelOrder, Interpolation, Preprocessing, Resize, Scale};
use crate::image::Fit;

/// The message for a setting that is not supported.
fn unsupported(key: &str, value: &Value) -> String {
    format!(
        "{key:?} is {value}, which is not supported; give the preprocessing in flags, and move the \
         file away"
    )
}

/// What Hugging Face's image processors do.
pub(super) fn hugging_face(json: &Map<String, Value>) -> Result<Preprocessing, String> {
    let is_set = |key: &str, default: bool| match json.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(Value::Bool(value)) => Ok(*value),
        Some(other) => Err(unsupported(key, other)),
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
            return Err(unsupported(key, &json[key]));
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
                    .ok_or_else(|| unsupported("resample", value))?,
            ),
        };
        settings.antialias = Some(true);
        resizing(json, &mut settings, is_set("do_center_crop", false)?)?;
    } else {
        return Err(unsupported("do_resize", &Value::Bool(false)));
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
            _ => Err(unsupported("rescale_factor", value)),
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
            _ => return Err(unsupported("size", size)),
        },
        _ => return Err(unsupported("size", size)),
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
                return Err(unsupported("size", &json["size"]));
            }
            settings.fit = Some(Fit::Squash);
            settings.input_size = Some([crop_width, crop_height]);
            settings.resize = Some(Resize::Pixels(width));
        }
        (Size::Shorter(_), None) => return Err(unsupported("size", &json["size"])),
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
        return Err(unsupported("size", &json["size"]));
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
        .ok_or_else(|| format!("{value} is not a positive whole number of pixels"))
}

fn width_and_height(key: &str, value: &Value) -> Result<[u32; 2], String> {
    match (value.get("width"), value.get("height")) {
        (Some(width), Some(height)) => Ok([pixels(width)?, pixels(height)?]),
        _ => Err(unsupported(key, value)),
    }
}

fn fraction(key: &str, value: &Value) -> Result<f64, String> {
    value
        .as_f64()
        .filter(|fraction| *fraction > 0.0 && *fraction <= 1.0)
        .ok_or_else(|| unsupported(key, value))
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
        _ => Err(unsupported(key, value)),
    }
}

/// What timm's transforms for evaluation do.
pub(super) fn timm_settings(json: &Map<String, Value>) -> Result<Preprocessing, String> {
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
            return Err(unsupported("input_size", size));
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
            _ => return Err(unsupported("interpolation", value)),
        };
    }
    if let Some(value) = json.get("crop_pct") {
        settings.resize = Some(Resize::Fraction(fraction("crop_pct", value)?));
    }
    settings.fit = match json.get("crop_mode").map(|mode| (mode, mode.as_str())) {
        None | Some((_, Some("center"))) => Some(Fit::Crop),
        Some((_, Some("squash"))) => Some(Fit::Squash),
        Some((value, _)) => return Err(unsupported("crop_mode", value)),
    };
    Ok(settings)
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
    fn unsupported_settings_are_rejected_by_their_names() {
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
}
