//! Calibration: collects statistics of the float network's activations while it runs on photos.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use super::{
    photos::Photo,
    ranges::{Estimator, Histogram},
};
use crate::{
    engine::{
        EngineError,
        embedded::{Probe, one_thread},
    },
    model::{ActivationRange, Layer, ServingGraph},
};

/// The statistics of a tensor of activations over all photos.
#[derive(Clone, Debug, Default)]
struct TensorStatistics {
    values: Histogram,
    /// Sum of the values of each channel.
    channel_sums: Vec<f64>,
    /// Number of values in each of these sums.
    values_per_channel: usize,
}

/// The statistics of a network's tensors.
pub(super) struct Calibration {
    tensors: HashMap<String, TensorStatistics>,
}

impl Calibration {
    /// Runs the network on the photos with the embedded engine, on `threads` threads.
    pub(super) fn run(
        graph: &ServingGraph,
        photos: &[Photo],
        threads: usize,
        progress: &(dyn Fn(usize) + Sync),
    ) -> Result<Self, EngineError> {
        let inputs: HashMap<String, Layer> = graph
            .layers()
            .into_iter()
            .map(|layer| (layer.input.clone(), layer))
            .collect();
        let ranged = graph.ranged_tensors();
        let mut names: Vec<String> = ranged
            .iter()
            .chain(inputs.keys())
            .cloned()
            .collect::<HashSet<_>>()
            .into_iter()
            .collect();
        names.sort();
        let ranged: HashSet<String> = ranged.into_iter().collect();

        let probe = Probe::load(graph, &names)?;
        let parts = on_threads(
            photos,
            threads,
            progress,
            |statistics: &mut Vec<TensorStatistics>, _, photo, pool| {
                statistics.resize_with(names.len(), TensorStatistics::default);
                let tensors = probe.run(&photo.crop, pool)?;
                for ((name, statistics), tensor) in names
                    .iter()
                    .zip(statistics)
                    .zip(tensors.into_iter().skip(1))
                {
                    if ranged.contains(name) {
                        statistics.values.add(&tensor.values);
                    }
                    if let Some(layer) = inputs.get(name) {
                        statistics.add_channels(
                            &tensor.shape,
                            &tensor.values,
                            layer.channels_second,
                        );
                    }
                }
                Ok(())
            },
        )?;

        let mut parts = parts.into_iter().filter(|part| !part.is_empty());
        let mut all = parts.next().unwrap_or_default();
        for part in parts {
            for (all, part) in all.iter_mut().zip(part) {
                all.merge(&part);
            }
        }
        Ok(Self {
            tensors: names.into_iter().zip(all).collect(),
        })
    }

    /// The estimated range of every tensor that is to be quantized.
    pub(super) fn ranges(&self, estimator: Estimator) -> HashMap<String, ActivationRange> {
        self.tensors
            .iter()
            .map(|(name, statistics)| (name.clone(), statistics.values.range(estimator)))
            .collect()
    }

    /// The mean of each channel of the layers' inputs.
    pub(super) fn means(&self) -> HashMap<String, Vec<f32>> {
        let mean = |statistics: &TensorStatistics| {
            let count = statistics.values_per_channel.max(1) as f64;
            statistics
                .channel_sums
                .iter()
                .map(|sum| (sum / count) as f32)
                .collect()
        };
        self.tensors
            .iter()
            .map(|(name, statistics)| (name.clone(), mean(statistics)))
            .collect()
    }
}

impl TensorStatistics {
    fn add_channels(&mut self, shape: &[usize], values: &[f32], channels_second: bool) {
        let axis = if channels_second {
            1
        } else {
            shape.len().saturating_sub(1)
        };
        let Some(&channels) = shape.get(axis).filter(|&&channels| channels > 0) else {
            return;
        };
        let inner: usize = shape[axis + 1..].iter().product();
        self.channel_sums.resize(channels, 0.0);
        for (index, values) in values.chunks(inner.max(1)).enumerate() {
            self.channel_sums[index % channels] += f64::from(values.iter().sum::<f32>());
        }
        self.values_per_channel += values.len() / channels;
    }

    fn merge(&mut self, other: &Self) {
        self.values.merge(&other.values);
        let channels = self.channel_sums.len().max(other.channel_sums.len());
        self.channel_sums.resize(channels, 0.0);
        for (sum, other) in self.channel_sums.iter_mut().zip(&other.channel_sums) {
            *sum += other;
        }
        self.values_per_channel += other.values_per_channel;
    }
}

/// Calls `work` for each item on one of `threads` threads, with that thread's state, the item's
/// index and a pool for [`Probe`]. Returns the states of all threads.
pub(super) fn on_threads<T: Sync, S: Default + Send>(
    items: &[T],
    threads: usize,
    progress: &(dyn Fn(usize) + Sync),
    work: impl Fn(&mut S, usize, &T, &Arc<rten::ThreadPool>) -> Result<(), EngineError> + Sync,
) -> Result<Vec<S>, EngineError> {
    let next = AtomicUsize::new(0);
    let done = AtomicUsize::new(0);
    let worker = || {
        let mut state = S::default();
        let pool = one_thread();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(index) else {
                return Ok(state);
            };
            if let Err(error) = work(&mut state, index, item, &pool) {
                // Make the other threads stop as well.
                next.store(items.len(), Ordering::Relaxed);
                return Err(error);
            }
            progress(done.fetch_add(1, Ordering::Relaxed) + 1);
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.clamp(1, items.len().max(1)))
            .map(|_| scope.spawn(worker))
            .collect();
        workers
            .into_iter()
            .map(|worker| {
                worker
                    .join()
                    .expect("the workers report errors instead of panicking")
            })
            .collect()
    })
}
