//! Reproducible random numbers: a seed gives the same sequence on every machine and in every
//! version of this program.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

/// What random numbers are used for. Each purpose has its own sequence, so that a change in how
/// many numbers one of them takes doesn't change the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Choosing the photos for validation.
    Split = 1,
    /// The layer's initial weights.
    Weights = 2,
    /// The order of the photos in an epoch, and which ones are mirrored.
    Order = 3,
    /// Assigning photos to the folds of a cross-validation.
    Folds = 4,
}

/// A sequence of random numbers, from ChaCha with 8 rounds (Bernstein 2008).
#[derive(Clone, Debug)]
pub struct Random(ChaCha8Rng);

impl Random {
    /// The sequence for a seed and a purpose.
    pub fn new(seed: u64, purpose: Purpose) -> Self {
        let mut generator = ChaCha8Rng::seed_from_u64(seed);
        generator.set_stream(purpose as u64);
        Self(generator)
    }

    /// A uniform integer in `0..limit`, by Lemire's method: "Fast Random Integer Generation in an
    /// Interval", ACM TOMACS 29 (2019).
    pub fn below(&mut self, limit: u32) -> u32 {
        assert!(limit > 0, "there is no number below 0");
        // Rejecting products whose low half is below this makes all numbers equally likely.
        let threshold = limit.wrapping_neg() % limit;
        loop {
            let product = u64::from(self.0.next_u32()) * u64::from(limit);
            if product as u32 >= threshold {
                return (product >> 32) as u32;
            }
        }
    }

    /// A uniform number in `-1..1`.
    pub fn symmetric(&mut self) -> f32 {
        // A float32 holds integers of 24 bits exactly.
        let unit = (self.0.next_u32() >> 8) as f32 / (1 << 24) as f32;
        unit * 2.0 - 1.0
    }

    /// True or false, equally likely.
    pub fn coin(&mut self) -> bool {
        self.0.next_u32() & 1 == 1
    }

    /// Shuffles `items` (Fisher and Yates, as Durstenfeld implemented it).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let limit = u32::try_from(last + 1).expect("there are fewer than 2^32 photos");
            items.swap(last, self.below(limit) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_numbers_each_time() {
        let draw = |seed, purpose| {
            let mut random = Random::new(seed, purpose);
            [(); 4].map(|()| random.below(1000))
        };
        assert_eq!(draw(0, Purpose::Order), draw(0, Purpose::Order));
        assert_ne!(draw(0, Purpose::Order), draw(1, Purpose::Order));
        assert_ne!(draw(0, Purpose::Order), draw(0, Purpose::Weights));
    }

    #[test]
    fn numbers_are_spread_evenly() {
        let mut random = Random::new(7, Purpose::Order);
        let mut counts = [0; 3];
        for _ in 0..30_000 {
            counts[random.below(3) as usize] += 1;
        }
        assert!(
            counts.iter().all(|count| (9_700..10_300).contains(count)),
            "{counts:?}"
        );
        let mean = (0..30_000).map(|_| random.symmetric()).sum::<f32>() / 30_000.0;
        assert!(mean.abs() < 0.02, "{mean}");
    }

    #[test]
    fn shuffling_loses_nothing() {
        let mut items: Vec<u32> = (0..100).collect();
        Random::new(1, Purpose::Order).shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
    }
}
