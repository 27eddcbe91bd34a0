//! Middle and spread of a handful of rounds, and how numbers are written in tables.

/// A value over the rounds of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Spread {
    /// The spread of these values; none when there are none.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Self { median, min, max })
    }

    /// `median [min–max]`.
    pub(super) fn text(&self) -> String {
        format!(
            "{} [{}–{}]",
            short(self.median),
            short(self.min),
            short(self.max)
        )
    }
}

/// About three significant digits, thousands grouped.
pub(crate) fn short(value: f64) -> String {
    let decimals = match value.abs() {
        v if v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        _ => 2,
    };
    let text = format!("{value:.decimals$}");
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut grouped = String::new();
    for (i, digit) in whole.chars().enumerate() {
        let left = whole.len() - i;
        if i > 0 && left % 3 == 0 && !grouped.ends_with('-') {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + rest
}

#[cfg(test)]
mod tests {
    use super::{Spread, short};

    #[test]
    fn the_median_of_an_even_number_of_rounds_lies_between_the_middle_two() {
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
        assert_eq!(
            Spread::of([9.0, 1.0, 5.0]).unwrap().text(),
            "5.00 [1.00–9.00]"
        );
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn numbers_keep_three_digits_and_group_thousands() {
        for (value, text) in [
            (0.123_4, "0.12"),
            (59.97, "60.0"),
            (99.97, "100"),
            (1_234.5, "1,234"),
            (24_100.0, "24,100"),
            (-123_456.0, "-123,456"),
        ] {
            assert_eq!(short(value), text);
        }
    }
}
