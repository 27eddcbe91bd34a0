//! What is asked of every peer: the list of loads, and the shape of each.

use anyhow::{Context, Result, bail};

/// One load that every peer gets in every round.
#[derive(Debug, Clone)]
pub(super) struct Scenario {
    /// The row's title in the report.
    pub(super) title: String,
    /// What the load is for: it decides which columns and which promises apply.
    pub(super) kind: Kind,
    /// Bytes of a request's body.
    pub(super) body_bytes: usize,
    /// Connections, each with one request at a time.
    pub(super) connections: usize,
    /// Requests per second over all connections; closed loop without it.
    pub(super) rate_per_s: Option<u32>,
}

/// The kinds of load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// One JSON answer per request, as fast as the connections allow.
    Plain,
    /// Server-sent events, `events` of them, one every `gap_ms` (0: all in one burst).
    Stream { events: u32, gap_ms: u32 },
}

/// Connections of the saturating loads.
pub(super) const SATURATING: usize = 16;

/// The fixed offered rate: low enough that no peer is near its limit.
const LOW_RATE_PER_S: u32 = 300;

/// The loads of a run, in the order in which they are run and reported.
pub(super) fn list(body_sizes: &[usize]) -> Vec<Scenario> {
    let plain = |body_bytes: usize, connections: usize, rate_per_s: Option<u32>| Scenario {
        title: match rate_per_s {
            Some(rate) => format!("{} body, {rate} requests/s offered", size_text(body_bytes)),
            None => format!(
                "{} body, {}",
                size_text(body_bytes),
                connections_text(connections)
            ),
        },
        kind: Kind::Plain,
        body_bytes,
        connections,
        rate_per_s,
    };
    let mut all = Vec::new();
    for (i, size) in body_sizes.iter().enumerate() {
        all.push(plain(*size, SATURATING, None));
        if i == 0 {
            all.push(plain(*size, 1, None));
            all.push(plain(*size, 8, Some(LOW_RATE_PER_S)));
        }
    }
    let stream = |title: &str, connections, events, gap_ms| Scenario {
        title: title.to_owned(),
        kind: Kind::Stream { events, gap_ms },
        body_bytes: body_sizes.first().copied().unwrap_or(2_048),
        connections,
        rate_per_s: None,
    };
    all.push(stream("SSE, 32 events 5 ms apart, 24 streams", 24, 32, 5));
    all.push(stream("SSE, burst of 50 events, 8 connections", 8, 50, 0));
    all
}

/// Parses `2k,16k,220k` (k is 1,024 bytes).
pub(super) fn parse_sizes(text: &str) -> Result<Vec<usize>> {
    let sizes = text
        .split(',')
        .map(|word| {
            let word = word.trim();
            let (digits, unit) = match word.strip_suffix(['k', 'K']) {
                Some(digits) => (digits, 1_024),
                None => (word, 1),
            };
            let size: usize = digits
                .parse()
                .with_context(|| format!("--bodies: {word:?} is not a size such as 2k"))?;
            if !(512..=1 << 20).contains(&(size.saturating_mul(unit))) {
                bail!("--bodies: {word} is outside 512 bytes to 1024k");
            }
            Ok(size * unit)
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(sizes)
}

/// `2 KiB`, or bytes when it is no whole number of KiB.
fn size_text(bytes: usize) -> String {
    if bytes.is_multiple_of(1_024) {
        format!("{} KiB", bytes / 1_024)
    } else {
        format!("{bytes} B")
    }
}

fn connections_text(connections: usize) -> String {
    if connections == 1 {
        "1 connection".to_owned()
    } else {
        format!("{connections} connections")
    }
}

#[cfg(test)]
mod tests {
    use super::{list, parse_sizes};

    #[test]
    fn sizes_are_read_with_and_without_unit() {
        assert_eq!(parse_sizes("2k, 16K,900").unwrap(), [2_048, 16_384, 900]);
        for bad in ["", "2x", "0", "k", "9999999k"] {
            assert!(parse_sizes(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn only_the_first_size_is_also_run_at_low_load() {
        let titles: Vec<String> = list(&[2_048, 16_384])
            .into_iter()
            .map(|s| s.title)
            .collect();
        assert_eq!(
            titles,
            [
                "2 KiB body, 16 connections",
                "2 KiB body, 1 connection",
                "2 KiB body, 300 requests/s offered",
                "16 KiB body, 16 connections",
                "SSE, 32 events 5 ms apart, 24 streams",
                "SSE, burst of 50 events, 8 connections",
            ]
        );
    }
}
