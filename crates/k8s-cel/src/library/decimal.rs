//! Decimal numbers of any length, for quantities that 64 bits do not hold.

use crate::value::{Effort, Failure};
use std::cmp::Ordering;

/// `digits * 10^exponent`, without zeros at either end of the digits; zero has none.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Decimal {
    negative: bool,
    /// Each 0 to 9, the most significant first.
    digits: Vec<u8>,
    exponent: i64,
    /// Digits after the point that the number was written or computed with. It has no part in the
    /// value, but in how `float` rounds.
    scale: i64,
}

impl Decimal {
    /// A number of digits and how many of them are after the point.
    pub(crate) fn new(negative: bool, digits: Vec<u8>, scale: i64) -> Decimal {
        let mut digits = digits;
        let mut exponent = -scale;
        while digits.last() == Some(&0) {
            digits.pop();
            exponent += 1;
        }
        let zeros = digits.iter().take_while(|digit| **digit == 0).count();
        digits.drain(..zeros);
        Decimal {
            negative,
            digits,
            exponent,
            scale,
        }
    }

    pub(crate) fn from_int(value: i64, scale: i64) -> Decimal {
        let digits = value.unsigned_abs().to_string();
        let digits = digits.bytes().map(|b| b - b'0').collect();
        Decimal::new(value < 0, digits, scale)
    }

    pub(crate) fn is_zero(&self) -> bool {
        self.digits.is_empty()
    }

    pub(crate) fn sign(&self) -> i64 {
        match (self.is_zero(), self.negative) {
            (true, _) => 0,
            (false, true) => -1,
            (false, false) => 1,
        }
    }

    pub(crate) fn negated(mut self) -> Decimal {
        self.negative = !self.negative;
        self
    }

    /// Times a small number.
    pub(crate) fn times(self, factor: u64) -> Decimal {
        let mut product = Vec::with_capacity(self.digits.len() + 20);
        let mut carry = 0_u128;
        for digit in self.digits.iter().rev() {
            carry += u128::from(*digit) * u128::from(factor);
            product.push((carry % 10) as u8);
            carry /= 10;
        }
        while carry > 0 {
            product.push((carry % 10) as u8);
            carry /= 10;
        }
        product.reverse();
        let scale = self.scale;
        let mut product = Decimal::new(self.negative, product, -self.exponent);
        product.scale = scale;
        product
    }

    /// Rounded away from zero to this many digits after the point.
    pub(crate) fn rounded_up(mut self, scale: i64) -> Decimal {
        self.scale = scale;
        let excess = usize::try_from(-self.exponent - scale).unwrap_or(0);
        if self.is_zero() || excess == 0 {
            return self;
        }
        // The digits end in one that is not zero, so something is cut off.
        let kept = self.digits.len().saturating_sub(excess);
        self.digits.truncate(kept);
        let one = Decimal::new(self.negative, vec![1], scale);
        let cut = Decimal::new(self.negative, self.digits, scale);
        if cut.is_zero() {
            return one;
        }
        let mut sum = cut.added_magnitude(&one);
        sum.scale = scale;
        sum
    }

    /// How the magnitudes compare.
    fn compare_magnitude(&self, other: &Decimal) -> Ordering {
        let height = |d: &Decimal| d.exponent + i64::try_from(d.digits.len()).unwrap_or(i64::MAX);
        match (self.is_zero(), other.is_zero()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Less,
            (false, true) => Ordering::Greater,
            // Neither ends in zeros, so digits compare like text.
            (false, false) => height(self)
                .cmp(&height(other))
                .then_with(|| self.digits.cmp(&other.digits)),
        }
    }

    pub(crate) fn compare(&self, other: &Decimal) -> Ordering {
        self.sign().cmp(&other.sign()).then_with(|| {
            let magnitude = self.compare_magnitude(other);
            if self.negative {
                magnitude.reverse()
            } else {
                magnitude
            }
        })
    }

    /// The sum. The digits between the highest and the lowest of both are the effort.
    pub(crate) fn plus(&self, other: &Decimal, effort: &mut Effort) -> Result<Decimal, Failure> {
        let gap = self.exponent.abs_diff(other.exponent);
        let gap = usize::try_from(gap).unwrap_or(usize::MAX);
        if !self.is_zero() && !other.is_zero() {
            let digits = self.digits.len() + other.digits.len();
            effort.spend(gap.saturating_add(digits))?;
        }
        let mut sum = if self.is_zero() {
            other.clone()
        } else if other.is_zero() {
            self.clone()
        } else if self.negative == other.negative {
            self.added_magnitude(other)
        } else {
            match self.compare_magnitude(other) {
                Ordering::Less => other.less_magnitude(self),
                Ordering::Equal => Decimal::new(false, Vec::new(), 0),
                Ordering::Greater => self.less_magnitude(other),
            }
        };
        sum.scale = self.scale.max(other.scale);
        Ok(sum)
    }

    /// The digits down to the lower of both exponents, the least significant first.
    fn aligned(&self, exponent: i64) -> Vec<u8> {
        let zeros = usize::try_from(self.exponent - exponent).unwrap_or(0);
        let mut digits = vec![0; zeros];
        digits.extend(self.digits.iter().rev());
        digits
    }

    fn added_magnitude(&self, other: &Decimal) -> Decimal {
        let exponent = self.exponent.min(other.exponent);
        let (a, b) = (self.aligned(exponent), other.aligned(exponent));
        let mut digits = Vec::with_capacity(a.len().max(b.len()) + 1);
        let mut carry = 0;
        for at in 0..a.len().max(b.len()) {
            let sum = a.get(at).unwrap_or(&0) + b.get(at).unwrap_or(&0) + carry;
            digits.push(sum % 10);
            carry = sum / 10;
        }
        digits.push(carry);
        digits.reverse();
        Decimal::new(self.negative, digits, -exponent)
    }

    /// The magnitude less a smaller one, with the sign of `self`.
    fn less_magnitude(&self, other: &Decimal) -> Decimal {
        let exponent = self.exponent.min(other.exponent);
        let (mut a, b) = (self.aligned(exponent), other.aligned(exponent));
        let mut borrow = 0;
        for (at, digit) in a.iter_mut().enumerate() {
            let taken = b.get(at).unwrap_or(&0) + borrow;
            borrow = u8::from(*digit < taken);
            *digit = *digit + 10 * borrow - taken;
        }
        a.reverse();
        Decimal::new(self.negative, a, -exponent)
    }

    /// The nearest double of the unscaled digits, times a power of ten: two roundings.
    pub(crate) fn float(&self) -> f64 {
        let digits: String = self
            .digits
            .iter()
            .map(|digit| char::from(b'0' + digit))
            .collect();
        let text = format!("{digits}e{}", self.exponent + self.scale);
        let unscaled = if self.is_zero() {
            0.0
        } else {
            text.parse().unwrap_or(f64::INFINITY)
        };
        let signed = if self.negative { -unscaled } else { unscaled };
        times_power_of_ten(signed, -self.scale)
    }
}

/// `base * 10^exponent` with the power as Go has it: a product or a quotient of table entries.
pub(crate) fn times_power_of_ten(base: f64, exponent: i64) -> f64 {
    let ten_to = |n: i64| format!("1e{n}").parse().unwrap_or(f64::INFINITY);
    let power: f64 = match exponent {
        0 => return base,
        309.. => f64::INFINITY,
        1..=308 => {
            let coarse: f64 = ten_to(exponent / 32 * 32);
            coarse * ten_to(exponent % 32)
        }
        -323..=-1 => {
            let coarse: f64 = ten_to(exponent / 32 * 32);
            coarse / ten_to(-(exponent % 32))
        }
        _ => 0.0,
    };
    base * power
}
