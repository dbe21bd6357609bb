//! The narrow lanes of a model, loaded for measuring.

use std::{
    sync::Barrier,
    time::{Duration, Instant},
};

use super::{super::load_narrow, measure::Workload};
use crate::{
    engine::{Engine, EngineConfig, EngineError, side_by_side::side_by_side},
    model::Model,
};

/// Lanes for each of several cases.
pub(super) struct NarrowLanes<T> {
    lanes: Vec<Vec<Box<dyn Engine>>>,
    /// Each case with the size of its batches and the index of its lanes.
    cases: Vec<(T, usize, usize)>,
    image_len: usize,
    classes: usize,
    /// As many as the largest batch has.
    images: Vec<u8>,
}

impl<T> NarrowLanes<T> {
    pub(super) fn new(model: &Model) -> Self {
        Self {
            lanes: Vec::new(),
            cases: Vec::new(),
            image_len: model.geometry.bytes(),
            classes: model.graph.classes,
            images: Vec::new(),
        }
    }

    /// Loads lanes that serve these cases, each with its size of batches.
    ///
    /// # Errors
    /// As for [`load_narrow`].
    pub(super) fn add(
        &mut self,
        config: &EngineConfig,
        model: &Model,
        cases: impl IntoIterator<Item = (T, usize)>,
    ) -> Result<(), EngineError> {
        let index = self.lanes.len();
        self.lanes.push(load_narrow(config, model)?);
        for (case, batch) in cases {
            let len = self.images.len().max(batch * self.image_len);
            self.images.resize(len, 128);
            self.cases.push((case, batch, index));
        }
        Ok(())
    }
}

impl<T: Copy + PartialEq> NarrowLanes<T> {
    fn find(&self, case: T) -> (usize, usize) {
        let found = self.cases.iter().find(|(other, ..)| *other == case);
        let (_, batch, index) = found.expect("only cases that were added are measured");
        (*batch, *index)
    }
}

impl<T: Copy + PartialEq> Workload<T> for NarrowLanes<T> {
    fn lanes(&self) -> usize {
        self.lanes[0].len()
    }

    fn batch(&self, case: T) -> usize {
        self.find(case).0
    }

    fn time(&mut self, case: T, images: usize) -> Result<Duration, EngineError> {
        let (batch, index) = self.find(case);
        let lanes = &mut self.lanes[index];
        let pixels = &self.images[..batch * self.image_len];
        let classes = self.classes;
        let count = lanes.len();
        let begin = Barrier::new(count);
        let times = side_by_side(lanes, |lane| {
            let mut logits = vec![0.0; batch * classes];
            begin.wait();
            let started = Instant::now();
            for _ in 0..images / batch {
                lane.infer(pixels, batch, &mut logits)?;
            }
            Ok(started.elapsed())
        })?;
        Ok(times.iter().sum::<Duration>() / count as u32)
    }
}
