//! `/v2`: the Open Inference Protocol's REST form, with its binary tensors, for the clients of
//! Triton and KServe.

mod answer;
mod request;
mod values;

use std::sync::{Arc, OnceLock};

use axum::{
    Router,
    extract::{Path, Request},
    http::StatusCode,
    response::Response,
    routing::{MethodRouter, any, get, post},
};
use bytes::Bytes;
use prost::Message;
use serde::Deserialize;
use serde_json::json;
use tonic::Status;

use super::{
    call::{Calls, Input, discard, json_response},
    nothing,
    schema::{Method, from_json, to_json},
    status::{Refusal, Style},
};
use crate::{
    grpc::BodyForm,
    inference::{
        ModelConfigRequest, ModelInferResponse, ModelMetadataRequest, ModelReadyRequest,
        ModelReadyResponse, ModelStatisticsRequest, RepositoryModelLoadRequest,
        RepositoryModelUnloadRequest, ServerLiveResponse, ServerReadyResponse,
    },
};

const STYLE: Style = Style::Protocol;
/// How long the JSON at the beginning of a body is, where binary tensors follow it.
const HEADER_LENGTH: &str = "inference-header-content-length";

/// The model that a path names.
#[derive(Deserialize)]
struct Named {
    name: String,
    #[serde(default)]
    version: String,
}

/// The routes of `inference.GRPCInferenceService`.
pub(super) fn routes(calls: &Calls) -> Router {
    let models = [
        ("", metadata(calls)),
        ("/ready", model_ready(calls)),
        ("/config", config(calls)),
        ("/stats", statistics(calls)),
        ("/infer", infer(calls)),
    ];
    let live = |answer: ServerLiveResponse| answer.live;
    let ready = |answer: ServerReadyResponse| answer.ready;
    let mut routes = Router::new()
        .route("/v2", server(calls))
        .route("/v2/health/live", health(calls, "ServerLive", "live", live))
        .route(
            "/v2/health/ready",
            health(calls, "ServerReady", "ready", ready),
        )
        .route("/v2/models/stats", all_statistics(calls))
        .route("/v2/repository/index", index(calls))
        .route("/v2/repository/models/{name}/load", load(calls))
        .route("/v2/repository/models/{name}/unload", unload(calls))
        .route("/v2/{*path}", any(async || nothing(STYLE)));
    for (what, handler) in models {
        for model in ["/v2/models/{name}", "/v2/models/{name}/versions/{version}"] {
            routes = routes.route(&format!("{model}{what}"), handler.clone());
        }
    }
    routes
}

fn server(calls: &Calls) -> MethodRouter {
    let calls = calls.clone();
    let method = Arc::new(Method::inference("ServerMetadata"));
    get(async move |request: Request| {
        let nothing = Input::Message(Vec::new());
        calls
            .json(&method, STYLE, request.into_parts(), nothing)
            .await
    })
}

/// `GET /v2/health/WHAT`: 200 or 503, by what a method without parameters answers.
fn health<T: Message + Default + 'static>(
    calls: &Calls,
    method: &str,
    what: &'static str,
    is: fn(T) -> bool,
) -> MethodRouter {
    let calls = calls.clone();
    let method = Method::inference(method);
    get(async move |request: Request| {
        let nothing = Input::Message(Vec::new());
        let answer = move |message: Bytes| Ok(yes_or_no(what, is(decode::<T>(message)?)));
        let path = &method.path;
        calls
            .call(path, STYLE, request.into_parts(), nothing, answer)
            .await
    })
}

fn model_ready(calls: &Calls) -> MethodRouter {
    let calls = calls.clone();
    let method = Method::inference("ModelReady");
    get(async move |Path(model): Path<Named>, request: Request| {
        let Named { name, version } = model;
        let of = json!({ "name": &name });
        let input = Input::Message(ModelReadyRequest { name, version }.encode_to_vec());
        let answer = move |message: Bytes| {
            let ready = decode::<ModelReadyResponse>(message)?.ready;
            let mut body = of;
            body["ready"] = ready.into();
            // The method does not tell a model that is not ready from one that does not exist.
            let status = if ready {
                StatusCode::OK
            } else {
                StatusCode::NOT_FOUND
            };
            Ok(json_response(status, body.to_string().into_bytes()))
        };
        let path = &method.path;
        calls
            .call(path, STYLE, request.into_parts(), input, answer)
            .await
    })
}

/// 200 or 503, as probes want it; KServe's client also reads the body.
fn yes_or_no(what: &str, yes: bool) -> Response {
    let status = if yes {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    json_response(status, json!({ what: yes }).to_string().into_bytes())
}

fn metadata(calls: &Calls) -> MethodRouter {
    let calls = calls.clone();
    let method = Arc::new(Method::inference("ModelMetadata"));
    get(async move |Path(model): Path<Named>, request: Request| {
        let Named { name, version } = model;
        let input = Input::Message(ModelMetadataRequest { name, version }.encode_to_vec());
        calls
            .json(&method, STYLE, request.into_parts(), input)
            .await
    })
}

fn config(calls: &Calls) -> MethodRouter {
    let calls = calls.clone();
    let method = Method::inference("ModelConfig");
    get(async move |Path(model): Path<Named>, request: Request| {
        let Named { name, version } = model;
        let input = Input::Message(ModelConfigRequest { name, version }.encode_to_vec());
        inner(&calls, &method, "config", request, input).await
    })
}

/// The models as a list, with a body that may say `{"ready": true}`.
fn index(calls: &Calls) -> MethodRouter {
    let calls = calls.clone();
    let method = Method::inference("RepositoryIndex");
    post(async move |request: Request| {
        let of = method.input.clone();
        let read = move |body: Bytes| match body.trim_ascii() {
            b"" => Ok(vec![Bytes::new()]),
            body => Ok(vec![from_json(&of, body)?.encode_to_vec().into()]),
        };
        let input = Input::Body(BodyForm::Whole(Arc::new(read)));
        inner(&calls, &method, "models", request, input).await
    })
}

/// Loads a model of a folder, where the server may be told to; a body is not read.
fn load(calls: &Calls) -> MethodRouter {
    let calls = calls.clone();
    let method = Method::inference("RepositoryModelLoad");
    post(async move |Path(model): Path<Named>, request: Request| {
        let message = RepositoryModelLoadRequest {
            model_name: model.name,
            ..Default::default()
        };
        let input = Input::Message(message.encode_to_vec());
        let path = &method.path;
        calls
            .call(path, STYLE, request.into_parts(), input, done)
            .await
    })
}

fn unload(calls: &Calls) -> MethodRouter {
    let calls = calls.clone();
    let method = Method::inference("RepositoryModelUnload");
    post(async move |Path(model): Path<Named>, request: Request| {
        let message = RepositoryModelUnloadRequest {
            model_name: model.name,
            ..Default::default()
        };
        let input = Input::Message(message.encode_to_vec());
        let path = &method.path;
        calls
            .call(path, STYLE, request.into_parts(), input, done)
            .await
    })
}

/// The answer of a method that says no more than that it is done.
fn done(_: Bytes) -> Result<Response, Status> {
    Ok(json_response(StatusCode::OK, b"{}".to_vec()))
}

/// Answers with one field of the method's answer: an object, or a list.
async fn inner(
    calls: &Calls,
    method: &Method,
    field: &'static str,
    request: Request,
    input: Input,
) -> Response {
    let of = method.clone();
    let answer = move |message: Bytes| {
        let message = prost_reflect::DynamicMessage::decode(of.output.clone(), message);
        let message = message.map_err(|error| Status::internal(error.to_string()))?;
        let value = message.get_field_by_name(field);
        let json = match value.as_deref() {
            Some(prost_reflect::Value::Message(inner)) => to_json(inner, true),
            Some(prost_reflect::Value::List(list)) => {
                let items: Result<Vec<_>, String> = list
                    .iter()
                    .filter_map(prost_reflect::Value::as_message)
                    .map(|inner| to_json(inner, true))
                    .collect();
                items.map(|items| [&b"["[..], &items.join(&b","[..]), b"]"].concat())
            }
            _ => Err("the answer lacks its field".into()),
        };
        Ok(json_response(
            StatusCode::OK,
            json.map_err(Status::internal)?,
        ))
    };
    calls
        .call(&method.path, STYLE, request.into_parts(), input, answer)
        .await
}

fn statistics(calls: &Calls) -> MethodRouter {
    let calls = calls.clone();
    let method = Arc::new(Method::inference("ModelStatistics"));
    get(async move |Path(model): Path<Named>, request: Request| {
        let Named { name, version } = model;
        let input = Input::Message(ModelStatisticsRequest { name, version }.encode_to_vec());
        calls
            .json(&method, STYLE, request.into_parts(), input)
            .await
    })
}

fn all_statistics(calls: &Calls) -> MethodRouter {
    let calls = calls.clone();
    let method = Arc::new(Method::inference("ModelStatistics"));
    get(async move |request: Request| {
        let all = Input::Message(Vec::new());
        calls.json(&method, STYLE, request.into_parts(), all).await
    })
}

fn infer(calls: &Calls) -> MethodRouter {
    let calls = calls.clone();
    let method = Method::inference("ModelInfer");
    post(async move |Path(model): Path<Named>, request: Request| {
        let (head, body) = request.into_parts();
        let length = match head.headers.get(HEADER_LENGTH) {
            None => None,
            Some(length) => {
                let parsed = length.to_str().ok().and_then(|text| text.parse().ok());
                if parsed.is_none() {
                    let refusal = format!(
                        "{HEADER_LENGTH} is {length:?}; it must be the number of bytes of JSON at \
                         the beginning of the body"
                    );
                    discard(Some(body));
                    return Refusal::invalid(refusal).into_response(STYLE);
                }
                parsed
            }
        };
        // What the request says of its answer's form, once it has been read.
        let wanted = Arc::new(OnceLock::new());
        let read = {
            let wanted = Arc::clone(&wanted);
            move |body: Bytes| {
                let Named { name, version } = &model;
                let read = request::read(&body, length, name, version)?;
                let _ = wanted.set(read.wanted);
                Ok(read.pieces)
            }
        };
        let answer = move |message: Bytes| {
            let response = decode::<ModelInferResponse>(message)?;
            let wanted = wanted.get().cloned().unwrap_or_default();
            Ok(answer::write(response, &wanted))
        };
        let input = Input::Body(BodyForm::Whole(Arc::new(read)));
        let path = &method.path;
        calls.call(path, STYLE, (head, body), input, answer).await
    })
}

fn decode<T: Message + Default>(message: Bytes) -> Result<T, Status> {
    T::decode(message).map_err(|error| Status::internal(error.to_string()))
}
