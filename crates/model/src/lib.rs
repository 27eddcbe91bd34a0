//! The words that every other crate uses, already valid: pools, endpoints, routes, objectives,
//! units, and the [`Snapshot`] that the runtime swaps in whole.
//!
//! Nothing here reads a clock, a socket or a file, and nothing here can be half valid: what a user
//! got wrong is a [`route::Target::Broken`] or a [`snapshot::Problem`] with a reason.
//! Objects become these values in `forebay-api`; decisions over them live in `forebay-decide`.

pub mod endpoint;
pub mod kv;
pub mod load;
pub mod matching;
pub mod moment;
pub mod name;
pub mod picker;
pub mod policy;
pub mod pool;
pub mod route;
pub mod snapshot;

pub use endpoint::{Endpoint, Engine, Role, Topology};
pub use load::Load;
pub use moment::Moment;
pub use name::ObjectName;
pub use picker::PickerConfig;
pub use pool::{AppProtocol, Pool};
pub use snapshot::Snapshot;
