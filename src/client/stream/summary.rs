//! The summary of a stream: frames by outcome, latencies, and the labels that were on top.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use serde::Serialize;
use tokio::time::Instant;

use super::{FrameAnswer, FrameOutcome};
use crate::client::{LatencySummary, latency::LatencyRecorder};

/// How many labels the summary lists.
const TOP_LABELS: usize = 5;

/// The longest time between two frames that counts for a label; a longer gap, such as a lost
/// connection, counts as this.
const LONGEST_GAP: Duration = Duration::from_secs(2);

/// Frame counts and latencies of a stream.
///
/// `sent = answered + failed + dropped_by_server + unanswered`.
#[derive(Clone, Debug, Serialize)]
pub struct StreamSummary {
    /// Frames that were sent to the server.
    pub sent: u64,
    /// Frames that were classified.
    pub answered: u64,
    /// Frames that the server could not classify.
    pub failed: u64,
    /// Frames that the server replaced by newer ones.
    pub dropped_by_server: u64,
    /// Frames that were replaced by newer ones before they could be sent.
    pub dropped_by_client: u64,
    /// Frames that had no answer when the stream or its connection ended.
    pub unanswered: u64,
    /// How often the camera or URL was lost and opened again.
    pub source_reconnects: u64,
    /// From the start to the last answer, in seconds.
    pub duration_s: f64,
    /// Answers per second, on average over `duration_s`.
    pub mean_fps: f64,
    /// The time from reading a frame to its answer, in milliseconds; `None` without answers.
    pub latency_ms: Option<LatencySummary>,
    /// The five labels that were the most probable one for the largest shares of the time, the
    /// largest first.
    pub labels: Vec<LabelShare>,
}

/// The share of the time for which a label was the most probable one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LabelShare {
    /// The class's name.
    pub label: String,
    /// The share of the video's time, 0 to 1.
    pub share: f64,
}

/// Accumulates the summary while the stream runs.
pub(super) struct Tally {
    begin: Instant,
    last_answer: Instant,
    answered: u64,
    failed: u64,
    latencies: LatencyRecorder,
    seconds_on_top: HashMap<String, f64>,
    /// The most probable label of the last frame, and when that frame was captured.
    on_top: Option<(String, SystemTime)>,
}

impl Tally {
    pub fn new() -> Self {
        let now = Instant::now();
        Self {
            begin: now,
            last_answer: now,
            answered: 0,
            failed: 0,
            latencies: LatencyRecorder::default(),
            seconds_on_top: HashMap::new(),
            on_top: None,
        }
    }

    pub fn add(&mut self, answer: &FrameAnswer) {
        self.last_answer = Instant::now();
        if let Some(latency) = answer.latency {
            self.latencies.record(latency);
        }

        let classes = match &answer.outcome {
            FrameOutcome::Classes(classes) => classes,
            FrameOutcome::Failed { .. } => {
                self.failed += 1;
                return;
            }
        };
        self.answered += 1;

        let (Some(class), Some(captured_at)) = (classes.first(), answer.captured_at) else {
            return;
        };
        if let Some((label, since)) = self.on_top.take() {
            self.credit(label, captured_at.duration_since(since).unwrap_or_default());
        }
        self.on_top = Some((class.label.clone(), captured_at));
    }

    fn credit(&mut self, label: String, time: Duration) {
        *self.seconds_on_top.entry(label).or_default() += time.min(LONGEST_GAP).as_secs_f64();
    }

    pub fn summary(
        &self,
        sent: u64,
        dropped_by_server: u64,
        dropped_by_client: u64,
    ) -> StreamSummary {
        let duration_s = (self.last_answer - self.begin).as_secs_f64();
        let answers = self.answered + self.failed;
        StreamSummary {
            sent,
            answered: self.answered,
            failed: self.failed,
            dropped_by_server,
            dropped_by_client,
            unanswered: sent.saturating_sub(answers + dropped_by_server),
            source_reconnects: 0,
            duration_s,
            mean_fps: if duration_s > 0.0 {
                answers as f64 / duration_s
            } else {
                0.0
            },
            latency_ms: self.latencies.summary(),
            labels: self.labels(),
        }
    }

    /// The shares of the labels. How long the last frame was shown is unknown; it counts as the
    /// mean of the others.
    fn labels(&self) -> Vec<LabelShare> {
        let mut seconds = self.seconds_on_top.clone();
        if let Some((label, _)) = &self.on_top {
            let known: f64 = seconds.values().sum();
            let last = if known > 0.0 {
                known / (self.answered - 1) as f64
            } else {
                1.0
            };
            *seconds.entry(label.clone()).or_default() += last;
        }

        let total: f64 = seconds.values().sum();
        let share = |(label, seconds): (String, f64)| LabelShare {
            label,
            share: seconds / total,
        };
        let mut labels: Vec<_> = seconds.into_iter().map(share).collect();
        labels.sort_by(|a, b| {
            b.share
                .total_cmp(&a.share)
                .then_with(|| a.label.cmp(&b.label))
        });
        labels.truncate(TOP_LABELS);
        labels
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::Classification;

    fn answer(label: &str, second: f64) -> FrameAnswer {
        FrameAnswer {
            frame_id: 0,
            outcome: FrameOutcome::Classes(vec![Classification {
                class_id: 0,
                label: label.into(),
                probability: 0.9,
            }]),
            latency: Some(Duration::from_millis(20)),
            captured_at: Some(SystemTime::UNIX_EPOCH + Duration::from_secs_f64(second)),
            fps: 0.0,
            timing: None,
            dropped_by_server: 0,
            dropped_by_client: 0,
        }
    }

    fn shares(answers: &[(&str, f64)]) -> Vec<(String, f64)> {
        let mut tally = Tally::new();
        for (label, second) in answers {
            tally.add(&answer(label, *second));
        }
        let round = |l: LabelShare| (l.label, (l.share * 1000.0).round() / 1000.0);
        tally.labels().into_iter().map(round).collect()
    }

    #[test]
    fn labels_are_weighted_by_time_not_by_frames() {
        // Three frames of the cat take 0.3 s, the one of the dog 1.2 s, and the last one the mean
        // of 0.5 s.
        let shares = shares(&[("cat", 0.0), ("cat", 0.1), ("dog", 0.3), ("cat", 1.5)]);
        assert_eq!(shares, [("dog".into(), 0.6), ("cat".into(), 0.4)]);
    }

    #[test]
    fn a_single_frame_has_all_the_time_and_gaps_count_little() {
        assert_eq!(shares(&[("cat", 5.0)]), [("cat".into(), 1.0)]);
        assert_eq!(
            shares(&[("cat", 0.0), ("dog", 100.0)]),
            [("cat".into(), 0.5), ("dog".into(), 0.5)]
        );
        assert!(shares(&[]).is_empty());
    }

    #[test]
    fn every_frame_is_accounted_for() {
        let mut tally = Tally::new();
        tally.add(&answer("cat", 0.0));
        tally.add(&FrameAnswer {
            outcome: FrameOutcome::Failed {
                code: tonic::Code::InvalidArgument,
                message: "bad stride".into(),
            },
            ..answer("", 0.1)
        });
        let summary = tally.summary(10, 5, 3);
        assert_eq!(
            (summary.answered, summary.failed, summary.unanswered),
            (1, 1, 3)
        );
        assert_eq!(summary.latency_ms.unwrap().count, 2);
    }
}
