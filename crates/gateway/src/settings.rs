//! Limits and addresses of the data plane. Every bound a request can meet is named here.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// How the data plane runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Worker threads, each with its own runtime and upstream connections.
    pub workers: usize,
    /// Address that the ports of Gateways are opened on.
    pub bind: IpAddr,
    /// Address of the admin server.
    pub admin: Option<SocketAddr>,
    /// Bytes of a request head; more is answered 431.
    pub head_bytes_max: usize,
    /// Fields of a request head; more is answered 431.
    pub headers_max: usize,
    /// Bytes of a body that must be read before routing; more is answered 413.
    pub body_bytes_max: usize,
    /// Bytes of all such bodies together; a request that would exceed it is answered 503.
    pub buffered_bytes_max: usize,
    /// Open client connections per worker; more wait in the kernel's backlog.
    pub connections_per_worker_max: usize,
    /// How long a connection may take to send a head, idle time before it included.
    pub head_timeout: Duration,
    /// How long a client may take for the next piece of its body while it is waited for; then 408.
    pub body_stall_timeout: Duration,
    /// How long a client may leave a response unread before its connection, or its stream of
    /// HTTP/2, is cut off.
    pub write_stall_timeout: Duration,
    /// How long connecting to an endpoint may take.
    pub connect_timeout: Duration,
    /// How long an endpoint may be silent within a response.
    pub stream_idle_timeout: Duration,
    /// How long a connection that is no HTTP (an upgraded one, or a `TLSRoute`'s) may be silent in
    /// both directions; then it is closed.
    pub tunnel_idle_timeout: Duration,
    /// How long an idle connection to an endpoint is kept.
    pub idle_timeout: Duration,
    /// How long streams may go on after a shutdown began.
    pub drain_timeout: Duration,
    /// Folder of the folders with tokenizers that pools may name.
    pub tokenizers: Option<PathBuf>,
    /// How replicas tell each other what they know of caches; `None` keeps it to themselves.
    pub peers: Option<crate::kv_events::peers::Settings>,
    /// How endpoint pickers outside of the process are asked.
    pub picker: crate::external::Settings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            bind: IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            admin: Some(SocketAddr::from(([127, 0, 0, 1], 9901))),
            head_bytes_max: 64 << 10,
            headers_max: 100,
            body_bytes_max: 32 << 20,
            buffered_bytes_max: 1 << 30,
            connections_per_worker_max: 32_768,
            head_timeout: Duration::from_secs(60),
            body_stall_timeout: Duration::from_secs(30),
            write_stall_timeout: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(1),
            stream_idle_timeout: Duration::from_secs(600),
            // The field's usual limit for TCP; those who keep quiet for longer send keepalives.
            tunnel_idle_timeout: Duration::from_secs(3600),
            // Under uvicorn's five seconds, so that we close first and never race the server.
            idle_timeout: Duration::from_millis(4500),
            drain_timeout: Duration::from_secs(300),
            tokenizers: None,
            peers: None,
            picker: crate::external::Settings::default(),
        }
    }
}
