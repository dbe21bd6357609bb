//! An inference request: JSON, perhaps followed by its tensors in binary form.

use std::collections::HashMap;

use bytes::{Bytes, BytesMut};
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint},
};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::values::{Element, Few, Parameters};
use crate::inference::{
    ModelInferRequest,
    infer_parameter::ParameterChoice,
    model_infer_request::{InferInputTensor, InferRequestedOutputTensor},
};

/// The most tensors and dimensions that are read. A model takes one tensor of four dimensions; the
/// service explains this to callers that send a few more.
const MAX_TENSORS: usize = 16;
const MAX_DIMENSIONS: usize = 16;
/// The field `raw_input_contents` of a request.
const RAW_INPUT_CONTENTS: u32 = 7;

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(default)]
    id: String,
    #[serde(default)]
    parameters: Parameters,
    #[serde(borrow)]
    inputs: Few<InputTensor<'a>, MAX_TENSORS>,
    #[serde(default)]
    outputs: Few<OutputTensor, MAX_TENSORS>,
}

#[derive(Deserialize)]
struct InputTensor<'a> {
    name: String,
    datatype: String,
    shape: Few<i64, MAX_DIMENSIONS>,
    #[serde(default)]
    parameters: Parameters,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct OutputTensor {
    name: String,
    #[serde(default)]
    parameters: Parameters,
}

/// Which outputs a caller wants in binary form.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Wanted {
    all: bool,
    by_name: HashMap<String, bool>,
}

impl Wanted {
    pub fn binary(&self, output: &str) -> bool {
        self.by_name.get(output).copied().unwrap_or(self.all)
    }
}

/// A request that has been read.
pub(super) struct Read {
    /// The pieces of its message.
    pub pieces: Vec<Bytes>,
    pub wanted: Wanted,
}

/// Reads a request for this model. The first `length` bytes of the body are JSON, or all of them.
///
/// # Errors
/// What is wrong with it.
pub(super) fn read(
    body: &Bytes,
    length: Option<usize>,
    model: &str,
    version: &str,
) -> Result<Read, String> {
    let length = length.unwrap_or(body.len());
    if length > body.len() {
        return Err(format!(
            "the body has {} bytes, and its JSON should have {length} \
             (inference-header-content-length)",
            body.len()
        ));
    }
    let json: Body = serde_json::from_slice(&body[..length])
        .map_err(|error| format!("the body is not an inference request in JSON: {error}"))?;
    let mut binary = body.slice(length..);
    let Body {
        id,
        mut parameters,
        inputs,
        outputs,
    } = json;

    let mut wanted = Wanted {
        all: parameters.take_flag("binary_data_output")?.unwrap_or(false),
        by_name: HashMap::new(),
    };
    let mut contents = Vec::new();
    let mut tensors = Vec::new();
    for mut input in inputs.0 {
        contents.extend(input.contents(&mut binary)?);
        tensors.push(InferInputTensor {
            name: input.name,
            datatype: input.datatype,
            shape: input.shape.0,
            parameters: input.parameters.0,
            contents: None,
        });
    }
    if !binary.is_empty() {
        return Err(format!(
            "{} bytes are left after the last tensor; check their `binary_data_size`",
            binary.len()
        ));
    }
    let mut requested = Vec::new();
    for mut output in outputs.0 {
        if let Some(binary) = output.parameters.take_flag("binary_data")? {
            wanted.by_name.insert(output.name.clone(), binary);
        }
        requested.push(InferRequestedOutputTensor {
            name: output.name,
            parameters: output.parameters.0,
        });
    }
    let request = ModelInferRequest {
        model_name: model.into(),
        model_version: version.into(),
        id,
        parameters: parameters.0,
        inputs: tensors,
        outputs: requested,
        raw_input_contents: Vec::new(),
    };

    // The tensors are not copied into the message, but follow it.
    let mut pieces = vec![request.encode_to_vec().into()];
    for content in contents {
        let mut key = BytesMut::new();
        encode_key(RAW_INPUT_CONTENTS, WireType::LengthDelimited, &mut key);
        encode_varint(content.len() as u64, &mut key);
        pieces.extend([key.freeze(), content]);
    }
    Ok(Read { pieces, wanted })
}

impl InputTensor<'_> {
    /// The tensor's elements in binary form: the next of the body's, or those in JSON. `None` if
    /// there are none, or if they are of a type that no model takes, which the service says.
    fn contents(&mut self, binary: &mut Bytes) -> Result<Option<Bytes>, String> {
        let name = self.name.chars().take(50).collect::<String>();
        match (self.parameters.take("binary_data_size"), self.data) {
            (None, None) => Ok(None),
            (Some(_), Some(_)) => Err(format!(
                "`{name}` has its data both in JSON and in binary form; send one of the two"
            )),
            (Some(ParameterChoice::Int64Param(size)), None) => {
                let size = usize::try_from(size)
                    .ok()
                    .filter(|size| *size <= binary.len());
                let size = size.ok_or_else(|| {
                    format!(
                        "`{name}` should have more bytes in binary form (`binary_data_size`) than \
                         follow the JSON; say in inference-header-content-length where that ends"
                    )
                })?;
                Ok(Some(binary.split_to(size)))
            }
            (Some(_), None) => Err("`binary_data_size` must be a number of bytes".into()),
            (None, Some(data)) => match Element::named(&self.datatype) {
                None => Ok(None),
                Some(kind) => {
                    let elements = kind.read(data.get());
                    elements
                        .map(|elements| Some(elements.into()))
                        .map_err(|error| format!("the data of `{name}`: {error}"))
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str, binary: &[u8]) -> Result<(ModelInferRequest, Wanted), String> {
        let body = Bytes::from([json.as_bytes(), binary].concat());
        let length = (!binary.is_empty()).then_some(json.len());
        let Read { pieces, wanted } = read(&body, length, "m", "1")?;
        let request = ModelInferRequest::decode(&pieces.concat()[..]).unwrap();
        Ok((request, wanted))
    }

    #[test]
    fn tensors_are_read_from_json_and_from_what_follows_it() {
        let json = r#"{"id": "7", "parameters": {"timeout": 5, "binary_data_output": true},
            "inputs": [{"name": "images", "datatype": "UINT8", "shape": [1, 2], "data": [[3, 4]]}],
            "outputs": [{"name": "logits", "parameters": {"binary_data": false,
                                                          "classification": 3}}],
            "unknown": {}}"#;
        let (request, wanted) = parse(json, b"").unwrap();
        assert_eq!((&request.model_name[..], &request.id[..]), ("m", "7"));
        assert_eq!(request.parameters.len(), 1);
        assert_eq!(request.inputs[0].shape, [1, 2]);
        assert_eq!(request.raw_input_contents, [&[3u8, 4][..]]);
        assert_eq!(request.outputs[0].parameters.len(), 1);
        assert!(!wanted.binary("logits") && wanted.binary("probabilities"));

        let json = r#"{"inputs": [{"name": "images", "datatype": "BYTES", "shape": [1],
            "parameters": {"binary_data_size": 3}}]}"#;
        let (request, wanted) = parse(json, b"abc").unwrap();
        assert_eq!(request.raw_input_contents, [&b"abc"[..]]);
        assert!(request.inputs[0].parameters.is_empty() && !wanted.binary("logits"));
    }

    #[test]
    fn what_is_wrong_with_a_request_is_named() {
        let input = |rest: &str| {
            format!(
                r#"{{"inputs": [{{"name": "images", "datatype": "UINT8", "shape": [1]{rest}}}]}}"#
            )
        };
        let size = |size: &str| {
            input(&format!(
                r#", "parameters": {{"binary_data_size": {size}}}"#
            ))
        };
        let both = input(r#", "data": [1], "parameters": {"binary_data_size": 1}"#);
        let many = format!(r#"{{"inputs": [{}]}}"#, vec!["{}"; 20].join(","));
        for (json, binary, expected) in [
            ("{}", &b""[..], "inputs"),
            ("{", b"", "EOF"),
            (&many, b"", "missing field `name`"),
            (&input(r#", "data": [300]"#), b"", "0 to 255"),
            (&input(r#", "data": 1x"#), b"", "not an inference request"),
            (&size("4"), b"abc", "should have more bytes"),
            (&size("-1"), b"abc", "should have more bytes"),
            (&size("2"), b"abc", "1 bytes are left"),
            (&size("\"3\""), b"abc", "must be a number of bytes"),
            (&both, b"a", "both in JSON and in binary"),
        ] {
            let error = parse(json, binary).unwrap_err();
            assert!(error.contains(expected), "{json}: {error}");
        }
        let short = Bytes::from_static(b"{}");
        assert!(read(&short, Some(3), "m", "").is_err());
        // The service tells which types it takes.
        let other =
            r#"{"inputs": [{"name": "images", "datatype": "INT64", "shape": [1], "data": [1]}]}"#;
        assert!(parse(other, b"").unwrap().0.raw_input_contents.is_empty());
    }
}
