//! The HTTP port: `/metrics` for Prometheus, `/healthz` and `/readyz` for probes, and the live page
//! at `/`.

mod connections;
mod guard;
mod page;

use std::{io, sync::Arc};

use axum::{
    Router, extract,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use tokio::net::TcpListener;

pub use self::guard::Web;
use crate::{
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
    let routes = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(context.clone());

    let routes = match web {
        Web::Off => routes.route("/", get(async || NO_PAGE)),
        Web::Loopback | Web::Everywhere => routes.merge(page::routes(context.state, web, calls)),
    };

    connections::serve(listener, routes).await
}

async fn metrics(extract::State(context): extract::State<HttpContext>) -> impl IntoResponse {
    // Reading /proc and asking a GPU's driver can block.
    let text = tokio::task::spawn_blocking(move || {
        let models = context.registry.list();
        context
            .exporter
            .render(models.iter().map(|entry| &*entry.metrics), &context.state)
    });
    let text = text
        .await
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));

    (
        [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        text,
    )
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
