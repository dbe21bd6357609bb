//! gRPC-Web: the gRPC services as browsers call them, in binary or as text.

use axum::{
    Router,
    extract::Request,
    http::{HeaderMap, StatusCode, header::CONTENT_TYPE},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::post_service,
};

use super::guard::{Guard, RefusedRequest};
use crate::{
    grpc::HttpCalls,
    inference::grpc_inference_service_server as inference,
    proto::{classifier_server as classifier, teacher_server as teacher},
};

/// The content types of calls. No form can send them, so that a browser asks first (CORS
/// preflight).
const KINDS: [&[u8]; 4] = [
    b"application/grpc-web",
    b"application/grpc-web+proto",
    b"application/grpc-web-text",
    b"application/grpc-web-text+proto",
];

/// The methods that the live page calls.
const PAGE: [&str; 2] = [
    "/resnet18.v1.Classifier/Classify",
    "/resnet18.v1.Classifier/ListModels",
];

/// The services besides the classifier's.
const SERVICES: [&str; 4] = [
    inference::SERVICE_NAME,
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

/// The methods that the live page needs.
pub(super) fn for_page(calls: &HttpCalls, guard: Guard) -> Router {
    let routes = PAGE.into_iter().fold(Router::new(), |routes, method| {
        routes.route(method, post_service(calls.web.clone()))
    });
    guarded(routes, guard)
}

/// The methods that teach, which only the page's own scripts may call.
pub(super) fn for_teaching(calls: &HttpCalls, guard: Guard) -> Router {
    let path = format!("/{}/{{method}}", teacher::SERVICE_NAME);
    guarded(
        Router::new().route(&path, post_service(calls.web.clone())),
        guard,
    )
}

/// All other methods of all services.
pub(super) fn for_programs(calls: &HttpCalls, guard: Guard) -> Router {
    let classifier = ["StreamClassify"].map(|name| format!("/{}/{name}", classifier::SERVICE_NAME));
    let services = SERVICES.map(|name| format!("/{name}/{{method}}"));
    let routes = classifier
        .into_iter()
        .chain(services)
        .fold(Router::new(), |routes, path| {
            routes.route(&path, post_service(calls.web.clone()))
        });
    guarded(routes, guard)
}

fn guarded(routes: Router, guard: Guard) -> Router {
    routes.layer(middleware::from_fn(move |request: Request, next: Next| {
        let guard = guard.clone();
        async move {
            let admitted = guard
                .admits(&request)
                .and_then(|()| check_kind(request.headers()));
            match admitted {
                Ok(()) => next.run(request).await,
                Err(refusal) => refused(refusal),
            }
        }
    }))
}

fn refused(refusal: RefusedRequest) -> Response {
    refusal.into_response()
}

fn check_kind(headers: &HeaderMap) -> Result<(), RefusedRequest> {
    match headers.get(CONTENT_TYPE) {
        Some(kind) if KINDS.contains(&kind.as_bytes()) => Ok(()),
        _ => Err((
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "the content type must be application/grpc-web, application/grpc-web+proto, \
             application/grpc-web-text or application/grpc-web-text+proto\n",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_need_a_content_type_that_no_form_can_send() {
        let check = |kind: &str| {
            let headers = [(CONTENT_TYPE, kind.parse().unwrap())];
            check_kind(&headers.into_iter().collect()).is_ok()
        };
        assert!(check("application/grpc-web") && check("application/grpc-web-text"));
        for kind in ["text/plain", "application/grpc", "multipart/form-data"] {
            assert!(!check(kind), "{kind}");
        }
        assert!(check_kind(&HeaderMap::new()).is_err());
    }
}
