//! `forebay check`: reads manifests as the gateway would and prints what is wrong with them. Serves
//! nothing and opens no port.

use forebay_api::describe;

use crate::cli::CheckArgs;
use crate::{Failure, config_view, print};

/// Checks `args.paths`.
pub(crate) fn run(args: CheckArgs) -> Result<(), Failure> {
    config_view::check_paths(&args.paths)?;
    let published = forebay_cluster::check(args.paths);
    let snapshot = &published.snapshot;
    let mut text = config_view::render_problems(&snapshot.problems);
    if args.dump {
        let described = describe::snapshot(snapshot);
        text.extend(
            described
                .lines()
                .filter(|l| !l.starts_with("problem "))
                .map(|l| l.to_owned() + "\n"),
        );
    }
    text += &describe::statuses(&published.statuses);
    let counts = config_view::counts(&snapshot.problems);
    text += &format!(
        "{} ports, {} pools, {} errors, {} warnings\n",
        snapshot.ports.len(),
        snapshot.pools.len(),
        counts.errors,
        counts.warnings
    );
    print(&text)?;
    match counts.errors {
        0 => Ok(()),
        _ => Err(Failure::world("")),
    }
}
