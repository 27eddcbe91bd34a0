//! The plugin's side of NRI, the Node Resource Interface (github.com/containerd/nri) of container
//! runtimes: multiplexed ttrpc on one socket, registration, events, reconnection.
