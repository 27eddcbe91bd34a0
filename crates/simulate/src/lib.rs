//! Stand-ins: an engine that behaves like a model server's, a server around it that speaks vLLM's
//! API, and load to put on it.
//!
//! [`engine`] is a pure step function; its step times come from a [`profile`] that was calibrated on
//! published measurements ([`calibrate`]) and is checked against real runs ([`fidelity`]).
//! [`server`] is `forebay sim`, [`load`] the load generator. Nothing here decides about routing:
//! [`world`] lets `forebay-decide` and the policies of others do so in virtual time, and compares.

pub mod calibrate;
pub mod engine;
pub mod fidelity;
mod grid;
pub mod load;
pub mod profile;
pub mod server;
pub mod world;

pub use grid::{Curve, Grid2, Grid4};
