//! The urgency of a job.

/// How urgent a job is, compared to others that wait for the same model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Priority {
    /// Before the other priorities.
    High,
    #[default]
    Normal,
    /// After the other priorities, though never starved by them.
    Low,
}

impl Priority {
    pub const LEVELS: usize = 3;

    /// By the number that clients send: 1 is the highest, larger ones are lower, 0 is the default.
    /// Whatever lies beyond the lowest is the lowest.
    pub fn from_number(number: u64) -> Self {
        match number {
            0 => Self::default(),
            1 => Self::High,
            2 => Self::Normal,
            _ => Self::Low,
        }
    }

    /// The number that [`Priority::from_number`] reads.
    pub fn number(self) -> u64 {
        self as u64 + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_clients_mean_them() {
        let levels = [0, 1, 2, 3, u64::MAX].map(Priority::from_number);
        assert_eq!(
            levels,
            [
                Priority::Normal,
                Priority::High,
                Priority::Normal,
                Priority::Low,
                Priority::Low
            ]
        );
        assert!(
            levels
                .iter()
                .all(|level| Priority::from_number(level.number()) == *level)
        );
    }
}
