//! The peers' configurations, as text.
//!
//! Each peer gets what its own documentation advises for this job: two workers, pooled upstream
//! connections, no response buffering, no access log. None gets a cache or a shortcut.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;

/// Workers that every peer gets, also where there are more cores.
pub(super) const WORKERS: &str = "2";

/// nginx: two workers, 256 pooled upstream connections, requests held in memory.
pub(super) fn nginx(listen: SocketAddr, mocks: &[SocketAddr], folder: &Path) -> String {
    let servers = mocks.iter().fold(String::new(), |mut text, mock| {
        let _ = writeln!(text, "    server {mock};");
        text
    });
    let folder = folder.display();
    let user = if crate::shell::is_root() {
        "user root;\n"
    } else {
        ""
    };
    format!(
        "{user}worker_processes {WORKERS};
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/nginx-error.log warn;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_max_body_size 8m;
  client_body_buffer_size 512k;
  client_body_temp_path {folder}/nginx-body;
  proxy_temp_path {folder}/nginx-proxy;
  fastcgi_temp_path {folder}/nginx-fastcgi;
  uwsgi_temp_path {folder}/nginx-uwsgi;
  scgi_temp_path {folder}/nginx-scgi;
  keepalive_requests 100000000;
  upstream mocks {{
{servers}    keepalive 256;
    keepalive_requests 100000000;
  }}
  server {{
    listen {listen};
    location / {{
      proxy_pass http://mocks;
      proxy_http_version 1.1;
      proxy_set_header Connection \"\";
      proxy_buffering off;
    }}
  }}
}}
"
    )
}

/// Envoy: one listener, one static cluster, round robin, no access log, no route timeout.
pub(super) fn envoy(listen: SocketAddr, mocks: &[SocketAddr]) -> String {
    let endpoints = mocks.iter().fold(String::new(), |mut text, mock| {
        let _ = writeln!(
            text,
            "        - endpoint: {{address: {{socket_address: {{address: {}, port_value: {}}}}}}}",
            mock.ip(),
            mock.port()
        );
        text
    });
    format!(
        "static_resources:
  listeners:
  - name: front
    address: {{socket_address: {{address: {ip}, port_value: {port}}}}}
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
                route: {{cluster: mocks, timeout: 0s}}
          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              \"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
  clusters:
  - name: mocks
    type: STATIC
    connect_timeout: 1s
    lb_policy: ROUND_ROBIN
    circuit_breakers:
      thresholds:
      - {{max_connections: 100000, max_pending_requests: 100000, max_requests: 100000, max_retries: 100}}
    load_assignment:
      cluster_name: mocks
      endpoints:
      - lb_endpoints:
{endpoints}",
        ip = listen.ip(),
        port = listen.port(),
    )
}

/// Envoy that asks a picker where each request goes and shows it everything, as the endpoint-picker
/// protocol has it.
pub(super) fn envoy_with_picker(
    listen: SocketAddr,
    mocks: &[SocketAddr],
    picker: SocketAddr,
) -> String {
    let endpoint = |address: &SocketAddr| {
        format!(
            "{{endpoint: {{address: {{socket_address: {{address: {}, port_value: {}}}}}}}}}",
            address.ip(),
            address.port()
        )
    };
    let endpoints: Vec<String> = mocks.iter().map(endpoint).collect();
    let limits = "circuit_breakers: {thresholds: [{max_connections: 100000, \
                  max_pending_requests: 100000, max_requests: 100000, max_retries: 100}]}";
    format!(
        "static_resources:
  listeners:
  - name: front
    address: {{socket_address: {{address: {ip}, port_value: {port}}}}}
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
                route: {{cluster: mocks, timeout: 0s}}
          http_filters:
          - name: envoy.filters.http.ext_proc
            typed_config:
              \"@type\": type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor
              grpc_service: {{envoy_grpc: {{cluster_name: picker}}}}
              message_timeout: 1000s
              processing_mode:
                request_header_mode: SEND
                request_body_mode: FULL_DUPLEX_STREAMED
                request_trailer_mode: SEND
                response_header_mode: SEND
                response_body_mode: FULL_DUPLEX_STREAMED
                response_trailer_mode: SEND
              metadata_options: {{receiving_namespaces: {{untyped: [envoy.lb]}}}}
          - name: envoy.filters.http.router
            typed_config:
              \"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
  clusters:
  - name: picker
    type: STATIC
    connect_timeout: 1s
    {limits}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    load_assignment: {{cluster_name: picker, endpoints: [{{lb_endpoints: [{picker}]}}]}}
  - name: mocks
    type: STATIC
    connect_timeout: 1s
    {limits}
    load_balancing_policy:
      policies:
      - typed_extension_config:
          name: envoy.load_balancing_policies.override_host
          typed_config:
            \"@type\": type.googleapis.com/envoy.extensions.load_balancing_policies.override_host.v3.OverrideHost
            override_host_sources: [{{header: x-gateway-destination-endpoint}}]
            fallback_policy:
              policies:
              - typed_extension_config:
                  name: envoy.load_balancing_policies.round_robin
                  typed_config:
                    \"@type\": type.googleapis.com/envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin
    load_assignment: {{cluster_name: mocks, endpoints: [{{lb_endpoints: [{endpoints}]}}]}}
",
        ip = listen.ip(),
        port = listen.port(),
        picker = endpoint(&picker),
        endpoints = endpoints.join(", "),
    )
}

/// Forebay: the manifests of a one-pool inference gateway; each mock is a ready pod.
pub(super) fn forebay(listen: SocketAddr, mocks: &[SocketAddr]) -> String {
    let port = listen.port();
    let mut text = format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {{name: forebay}}
spec: {{controllerName: forebay.dev/gateway}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: bench, namespace: default}}
spec:
  gatewayClassName: forebay
  listeners:
  - {{name: http, protocol: HTTP, port: {port}}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: bench, namespace: default}}
spec:
  parentRefs: [{{name: bench}}]
  rules:
  - backendRefs:
    - {{group: inference.networking.k8s.io, kind: InferencePool, name: mock}}
---
"
    );
    text.push_str(&pool(mocks));
    text
}

/// The pool alone, which is what a picker for another proxy needs.
pub(super) fn pool(mocks: &[SocketAddr]) -> String {
    let target = mocks.first().map_or(0, SocketAddr::port);
    let mut text = format!(
        "apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {{name: mock, namespace: default}}
spec:
  selector: {{matchLabels: {{app: mock}}}}
  targetPorts: [{{number: {target}}}]
"
    );
    for (i, mock) in mocks.iter().enumerate() {
        let _ = write!(
            text,
            "---
apiVersion: v1
kind: Pod
metadata: {{name: mock-{i}, namespace: default, labels: {{app: mock}}}}
status:
  phase: Running
  podIP: {ip}
  conditions: [{{type: Ready, status: \"True\"}}]
",
            ip = mock.ip()
        );
    }
    text
}
