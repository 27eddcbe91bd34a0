//! Measured tables as functions: piecewise linear over one, two or four axes.
//!
//! Between grid points the value is interpolated linearly, below the first point it stays at the
//! first point (a kernel launch has a floor), above the last point the slope of the axis's upper half
//! goes on.
//! The tables come from [`crate::calibrate`]; the sum that makes a step is in [`crate::profile`].

use serde::{Deserialize, Serialize};

/// `y` at increasing `x`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Curve {
    /// Grid points, increasing.
    pub x: Vec<f64>,
    /// Value at each grid point.
    pub y: Vec<f64>,
}

/// `values[a][b]` at the points of two axes, row-major.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Grid2 {
    /// Outer axis, increasing.
    pub a: Vec<f64>,
    /// Inner axis, increasing.
    pub b: Vec<f64>,
    /// `a.len() * b.len()` values, `b` fastest.
    pub values: Vec<f64>,
}

/// Values at the points of four axes, row-major.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Grid4 {
    /// The four axes, outermost first, each increasing.
    pub axes: [Vec<f64>; 4],
    /// Values, last axis fastest; empty if the excess was not measured.
    pub values: Vec<f64>,
}

/// Two neighbouring grid points and the share of the second.
#[derive(Clone, Copy)]
struct Bracket {
    low: usize,
    high: usize,
    share: f64,
}

impl Curve {
    /// The value at `x`; zero for an empty curve.
    #[must_use]
    pub fn at(&self, x: f64) -> f64 {
        if self.x.is_empty() {
            return 0.0;
        }
        let bracket = bracket(&self.x, x);
        lerp(self.y[bracket.low], self.y[bracket.high], bracket.share)
    }

    /// Whether both axes fit each other and the points increase.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.x.len() == self.y.len() && increases(&self.x)
    }
}

impl Grid2 {
    /// The value at `(a, b)`; zero for an empty grid.
    #[must_use]
    pub fn at(&self, a: f64, b: f64) -> f64 {
        if self.values.is_empty() {
            return 0.0;
        }
        let (outer, inner) = (bracket(&self.a, a), bracket(&self.b, b));
        let row = |i: usize| {
            let base = i * self.b.len();
            let (low, high) = (
                self.values[base + inner.low],
                self.values[base + inner.high],
            );
            lerp(low, high, inner.share)
        };
        lerp(row(outer.low), row(outer.high), outer.share)
    }

    /// Whether the values fit the axes and the points increase.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.values.len() == self.a.len() * self.b.len() && increases(&self.a) && increases(&self.b)
    }
}

impl Grid4 {
    /// The value at `at`; zero for an empty grid.
    #[must_use]
    pub fn at(&self, at: [f64; 4]) -> f64 {
        if self.values.is_empty() {
            return 0.0;
        }
        let brackets: [Bracket; 4] =
            std::array::from_fn(|axis| bracket(&self.axes[axis], at[axis]));
        let mut sum = 0.0;
        for corner in 0..16_u8 {
            let mut weight = 1.0;
            let mut index = 0;
            for (axis, b) in brackets.iter().enumerate() {
                let high = corner >> axis & 1 == 1;
                weight *= if high { b.share } else { 1.0 - b.share };
                index = index * self.axes[axis].len() + if high { b.high } else { b.low };
            }
            if weight != 0.0 {
                sum += weight * self.values[index];
            }
        }
        sum
    }

    /// Whether the values fit the axes and the points increase.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let points: usize = self.axes.iter().map(Vec::len).product();
        self.values.is_empty()
            || (self.values.len() == points && self.axes.iter().all(|axis| increases(axis)))
    }
}

/// Where `x` lies on a non-empty axis.
fn bracket(axis: &[f64], x: f64) -> Bracket {
    if axis.len() == 1 || x <= axis[0] {
        return Bracket {
            low: 0,
            high: 0,
            share: 0.0,
        };
    }
    let last = axis.len() - 1;
    let high = axis.partition_point(|point| *point <= x).min(last);
    let low = if x > axis[last] {
        // Not from the last segment alone: on a fine grid that would be noise.
        axis.partition_point(|point| *point < axis[last] / 2.0)
            .min(last - 1)
    } else {
        high - 1
    };
    let share = (x - axis[low]) / (axis[high] - axis[low]);
    Bracket { low, high, share }
}

fn lerp(low: f64, high: f64, share: f64) -> f64 {
    low + (high - low) * share
}

fn increases(axis: &[f64]) -> bool {
    !axis.is_empty() && axis.windows(2).all(|pair| pair[0] < pair[1])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(x: f64, expected: f64) {
        let curve = Curve {
            x: vec![1.0, 2.0, 4.0],
            y: vec![10.0, 20.0, 30.0],
        };
        assert!(
            (curve.at(x) - expected).abs() < 1e-9,
            "at {x}: {}",
            curve.at(x)
        );
    }

    #[test]
    fn a_curve_holds_its_floor_interpolates_and_goes_on() {
        check(0.0, 10.0);
        check(1.0, 10.0);
        check(1.5, 15.0);
        check(3.0, 25.0);
        check(6.0, 40.0);
    }

    #[test]
    fn grids_reproduce_a_multilinear_function() {
        let axis = || vec![0.0, 1.0, 3.0];
        let of = |v: [f64; 4]| 1.0 + v[0] + 2.0 * v[1] * v[2] + 3.0 * v[3];
        let mut values = Vec::new();
        for a in axis() {
            for b in axis() {
                for c in axis() {
                    for d in axis() {
                        values.push(of([a, b, c, d]));
                    }
                }
            }
        }
        let grid = Grid4 {
            axes: [axis(), axis(), axis(), axis()],
            values,
        };
        assert!(grid.is_sound());
        for at in [
            [0.5, 2.0, 1.0, 0.0],
            [3.0, 0.1, 2.9, 1.7],
            [4.0, 1.0, 1.0, 5.0],
        ] {
            assert!((grid.at(at) - of(at)).abs() < 1e-9, "{at:?}");
        }
        let plane = Grid2 {
            a: vec![0.0, 2.0],
            b: vec![0.0, 1.0, 2.0],
            values: vec![0.0, 1.0, 2.0, 4.0, 5.0, 6.0],
        };
        assert!((plane.at(1.0, 1.5) - 3.5).abs() < 1e-9);
    }
}
