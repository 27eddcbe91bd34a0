//! Durations as Gateway API writes them (GEP-2257): up to four of `5h`, `30m`, `12s`, `250ms`, each
//! with at most five digits. A subset of Go's syntax without fractions and signs.

use std::time::Duration;

/// Parts in one duration, by the specification.
const PARTS_MAX: usize = 4;
/// Digits in one part, by the specification.
const DIGITS_MAX: usize = 5;

/// Reads a duration; `None` if it is not one.
pub(crate) fn parse(text: &str) -> Option<Duration> {
    let mut total_ms = 0_u64;
    let mut rest = text;
    for part in 0.. {
        if rest.is_empty() {
            return (part > 0).then(|| Duration::from_millis(total_ms));
        }
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if part == PARTS_MAX || digits == 0 || digits > DIGITS_MAX {
            return None;
        }
        let (number, tail) = rest.split_at(digits);
        let unit = tail.bytes().take_while(u8::is_ascii_lowercase).count();
        let (unit, tail) = tail.split_at(unit);
        let unit_ms = match unit {
            "h" => 3_600_000,
            "m" => 60_000,
            "s" => 1_000,
            "ms" => 1,
            _ => return None,
        };
        total_ms += number.parse::<u64>().ok()? * unit_ms;
        rest = tail;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn durations_are_read_as_the_specification_says() {
        let ms = |text| parse(text).map(|d| d.as_millis());
        for (text, want) in [
            ("0s", Some(0)),
            ("1h", Some(3_600_000)),
            ("1h30m10s250ms", Some(5_410_250)),
            ("99999ms", Some(99_999)),
            ("10s10s", Some(20_000)),
            ("", None),
            ("10", None),
            ("s", None),
            ("1.5s", None),
            ("-1s", None),
            ("1d", None),
            ("100000s", None),
            ("1s1s1s1s1s", None),
            ("1 s", None),
            ("1us", None),
        ] {
            assert_eq!(ms(text), want, "{text:?}");
        }
    }
}
