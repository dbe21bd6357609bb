//! REST: the gRPC services' calls as JSON over HTTP.
//!
//! Every request becomes the message of a gRPC call, which passes the same admission and the same
//! services as one on the gRPC port; its answer, or its status, is translated to HTTP.

mod call;
mod classify;
mod multipart;
mod oip;
mod openapi;
mod schema;
mod status;

use std::sync::Arc;

use axum::{
    Router,
    extract::Request,
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{CACHE_CONTROL, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS},
    },
    middleware::{self, Next},
    response::Response,
    routing::{MethodRouter, any, get, post},
};
use bytes::Bytes;
use prost_reflect::MessageDescriptor;
use tonic::Code;

use self::{
    call::{Calls, Input, discard},
    schema::Method,
    status::{Refusal, Style},
};
use super::guard::Guard;
use crate::grpc::HttpCalls;

/// The routes of REST, guarded.
pub(super) fn routes(calls: &HttpCalls, guard: Guard) -> Router {
    let calls = Calls(calls.translated.clone());
    let contract = guarded(contract(&calls), guard.clone(), Style::Contract);
    let described = guarded(described(), guard.clone(), Style::Contract);
    let protocol = guarded(oip::routes(&calls), guard, Style::Protocol);
    contract
        .merge(protocol)
        .merge(described)
        .layer(middleware::map_response(with_headers))
}

/// `resnet18.v1.Classifier`.
fn contract(calls: &Calls) -> Router {
    let style = Style::Contract;
    let models = {
        let calls = calls.clone();
        let method = Arc::new(Method::classifier("ListModels"));
        async move |request: Request| {
            let input = Input::Message(Vec::new());
            calls
                .json(&method, style, request.into_parts(), input)
                .await
        }
    };
    Router::new()
        .route("/v1/classify", images(calls, "Classify", classify::input))
        .route(
            "/v1/classify-batch",
            images(calls, "ClassifyBatch", classify::batch),
        )
        .route("/v1/models", get(models))
        .route("/v1/{*path}", any(async move || nothing(style)))
}

/// A route whose body holds images, as `read` tells from the method's input, the headers and the
/// query.
fn images(
    calls: &Calls,
    method: &str,
    read: fn(&MessageDescriptor, &HeaderMap, Option<&str>) -> Result<Input, Refusal>,
) -> MethodRouter {
    let style = Style::Contract;
    let calls = calls.clone();
    let method = Arc::new(Method::classifier(method));
    post(async move |request: Request| {
        let (head, body) = request.into_parts();
        match read(&method.input, &head.headers, head.uri.query()) {
            Ok(input) => calls.json(&method, style, (head, body), input).await,
            Err(refusal) => {
                discard(Some(body));
                refusal.into_response(style)
            }
        }
    })
}

/// The description of all of it.
fn described() -> Router {
    let document = Bytes::from(openapi::document().to_string());
    Router::new().route(
        "/openapi.json",
        get(async move || ([(CONTENT_TYPE, "application/json")], document)),
    )
}

fn nothing(style: Style) -> Response {
    let refusal = Refusal {
        http: StatusCode::NOT_FOUND,
        code: Code::NotFound,
        message: "there is nothing at this path; /openapi.json lists what there is".into(),
    };
    refusal.into_response(style)
}

/// Refuses requests that the guard does not admit.
fn guarded(routes: Router, guard: Guard, style: Style) -> Router {
    routes.layer(middleware::from_fn(move |request: Request, next: Next| {
        let guard = guard.clone();
        async move {
            match guard.admits(&request) {
                Ok(()) => next.run(request).await,
                Err((http, message)) => Refusal {
                    http,
                    code: Code::PermissionDenied,
                    message: message.trim_end().into(),
                }
                .into_response(style),
            }
        }
    }))
}

async fn with_headers(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers
        .entry(CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    response
}
