//! Which of the measured cases to serve with.

use serde::{Deserialize, Serialize};

/// How fast one case was, such as one size of batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Measured<T> {
    pub(super) case: T,
    /// Images per second of all lanes together, in each round. All cases have equally many rounds,
    /// and those of the same number were measured one after the other.
    pub(super) rounds: Vec<f64>,
}

impl<T> Measured<T> {
    /// The best round: what else runs on the machine makes rounds slower, and never faster.
    pub(super) fn best(&self) -> f64 {
        self.rounds.iter().copied().fold(0.0, f64::max)
    }
}

/// The case to serve with: the fastest one if it is `lead` times as fast as the `default`, in its
/// best round and in most of the rounds; else the default. Machines are shared, and rounds differ by
/// as much as the cases often do.
pub(super) fn choose<T: Copy + PartialEq>(default: T, lead: f64, measured: &[Measured<T>]) -> T {
    let Some(usual) = measured.iter().find(|found| found.case == default) else {
        return default;
    };
    let is_clearly_faster = |found: &&Measured<T>| {
        let pairs = || found.rounds.iter().zip(&usual.rounds);
        let won = pairs().filter(|(new, old)| new > old).count();
        found.best() >= usual.best() * lead && 2 * won > pairs().count()
    };
    measured
        .iter()
        .filter(|found| found.best().is_finite())
        .filter(is_clearly_faster)
        .max_by(|a, b| a.best().total_cmp(&b.best()))
        .map_or(default, |found| found.case)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(measured: &[(usize, &[f64])]) -> usize {
        let measured: Vec<Measured<usize>> = measured
            .iter()
            .map(|&(case, rounds)| Measured {
                case,
                rounds: rounds.to_vec(),
            })
            .collect();
        choose(2, 1.03, &measured)
    }

    #[test]
    fn the_fastest_is_chosen_where_it_is_clearly_faster() {
        let rates: [(usize, &[f64]); 3] = [
            (1, &[110.0, 111.0, 109.0]),
            (2, &[100.0, 101.0, 99.0]),
            (4, &[120.0, 119.0, 118.0]),
        ];
        assert_eq!(chosen(&rates), 4);
        assert_eq!(chosen(&rates[..2]), 1);
    }

    #[test]
    fn the_default_stays_where_the_difference_is_small() {
        let default: (usize, &[f64]) = (2, &[100.0, 100.0, 100.0]);
        assert_eq!(chosen(&[(1, &[100.0; 3]), default]), 2, "a tie");
        assert_eq!(chosen(&[(1, &[102.9; 3]), default]), 2);
        assert_eq!(chosen(&[(1, &[103.1; 3]), default]), 1);
        assert_eq!(chosen(&[default, (4, &[90.0; 3])]), 2, "slower");
    }

    #[test]
    fn one_lucky_or_unlucky_round_decides_nothing() {
        let lucky: [(usize, &[f64]); 2] = [(1, &[99.0, 120.0, 98.0]), (2, &[100.0; 3])];
        assert_eq!(chosen(&lucky), 2);
        // Something else ran on the machine during two rounds of the default.
        let disturbed: [(usize, &[f64]); 2] = [(1, &[101.0; 3]), (2, &[50.0, 60.0, 100.0])];
        assert_eq!(chosen(&disturbed), 2);
        let faster_in_spite_of_it: [(usize, &[f64]); 2] =
            [(1, &[110.0, 40.0, 112.0]), (2, &[100.0, 99.0, 101.0])];
        assert_eq!(chosen(&faster_in_spite_of_it), 1);
    }

    #[test]
    fn without_figures_the_default_stays() {
        assert_eq!(chosen(&[]), 2);
        assert_eq!(chosen(&[(1, &[100.0])]), 2, "the default was not measured");
        assert_eq!(chosen(&[(1, &[]), (2, &[])]), 2);
        assert_eq!(chosen(&[(1, &[f64::INFINITY]), (2, &[1.0])]), 2);
        assert_eq!(chosen(&[(1, &[f64::NAN]), (2, &[f64::NAN])]), 2);
    }
}
