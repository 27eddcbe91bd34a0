//! File descriptors: every connection takes one, and the usual soft limit of 1,024 would be reached
//! long before the gateway's own bounds.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Below this many descriptors, connections are refused under loads that the gateway can bear:
/// each streaming request takes two.
const DESCRIPTORS_WANTED: u64 = 65_536;

/// Raises the soft limit to the hard one. Gives the limit if it is not much even so.
pub(crate) fn raise_limit() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let current = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    // No limit at all is `None`.
    current.filter(|descriptors| *descriptors < DESCRIPTORS_WANTED)
}

/// Raises the limit, and warns if that is not much.
pub(crate) fn raise_limit_or_warn() {
    if let Some(descriptors) = raise_limit() {
        tracing::warn!(
            descriptors,
            "few file descriptors: about {} requests at a time; raise the hard limit (ulimit -Hn, \
             LimitNOFILE=) to {DESCRIPTORS_WANTED} or more",
            descriptors / 2
        );
    }
}
