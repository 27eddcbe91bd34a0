//! The manifests of a small world: a Gateway with one port, an HTTPRoute, an InferencePool and Pods.
//! The demo serves them; the system tests, which are other crates, include this file.

use std::fmt::Write as _;
use std::net::IpAddr;

/// What differs from world to world.
pub(crate) struct World<'a> {
    pub(crate) gateway: &'a str,
    pub(crate) gateway_port: u16,
    pub(crate) route: &'a str,
    /// Filters of the route's only rule, in YAML's flow style; empty for none.
    pub(crate) filters: &'a str,
    pub(crate) pool: &'a str,
    /// Value of the pool's annotation, in YAML.
    pub(crate) picker: &'a str,
    pub(crate) target_port: u16,
    /// Pods are labelled `app` with this, and named after it with their number from 1.
    pub(crate) app: &'a str,
    pub(crate) pods: &'a [IpAddr],
}

impl World<'_> {
    /// The manifests, in one file.
    pub(crate) fn text(&self) -> String {
        let Self {
            gateway,
            gateway_port,
            route,
            filters,
            pool,
            picker,
            target_port,
            app,
            pods,
        } = self;
        let mut text = format!(
            "\
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {{name: forebay}}
spec: {{controllerName: forebay.dev/gateway}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: {gateway}}}
spec:
  gatewayClassName: forebay
  listeners:
  - {{name: http, protocol: HTTP, port: {gateway_port}}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: {route}}}
spec:
  parentRefs: [{{name: {gateway}}}]
  rules:
  - filters: [{filters}]
    backendRefs:
    - {{group: inference.networking.k8s.io, kind: InferencePool, name: {pool}}}
---
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata:
  name: {pool}
  annotations:
    # default, round-robin, least-request, or a whole picker configuration (docs/picking.md)
    forebay.dev/picker: {picker}
spec:
  selector: {{matchLabels: {{app: {app}}}}}
  targetPorts: [{{number: {target_port}}}]
"
        );
        for (pod, ip) in (1..).zip(*pods) {
            let _infallible = write!(
                text,
                "\
---
apiVersion: v1
kind: Pod
metadata: {{name: {app}-{pod}, labels: {{app: {app}}}}}
status: {{podIP: {ip}}}
"
            );
        }
        text
    }
}
