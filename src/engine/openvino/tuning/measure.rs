//! Measures how many images a second each of several cases gives, in turn, within limits of time.

use std::time::Duration;

use super::choice::Measured;
use crate::engine::EngineError;

/// The most that measuring may take, compiling included.
pub(super) const LIMIT: Duration = Duration::from_secs(3);

/// The time that all rounds together should take.
const USUAL: Duration = Duration::from_millis(500);

/// What one batch size computes in a round should take this long: a shorter time says little.
const SLICE: Duration = Duration::from_millis(30);

/// The fewest rounds that say anything.
const LEAST_ROUNDS: u32 = 3;

/// The most rounds that are worth their time.
const MOST_ROUNDS: u32 = 8;

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub(super) enum MeasureError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("it would take longer than {LIMIT:?}")]
    TooSlow,
}

/// All narrow lanes at once, as they compute when many images wait.
pub(super) trait Workload<T> {
    /// How many lanes there are.
    fn lanes(&self) -> usize;

    /// How many images each call of the engine gets.
    fn batch(&self, case: T) -> usize;

    /// How long the lanes take, on average, to compute `images` each.
    ///
    /// # Errors
    /// Those of the engine.
    fn time(&mut self, case: T, images: usize) -> Result<Duration, EngineError>;
}

/// Measures these cases, whose batches divide the largest of them. `spent` is what the preparations
/// took.
///
/// # Errors
/// Those of the engine, or that it takes too long.
pub(super) fn measure<T: Copy>(
    workload: &mut impl Workload<T>,
    cases: &[T],
    spent: Duration,
) -> Result<Vec<Measured<T>>, MeasureError> {
    let batches: Vec<usize> = cases.iter().map(|&case| workload.batch(case)).collect();
    let largest = batches.iter().copied().max().unwrap_or(1);
    let mut clock = Clock { workload, spent };

    // The first calls of each case pay for what is initialized when it is needed, and the second
    // ones say how long a round would take.
    let mut round = Duration::ZERO;
    for (&case, &batch) in cases.iter().zip(&batches) {
        clock.time(case, batch)?;
        round += clock.time(case, batch)? * (largest / batch) as u32;
        clock.expect(round * LEAST_ROUNDS)?;
    }
    let wanted = SLICE * cases.len() as u32;
    let factor = wanted.as_nanos().div_ceil(round.as_nanos().max(1));
    let images = largest * factor.clamp(1, 1000) as usize;

    let mut measured: Vec<Measured<T>> = cases
        .iter()
        .map(|&case| Measured {
            case,
            rounds: Vec::new(),
        })
        .collect();
    let lanes = clock.workload.lanes();
    let prepared = clock.spent;
    for round in 0..MOST_ROUNDS {
        if round >= LEAST_ROUNDS && clock.spent - prepared >= USUAL {
            break;
        }
        for found in &mut measured {
            let time = clock.time(found.case, images)?.as_secs_f64();
            found.rounds.push((lanes * images) as f64 / time);
        }
    }
    Ok(measured)
}

/// A workload whose times are added up, so that they stay within [`LIMIT`].
struct Clock<'a, W> {
    workload: &'a mut W,
    spent: Duration,
}

impl<W> Clock<'_, W> {
    fn time<T>(&mut self, case: T, images: usize) -> Result<Duration, MeasureError>
    where
        W: Workload<T>,
    {
        let time = self.workload.time(case, images)?;
        self.spent += time;
        self.expect(Duration::ZERO)?;
        Ok(time)
    }

    /// Gives up if there is no time for what will take this long.
    fn expect(&self, time: Duration) -> Result<(), MeasureError> {
        if self.spent + time > LIMIT {
            return Err(MeasureError::TooSlow);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::EngineKind;

    /// Takes this many microseconds for an image in a batch of 1, 2 and 4.
    struct Scripted {
        micros: [u64; 3],
        /// The batch sizes and numbers of images that were asked for.
        calls: Vec<(usize, usize)>,
        /// From this call on it fails.
        fails_at: usize,
    }

    impl Workload<usize> for Scripted {
        fn lanes(&self) -> usize {
            2
        }

        fn batch(&self, case: usize) -> usize {
            case
        }

        fn time(&mut self, batch: usize, images: usize) -> Result<Duration, EngineError> {
            self.calls.push((batch, images));
            if self.calls.len() > self.fails_at {
                return Err(EngineKind::OpenVino.failed("as told"));
            }
            let micros = self.micros[batch.ilog2() as usize] * images as u64;
            Ok(Duration::from_micros(micros))
        }
    }

    fn scripted(micros: [u64; 3]) -> Scripted {
        Scripted {
            micros,
            calls: Vec::new(),
            fails_at: usize::MAX,
        }
    }

    #[test]
    fn sizes_are_measured_in_turn_with_equal_work() {
        let mut workload = scripted([10_000, 8_000, 12_500]);
        let measured = measure(&mut workload, &[1, 2, 4], Duration::ZERO).unwrap();
        let rates: Vec<(usize, f64)> = measured
            .iter()
            .map(|found| (found.case, found.best().round()))
            .collect();
        assert_eq!(rates, [(1, 200.0), (2, 250.0), (4, 160.0)]);

        let rounds: Vec<(usize, usize)> = workload.calls.split_off(6);
        for round in rounds.chunks(3) {
            assert_eq!(round, [(1, 4), (2, 4), (4, 4)]);
        }
        // 122 ms a round: half a second after five.
        assert_eq!(rounds.len(), 15);
    }

    #[test]
    fn a_fast_network_computes_more_images_in_each_round() {
        let mut workload = scripted([100, 100, 100]);
        let measured = measure(&mut workload, &[1, 2, 4], Duration::ZERO).unwrap();
        assert_eq!(workload.calls.last(), Some(&(4, 300)));
        assert_eq!(measured[0].rounds.len(), 6);
        // One that takes no time at all is bounded as well.
        let measured = measure(&mut scripted([0; 3]), &[1, 2, 4], Duration::ZERO).unwrap();
        assert_eq!(measured[0].rounds.len(), MOST_ROUNDS as usize);
    }

    #[test]
    fn what_takes_too_long_is_given_up() {
        let gives_up = |micros, spent| {
            let mut workload = scripted(micros);
            let measured = measure(&mut workload, &[1, 2, 4], spent);
            let too_slow = matches!(measured, Err(MeasureError::TooSlow));
            too_slow.then_some(workload.calls.len())
        };
        assert_eq!(gives_up([10_000; 3], Duration::ZERO), None);
        // After the calls that say so, and not at the end of the time.
        assert_eq!(gives_up([150_000; 3], Duration::ZERO), Some(4));
        assert_eq!(gives_up([10_000; 3], LIMIT), Some(1));
        // One size that is far slower than the others.
        assert_eq!(gives_up([10_000, 10_000, 300_000], Duration::ZERO), Some(6));
    }

    #[test]
    fn an_error_of_the_engine_ends_it() {
        for fails_at in [0, 3, 8] {
            let mut workload = Scripted {
                fails_at,
                ..scripted([10_000; 3])
            };
            let measured = measure(&mut workload, &[1, 2, 4], Duration::ZERO);
            assert!(matches!(measured, Err(MeasureError::Engine(_))));
        }
    }
}
