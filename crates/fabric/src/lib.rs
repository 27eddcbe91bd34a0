//! Machines as values: what is in them ([`claim`] names who wants what of it), how their parts lie to
//! each other, what of it is published, and how a NIC is to look inside a pod.
//!
//! Pure: no file, no socket, no clock. `forebay-node` reads hosts into these types and acts on them.

pub mod claim;
pub mod cloud;
pub mod config;
pub mod dhcp;
pub mod gpu;
pub mod health;
pub mod ipam;
pub mod machine;
pub mod plan;
pub mod profile;
pub mod publish;
pub mod share;
pub mod synth;
pub mod topology;
pub mod unnamed;
