//! Linear regression that learns from one observation at a time: recursive least squares with a
//! forgetting factor, on relative errors, with coefficients that are never negative.
//!
//! An observation counts by its relative error, since 10 ms are much of 50 ms and nothing of 5 s.
//! Bounds: coefficients stay between 0 and [`COEFFICIENT_MAX`], uncertainty does not grow beyond what it
//! was at the start, an error counts as at most twice what was predicted or observed.

/// What is left of an observation's weight after each further one: about 500 count.
pub(super) const KEEP: f64 = 0.998;
/// No coefficient is larger, in milliseconds.
const COEFFICIENT_MAX: f64 = 1e6;
/// Uncertainty of a child's coefficient, as a share of it...
const CHILD_SHARE: f64 = 0.5;
/// ...and of what the prior allows.
const CHILD_PRIOR_SHARE: f64 = 0.05;

/// What coefficients may be before anything is known: zero, give or take a deviation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Prior<const N: usize> {
    /// In milliseconds.
    pub(super) deviation: [f64; N],
}

#[derive(Clone, Debug)]
pub(super) struct Regression<const N: usize> {
    coefficients: [f64; N],
    /// Covariance of the coefficients' errors, in units of the relative error's variance.
    covariance: [[f64; N]; N],
    prior: Prior<N>,
}

impl<const N: usize> Regression<N> {
    pub(super) fn new(prior: Prior<N>) -> Self {
        let mut regression = Self {
            coefficients: [0.0; N],
            covariance: [[0.0; N]; N],
            prior,
        };
        regression.open();
        regression
    }

    /// Lets the coefficients move as freely as at the start, from where they are.
    pub(super) fn open(&mut self) {
        self.covariance = [[0.0; N]; N];
        for at in 0..N {
            self.covariance[at][at] = self.prior.deviation[at].powi(2);
        }
    }

    /// A regression that starts from this one's coefficients and is less sure of them.
    pub(super) fn child(&self) -> Self {
        let mut child = self.clone();
        child.covariance = [[0.0; N]; N];
        for at in 0..N {
            let own = CHILD_SHARE * self.coefficients[at];
            let floor = CHILD_PRIOR_SHARE * self.prior.deviation[at];
            child.covariance[at][at] = own.powi(2) + floor.powi(2);
        }
        child
    }

    pub(super) fn coefficients(&self) -> &[f64; N] {
        &self.coefficients
    }

    /// The prediction for `features`, which are finite and not negative.
    pub(super) fn at(&self, features: &[f64; N]) -> f64 {
        dot(&self.coefficients, features)
    }

    /// Takes in what was observed for `features`.
    pub(super) fn observe(&mut self, features: &[f64; N], observed: f64, observed_min: f64) {
        let predicted = self.at(features);
        let scale = predicted.max(observed / 2.0).max(observed_min);
        let x = features.map(|feature| feature / scale);
        let error = (observed - predicted) / scale;
        let mut px = [0.0; N];
        for (px, row) in px.iter_mut().zip(&self.covariance) {
            *px = dot(row, &x);
        }
        let variance = KEEP + dot(&x, &px);
        if !(variance.is_finite() && variance > 0.0) {
            // Lost to rounding: the coefficients stay, their uncertainty starts anew.
            self.open();
            return;
        }
        for (coefficient, px) in self.coefficients.iter_mut().zip(&px) {
            let moved = *coefficient + px / variance * error;
            *coefficient = moved.clamp(0.0, COEFFICIENT_MAX);
        }
        self.shrink(&px, variance);
    }

    /// What was learned makes the coefficients surer, time makes them less sure.
    fn shrink(&mut self, px: &[f64; N], variance: f64) {
        let mut grown = false;
        for row in 0..N {
            for column in 0..=row {
                let less = px[row] * px[column] / variance;
                let value = (self.covariance[row][column] - less) / KEEP;
                self.covariance[row][column] = value;
                self.covariance[column][row] = value;
            }
            let most = self.prior.deviation[row].powi(2);
            // A variance that rounding made negative would turn the next step around.
            self.covariance[row][row] = self.covariance[row][row].max(1e-12 * most);
            grown |= self.covariance[row][row] > most;
        }
        if grown {
            // Directions that nothing was observed in are not forgotten without end.
            for row in &mut self.covariance {
                for value in row {
                    *value *= KEEP;
                }
            }
        }
    }
}

fn dot<const N: usize>(a: &[f64; N], b: &[f64; N]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
