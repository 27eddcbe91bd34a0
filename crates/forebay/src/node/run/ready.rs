//! Whether the driver is ready, kept by the driver, and asked by `forebay node ready`.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::Failure;
use crate::cli::node::ReadyArgs;

/// How long the driver may take for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Bytes of an answer that are read.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// What there has to be.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Part {
    /// The kubelet's registration.
    Kubelet,
    /// The plugin's registration at the runtime.
    Runtime,
    /// The slices; once there they count as there, since they outlive every process.
    Slices,
}

/// What is missing, and why.
#[derive(Debug)]
pub(super) struct Readiness(Mutex<BTreeMap<Part, String>>);

impl Default for Readiness {
    fn default() -> Readiness {
        let missing = [
            (Part::Kubelet, "the kubelet has not come yet"),
            (Part::Runtime, "the container runtime was not reached yet"),
            (Part::Slices, "no slice is published yet"),
        ];
        let missing = missing.map(|(part, why)| (part, why.to_owned()));
        Readiness(Mutex::new(BTreeMap::from(missing)))
    }
}

impl Readiness {
    /// A part is there, or is missing for this reason.
    pub(super) fn set(&self, part: Part, missing: Option<String>) {
        let mut parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match missing {
            Some(why) => parts.insert(part, why),
            None => parts.remove(&part),
        };
    }

    /// Why the driver is not ready; none if it is.
    pub(super) fn missing(&self) -> Option<String> {
        let parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let whys: Vec<&str> = parts.values().map(String::as_str).collect();
        (!whys.is_empty()).then(|| whys.join("\n"))
    }
}

/// Asks a driver.
pub(crate) fn run(args: &ReadyArgs) -> Result<(), Failure> {
    let path = args.socket.display();
    let answer = ask(args).map_err(|error| Failure::world(format!("{path}: {error}")))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    match head.split_ascii_whitespace().nth(1) {
        Some("200") => Ok(()),
        _ => Err(Failure::world(format!("not ready: {}", body.trim()))),
    }
}

fn ask(args: &ReadyArgs) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(&args.socket)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    stream.set_write_timeout(Some(ANSWER_MAX))?;
    let page = if args.live { "healthz" } else { "readyz" };
    let request = format!("GET /{page} HTTP/1.1\r\nHost: driver\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_is_ready_when_nothing_is_missing_and_says_what_is() {
        let readiness = Readiness::default();
        readiness.set(Part::Kubelet, None);
        readiness.set(Part::Slices, None);
        readiness.set(Part::Runtime, Some("no socket".to_owned()));
        assert_eq!(readiness.missing().as_deref(), Some("no socket"));
        readiness.set(Part::Runtime, None);
        assert_eq!(readiness.missing(), None);
    }
}
