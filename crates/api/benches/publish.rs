//! What an event costs from the object to the snapshot: 500 pools of 10 pods, 2,000 HTTPRoutes of
//! which half lead to pools and half to 500 Services with an EndpointSlice each.
//!
//! `cold` is everything at once. The others apply one changed object and publish; each iteration
//! changes it in turn, so that no iteration finds nothing to do.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use forebay_api::{Index, Object, Settings};
use serde_json::{Value, json};

const POOLS: usize = 500;
const PODS_PER_POOL: usize = 10;
const ROUTES: usize = 2_000;
const SERVICES: usize = 500;
const NAMESPACES: usize = 5;

fn object(value: Value) -> Object {
    let parsed = Object::parse(value).unwrap_or_else(|problems| panic!("{problems:#?}"));
    parsed.object
}

fn namespace(of: usize) -> String {
    format!("team-{}", of % NAMESPACES)
}

fn pod(pool: usize, at: usize, ready: bool) -> Object {
    let ready = if ready { "True" } else { "False" };
    object(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("pool-{pool}-{at}"), "namespace": namespace(pool),
            "labels": {
                "app": format!("pool-{pool}"), "llm-d.ai/engine-type": "vllm",
                "pod-template-hash": format!("{pool:x}"), "topology.kubernetes.io/zone": "z1",
                "app.kubernetes.io/part-of": "serving",
            },
        },
        "spec": {"nodeName": format!("node-{}", at % 8), "containers": [
            {"name": "server", "ports": [{"name": "http", "containerPort": 8000}]},
        ]},
        "status": {
            "podIP": format!("10.{}.{}.{}", pool / 250, pool % 250, at + 1),
            "conditions": [{"type": "Ready", "status": ready}],
        },
    }))
}

fn pool(pool: usize) -> Object {
    object(json!({
        "apiVersion": "inference.networking.k8s.io/v1", "kind": "InferencePool",
        "metadata": {"name": format!("pool-{pool}"), "namespace": namespace(pool)},
        "spec": {
            "selector": {"matchLabels": {"app": format!("pool-{pool}"), "app.kubernetes.io/part-of": "serving"}},
            "targetPorts": [{"number": 8000}],
        },
    }))
}

fn service(at: usize) -> Object {
    object(json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": format!("service-{at}"), "namespace": namespace(at)},
        "spec": {"selector": {"app": format!("service-{at}")}, "ports": [{"name": "http", "port": 80}]},
    }))
}

fn slice(at: usize, count: usize) -> Object {
    let endpoints: Vec<_> = (0..count)
        .map(|i| json!({"addresses": [format!("10.9.{}.{}", at % 250, i + 1)]}))
        .collect();
    object(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": format!("service-{at}-x"), "namespace": namespace(at),
            "labels": {"kubernetes.io/service-name": format!("service-{at}")},
        },
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}], "endpoints": endpoints,
    }))
}

fn route(at: usize, generation: usize) -> Object {
    let backend = match at % 2 {
        0 => json!({
            "group": "inference.networking.k8s.io", "kind": "InferencePool",
            "name": format!("pool-{}", at / 2 % POOLS), "namespace": namespace(at / 2),
        }),
        _ => {
            json!({"name": format!("service-{}", at / 2 % SERVICES), "namespace": namespace(at / 2), "port": 80})
        }
    };
    object(json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {
            "name": format!("route-{at}"), "namespace": namespace(at / 2), "generation": generation,
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {
            "parentRefs": [{"name": "gw", "namespace": "infra"}],
            "hostnames": [format!("host-{}.example.com", at % 100)],
            "rules": [{
                "matches": [{"path": {"type": "PathPrefix", "value": format!("/route-{at}/v{generation}")}}],
                "backendRefs": [backend],
            }],
        },
    }))
}

fn bed() -> Vec<Object> {
    let mut all = vec![
        object(json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass",
            "metadata": {"name": "forebay"}, "spec": {"controllerName": "forebay.dev/gateway"},
        })),
        object(json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
            "metadata": {"name": "gw", "namespace": "infra"},
            "spec": {"gatewayClassName": "forebay", "listeners": [{
                "name": "http", "port": 80, "protocol": "HTTP",
                "allowedRoutes": {"namespaces": {"from": "All"}},
            }]},
        })),
    ];
    all.extend((0..POOLS).flat_map(|p| (0..PODS_PER_POOL).map(move |at| pod(p, at, true))));
    all.extend((0..POOLS).map(pool));
    all.extend((0..SERVICES).map(service));
    all.extend((0..SERVICES).map(|at| slice(at, 4)));
    all.extend((0..ROUTES).map(|at| route(at, 1)));
    all
}

fn filled() -> Index {
    let mut index = Index::new(Settings::cluster());
    bed().into_iter().for_each(|object| index.apply(object));
    index
}

fn publish(c: &mut Criterion) {
    let mut group = c.benchmark_group("publish");
    group.sample_size(20);
    let all = bed();
    group.bench_function("cold", |b| {
        b.iter_batched(
            || all.clone(),
            |objects| {
                let mut index = Index::new(Settings::cluster());
                objects.into_iter().for_each(|object| index.apply(object));
                black_box(index.publish());
                index
            },
            BatchSize::LargeInput,
        );
    });
    let mut index = filled();
    let first = index.publish();
    assert_eq!(first.snapshot.pools.len(), POOLS);
    assert_eq!(first.snapshot.services.len(), SERVICES);
    assert_eq!(first.snapshot.problems, []);
    let changes: [(&str, [Object; 2]); 3] = [
        ("one pod", [pod(77, 3, false), pod(77, 3, true)]),
        ("one slice", [slice(77, 5), slice(77, 4)]),
        ("one route", [route(77, 2), route(77, 1)]),
    ];
    for (name, versions) in changes {
        let mut turn = 1;
        let mut generation = index.publish().snapshot.generation;
        group.bench_function(name, |b| {
            b.iter_batched(
                || {
                    turn += 1;
                    versions[turn % 2].clone()
                },
                |object| {
                    index.apply(object);
                    // As in the process: somebody still holds the snapshot before.
                    let next = index.publish();
                    assert_ne!(next.snapshot.generation, generation);
                    generation = next.snapshot.generation;
                    next
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, publish);
criterion_main!(benches);
