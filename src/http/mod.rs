//! The HTTP port: `/metrics` for Prometheus, `/healthz` and `/readyz` for probes, the live page at
//! `/`, REST, and gRPC-Web.

mod connections;
mod cors;
mod grpc_web;
mod guard;
mod page;
mod rest;
mod scrape;
mod slow;

use std::{io, sync::Arc};

use axum::{
    Router, extract,
    extract::Request,
    http::{StatusCode, header::RETRY_AFTER},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{any, get},
};
use tokio::net::TcpListener;

use self::{
    connections::Routes,
    cors::Origins,
    guard::{Guard, Names, Part},
};
pub use self::{cors::Origin, guard::Web};
use crate::{
    budget::MemoryBudget,
    grpc::{HttpCalls, HttpTls},
    metrics::Exporter,
    registry::Registry,
    state::{State, StateCell},
};

/// Served at `/` when the live page is off.
const NO_PAGE: &str = "resnet18: /metrics /healthz /readyz\n\
                       The live page is off; `resnet18 serve --web` turns it on.\n";

/// Answered where REST is off.
const NO_REST: &str = "REST is off; `resnet18 serve --rest` turns it on.\n";

/// What the HTTP port serves, and to whom.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// The live page at `/`.
    pub web: Web,
    /// REST (`/v1`, `/v2`), and gRPC-Web for all services.
    pub rest: Web,
    /// The sites whose scripts may call, besides the server's own page.
    pub allowed_origins: Vec<Origin>,
}

/// Metrics and probes only.
impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            web: Web::Off,
            rest: Web::Off,
            allowed_origins: Vec::new(),
        }
    }
}

/// What the endpoints report on.
#[derive(Clone)]
pub(crate) struct HttpContext {
    pub state: StateCell,
    pub registry: Arc<Registry>,
    pub exporter: Exporter,
    pub memory: MemoryBudget,
    /// The port's certificates; `None` if it is not encrypted.
    pub tls: Option<HttpTls>,
}

/// Serves until the returned future is dropped. `config` decides who may make `calls`.
///
/// # Errors
/// Fatal errors of the listener.
pub(crate) async fn serve(
    listener: TcpListener,
    context: HttpContext,
    config: HttpConfig,
    calls: HttpCalls,
) -> io::Result<()> {
    let is_loopback = listener.local_addr()?.ip().is_loopback();
    let HttpConfig { web, rest, .. } = config;
    let tls = context.tls.clone();
    let names = Names::of(is_loopback, web.max(rest));
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

    let origins = Origins::new(&config.allowed_origins);
    let guard = |part, web| Guard {
        part,
        web,
        origins: origins.clone(),
    };
    let mut all = Router::new();
    if web.max(rest) != Web::Off {
        let part = if web >= rest { Part::Page } else { Part::Rest };
        all = all.merge(grpc_web::for_page(&calls, guard(part, web.max(rest))));
    }
    all = if rest == Web::Off {
        let off = || any(async || (StatusCode::NOT_FOUND, NO_REST));
        ["/v1/{*path}", "/v2", "/v2/{*path}", "/openapi.json"]
            .into_iter()
            .fold(all, |all, path| all.route(path, off()))
    } else {
        let guard = guard(Part::Rest, rest);
        all.merge(grpc_web::for_programs(&calls, guard.clone()))
            .merge(rest::routes(&calls, guard))
    };
    all = all.layer(middleware::from_fn(move |request: Request, next: Next| {
        origins.clone().answer(request, next)
    }));
    all = match web {
        Web::Off => all.route("/", get(async || NO_PAGE)),
        Web::Loopback | Web::Everywhere => {
            let guard = Guard {
                part: Part::Page,
                web,
                origins: Origins::default(),
            };
            if calls.can_teach {
                all = all.merge(grpc_web::for_teaching(&calls, guard.clone()));
            }
            all.merge(page::routes(context.state, guard, &calls))
        }
    };
    let all = all.merge(probes.clone());
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
    connections::serve(listener, routes, tls).await
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
