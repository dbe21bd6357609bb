//! What a model has done so far, as sums that can be read back; Prometheus has the same as
//! histograms.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard},
    time::{Duration, SystemTime},
};

use crate::scheduler::Stages;

/// The sums of one model, over all its versions.
#[derive(Debug, Default)]
pub struct Statistics {
    /// By the number of images in the call.
    calls: Mutex<BTreeMap<usize, Spent>>,
    /// Requests of the Open Inference Protocol for files of images.
    pub encoded: RequestStatistics,
    /// Requests of the Open Inference Protocol for tensors.
    pub tensor: RequestStatistics,
}

/// How often something happened and how long it took in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// How often.
    pub count: u64,
    /// How long, all together.
    pub time: Duration,
}

/// What became of requests of one kind.
#[derive(Debug, Default)]
pub struct RequestStatistics(Mutex<Requests>);

/// The sums of [`RequestStatistics`] at one moment. Of a request with several images a stage takes
/// as long as for the slowest of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Requests {
    /// Those that were answered, from arrival to answer.
    pub success: Spent,
    /// Those that were not.
    pub fail: Spent,
    /// Waiting.
    pub queue: Spent,
    /// Decoding.
    pub decode: Spent,
    /// The engine's calls.
    pub inference: Spent,
    /// Making the answers.
    pub output: Spent,
    /// Images that were classified.
    pub images: u64,
    /// When the last request was answered.
    pub last: Option<SystemTime>,
}

impl Spent {
    fn add(&mut self, time: Duration) {
        self.count += 1;
        self.time += time;
    }
}

impl Statistics {
    /// The engine was called with so many images.
    pub fn called(&self, images: usize, took: Duration) {
        self.lock().entry(images).or_default().add(took);
    }

    /// The engine's calls by the number of images in them.
    pub fn calls(&self) -> BTreeMap<usize, Spent> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<usize, Spent>> {
        self.calls
            .lock()
            .expect("nothing panics while it holds the sums")
    }
}

impl RequestStatistics {
    /// A request was answered `took` after it came; its images went through `stages`, its answer
    /// was made in `output`.
    pub fn succeeded(&self, took: Duration, stages: &[Stages], output: Duration) {
        let slowest = |of: fn(&Stages) -> Duration| stages.iter().map(of).max().unwrap_or_default();
        let mut sums = self.lock();
        sums.success.add(took);
        sums.queue.add(slowest(|stages| stages.queue));
        sums.decode.add(slowest(|stages| stages.decode));
        sums.inference.add(slowest(|stages| stages.inference));
        sums.output.add(output);
        sums.images += stages.len() as u64;
        sums.last = Some(SystemTime::now());
    }

    /// A request failed `took` after it came.
    pub fn failed(&self, took: Duration) {
        self.lock().fail.add(took);
    }

    /// The sums now.
    pub fn read(&self) -> Requests {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, Requests> {
        self.0
            .lock()
            .expect("nothing panics while it holds the sums")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_of_several_images_counts_once_by_its_slowest() {
        let ms = Duration::from_millis;
        let statistics = RequestStatistics::default();
        let stages = |queue, inference| Stages {
            decode: ms(1),
            queue: ms(queue),
            inference: ms(inference),
        };
        statistics.succeeded(ms(30), &[stages(5, 9), stages(14, 9)], ms(0));
        statistics.succeeded(ms(10), &[stages(1, 8)], ms(0));
        statistics.failed(ms(2));
        let sums = statistics.read();
        assert_eq!(
            (sums.success, sums.fail),
            (
                Spent {
                    count: 2,
                    time: ms(40)
                },
                Spent {
                    count: 1,
                    time: ms(2)
                }
            )
        );
        assert_eq!(
            (sums.queue.time, sums.inference.time, sums.images),
            (ms(15), ms(17), 3)
        );
        assert!(sums.last.is_some());
    }
}
