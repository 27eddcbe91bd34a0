//! LLM APIs as bytes: what a gateway must know of requests and answers, found without parsing more
//! than needed and without copying.
//!
//! No sockets, no clock, no policy: what is found here is decided upon in `forebay-decide` and
//! relayed by `forebay-gateway`. Requests: [`path`], [`scan`], [`multipart`], [`splice`]. Answers:
//! [`events`], [`observe`], [`splice::ModelRestorer`], [`error`], [`models`]. Model servers:
//! [`metrics`], [`kv_events`].

pub mod error;
pub mod events;
mod json;
pub mod kv_events;
pub mod metrics;
pub mod models;
pub mod multipart;
pub mod observe;
pub mod path;
mod prometheus;
pub mod scan;
pub mod splice;
mod track;
mod usage;

pub use events::WholeEvents;
pub use observe::{ResponseObserver, TokenCounts, Usage};
pub use path::{Api, BodyKind, Dialect};
pub use scan::{Scan, ScanError, Span, Text};
pub use splice::{ModelRestorer, replace_model};
