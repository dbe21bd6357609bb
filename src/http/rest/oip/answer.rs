//! The answer to an inference request: JSON, followed by the tensors that were wanted in binary
//! form.

use std::collections::BTreeMap;

use axum::{
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde::{Serialize, Serializer, ser::SerializeSeq};
use serde_json::{Value, json};

use super::{HEADER_LENGTH, request::Wanted};
use crate::{
    http::rest::call::json_response,
    inference::{
        InferParameter, ModelInferResponse, infer_parameter::ParameterChoice,
        model_infer_response::InferOutputTensor,
    },
};

#[derive(Serialize)]
struct Body {
    model_name: String,
    model_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    id: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    parameters: BTreeMap<String, Value>,
    outputs: Vec<OutputTensor>,
}

#[derive(Serialize)]
struct OutputTensor {
    name: String,
    datatype: String,
    shape: Vec<i64>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    parameters: BTreeMap<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Elements>,
}

/// A tensor's elements, as they are in its binary form.
enum Elements {
    Fp32(Bytes),
    Text(Bytes),
}

impl Serialize for Elements {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(None)?;
        match self {
            Self::Fp32(bytes) => {
                for value in bytes.as_chunks().0 {
                    list.serialize_element(&f32::from_le_bytes(*value))?;
                }
            }
            Self::Text(bytes) => {
                let mut rest = &bytes[..];
                while let Some((length, after)) = rest.split_first_chunk() {
                    let length = u32::from_le_bytes(*length) as usize;
                    let (text, after) = after.split_at_checked(length).unwrap_or((after, &[]));
                    list.serialize_element(&String::from_utf8_lossy(text))?;
                    rest = after;
                }
            }
        }
        list.end()
    }
}

/// The answer to a request that wants its outputs in this way.
pub(super) fn write(response: ModelInferResponse, wanted: &Wanted) -> Response {
    let ModelInferResponse {
        model_name,
        model_version,
        id,
        parameters: of_response,
        outputs,
        raw_output_contents,
    } = response;
    let mut binary = Vec::new();
    let tensors = outputs.into_iter().zip(raw_output_contents);
    let outputs = tensors.map(|(tensor, content)| {
        let InferOutputTensor {
            name,
            datatype,
            shape,
            parameters: of_tensor,
        } = tensor;
        let mut of_tensor = parameters(of_tensor);
        let data = if wanted.binary(&name) {
            of_tensor.insert("binary_data_size".into(), content.len().into());
            binary.push(content);
            None
        } else if datatype == "BYTES" {
            Some(Elements::Text(content))
        } else {
            Some(Elements::Fp32(content))
        };
        OutputTensor {
            name,
            datatype,
            shape,
            parameters: of_tensor,
            data,
        }
    });
    let body = Body {
        model_name,
        model_version,
        id,
        parameters: parameters(of_response),
        outputs: outputs.collect(),
    };
    let json = serde_json::to_vec(&body).expect("these types have a form in JSON");
    if binary.is_empty() {
        return json_response(StatusCode::OK, json);
    }
    let length = json.len().to_string();
    let headers = [
        (CONTENT_TYPE.as_str(), "application/octet-stream"),
        (HEADER_LENGTH, &length),
    ];
    binary.insert(0, json.into());
    (headers, binary.concat()).into_response()
}

fn parameters(of: impl IntoIterator<Item = (String, InferParameter)>) -> BTreeMap<String, Value> {
    let value = |parameter: InferParameter| match parameter.parameter_choice {
        None => Value::Null,
        Some(ParameterChoice::BoolParam(value)) => value.into(),
        Some(ParameterChoice::Int64Param(value)) => value.into(),
        Some(ParameterChoice::Uint64Param(value)) => value.into(),
        Some(ParameterChoice::DoubleParam(value)) => json!(value),
        Some(ParameterChoice::StringParam(text)) => text.into(),
    };
    of.into_iter()
        .map(|(name, parameter)| (name, value(parameter)))
        .collect()
}
