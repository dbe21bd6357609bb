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
        let models = models.iter().map(|entry| &*entry.metrics);
        context
            .exporter
            .render(models, &context.state, &context.memory)
    });
    let text = text
        .await
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));

    (
        [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        text,
    )
}

/// Liveness: 200 unless the server has failed for good, so also while it starts or drains.
async fn healthz(extract::State(context): extract::State<HttpContext>) -> impl IntoResponse {
    match context.state.get() {
        State::Failed(reason) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("failed: {reason}\n"),
        ),
        _ => (StatusCode::OK, "ok\n".into()),
    }
}

/// Readiness: 200 only while new requests should be sent here.
async fn readyz(extract::State(context): extract::State<HttpContext>) -> impl IntoResponse {
    match context.state.get().ready() {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(reason) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("not ready: {reason}\n"),
        ),
    }
}
