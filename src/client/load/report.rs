//! The measurements of a load run, and the report made of them.

use std::collections::BTreeMap;

use serde::Serialize;
use tokio::time::Instant;
use tonic::{Code, Status};

use super::{LoadConfig, LoadMode, OnRejection};
use crate::{
    client::{LatencySummary, latency::LatencyRecorder, milliseconds},
    proto::{Timing, code_name},
};

/// The result of a load run. It counts the requests that were due between the warm-up and the end,
/// however late their answers came.
#[derive(Clone, Debug, Serialize)]
pub struct LoadReport {
    /// `closed` or `open`.
    pub mode: &'static str,
    /// The number of clients of a closed loop, or the most requests in flight at a fixed rate.
    pub concurrency: usize,
    /// The fixed rate in requests per second; `None` in a closed loop.
    pub rate: Option<f64>,
    /// The number of connections to the server.
    pub connections: usize,
    /// How long the measurement lasted, in seconds.
    pub duration_s: f64,
    /// Answers with status OK per second, by the time they arrived.
    pub goodput: f64,
    /// Bytes of images per second in the requests that `goodput` counts.
    pub bytes_per_second: f64,
    /// The number of answers by the name of their gRPC status, such as `OK`; each attempt counts.
    pub statuses: BTreeMap<&'static str, u64>,
    /// The first error other than RESOURCE_EXHAUSTED, as `CODE: message`.
    pub first_error: Option<String>,
    /// Requests that were due but not sent, because too many others were in flight.
    pub missed: u64,
    /// Requests that were still rejected at their timeout; only with [`OnRejection::Retry`].
    pub gave_up: u64,
    /// The latency of OK answers, from the time the accepted attempt was due, in milliseconds.
    pub latency_ms: Option<LatencySummary>,
    /// The latency of OK answers, from the time the first attempt was due, so including the waits
    /// between attempts; only with [`OnRejection::Retry`].
    pub latency_with_waits_ms: Option<LatencySummary>,
    /// The latency of answers with RESOURCE_EXHAUSTED.
    pub rejection_latency_ms: Option<LatencySummary>,
    /// The means of the timings that the server reported with OK answers.
    pub server_mean_ms: Option<ServerMeans>,
}

impl LoadReport {
    /// The number of answers with this status.
    pub fn count(&self, code: Code) -> u64 {
        self.statuses.get(code_name(code)).copied().unwrap_or(0)
    }
}

/// Means of the timings that the server reported, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ServerMeans {
    /// The time for decoding, resizing and cropping.
    pub decode: f64,
    /// The time that the request waited in queues.
    pub queue: f64,
    /// The time that the neural network took.
    pub inference: f64,
    /// The time from the request's arrival to its answer.
    pub total: f64,
}

/// The time between the warm-up and the end; only requests that are due within it count.
#[derive(Clone, Copy, Debug)]
pub(super) struct MeasurementWindow {
    pub start: Instant,
    pub end: Instant,
}

impl MeasurementWindow {
    fn contains(&self, time: Instant) -> bool {
        (self.start..self.end).contains(&time)
    }
}

/// Records the outcomes of a run.
pub(super) struct LoadRecorder {
    window: MeasurementWindow,
    answered_in_window: u64,
    bytes_in_window: u64,
    statuses: BTreeMap<&'static str, u64>,
    first_error: Option<String>,
    missed: u64,
    gave_up: u64,
    latency: LatencyRecorder,
    latency_with_waits: LatencyRecorder,
    rejection_latency: LatencyRecorder,
    server_sums: ServerMeans,
}

impl LoadRecorder {
    pub fn new(window: MeasurementWindow) -> Self {
        Self {
            window,
            answered_in_window: 0,
            bytes_in_window: 0,
            statuses: BTreeMap::new(),
            first_error: None,
            missed: 0,
            gave_up: 0,
            latency: LatencyRecorder::default(),
            latency_with_waits: LatencyRecorder::default(),
            rejection_latency: LatencyRecorder::default(),
            server_sums: ServerMeans {
                decode: 0.0,
                queue: 0.0,
                inference: 0.0,
                total: 0.0,
            },
        }
    }

    /// Records an OK answer to a request that was first due at `due` and whose accepted attempt
    /// began at `began`.
    pub fn answered(
        &mut self,
        due: Instant,
        began: Instant,
        finished: Instant,
        bytes: usize,
        timing: &Timing,
    ) {
        if self.window.contains(finished) {
            self.answered_in_window += 1;
            self.bytes_in_window += bytes as u64;
        }
        if !self.window.contains(due) {
            return;
        }
        *self.statuses.entry(code_name(Code::Ok)).or_default() += 1;
        self.latency.record(finished - began);
        self.latency_with_waits.record(finished - due);
        self.server_sums.decode += milliseconds(timing.decode.as_ref());
        self.server_sums.queue += milliseconds(timing.queue.as_ref());
        self.server_sums.inference += milliseconds(timing.inference.as_ref());
        self.server_sums.total += milliseconds(timing.total.as_ref());
    }

    /// Records an answer other than OK.
    pub fn refused(&mut self, due: Instant, began: Instant, finished: Instant, status: &Status) {
        if !self.window.contains(due) {
            return;
        }
        *self.statuses.entry(code_name(status.code())).or_default() += 1;
        if status.code() == Code::ResourceExhausted {
            self.rejection_latency.record(finished - began);
        } else if self.first_error.is_none() {
            self.first_error = Some(format!(
                "{}: {}",
                code_name(status.code()),
                status.message()
            ));
        }
    }

    /// Records a request that was not sent because too many others were in flight.
    pub fn missed(&mut self, due: Instant) {
        self.missed += u64::from(self.window.contains(due));
    }

    /// Records a request that is not retried because its timeout is near.
    pub fn gave_up(&mut self, due: Instant) {
        self.gave_up += u64::from(self.window.contains(due));
    }

    /// Ends the measurement now, if it hasn't ended yet.
    pub fn close(&mut self, now: Instant) {
        self.window.end = self.window.end.min(now).max(self.window.start);
    }

    pub fn report(&self, config: &LoadConfig, connections: usize) -> LoadReport {
        let seconds = (self.window.end - self.window.start).as_secs_f64();
        let per_second = |count: u64| {
            if seconds > 0.0 {
                count as f64 / seconds
            } else {
                0.0
            }
        };

        let (mode, concurrency, rate) = match config.mode {
            LoadMode::Closed { clients } => ("closed", clients, None),
            LoadMode::Open {
                rate,
                max_in_flight,
            } => ("open", max_in_flight, Some(rate)),
        };

        let answered = self.latency.count();
        let mean = |sum: f64| (sum / answered as f64 * 1e3).round() / 1e3;
        let with_waits = config.on_rejection == OnRejection::Retry;

        LoadReport {
            mode,
            concurrency,
            rate,
            connections,
            duration_s: seconds,
            goodput: per_second(self.answered_in_window),
            bytes_per_second: per_second(self.bytes_in_window),
            statuses: self.statuses.clone(),
            first_error: self.first_error.clone(),
            missed: self.missed,
            gave_up: self.gave_up,
            latency_ms: self.latency.summary(),
            latency_with_waits_ms: self.latency_with_waits.summary().filter(|_| with_waits),
            rejection_latency_ms: self.rejection_latency.summary(),
            server_mean_ms: (answered > 0).then(|| ServerMeans {
                decode: mean(self.server_sums.decode),
                queue: mean(self.server_sums.queue),
                inference: mean(self.server_sums.inference),
                total: mean(self.server_sums.total),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn recorder() -> (LoadRecorder, Instant) {
        let start = Instant::now();
        (
            LoadRecorder::new(MeasurementWindow {
                start,
                end: start + Duration::from_secs(10),
            }),
            start,
        )
    }

    fn report(recorder: &LoadRecorder, on_rejection: OnRejection) -> LoadReport {
        let config = LoadConfig {
            on_rejection,
            ..LoadConfig::new("localhost:1".parse().unwrap(), vec![])
        };
        recorder.report(&config, 1)
    }

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn quantiles_are_those_of_the_answers() {
        let (mut recorder, start) = recorder();
        for i in 1..=1000 {
            recorder.answered(start, start, start + ms(i), 10, &Timing::default());
        }
        let report = report(&recorder, OnRejection::Wait);
        let latency = report.latency_ms.unwrap();
        assert_eq!((latency.count, latency.max), (1000, 1000.0));
        for (quantile, expected) in [
            (latency.p50, 500.0),
            (latency.p99, 990.0),
            (latency.mean, 500.5),
        ] {
            assert!(
                (quantile - expected).abs() <= expected / 500.0,
                "{quantile} {expected}"
            );
        }
        assert_eq!((report.goodput, report.bytes_per_second), (100.0, 1000.0));
        assert_eq!(report.latency_with_waits_ms, None);
    }

    #[test]
    fn the_warm_up_is_not_counted() {
        let (mut recorder, start) = recorder();
        recorder.answered(
            start - ms(500),
            start - ms(500),
            start - ms(400),
            1,
            &Timing::default(),
        );
        recorder.refused(
            start - ms(500),
            start - ms(500),
            start,
            &Status::resource_exhausted(""),
        );
        recorder.missed(start - ms(1));
        let report = report(&recorder, OnRejection::Wait);
        assert!(
            report.statuses.is_empty()
                && report.latency_ms.is_none()
                && report.server_mean_ms.is_none()
        );
        assert_eq!((report.goodput, report.missed), (0.0, 0));
    }

    #[test]
    fn late_answers_count_for_latency_but_not_for_throughput() {
        let (mut recorder, start) = recorder();
        recorder.answered(
            start + ms(9000),
            start + ms(9000),
            start + ms(12_000),
            1,
            &Timing::default(),
        );
        let report = report(&recorder, OnRejection::Wait);
        assert_eq!((report.count(Code::Ok), report.goodput), (1, 0.0));
        assert_eq!(report.latency_ms.unwrap().max, 3000.0);
    }

    #[test]
    fn waits_are_told_apart_from_the_accepted_attempt() {
        let (mut recorder, start) = recorder();
        recorder.refused(start, start, start + ms(2), &Status::resource_exhausted(""));
        recorder.answered(
            start,
            start + ms(102),
            start + ms(112),
            1,
            &Timing::default(),
        );
        let report = report(&recorder, OnRejection::Retry);
        assert_eq!(report.latency_ms.unwrap().max, 10.0);
        assert_eq!(report.latency_with_waits_ms.unwrap().max, 112.0);
        assert_eq!(report.rejection_latency_ms.unwrap().max, 2.0);
        assert_eq!(
            (
                report.count(Code::ResourceExhausted),
                report.count(Code::Ok)
            ),
            (1, 1)
        );
    }

    #[test]
    fn a_run_that_ends_early_has_the_rate_of_its_own_time() {
        let (mut recorder, start) = recorder();
        recorder.answered(start, start, start + ms(10), 1, &Timing::default());
        recorder.close(start + ms(500));
        let report = report(&recorder, OnRejection::Wait);
        assert_eq!((report.duration_s, report.goodput), (0.5, 2.0));
    }
}
