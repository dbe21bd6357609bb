//! What a scrape costs, and what a request pays for being counted.

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use resnet18_server::{
    metrics::{Exporter, Method, ModelMetrics, RequestGuard},
    state::StateCell,
};
use tonic::Code;

/// As much as is counted and timed for a request that is classified.
fn count(model: &ModelMetrics) {
    let took = Duration::from_millis(9);
    let mut guard = RequestGuard::new(Method::Classify, Instant::now(), None);
    guard.model(model);
    model.received(100_000);
    model.queue_depth(3, 2);
    model.queue_capacity(20);
    model.decoded(took);
    model.queued(took);
    model.inferred(1, took);
    model.workers_busy(1.0, took);
    model.classified(1);
    guard.finish(Code::Ok);
}

fn scrapes(c: &mut Criterion) {
    let (exporter, state) = (Exporter::install(), StateCell::default());
    let mut group = c.benchmark_group("metrics");
    let mut models: Vec<ModelMetrics> = Vec::new();
    for count_of_models in [1, 16] {
        models.extend(
            (models.len()..count_of_models).map(|i| ModelMetrics::new(&format!("model-{i}"))),
        );
        // Ten requests for each model came between two scrapes.
        group.bench_function(BenchmarkId::new("scrape", count_of_models), |b| {
            b.iter(|| {
                models
                    .iter()
                    .for_each(|model| (0..10).for_each(|_| count(model)));
                exporter.render(&models, &state)
            });
        });
    }
    // What is recorded piles up until the next scrape.
    group.bench_function("count a request", |b| {
        b.iter_custom(|times| {
            let mut took = Duration::ZERO;
            for _ in 0..times {
                let began = Instant::now();
                count(&models[0]);
                took += began.elapsed();
            }
            exporter.upkeep();
            took
        });
    });
    group.finish();
}

criterion_group!(benches, scrapes);
criterion_main!(benches);
