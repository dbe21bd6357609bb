//! The OpenAPI document of REST. The messages in it, and what is said of their fields, come from
//! the `.proto` files.

use std::collections::BTreeMap;

use prost_reflect::{EnumDescriptor, FieldDescriptor, FileDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value, json};

use super::schema::{Method, parameters};

/// How a message is written in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// As proto3's JSON mapping takes it: numbers also as text, enums also as numbers, null for what
    /// is not set.
    Request,
    /// As it writes it.
    Answer,
    /// The same, with numbers of 64 bits.
    Numbers,
}

/// The schemas of messages by name, as they are used.
#[derive(Default)]
struct Schemas(BTreeMap<String, Value>);

impl Schemas {
    /// A reference to a message's schema, which is made when it is first used.
    fn of(&mut self, message: &MessageDescriptor, form: Form) -> Value {
        if message.full_name() == "google.protobuf.Duration" {
            return json!({"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]+)?s$"});
        }
        let name = message.name().to_owned();
        if !self.0.contains_key(&name) {
            self.0.insert(name.clone(), Value::Null);
            let schema = self.message(message, form);
            self.0.insert(name.clone(), schema);
        }
        json!({"$ref": format!("#/components/schemas/{name}")})
    }

    fn message(&mut self, message: &MessageDescriptor, form: Form) -> Value {
        let mut properties = Map::new();
        for field in message.fields() {
            let mut schema = self.field(&field, form);
            if let Some(text) = comment(&field.parent_message().parent_file(), field.path()) {
                schema["description"] = text.into();
            }
            properties.insert(field.name().to_owned(), schema);
        }
        let mut schema = json!({
            "type": "object",
            "properties": properties,
            "additionalProperties": false,
        });
        let alternatives: Vec<_> = message
            .oneofs()
            .filter(|oneof| !oneof.is_synthetic())
            .map(|oneof| {
                let alone = |field: FieldDescriptor| json!({"required": [field.name()]});
                let mut one: Vec<_> = oneof.fields().map(alone).collect();
                one.push(json!({"not": {"anyOf": one.clone()}}));
                json!({"oneOf": one})
            })
            .collect();
        if !alternatives.is_empty() {
            schema["allOf"] = alternatives.into();
        }
        if let Some(text) = comment(&message.parent_file(), message.path()) {
            schema["description"] = text.into();
        }
        schema
    }

    fn field(&mut self, field: &FieldDescriptor, form: Form) -> Value {
        if field.is_map() {
            let kind = field.kind();
            let entry = kind.as_message().expect("a map's entries are messages");
            let value = self.kind(&entry.map_entry_value_field(), form);
            return json!({"type": "object", "additionalProperties": value});
        }
        let one = self.kind(field, form);
        if field.is_list() {
            return json!({"type": "array", "items": one});
        }
        one
    }

    fn kind(&mut self, field: &FieldDescriptor, form: Form) -> Value {
        let is_request = form == Form::Request;
        let number = |kind: &str| {
            if is_request {
                json!({"type": [kind, "string", "null"]})
            } else {
                json!({"type": kind})
            }
        };
        let or_null = |kind: &str| {
            if is_request {
                json!({"type": [kind, "null"]})
            } else {
                json!({"type": kind})
            }
        };
        match field.kind() {
            Kind::Message(message) if is_request => {
                let message = self.of(&message, form);
                json!({"anyOf": [message, {"type": "null"}]})
            }
            Kind::Message(message) => self.of(&message, form),
            Kind::Enum(values) if is_request => {
                json!({"anyOf": [enumeration(&values), {"type": ["integer", "null"]}]})
            }
            Kind::Enum(values) => enumeration(&values),
            Kind::Bool => or_null("boolean"),
            Kind::String => or_null("string"),
            Kind::Bytes => {
                let mut schema = or_null("string");
                schema["contentEncoding"] = "base64".into();
                schema
            }
            Kind::Double | Kind::Float => number("number"),
            Kind::Uint32 | Kind::Fixed32 => {
                let mut schema = number("integer");
                schema["minimum"] = 0.into();
                schema["maximum"] = u32::MAX.into();
                schema
            }
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => number("integer"),
            _ if form == Form::Answer => json!({"type": "string", "pattern": "^-?[0-9]+$"}),
            _ => number("integer"),
        }
    }
}

fn enumeration(values: &EnumDescriptor) -> Value {
    let names: Vec<_> = values
        .values()
        .map(|value| value.name().to_owned())
        .collect();
    json!({"type": "string", "enum": names})
}

/// What a `.proto` file says before a message or a field.
fn comment(file: &FileDescriptor, path: &[i32]) -> Option<String> {
    let info = file.file_descriptor_proto().source_code_info.as_ref()?;
    let location = info
        .location
        .iter()
        .find(|location| location.path == path)?;
    let text = location.leading_comments.as_deref()?;
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    Some(lines.join(" ").trim().to_owned())
}

/// The answers of an operation: what it answers when all is well, and the errors.
fn responses(of: &str, success: &Value, error: &str, codes: &[(u16, &str)]) -> Value {
    let mut responses = Map::new();
    responses.insert(
        "200".into(),
        json!({"description": of, "content": {"application/json": {"schema": success}}}),
    );
    let error = json!({"$ref": format!("#/components/schemas/{error}")});
    for (code, text) in codes {
        let mut response =
            json!({"description": text, "content": {"application/json": {"schema": error}}});
        if matches!(code, 429 | 503) {
            response["headers"] = json!({"Retry-After": {
                "description": "after how many seconds to try again",
                "schema": {"type": "integer", "minimum": 0},
            }});
        }
        responses.insert(code.to_string(), response);
    }
    responses.into()
}

/// What can go wrong with every call.
const OF_CALLS: [(u16, &str); 7] = [
    (401, "There is no token, or an unknown one."),
    (403, "A browser asks on behalf of another site."),
    (
        421,
        "The server is called by a name that it does not answer to.",
    ),
    (429, "The server is at a limit."),
    (500, "The server failed; its log has the reason."),
    (503, "The server is starting or shutting down."),
    (504, "The deadline passed."),
];
/// What can also go wrong with a call that names a model.
const OF_MODELS: [(u16, &str); 2] = [
    (400, "The model could not be loaded."),
    (404, "There is no such model or version."),
];
/// What can also go wrong where clients load models.
const OF_CONTROL: [(u16, &str); 1] = [(501, "Clients of this server may not load models.")];
/// What can also go wrong with a call that has a body.
const OF_BODIES: [(u16, &str); 4] = [
    (400, "The image or the request is wrong."),
    (404, "There is no such model or version."),
    (413, "The body is too large."),
    (
        415,
        "The body is of another type, or compressed in another way.",
    ),
];

/// The document.
pub(super) fn document() -> Value {
    let mut schemas = Schemas::default();
    let mut paths = Map::new();
    contract(&mut schemas, &mut paths);
    protocol(&mut schemas, &mut paths);

    let mut components = Map::from_iter(schemas.0);
    components.insert(
        "Error".into(),
        json!({
            "type": "object",
            "required": ["code", "status", "message"],
            "properties": {
                "code": {"type": "integer", "description": "A google.rpc.Code."},
                "status": {"type": "string", "description": "The code's name."},
                "message": {"type": "string"},
                "retry_delay": {"type": "string", "description": "When to try again."},
            },
        }),
    );
    components.insert(
        "ProtocolError".into(),
        json!({
            "type": "object",
            "required": ["error"],
            "properties": {"error": {"type": "string"}},
        }),
    );
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "resnet18",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "Image classification",
            "license": {"name": "MIT OR Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    })
}

/// `/v1`.
fn contract(schemas: &mut Schemas, paths: &mut Map<String, Value>) {
    let classify = Method::classifier("Classify");
    let request = schemas.of(&classify.input, Form::Request);
    let answer = schemas.of(&classify.output, Form::Answer);
    let image = json!({"schema": {}});
    let codes = [&OF_CALLS[..], &OF_BODIES].concat();
    let content = json!({
        "application/octet-stream": image,
        "image/*": image,
        "multipart/form-data": {"schema": form(schemas, &classify.input, "image", &file())},
        "application/json": {"schema": request},
    });
    paths.insert(
        "/v1/classify".into(),
        json!({"post": {
            "operationId": "Classify",
            "summary": "Classifies one image.",
            "parameters": query_parameters(schemas, &classify.input),
            "requestBody": {"required": true, "content": content},
            "responses": responses("The image's classes.", &answer, "Error", &codes),
        }}),
    );

    let batch = Method::classifier("ClassifyBatch");
    let request = schemas.of(&batch.input, Form::Request);
    let answer = schemas.of(&batch.output, Form::Answer);
    let files = json!({"type": "array", "items": file(), "minItems": 1, "maxItems": 64});
    let content = json!({
        "multipart/form-data": {"schema": form(schemas, &batch.input, "images", &files)},
        "application/json": {"schema": request},
    });
    paths.insert(
        "/v1/classify-batch".into(),
        json!({"post": {
            "operationId": "ClassifyBatch",
            "summary": "Classifies several images, each with a result of its own.",
            "parameters": query_parameters(schemas, &batch.input),
            "requestBody": {"required": true, "content": content},
            "responses": responses("A result for each image.", &answer, "Error", &codes),
        }}),
    );

    let models = Method::classifier("ListModels");
    let answer = schemas.of(&models.output, Form::Answer);
    paths.insert(
        "/v1/models".into(),
        json!({"get": {
            "operationId": "ListModels",
            "summary": "Lists the models.",
            "responses": responses("The models.", &answer, "Error", &OF_CALLS),
        }}),
    );
}

/// The parameters of a query that set a request's fields.
fn query_parameters(schemas: &mut Schemas, request: &MessageDescriptor) -> Vec<Value> {
    let mut parameter = |field: FieldDescriptor| {
        let text = comment(&field.parent_message().parent_file(), field.path());
        let schema = schemas.field(&field, Form::Answer);
        let mut parameter = json!({"name": field.name(), "in": "query", "description": text});
        if matches!(field.kind(), Kind::Message(_)) {
            parameter["content"] = json!({"application/json": {"schema": schema}});
        } else {
            parameter["schema"] = schema;
        }
        parameter
    };
    parameters(request).map(&mut parameter).collect()
}

fn file() -> Value {
    json!({"type": "string", "contentMediaType": "application/octet-stream"})
}

/// A form with files in the field `name`, and with a request's other fields.
fn form(schemas: &mut Schemas, request: &MessageDescriptor, name: &str, files: &Value) -> Value {
    let mut properties = Map::new();
    properties.insert(name.to_owned(), files.clone());
    for field in parameters(request) {
        properties.insert(field.name().to_owned(), schemas.field(&field, Form::Answer));
    }
    json!({
        "type": "object",
        "required": [name],
        "properties": properties,
        "additionalProperties": false,
    })
}

/// `/v2`.
fn protocol(schemas: &mut Schemas, paths: &mut Map<String, Value>) {
    health(paths);
    metadata(schemas, paths);
    inference(paths);
    repository(schemas, paths);
    tensors(schemas);
}

/// The parameters of this path: the name and the version of a model.
fn path_parameters(path: &str) -> Vec<Value> {
    ["name", "version"]
        .into_iter()
        .filter(|name| path.contains(&format!("{{{name}}}")))
        .map(|name| {
            let schema = json!({"type": "string", "minLength": 1});
            json!({"name": name, "in": "path", "required": true, "schema": schema})
        })
        .collect()
}

/// Adds an operation of the protocol without a body.
fn get(
    paths: &mut Map<String, Value>,
    path: &str,
    (id, text): (&str, &str),
    schema: &Value,
    codes: &[(u16, &str)],
) {
    let operation = json!({
        "operationId": id,
        "summary": text,
        "parameters": path_parameters(path),
        "responses": responses(text, schema, "ProtocolError", codes),
    });
    paths.insert(path.to_owned(), json!({"get": operation}));
}

/// The answer of a probe.
fn probe(what: &str) -> Value {
    json!({
        "type": "object",
        "required": [what],
        "properties": {what: {"type": "boolean"}, "name": {"type": "string"}},
    })
}

/// `/v2/health`.
fn health(paths: &mut Map<String, Value>) {
    for (path, id, text, what) in [
        (
            "/v2/health/live",
            "ServerLive",
            "Whether the server is alive.",
            "live",
        ),
        (
            "/v2/health/ready",
            "ServerReady",
            "Whether the server is ready.",
            "ready",
        ),
    ] {
        get(paths, path, (id, text), &probe(what), &OF_CALLS);
        let answers = &mut paths[path]["get"]["responses"];
        let no = answers["200"]["content"]["application/json"]["schema"].clone();
        let error = answers["503"]["content"]["application/json"]["schema"].clone();
        answers["503"]["content"]["application/json"]["schema"] = json!({"anyOf": [no, error]});
    }
}

/// What describes the server and its models.
fn metadata(schemas: &mut Schemas, paths: &mut Map<String, Value>) {
    let message = |schemas: &mut Schemas, name: &str| {
        schemas.of(&Method::inference(name).output, Form::Numbers)
    };
    let server = message(schemas, "ServerMetadata");
    let about = ("ServerMetadata", "The server and its extensions.");
    get(paths, "/v2", about, &server, &OF_CALLS);
    let statistics = message(schemas, "ModelStatistics");
    let about = ("AllStatistics", "The statistics of all models.");
    get(paths, "/v2/models/stats", about, &statistics, &OF_CALLS);

    let metadata = message(schemas, "ModelMetadata");
    let config = Method::inference("ModelConfig").output;
    let config = config.get_field_by_name("config").expect("the protocol");
    let config = schemas.kind(&config, Form::Numbers);
    let of_models = [&OF_CALLS[..], &OF_MODELS].concat();
    for (of, suffix) in [("", ""), ("/versions/{version}", "OfVersion")] {
        let model = format!("/v2/models/{{name}}{of}");
        for (what, id, text, schema) in [
            ("", "ModelMetadata", "A model's tensors.", &metadata),
            (
                "/ready",
                "ModelReady",
                "Whether a model is ready.",
                &probe("ready"),
            ),
            ("/config", "ModelConfig", "How a model is served.", &config),
            (
                "/stats",
                "ModelStatistics",
                "A model's statistics.",
                &statistics,
            ),
        ] {
            let path = format!("{model}{what}");
            let id = format!("{id}{suffix}");
            get(paths, &path, (&id, text), schema, &of_models);
        }

        let answers = &mut paths[&format!("{model}/ready")]["get"]["responses"];
        answers["404"] = answers["200"].clone();
        answers["404"]["description"] = "It is not ready, or there is no such model.".into();
    }
}

/// The operations that classify images.
fn inference(paths: &mut Map<String, Value>) {
    for (of, suffix) in [("", ""), ("/versions/{version}", "OfVersion")] {
        let path = format!("/v2/models/{{name}}{of}/infer");
        let length = json!({
            "name": "Inference-Header-Content-Length",
            "in": "header",
            "description": "How many bytes of the body are JSON, if binary tensors follow it.",
            "schema": {"type": "integer", "minimum": 0},
        });
        let request = json!({"$ref": "#/components/schemas/InferRequest"});
        let answer = json!({"$ref": "#/components/schemas/InferResponse"});
        let codes = [&OF_CALLS[..], &OF_BODIES].concat();
        let mut responses = responses("The tensors.", &answer, "ProtocolError", &codes);
        responses["200"]["content"]["application/octet-stream"] = json!({"schema": {}});
        let operation = json!({
            "operationId": format!("ModelInfer{suffix}"),
            "summary": "Classifies images.",
            "parameters": path_parameters(&path),
            "requestBody": {"required": true, "content": {
                "application/json": {"schema": request},
                "application/octet-stream": {"schema": {}, "x-header": length},
            }},
            "responses": responses,
        });
        paths.insert(path, json!({"post": operation}));
    }
}

/// `/v2/repository`.
fn repository(schemas: &mut Schemas, paths: &mut Map<String, Value>) {
    let index = Method::inference("RepositoryIndex");
    let models = index.output.get_field_by_name("models");
    let models = schemas.field(&models.expect("the protocol"), Form::Numbers);
    let request = schemas.of(&index.input, Form::Request);
    let codes = [&OF_CALLS[..], &OF_BODIES[..1], &OF_BODIES[2..]].concat();
    paths.insert(
        "/v2/repository/index".into(),
        json!({"post": {
            "operationId": "RepositoryIndex",
            "summary": "Lists the models under all their names.",
            "requestBody": {"content": {"application/json": {"schema": request}}},
            "responses": responses("The models.", &models, "ProtocolError", &codes),
        }}),
    );

    for (what, id, text) in [
        ("load", "RepositoryModelLoad", "Loads a model."),
        ("unload", "RepositoryModelUnload", "Unloads a model."),
    ] {
        let path = format!("/v2/repository/models/{{name}}/{what}");
        let codes = [&OF_CALLS[..], &OF_MODELS, &OF_CONTROL].concat();
        let answer = json!({"type": "object"});
        let operation = json!({
            "operationId": id,
            "summary": text,
            "parameters": path_parameters(&path),
            "responses": responses("It is done.", &answer, "ProtocolError", &codes),
        });
        paths.insert(path, json!({"post": operation}));
    }
}

/// The messages that REST has in another form than gRPC.
fn tensors(schemas: &mut Schemas) {
    let parameters = json!({
        "type": "object",
        "maxProperties": 32,
        "additionalProperties": {"type": ["boolean", "number", "string"]},
    });
    let datatypes = json!({"type": "string", "enum": ["BYTES", "UINT8", "FP32"]});
    let shape = json!({
        "type": "array",
        "maxItems": 16,
        "items": {"type": "integer", "minimum": -1, "maximum": u32::MAX},
    });
    let data = json!({
        "type": "array",
        "description": "The elements, flat or nested. BYTES of a request are files in base64.",
    });
    let tensor = |data: &Value| {
        json!({
            "type": "object",
            "required": ["name", "datatype", "shape"],
            "properties": {
                "name": {"type": "string"},
                "datatype": datatypes,
                "shape": shape,
                "parameters": parameters,
                "data": data,
            },
        })
    };
    let output = json!({
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"type": "string"}, "parameters": parameters},
    });
    schemas.0.insert(
        "InferRequest".into(),
        json!({
            "type": "object",
            "required": ["inputs"],
            "properties": {
                "id": {"type": "string"},
                "parameters": parameters,
                "inputs": {"type": "array", "maxItems": 16, "items": tensor(&data)},
                "outputs": {"type": "array", "maxItems": 16, "items": output},
            },
        }),
    );
    schemas.0.insert(
        "InferResponse".into(),
        json!({
            "type": "object",
            "required": ["model_name", "model_version", "outputs"],
            "properties": {
                "id": {"type": "string"},
                "model_name": {"type": "string"},
                "model_version": {"type": "string"},
                "parameters": parameters,
                "outputs": {"type": "array", "items": tensor(&data)},
            },
        }),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The committed copy; `RESNET18_OPENAPI_UPDATE=1` writes it anew.
    const COPY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json");

    #[test]
    fn the_committed_document_is_the_one_that_is_served() {
        let document = serde_json::to_string_pretty(&document()).unwrap() + "\n";
        if std::env::var_os("RESNET18_OPENAPI_UPDATE").is_some() {
            std::fs::write(COPY, &document).unwrap();
        }
        let copy = std::fs::read_to_string(COPY).unwrap_or_default();
        assert!(
            copy == document,
            "{COPY} is outdated: RESNET18_OPENAPI_UPDATE=1 cargo test --lib openapi"
        );
    }

    #[test]
    fn fields_are_described_as_in_the_proto() {
        let document = document();
        let schema = &document["components"]["schemas"]["ClassifyRequest"];
        let top_k = &schema["properties"]["top_k"];
        assert_eq!(
            top_k["description"],
            "The most classes to return; 0 means 5."
        );
        let timing = &document["components"]["schemas"]["Timing"]["properties"]["queue"];
        assert_eq!(timing["type"], "string");
    }
}
