//! Random numbers that are the same for the same seed, on every machine and in every version.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

/// What random numbers are for; each purpose has a sequence of its own, so that one doesn't change
/// another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Which photos are kept for validation.
    Split = 1,
    /// The layer's first weights.
    Weights = 2,
    /// The order of the photos, and which ones are mirrored.
    Order = 3,
    /// The parts of a cross-validation.
    Folds = 4,
}

/// A sequence of random numbers (ChaCha with 8 rounds).
#[derive(Clone, Debug)]
pub struct Random(ChaCha8Rng);

impl Random {
    /// The sequence that belongs to `seed`.
    pub fn new(seed: u64, purpose: Purpose) -> Self {
        let mut generator = ChaCha8Rng::seed_from_u64(seed);
        generator.set_stream(purpose as u64);
        Self(generator)
    }

    /// A whole number below `limit`, all equally likely.
    pub fn below(&mut self, limit: u32) -> u32 {
        assert!(limit > 0, "there is no number below 0");
        // Products below this would make some numbers more likely than others.
        let unfair = limit.wrapping_neg() % limit;
        loop {
            let product = u64::from(self.0.next_u32()) * u64::from(limit);
            if product as u32 >= unfair {
                return (product >> 32) as u32;
            }
        }
    }

    /// A number from -1 to 1.
    pub fn symmetric(&mut self) -> f32 {
        // 24 bits are what a float32 holds exactly.
        let unit = (self.0.next_u32() >> 8) as f32 / (1 << 24) as f32;
        unit * 2.0 - 1.0
    }

    /// Heads or tails.
    pub fn coin(&mut self) -> bool {
        self.0.next_u32() & 1 == 1
    }

    /// Brings `items` into a random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let limit =
                u32::try_from(last + 1).expect("nobody trains on four thousand million photos");
            items.swap(last, self.below(limit) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_numbers_for_ever() {
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
        (0..30_000).for_each(|_| counts[random.below(3) as usize] += 1);
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
