//! What happens at the bounds: listeners of a Gateway, Gateways in a status, problems in a snapshot.

mod common;

use common::{gateway, index, object, service};
use forebay_api::index::PROBLEMS_MAX;

/// Gateways `gw-00` and on, each on a port of its own, and their references for a route.
fn gateways(count: usize) -> (String, String) {
    let http = |at: usize| format!("{{name: http, port: {}, protocol: HTTP}}", 1000 + at);
    let all = (0..count).map(|at| gateway(&format!("gw-{at:02}"), "", &http(at)));
    let refs = (0..count).map(|at| format!("{{name: gw-{at:02}}}"));
    (all.collect(), refs.collect::<Vec<_>>().join(", "))
}

#[test]
fn listeners_beyond_those_of_one_gateway_are_refused_the_later_sets_first() {
    let own = gateway(
        "gw",
        "allowedListeners: {namespaces: {from: All}},",
        "{name: own, port: 80, protocol: HTTP, hostname: own.com}",
    );
    let listeners = |set: usize| {
        let one =
            |at| format!("{{name: l{at}, port: 80, protocol: HTTP, hostname: l{at}.s{set}.com}}");
        (0..64).map(one).collect::<Vec<_>>().join(", ")
    };
    let set = |at| {
        let spec = format!("parentRef: {{name: gw}}, listeners: [{}]", listeners(at));
        object("ListenerSet", &format!("set-{at:02}"), &spec)
    };
    let sets: String = (0..17).map(set).collect();
    let statuses = index(&(own + &sets)).publish().statuses;
    let refused = |reason: &str| {
        let listeners = statuses.iter().flat_map(|status| {
            let name = status.name.name.to_string();
            status.listeners.iter().map(move |l| (name.clone(), l))
        });
        let refused = listeners.filter(|(_, l)| l.conditions[0].reason == reason);
        refused.map(|(set, _)| set).collect::<Vec<_>>()
    };
    let refused = refused("TooManyListeners");
    // 1 and 17 times 64 are 1,089.
    assert_eq!(refused.len(), 1_089 - 1_024);
    assert_eq!(
        (refused[0].as_str(), refused[64].as_str()),
        ("set-15", "set-16")
    );
}

#[test]
fn a_status_has_room_for_so_many_gateways_and_a_problem_says_that_there_are_more() {
    let parents = |objects: &str, kind: &str| {
        let published = index(objects).publish();
        let mut all = published.statuses.iter();
        let status = all.find(|s| s.kind.as_str() == kind).unwrap();
        let mut problems = published.snapshot.problems.iter();
        let told = problems.any(|p| p.reason == "TooManyParents" && p.object.starts_with(kind));
        (status.parents.len(), told)
    };
    let pool = "\n---\n{apiVersion: inference.networking.k8s.io/v1, kind: InferencePool, metadata: {name: p}, spec: {selector: {matchLabels: {a: b}}, targetPorts: [{number: 1}]}}";
    // A route has 32 parents at most, so that it takes two to lead 33 Gateways to a pool.
    let with_pool = |count: usize| {
        let (all, refs) = gateways(count);
        let refs: Vec<_> = refs.split(", ").collect();
        let rules = "rules: [{backendRefs: [{group: inference.networking.k8s.io, kind: InferencePool, name: p}]}]";
        let routes = refs.chunks(32).enumerate().map(|(at, refs)| {
            let spec = format!("parentRefs: [{}], {rules}", refs.join(", "));
            object("HTTPRoute", &format!("r{at}"), &spec)
        });
        all + pool + &routes.collect::<String>()
    };
    assert_eq!(parents(&with_pool(32), "InferencePool"), (32, false));
    assert_eq!(parents(&with_pool(33), "InferencePool"), (32, true));
    let with_policy = |count: usize| {
        let (all, refs) = gateways(count);
        let policy = "targetRefs: [{group: '', kind: Service, name: s}], validation: {wellKnownCACertificates: System, hostname: a.com}";
        let route =
            format!("parentRefs: [{refs}], rules: [{{backendRefs: [{{name: s, port: 80}}]}}]");
        all + &service("s", "ports: [{port: 80}]")
            + &object("BackendTLSPolicy", "p", policy)
            + &object("HTTPRoute", "r", &route)
    };
    assert_eq!(parents(&with_policy(16), "BackendTLSPolicy"), (16, false));
    assert_eq!(parents(&with_policy(17), "BackendTLSPolicy"), (16, true));
}

#[test]
fn of_too_many_problems_the_first_are_kept_and_the_rest_is_counted() {
    let objects: String = (0..PROBLEMS_MAX + 7)
        .map(|at| object("HTTPRoute", &format!("r{at}"), ""))
        .collect();
    let problems = index(&objects).publish().snapshot.problems.clone();
    assert_eq!(problems.len(), PROBLEMS_MAX + 1);
    let last = problems.last().unwrap();
    assert_eq!(last.reason, "TooManyProblems");
    assert!(last.message.starts_with("7 more"), "{last}");
}
