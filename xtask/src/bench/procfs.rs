//! What a process tree has used, read from `/proc`: CPU time, memory, context switches; and how
//! busy the whole machine was meanwhile.
//!
//! CPU time comes from the scheduler's own counters (`schedstat`, nanoseconds) of every thread,
//! with the coarser `stat` as fallback. Threads that end inside a measured window are missed;
//! none of the peers ends threads under load. Linux only, as the whole benchmark.

use anyhow::{Context, Result};
use std::fs;

/// Nanoseconds in one tick of `/proc/stat`; USER_HZ is 100 on every Linux that Rust supports.
const TICK_NS: u64 = 10_000_000;

/// Totals of a set of processes at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    /// CPU time of all threads, user and system.
    pub(crate) cpu_ns: u64,
    /// Of it in user mode and in the kernel, in ticks: for shares, not for sums.
    pub(super) user_ticks: u64,
    pub(super) kernel_ticks: u64,
    /// Context switches of all threads, voluntary or not.
    pub(super) switches: u64,
    /// Resident memory now.
    pub(super) rss_kib: u64,
    /// Largest resident memory so far.
    pub(crate) rss_peak_kib: u64,
}

/// The process and all its descendants. A process that has ended is simply not there.
pub(super) fn tree(root: u32) -> Vec<u32> {
    let parents = parents();
    let mut found = vec![root];
    let mut at = 0;
    while at < found.len() {
        let parent = found[at];
        found.extend(
            parents
                .iter()
                .filter(|(_, of)| *of == parent)
                .map(|(pid, _)| *pid),
        );
        at += 1;
    }
    found
}

/// What these processes have used.
pub(crate) fn usage(pids: &[u32]) -> Usage {
    let mut total = Usage::default();
    for pid in pids {
        let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
            continue;
        };
        for task in tasks.flatten() {
            let path = task.path();
            let read = |name: &str| fs::read_to_string(path.join(name)).unwrap_or_default();
            let (user, kernel) = ticks(&read("stat"));
            total.cpu_ns += cpu_ns(&read("schedstat"), user + kernel);
            total.user_ticks += user;
            total.kernel_ticks += kernel;
            let status = read("status");
            total.switches += field(&status, "voluntary_ctxt_switches:")
                + field(&status, "nonvoluntary_ctxt_switches:");
        }
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        total.rss_kib += field(&status, "VmRSS:");
        total.rss_peak_kib += field(&status, "VmHWM:");
    }
    total
}

/// Resident memory of one process in bytes, page by page as the kernel finds it: its usual count
/// is off by some hundred kilobytes.
pub(crate) fn resident_bytes(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    Ok(field(&text, "Rss:") * 1_024)
}

/// Makes the largest resident memory of a process so far what it is now.
pub(crate) fn reset_peak(pid: u32) -> Result<()> {
    let path = format!("/proc/{pid}/clear_refs");
    fs::write(&path, "5").with_context(|| format!("cannot write {path}"))
}

/// Time that the machine's processors were not idle, in nanoseconds.
pub(super) fn machine_busy_ns() -> u64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let Some(line) = stat.lines().next() else {
        return 0;
    };
    let ticks: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .flat_map(str::parse)
        .collect();
    // user nice system idle iowait irq softirq steal
    let busy = [0, 1, 2, 5, 6, 7]
        .iter()
        .filter_map(|i| ticks.get(*i))
        .sum::<u64>();
    busy * TICK_NS
}

/// Every process with its parent.
fn parents() -> Vec<(u32, u32)> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            Some((pid, after_name(&stat).nth(1)?.parse().ok()?))
        })
        .collect()
}

/// The fields of a `stat` line behind the program's name, which may itself hold spaces.
fn after_name(stat: &str) -> impl Iterator<Item = &str> {
    stat.rsplit_once(')')
        .map_or("", |(_, rest)| rest)
        .split_whitespace()
}

fn cpu_ns(schedstat: &str, ticks: u64) -> u64 {
    let exact = schedstat.split_whitespace().next().map(str::parse);
    match exact {
        Some(Ok(ns)) => ns,
        _ => ticks * TICK_NS,
    }
}

/// What a `stat` line has of user mode and of the kernel.
fn ticks(stat: &str) -> (u64, u64) {
    // utime and stime are fields 14 and 15; the state (field 3) is the first one here.
    let mut fields = after_name(stat)
        .skip(11)
        .map(|field| field.parse().unwrap_or(0));
    (fields.next().unwrap_or(0), fields.next().unwrap_or(0))
}

/// A number of a `status` file by the start of its line; 0 when absent.
fn field(status: &str, name: &str) -> u64 {
    let rest = status.lines().find_map(|line| line.strip_prefix(name));
    rest.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{after_name, cpu_ns, field, reset_peak, resident_bytes, ticks, tree, usage};

    #[test]
    fn names_with_spaces_and_brackets_do_not_shift_fields() {
        let stat = "42 (a b) c) S 7 42 42 0 -1 0 1 2 3 4 50 60 0";
        assert_eq!(after_name(stat).nth(1), Some("7"));
        let (user, kernel) = ticks(stat);
        assert_eq!(cpu_ns("", user + kernel), 1_100_000_000);
        assert_eq!(cpu_ns("12345 6 7", user + kernel), 12345);
    }

    #[test]
    fn a_status_field_is_found_by_its_whole_name() {
        let status =
            "voluntary_ctxt_switches:\t5\nnonvoluntary_ctxt_switches:\t7\nVmRSS:\t 900 kB\n";
        assert_eq!(field(status, "voluntary_ctxt_switches:"), 5);
        assert_eq!(field(status, "nonvoluntary_ctxt_switches:"), 7);
        assert_eq!(field(status, "VmRSS:"), 900);
        assert_eq!(field(status, "VmHWM:"), 0);
    }

    #[test]
    fn a_process_finds_itself_and_its_own_use() {
        let me = std::process::id();
        assert!(tree(me).contains(&me));
        assert!(usage(&[me]).rss_kib > 0);
        assert!(resident_bytes(me).unwrap() > 0);
        reset_peak(me).unwrap();
    }
}
