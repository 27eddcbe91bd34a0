//! What an index publishes after any events is what a fresh one makes of the objects that are left.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::{describe_all, parse};
use forebay_api::{Index, Kind, Object, Settings};
use forebay_model::{ObjectName, Snapshot};
use proptest::prelude::*;

/// Every object that may come and go, each in the shapes that it may have.
const OBJECTS: &[&[&str]] = &[
    &[
        "{apiVersion: gateway.networking.k8s.io/v1, kind: GatewayClass, metadata: {name: forebay}, spec: {controllerName: forebay.dev/gateway}}",
        "{apiVersion: gateway.networking.k8s.io/v1, kind: GatewayClass, metadata: {name: forebay}, spec: {controllerName: other.dev/gateway}}",
        "{apiVersion: gateway.networking.k8s.io/v1, kind: GatewayClass, metadata: {name: forebay}, spec: {controllerName: forebay.dev/gateway, parametersRef: {group: forebay.dev, kind: GatewayConfig, name: own, namespace: a}}}",
    ],
    &[
        "{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: gw, namespace: a}, spec: {gatewayClassName: forebay, allowedListeners: {namespaces: {from: All}}, listeners: [{name: http, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}]}}",
        "{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: gw, namespace: a}, spec: {gatewayClassName: forebay, allowedListeners: {namespaces: {from: Selector, selector: {matchLabels: {team: x}}}}, listeners: [{name: http, port: 80, protocol: HTTP, hostname: '*.com', allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {team: x}}}}}, {name: tls, port: 443, protocol: TLS, tls: {mode: Passthrough}, allowedRoutes: {namespaces: {from: All}}}]}}",
        "{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: gw, namespace: a}, spec: {gatewayClassName: forebay, addresses: [{value: 10.1.0.2}], infrastructure: {labels: {team: x}, parametersRef: {group: forebay.dev, kind: GatewayConfig, name: own}}, listeners: [{name: http, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}]}}",
    ],
    &[
        "{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: gw, namespace: b, creationTimestamp: '2026-01-01T00:00:00Z'}, spec: {gatewayClassName: forebay, tls: {backend: {clientCertificateRef: {name: cert, namespace: a}}, frontend: {default: {validation: {caCertificateRefs: [{group: '', kind: ConfigMap, name: ca}]}}}}, listeners: [{name: https, port: 443, protocol: HTTPS, hostname: x.com, tls: {certificateRefs: [{name: cert}]}, allowedRoutes: {namespaces: {from: All}}}]}}",
        "{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: gw, namespace: b}, spec: {gatewayClassName: forebay, listeners: [{name: http, port: 80, protocol: HTTP}, {name: ends, port: 443, protocol: TLS, tls: {mode: Terminate, certificateRefs: [{name: cert}]}, allowedRoutes: {namespaces: {from: All}}}]}}",
    ],
    &[
        "{apiVersion: gateway.networking.k8s.io/v1, kind: ListenerSet, metadata: {name: set, namespace: b}, spec: {parentRef: {name: gw, namespace: a}, listeners: [{name: more, port: 80, protocol: HTTP, hostname: set.com}]}}",
        "{apiVersion: gateway.networking.k8s.io/v1, kind: ListenerSet, metadata: {name: set, namespace: b}, spec: {parentRef: {name: gw}, listeners: [{name: more, port: 81, protocol: HTTPS, tls: {certificateRefs: [{name: cert}]}}]}}",
    ],
    &[
        "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: r, namespace: a}, spec: {parentRefs: [{name: gw}, {name: gw, namespace: b}], rules: [{backendRefs: [{name: s, port: 80}, {group: inference.networking.k8s.io, kind: InferencePool, name: p}, {group: inference.networking.k8s.io, kind: InferencePool, name: p, namespace: b}]}]}}",
        "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: r, namespace: a, generation: 2}, spec: {parentRefs: [{name: gw}], hostnames: [y.com], rules: [{matches: [{path: {type: RegularExpression, value: '('}}], backendRefs: [{name: s, port: 81}]}, {backendRefs: [{name: s, namespace: b, port: 80}]}]}}",
    ],
    &[
        "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: r, namespace: b}, spec: {parentRefs: [{kind: ListenerSet, name: set}, {name: gw}], rules: [{backendRefs: [{name: s, port: 80}], filters: [{type: RequestMirror, requestMirror: {backendRef: {name: s, namespace: a, port: 80}}}]}]}}",
    ],
    &[
        "{apiVersion: gateway.networking.k8s.io/v1, kind: GRPCRoute, metadata: {name: g, namespace: a}, spec: {parentRefs: [{name: gw}], rules: [{backendRefs: [{name: s, port: 80}]}]}}",
        "{apiVersion: gateway.networking.k8s.io/v1, kind: GRPCRoute, metadata: {name: g, namespace: a, creationTimestamp: '2026-01-01T00:00:00Z'}, spec: {parentRefs: [{name: gw}], hostnames: [z.com], rules: [{matches: [{method: {service: a.B}}], backendRefs: [{name: s, port: 80}]}]}}",
    ],
    &[
        "{apiVersion: gateway.networking.k8s.io/v1, kind: TLSRoute, metadata: {name: t, namespace: a}, spec: {parentRefs: [{name: gw}, {name: gw, namespace: b}], hostnames: [t.com], rules: [{backendRefs: [{name: s, port: 80}, {name: s, namespace: b, port: 80}]}]}}",
    ],
    &[
        "{apiVersion: gateway.networking.k8s.io/v1, kind: BackendTLSPolicy, metadata: {name: p, namespace: a}, spec: {targetRefs: [{group: '', kind: Service, name: s}], validation: {caCertificateRefs: [{group: '', kind: ConfigMap, name: ca}], hostname: s.a}}}",
        "{apiVersion: gateway.networking.k8s.io/v1, kind: BackendTLSPolicy, metadata: {name: p, namespace: a}, spec: {targetRefs: [{group: '', kind: Service, name: s, sectionName: web}], validation: {wellKnownCACertificates: System, hostname: s.a}}}",
    ],
    &[
        "{apiVersion: gateway.networking.k8s.io/v1, kind: BackendTLSPolicy, metadata: {name: older, namespace: a, creationTimestamp: '2026-01-01T00:00:00Z'}, spec: {targetRefs: [{group: '', kind: Service, name: s}], validation: {wellKnownCACertificates: System, hostname: older.a}}}",
    ],
    &[
        "{apiVersion: gateway.networking.k8s.io/v1, kind: ReferenceGrant, metadata: {name: g, namespace: b}, spec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: a}, {group: gateway.networking.k8s.io, kind: TLSRoute, namespace: a}], to: [{group: '', kind: Service}, {group: inference.networking.k8s.io, kind: InferencePool}]}}",
    ],
    &[
        "{apiVersion: gateway.networking.k8s.io/v1, kind: ReferenceGrant, metadata: {name: g, namespace: a}, spec: {from: [{group: gateway.networking.k8s.io, kind: Gateway, namespace: b}], to: [{group: '', kind: Secret}]}}",
    ],
    &[
        "{apiVersion: inference.networking.k8s.io/v1, kind: InferencePool, metadata: {name: p, namespace: a}, spec: {selector: {matchLabels: {app: x}}, targetPorts: [{number: 8000}, {number: 8001}]}}",
        "{apiVersion: inference.networking.k8s.io/v1, kind: InferencePool, metadata: {name: p, namespace: a}, spec: {selector: {matchLabels: {app: y}}, targetPorts: [{number: 8000}], endpointPickerRef: {name: epp, port: {number: 9002}}}}",
        "{apiVersion: inference.networking.k8s.io/v1, kind: InferencePool, metadata: {name: p, namespace: a, annotations: {forebay.dev/picker-tls: verify}}, spec: {selector: {matchLabels: {app: y}}, targetPorts: [{number: 8000}], endpointPickerRef: {name: epp, port: {number: 9002}}}}",
        "{apiVersion: inference.networking.k8s.io/v1, kind: InferencePool, metadata: {name: p, namespace: a, annotations: {forebay.dev/picker: oops}}, spec: {selector: {matchLabels: {app: x, zone: q}}, targetPorts: [{number: 8000}]}}",
    ],
    &[
        "{apiVersion: inference.networking.k8s.io/v1, kind: InferencePool, metadata: {name: p, namespace: b}, spec: {selector: {matchLabels: {app: x}}, targetPorts: [{number: 8000}], endpointPickerRef: {name: s, port: {number: 80}, failureMode: FailOpen}}}",
    ],
    &[
        "{apiVersion: llm-d.ai/v1alpha2, kind: InferenceObjective, metadata: {name: o, namespace: a}, spec: {poolRef: {name: p}, priority: 3}}",
        "{apiVersion: llm-d.ai/v1alpha2, kind: InferenceObjective, metadata: {name: o, namespace: a}, spec: {poolRef: {name: gone}}}",
    ],
    &[
        "{apiVersion: inference.networking.x-k8s.io/v1alpha2, kind: InferenceObjective, metadata: {name: o, namespace: a}, spec: {poolRef: {name: p}, priority: 1}}",
    ],
    &[
        "{apiVersion: llm-d.ai/v1alpha2, kind: InferenceModelRewrite, metadata: {name: w, namespace: a}, spec: {poolRef: {name: p}, rules: [{targets: [{modelRewrite: m}]}]}}",
    ],
    &[
        "{apiVersion: v1, kind: Service, metadata: {name: s, namespace: a}, spec: {selector: {app: x}, ports: [{name: web, port: 80}]}}",
        "{apiVersion: v1, kind: Service, metadata: {name: s, namespace: a}, spec: {selector: {app: y}, ports: [{port: 81}, {name: web, port: 80, targetPort: http, appProtocol: kubernetes.io/h2c}]}}",
        "{apiVersion: v1, kind: Service, metadata: {name: s, namespace: a}, spec: {type: ExternalName, ports: [{port: 80}]}}",
    ],
    &[
        "{apiVersion: v1, kind: Service, metadata: {name: s, namespace: b}, spec: {selector: {app: x}, ports: [{port: 80, targetPort: 9000}]}}",
    ],
    &[
        "{apiVersion: v1, kind: Service, metadata: {name: epp, namespace: a}, spec: {selector: {app: epp}, ports: [{name: grpc, port: 9002}]}}",
        "{apiVersion: v1, kind: Service, metadata: {name: epp, namespace: a}, spec: {selector: {app: x}, ports: [{name: grpc, port: 9002, appProtocol: kubernetes.io/h2c}]}}",
    ],
    &[
        "{apiVersion: forebay.dev/v1alpha1, kind: GatewayConfig, metadata: {name: own, namespace: a}, spec: {placement: Dedicated, replicas: 3}}",
        "{apiVersion: forebay.dev/v1alpha1, kind: GatewayConfig, metadata: {name: own, namespace: a}, spec: {serviceType: NodePort}}",
    ],
    &[
        "{apiVersion: v1, kind: Service, metadata: {name: own, namespace: a, labels: {gateway.networking.k8s.io/gateway-name: gw, forebay.dev/gateway-namespace: a, app.kubernetes.io/managed-by: forebay}}, spec: {clusterIP: 10.1.0.2, ports: [{port: 80, targetPort: 20000}]}}",
    ],
    &[
        "{apiVersion: v1, kind: Service, metadata: {name: lb, namespace: infra, labels: {gateway.networking.k8s.io/gateway-name: gw, forebay.dev/gateway-namespace: a, app.kubernetes.io/managed-by: forebay}}, spec: {clusterIP: 10.1.0.1, ports: [{port: 80, targetPort: 20000}, {port: 443, targetPort: 20001}]}}",
        "{apiVersion: v1, kind: Service, metadata: {name: lb, namespace: infra, labels: {gateway.networking.k8s.io/gateway-name: gw, forebay.dev/gateway-namespace: b, app.kubernetes.io/managed-by: forebay}}, spec: {type: LoadBalancer, ports: [{port: 80, targetPort: 20000}, {port: 443, targetPort: 20001}]}, status: {loadBalancer: {ingress: [{ip: 192.0.2.1}]}}}",
    ],
    &[
        "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: s-1, namespace: a, labels: {kubernetes.io/service-name: s}}, ports: [{name: web, port: 8080}], endpoints: [{addresses: [10.0.9.1]}]}",
        "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: s-1, namespace: a, labels: {kubernetes.io/service-name: epp}}, ports: [{name: grpc, port: 9002}], endpoints: [{addresses: [10.0.9.2]}, {addresses: [10.0.9.3], conditions: {ready: false}}]}",
    ],
    &[
        "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: s-2, namespace: a, labels: {kubernetes.io/service-name: s}}, ports: [{name: web, port: 8080}], endpoints: [{addresses: [10.0.9.4]}]}",
    ],
    &[
        "{apiVersion: v1, kind: Secret, metadata: {name: cert, namespace: a}, type: kubernetes.io/tls, stringData: {tls.crt: '-----BEGIN CERTIFICATE-----AAAA-----END CERTIFICATE-----', tls.key: '-----BEGIN PRIVATE KEY-----AAAA-----END PRIVATE KEY-----'}}",
    ],
    &[
        "{apiVersion: v1, kind: Secret, metadata: {name: cert, namespace: b}, type: kubernetes.io/tls, stringData: {tls.crt: '-----BEGIN CERTIFICATE-----AAAA-----END CERTIFICATE-----', tls.key: '-----BEGIN PRIVATE KEY-----AAAA-----END PRIVATE KEY-----'}}",
        "{apiVersion: v1, kind: Secret, metadata: {name: cert, namespace: b}, type: Opaque}",
    ],
    &[
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: ca, namespace: a}, data: {ca.crt: '-----BEGIN CERTIFICATE-----AAAA-----END CERTIFICATE-----'}}",
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: ca, namespace: a}, data: {}}",
    ],
    &[
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: ca, namespace: b}, data: {ca.crt: '-----BEGIN CERTIFICATE-----BBBB-----END CERTIFICATE-----'}}",
    ],
    &[
        "{apiVersion: v1, kind: Namespace, metadata: {name: b, labels: {team: x}}}",
        "{apiVersion: v1, kind: Namespace, metadata: {name: b, labels: {team: y}}}",
    ],
    &["{apiVersion: v1, kind: Namespace, metadata: {name: a, labels: {team: x}}}"],
    &[
        "{apiVersion: v1, kind: Pod, metadata: {name: one, namespace: a, labels: {app: x}}, status: {podIP: 10.0.0.1, conditions: [{type: Ready, status: 'True'}]}}",
        "{apiVersion: v1, kind: Pod, metadata: {name: one, namespace: a, labels: {app: x, zone: q}}, status: {podIP: 10.0.0.1, conditions: [{type: Ready, status: 'False'}]}}",
        "{apiVersion: v1, kind: Pod, metadata: {name: one, namespace: a, labels: {app: y}}, spec: {containers: [{ports: [{name: http, containerPort: 7000}]}]}, status: {podIP: 10.0.0.1}}",
        "{apiVersion: v1, kind: Pod, metadata: {name: one, namespace: a, labels: {app: x}}, status: {phase: Pending}}",
    ],
    &[
        "{apiVersion: v1, kind: Pod, metadata: {name: two, namespace: a, labels: {app: x, llm-d.ai/role: odd}}, status: {podIP: 10.0.0.2}}",
        "{apiVersion: v1, kind: Pod, metadata: {name: two, namespace: a, labels: {app: epp}}, status: {podIP: 10.0.0.1}}",
        "{apiVersion: v1, kind: Pod, metadata: {name: two, namespace: a, labels: {app: y, zone: q}}, status: {podIP: 10.0.0.1, phase: Failed}}",
    ],
    &[
        "{apiVersion: v1, kind: Pod, metadata: {name: three, namespace: b, labels: {app: x}}, status: {podIP: 10.0.1.1, conditions: [{type: Ready, status: 'True'}]}}",
    ],
];

type Left = BTreeMap<(Kind, ObjectName), Object>;

/// An object that takes a shape, or goes; and whether the index publishes after it.
#[derive(Clone, Copy, Debug)]
struct Event {
    object: usize,
    shape: Option<usize>,
    publishes: bool,
}

fn event() -> impl Strategy<Value = Event> {
    let object = 0..OBJECTS.len();
    (object, 0..6_usize, any::<bool>()).prop_map(|(object, shape, publishes)| Event {
        object,
        // The last goes.
        shape: (shape < 5).then(|| shape % OBJECTS[object].len()),
        publishes,
    })
}

fn play(settings: &Settings, shapes: &[Vec<Object>], events: &[Event]) {
    let mut index = Index::new(settings.clone());
    let mut left = Left::new();
    for event in events {
        let shapes = &shapes[event.object];
        let key = (shapes[0].kind(), shapes[0].name());
        match event.shape {
            Some(shape) => {
                index.apply(shapes[shape].clone());
                left.insert(key, shapes[shape].clone());
            }
            None => {
                index.delete(key.0, &key.1);
                left.remove(&key);
            }
        }
        if event.publishes {
            compare(&mut index, settings, &left);
        }
    }
    compare(&mut index, settings, &left);
}

fn compare(index: &mut Index, settings: &Settings, left: &Left) {
    let got = index.publish();
    let mut fresh = Index::new(settings.clone());
    left.values()
        .cloned()
        .for_each(|object| fresh.apply(object));
    let want = fresh.publish();
    assert_eq!(describe_all(&got), describe_all(&want));
    let same = Snapshot {
        generation: got.snapshot.generation,
        ..Snapshot::clone(&want.snapshot)
    };
    assert!(*got.snapshot == same, "equal as text only");
    assert_eq!(got.statuses, want.statuses);
    assert_eq!(index.infrastructure(), fresh.infrastructure());
}

proptest! {
    #[test]
    fn after_any_events_the_outcome_is_that_of_a_fresh_index(
        events in proptest::collection::vec(event(), 1..120),
        settings in 0..4_usize,
    ) {
        let shapes: Vec<Vec<Object>> = OBJECTS
            .iter()
            .map(|shapes| shapes.iter().flat_map(|text| parse(text)).collect())
            .collect();
        let infrastructure = Settings {
            infrastructure_namespace: Some("infra".to_owned()),
            ..Settings::cluster()
        };
        let of_one = Settings {
            only_gateway: Some(ObjectName::new("a", "gw")),
            infrastructure_namespace: Some("a".to_owned()),
            ..Settings::cluster()
        };
        let all = [Settings::default(), Settings::cluster(), infrastructure, of_one];
        let settings = all[settings].clone();
        play(&settings, &shapes, &events);
    }
}

#[test]
fn what_an_event_does_not_touch_keeps_its_place_in_memory() {
    let all: Vec<Object> = OBJECTS.iter().flat_map(|shapes| parse(shapes[0])).collect();
    let mut index = Index::new(Settings::default());
    all.into_iter().for_each(|object| index.apply(object));
    let before = index.publish();
    let pool = |of: &str| ObjectName::new(of, "p");
    for object in parse(OBJECTS[OBJECTS.len() - 3][1]) {
        index.apply(object);
    }
    let after = index.publish();
    assert_ne!(before.snapshot.generation, after.snapshot.generation);
    let kept =
        |name: &ObjectName| Arc::ptr_eq(&before.snapshot.pools[name], &after.snapshot.pools[name]);
    assert_eq!((kept(&pool("a")), kept(&pool("b"))), (false, true));
    for (of, target) in &before.snapshot.services {
        let same = Arc::ptr_eq(target, &after.snapshot.services[of]);
        // The Service of the pod's namespace has slices, so that its pods do not matter.
        assert!(same, "{of}");
    }
    for (number, port) in &before.snapshot.ports {
        for (was, is) in port
            .listeners
            .iter()
            .zip(&after.snapshot.ports[number].listeners)
        {
            assert!(Arc::ptr_eq(&was.routes, &is.routes));
        }
    }
    assert!(Arc::ptr_eq(&before.statuses, &after.statuses));
}
