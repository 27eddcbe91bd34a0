//! Chores of the repository: one entry for tests, lints, benchmarks, calibration and fuzzing.
//!
//! This file holds the command line only; each chore is a module of its own. Nothing here is
//! part of the product, and no chore changes files outside the repository and the user's cache
//! folder (`${XDG_CACHE_HOME:-$HOME/.cache}/forebay`).

mod bed;
mod bench;
mod cluster;
mod codegen;
mod conformance;
mod device;
mod dist;
mod fuzz;
mod helm;
mod image;
mod lint;
mod python;
mod shell;
mod simulator;
mod test;
mod unused;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Chores of the Forebay repository",
    after_help = "Exit codes: 0 done, 1 the chore failed (the reason is the last line on stderr), \
                  2 the command line is wrong.\n\n\
                  Examples:\n  \
                  cargo xtask test                  every test, with the real OpenAI and Anthropic clients\n  \
                  cargo xtask lint                  what CI checks before it runs the tests\n  \
                  cargo xtask bench proxy --quick   one short round beside nginx and Envoy\n  \
                  cargo xtask bench footprint       memory and CPU that the gateway takes by itself\n  \
                  cargo xtask cluster up            a Kubernetes cluster with two nodes on this machine"
)]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Debug, Subcommand)]
enum Chore {
    /// Run the tests of the workspace, with the Python SDK environment prepared
    Test(test::Args),
    /// Check format, lints, documentation, unused dependencies and licences
    Lint,
    /// Build the program as it is shipped and measured
    Dist(dist::Args),
    /// Measure what is promised
    Bench {
        #[command(subcommand)]
        what: Bench,
    },
    /// Run the Gateway API's public conformance suite against Forebay on a test bed
    Conformance(conformance::Args),
    /// Check the device network's driver on a test bed with real nodes
    DeviceNetwork(device::Args),
    /// Real Kubernetes on this machine, to test against
    Cluster {
        #[command(subcommand)]
        action: cluster::Action,
    },
    /// Write the files that follow from something else
    Codegen(codegen::Args),
    /// Pack a built program as a container image
    Image(image::Args),
    /// Run the pinned Helm
    Helm(helm::Args),
    /// Fit the simulator's profiles to published measurements
    Calibrate(simulator::CalibrateArgs),
    /// Compare the simulator with recorded runs of real servers
    Fidelity(simulator::Data),
    /// Run fuzz targets on the nightly toolchain
    Fuzz(fuzz::Args),
    /// The fixed answering server of the proxy benchmark
    #[command(hide = true)]
    MockServer(bench::mock::Args),
    /// The load generator of the proxy benchmark
    #[command(hide = true)]
    Load(bench::load::Args),
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// The gateway beside nginx, Envoy and SGLang's router, in one run
    Proxy(bench::Args),
    /// Rolling updates, scaling and a lost node under load, on real Kubernetes
    Rollout(bench::rollout::Args),
    /// The gateway in front of a large cluster's API server
    Scale(bench::scale::Args),
    /// What routing policies decide, ours and others', in simulated worlds
    #[command(alias = "quality")]
    Decisions(bench::decisions::Args),
    /// Memory of idle pools and of requests under way, CPU of scraping
    Footprint(bench::footprint::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().chore {
        Chore::Test(args) => test::run(&args),
        Chore::Lint => lint::run(),
        Chore::Dist(args) => dist::run(&args),
        Chore::Bench { what } => match what {
            Bench::Proxy(args) => bench::run(&args),
            Bench::Footprint(args) => bench::footprint::run(&args),
            Bench::Decisions(args) => bench::decisions::run(&args),
            Bench::Rollout(args) => bench::rollout::run(&args),
            Bench::Scale(args) => bench::scale::run(&args),
        },
        #[cfg(not(feature = "simulator"))]
        Chore::Calibrate(_) | Chore::Fidelity(_) => simulator::run_with_simulator(),
        #[cfg(feature = "simulator")]
        Chore::Calibrate(args) => simulator::calibrate(&args),
        #[cfg(feature = "simulator")]
        Chore::Fidelity(args) => simulator::fidelity(&args),
        Chore::Cluster { action } => cluster::run(&action),
        Chore::Conformance(args) => conformance::run(&args),
        Chore::DeviceNetwork(args) => device::run(&args),
        Chore::Image(args) => image::run(&args),
        Chore::Helm(args) => helm::run(&args),
        Chore::Codegen(args) => codegen::run(&args),
        Chore::Fuzz(args) => fuzz::run(&args),
        Chore::MockServer(args) => bench::mock::run(&args),
        Chore::Load(args) => bench::load::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
