//! Envoy as a child process, with the set-ups that the public guides have for endpoint pickers.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::{Program, exchange, free_port, wait_for};

/// Where Envoy is, or why there is none.
pub(crate) fn program() -> Result<PathBuf, String> {
    match std::env::var_os("FOREBAY_TEST_ENVOY") {
        Some(path) => Ok(path.into()),
        None => Err(std::env::var("FOREBAY_ENVOY_SKIP").unwrap_or_else(|_| {
            "FOREBAY_TEST_ENVOY is not set; `cargo xtask test` prepares it".to_owned()
        })),
    }
}

/// How Envoy is set up.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    /// `processing_mode` for bodies of requests...
    pub(crate) request: &'static str,
    /// ...and of responses.
    pub(crate) response: &'static str,
    pub(crate) cluster: Cluster,
    /// Whether requests go on if the picker does not answer.
    pub(crate) fail_open: bool,
    /// Whether the picker has TLS.
    pub(crate) tls: bool,
    /// Value of the subset hint, in YAML.
    pub(crate) subset: Option<String>,
}

/// How the endpoint is found that the picker named.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Cluster {
    /// A cluster that knows its endpoints: `override_host`, which walks the list on retries.
    OverrideHost,
    /// One that goes wherever the field says.
    OriginalDestination,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            request: "FULL_DUPLEX_STREAMED",
            response: "FULL_DUPLEX_STREAMED",
            cluster: Cluster::OverrideHost,
            fail_open: false,
            tls: true,
            subset: None,
        }
    }
}

/// A running Envoy.
pub(crate) struct Envoy {
    pub(crate) address: SocketAddr,
    _program: Program,
    _folder: TempDir,
}

impl Envoy {
    /// Starts one in front of `servers`, which asks `pickers`, and waits until it listens.
    pub(crate) fn start(
        program: &PathBuf,
        setup: &Setup,
        servers: &[SocketAddr],
        pickers: &[SocketAddr],
    ) -> Self {
        let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let (address, admin) = (local(free_port(1)), local(free_port(1)));
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("envoy.yaml");
        let text = config(setup, address, admin, servers, pickers);
        fs::write(&file, text).expect("a writable folder");
        let log = fs::File::create(folder.path().join("log")).expect("a writable folder");
        let mut command = Command::new(program);
        command
            .args([
                "--concurrency",
                "2",
                "-l",
                "warning",
                "--disable-hot-restart",
                "-c",
            ])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file"))
            .stderr(log);
        let program = Program::start(&mut command);
        wait_for("Envoy is ready", || {
            let ready = exchange(admin, "GET /ready HTTP/1.1\r\n", "");
            (ready.status == 200).then_some(())
        });
        Self {
            address,
            _program: program,
            _folder: folder,
        }
    }
}

fn endpoint(address: &SocketAddr) -> String {
    format!(
        "{{endpoint: {{address: {{socket_address: {{address: {}, port_value: {}}}}}}}}}",
        address.ip(),
        address.port()
    )
}

fn trailers(mode: &str) -> &'static str {
    match mode {
        "FULL_DUPLEX_STREAMED" => "SEND",
        _ => "SKIP",
    }
}

const LIMITS: &str = "circuit_breakers: {thresholds: [{max_connections: 100000, \
                      max_pending_requests: 100000, max_requests: 100000, max_retries: 100000}]}";

fn config(
    setup: &Setup,
    address: SocketAddr,
    admin: SocketAddr,
    servers: &[SocketAddr],
    pickers: &[SocketAddr],
) -> String {
    let pickers: Vec<String> = pickers.iter().map(endpoint).collect();
    let hint = setup.subset.as_ref().map_or(String::new(), |value| {
        format!(
            "
          - name: envoy.filters.http.set_metadata
            typed_config:
              \"@type\": type.googleapis.com/envoy.extensions.filters.http.set_metadata.v3.Config
              metadata:
              - metadata_namespace: envoy.lb.subset_hint
                value: {{x-gateway-destination-endpoint-subset: {value}}}"
        )
    });
    let tls = match setup.tls {
        true => {
            "
    transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
        \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        common_tls_context: {alpn_protocols: [h2]}"
        }
        false => "",
    };
    format!(
        "admin: {{address: {{socket_address: {{address: {admin_ip}, port_value: {admin_port}}}}}}}
static_resources:
  listeners:
  - name: front
    address: {{socket_address: {{address: {ip}, port_value: {port}}}}}
    per_connection_buffer_limit_bytes: 8388608
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: front
          route_config:
            virtual_hosts:
            - name: all
              domains: [\"*\"]
              routes:
              - match: {{prefix: /}}
                route:
                  cluster: pool
                  timeout: 0s
                  retry_policy: {{retry_on: \"connect-failure,refused-stream,reset\", num_retries: 3}}
          http_filters:{hint}
          - name: envoy.filters.http.ext_proc
            typed_config:
              \"@type\": type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor
              grpc_service:
                envoy_grpc: {{cluster_name: picker, authority: picker.test}}
                retry_policy: {{retry_on: \"connect-failure,refused-stream,unavailable,reset\", num_retries: 2}}
              failure_mode_allow: {fail_open}
              allow_mode_override: true
              message_timeout: 1000s
              processing_mode:
                request_header_mode: SEND
                response_header_mode: SEND
                request_body_mode: {request}
                response_body_mode: {response}
                request_trailer_mode: {request_trailers}
                response_trailer_mode: {response_trailers}
              response_attributes: [upstream.address]
              metadata_options:
                receiving_namespaces: {{untyped: [envoy.lb]}}
                forwarding_namespaces: {{untyped: [envoy.lb, envoy.lb.subset_hint]}}
          - name: envoy.filters.http.router
            typed_config:
              \"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
  clusters:
  - name: picker
    type: STATIC
    connect_timeout: 5s
    {LIMITS}
    health_checks:
    - timeout: 1s
      interval: 0.2s
      no_traffic_interval: 0.2s
      unhealthy_threshold: 1
      healthy_threshold: 1
      grpc_health_check: {{service_name: envoy.service.ext_proc.v3.ExternalProcessor}}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}{tls}
    load_assignment: {{cluster_name: picker, endpoints: [{{lb_endpoints: [{picker}]}}]}}
  - name: pool
    connect_timeout: 5s
    per_connection_buffer_limit_bytes: 8388608
    {LIMITS}
    {pool}
",
        ip = address.ip(),
        port = address.port(),
        admin_ip = admin.ip(),
        admin_port = admin.port(),
        fail_open = setup.fail_open,
        request = setup.request,
        response = setup.response,
        request_trailers = trailers(setup.request),
        response_trailers = trailers(setup.response),
        picker = pickers.join(", "),
        pool = pool(setup.cluster, servers),
    )
}

fn pool(cluster: Cluster, servers: &[SocketAddr]) -> String {
    match cluster {
        Cluster::OriginalDestination => "type: ORIGINAL_DST
    lb_policy: CLUSTER_PROVIDED
    original_dst_lb_config: {use_http_header: true, http_header_name: x-gateway-destination-endpoint}"
            .to_owned(),
        Cluster::OverrideHost => {
            let endpoints: Vec<String> = servers.iter().map(endpoint).collect();
            format!(
                "type: STATIC
    load_balancing_policy:
      policies:
      - typed_extension_config:
          name: envoy.load_balancing_policies.override_host
          typed_config:
            \"@type\": type.googleapis.com/envoy.extensions.load_balancing_policies.override_host.v3.OverrideHost
            override_host_sources:
            - header: x-gateway-destination-endpoint
            - metadata: {{key: envoy.lb, path: [{{key: x-gateway-destination-endpoint}}]}}
            fallback_policy:
              policies:
              - typed_extension_config:
                  name: envoy.load_balancing_policies.round_robin
                  typed_config:
                    \"@type\": type.googleapis.com/envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin
    load_assignment: {{cluster_name: pool, endpoints: [{{lb_endpoints: [{}]}}]}}",
                endpoints.join(", ")
            )
        }
    }
}
