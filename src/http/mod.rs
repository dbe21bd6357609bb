//! The HTTP side: `/metrics` for Prometheus, `/healthz` and `/readyz` for whoever watches over the
//! process, and the page at `/` for people.

mod connections;
mod guard;
mod page;

use std::{io, sync::Arc};

use axum::{
    Router,
    extract::State as Shared,
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

/// What is told where the page is off.
const NO_PAGE: &str = "resnet18: /metrics /healthz /readyz\nThe live page is off; `resnet18 serve --web` shows it here.\n";

/// What the pages show.
#[derive(Clone)]
pub struct HttpContext {
    /// Whose readiness is shown.
    pub state: StateCell,
    /// Whose metrics are shown.
    pub registry: Arc<Registry>,
    /// Where the metrics are collected.
    pub exporter: Exporter,
}

/// Serves until the returned future is dropped; the page, and `calls` from it, to those whom `web`
/// lets in.
///
/// # Errors
/// What the listener reports.
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

async fn metrics(Shared(context): Shared<HttpContext>) -> impl IntoResponse {
    // The system and a GPU's driver are asked, which takes its time.
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

/// 200 while the process is worth keeping: also while it starts or drains.
async fn healthz(Shared(context): Shared<HttpContext>) -> impl IntoResponse {
    match context.state.get() {
        State::Failed(reason) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("failed: {reason}\n"),
        ),
        _ => (StatusCode::OK, "ok\n".into()),
    }
}

/// 200 only while requests are accepted.
async fn readyz(Shared(context): Shared<HttpContext>) -> impl IntoResponse {
    match context.state.get().ready() {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(why) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("not ready: {why}\n"),
        ),
    }
}
