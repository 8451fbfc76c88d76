//! What several rounds measured of one thing: median, least and most; and percentiles of the
//! samples of one round. It must never average what it was given.

use serde::Serialize;

/// One value a round.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The middle one; of an even number, the upper one.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The most.
    pub most: f64,
    /// How many there were.
    pub rounds: usize,
}

impl Spread {
    /// Of the rounds' values; none where there is no round.
    pub fn over(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let values = sorted(values);
        Some(Self {
            median: *values.get(values.len() / 2)?,
            least: *values.first()?,
            most: *values.last()?,
            rounds: values.len(),
        })
    }

    /// For people: one round has no spread.
    pub fn show(&self, unit: f64, decimals: usize) -> String {
        let [median, least, most] = [self.median, self.least, self.most].map(|value| value / unit);
        match self.rounds {
            1 => format!("{median:.decimals$}"),
            _ => format!("{median:.decimals$} ({least:.decimals$} to {most:.decimals$})"),
        }
    }
}

/// The smallest sample that the given part of all samples does not exceed (nearest rank).
pub fn percentile(samples: &[f64], part: f64) -> Option<f64> {
    let samples = sorted(samples.iter().copied());
    // The rank lies between 1 and the number of samples, which is far below 2^52.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let rank = (samples.len() as f64 * part).ceil().max(1.0) as usize;
    samples.get(rank - 1).copied()
}

fn sorted(values: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_is_the_median_and_the_ends_are_kept() {
        let spread = Spread::over([5.0, 1.0, 2.0]).unwrap();
        assert_eq!((spread.median, spread.least, spread.most, spread.rounds), (2.0, 1.0, 5.0, 3));
        assert_eq!(Spread::over([1.0, 2.0]).unwrap().median, 2.0);
        assert_eq!(Spread::over([]), None);
        assert_eq!(spread.show(1.0, 1), "2.0 (1.0 to 5.0)");
        assert_eq!(Spread::over([4.0]).unwrap().show(2.0, 0), "2");
    }

    #[test]
    fn percentiles_are_samples() {
        let samples: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(percentile(&samples, 0.5), Some(100.0));
        assert_eq!(percentile(&samples, 0.99), Some(198.0));
        assert_eq!(percentile(&samples, 1.0), Some(200.0));
        assert_eq!(percentile(&[7.0], 0.0), Some(7.0));
        assert_eq!(percentile(&[], 0.5), None);
    }
}
