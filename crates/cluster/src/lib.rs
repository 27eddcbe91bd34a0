//! Sources of objects: files and folders of YAML, read once ([`check`]) or watched ([`FileSource`]),
//! and the Kubernetes API ([`kubernetes`]). A source feeds `forebay-api`'s index and publishes whole
//! snapshots on a watch channel; what the objects mean is decided there, not here. A [`PickerFile`] is
//! the policy of pools that have none of their own.

mod files;
mod folder;
pub mod kubernetes;
pub mod manifest;
mod picker_file;

pub use files::{FileSource, Published, Reread, check};
pub use picker_file::{PickerFile, PickerInForce};
