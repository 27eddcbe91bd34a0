//! What the driver tells of itself on its page, and the kernel of its memory.

use super::Table;
use super::objects::{apply, delete, pod, ready, request, template};
use super::world::{Node, World};
use anyhow::{Context, Result};
use serde_json::json;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Pods that are started for it, one after the other, each with eight NICs.
const PODS: usize = 10;

/// Reads it, and shows it: numbers of a bed are no promise, since its machine is shared.
pub(super) fn run(world: &World<'_>, table: &mut Table) {
    let Some(node) = world.nodes.last() else {
        return;
    };
    table.check("measured: pods with eight NICs", || measure(world, node));
}

fn measure(world: &World<'_>, node: &Node) -> Result<String> {
    let bed = world.bed;
    let before = page(node)?;
    let rails = "has(device.attributes[\"dra.net\"].type) && device.attributes[\"dra.net\"].type == \"veth\"";
    let mut request = request("nics", "dra.net", rails);
    request["exactly"]["allocationMode"] = json!("All");
    apply(bed, &[template("eight", &[request], &[])])?;
    for number in 0..PODS {
        let name = format!("eight{number}");
        apply(bed, &[pod(&name, &node.name, "eight")])?;
        ready(bed, &name)?;
        delete(bed, &[&name])?;
    }
    let after = page(node)?;
    let mut told = Vec::new();
    for call in ["prepare", "attach", "detach", "unprepare"] {
        let series = |what: &str| {
            let name = format!("forebay_node_call_duration_seconds_{what}{{call=\"{call}\"}}");
            Some(value(&after, &name)? - value(&before, &name).unwrap_or(0.0))
        };
        let (Some(sum), Some(count)) = (series("sum"), series("count")) else {
            continue;
        };
        let mean = sum / count.max(1.0) * 1e3;
        told.push(format!(
            "{call} mean {mean:.1} ms of {count}, all within {}",
            within(&before, &after, call)
        ));
    }
    let pid = node.driver()?;
    let status =
        fs::read_to_string(format!("/proc/{pid}/status")).context("the driver's status")?;
    let kib = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.and_then(|line| {
            line.trim_start_matches(':')
                .split_ascii_whitespace()
                .next()?
                .parse::<f64>()
                .ok()
        })
    };
    let mib = |key| kib(key).map_or_else(|| "?".to_owned(), |kib| format!("{:.1}", kib / 1024.0));
    told.push(format!(
        "RSS {} MiB, of it {} MiB anonymous, {} MiB of the program's file, peak {} MiB",
        mib("VmRSS"),
        mib("RssAnon"),
        mib("RssFile"),
        mib("VmHWM")
    ));
    Ok(told.join("; "))
}

/// The smallest bucket that has them all.
fn within(before: &str, after: &str, call: &str) -> String {
    let prefix = "forebay_node_call_duration_seconds_bucket{le=\"";
    let buckets = after
        .lines()
        .filter(|line| line.starts_with(prefix) && line.contains(&format!("call=\"{call}\"")));
    let buckets: Vec<(String, f64)> = buckets
        .filter_map(|line| {
            let name = line.rsplit_once(' ')?.0;
            let bound = name.strip_prefix(prefix)?.split('"').next()?.to_owned();
            Some((
                bound,
                value(after, name)? - value(before, name).unwrap_or(0.0),
            ))
        })
        .collect();
    let most = buckets.iter().map(|bucket| bucket.1).fold(0.0, f64::max);
    let first = buckets.iter().find(|bucket| bucket.1 >= most);
    first.map_or_else(|| "?".to_owned(), |(bound, _)| format!("{bound} s"))
}

fn value(page: &str, series: &str) -> Option<f64> {
    let line = page.lines().find_map(|line| line.strip_prefix(series))?;
    line.trim().parse().ok()
}

/// The driver's page of metrics.
pub(super) fn page(node: &Node) -> Result<String> {
    let mut stream = TcpStream::connect((node.address.as_str(), 9177))
        .with_context(|| format!("no metrics at {}", node.address))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: driver\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_measured_is_read_from_the_difference_of_two_pages() {
        let bucket = |bound, count| {
            format!(
                "forebay_node_call_duration_seconds_bucket{{le=\"{bound}\",call=\"attach\"}} {count}\n"
            )
        };
        let before = [bucket("0.1", 1), bucket("0.15", 1), bucket("+Inf", 1)].concat();
        let after = [bucket("0.1", 1), bucket("0.15", 4), bucket("+Inf", 4)].concat();
        assert_eq!(within(&before, &after, "attach"), "0.15 s");
        assert_eq!(value("a{b=\"c\"} 2.5\n", "a{b=\"c\"}"), Some(2.5));
    }
}
