//! Options of an inference request: the regions of its images, and the filter of the returned
//! classes.

use std::{collections::HashMap, sync::Arc};

use super::tensors::{MAX_IMAGES, TensorError};
use crate::{
    grpc::{
        call::status::CallError,
        classifier::{Classes, EmbeddingForm},
    },
    image::{Region, RegionUnit},
    inference::{
        InferParameter, ModelInferRequest, infer_parameter::ParameterChoice,
        model_infer_request::InferInputTensor,
    },
    registry::Served,
};

/// The input with the regions, `FP32 [N, R, 4]`: left, top, width and height.
const REGIONS: &str = "regions";
/// The parameter of a request that says what the numbers of its regions count.
const REGION_UNIT: &str = "region_unit";

/// The regions of each image of a request, as many for each.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Regions {
    pub of_images: Vec<Arc<[Region]>>,
    /// How many each image has.
    pub each: usize,
}

/// Which classes may be returned when a request asks for the best ones.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Filter {
    classes: Classes,
    min_probability: f32,
}

impl Regions {
    /// Takes the input with the regions out of a request, if it has one.
    ///
    /// # Errors
    /// When the tensor is wrong, or a region fits no image.
    pub fn take(request: &mut ModelInferRequest) -> Result<Option<Self>, CallError> {
        let is_regions = |input: &InferInputTensor| input.name == REGIONS;
        let Some(index) = request.inputs.iter().position(is_regions) else {
            return Ok(None);
        };
        let raw = &mut request.raw_input_contents;
        let content = if raw.is_empty() {
            None
        } else if raw.len() == request.inputs.len() {
            Some(raw.remove(index))
        } else {
            return Err(TensorError::RawContents(raw.len()).into());
        };
        let input = request.inputs.remove(index);
        let shape = match input.shape[..] {
            [n, each, 4] if n >= 1 && each >= 1 && n.saturating_mul(each) <= MAX_IMAGES as i64 => {
                Some((n as usize, each as usize))
            }
            _ => None,
        };
        let (n, each) = shape
            .filter(|_| input.datatype == "FP32")
            .ok_or_else(|| TensorError::Regions(format!("{} {:?}", input.datatype, input.shape)))?;
        let values: Vec<f32> = match content {
            Some(raw) if raw.len() == n * each * 16 => raw
                .as_chunks()
                .0
                .iter()
                .map(|bytes| f32::from_le_bytes(*bytes))
                .collect(),
            Some(raw) => {
                return Err(TensorError::Regions(format!("of {} bytes", raw.len())).into());
            }
            None => input.contents.unwrap_or_default().fp32_contents,
        };
        if values.len() != n * each * 4 {
            return Err(TensorError::Regions(format!("of {} values", values.len())).into());
        }

        let unit = unit(&request.parameters)?;
        let of_images: Vec<Arc<[Region]>> = values
            .chunks_exact(each * 4)
            .map(|values| {
                let boxes = values.as_chunks().0.iter();
                boxes
                    .map(|values| {
                        let [left, top, width, height] = values.map(f64::from);
                        Region {
                            left,
                            top,
                            width,
                            height,
                            unit,
                        }
                    })
                    .collect()
            })
            .collect();
        for (index, regions) in of_images.iter().enumerate() {
            Region::check_all(regions).map_err(|error| {
                CallError::Invalid(match n {
                    1 => error.to_string(),
                    _ => format!("image {} of {n}: {error}", index + 1),
                })
            })?;
        }
        Ok(Some(Self { of_images, each }))
    }
}

fn unit(parameters: &HashMap<String, InferParameter>) -> Result<RegionUnit, TensorError> {
    match text(parameters, REGION_UNIT)? {
        None | Some("pixels") => Ok(RegionUnit::Pixels),
        Some("fractions") => Ok(RegionUnit::Fractions),
        Some(_) => Err(TensorError::Parameter {
            name: REGION_UNIT,
            expected: "\"pixels\" or \"fractions\"",
        }),
    }
}

impl Filter {
    /// Reads the parameters `allow_labels`, `deny_labels` and `min_probability`.
    ///
    /// # Errors
    /// A parameter that is wrong; a label that the model does not have.
    pub fn of(
        parameters: &HashMap<String, InferParameter>,
        model: &Served,
    ) -> Result<Self, CallError> {
        let allow = labels(parameters, "allow_labels")?;
        let deny = labels(parameters, "deny_labels")?;
        Ok(Self {
            classes: Classes::new(&allow, &deny, model)?,
            min_probability: probability(parameters, "min_probability")?,
        })
    }

    /// Whether no class is filtered out.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Whether this class may be returned with this probability.
    pub fn accepts(&self, class: usize, probability: f32) -> bool {
        probability >= self.min_probability && self.classes.accepts(class)
    }
}

/// A list of labels: in JSON, or one on each line.
fn labels(
    parameters: &HashMap<String, InferParameter>,
    name: &'static str,
) -> Result<Vec<String>, TensorError> {
    match text(parameters, name)? {
        None => Ok(Vec::new()),
        Some(list) if list.starts_with('[') => {
            serde_json::from_str(list).map_err(|_| TensorError::Parameter {
                name,
                expected: "labels, one on each line or as a list of strings in JSON",
            })
        }
        Some(lines) => Ok(lines.lines().map(str::to_owned).collect()),
    }
}

fn probability(
    parameters: &HashMap<String, InferParameter>,
    name: &'static str,
) -> Result<f32, TensorError> {
    let Some(parameter) = parameters.get(name) else {
        return Ok(0.0);
    };
    let number = match &parameter.parameter_choice {
        Some(ParameterChoice::DoubleParam(number)) => Some(*number as f32),
        Some(ParameterChoice::Int64Param(number)) => Some(*number as f32),
        // Where clients send no floating-point numbers.
        Some(ParameterChoice::StringParam(text)) => text.parse().ok(),
        _ => None,
    };
    number
        .filter(|number| (0.0..=1.0).contains(number))
        .ok_or(TensorError::Parameter {
            name,
            expected: "a number from 0 to 1",
        })
}

/// What embeddings are to look like, by the parameter `normalize_embedding`.
///
/// # Errors
/// A parameter that is wrong.
pub(super) fn embedding(
    parameters: &HashMap<String, InferParameter>,
) -> Result<EmbeddingForm, TensorError> {
    const NAME: &str = "normalize_embedding";
    match parameters.get(NAME).map(|found| &found.parameter_choice) {
        None | Some(Some(ParameterChoice::BoolParam(false))) => Ok(EmbeddingForm::AsItIs),
        Some(Some(ParameterChoice::BoolParam(true))) => Ok(EmbeddingForm::Normalized),
        Some(_) => Err(TensorError::Parameter {
            name: NAME,
            expected: "true or false",
        }),
    }
}

fn text<'a>(
    parameters: &'a HashMap<String, InferParameter>,
    name: &'static str,
) -> Result<Option<&'a str>, TensorError> {
    match parameters.get(name).map(|found| &found.parameter_choice) {
        None => Ok(None),
        Some(Some(ParameterChoice::StringParam(text))) => Ok(Some(text)),
        Some(_) => Err(TensorError::Parameter {
            name,
            expected: "text",
        }),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::inference::InferTensorContents;

    fn request(shape: &[i64], values: &[f32], unit: Option<&str>) -> ModelInferRequest {
        let named = |name: &str| InferInputTensor {
            name: name.into(),
            ..Default::default()
        };
        let content = values.iter().flat_map(|value| value.to_le_bytes());
        let parameter = |unit: &str| InferParameter {
            parameter_choice: Some(ParameterChoice::StringParam(unit.into())),
        };
        ModelInferRequest {
            inputs: vec![
                InferInputTensor {
                    datatype: "FP32".into(),
                    shape: shape.into(),
                    ..named(REGIONS)
                },
                named("images"),
            ],
            raw_input_contents: vec![content.collect(), Bytes::from_static(b"file")],
            parameters: unit
                .map(|unit| (REGION_UNIT.to_owned(), parameter(unit)))
                .into_iter()
                .collect(),
            ..Default::default()
        }
    }

    const BOXES: [f32; 8] = [0.0, 0.25, 0.5, 0.5, 0.5, 0.0, 0.25, 1.0];

    #[test]
    fn regions_are_taken_out_of_the_request_raw_or_typed() {
        let mut raw = request(&[1, 2, 4], &BOXES, Some("fractions"));
        let mut typed = raw.clone();
        typed.raw_input_contents.clear();
        typed.inputs[0].contents = Some(InferTensorContents {
            fp32_contents: BOXES.into(),
            ..Default::default()
        });
        let regions = Regions::take(&mut raw).unwrap().unwrap();
        assert_eq!(regions.each, 2);
        assert_eq!(
            regions.of_images[0][1],
            Region {
                left: 0.5,
                top: 0.0,
                width: 0.25,
                height: 1.0,
                unit: RegionUnit::Fractions
            }
        );
        assert_eq!(raw.inputs.len(), 1);
        assert_eq!(raw.raw_input_contents, [&b"file"[..]]);
        assert_eq!(Regions::take(&mut raw).unwrap(), None);
        assert_eq!(Regions::take(&mut typed).unwrap(), Some(regions));

        let mut two = request(&[2, 1, 4], &BOXES, None);
        let regions = Regions::take(&mut two).unwrap().unwrap();
        assert_eq!((regions.of_images.len(), regions.each), (2, 1));
        assert_eq!(regions.of_images[1][0].unit, RegionUnit::Pixels);
    }

    #[test]
    fn wrong_regions_are_refused() {
        for (shape, values, unit, expected) in [
            (&[2, 4][..], &BOXES[..], None, "FP32 [2, 4]"),
            (&[1, 2, 4], &BOXES[..7], None, "28 bytes"),
            (&[1, 65, 4], &BOXES, None, "[1, 65, 4]"),
            (&[33, 2, 4], &BOXES, None, "at most 64"),
            (&[i64::MAX, i64::MAX, 4], &BOXES, None, "at most 64"),
            (&[-1, -2, 4], &BOXES, None, "[-1, -2, 4]"),
            (&[1, 2, 4], &BOXES, Some("percent"), "`region_unit`"),
            (&[2, 1, 4], &[0.0; 8], None, "image 1 of 2: region 1 of 1"),
            (&[1, 2, 4], &[9.0; 8], Some("fractions"), "region 1 of 2"),
        ] {
            let error = Regions::take(&mut request(shape, values, unit)).unwrap_err();
            let error = error.to_string();
            assert!(error.contains(expected), "{shape:?}: {error}");
        }
        let mut one_content = request(&[1, 2, 4], &BOXES, None);
        one_content.raw_input_contents.pop();
        assert!(Regions::take(&mut one_content).is_err());
        let mut type_ = request(&[1, 2, 4], &BOXES, None);
        type_.inputs[0].datatype = "INT32".into();
        let error = Regions::take(&mut type_).unwrap_err().to_string();
        assert!(error.contains("INT32"), "{error}");
    }

    #[test]
    fn labels_come_in_lines_or_in_json() {
        let read = |choice| {
            let parameter = InferParameter {
                parameter_choice: Some(choice),
            };
            labels(
                &HashMap::from([("allow_labels".to_owned(), parameter)]),
                "allow_labels",
            )
        };
        let text = |text: &str| ParameterChoice::StringParam(text.into());
        assert_eq!(read(text("a b\nc")).unwrap(), ["a b", "c"]);
        assert_eq!(read(text(r#"["a\nb", "c"]"#)).unwrap(), ["a\nb", "c"]);
        assert!(read(text("[3]")).is_err());
        assert!(read(ParameterChoice::Int64Param(3)).is_err());
        assert!(labels(&HashMap::new(), "allow_labels").unwrap().is_empty());
    }

    #[test]
    fn embeddings_are_normalized_on_request() {
        let read = |choice| {
            let parameter = InferParameter {
                parameter_choice: choice,
            };
            embedding(&HashMap::from([(
                "normalize_embedding".to_owned(),
                parameter,
            )]))
        };
        assert_eq!(embedding(&HashMap::new()), Ok(EmbeddingForm::AsItIs));
        for (flag, form) in [
            (true, EmbeddingForm::Normalized),
            (false, EmbeddingForm::AsItIs),
        ] {
            assert_eq!(read(Some(ParameterChoice::BoolParam(flag))), Ok(form));
        }
        assert!(read(Some(ParameterChoice::Int64Param(1))).is_err());
        assert!(read(None).is_err());
    }

    #[test]
    fn a_threshold_is_a_number_from_0_to_1() {
        let read = |choice| {
            let parameter = InferParameter {
                parameter_choice: Some(choice),
            };
            probability(&HashMap::from([("p".to_owned(), parameter)]), "p")
        };
        assert_eq!(read(ParameterChoice::DoubleParam(0.25)), Ok(0.25));
        assert_eq!(read(ParameterChoice::Int64Param(1)), Ok(1.0));
        assert_eq!(read(ParameterChoice::StringParam("0.5".into())), Ok(0.5));
        for wrong in [
            ParameterChoice::DoubleParam(1.5),
            ParameterChoice::DoubleParam(f64::NAN),
            ParameterChoice::StringParam("much".into()),
            ParameterChoice::BoolParam(true),
        ] {
            assert!(read(wrong).is_err());
        }
    }
}
