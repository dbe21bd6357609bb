//! The standard health service, kept in step with the server's state and its models.

use std::{collections::BTreeSet, sync::Arc};

use tonic::{Request, Response, Status};
use tonic_health::{
    ServingStatus,
    pb::{
        HealthCheckRequest, HealthCheckResponse,
        health_check_response::ServingStatus as ServingStatusCode, health_server,
    },
    server::{self, HealthReporter},
};

use self::messages::{
    HealthListRequest, HealthListResponse,
    health_server::{Health, HealthServer},
};
use super::oip;
use crate::{
    registry::Registry,
    state::{State, StateCell},
};

/// What `proto/grpc/health` has beyond the library.
#[allow(missing_docs)]
mod messages {
    tonic::include_proto!("grpc.health.v1");
}

/// The protocol as a serialized `google.protobuf.FileDescriptorSet`, for reflection.
pub(super) const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/health.bin"));

/// The contract's service, whose health is the server's.
const SERVICE: &str = "resnet18.v1.Classifier";
/// The services whose health is the server's.
const SERVER: [&str; 3] = ["", SERVICE, oip::SERVICE];

/// The health service: the library's, and `List`.
pub(super) struct HealthService {
    library: server::HealthService,
    state: StateCell,
    registry: Arc<Registry>,
}

impl HealthService {
    /// The service that answers what is reported to `health`.
    pub fn new(
        health: HealthReporter,
        state: StateCell,
        registry: Arc<Registry>,
    ) -> HealthServer<Self> {
        HealthServer::new(Self {
            library: server::HealthService::from_health_reporter(health),
            state,
            registry,
        })
    }
}

#[tonic::async_trait]
impl Health for HealthService {
    type WatchStream = <server::HealthService as health_server::Health>::WatchStream;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        health_server::Health::check(&self.library, request).await
    }

    async fn list(
        &self,
        _: Request<HealthListRequest>,
    ) -> Result<Response<HealthListResponse>, Status> {
        let ready = self.state.get() == State::Ready;
        let of_server = SERVER.map(|service| (service.to_owned(), ready));
        let of_models = services_of(&self.registry, ready).into_iter();
        let response = |serves| HealthCheckResponse {
            status: ServingStatusCode::from(status(serves)).into(),
        };
        let statuses = of_server.into_iter().chain(of_models);
        Ok(Response::new(HealthListResponse {
            statuses: statuses
                .map(|(service, serves)| (service, response(serves)))
                .collect(),
        }))
    }

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        health_server::Health::watch(&self.library, request).await
    }
}

/// Reports that the server does not serve yet; the reporter itself begins with SERVING.
pub(super) async fn report_not_serving(health: &HealthReporter) {
    report_server(health, ServingStatus::NotServing).await;
}

/// Reports the health of the server as a whole, and of each model as
/// `resnet18.v1.Classifier/NAME`, for as long as the server runs.
pub(super) async fn follow(health: HealthReporter, state: StateCell, registry: Arc<Registry>) {
    let mut state = state.watch();
    let mut models = registry.watch();
    let mut reported = BTreeSet::new();
    loop {
        models.mark_unchanged();
        let ready = *state.borrow_and_update() == State::Ready;
        report_server(&health, status(ready)).await;

        let mut present = BTreeSet::new();
        for (service, serves) in services_of(&registry, ready) {
            health.set_service_status(&service, status(serves)).await;
            present.insert(service);
        }
        for removed in reported.difference(&present) {
            let mut health = health.clone();
            health.clear_service_status(removed).await;
        }
        reported = present;

        let changed = tokio::select! {
            changed = state.changed() => changed,
            changed = models.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}

async fn report_server(health: &HealthReporter, status: ServingStatus) {
    for service in SERVER {
        health.set_service_status(service, status).await;
    }
}

fn status(serves: bool) -> ServingStatus {
    if serves {
        ServingStatus::Serving
    } else {
        ServingStatus::NotServing
    }
}

/// The services of all models, and whether they serve while the server is `ready` or not.
fn services_of(registry: &Registry, ready: bool) -> Vec<(String, bool)> {
    let service = |name: &str| format!("{SERVICE}/{name}");
    let entries = registry.list().into_iter();
    entries
        .map(|entry| (service(&entry.name), ready && entry.served.is_some()))
        .collect()
}
