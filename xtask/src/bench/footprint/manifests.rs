//! Many pools as manifests: one Gateway, and for each pool a route with a host name of its own.

use std::fmt::Write;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

/// Pools in one file; ten thousand in a single one would exceed what one file may hold.
const POOLS_PER_FILE: usize = 1_000;

/// Addresses of this machine that endpoints can have, counted from zero: everything that listens on
/// 0.0.0.0 answers on all of them.
pub(super) fn endpoint(number: usize, port: u16) -> SocketAddr {
    let first = u32::from(Ipv4Addr::new(127, 1, 0, 1));
    let number = u32::try_from(number).expect("fewer endpoints than addresses");
    SocketAddr::new(IpAddr::V4(Ipv4Addr::from(first + number)), port)
}

/// The host of the pool with this number.
pub(super) fn host(number: usize) -> String {
    format!("pool-{number}.bench.local")
}

/// Writes the manifests of so many pools into a folder, each with one endpoint on this port, or
/// with none.
pub(super) fn write(
    folder: &Path,
    pools: usize,
    listen: SocketAddr,
    endpoint_port: Option<u16>,
) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    fs::write(folder.join("gateway.yaml"), gateway(listen))?;
    for (file, first) in (0..pools).step_by(POOLS_PER_FILE).enumerate() {
        let until = pools.min(first + POOLS_PER_FILE);
        let text = (first..until).fold(String::new(), |mut text, number| {
            pool(&mut text, number, endpoint_port);
            text
        });
        fs::write(folder.join(format!("pools-{file}.yaml")), text)?;
    }
    Ok(())
}

fn gateway(listen: SocketAddr) -> String {
    format!(
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
  - {{name: http, protocol: HTTP, port: {}}}
",
        listen.port()
    )
}

fn pool(text: &mut String, number: usize, endpoint_port: Option<u16>) {
    let (host, port) = (host(number), endpoint_port.unwrap_or(8_000));
    let _ = write!(
        text,
        "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: pool-{number}, namespace: default}}
spec:
  parentRefs: [{{name: bench}}]
  hostnames: [{host}]
  rules:
  - backendRefs:
    - {{group: inference.networking.k8s.io, kind: InferencePool, name: pool-{number}}}
---
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {{name: pool-{number}, namespace: default}}
spec:
  selector: {{matchLabels: {{app: pool-{number}}}}}
  targetPorts: [{{number: {port}}}]
"
    );
    if endpoint_port.is_some() {
        let _ = write!(
            text,
            "---
apiVersion: v1
kind: Pod
metadata: {{name: pool-{number}-0, namespace: default, labels: {{app: pool-{number}}}}}
status:
  phase: Running
  podIP: {ip}
  conditions: [{{type: Ready, status: \"True\"}}]
",
            ip = endpoint(number, port).ip()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::{endpoint, host, write};
    use std::collections::HashSet;
    use std::fs;

    #[test]
    fn every_pool_has_a_route_a_host_and_an_endpoint_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let listen = "127.0.0.1:8080".parse().unwrap();
        write(folder.path(), 2_001, listen, Some(8_000)).unwrap();
        let files: Vec<String> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap())
            .collect();
        assert_eq!(files.len(), 4);
        let all = files.concat();
        for kind in ["HTTPRoute", "InferencePool", "Pod"] {
            let objects = all.matches(&format!("\nkind: {kind}\n")).count();
            assert_eq!(objects, 2_001, "{kind}");
        }
        assert!(all.contains(&host(2_000)) && !all.contains(&host(2_001)));
        let addresses: HashSet<_> = (0..10_000).map(|number| endpoint(number, 80)).collect();
        assert_eq!(addresses.len(), 10_000);
        assert!(addresses.iter().all(|address| address.ip().is_loopback()));
    }
}
