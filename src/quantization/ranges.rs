//! Histograms of activations, and estimators of the range that 8 bits should cover.

use std::fmt;

use serde::Serialize;

use crate::model::ActivationRange;

/// Number of bins of a histogram, so that each of the 255 steps of 8 bits has several.
const BINS: usize = 4096;
/// Fraction of all values that the percentile covers.
const PERCENTILE: f64 = 0.9999;
/// Resolution of the search for the limit with the least error: limits are multiples of the largest
/// value divided by this.
const LIMIT_STEPS: usize = 96;

/// How the range of a tensor is estimated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Estimator {
    /// The range of all observed values.
    MinMax,
    /// The range of 99.99 % of the values: outliers are clipped, and the others get finer steps.
    Percentile,
    /// The range with the least mean squared error.
    Mse,
}

impl fmt::Display for Estimator {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::MinMax => "min-max",
            Self::Percentile => "percentile",
            Self::Mse => "mse",
        })
    }
}

/// A histogram of absolute values with a fixed number of bins. Its range doubles when a larger
/// value is added.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Vec<u64>,
    /// Upper end of the last bin; 0 before the first value.
    end: f32,
    largest: f32,
    /// Whether a negative value was added.
    negative: bool,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: vec![0; BINS],
            end: 0.0,
            largest: 0.0,
            negative: false,
        }
    }
}

impl Histogram {
    /// Adds `values`, except infinite ones and NaN.
    pub fn add(&mut self, values: &[f32]) {
        let finite = values.iter().filter(|value| value.is_finite());
        let (smallest, largest) = finite.fold((0_f32, 0_f32), |(min, max), &value| {
            (min.min(value), max.max(value))
        });
        self.negative |= smallest < 0.0;
        self.cover(largest.max(-smallest));
        if self.end == 0.0 {
            self.counts[0] += values.iter().filter(|value| value.is_finite()).count() as u64;
            return;
        }

        let bins_per_unit = BINS as f32 / self.end;
        for value in values.iter().filter(|value| value.is_finite()) {
            self.counts[((value.abs() * bins_per_unit) as usize).min(BINS - 1)] += 1;
        }
    }

    /// Adds the values of another histogram.
    pub fn merge(&mut self, other: &Self) {
        self.negative |= other.negative;
        self.cover(other.largest);
        let mut other = other.clone();
        other.cover(self.largest);
        // Each range is a power of two times the first value of its histogram, so that the bins of
        // the two do not coincide. Values move by less than a bin.
        let scale = if self.end > 0.0 {
            other.end / self.end
        } else {
            1.0
        };
        for (bin, count) in other.counts.iter().enumerate() {
            let middle = (bin as f32 + 0.5) * scale;
            self.counts[(middle as usize).min(BINS - 1)] += count;
        }
    }

    /// Extends the range to include `value`.
    fn cover(&mut self, value: f32) {
        self.largest = self.largest.max(value);
        if self.end == 0.0 {
            // Leave room for somewhat larger values, which are likely to follow.
            self.end = value * 1.25;
            return;
        }
        while self.end < value && self.end.is_finite() {
            self.end *= 2.0;
            for bin in 0..BINS / 2 {
                self.counts[bin] = self.counts[2 * bin] + self.counts[2 * bin + 1];
            }
            self.counts[BINS / 2..].fill(0);
        }
    }

    /// The range that 8 bits should cover.
    pub fn range(&self, estimator: Estimator) -> ActivationRange {
        let limit = match estimator {
            Estimator::MinMax => self.largest,
            Estimator::Percentile => self.percentile().min(self.largest),
            Estimator::Mse => self.least_error(),
        };
        ActivationRange {
            limit,
            signed: self.negative,
        }
    }

    /// The limit that [`PERCENTILE`] of the values do not exceed.
    fn percentile(&self) -> f32 {
        let total: u64 = self.counts.iter().sum();
        let mut rest = (total as f64 * (1.0 - PERCENTILE)) as u64;
        for (bin, &count) in self.counts.iter().enumerate().rev() {
            if count > rest {
                return (bin + 1) as f32 / BINS as f32 * self.end;
            }
            rest -= count;
        }
        self.largest
    }

    /// The limit with the least mean squared error, with values taken as the middles of their bins.
    fn least_error(&self) -> f32 {
        let width = self.end / BINS as f32;
        let error = |limit: f32| -> f64 {
            let range = ActivationRange {
                limit,
                signed: self.negative,
            };
            let scale = range.scale();
            let one = |(bin, &count): (usize, &u64)| {
                let value = (bin as f32 + 0.5) * width;
                let error = f64::from((value / scale).round() * scale).min(f64::from(limit))
                    - f64::from(value);
                count as f64 * error * error
            };
            self.counts
                .iter()
                .enumerate()
                .filter(|(_, count)| **count > 0)
                .map(one)
                .sum()
        };
        let limits = (LIMIT_STEPS / 4..=LIMIT_STEPS)
            .map(|part| self.largest * part as f32 / LIMIT_STEPS as f32);
        let errors = limits.map(|limit| (limit, error(limit)));
        errors
            .min_by(|a, b| a.1.total_cmp(&b.1))
            .map_or(self.largest, |(limit, _)| limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram(values: &[f32]) -> Histogram {
        let mut histogram = Histogram::default();
        histogram.add(values);
        histogram
    }

    /// 0 to 1 in small steps, and one outlier.
    fn with_outlier() -> Vec<f32> {
        (0..=20_000)
            .map(|step| step as f32 / 20_000.0)
            .chain([8.0])
            .collect()
    }

    #[test]
    fn the_whole_range_reaches_to_the_largest_value() {
        assert_eq!(
            histogram(&[0.5, 2.0, 0.0]).range(Estimator::MinMax),
            ActivationRange {
                limit: 2.0,
                signed: false
            }
        );
        assert_eq!(
            histogram(&[0.5, -3.0]).range(Estimator::MinMax),
            ActivationRange {
                limit: 3.0,
                signed: true
            }
        );
        assert_eq!(histogram(&[0.0; 9]).range(Estimator::Mse).limit, 0.0);
        assert_eq!(
            histogram(&[f32::NAN, f32::INFINITY, 1.0])
                .range(Estimator::MinMax)
                .limit,
            1.0
        );
    }

    #[test]
    fn values_that_are_not_finite_change_nothing() {
        let mut first = histogram(&[f32::NAN, f32::INFINITY]);
        let values: Vec<f32> = (1..=100).map(|value| value as f32).collect();
        first.add(&values);
        assert_eq!(first.counts, histogram(&values).counts);
    }

    #[test]
    fn outliers_are_clipped_if_that_reduces_the_error() {
        let histogram = histogram(&with_outlier());
        assert_eq!(histogram.range(Estimator::MinMax).limit, 8.0);
        let percentile = histogram.range(Estimator::Percentile).limit;
        assert!((0.99..1.01).contains(&percentile), "{percentile}");
        let mse = histogram.range(Estimator::Mse).limit;
        assert!((1.0..8.0).contains(&mse), "{mse}");
    }

    #[test]
    fn a_uniform_distribution_is_not_clipped() {
        let values: Vec<f32> = (0..=10_000)
            .map(|step| step as f32 / 10_000.0 - 0.5)
            .collect();
        let limit = histogram(&values).range(Estimator::Mse).limit;
        assert!((0.48..=0.5).contains(&limit), "{limit}");
    }

    #[test]
    fn order_and_merging_hardly_change_the_range() {
        let values = with_outlier();
        let (small, large) = values.split_at(values.len() / 3);
        let mut forwards = histogram(small);
        forwards.add(large);
        let mut backwards = histogram(large);
        backwards.add(small);
        let mut merged = histogram(small);
        merged.merge(&histogram(large));
        for estimator in [Estimator::MinMax, Estimator::Percentile, Estimator::Mse] {
            let limits =
                [&forwards, &backwards, &merged].map(|histogram| histogram.range(estimator).limit);
            let spread = limits.iter().fold(0_f32, |spread, limit| {
                spread.max((limit / limits[0] - 1.0).abs())
            });
            assert!(spread < 0.05, "{estimator}: {limits:?}");
        }
        assert_eq!(merged.counts.iter().sum::<u64>(), values.len() as u64);
    }

    #[test]
    fn an_empty_histogram_takes_over_another() {
        let mut empty = Histogram::default();
        empty.merge(&histogram(&[1.0, -2.0]));
        assert_eq!(
            empty.range(Estimator::MinMax),
            ActivationRange {
                limit: 2.0,
                signed: true
            }
        );
    }
}
