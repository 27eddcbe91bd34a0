//! `cluster status`: what runs, how much memory it holds, and where its log is.

use super::plan::{Bed, log_file};
use super::state::{self, Record};
use super::{cgroup, control_plane, node, plan};
use anyhow::Result;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// What to look at.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    cargo xtask cluster status             every bed of this machine\n\n\
    MEMORY is the share of a process (PSS): pages that several processes map are divided among\n\
    them, so that the sums are what the machine has less.")]
pub(crate) struct Args {}

/// The control plane of a cluster, or a node.
#[derive(Debug)]
struct Unit {
    title: String,
    rows: Vec<Row>,
}

/// A program, or several processes of one kind.
#[derive(Debug)]
struct Row {
    name: String,
    /// Nothing if it ran and has ended.
    memory_kib: Option<u64>,
    log: Option<PathBuf>,
}

/// Prints every bed.
pub(super) fn run(_args: &Args) -> Result<()> {
    let records = state::all()?;
    let mut text = String::new();
    if records.is_empty() {
        text += "no bed is up\n";
    }
    for record in records {
        text += &render(&record, &gather(&record));
    }
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

fn render(record: &Record, units: &[Unit]) -> String {
    let Bed {
        name, shape, dir, ..
    } = &record.bed;
    let condition = if record.ready {
        "up"
    } else {
        "not complete: `up` or `down` will clean it up"
    };
    let mut text = format!("bed {name}: {condition}, {shape}, {}\n", dir.display());
    let mut total = 0;
    for unit in units {
        text += &format!("  {}\n", unit.title);
        for row in &unit.rows {
            let memory = row.memory_kib.map_or_else(
                || format!("{:>10}", "ended"),
                |kib| format!("{:>6} MiB", kib / 1024),
            );
            let log = row.log.as_ref().map(|log| format!("  {}", log.display()));
            let log = log.unwrap_or_default();
            text += &format!("    {:<24} {memory}{log}\n", row.name);
            total += row.memory_kib.unwrap_or(0);
        }
    }
    text + &format!("  memory: {} MiB\n", total / 1024)
}

fn gather(record: &Record) -> Vec<Unit> {
    let mut units = Vec::new();
    for cluster in record.bed.clusters() {
        let group = format!("{}/{}", cluster.name, control_plane::GROUP);
        units.push(Unit {
            title: format!("{}  {}", cluster.name, cluster.api_url()),
            rows: rows(record, &group, &control_plane::PROGRAMS, &cluster.log_dir()),
        });
        for node in &cluster.nodes {
            let group = plan::node_group(&cluster, node);
            units.push(Unit {
                title: format!("{}  {}", node.name, node.address),
                rows: rows(record, &group, &node::PROGRAMS, &node.log_dir()),
            });
        }
    }
    units
}

/// What runs in one group. A node's first process is this very program; what is not known by name
/// belongs to pods.
fn rows(record: &Record, group: &str, programs: &[&str], logs: &Path) -> Vec<Row> {
    let groups = cgroup::under(&record.groups, group);
    let mut known: BTreeMap<&str, u64> = BTreeMap::new();
    let mut others: BTreeMap<&str, (u32, u64)> = BTreeMap::new();
    for pid in cgroup::members(&groups) {
        let name = cgroup::program_name(pid);
        if let Some(program) = programs.iter().find(|program| name == **program) {
            *known.entry(program).or_default() += memory_kib(pid);
            continue;
        }
        let kind = match name.as_str() {
            "containerd-shim-runc-v2" => "containerd shims",
            "xtask" => "first process",
            _ => "processes of pods",
        };
        let (count, memory) = others.entry(kind).or_default();
        *count += 1;
        *memory += memory_kib(pid);
    }
    let programs = programs.iter().filter_map(|program| {
        let log = log_file(logs, program);
        let memory_kib = known.get(program).copied();
        (memory_kib.is_some() || log.exists()).then(|| Row {
            name: (*program).to_owned(),
            memory_kib,
            log: Some(log),
        })
    });
    let others = others.iter().map(|(kind, (count, memory))| Row {
        name: format!("{count} {kind}"),
        memory_kib: Some(*memory),
        log: None,
    });
    programs.chain(others).collect()
}

/// The share of a process; nothing if it ended meanwhile.
fn memory_kib(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::super::plan::{Nodes, Shape};
    use super::*;

    #[test]
    fn a_program_that_ended_is_named_and_not_counted() {
        let shape = Shape {
            clusters: 1,
            nodes: 2,
            kind: Nodes::Fake,
        };
        let bed = Bed {
            name: "t".to_owned(),
            slot: 0,
            shape,
            dir: "/bed".into(),
        };
        let record = Record {
            bed,
            groups: Vec::new(),
            ready: true,
        };
        let row = |name: &str, memory_kib, log: Option<&str>| Row {
            name: name.to_owned(),
            memory_kib,
            log: log.map(PathBuf::from),
        };
        let units = [Unit {
            title: "c1".to_owned(),
            rows: vec![
                row("etcd", Some(40 * 1024), Some("/bed/etcd.log")),
                row("kubelet", None, Some("/bed/kubelet.log")),
                row("4 processes of pods", Some(2 * 1024), None),
            ],
        }];
        assert_eq!(
            render(&record, &units),
            "bed t: up, 1 cluster(s) with 2 fake node(s) each, /bed\n\
             \x20 c1\n\
             \x20   etcd                         40 MiB  /bed/etcd.log\n\
             \x20   kubelet                       ended  /bed/kubelet.log\n\
             \x20   4 processes of pods           2 MiB\n\
             \x20 memory: 42 MiB\n"
        );
    }
}
