//! The Kubernetes contract: the kinds that Forebay reads, their rules, and the [`Index`] that turns
//! a stream of objects into the model and into status conditions.
//!
//! Pure: no client, no files, no clock. `forebay-cluster` feeds it; `forebay-gateway` serves what
//! comes out. An object passes one door, [`Object::parse`]; past it nothing is refused any more.

pub mod describe;
mod duration;
pub mod features;
pub mod index;
pub mod infrastructure;
mod kind;
mod kinds;
mod lower;
pub mod object;
pub mod picker_config;
pub mod reason;
pub mod settings;
pub mod status;
mod validate;

pub use index::{Index, Publication};
pub use lower::pools::{PICKER_ANNOTATION, PICKER_TLS_ANNOTATION};
pub use object::{Kind, Object, Parsed};
pub use settings::{Origin, Settings};
pub use status::ObjectStatus;
