//! `cargo xtask calibrate` and `cargo xtask fidelity`: the simulator's profiles, made from published
//! measurements and judged against real runs.
//!
//! The measurements are not part of the repository. All the work is `forebay_simulate`'s; this
//! only says where the files are.

use crate::shell;
use anyhow::{Result, bail};
use std::path::{Path, PathBuf};

/// Where the measurements lie unless `--data` says otherwise, from the repository's root.
const DATA: &str = "../shared/data/vllm-serving-truth";

/// Where the profiles lie that are built into the program.
const PROFILES: &str = "crates/simulate/profiles";

/// How to calibrate.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    cargo xtask calibrate            fit again and write the profiles\n  \
    cargo xtask calibrate --check    fail when the profiles are not what the data gives")]
pub(crate) struct CalibrateArgs {
    #[command(flatten)]
    data: Data,
    /// Compare only; fail when a profile differs
    #[arg(long)]
    check: bool,
}

/// Where the measurements are.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  cargo xtask fidelity --data ~/vllm-serving-truth")]
pub(crate) struct Data {
    /// Folder with the measurements [default: ../shared/data/vllm-serving-truth]
    #[arg(long = "data", value_name = "DIR")]
    folder: Option<PathBuf>,
}

impl Data {
    fn folder(&self) -> PathBuf {
        self.folder
            .clone()
            .unwrap_or_else(|| shell::root().join(DATA))
    }
}

/// Fits the profiles to the measurements.
pub(crate) fn calibrate(args: &CalibrateArgs) -> Result<()> {
    let profiles: &Path = &shell::root().join(PROFILES);
    let report =
        forebay_simulate::calibrate::run_calibrate(&args.data.folder(), profiles, args.check)?;
    println!("{}", report.trim_end());
    Ok(())
}

/// Replays the recorded runs in the simulator and compares; fails outside the limits.
pub(crate) fn fidelity(args: &Data) -> Result<()> {
    let report = forebay_simulate::fidelity::run_fidelity(&args.folder())?;
    println!("{report}");
    if !report.passed() {
        bail!("the simulator is out of a limit");
    }
    Ok(())
}
