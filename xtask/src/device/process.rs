//! The driver as a process of a node, without a pod around it: it can be ended and be there again at once,
//! where a DaemonSet's pod would wait longer after each end.

use super::world::{Node, World, kill, signal};
use crate::shell;
use anyhow::{Context, Result};
use rustix::process::Signal;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a driver may take to end when it is asked to.
const LEAVE_MAX: Duration = Duration::from_secs(15);

/// A driver that runs until it is dropped.
pub(super) struct Driver {
    node: Node,
    program: PathBuf,
    kubeconfig: PathBuf,
    init: u32,
    child: Mutex<Child>,
}

impl Driver {
    /// Starts it on a node that has no other.
    pub(super) fn start(world: &World<'_>, node: &Node) -> Result<Driver> {
        let (program, kubeconfig) = (world.program.clone(), world.bed.kubeconfig().to_owned());
        let init = node.init()?;
        let child = spawn(node, init, &program, &kubeconfig)?;
        Ok(Driver {
            node: node.clone(),
            program,
            kubeconfig,
            init,
            child: Mutex::new(child),
        })
    }

    /// Its process id now.
    pub(super) fn pid(&self) -> u32 {
        self.child().id()
    }

    /// Ends it without warning, and starts the next one.
    pub(super) fn kill(&self) -> Result<()> {
        let mut child = self.child();
        child.kill().context("the driver is not there")?;
        child.wait().context("the driver is lost")?;
        *child = spawn(&self.node, self.init, &self.program, &self.kubeconfig)?;
        Ok(())
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let mut child = self.child();
        // Asked to end it takes its sockets away. It may have ended by itself.
        let _ = signal(child.id(), Signal::TERM);
        let until = Instant::now() + LEAVE_MAX;
        while Instant::now() < until {
            if !matches!(child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Ends what a run before this one left on a node, which was itself ended.
pub(super) fn end_left(node: &Node) -> Result<()> {
    let is_left = |words: &[&[u8]]| {
        words.len() > 3
            && words[1..3] == [&b"node"[..], b"run"]
            // The chart's has the credentials of its pod.
            && words.contains(&&b"--kubeconfig"[..])
    };
    node.processes(is_left)?.into_iter().try_for_each(kill)
}

/// In the namespaces of the node, and in its control groups, so that it ends with the bed at the latest.
fn spawn(node: &Node, init: u32, program: &Path, kubeconfig: &Path) -> Result<Child> {
    let log = node.logs.join("driver.log");
    let log = File::options()
        .create(true)
        .append(true)
        .open(&log)
        .with_context(|| format!("cannot write {}", log.display()))?;
    let mut command = Command::new(std::env::current_exe().context("this program has no path")?);
    command.args(["cluster", "launch", "--netns"]);
    command.arg(format!("/proc/{init}/ns/net"));
    for group in groups(init)? {
        command.arg("--group").arg(group);
    }
    command
        .arg("--")
        .arg(shell::which("nsenter").context("nsenter is not installed")?)
        .args([&format!("--target={init}"), "--mount", "--"])
        .arg(program)
        .args(["node", "run", "--node", &node.name, "--kubeconfig"])
        .arg(kubeconfig);
    for name in super::world::PUBLISHED {
        command.args(["--virtual", name]);
    }
    command
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("the driver does not start")
}

/// The control groups of a process, as folders.
fn groups(pid: u32) -> Result<Vec<PathBuf>> {
    let path = format!("/proc/{pid}/cgroup");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let folder = |line: &str| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let name = controllers.strip_prefix("name=").unwrap_or(controllers);
        let folder = Path::new("/sys/fs/cgroup")
            .join(name)
            .join(path.trim_start_matches('/'));
        folder.join("cgroup.procs").is_file().then_some(folder)
    };
    Ok(text.lines().filter_map(folder).collect())
}
