//! What one pod's change costs the data plane: a configuration of 500 pools, 2,000 routes and 5,000
//! endpoints, of which one pool's endpoints differ.
//!
//! Run: `cargo bench -p forebay-gateway --bench publish`.

use std::collections::{BTreeMap, HashMap};
use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use forebay_gateway::clock;
use forebay_gateway::pools::Live;
use forebay_model::endpoint::{Role, Topology};
use forebay_model::route::{
    Carries, Entry, HostPattern, Matcher, PathMatch, RouteTable, Rule, ServicePort, ServiceTarget,
    Speaks, Target, Timeouts, WeightedTarget,
};
use forebay_model::snapshot::{Listener, Port};
use forebay_model::{AppProtocol, Endpoint, ObjectName, PickerConfig, Pool, Snapshot};

const POOLS: u32 = 500;
const ENDPOINTS: u32 = 10;
const SERVICES: u32 = 500;
const ROUTES: u32 = 2_000;
const LISTENERS: u32 = 64;

fn address(pool: u32, endpoint: u32) -> SocketAddr {
    SocketAddr::from((
        std::net::Ipv4Addr::from(0x0a00_0000 + pool * 256 + endpoint),
        8_000,
    ))
}

fn pool(number: u32, endpoints: impl Iterator<Item = u32>) -> Arc<Pool> {
    let endpoint = |n| Endpoint {
        address: address(number, n),
        pod: format!("pod-{number}-{n}").into(),
        labels: Arc::default(),
        engine: None,
        role: Role::Both,
        topology: Topology::default(),
        ready: true,
    };
    Arc::new(Pool {
        name: ObjectName::new("models", &format!("pool-{number}")),
        endpoints: endpoints.map(endpoint).collect(),
        protocol: AppProtocol::Http,
        picker: PickerConfig::default(),
        objectives: BTreeMap::new(),
        external: None,
        rewrites: Vec::new(),
    })
}

fn service(number: u32) -> Arc<ServiceTarget> {
    Arc::new(ServiceTarget {
        of: ServicePort {
            name: ObjectName::new("apps", &format!("service-{number}")),
            port: 80,
            carries: Carries::Http,
            gateway: None,
        },
        protocol: AppProtocol::Http,
        tls: None,
        endpoints: (0..ENDPOINTS).map(|n| address(POOLS + number, n)).collect(),
    })
}

fn entry(number: u32) -> (Option<HostPattern>, Entry) {
    let pool = ObjectName::new("models", &format!("pool-{}", number % POOLS));
    let rule = Rule {
        route: ObjectName::new("models", &format!("route-{number}")),
        speaks: Speaks::Http,
        index: 0,
        filters: Vec::new(),
        targets: vec![WeightedTarget {
            weight: 1,
            target: Target::Pool(pool),
            filters: Vec::new(),
        }],
        timeouts: Timeouts::default(),
        retry: None,
    };
    let matcher = Matcher {
        path: PathMatch::Prefix(format!("/{number}").into()),
        method: None,
        headers: Vec::new(),
        query: Vec::new(),
    };
    let rule = Arc::new(rule);
    (None, Entry { matcher, rule })
}

fn snapshot() -> Snapshot {
    let routes = Arc::new(RouteTable::build((0..ROUTES).map(entry).collect()));
    let listener = |n: u32| Listener {
        gateway: ObjectName::new("edge", "gateway"),
        name: format!("listener-{n}").into(),
        hostname: Some(HostPattern::parse(&format!("host-{n}.test"))),
        refused: false,
        certificates: Vec::new(),
        clients: None,
        routes: Arc::clone(&routes),
        tls_routes: None,
    };
    let port = |tls| Port {
        number: if tls { 443 } else { 80 },
        tls,
        listeners: (0..LISTENERS).map(listener).collect(),
    };
    let pools = (0..POOLS).map(|n| pool(n, 0..ENDPOINTS));
    let services = (0..SERVICES).map(service);
    Snapshot {
        generation: 1,
        ports: BTreeMap::from([(80, port(false)), (443, port(true))]),
        pools: pools.map(|pool| (pool.name.clone(), pool)).collect(),
        services: services
            .map(|to| (to.of.clone(), to))
            .collect::<HashMap<_, _>>(),
        problems: Vec::new(),
    }
}

fn one_pod(c: &mut Criterion) {
    let whole = snapshot();
    let first = Live::empty().next(Arc::new(whole.clone()), clock::now());
    // The same with one pod more in one pool: what comes before it is one pod less.
    let mut other = whole.clone();
    let changed = pool(7, 0..=ENDPOINTS);
    other.pools.insert(changed.name.clone(), changed);
    let (whole, other) = (Arc::new(whole), Arc::new(other));
    let mut live = first;
    let mut turn = false;
    c.bench_function("publish/one pod of 5000", |b| {
        b.iter_batched(
            || {
                turn = !turn;
                Arc::clone(if turn { &other } else { &whole })
            },
            |next| {
                let next = live.next(next, clock::now());
                // What was in force goes with it, as it does when workers have moved on.
                black_box(std::mem::replace(&mut live, next));
            },
            BatchSize::SmallInput,
        );
    });
    let again = || {
        let mut again = (*whole).clone();
        for pool in again.pools.values_mut() {
            *pool = Arc::new((**pool).clone());
        }
        Arc::new(again)
    };
    c.bench_function("publish/all read anew, nothing changed", |b| {
        b.iter_batched(
            again,
            |next| black_box(live.next(next, clock::now())),
            BatchSize::SmallInput,
        );
    });
}

criterion_group!(benches, one_pod);
criterion_main!(benches);
