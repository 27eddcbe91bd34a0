//! The log on stderr. Requests are not logged here: the access log is the gateway's, on stdout.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::EnvFilter;

use crate::Failure;
use crate::cli::{LogArgs, LogFormat};

/// Starts logging; once per process.
pub(crate) fn start(args: &LogArgs) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(&args.log).map_err(|error| {
        let help = "try error, warn, info, debug, or info,forebay_gateway=debug";
        Failure::usage(format!("--log {}: {error}; {help}", args.log))
    })?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    match args.log_format {
        LogFormat::Text => {
            let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            log.with_target(false).with_ansi(colours).init();
        }
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    Ok(())
}
