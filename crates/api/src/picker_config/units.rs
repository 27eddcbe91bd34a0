//! Units as Go and Kubernetes write them: durations (`1m30s`) and quantities (`512Mi`).

use std::time::Duration;

/// A duration in Go's syntax, zero or more: `0`, `200ms`, `1.5h`, `1m30s`.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let text = text.strip_prefix('+').unwrap_or(text);
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let (mut rest, mut seconds) = (text, 0.0);
    while !rest.is_empty() {
        let digits = rest
            .bytes()
            .take_while(|b| b.is_ascii_digit() || *b == b'.')
            .count();
        let (number, tail) = rest.split_at(digits);
        let letters = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let scale = match unit {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3_600.0,
            _ => return None,
        };
        seconds += number.parse::<f64>().ok()? * scale;
        rest = tail;
    }
    (!text.is_empty())
        .then(|| Duration::try_from_secs_f64(seconds).ok())
        .flatten()
}

/// A quantity of Kubernetes, zero or more, rounded up to a whole number.
pub(super) fn quantity(text: &str) -> Option<u64> {
    const SUFFIXES: [(&str, f64); 13] = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("Pi", 1_125_899_906_842_624.0),
        ("Ei", 1_152_921_504_606_846_976.0),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
        ("E", 1e18),
    ];
    let text = text.strip_prefix('+').unwrap_or(text);
    let suffix = SUFFIXES.iter().find_map(|(suffix, scale)| {
        let number = text.strip_suffix(suffix)?;
        Some((number, *scale))
    });
    let (number, scale) = suffix.unwrap_or((text, 1.0));
    if !number.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    let value = number.parse::<f64>().ok()? * scale;
    // Beyond this a whole number of things is no longer exact, and nobody has that many.
    (value.is_finite() && value <= 9.0e18).then_some(value.ceil() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        let ms = |text| duration(text).map(|d| d.as_millis());
        for (text, want) in [
            ("60s", Some(60_000)),
            ("1m30s", Some(90_000)),
            ("1.5h", Some(5_400_000)),
            ("200ms", Some(200)),
            ("1500us", Some(1)),
            ("0", Some(0)),
            ("0s", Some(0)),
            ("", None),
            ("5", None),
            ("s", None),
            ("-1s", None),
            ("1d", None),
            ("1..5s", None),
            ("1s 2s", None),
        ] {
            assert_eq!(ms(text), want, "{text:?}");
        }
    }

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        for (text, want) in [
            ("5000", Some(5_000)),
            ("1k", Some(1_000)),
            ("1G", Some(1_000_000_000)),
            ("1Gi", Some(1 << 30)),
            ("1.5Ki", Some(1_536)),
            ("100m", Some(1)),
            ("2e3", Some(2_000)),
            ("0", Some(0)),
            ("-1", None),
            ("", None),
            ("G", None),
            ("1 G", None),
            ("nan", None),
            ("1e400", None),
        ] {
            assert_eq!(quantity(text), want, "{text:?}");
        }
    }
}
