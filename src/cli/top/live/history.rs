//! The values of a chart over the last minutes, one per scrape.

use std::collections::VecDeque;

/// Number of values that are kept: three minutes at one scrape per second.
const CAPACITY: usize = 180;

/// The values of one chart, oldest first; `None` where the value is unknown.
#[derive(Clone, Debug, Default)]
pub struct History {
    values: VecDeque<Option<f64>>,
    /// How many values were ever pushed.
    total: usize,
}

impl History {
    /// Appends the newest value; one that is not finite counts as unknown.
    pub fn push(&mut self, value: Option<f64>) {
        if self.values.len() == CAPACITY {
            self.values.pop_front();
        }
        self.values
            .push_back(value.filter(|value| value.is_finite()));
        self.total += 1;
    }

    #[cfg(test)]
    pub fn last(&self) -> Option<f64> {
        *self.values.back()?
    }

    pub fn max(&self) -> Option<f64> {
        self.values.iter().flatten().copied().reduce(f64::max)
    }

    /// The history in at most `width` columns, oldest first. Each column is the mean of the same
    /// number of scrapes, as many as are needed for a full history to fit.
    ///
    /// A column covers the same scrapes for as long as it is shown, so that the chart moves without
    /// flicker.
    pub fn columns(&self, width: usize) -> Vec<Option<f64>> {
        if width == 0 {
            return Vec::new();
        }
        // One more scrape and one column less, because the first and last columns are rarely full.
        let scrapes_per_column = (CAPACITY + 1)
            .div_ceil(width.saturating_sub(1).max(1))
            .max(1);
        let first = self.total - self.values.len();

        // The sum and the number of the known values of each column.
        let mut columns: Vec<(f64, usize)> = Vec::new();
        for (index, value) in self.values.iter().enumerate() {
            let column = (first + index) / scrapes_per_column - first / scrapes_per_column;
            columns.resize(columns.len().max(column + 1), (0.0, 0));
            if let Some(value) = value {
                columns[column].0 += value;
                columns[column].1 += 1;
            }
        }

        let skipped = columns.len().saturating_sub(width);
        columns
            .into_iter()
            .skip(skipped)
            .map(|(sum, count)| (count > 0).then(|| sum / count as f64))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(values: impl IntoIterator<Item = f64>) -> History {
        let mut history = History::default();
        for value in values {
            history.push(Some(value));
        }
        history
    }

    #[test]
    fn a_chart_that_is_wide_enough_shows_every_value() {
        assert_eq!(
            history([1.0, 2.0]).columns(CAPACITY + 2),
            [Some(1.0), Some(2.0)]
        );
        assert_eq!(history([]).columns(10), []);
        assert_eq!(history([1.0]).columns(0), []);
    }

    #[test]
    fn all_of_the_time_fits_into_any_width() {
        let history = history((0..1000).map(f64::from));
        for width in 1..300 {
            let columns = history.columns(width);
            assert!(columns.len() <= width, "{width}");
            assert!(columns.windows(2).all(|pair| pair[0] < pair[1]), "{width}");
        }
        assert!(history.columns(40).len() >= 36);
        assert_eq!((history.last(), history.max()), (Some(999.0), Some(999.0)));
    }

    #[test]
    fn full_columns_do_not_change_when_time_goes_on() {
        let mut history = history((0..400).map(f64::from));
        let before = history.columns(40);
        history.push(Some(0.0));
        let after = history.columns(40);
        let middle = &before[2..before.len() - 1];
        assert!(
            after.windows(middle.len()).any(|columns| columns == middle),
            "{before:?} {after:?}"
        );
    }

    #[test]
    fn a_gap_is_a_gap() {
        let mut history = history([1.0]);
        history.push(None);
        history.push(Some(f64::NAN));
        history.push(Some(3.0));
        assert_eq!(history.columns(500), [Some(1.0), None, None, Some(3.0)]);
        assert_eq!(history.max(), Some(3.0));
    }
}
