//! The standard health service, kept in step with the server's state and its models.

use std::{collections::BTreeSet, sync::Arc};

use tonic_health::{ServingStatus, server::HealthReporter};

use super::oip;
use crate::{
    registry::Registry,
    state::{State, StateCell},
};

/// The contract's service, whose health is the server's.
const SERVICE: &str = "resnet18.v1.Classifier";

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

        let entries = registry.list();
        for entry in &entries {
            let serves = ready && entry.served.is_some();
            let service = service_of(&entry.name);
            health.set_service_status(service, status(serves)).await;
        }

        let present: BTreeSet<String> = entries.into_iter().map(|entry| entry.name).collect();
        for removed in reported.difference(&present) {
            let mut health = health.clone();
            health.clear_service_status(&service_of(removed)).await;
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
    for service in ["", SERVICE, oip::SERVICE] {
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

/// The name under which clients ask for a model's health.
fn service_of(model: &str) -> String {
    format!("{SERVICE}/{model}")
}
