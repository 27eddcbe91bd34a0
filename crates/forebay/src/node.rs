//! `forebay node`: the driver of a node ([`run`](mod@run)), what is done for all nodes ([`controller`]), what a
//! host has ([`inventory`]), whether manifests ask for what can be ([`lint`]), and the guard that runtimes call.

mod controller;
mod inventory;
mod lint;
mod run;

use std::io::{self, Read as _};

use forebay_node::guard;

use crate::Failure;
use crate::cli::node::{GuardArgs, NodeArgs, NodeCommand};

/// Does what `args` say.
pub(crate) fn run(args: &NodeArgs) -> Result<(), Failure> {
    match &args.command {
        NodeCommand::Run(args) => run::run(args),
        NodeCommand::Controller(args) => controller::run(args),
        NodeCommand::Ready(args) => run::ready(args),
        NodeCommand::Inventory(args) => inventory::run(args),
        NodeCommand::Lint(args) => lint::run(args),
        NodeCommand::Guard(args) => guarded(args),
    }
}

/// Whatever goes wrong here stops the container.
fn guarded(args: &GuardArgs) -> Result<(), Failure> {
    let limit = guard::STATE_BYTES_MAX as u64 + 1;
    let mut state = String::new();
    let read = io::stdin().lock().take(limit).read_to_string(&mut state);
    if let Err(error) = read {
        return Err(Failure::world(format!(
            "claim {}: the container's state cannot be read from the standard input: {error}",
            args.claim
        )));
    }
    if state.len() > guard::STATE_BYTES_MAX {
        return Err(Failure::world(format!(
            "claim {}: the container's state is longer than {} bytes",
            args.claim,
            guard::STATE_BYTES_MAX
        )));
    }
    guard::guard(&args.state_dir, &args.claim, &state).map_err(Failure::world)
}
