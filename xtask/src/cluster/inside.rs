//! A node, seen from inside: the hidden command that becomes the first process of a node's
//! namespaces.
//!
//! It gives the node a `/run`, `/var/lib`, `/var/log` and `/sys` of its own, starts containerd,
//! imports the images, starts kube-proxy and the kubelet, and stays to start one again that ends, as the
//! init of a real node does. The rest of the file system is the machine's. Nothing here outlives the mount
//! namespace.

use super::cgroup::{self, Hierarchy};
use super::config::CONTAINERD_SOCKET;
use super::process::tail;
use crate::shell;
use anyhow::{Context, Result, bail};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use serde::{Deserialize, Serialize};
use std::ffi::CString;
use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Spawn, Stdio};
use std::time::{Duration, Instant};

/// The folders of a node that become its `/var/lib` and `/var/log`.
pub(super) const VAR_LIB: &str = "var-lib";
pub(super) const VAR_LOG: &str = "var-log";

/// A program that ends sooner than this after its start, so many times in a row, does not work and is not
/// started again.
const LIFE_MIN: Duration = Duration::from_secs(2);
const SHORT_LIVES_MAX: u32 = 4;

/// Until containerd answers: 1 s on an idle machine.
const RUNTIME_LIMIT: Duration = Duration::from_secs(60);

/// Kernel settings that a kubelet insists on writing and that belong to the whole machine. Each
/// node gets a file of its own in their place.
const SHADOWED: [&str; 6] = [
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];

/// What to do inside, as handed over in a file.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Spec {
    pub(super) dir: PathBuf,
    /// As mounted on the machine.
    pub(super) hierarchies: Vec<Hierarchy>,
    pub(super) runtime: Command,
    pub(super) ctr: PathBuf,
    /// Archives to import before the kubelet starts.
    pub(super) images: Vec<PathBuf>,
    pub(super) agents: Vec<Command>,
}

/// A program of the node.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Command {
    pub(super) name: String,
    pub(super) executable: PathBuf,
    pub(super) arguments: Vec<String>,
    pub(super) log: PathBuf,
}

/// The hidden command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// File that says what to do
    spec: PathBuf,
}

/// One change to what the node sees of the file system.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// A new file system at a folder, which is made if need be.
    Mount {
        kind: &'static str,
        at: PathBuf,
        options: String,
    },
    /// A file or folder in place of another.
    Bind { from: PathBuf, over: PathBuf },
}

/// Sets the node up and stays until one of its programs cannot be kept running.
pub(super) fn run(args: &Args) -> Result<()> {
    let bytes =
        fs::read(&args.spec).with_context(|| format!("cannot read {}", args.spec.display()))?;
    let spec: Spec = serde_json::from_slice(&bytes).context("the node's file is damaged")?;
    copy_settings(&spec.dir)?;
    for step in plan(&spec) {
        apply(&step)?;
    }
    leave_root_group(&spec.hierarchies)?;
    // Kubernetes hands mounts on between pods and the node, but they must not reach the machine:
    // this makes a new group of peers, in this namespace alone.
    mount_change(
        "/",
        MountPropagationFlags::SHARED | MountPropagationFlags::REC,
    )
    .context("cannot make the mounts shared")?;

    let mut children = vec![start(&spec.runtime)?];
    wait_for_runtime(&mut children)?;
    for image in &spec.images {
        shell::capture(
            Spawn::new(&spec.ctr)
                .args([
                    "--address",
                    CONTAINERD_SOCKET,
                    "--namespace",
                    "k8s.io",
                    "images",
                    "import",
                ])
                .arg(image),
        )
        .with_context(|| format!("cannot import {}", image.display()))?;
    }
    for agent in &spec.agents {
        children.push(start(agent)?);
    }
    println!("node started");
    loop {
        keep(&mut children)?;
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Starts programs again that have ended.
fn keep(children: &mut [Running<'_>]) -> Result<()> {
    for running in children {
        let ended = running
            .child
            .try_wait()
            .context("lost sight of a program")?;
        let Some(status) = ended else { continue };
        let Running { command, since, .. } = running;
        let short_lives = if since.elapsed() < LIFE_MIN {
            running.short_lives + 1
        } else {
            0
        };
        if short_lives >= SHORT_LIVES_MAX {
            bail!(
                "{} ended with {status}: {}",
                command.name,
                tail(&command.log)
            );
        }
        println!("{} ended with {status} and is started again", command.name);
        *running = Running {
            short_lives,
            ..start(command)?
        };
    }
    Ok(())
}

/// What the node sees that differs from the machine, in order.
fn plan(spec: &Spec) -> Vec<Step> {
    let mount = |kind, at: &Path, options: &str| Step::Mount {
        kind,
        at: at.to_owned(),
        options: options.to_owned(),
    };
    // A new /sys, since it shows the interfaces of the namespace that it was mounted from.
    let mut steps = vec![mount("sysfs", Path::new("/sys"), "")];
    let v1 = |hierarchy: &&Hierarchy| !hierarchy.is_v2();
    if spec.hierarchies.iter().any(|h| v1(&h)) {
        steps.push(mount("tmpfs", Path::new("/sys/fs/cgroup"), "mode=755"));
    }
    for hierarchy in &spec.hierarchies {
        steps.push(if hierarchy.is_v2() {
            mount("cgroup2", &hierarchy.mount, "")
        } else if hierarchy.controllers.starts_with("name=") {
            mount(
                "cgroup",
                &hierarchy.mount,
                &format!("none,{}", hierarchy.controllers),
            )
        } else {
            mount("cgroup", &hierarchy.mount, &hierarchy.controllers)
        });
    }
    steps.push(mount("tmpfs", Path::new("/run"), "mode=755"));
    for (folder, over) in [(VAR_LIB, "/var/lib"), (VAR_LOG, "/var/log")] {
        steps.push(Step::Bind {
            from: spec.dir.join(folder),
            over: over.into(),
        });
    }
    steps.extend(SHADOWED.iter().map(|setting| Step::Bind {
        from: shadow(&spec.dir, setting),
        over: Path::new("/proc/sys").join(setting),
    }));
    steps
}

fn apply(step: &Step) -> Result<()> {
    match step {
        Step::Mount { kind, at, options } => {
            if !at.is_dir() {
                fs::create_dir_all(at)
                    .with_context(|| format!("cannot create {}", at.display()))?;
            }
            let options = CString::new(options.as_str())?;
            mount(*kind, at, *kind, MountFlags::empty(), options.as_c_str())
                .with_context(|| format!("cannot mount {kind} ({options:?}) at {}", at.display()))
        }
        Step::Bind { from, over } => mount_bind(from, over)
            .with_context(|| format!("cannot put {} over {}", from.display(), over.display())),
    }
}

/// The node's own copy of a kernel setting.
fn shadow(dir: &Path, setting: &str) -> PathBuf {
    dir.join("settings").join(setting.replace('/', "."))
}

fn copy_settings(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir.join("settings"))
        .context("cannot create the folder of kernel settings")?;
    for setting in SHADOWED {
        let real = Path::new("/proc/sys").join(setting);
        let value = fs::read(&real).with_context(|| format!("cannot read {}", real.display()))?;
        fs::write(shadow(dir, setting), value)?;
    }
    Ok(())
}

/// With version 2 a group that hands controllers down may not have processes: this one moves into
/// a child and the kubelet's groups come beside it.
fn leave_root_group(hierarchies: &[Hierarchy]) -> Result<()> {
    if !hierarchies.iter().all(Hierarchy::is_v2) {
        return Ok(());
    }
    for hierarchy in hierarchies {
        let group = hierarchy.mount.join("node");
        fs::create_dir_all(&group).context("cannot make the group of the node's own programs")?;
        cgroup::join(&[group])?;
        cgroup::hand_down_controllers(&hierarchy.mount)?;
    }
    Ok(())
}

/// A program that runs, with what its end would be explained by.
struct Running<'a> {
    command: &'a Command,
    child: Child,
    since: Instant,
    /// Times in a row that it ended soon after its start.
    short_lives: u32,
}

fn start(command: &Command) -> Result<Running<'_>> {
    let log = File::options()
        .create(true)
        .append(true)
        .open(&command.log)
        .with_context(|| format!("cannot write {}", command.log.display()))?;
    let child = Spawn::new(&command.executable)
        .args(&command.arguments)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start {}", command.executable.display()))?;
    Ok(Running {
        command,
        child,
        since: Instant::now(),
        short_lives: 0,
    })
}

fn wait_for_runtime(children: &mut [Running<'_>]) -> Result<()> {
    let deadline = Instant::now() + RUNTIME_LIMIT;
    while UnixStream::connect(CONTAINERD_SOCKET).is_err() {
        check(children)?;
        if Instant::now() > deadline {
            bail!(
                "containerd does not listen after {} s",
                RUNTIME_LIMIT.as_secs()
            );
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn check(children: &mut [Running<'_>]) -> Result<()> {
    for Running { command, child, .. } in children {
        if let Some(status) = child.try_wait().context("lost sight of a program")? {
            bail!(
                "{} ended with {status}: {}",
                command.name,
                tail(&command.log)
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(own: &str, mounts: &str) -> Spec {
        let command = || Command {
            name: String::new(),
            executable: PathBuf::new(),
            arguments: Vec::new(),
            log: PathBuf::new(),
        };
        Spec {
            dir: PathBuf::from("/n"),
            hierarchies: cgroup::parse(own, mounts),
            runtime: command(),
            ctr: PathBuf::new(),
            images: Vec::new(),
            agents: vec![],
        }
    }

    fn mounts(spec: &Spec) -> Vec<String> {
        let steps = plan(spec);
        steps
            .iter()
            .map(|step| match step {
                Step::Mount { kind, at, options } => format!("{kind} {} {options}", at.display()),
                Step::Bind { from, over } => format!("{} over {}", from.display(), over.display()),
            })
            .take_while(|line| !line.contains("settings"))
            .collect()
    }

    #[test]
    fn version_1_hierarchies_are_mounted_anew_below_a_fresh_folder() {
        let spec = spec(
            "2:cpu:/a\n1:name=systemd:/\n",
            "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
             cgroup /sys/fs/cgroup/systemd cgroup rw,name=systemd 0 0\n",
        );
        assert_eq!(
            mounts(&spec),
            [
                "sysfs /sys ",
                "tmpfs /sys/fs/cgroup mode=755",
                "cgroup /sys/fs/cgroup/cpu cpu",
                "cgroup /sys/fs/cgroup/systemd none,name=systemd",
                "tmpfs /run mode=755",
                "/n/var-lib over /var/lib",
                "/n/var-log over /var/log",
            ]
        );
    }

    #[test]
    fn version_2_alone_needs_no_folder_around_it() {
        let spec = spec("0::/a\n", "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n");
        assert_eq!(mounts(&spec)[1], "cgroup2 /sys/fs/cgroup ");
    }
}
