//! Inference engines: one trait, its implementations, and the choice between them.

mod config;
#[cfg(test)]
mod conformance;
pub mod embedded;
#[cfg(test)]
mod embeddings;
mod error;
mod exit;
mod findings;
mod library_search;
pub mod memory;
#[cfg(test)]
mod old_opsets;
mod onnxruntime;
mod openvino;
mod processor;
mod reference;
mod self_check;
mod side_by_side;
mod start;
pub mod tensorrt;
mod warm_up;

pub use self::{
    config::{EngineConfig, EngineKind, Precision},
    error::EngineError,
    exit::exit_at_once,
    findings::Findings,
    onnxruntime::OnnxRuntimeConfig,
    openvino::{OpenVinoConfig, Tuning},
    start::{identity, start, try_out},
};

use self::tensorrt::PlanOutcome;

/// Runs one network on batches of images.
///
/// An engine is owned by one OS thread at a time; it is never called from async code.
pub trait Engine: Send {
    /// Computes the logits of `n` images.
    ///
    /// `images` is `uint8 [n, height, width, 3]` (RGB) and `logits` is `float32 [n, classes]`; both
    /// slices have exactly that size. `n` is from 1 to [`EngineInfo::max_batch`], and equal to it
    /// for a network with a fixed batch.
    ///
    /// # Errors
    /// [`EngineError::Inference`] if this call failed, [`EngineError::Lost`] if all later calls
    /// will fail as well. In both cases the logits are meaningless.
    fn infer(&mut self, images: &[u8], n: usize, logits: &mut [f32]) -> Result<(), EngineError>;

    /// Computes the logits of images that lie apart from each other in memory.
    ///
    /// An engine that copies images to memory of its own does that here, so that they are copied
    /// once. Others need them one after another: they are put `together` first, in a buffer that is
    /// only lent to be used again.
    ///
    /// # Errors
    /// As for [`Self::infer`].
    fn infer_apart(
        &mut self,
        images: &[Vec<u8>],
        together: &mut Vec<u8>,
        logits: &mut [f32],
    ) -> Result<(), EngineError> {
        if let [image] = images {
            return self.infer(image, 1, logits);
        }
        together.clear();
        for image in images {
            together.extend_from_slice(image);
        }
        self.infer(together, images.len(), logits)
    }

    /// Computes the same logits, and the embeddings, `float32 [n, features]`: what the last layer
    /// reads. Only called where [`EngineInfo::embedding`] says that there are some.
    ///
    /// # Errors
    /// As for [`Self::infer`].
    fn infer_with_embeddings(
        &mut self,
        images: &[u8],
        n: usize,
        results: Results<'_>,
    ) -> Result<(), EngineError> {
        let _ = (images, n, results);
        unreachable!("this engine does not say that it gives embeddings")
    }
}

/// Where an engine writes what it computes.
pub struct Results<'a> {
    /// `float32 [n, classes]`.
    pub logits: &'a mut [f32],
    /// `float32 [n, features]`.
    pub embeddings: &'a mut [f32],
}

/// Identity and limits of a loaded engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineInfo {
    pub kind: EngineKind,
    /// Version of the library that implements the engine.
    pub version: String,
    /// Arithmetic of the network's body.
    pub precision: Precision,
    /// Name of the processor or the GPUs.
    pub device: String,
    /// Largest batch of one call.
    pub max_batch: usize,
    /// The model file fixes the batch size: every call must bring `max_batch` images.
    pub fixed_batch: bool,
    /// The batch sizes that the engine computes, in ascending order; it pads others to the next
    /// one. Empty if it computes each size as it is.
    pub batch_sizes: Vec<usize>,
    /// The engine computes on its own device, so the CPU's cores are free to decode meanwhile.
    pub offloaded: bool,
    /// How many values an embedding of the network has; `None` where this engine gives none.
    pub embedding: Option<usize>,
    /// Reasons to doubt the answers, such as that they differ from another engine's.
    pub warnings: Vec<String>,
}

impl EngineInfo {
    /// The batch sizes to run before the engine serves, so that nothing is left to be compiled.
    fn sizes_to_warm_up(&self) -> Vec<usize> {
        if self.fixed_batch {
            vec![self.max_batch]
        } else if self.batch_sizes.is_empty() {
            (1..=self.max_batch).collect()
        } else {
            self.batch_sizes.clone()
        }
    }

    /// The batch sizes whose answers are compared with the reference's: every one that has kernels
    /// of its own, or the smallest and the largest one.
    fn sizes_to_check(&self) -> Vec<usize> {
        match (self.fixed_batch, &self.batch_sizes[..], self.max_batch) {
            (true, _, n) | (false, [], n @ 1) => vec![n],
            (false, [], max) => vec![1, max],
            (false, sizes, _) => sizes.to_vec(),
        }
    }
}

/// One network, loaded as many times as it can run at once.
///
/// A CPU gives the shortest latency when all cores work on one batch, and the highest throughput
/// when each core works on its own batch. Both are kept ready, so that the scheduler can choose
/// from moment to moment.
pub struct Lanes {
    /// Applies to every lane.
    pub info: EngineInfo,
    /// Uses every core for one batch; nothing else should run beside it. `None` on a single core
    /// and for an offloaded engine.
    pub wide: Option<Box<dyn Engine>>,
    /// Lanes that run side by side, at least one: each uses one core, or is one execution context
    /// on the device of an offloaded engine.
    pub narrow: Vec<Box<dyn Engine>>,
    /// What the plan cache held for this network; empty for engines that need no plans.
    pub plans: Vec<PlanOutcome>,
}

/// The batch sizes that lanes on a GPU compute: 1, 2, 4 and so on, and the largest one. Other batches
/// are padded to the next of them, because each size costs kernels of its own.
fn batch_sizes(max_batch: usize, fixed_batch: bool) -> Vec<usize> {
    if fixed_batch {
        return vec![max_batch];
    }
    std::iter::successors(Some(1), |n| Some(n * 2))
        .take_while(|n| *n < max_batch)
        .chain([max_batch])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keeps where the images of its calls were, and what they were.
    #[derive(Default)]
    struct Observer(Vec<(usize, Vec<u8>, usize)>);

    impl Engine for Observer {
        fn infer(&mut self, images: &[u8], n: usize, _: &mut [f32]) -> Result<(), EngineError> {
            self.0.push((images.as_ptr().addr(), images.to_vec(), n));
            Ok(())
        }
    }

    #[test]
    fn images_that_lie_apart_are_put_together_and_a_single_one_is_not_copied() {
        let mut engine = Observer::default();
        let images = [vec![1, 2], vec![3, 4], vec![5, 6]];
        let mut together = vec![9; 9];
        let mut infer = |images: &[Vec<u8>]| {
            engine
                .infer_apart(images, &mut together, &mut [0.0])
                .unwrap();
        };
        infer(&images);
        infer(&images[1..2]);
        let [(_, first, 3), (address, second, 1)] = &engine.0[..] else {
            panic!("{:?}", engine.0)
        };
        assert_eq!(first, &[1, 2, 3, 4, 5, 6]);
        assert_eq!(
            (*address, &second[..]),
            (images[1].as_ptr().addr(), &[3, 4][..])
        );
    }
}
