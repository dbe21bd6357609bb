//! `ModelStatistics`: the models' sums in the protocol's form.

use std::time::{Duration, UNIX_EPOCH};

use super::{names, versions};
use crate::{
    grpc::call::{context::Context, record::CallRecord, status::CallError},
    inference::{
        InferBatchStatistics, InferStatistics, ModelStatistics, ModelStatisticsRequest,
        ModelStatisticsResponse, StatisticDuration,
    },
    metrics::statistics::{CountAndTime, RequestSums},
    registry::Served,
};

/// The statistics of one model, or of all models that are served.
pub(super) fn read(
    context: &Context,
    request: &ModelStatisticsRequest,
    record: &CallRecord,
) -> Result<ModelStatisticsResponse, CallError> {
    let ModelStatisticsRequest { name, version } = request;
    let model_stats = if name.is_empty() {
        let all = names::list(&context.registry).into_iter();
        all.filter_map(|(name, form, entry)| Some(of(&*entry.served?, name, form, "")))
            .collect()
    } else {
        let (served, form) = names::find(context, name, version, record)?;
        vec![of(&served, form.name(&served.name), form, version)]
    };
    Ok(ModelStatisticsResponse { model_stats })
}

/// The statistics under one name. Tools look for the version that they `asked` for.
fn of(served: &Served, name: String, form: names::Form, asked: &str) -> ModelStatistics {
    let statistics = form.statistics(&served.metrics);
    let RequestSums {
        success,
        fail,
        queue,
        decode,
        inference,
        output,
        images,
        last,
    } = statistics.read();
    let calls = statistics.calls();
    let last = last
        .and_then(|last| last.duration_since(UNIX_EPOCH).ok())
        .unwrap_or_default();
    ModelStatistics {
        name,
        version: if asked.is_empty() {
            versions::number(&served.version)
        } else {
            asked.to_owned()
        },
        last_inference: last.as_millis() as u64,
        inference_count: images,
        execution_count: calls.values().map(|spent| spent.count).sum(),
        inference_stats: Some(InferStatistics {
            success: duration(success),
            fail: duration(fail),
            queue: duration(queue),
            compute_input: duration(decode),
            compute_infer: duration(inference),
            compute_output: duration(output),
        }),
        batch_stats: calls
            .into_iter()
            .map(|(images, spent)| InferBatchStatistics {
                batch_size: images as u64,
                compute_infer: duration(spent),
            })
            .collect(),
    }
}

fn duration(CountAndTime { count, time }: CountAndTime) -> Option<StatisticDuration> {
    Some(StatisticDuration {
        count,
        ns: time.min(Duration::from_nanos(u64::MAX)).as_nanos() as u64,
    })
}
