//! The HTTP port: `/metrics` for Prometheus, `/healthz` and `/readyz` for probes, and the live page
//! at `/`.

mod connections;
mod guard;
mod page;
mod scrape;
mod slow;

use std::{io, sync::Arc};

use axum::{
    Router, extract,
    extract::Request,
    http::{StatusCode, header::RETRY_AFTER},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::net::TcpListener;

pub use self::guard::Web;
use self::{connections::Routes, guard::Names};
use crate::{
    budget::MemoryBudget,
    grpc::BrowserCalls,
    metrics::Exporter,
    registry::Registry,
    state::{State, StateCell},
};

/// Served at `/` when the live page is off.
const NO_PAGE: &str = "resnet18: /metrics /healthz /readyz\n\
                       The live page is off; `resnet18 serve --web` turns it on.\n";

/// What the endpoints report on.
#[derive(Clone)]
pub struct HttpContext {
    pub state: StateCell,
    pub registry: Arc<Registry>,
    pub exporter: Exporter,
    pub memory: MemoryBudget,
}

/// Serves until the returned future is dropped. `web` decides who may open the page and make
/// `calls` from it.
///
/// # Errors
/// Fatal errors of the listener.
pub async fn serve(
    listener: TcpListener,
    context: HttpContext,
    web: Web,
    calls: BrowserCalls,
) -> io::Result<()> {
    let is_loopback = listener.local_addr()?.ip().is_loopback();
    let names = Names::of(is_loopback, web);
    let scrapes = Router::new()
        .route("/metrics", get(scrape::metrics))
        .layer(middleware::from_fn(move |request: Request, next: Next| {
            answered_to(names, request, next)
        }));
    let probes = Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .merge(scrapes)
        .with_state(context.clone());

    let all = match web {
        Web::Off => probes.clone().route("/", get(async || NO_PAGE)),
        Web::Loopback | Web::Everywhere => {
            probes
                .clone()
                .merge(page::routes(context.state, web, calls))
        }
    };
    let probes = probes.fallback(async || {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            [(RETRY_AFTER, "1")],
            "too many connections are open; retry in a moment\n",
        )
    });

    let with_one_host = |routes: Router| routes.layer(middleware::from_fn(with_one_host));
    let routes = Routes {
        all: with_one_host(all),
        probes: with_one_host(probes),
    };
    connections::serve(listener, routes).await
}

/// Refuses a request with more than one `Host`, or one that is no name.
async fn with_one_host(request: Request, next: Next) -> Response {
    match guard::check_host(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

/// Refuses a request for another name than the server's.
async fn answered_to(names: Names, request: Request, next: Next) -> Response {
    match names.admit(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

async fn healthz(extract::State(context): extract::State<HttpContext>) -> impl IntoResponse {
    health(&context.state.get())
}

/// Liveness: 200 unless the server has failed for good or nothing moves any more, so also while it
/// starts or drains.
fn health(state: &State) -> (StatusCode, String) {
    match state {
        State::Failed(reason) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("failed: {reason}\n"),
        ),
        State::Stalled(reason) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("stalled: {reason}\n"),
        ),
        _ => (StatusCode::OK, "ok\n".into()),
    }
}

async fn readyz(extract::State(context): extract::State<HttpContext>) -> impl IntoResponse {
    readiness(&context.state.get())
}

/// Readiness: 200 only while new requests should be sent here.
fn readiness(state: &State) -> (StatusCode, String) {
    match state.ready() {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(reason) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("not ready: {reason}\n"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_say_no_and_why_while_nothing_moves() {
        let reason = "nothing has moved for 30s";
        let stalled = State::Stalled(reason.into());
        for (status, text) in [health(&stalled), readiness(&stalled)] {
            assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
            assert!(text.contains(reason), "{text}");
        }
        for state in [State::Starting, State::Draining] {
            assert_eq!(health(&state).0, StatusCode::OK);
            assert_eq!(readiness(&state).0, StatusCode::SERVICE_UNAVAILABLE);
        }
    }
}
