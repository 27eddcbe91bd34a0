//! Control groups: how a bed knows its processes, and what a node sees as its root.
//!
//! Every program of a bed lives in a group below `forebay-bed/<bed>`, in each hierarchy that the
//! machine has mounted. Ending a bed is ending what is in there, and nothing else can be.
//! With version 1 the groups are below the caller's own; with version 2 alone they are below the
//! root, because a group with processes in it cannot give its children controllers.

use super::plan::Bed;
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The parent of all beds.
const PARENT: &str = "forebay-bed";

/// How long processes may take to vanish after they were killed: a container with a large memory
/// takes the longest.
const KILL_LIMIT: Duration = Duration::from_secs(20);

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hierarchy {
    /// As in `/proc/self/cgroup`: `cpu,cpuacct`, `name=systemd`, or nothing for version 2.
    pub(super) controllers: String,
    pub(super) mount: PathBuf,
    /// The calling process's group in it.
    own: String,
}

impl Hierarchy {
    pub(super) fn is_v2(&self) -> bool {
        self.controllers.is_empty()
    }
}

/// Reads which hierarchies there are and where this process is in each.
pub(super) fn hierarchies() -> Result<Vec<Hierarchy>> {
    let own = fs::read_to_string("/proc/self/cgroup").context("cannot read /proc/self/cgroup")?;
    let mounts =
        fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    let found = parse(&own, &mounts);
    if found.is_empty() {
        bail!("no control group hierarchy is mounted: mount one at /sys/fs/cgroup");
    }
    Ok(found)
}

/// Matches the two kernel files: lines of the first name controllers and a group, lines of the
/// second say where a hierarchy with such controllers is mounted.
pub(super) fn parse(own: &str, mounts: &str) -> Vec<Hierarchy> {
    let mount_of = |controllers: &str| {
        mounts.lines().find_map(|line| {
            let mut words = line.split(' ').skip(1);
            let (place, kind, options) = (words.next()?, words.next()?, words.next()?);
            let fits = match kind {
                "cgroup2" => controllers.is_empty(),
                "cgroup" => {
                    !controllers.is_empty()
                        && controllers
                            .split(',')
                            .all(|word| options.split(',').any(|o| o == word))
                }
                _ => false,
            };
            fits.then(|| PathBuf::from(place))
        })
    };
    own.lines()
        .filter_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, group) = rest.split_once(':')?;
            Some(Hierarchy {
                controllers: controllers.to_owned(),
                mount: mount_of(controllers)?,
                own: group.to_owned(),
            })
        })
        .collect()
}

/// Where the bed's group is in each hierarchy.
pub(super) fn roots(bed: &Bed, hierarchies: &[Hierarchy]) -> Vec<PathBuf> {
    let v2_only = hierarchies.iter().all(Hierarchy::is_v2);
    hierarchies
        .iter()
        .map(|hierarchy| {
            let own = if v2_only {
                ""
            } else {
                hierarchy.own.trim_matches('/')
            };
            hierarchy.mount.join(own).join(PARENT).join(&bed.name)
        })
        .collect()
}

/// The group of this name in each hierarchy.
pub(super) fn under(roots: &[PathBuf], name: &str) -> Vec<PathBuf> {
    roots.iter().map(|root| root.join(name)).collect()
}

/// Makes groups, with those above them, ready for processes. No two threads may make the same.
pub(super) fn create_all(groups: &[PathBuf]) -> Result<()> {
    for group in groups {
        create_one(group).with_context(|| format!("cannot make the group {}", group.display()))?;
    }
    Ok(())
}

/// Makes a group below each of the roots.
pub(super) fn create(roots: &[PathBuf], name: &str) -> Result<Vec<PathBuf>> {
    let groups = under(roots, name);
    create_all(&groups)?;
    Ok(groups)
}

fn create_one(group: &Path) -> Result<()> {
    if group.is_dir() {
        return Ok(());
    }
    let parent = group.parent().context("the root group cannot be made")?;
    create_one(parent)?;
    hand_down_controllers(parent)?;
    fs::create_dir(group)?;
    // A new cpuset of version 1 is empty, and an empty one takes no processes.
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if group.join("cpuset.sched_load_balance").exists() {
            fs::write(group.join(file), fs::read(parent.join(file))?)?;
        }
    }
    Ok(())
}

/// With version 2, lets the children of a group have the controllers that it has itself.
pub(super) fn hand_down_controllers(group: &Path) -> Result<()> {
    let file = group.join("cgroup.subtree_control");
    if !file.exists() {
        return Ok(());
    }
    let available = fs::read_to_string(group.join("cgroup.controllers"))?;
    for controller in available.split_whitespace() {
        fs::write(&file, format!("+{controller}"))
            .with_context(|| format!("cannot hand down {controller} from {}", group.display()))?;
    }
    Ok(())
}

/// Moves the calling process, with what it starts from now on.
pub(super) fn join(groups: &[PathBuf]) -> Result<()> {
    for group in groups {
        fs::write(group.join("cgroup.procs"), "0")
            .with_context(|| format!("cannot join the group {}", group.display()))?;
    }
    Ok(())
}

/// The processes in these groups and all groups below them.
pub(super) fn members(groups: &[PathBuf]) -> BTreeSet<i32> {
    let mut found = BTreeSet::new();
    for group in groups {
        collect(group, &mut found);
    }
    found
}

/// The name that a process was started under; empty if it is gone.
pub(super) fn program_name(pid: i32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let first = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    let text = String::from_utf8_lossy(first);
    Path::new(text.as_ref())
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

fn collect(group: &Path, found: &mut BTreeSet<i32>) {
    // A group that vanished meanwhile has no members.
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    found.extend(
        text.lines()
            .filter_map(|line| line.parse::<i32>().ok())
            .filter(|pid| *pid > 0),
    );
    for child in children(group) {
        collect(&child, found);
    }
}

fn children(group: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(group).into_iter().flatten().flatten();
    entries
        .filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|e| e.path())
        .collect()
}

/// Kills everything in these groups and removes them.
pub(super) fn end(groups: &[PathBuf]) -> Result<()> {
    let deadline = Instant::now() + KILL_LIMIT;
    loop {
        let pids = members(groups);
        if pids.is_empty() {
            break;
        }
        if Instant::now() > deadline {
            bail!(
                "processes {pids:?} did not end within {} s of being killed",
                KILL_LIMIT.as_secs()
            );
        }
        for pid in pids.into_iter().filter_map(Pid::from_raw) {
            // Gone already is as good.
            let _ = kill_process(pid, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    for group in groups {
        remove(group, deadline)?;
        // The folder of all beds goes with the last one.
        if let Some(parent) = group.parent().filter(|parent| parent.ends_with(PARENT)) {
            let _ = fs::remove_dir(parent);
        }
    }
    Ok(())
}

/// Removes a group from the leaves up. A killed process keeps its group busy for a moment.
fn remove(group: &Path, deadline: Instant) -> Result<()> {
    for child in children(group) {
        remove(&child, deadline)?;
    }
    loop {
        match fs::remove_dir(group) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == ErrorKind::ResourceBusy && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("cannot remove the group {}", group.display()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_of_version_1_and_2_are_found_side_by_side() {
        let own = "4:memory:/session/7\n2:cpu,cpuacct:/\n1:name=systemd:/\n0::/\n9:blkio:/\n";
        let mounts = "cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n\
                      cgroup /sys/fs/cgroup/cpu cgroup rw,relatime,cpu,cpuacct 0 0\n\
                      cgroup /sys/fs/cgroup/systemd cgroup rw,name=systemd 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let found: Vec<(String, String)> = parse(own, mounts)
            .into_iter()
            .map(|h| (h.controllers, h.mount.display().to_string() + &h.own))
            .collect();
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(
            found,
            [
                pair("memory", "/sys/fs/cgroup/memory/session/7"),
                pair("cpu,cpuacct", "/sys/fs/cgroup/cpu/"),
                pair("name=systemd", "/sys/fs/cgroup/systemd/"),
                pair("", "/sys/fs/cgroup/unified/"),
            ]
        );
    }
}
