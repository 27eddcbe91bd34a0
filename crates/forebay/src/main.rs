//! The `forebay` program: flags, roles and wiring.
//!
//! Each role has a file of its own: [`gateway`] serves, [`epp`] picks for other proxies and
//! [`epp_check`] reads its configuration, [`node`] is of the device network, [`sim`] stands in for a
//! model server, [`demo`] shows both;
//! [`check`], [`status`] and [`explain`] tell what is going on. Nothing is
//! decided here; this crate only connects the others and talks to the terminal.

mod admin_client;
mod check;
mod cli;
mod config_view;
mod demo;
mod descriptors;
mod epp;
mod epp_check;
mod explain;
mod gateway;
mod kubernetes;
mod logging;
mod manifest_text;
mod node;
mod policy;
mod sim;
mod status;
mod table;

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use cli::epp::EppCommand;
use cli::{Cli, Role};

/// A request makes and frees several dozen small pieces of memory on one thread, which this
/// allocator does without the locks of the system's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Why a command ended without doing what it was asked for.
#[derive(Debug)]
struct Failure {
    /// Exit status: 1 if the world is not as it should be, 2 if the command line is not.
    status: u8,
    /// Empty where everything has been said already.
    message: String,
}

impl Failure {
    /// Something outside of the command line stands in the way.
    fn world(message: impl Into<String>) -> Self {
        Self {
            status: 1,
            message: message.into(),
        }
    }

    /// The command line asks for something that cannot be.
    fn usage(message: impl Into<String>) -> Self {
        Self {
            status: 2,
            message: message.into(),
        }
    }
}

fn main() -> ExitCode {
    match run(Cli::parse_from(epp::compatible(std::env::args_os())).role) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.message.is_empty() {
                eprintln!("forebay: {}", failure.message);
            }
            ExitCode::from(failure.status)
        }
    }
}

fn run(role: Role) -> Result<(), Failure> {
    match role {
        Role::Gateway(args) => gateway::run(&args),
        Role::Epp(args) => match &args.command {
            Some(EppCommand::Check(check)) => epp_check::run(check),
            None => epp::run(&args),
        },
        Role::Node(args) => node::run(&args),
        Role::Sim(args) => sim::run(args),
        Role::Demo(args) => demo::run(&args),
        Role::Check(args) => check::run(args),
        Role::Status(args) => status::run(&args),
        Role::Explain(args) => explain::run(&args),
        Role::Features => print(&(forebay_api::features::SUPPORTED.join("\n") + "\n")),
        Role::Completions { shell } => completions(shell),
    }
}

fn completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "forebay", &mut script);
    print(&String::from_utf8_lossy(&script))
}

/// Writes to stdout. A reader that has seen enough (`forebay status | head`) is no failure.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::world(format!("cannot write to stdout: {error}")))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}
