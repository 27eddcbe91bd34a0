//! Sources of objects. Today: files and folders of YAML, read once ([`check`]) or watched
//! ([`FileSource`]). A source feeds `forebay-api`'s index and publishes whole snapshots on a watch
//! channel; what the objects mean is decided there, not here.

mod files;
mod folder;
pub mod manifest;

pub use files::{FileSource, Published, Reread, check};
