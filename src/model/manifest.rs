//! The manifest: JSON in an ONNX file's metadata that describes how the model is served.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    ModelError,
    onnx::{ModelProto, StringStringEntryProto},
    preprocessing::{self, ChannelOrder, Interpolation, Preprocessing, Resize, Scale},
};
use crate::{answer::Activation, image::Fit};

/// The description of a model in its own file. Every key is optional, and unknown keys are kept.
/// Those that would change how images are preprocessed are checked: what a manifest says is what is
/// computed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Class names, in the order of the logits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<String>>,
    /// The size of the network's input images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<InputSize>,
    /// Length of the shorter side after scaling and before the crop, in pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resize_shorter_side: Option<u32>,
    /// Mean of red, green and blue, on the scale where black is 0 and white is `scale`.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "preprocessing::colours"
    )]
    pub mean: Option<[f32; 3]>,
    /// Standard deviation of red, green and blue, on the same scale.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "preprocessing::colours"
    )]
    pub std: Option<[f32; 3]>,
    /// The value of white: 1 or 255.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale: Option<Scale>,
    /// The colours of the network's input, in their order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channels: Option<ChannelOrder>,
    /// How images of other proportions are fitted.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "preprocessing::fit"
    )]
    pub fit: Option<Fit>,
    /// The filter that scales.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interpolation: Option<Interpolation>,
    /// Whether the filter covers all pixels of an image that is scaled down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub antialias: Option<bool>,
    /// The quality of JPEG, 1 to 100, by which crops are compressed and decompressed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recompress: Option<u8>,
    /// The output with the scores, of a network that has several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// How the scores become probabilities: `softmax`, or `sigmoid` for classes that are
    /// independent of each other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activation: Option<Activation>,
    /// The index of the class for images that belong to none of the other classes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unknown_class: Option<usize>,
    /// Keys that are not known here.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// The size of a network's input images, in pixels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InputSize {
    pub height: u32,
    pub width: u32,
    /// Keys that are not known here.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Manifest {
    /// The key of the ONNX `metadata_props` that holds the manifest.
    pub const KEY: &str = "resnet18.manifest";

    /// Reads the manifest of `model`; an empty one if the model has none.
    ///
    /// # Errors
    /// A manifest that is not JSON, has a value of the wrong type, or asks for preprocessing that
    /// is not supported.
    pub fn read(model: &ModelProto) -> Result<Self, ModelError> {
        let Some(entry) = model
            .metadata_props
            .iter()
            .find(|entry| entry.key() == Self::KEY)
        else {
            return Ok(Self::default());
        };
        let mut manifest: Self = serde_json::from_str(entry.value())
            .map_err(|error| ModelError::Manifest(error.to_string()))?;
        manifest.apply_aliases()?;
        check_preprocessing(&manifest.other)?;
        if let Some(input) = &manifest.input {
            check_preprocessing(&input.other)?;
        }
        Ok(manifest)
    }

    /// Applies settings that are written under the names that other projects use.
    fn apply_aliases(&mut self) -> Result<(), ModelError> {
        if let Some(value) = self.other.get("resample") {
            let same = serde_json::from_value(value.clone()).map_err(|error| {
                ModelError::Manifest(format!(
                    "\"resample\": {error}, or one of Pillow's numbers for it"
                ))
            })?;
            match self.interpolation.replace(same) {
                Some(other) if other != same => {
                    return Err(ModelError::Manifest(
                        "\"interpolation\" and \"resample\" contradict each other".into(),
                    ));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The settings of preprocessing.
    pub(super) fn preprocessing(&self) -> Preprocessing {
        let is_normalized = self.mean.is_some() || self.std.is_some();
        Preprocessing {
            input_size: self.input.as_ref().map(|size| [size.width, size.height]),
            channels: self.channels,
            // Manifests without a scale are written for 0 to 1.
            scale: self.scale.or(is_normalized.then_some(Scale::Unit)),
            mean: self.mean,
            std: self.std,
            fit: self.fit,
            interpolation: self.interpolation,
            antialias: self.antialias,
            resize: self.resize_shorter_side.map(Resize::Pixels),
            recompress: self.recompress,
        }
    }

    /// The class that stands for none of the others, of a model with this many classes.
    ///
    /// # Errors
    /// An index that is not one of a class, or that of the only class.
    pub(super) fn unknown_class(&self, classes: usize) -> Result<Option<usize>, ModelError> {
        match self.unknown_class {
            Some(class) if class >= classes => Err(ModelError::Manifest(format!(
                "\"unknown_class\" is {class}; the indices of the model's {classes} classes are 0 to {}",
                classes.saturating_sub(1)
            ))),
            Some(_) if classes == 1 => Err(ModelError::Manifest(
                "\"unknown_class\" is the model's only class, so that every image would be unknown"
                    .into(),
            )),
            class => Ok(class),
        }
    }

    /// Writes the manifest into `model`, replacing one that is already there.
    pub fn write(&self, model: &mut ModelProto) {
        let entry = StringStringEntryProto {
            key: Some(Self::KEY.into()),
            value: Some(self.to_json()),
        };
        match model
            .metadata_props
            .iter_mut()
            .find(|entry| entry.key() == Self::KEY)
        {
            Some(old) => *old = entry,
            None => model.metadata_props.push(entry),
        }
    }

    /// The manifest as JSON on a single line.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings, numbers and JSON values always serialize")
    }
}

/// Checks keys by which preprocessing is described elsewhere, as by timm and Hugging Face, and that
/// have another name here. Each of them may say what is usual, and nothing else.
fn check_preprocessing(keys: &Map<String, Value>) -> Result<(), ModelError> {
    for (key, value) in keys {
        let computed: &[Value] = match key.as_str() {
            "crop" | "crop_mode" => &["center".into(), "centre".into()],
            "resize_mode" => &["shorter_side".into(), "cover".into()],
            "channels" => &["RGB".into(), 3.into()],
            _ => continue,
        };
        if !computed.contains(value) {
            let accepted: Vec<String> = computed.iter().map(ToString::to_string).collect();
            return Err(ModelError::Manifest(format!(
                "{key:?} is {value}, which is not supported; accepted is {}",
                accepted.join(" or ")
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: &str = r#"{"name":"birds","labels":["owl","wren"],
        "input":{"height":192,"width":256,"layout":"NCHW"},
        "resize_shorter_side":256,"mean":[0.485,0.456,0.406],"std":[0.229,0.224,0.225],
        "training":{"epochs":8,"loss":[2.5,0.125]},"provenance":"photos"}"#;

    fn model(manifest: &str) -> ModelProto {
        let entry = |key: &str, value: &str| StringStringEntryProto {
            key: Some(key.into()),
            value: Some(value.into()),
        };
        ModelProto {
            metadata_props: vec![entry("author", "me"), entry(Manifest::KEY, manifest)],
            ..Default::default()
        }
    }

    #[test]
    fn unknown_keys_survive_a_round_trip() {
        let mut model = model(JSON);
        let mut manifest = Manifest::read(&model).unwrap();
        assert_eq!(
            manifest
                .input
                .as_ref()
                .map(|input| (input.height, input.width)),
            Some((192, 256))
        );
        assert_eq!(manifest.mean, Some([0.485, 0.456, 0.406]));
        manifest.name = Some("garden birds".into());
        manifest.write(&mut model);

        assert_eq!(model.metadata_props.len(), 2);
        assert_eq!(Manifest::read(&model).unwrap(), manifest);
        let mut expected: Value = serde_json::from_str(JSON).unwrap();
        expected["name"] = "garden birds".into();
        assert_eq!(
            serde_json::from_str::<Value>(&manifest.to_json()).unwrap(),
            expected
        );
    }

    #[test]
    fn what_is_computed_may_be_said() {
        let json = r#"{"interpolation":"bilinear","resample":2,"antialias":true,"crop":"center",
            "fit":"cover","input":{"height":9,"width":9,"channels":3},"note":"banana"}"#;
        Manifest::read(&model(json)).unwrap();
    }

    #[test]
    fn settings_of_preprocessing_are_read_and_written_by_their_names() {
        let json = r#"{"mean":[123.5],"std":[58.0,57.0,57.5],"scale":255,"channels":"BGR",
            "fit":"letterbox:7f7f7f","resample":3,"antialias":false,"recompress":75}"#;
        let manifest = Manifest::read(&model(json)).unwrap();
        let Preprocessing {
            channels,
            scale,
            mean,
            fit,
            interpolation,
            antialias,
            recompress,
            ..
        } = manifest.preprocessing();
        assert_eq!(
            (channels, scale, mean),
            (Some(ChannelOrder::Bgr), Some(Scale::Byte), Some([123.5; 3]))
        );
        assert_eq!(
            (fit, interpolation, antialias, recompress),
            (
                Some(Fit::Letterbox([127; 3])),
                Some(Interpolation::Bicubic),
                Some(false),
                Some(75)
            )
        );

        let mut written = model("{}");
        manifest.write(&mut written);
        assert_eq!(Manifest::read(&written).unwrap(), manifest);
        let json: Value = serde_json::from_str(&manifest.to_json()).unwrap();
        assert_eq!(json["fit"], "letterbox:7f7f7f");
        assert_eq!(
            (&json["scale"], &json["channels"]),
            (&255.into(), &"bgr".into())
        );
    }

    #[test]
    fn a_model_without_a_manifest_gets_one() {
        let mut model = ModelProto::default();
        assert_eq!(Manifest::read(&model).unwrap(), Manifest::default());
        Manifest {
            name: Some("birds".into()),
            ..Default::default()
        }
        .write(&mut model);
        assert_eq!(model.metadata_props[0].value(), r#"{"name":"birds"}"#);
    }

    #[test]
    fn wrong_manifests_are_refused() {
        for (json, reason) in [
            ("{", "EOF"),
            (r#"{"mean":[1,2]}"#, "length 2"),
            (r#"{"labels":"cat"}"#, "sequence"),
            (r#"{"unknown_class":"cup"}"#, "usize"),
            (r#"{"unknown_class":-1}"#, "usize"),
            (r#"{"activation":"tanh"}"#, "`softmax` or `sigmoid`"),
            (
                r#"{"interpolation":"banana"}"#,
                r#""banana" is not supported; accepted is "bilinear" or "bicubic" or "lanczos""#,
            ),
            (r#"{"interpolation":5}"#, r#"accepted is "bilinear""#),
            (r#"{"resample":4}"#, "\"resample\": 4 is not supported"),
            (
                r#"{"resample":3,"interpolation":"nearest"}"#,
                "contradict each other",
            ),
            (r#"{"antialias":"yes"}"#, "boolean"),
            (r#"{"crop":"five"}"#, "center"),
            (r#"{"fit":"stretch"}"#, "letterbox:RRGGBB"),
            (r#"{"resize_mode":"squash"}"#, "shorter_side"),
            (
                r#"{"scale":2}"#,
                r#"2 is not supported; accepted is "1" or "255""#,
            ),
            (r#"{"channels":"cmyk"}"#, r#""rgb" or "bgr" or "gray""#),
            (
                r#"{"input":{"height":9,"width":9,"channels":"BGR"}}"#,
                "RGB",
            ),
        ] {
            let error = Manifest::read(&model(json)).unwrap_err().to_string();
            assert!(
                error.contains("resnet18.manifest") && error.contains(reason),
                "{error}"
            );
        }
    }
}
