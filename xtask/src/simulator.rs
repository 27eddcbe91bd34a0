//! `cargo xtask calibrate` and `cargo xtask fidelity`: the simulator's profiles, made from published
//! measurements and judged against real runs.
//!
//! The measurements are not part of the repository. All the work is `forebay_simulate`'s; this
//! only says where the files are. The simulator is a feature of this program, so that the other
//! chores do not depend on it.

use crate::shell;
use anyhow::Result;
use std::path::PathBuf;

/// Where the measurements lie unless `--data` says otherwise, from the repository's root.
#[cfg(feature = "simulator")]
const DATA: &str = "../shared/data/vllm-serving-truth";

/// Where the profiles lie that are built into the program.
#[cfg(feature = "simulator")]
const PROFILES: &str = "crates/simulate/profiles";

/// This program's manifest, found from any folder.
#[cfg(not(feature = "simulator"))]
const MANIFEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");

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

#[cfg(feature = "simulator")]
impl Data {
    fn folder(&self) -> PathBuf {
        self.folder
            .clone()
            .unwrap_or_else(|| shell::root().join(DATA))
    }
}

/// Fits the profiles to the measurements.
#[cfg(feature = "simulator")]
pub(crate) fn calibrate(args: &CalibrateArgs) -> Result<()> {
    let profiles = shell::root().join(PROFILES);
    let data = args.data.folder();
    let report = forebay_simulate::calibrate::run_calibrate(&data, &profiles, args.check)?;
    println!("{}", report.trim_end());
    Ok(())
}

/// Replays the recorded runs in the simulator and compares; fails outside the limits.
#[cfg(feature = "simulator")]
pub(crate) fn fidelity(args: &Data) -> Result<()> {
    let report = forebay_simulate::fidelity::run_fidelity(&args.folder())?;
    println!("{report}");
    anyhow::ensure!(report.passed(), "the simulator is out of a limit");
    Ok(())
}

/// Runs this same command line again in a build that has the simulator.
#[cfg(not(feature = "simulator"))]
pub(crate) fn run_with_simulator() -> Result<()> {
    shell::run(
        shell::cargo()
            .args([
                "run",
                "--quiet",
                "--features",
                "simulator",
                "--manifest-path",
                MANIFEST,
                "--",
            ])
            .args(std::env::args_os().skip(1))
            // Relative folders on the command line are the caller's, not the repository's.
            .current_dir(std::env::current_dir()?),
    )
}
