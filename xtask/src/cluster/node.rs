//! A node. (Next step.)
/// The programs as `status` lists them.
pub(super) const PROGRAMS: [&str; 3] = ["containerd", "kubelet", "kube-proxy"];
