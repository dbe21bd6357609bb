//! The live page at `/`: its files, its security headers and the server's state.

use axum::{
    Router,
    extract::Request,
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{
            CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HeaderName, IF_NONE_MATCH,
            REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
        },
    },
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::guard::Guard;
use crate::{
    grpc::HttpCalls,
    state::{State, StateCell},
};

/// The page's Content Security Policy: everything that is not listed is forbidden.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
                      connect-src 'self'; img-src 'self' blob:; media-src blob:; \
                      frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// Sent with every answer to the page.
const HEADERS: [(HeaderName, &str); 5] = [
    (CONTENT_SECURITY_POLICY, POLICY),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (REFERRER_POLICY, "no-referrer"),
    (
        HeaderName::from_static("permissions-policy"),
        "camera=(self), microphone=(), geolocation=()",
    ),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
];

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

struct WebFile {
    path: &'static str,
    kind: &'static str,
    text: &'static str,
}

const FILES: [WebFile; 20] = [
    WebFile {
        path: "/",
        kind: HTML,
        text: include_str!("web/index.html"),
    },
    WebFile {
        path: "/web/style.css",
        kind: CSS,
        text: include_str!("web/style.css"),
    },
    WebFile {
        path: "/web/icon.svg",
        kind: SVG,
        text: include_str!("web/icon.svg"),
    },
    WebFile {
        path: "/web/app.js",
        kind: JS,
        text: include_str!("web/app.js"),
    },
    WebFile {
        path: "/web/calls.js",
        kind: JS,
        text: include_str!("web/calls.js"),
    },
    WebFile {
        path: "/web/camera.js",
        kind: JS,
        text: include_str!("web/camera.js"),
    },
    WebFile {
        path: "/web/chart.js",
        kind: JS,
        text: include_str!("web/chart.js"),
    },
    WebFile {
        path: "/web/metrics.js",
        kind: JS,
        text: include_str!("web/metrics.js"),
    },
    WebFile {
        path: "/web/picture.js",
        kind: JS,
        text: include_str!("web/picture.js"),
    },
    WebFile {
        path: "/web/teach.css",
        kind: CSS,
        text: include_str!("web/teach.css"),
    },
    WebFile {
        path: "/web/teach.js",
        kind: JS,
        text: include_str!("web/teach.js"),
    },
    WebFile {
        path: "/web/teach_calls.js",
        kind: JS,
        text: include_str!("web/teach_calls.js"),
    },
    WebFile {
        path: "/web/teach_card.js",
        kind: JS,
        text: include_str!("web/teach_card.js"),
    },
    WebFile {
        path: "/web/teach_dialogs.js",
        kind: JS,
        text: include_str!("web/teach_dialogs.js"),
    },
    WebFile {
        path: "/web/teach_drop.js",
        kind: JS,
        text: include_str!("web/teach_drop.js"),
    },
    WebFile {
        path: "/web/teach_pictures.js",
        kind: JS,
        text: include_str!("web/teach_pictures.js"),
    },
    WebFile {
        path: "/web/teach_result.js",
        kind: JS,
        text: include_str!("web/teach_result.js"),
    },
    WebFile {
        path: "/web/teach_take.js",
        kind: JS,
        text: include_str!("web/teach_take.js"),
    },
    WebFile {
        path: "/web/protobuf.js",
        kind: JS,
        text: include_str!("web/protobuf.js"),
    },
    WebFile {
        path: "/web/try.js",
        kind: JS,
        text: include_str!("web/try.js"),
    },
];

/// Routes for everything that the page needs besides its calls.
pub(super) fn routes(state: StateCell, guard: Guard, calls: &HttpCalls) -> Router {
    let (max_message_bytes, can_teach) = (calls.max_message_bytes, calls.can_teach);
    let mut routes = Router::new().route(
        "/state",
        get(async move || describe(state.get(), max_message_bytes, can_teach)),
    );
    for file in &FILES {
        let tag = format!("\"{:.16x}\"", Sha256::digest(file.text));
        let tag = HeaderValue::from_str(&tag).expect("hexadecimal digits");
        routes = routes.route(
            file.path,
            get(async move |headers: HeaderMap| file.answer(&headers, tag)),
        );
    }
    routes.layer(middleware::from_fn(move |request: Request, next: Next| {
        guarded(guard.clone(), request, next)
    }))
}

/// Refuses requests that the guard does not admit, and adds [`HEADERS`] to every answer.
async fn guarded(guard: Guard, request: Request, next: Next) -> Response {
    let mut response = match guard.admits(&request) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    };

    for (name, value) in HEADERS {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    response
        .headers_mut()
        .entry(CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    response
}

impl WebFile {
    /// Answers with the file, or with 304 if the browser's copy is current. `no-cache` makes the
    /// browser ask each time, so that a new version of the server shows at once.
    fn answer(&self, headers: &HeaderMap, tag: HeaderValue) -> Response {
        let is_current = headers.get(IF_NONE_MATCH) == Some(&tag);
        let headers = [
            (CONTENT_TYPE, HeaderValue::from_static(self.kind)),
            (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
            (ETAG, tag),
        ];

        if is_current {
            (StatusCode::NOT_MODIFIED, headers).into_response()
        } else {
            (headers, self.text).into_response()
        }
    }
}

/// The server's state, as JSON for the page.
fn describe(state: State, max_message_bytes: usize, can_teach: bool) -> impl IntoResponse {
    let (name, reason) = match state {
        State::Starting => ("starting", None),
        State::Ready => ("ready", None),
        State::NoModel(reason) => ("no_model", Some(reason)),
        State::Stalled(reason) => ("stalled", Some(reason)),
        State::Leaving | State::Draining => ("draining", None),
        State::Failed(reason) => ("failed", Some(reason)),
    };

    let body = json!({
        "state": name,
        "reason": reason.as_deref(),
        "version": env!("CARGO_PKG_VERSION"),
        "max_message_bytes": max_message_bytes,
        "teach": can_teach,
    });
    ([(CONTENT_TYPE, "application/json")], body.to_string())
}
