//! `cluster status`: what runs, how much memory it holds, and where its log is.

use super::plan::{Cluster, log_file};
use super::state::{self, Record};
use super::{cgroup, control_plane, node, plan};
use anyhow::Result;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

/// What to look at.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    cargo xtask cluster status             every bed of this machine\n\n\
    MEMORY is the share of a process (PSS): pages that several processes map are divided among\n\
    them, so that the sums are what the machine has less.")]
pub(crate) struct Args {}

/// One line: a program, or the pods of a node together.
#[derive(Debug, Default)]
struct Line {
    processes: u32,
    memory_kib: u64,
}

/// Prints every bed.
pub(super) fn run(_args: &Args) -> Result<()> {
    let records = state::all()?;
    if records.is_empty() {
        println!("no bed is up");
    }
    for record in records {
        print_bed(&record);
    }
    Ok(())
}

fn print_bed(record: &Record) {
    let bed = &record.bed;
    let condition = if record.ready { "up" } else { "not complete: `up` or `down` will clean it up" };
    println!("bed {}: {condition}, {}, {}", bed.name, bed.shape, bed.dir.display());
    let mut total = 0;
    for cluster in bed.clusters() {
        println!("  {}  {}", cluster.name, cluster.api_url());
        let group = format!("{}/{}", cluster.name, control_plane::GROUP);
        total += print_unit(record, &group, &control_plane::PROGRAMS, |name| log_file(&cluster.log_dir(), name));
        total += print_nodes(record, &cluster);
    }
    println!("  memory: {} MiB", total / 1024);
}

fn print_nodes(record: &Record, cluster: &Cluster) -> u64 {
    let mut total = 0;
    for node in &cluster.nodes {
        println!("  {}  {}", node.name, node.address);
        let group = plan::node_group(cluster, node);
        total += print_unit(record, &group, &node::PROGRAMS, |name| log_file(&node.log_dir(), name));
    }
    total
}

/// The programs of one group, each with its share of memory. A node's first process is this very
/// program; everything unknown is in pods.
fn print_unit(record: &Record, group: &str, programs: &[&str], log: impl Fn(&str) -> PathBuf) -> u64 {
    let groups: Vec<PathBuf> = record.groups.iter().map(|root| root.join(group)).collect();
    let mut lines: BTreeMap<&str, Line> = BTreeMap::new();
    let (mut shims, mut pods, mut own) = (Line::default(), Line::default(), Line::default());
    for pid in cgroup::members(&groups) {
        let name = cgroup::program_name(pid);
        let line = match programs.iter().find(|program| name == **program) {
            Some(program) => lines.entry(program).or_default(),
            None if name == "containerd-shim-runc-v2" => &mut shims,
            None if name == "xtask" => &mut own,
            None => &mut pods,
        };
        line.processes += 1;
        line.memory_kib += memory_kib(pid);
    }
    let mut total = 0;
    for program in programs {
        match lines.get(program) {
            Some(line) => {
                total += line.memory_kib;
                println!("    {program:<24} {:>6} MiB  {}", line.memory_kib / 1024, log(program).display());
            }
            None if log(program).exists() => {
                println!("    {program:<24}    ended  {}", log(program).display());
            }
            None => {}
        }
    }
    for (what, line) in [("first process", own), ("containerd shims", shims), ("processes of pods", pods)] {
        if line.processes > 0 {
            total += line.memory_kib;
            let title = format!("{} {what}", line.processes);
            println!("    {title:<24} {:>6} MiB", line.memory_kib / 1024);
        }
    }
    total
}

/// The share of a process; nothing if it ended meanwhile.
fn memory_kib(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
