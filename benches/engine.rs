//! Each engine alone: by batch size, on one core and on all.

use std::num::NonZeroUsize;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use resnet18_server::{
    engine::{self, EngineConfig, EngineKind},
    model::{Model, Overrides},
};

fn engines(c: &mut Criterion) {
    let model = Model::bundled(&Overrides::default()).expect("the bundled model can be served");
    let cores = std::thread::available_parallelism().expect("the cores can be counted");
    for kind in [EngineKind::OpenVino, EngineKind::Embedded] {
        for max_batch in [1, 4] {
            let config = EngineConfig {
                kind: Some(kind),
                max_batch: NonZeroUsize::new(max_batch),
                ..EngineConfig::new(cores)
            };
            let mut lanes = match engine::start(&config, &model) {
                Ok(lanes) => lanes,
                Err(error) => {
                    eprintln!("skipped: {error}");
                    continue;
                }
            };
            let mut group = c.benchmark_group(format!("{kind}/{}", lanes.info.precision));
            group
                .sample_size(20)
                .throughput(Throughput::Elements(max_batch as u64));
            let images = vec![128; max_batch * model.geometry.bytes()];
            let mut logits = vec![0.0; max_batch * model.graph.classes];
            let wide = lanes.wide.as_mut().map(|lane| (cores.get(), lane));
            for (threads, lane) in [(1, &mut lanes.narrow[0])].into_iter().chain(wide) {
                let id =
                    BenchmarkId::new(format!("batch {max_batch}"), format!("{threads} threads"));
                group.bench_function(id, |b| {
                    b.iter(|| {
                        lane.infer(&images, max_batch, &mut logits)
                            .expect("the engine works");
                    });
                });
            }
            group.finish();
        }
    }
}

criterion_group!(benches, engines);
criterion_main!(benches);
