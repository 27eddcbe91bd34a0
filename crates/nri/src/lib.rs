//! The plugin's side of NRI, the Node Resource Interface (github.com/containerd/nri) of container
//! runtimes: multiplexed ttrpc on one socket, registration, events, reconnection.
//!
//! [`frame`] turns bytes into messages without I/O, [`plugin`] serves a [`plugin::Plugin`] to a runtime
//! and comes back to it after it was lost, [`runtime`] is a runtime for tests of plugins. Messages are
//! those of NRI 0.12; runtimes since 0.8 are understood, whichever way they tell of events.

mod connection;
pub mod frame;
pub mod plugin;
pub mod runtime;

pub use connection::{CallError, Code, Refusal};

/// The messages, `nri.pkg.api.v1alpha1`, as they are generated from `proto/nri.proto`.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated, and documented by the NRI project"
)]
pub mod api {
    include!("generated/nri.pkg.api.v1alpha1.rs");
}

#[allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated, and documented in the proto file"
)]
mod ttrpc {
    include!("generated/ttrpc.rs");
}
