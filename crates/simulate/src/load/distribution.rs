//! Numbers drawn at random: lengths in tokens, turns, pauses in seconds.

use crate::engine::tokens::Random;

/// How numbers are spread, cut off at both ends: a draw beyond an end becomes that end.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Distribution {
    shape: Shape,
    min: f64,
    max: f64,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Shape {
    Normal { mean: f64, deviation: f64 },
    LogNormal { mu: f64, sigma: f64 },
}

impl Distribution {
    /// Always this number.
    #[must_use]
    pub const fn fixed(value: f64) -> Self {
        Self::normal(value, 0.0, value, value)
    }

    /// Normal, with the moments that it has before it is cut off.
    #[must_use]
    pub const fn normal(mean: f64, deviation: f64, min: f64, max: f64) -> Self {
        let shape = Shape::Normal { mean, deviation };
        Self { shape, min, max }
    }

    /// Log-normal, with the mean and the deviation of the natural logarithm.
    #[must_use]
    pub const fn log_normal(mu: f64, sigma: f64, min: f64, max: f64) -> Self {
        let shape = Shape::LogNormal { mu, sigma };
        Self { shape, min, max }
    }

    /// Log-normal, with the mean and the deviation that the numbers themselves have before they are
    /// cut off.
    #[must_use]
    pub fn log_normal_with_moments(mean: f64, deviation: f64, min: f64, max: f64) -> Self {
        let variance = (1.0 + (deviation / mean).powi(2)).ln();
        Self::log_normal(mean.ln() - variance / 2.0, variance.sqrt(), min, max)
    }

    /// The same with every number times `factor`, which is above 0.
    #[must_use]
    pub fn scaled(self, factor: f64) -> Self {
        let shape = match self.shape {
            Shape::Normal { mean, deviation } => Shape::Normal {
                mean: mean * factor,
                deviation: deviation * factor,
            },
            Shape::LogNormal { mu, sigma } => Shape::LogNormal {
                mu: mu + factor.ln(),
                sigma,
            },
        };
        Self {
            shape,
            min: self.min * factor,
            max: self.max * factor,
        }
    }

    /// The mean before the ends are cut off.
    #[must_use]
    pub fn mean(&self) -> f64 {
        match self.shape {
            Shape::Normal { mean, .. } => mean,
            Shape::LogNormal { mu, sigma } => (mu + sigma * sigma / 2.0).exp(),
        }
    }

    pub(crate) fn draw(&self, random: &mut Random) -> f64 {
        let drawn = match self.shape {
            Shape::Normal { mean, deviation } => mean + deviation * random.normal(),
            Shape::LogNormal { mu, sigma } => (mu + sigma * random.normal()).exp(),
        };
        drawn.max(self.min).min(self.max)
    }

    /// A draw as a whole number, at least 1.
    pub(crate) fn draw_count(&self, random: &mut Random) -> u32 {
        (self.draw(random).round() as u32).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(distribution: Distribution, mean: f64, deviation: f64) {
        let mut random = Random::new(1);
        let drawn: Vec<f64> = (0..20_000)
            .map(|_| distribution.draw(&mut random))
            .collect();
        let count = drawn.len() as f64;
        let own_mean = drawn.iter().sum::<f64>() / count;
        let squares = drawn.iter().map(|x| (x - own_mean).powi(2)).sum::<f64>();
        let own_deviation = (squares / count).sqrt();
        assert!(
            (own_mean - mean).abs() <= 0.03 * mean
                && (own_deviation - deviation).abs() <= 0.05 * mean,
            "{distribution:?}: {own_mean} {own_deviation}"
        );
        assert!((distribution.mean() - mean).abs() < 1e-9 * mean);
    }

    #[test]
    fn draws_have_the_moments_asked_for() {
        let wide = Distribution::log_normal_with_moments(45.0, 40.0, 0.0, 1e9);
        check(wide, 45.0, 40.0);
        check(wide.scaled(0.1), 4.5, 4.0);
        check(Distribution::normal(300.0, 60.0, 0.0, 1e9), 300.0, 60.0);
        check(
            Distribution::normal(300.0, 60.0, 0.0, 1e9).scaled(2.0),
            600.0,
            120.0,
        );
        check(Distribution::fixed(7.0), 7.0, 0.0);
    }

    #[test]
    fn draws_stay_between_the_ends() {
        let narrow = Distribution::log_normal_with_moments(4.0, 2.5, 3.0, 5.0);
        let mut random = Random::new(2);
        let drawn: Vec<u32> = (0..1_000).map(|_| narrow.draw_count(&mut random)).collect();
        assert_eq!(
            (drawn.iter().min(), drawn.iter().max()),
            (Some(&3), Some(&5))
        );
        assert_eq!(Distribution::fixed(0.0).draw_count(&mut random), 1);
    }
}
