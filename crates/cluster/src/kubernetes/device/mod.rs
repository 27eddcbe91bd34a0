//! What a driver of devices reads from and writes to an API server: claims that were allocated
//! ([`Claims`]) or are to be ([`Asked`]), the slices of its pool ([`Slices`]), statuses of claims ([`Statuses`]), events
//! ([`Events`]). What devices there are, and what is done with them, is decided elsewhere.
//!
//! Each of the writers tries again until it is done; while the server is away, they wait and nothing else
//! does.

mod asked;
mod claims;
mod events;
mod metrics;
mod node;
mod slices;
mod statuses;

pub use asked::Asked;
pub use claims::{Claims, NoClaim};
pub use events::{Event, Events, Subject};
pub use metrics::DeviceMetrics;
pub use node::{NodeObject, node};
pub use slices::Slices;
pub use statuses::Statuses;
pub(super) use statuses::time;

use std::time::Duration;

/// Waits after something could not be done, doubled up to the longest.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_LONGEST: Duration = Duration::from_secs(60);
/// The group and version that is spoken.
pub(super) const API: &str = "/apis/resource.k8s.io/v1";
