//! The programs of a bed: starting each in its namespaces and groups, and noticing when one ends.
//!
//! A program is started by way of this very program (`cargo xtask cluster launch`, hidden), which
//! joins the groups and the network namespace and then becomes it. Nobody waits for it: it goes on
//! after `up` has ended, and ends by its group (`cgroup::end`).

use super::{cgroup, network};
use anyhow::{Context, Result, anyhow, bail};
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Between two looks at a condition.
const POLL: Duration = Duration::from_millis(100);

/// A program to start.
#[derive(Debug)]
pub(super) struct Program {
    /// For messages.
    pub(super) name: String,
    pub(super) executable: PathBuf,
    pub(super) arguments: Vec<String>,
    pub(super) netns: String,
    pub(super) groups: Vec<PathBuf>,
    /// Both output streams go here.
    pub(super) log: PathBuf,
}

/// A program that was started.
#[derive(Debug)]
pub(super) struct Process {
    name: String,
    log: PathBuf,
    child: Child,
}

/// The hidden command that a program starts as.
#[derive(Debug, clap::Args)]
pub(crate) struct LaunchArgs {
    /// Control groups to join
    #[arg(long)]
    group: Vec<PathBuf>,
    /// File of the network namespace to join
    #[arg(long)]
    netns: PathBuf,
    /// The program and its arguments
    #[arg(last = true, required = true)]
    program: Vec<OsString>,
}

impl Program {
    pub(super) fn start(&self) -> Result<Process> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("cannot write {}", self.log.display()))?;
        let mut command = Command::new(this_program()?);
        command
            .args(["cluster", "launch", "--netns"])
            .arg(network::netns_file(&self.netns));
        for group in &self.groups {
            command.arg("--group").arg(group);
        }
        let child = command
            .arg("--")
            .arg(&self.executable)
            .args(&self.arguments)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", self.name))?;
        Ok(Process {
            name: self.name.clone(),
            log: self.log.clone(),
            child,
        })
    }
}

/// The file of this program, also when it was built anew since it was started.
pub(super) fn this_program() -> Result<PathBuf> {
    let path = fs::read_link("/proc/self/exe").context("cannot find this program's own file")?;
    let text = path.to_string_lossy();
    Ok(text
        .strip_suffix(" (deleted)")
        .map_or_else(|| path.clone(), PathBuf::from))
}

/// This thread's network is that of a namespace from now on.
pub(crate) fn enter(netns: &Path) -> Result<()> {
    let file = File::open(netns)
        .with_context(|| format!("cannot open the network namespace {}", netns.display()))?;
    rustix::thread::move_into_link_name_space(file.as_fd(), None)
        .with_context(|| format!("cannot join the network namespace {}", netns.display()))
}

/// Becomes the program; returns only if that fails.
pub(super) fn launch(args: &LaunchArgs) -> Result<()> {
    cgroup::join(&args.group)?;
    rustix::process::setsid().context("cannot leave the terminal's session")?;
    enter(&args.netns)?;
    let (program, arguments) = args.program.split_first().context("no program to start")?;
    let error = Command::new(program).args(arguments).exec();
    Err(anyhow!(error).context(format!("cannot start {}", program.to_string_lossy())))
}

impl Process {
    /// An error if the program has ended, with the end of its log.
    pub(super) fn check(&mut self) -> Result<()> {
        let Some(status) = self.child.try_wait().context("lost sight of a program")? else {
            return Ok(());
        };
        bail!(
            "{} ended with {status}; the end of {}:\n{}",
            self.name,
            self.log.display(),
            tail(&self.log)
        );
    }
}

/// The last lines of a log, of bounded length.
pub(super) fn tail(log: &Path) -> String {
    const LINES: usize = 8;
    const LINE_MAX: usize = 400;
    let bytes = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<String> = text
        .lines()
        .map(|l| l.chars().take(LINE_MAX).collect())
        .collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

/// Waits until the probe says yes. Ends early when one of the programs does. A probe's error is
/// taken as "not yet" and told if the time runs out.
pub(super) fn wait_for(
    what: &str,
    limit: Duration,
    processes: &mut [Process],
    mut probe: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        let answer = probe();
        if matches!(answer, Ok(true)) {
            return Ok(());
        }
        for process in processes.iter_mut() {
            process.check()?;
        }
        if Instant::now() > deadline {
            let late = format!("{what}: not within {} s", limit.as_secs());
            return Err(match answer {
                Err(error) => error.context(late),
                Ok(_) => anyhow!(late),
            });
        }
        std::thread::sleep(POLL);
    }
}
