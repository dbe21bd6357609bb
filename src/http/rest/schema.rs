//! The methods that REST calls, by their descriptors, and their messages as JSON and as query
//! parameters (the JSON mapping of proto3, under the names of the `.proto` files).

use std::{collections::BTreeMap, sync::LazyLock};

use bytes::Bytes;
use percent_encoding::percent_decode_str;
use prost::Message;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, SerializeOptions,
};
use serde_json::{Deserializer, Value, json};

use crate::{inference, proto};

/// The most query parameters of a request.
const MAX_PARAMETERS: usize = 32;

/// A method of a service.
#[derive(Clone)]
pub(super) struct Method {
    /// `/SERVICE/METHOD`.
    pub path: String,
    pub input: MessageDescriptor,
    pub output: MessageDescriptor,
    /// Whether integers of 64 bits are numbers in JSON, as the Open Inference Protocol wants them,
    /// or text, as proto3 does.
    pub numbers: bool,
}

/// The contract's and the protocol's descriptors.
pub(super) static CONTRACT: LazyLock<DescriptorPool> = LazyLock::new(|| pool(proto::DESCRIPTOR));
static PROTOCOL: LazyLock<DescriptorPool> = LazyLock::new(|| pool(inference::DESCRIPTOR));

fn pool(descriptor: &[u8]) -> DescriptorPool {
    DescriptorPool::decode(descriptor).expect("the descriptors come from the build")
}

impl Method {
    /// A method of the service `resnet18.v1.Classifier`.
    pub fn classifier(name: &str) -> Self {
        Self::of(&CONTRACT, "resnet18.v1.Classifier", name, false)
    }

    /// A method of the service `inference.GRPCInferenceService`.
    pub fn inference(name: &str) -> Self {
        Self::of(&PROTOCOL, "inference.GRPCInferenceService", name, true)
    }

    fn of(pool: &DescriptorPool, service: &str, name: &str, numbers: bool) -> Self {
        let service = pool.get_service_by_name(service);
        let method = service.and_then(|service| {
            let found = service.methods().find(|method| method.name() == name);
            found.map(|method| (service, method))
        });
        let (service, method) = method.expect("the services have the methods that are routed");
        Self {
            path: format!("/{}/{name}", service.full_name()),
            input: method.input(),
            output: method.output(),
            numbers,
        }
    }

    /// An answer's message as JSON, with the fields that have their default value.
    ///
    /// # Errors
    /// When the bytes are no such message.
    pub fn answer(&self, message: Bytes) -> Result<Vec<u8>, String> {
        let message = DynamicMessage::decode(self.output.clone(), message);
        to_json(&message.map_err(|error| error.to_string())?, self.numbers)
    }
}

pub(super) fn to_json(message: &DynamicMessage, numbers: bool) -> Result<Vec<u8>, String> {
    let options = SerializeOptions::new()
        .use_proto_field_name(true)
        .skip_default_fields(false)
        .stringify_64_bit_integers(!numbers);
    let mut json = serde_json::Serializer::new(Vec::new());
    message
        .serialize_with_options(&mut json, &options)
        .map_err(|error| error.to_string())?;
    Ok(json.into_inner())
}

/// Reads a message from JSON. Both forms of the fields' names are taken; unknown ones are not.
///
/// # Errors
/// What is wrong, and where.
pub(super) fn from_json(of: &MessageDescriptor, json: &[u8]) -> Result<DynamicMessage, String> {
    let mut reader = Deserializer::from_slice(json);
    let message = DynamicMessage::deserialize(of.clone(), &mut reader)
        .and_then(|message| reader.end().map(|()| message));
    message.map_err(|error| format!("the body is not a {} in JSON: {error}", of.name()))
}

/// The fields that query parameters and the fields of a form may set: those that are no images. A list
/// is set by several of the same name.
pub(super) fn parameters(of: &MessageDescriptor) -> impl Iterator<Item = FieldDescriptor> {
    let settable = |field: &FieldDescriptor| match field.kind() {
        Kind::Bytes => false,
        Kind::Message(message) => {
            let is_flat =
                |field: FieldDescriptor| !matches!(field.kind(), Kind::Message(_) | Kind::Bytes);
            field.is_list() && message.fields().all(is_flat)
        }
        _ => !field.is_map(),
    };
    of.fields().filter(settable)
}

/// The parameters of a query string, decoded.
///
/// # Errors
/// What is wrong.
pub(super) fn query(text: Option<&str>) -> Result<Vec<(String, String)>, String> {
    let decoded = |text: &str| {
        let spaced = text.replace('+', " ");
        let decoded = percent_decode_str(&spaced).decode_utf8();
        decoded
            .map(|text| text.into_owned())
            .map_err(|_| "the query is not UTF-8 text".to_owned())
    };
    let pairs: Vec<&str> = text
        .unwrap_or_default()
        .split('&')
        .filter(|pair| !pair.is_empty())
        .take(MAX_PARAMETERS + 1)
        .collect();
    if pairs.len() > MAX_PARAMETERS {
        return Err(format!(
            "there are more than {MAX_PARAMETERS} query parameters"
        ));
    }
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        Ok((decoded(name)?, decoded(value)?))
    };
    pairs.into_iter().map(pair).collect()
}

/// A message whose fields have these values.
///
/// # Errors
/// The parameter that is unknown, set twice or of the wrong kind.
pub(super) fn from_parameters(
    of: &MessageDescriptor,
    given: &[(String, String)],
) -> Result<Vec<u8>, String> {
    let mut fields = BTreeMap::new();
    for (name, text) in given {
        let Some(field) = parameters(of).find(|field| field.name() == name) else {
            let known: Vec<_> = parameters(of)
                .map(|field| format!("`{}`", field.name()))
                .collect();
            let name: String = name.chars().take(50).collect();
            return Err(format!(
                "there is no parameter `{}`; there are {}",
                name.escape_debug(),
                known.join(", ")
            ));
        };
        let value = match field.kind() {
            Kind::Bool => text.parse().map_or(json!(text), Value::Bool),
            // One or several in JSON.
            Kind::Message(_) => serde_json::from_str(text).unwrap_or(Value::Null),
            _ => json!(text),
        };
        let value = match value {
            Value::Array(_) => value,
            value if field.is_list() => Value::Array(vec![value]),
            value => value,
        };
        let one = json!({ name: &value }).to_string();
        if from_json(of, one.as_bytes()).is_err() {
            let text: String = text.chars().take(50).collect();
            return Err(format!(
                "the parameter `{name}` is {text:?}; it must be {}",
                kind(&field)
            ));
        }
        match (fields.get_mut(name), value) {
            (None, value) => {
                fields.insert(name, value);
            }
            (Some(Value::Array(values)), Value::Array(more)) => values.extend(more),
            _ => return Err(format!("the parameter `{name}` is set twice")),
        }
    }
    Ok(from_json(of, json!(fields).to_string().as_bytes())?.encode_to_vec())
}

/// What a field's values are, in words.
fn kind(field: &FieldDescriptor) -> String {
    match field.kind() {
        Kind::Double | Kind::Float => "a number".into(),
        Kind::Bool => "true or false".into(),
        Kind::Enum(values) => {
            let names: Vec<_> = values
                .values()
                .map(|value| value.name().to_owned())
                .collect();
            format!("one of {}", names.join(", "))
        }
        Kind::String => "text".into(),
        Kind::Message(message) => format!("a {} or a list of them in JSON", message.name()),
        Kind::Uint32 | Kind::Uint64 | Kind::Fixed32 | Kind::Fixed64 => {
            "a whole number, 0 or more".into()
        }
        _ => "a whole number".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{ClassifyRequest, ClassifyResponse, Timing};

    fn classify() -> Method {
        Method::classifier("Classify")
    }

    fn read(text: &str) -> Result<ClassifyRequest, String> {
        let message = from_parameters(&classify().input, &query(Some(text))?)?;
        Ok(ClassifyRequest::decode(&message[..]).unwrap())
    }

    #[test]
    fn query_parameters_are_the_fields_of_the_request() {
        let request = read("model=a%20b+c&top_k=3&min_probability=0.25").unwrap();
        assert_eq!(
            (&request.model[..], request.top_k, request.min_probability),
            ("a b c", 3, 0.25)
        );
        assert_eq!(read("").unwrap(), ClassifyRequest::default());
        for (text, expected) in [
            (
                "topk=3",
                "there is no parameter `topk`; there are `model`, `top_k`, `min_prob",
            ),
            ("image=3", "there is no parameter `image`"),
            (
                "top_k=-1",
                "`top_k` is \"-1\"; it must be a whole number, 0 or more",
            ),
            ("top_k=", "`top_k` is \"\""),
            ("top_k=99999999999", "`top_k`"),
            ("min_probability=much", "it must be a number"),
            ("top_k=1&top_k=2", "`top_k` is set twice"),
            ("model=%ff", "not UTF-8"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let many = "top_k=1&".repeat(MAX_PARAMETERS + 1);
        assert!(read(&many).unwrap_err().contains("more than 32"));
    }

    #[test]
    fn answers_have_every_field_under_the_protos_names() {
        let answer = ClassifyResponse {
            model: "m".into(),
            classifications: vec![proto::Classification {
                class_id: 0,
                label: "cat".into(),
                probability: 0.1,
            }],
            timing: Some(Timing {
                total: Some(prost_types::Duration {
                    seconds: 0,
                    nanos: 12_300_000,
                }),
                ..Timing::default()
            }),
            ..ClassifyResponse::default()
        };
        let json = classify().answer(answer.encode_to_vec().into()).unwrap();
        assert_eq!(
            serde_json::from_slice::<Value>(&json).unwrap(),
            json!({
                "model": "m",
                "model_version": "",
                "classifications": [{"class_id": 0, "label": "cat", "probability": 0.1}],
                "timing": {"total": "0.012300s"},
                "regions": [],
            }),
            "{}",
            String::from_utf8_lossy(&json)
        );
    }

    #[test]
    fn json_is_read_strictly() {
        let of = classify().input;
        let read = |json: &str| from_json(&of, json.as_bytes());
        let message = read(r#"{"top_k": "3", "image": {"encoded": "AAEC"}}"#).unwrap();
        let request: ClassifyRequest = message.transcode_to().unwrap();
        assert_eq!(request.top_k, 3);
        assert!(read(r#"{"topK": 3}"#).is_ok());
        let deep = "[".repeat(100_000);
        for (json, expected) in [
            (r#"{"topk": 3}"#, "topk"),
            (r#"{"top_k": 3} x"#, "trailing"),
            (r#"{"top_k": 3.5}"#, "integer"),
            (r#"{"image": {"encoded": "", "raw": {}}}"#, "multiple"),
            (r#"{"image": {"encoded": "~"}}"#, "Invalid"),
            ("", "EOF"),
            ("[]", "not a ClassifyRequest"),
            (&format!(r#"{{"image": {deep}"#), "not a ClassifyRequest"),
        ] {
            let error = read(json).unwrap_err();
            assert!(
                error.to_lowercase().contains(&expected.to_lowercase()),
                "{json:.60}: {error}"
            );
        }
    }
}
