//! An API server as a source of objects, and what is written back to it.
//!
//! [`Server`] is asked; [`KubernetesSource`] follows every kind that `forebay-api` reads and publishes;
//! a [`Controller`] writes statuses and infrastructure, if it is elected among its like. Within,
//! `watch` follows one kind, `kinds` all of them, `mirror` knows what has come of it, `statuses` and
//! `lease` keep the books of writing and of the election. What any object means, and what is to be
//! made, is decided in `forebay-api`. [`device`] is what a driver of devices has to do with the server,
//! [`profiles`] what is done for all nodes with such a driver, [`admission`] what the server asks before it
//! takes an object.

pub mod admission;
mod backoff;
mod controller;
pub mod device;
mod discovery;
mod infrastructure;
mod kinds;
mod lease;
mod metrics;
mod mirror;
pub mod profiles;
mod read;
mod server;
mod source;
mod statuses;
mod watch;

pub use controller::{Controller, ControllerOptions, Election};
pub use metrics::Metrics;
pub use server::{NoServer, Server};
pub use source::KubernetesSource;
