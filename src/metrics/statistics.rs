//! Sums per model that the server can read back, for the statistics of the Open Inference Protocol.
//! Prometheus gets the same measurements as histograms, which can't be read back.

use std::{
    collections::BTreeMap,
    sync::Mutex,
    time::{Duration, SystemTime},
};

use crate::sync::lock;

/// What kind of request brought an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// One of this server's own contract, which the protocol's statistics leave out.
    Contract,
    /// One of the Open Inference Protocol, with encoded images.
    Encoded,
    /// One of the Open Inference Protocol, with tensors.
    Tensor,
}

/// The sums of one model, over all its versions.
#[derive(Debug, Default)]
pub struct Statistics {
    /// Requests of the Open Inference Protocol with encoded images.
    pub encoded: RequestStatistics,
    /// Requests of the Open Inference Protocol with tensors.
    pub tensor: RequestStatistics,
}

/// The time that an image spent in each stage.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stages {
    /// Decoding, resizing and cropping.
    pub decode: Duration,
    /// Waiting before decoding and between decoding and inference.
    pub queue: Duration,
    /// The engine's call, which the whole batch shares.
    pub inference: Duration,
}

/// How often something happened, and how long it took in total.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CountAndTime {
    pub count: u64,
    pub time: Duration,
}

/// The sums of one kind of request.
#[derive(Debug, Default)]
pub struct RequestStatistics {
    sums: Mutex<RequestSums>,
    /// The engine's calls with images of such requests, by how many of these there were in the call.
    calls: Mutex<BTreeMap<usize, CountAndTime>>,
}

/// The sums of [`RequestStatistics`] at one moment. For a request with several images, each stage
/// counts the slowest image.
#[derive(Clone, Copy, Debug, Default)]
pub struct RequestSums {
    /// Answered requests, from arrival to answer.
    pub success: CountAndTime,
    /// Failed requests.
    pub fail: CountAndTime,
    pub queue: CountAndTime,
    pub decode: CountAndTime,
    pub inference: CountAndTime,
    /// Composing the answers.
    pub output: CountAndTime,
    /// Classified images.
    pub images: u64,
    /// When the last request succeeded.
    pub last: Option<SystemTime>,
}

impl CountAndTime {
    fn add(&mut self, time: Duration) {
        self.count += 1;
        self.time += time;
    }
}

impl Statistics {
    /// Records a call of the engine that succeeded, with an image for each of `kinds`. It counts
    /// once for each kind among them.
    pub fn called(&self, kinds: impl Iterator<Item = RequestKind>, took: Duration) {
        let (mut encoded, mut tensor) = (0, 0);
        for kind in kinds {
            match kind {
                RequestKind::Contract => {}
                RequestKind::Encoded => encoded += 1,
                RequestKind::Tensor => tensor += 1,
            }
        }
        self.encoded.called(encoded, took);
        self.tensor.called(tensor, took);
    }
}

impl RequestStatistics {
    fn called(&self, images: usize, took: Duration) {
        if images > 0 {
            lock(&self.calls).entry(images).or_default().add(took);
        }
    }

    /// The engine's calls with images of such requests, by how many of these there were in the call.
    pub fn calls(&self) -> BTreeMap<usize, CountAndTime> {
        lock(&self.calls).clone()
    }

    /// Records a request that was answered `took` after its arrival. `stages` has an entry for each
    /// of its images; composing the answer took `output`.
    pub fn succeeded(&self, took: Duration, stages: &[Stages], output: Duration) {
        let slowest =
            |stage: fn(&Stages) -> Duration| stages.iter().map(stage).max().unwrap_or_default();

        let mut sums = lock(&self.sums);
        sums.success.add(took);
        sums.queue.add(slowest(|stages| stages.queue));
        sums.decode.add(slowest(|stages| stages.decode));
        sums.inference.add(slowest(|stages| stages.inference));
        sums.output.add(output);
        sums.images += stages.len() as u64;
        sums.last = Some(SystemTime::now());
    }

    /// Records a request that failed `took` after its arrival.
    pub fn failed(&self, took: Duration) {
        lock(&self.sums).fail.add(took);
    }

    /// Reads the current sums.
    pub fn read(&self) -> RequestSums {
        *lock(&self.sums)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_with_several_images_counts_once_by_the_slowest() {
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
                CountAndTime {
                    count: 2,
                    time: ms(40)
                },
                CountAndTime {
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

    #[test]
    fn a_call_of_the_engine_counts_once_for_each_kind_of_request_in_it() {
        use RequestKind::{Contract, Encoded, Tensor};

        let statistics = Statistics::default();
        let took = Duration::from_millis(5);
        statistics.called([Contract, Contract].into_iter(), took);
        statistics.called([Encoded, Contract, Encoded, Tensor].into_iter(), took);
        statistics.called([Tensor].into_iter(), took);
        let counts = |of: &RequestStatistics| -> Vec<(usize, u64)> {
            let calls = of.calls().into_iter();
            calls.map(|(images, calls)| (images, calls.count)).collect()
        };
        assert_eq!(counts(&statistics.encoded), [(2, 1)]);
        assert_eq!(counts(&statistics.tensor), [(1, 2)]);
    }
}
