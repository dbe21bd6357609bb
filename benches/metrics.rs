//! The cost of a scrape, and of recording one request's metrics.

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use resnet18_server::{
    budget::MemoryBudget,
    metrics::{self, EndedRequest, Exporter, Format, Method, ModelMetrics},
    state::StateCell,
};
use tonic::Code;

/// Records everything that a classified request records.
fn record_request(model: &ModelMetrics) {
    let took = Duration::from_millis(9);
    model.received(100_000);
    model.queue_depth(3, 2);
    model.queue_capacity(20);
    model.decoded(took, Duration::ZERO);
    model.queued(took);
    model.inferred(1, took);
    model.workers_busy(1.0, took);
    model.classified(1);
    metrics::request_ended(EndedRequest {
        method: Method::Classify,
        model: Some(model),
        code: Code::Ok,
        duration: took,
        trace: None,
    });
}

fn scrapes(c: &mut Criterion) {
    let exporter = Exporter::install();
    let state = StateCell::default();
    let memory = MemoryBudget::new(1 << 30);
    let mut group = c.benchmark_group("metrics");
    let mut models: Vec<ModelMetrics> = Vec::new();
    for count in [1, 16] {
        models.extend((models.len()..count).map(|i| ModelMetrics::new(&format!("model-{i}"))));

        // Ten requests per model arrive between two scrapes.
        group.bench_function(BenchmarkId::new("scrape", count), |b| {
            b.iter(|| {
                for model in &models {
                    for _ in 0..10 {
                        record_request(model);
                    }
                }
                exporter.render(Format::Text, &models, &state, &memory)
            });
        });
    }

    // Samples accumulate until the next scrape, so upkeep runs outside the measured time.
    group.bench_function("count a request", |b| {
        b.iter_custom(|times| {
            let mut took = Duration::ZERO;
            for _ in 0..times {
                let began = Instant::now();
                record_request(&models[0]);
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
