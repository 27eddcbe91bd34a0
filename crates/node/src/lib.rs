//! The host: reads what is in it, answers the kubelet's DRA calls and the runtime's NRI events, moves
//! NICs into pods and back. What is to be done is decided by `forebay-fabric`; who asks, and how, stays
//! in the shells here, which know the host's side only as a [`driver::Driver`].

pub mod attach;
pub mod cdi;
pub mod cloud;
pub mod driver;
mod files;
pub mod filter;
pub mod guard;
pub mod held;
pub mod inventory;
pub mod ipam;
pub mod kubelet;
pub mod ledger;
pub mod metadata;
pub mod netlink;
pub mod netns;
pub mod nvidia;
pub mod observed;
pub mod page;
pub mod rdma;
pub mod report;
pub mod runtime;
pub mod sysfs;
pub mod uplinks;
