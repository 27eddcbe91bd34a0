//! `cluster down`: ends every process of a bed and removes what it made, whatever state it is in.

use super::plan::Bed;
use super::state::{self, Record};
use super::{cgroup, network, plan};
use anyhow::{Context, Result, bail};
use std::fs;
use std::io::ErrorKind;

/// What to take down.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    cargo xtask cluster down               the bed named `default`\n  \
    cargo xtask cluster down --all         every bed of this machine\n\n\
    What was built stays in the cache.")]
pub(crate) struct Args {
    /// Every bed
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    bed: super::BedArgs,
}

/// Takes down one bed or all; none there is no error.
pub(super) fn run(args: &Args) -> Result<()> {
    plan::check_bed_name(&args.bed.name)?;
    let names = if args.all {
        state::all()?
            .into_iter()
            .map(|record| record.bed.name)
            .collect()
    } else {
        vec![args.bed.name.clone()]
    };
    for name in names {
        let was_there = by_name(&name)?;
        eprintln!(
            "bed {name} is {}",
            if was_there { "down" } else { "not up" }
        );
    }
    Ok(())
}

/// Takes down a bed; false if there is none.
pub(super) fn by_name(name: &str) -> Result<bool> {
    let _lock = state::lock(name)?;
    let Some(record) = Record::read(name)? else {
        return Ok(false);
    };
    remove(&record)?;
    Ok(true)
}

/// Whether every cluster of a bed still has processes.
pub(super) fn is_alive(record: &Record) -> bool {
    record.bed.clusters().iter().all(|cluster| {
        let groups = cgroup::under(&record.groups, &cluster.name);
        !cgroup::members(&groups).is_empty()
    })
}

/// Removes a bed with its folder.
pub(super) fn remove(record: &Record) -> Result<()> {
    remove_running(record)?;
    remove_folder(&record.bed)
}

/// Removes what of a bed is not files: processes first, since they hold the rest.
pub(super) fn remove_running(record: &Record) -> Result<()> {
    cgroup::end(&record.groups)?;
    network::remove(&record.bed)
}

/// Everything that was mounted was mounted in namespaces that ended with their processes. Should a
/// mount be left all the same, deleting would reach through it.
fn remove_folder(bed: &Bed) -> Result<()> {
    let mounts =
        fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    let dir = bed.dir.display().to_string();
    if let Some(place) = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .find(|p| p.starts_with(&dir))
    {
        bail!("{place} is still mounted: unmount it, then run `down` again");
    }
    match fs::remove_dir_all(&bed.dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {dir}"))
        }
        _ => Ok(()),
    }
}
