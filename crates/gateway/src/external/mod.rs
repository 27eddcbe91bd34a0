//! Pickers outside of this process: endpoint pickers that speak Envoy's external processing.
//!
//! What is allowed is in [`protocol`]; how heads are shown and what of them may change in [`message`],
//! [`mutation`] and [`destination`]. All of it is pure. Nothing here chooses an endpoint.

pub mod destination;
pub mod message;
pub mod mutation;
pub mod protocol;
