//! An API server that is followed, through what it does to those who follow it. Every wait is for a
//! condition on the watch channel; the limit on it only turns a hang into a failure.

mod fake;

use std::time::Duration;

use fake::Fake;
use forebay_api::{Kind, Settings, describe};
use forebay_cluster::Published;
use forebay_cluster::kubernetes::{KubernetesSource, Metrics, Server};
use serde_json::{Value, json};
use tokio::sync::watch;

const PODS: &str = "/api/v1/pods";
const SECRETS: &str = "/api/v1/secrets";
const NAMESPACES: &str = "/api/v1/namespaces";
const OBJECTIVES: &str = "/apis/llm-d.ai/v1alpha2/inferenceobjectives";
const POOLS: &str = "/apis/inference.networking.k8s.io/v1/inferencepools";

fn pod(name: &str, ip: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "default", "labels": {"app": "a"}},
        "status": {"podIP": ip, "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

fn pool(name: &str) -> Value {
    json!({
        "apiVersion": "inference.networking.k8s.io/v1", "kind": "InferencePool",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"selector": {"matchLabels": {"app": "a"}}, "targetPorts": [{"number": 80}]},
    })
}

/// A server with a pool, and somebody who follows it.
struct World {
    fake: Fake,
    published: watch::Receiver<Published>,
    _folder: tempfile::TempDir,
}

impl World {
    async fn start(namespaces: &[&str], prepare: impl FnOnce(&Fake)) -> Self {
        Self::followed(namespaces, prepare, |source| source).await
    }

    async fn followed(
        namespaces: &[&str],
        prepare: impl FnOnce(&Fake),
        with: impl FnOnce(KubernetesSource) -> KubernetesSource,
    ) -> Self {
        let fake = Fake::start().await;
        fake.install(PODS, "Pod", true);
        prepare(&fake);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let kubeconfig = folder.path().join("config");
        fake.write_kubeconfig(&kubeconfig);
        let settings = Settings {
            infrastructure_namespace: Some("forebay-system".to_owned()),
            ..Settings::cluster()
        };
        let server = Server::find(&[kubeconfig]).await.expect("a kubeconfig");
        let namespaces = namespaces.iter().map(|name| (*name).to_owned()).collect();
        let (source, published) =
            KubernetesSource::open(server, settings, namespaces, Metrics::default());
        tokio::spawn(with(source).run());
        Self {
            fake,
            published,
            _folder: folder,
        }
    }

    async fn with_pool() -> Self {
        Self::start(&[], |fake| {
            fake.install(POOLS, "InferencePool", true);
            fake.apply(POOLS, pool("p"));
            for n in 1..=5 {
                fake.apply(PODS, pod(&format!("a{n}"), &format!("10.0.0.{n}")));
            }
        })
        .await
    }

    async fn until(&mut self, what: &str, holds: impl FnMut(&Published) -> bool) {
        let limit = Duration::from_secs(60);
        let found = tokio::time::timeout(limit, self.published.wait_for(holds)).await;
        let found = found.is_ok_and(|found| found.is_ok());
        assert!(found, "{what}: never; there is\n{}", self.text());
    }

    fn text(&self) -> String {
        describe::snapshot(&self.published.borrow().snapshot)
    }

    /// Waits until the pool has endpoints of these numbers.
    async fn until_endpoints(&mut self, numbers: &[u8]) {
        let want: Vec<String> = numbers.iter().map(|n| format!("10.0.0.{n}:80")).collect();
        self.until(&format!("endpoints {want:?}"), |published| {
            let mut pools = published.snapshot.pools.values();
            let endpoints = pools.next().map(|pool| pool.endpoints.iter());
            let endpoints = endpoints.into_iter().flatten();
            let own: Vec<String> = endpoints.map(|e| e.address.to_string()).collect();
            own == want
        })
        .await;
    }

    async fn until_problem(&mut self, text: &str) {
        self.until(&format!("problem {text:?}"), |published| {
            let problems = published.snapshot.problems.iter();
            problems.map(ToString::to_string).any(|p| p.contains(text))
        })
        .await;
    }

    async fn until_no_problem(&mut self) {
        let sound = |published: &Published| published.snapshot.problems.is_empty();
        self.until("no problem", sound).await;
    }
}

#[tokio::test]
async fn pages_are_put_together_and_events_are_live() {
    let mut world = World::with_pool().await;
    world.until_endpoints(&[1, 2, 3, 4, 5]).await;
    let first = world.published.borrow().snapshot.generation;
    assert_eq!(first, 1, "published before everything was listed");
    world.fake.apply(PODS, pod("a6", "10.0.0.6"));
    world.until_endpoints(&[1, 2, 3, 4, 5, 6]).await;
    world.fake.delete(PODS, "a1");
    world.until_endpoints(&[2, 3, 4, 5, 6]).await;
    world.fake.apply(PODS, pod("a2", "10.0.0.9"));
    world.until_endpoints(&[3, 4, 5, 6, 9]).await;
}

#[tokio::test]
async fn a_watch_that_is_cut_goes_on_where_it_was() {
    let mut world = World::with_pool().await;
    world.until_endpoints(&[1, 2, 3, 4, 5]).await;
    world.fake.cut();
    world.fake.delete(PODS, "a3");
    world.fake.apply(PODS, pod("a7", "10.0.0.7"));
    world.until_endpoints(&[1, 2, 4, 5, 7]).await;
}

#[tokio::test]
async fn what_went_while_nobody_looked_is_found_by_listing_again() {
    let mut world = World::with_pool().await;
    world.until_endpoints(&[1, 2, 3, 4, 5]).await;
    world.fake.set_down(true);
    world.fake.delete(PODS, "a1");
    world.fake.apply(PODS, pod("a8", "10.0.0.8"));
    world.fake.forget(PODS);
    world.fake.set_down(false);
    world.until_endpoints(&[2, 3, 4, 5, 8]).await;
    world.fake.apply(PODS, pod("a1", "10.0.0.1"));
    world.until_endpoints(&[1, 2, 3, 4, 5, 8]).await;
}

#[tokio::test]
async fn while_the_server_is_away_the_last_state_is_in_force_and_says_so() {
    let mut world = World::with_pool().await;
    world.until_endpoints(&[1, 2, 3, 4, 5]).await;
    world.fake.set_down(true);
    let told = "Kubernetes API: SourceUnreachable: not followed: ";
    world.until_problem(told).await;
    let generation = world.published.borrow().snapshot.generation;
    world.until_endpoints(&[1, 2, 3, 4, 5]).await;
    world.fake.set_down(false);
    world.until_no_problem().await;
    // Being away is one piece of news, and being back another.
    assert_eq!(world.published.borrow().snapshot.generation, generation + 1);
}

#[tokio::test]
async fn a_kind_that_is_installed_later_is_found_and_one_that_goes_takes_its_objects_along() {
    let mut world = World::start(&[], |fake| fake.apply(PODS, pod("a1", "10.0.0.1"))).await;
    world
        .until("a first state", |p| {
            p.snapshot.generation > 0 || p.snapshot.pools.is_empty()
        })
        .await;
    world.fake.install(POOLS, "InferencePool", true);
    world.fake.apply(POOLS, pool("p"));
    world.until_endpoints(&[1]).await;
    world.fake.uninstall(POOLS);
    world
        .until("no pool", |p| p.snapshot.pools.is_empty())
        .await;
    world.fake.install(POOLS, "InferencePool", true);
    world.fake.apply(POOLS, pool("again"));
    world.until_endpoints(&[1]).await;
}

#[tokio::test]
async fn one_malformed_object_is_a_problem_of_its_own_and_keeps_its_last_good_state() {
    let mut world = World::with_pool().await;
    world.until_endpoints(&[1, 2, 3, 4, 5]).await;
    let mut malformed = pool("p");
    malformed["spec"]["targetPorts"] = "eighty".into();
    world.fake.apply(POOLS, malformed.clone());
    malformed["metadata"]["name"] = "q".into();
    world.fake.apply(POOLS, malformed);
    world
        .until_problem("InferencePool default/q spec.targetPorts: Malformed")
        .await;
    world.fake.delete(PODS, "a5");
    world.until_endpoints(&[1, 2, 3, 4]).await;
    world.fake.delete(POOLS, "q");
    world.fake.apply(POOLS, pool("p"));
    world.until_no_problem().await;
}

#[tokio::test]
async fn nothing_is_published_until_every_kind_may_be_read() {
    let mut world = World::start(&[], |fake| {
        fake.install(POOLS, "InferencePool", true);
        fake.apply(POOLS, pool("p"));
        fake.apply(PODS, pod("a1", "10.0.0.1"));
        fake.install(SECRETS, "Secret", true);
        fake.forbid(SECRETS, true);
    })
    .await;
    let limit = Duration::from_secs(2);
    let early = tokio::time::timeout(limit, world.published.changed()).await;
    assert!(
        early.is_err(),
        "published without the Secrets:\n{}",
        world.text()
    );
    world.fake.forbid(SECRETS, false);
    world.until_endpoints(&[1]).await;
}

#[tokio::test]
async fn what_can_be_done_without_is_told_and_not_waited_for() {
    let world = World::followed(
        &[],
        |fake| {
            fake.install(POOLS, "InferencePool", true);
            fake.apply(POOLS, pool("p"));
            fake.apply(PODS, pod("a1", "10.0.0.1"));
            fake.install(OBJECTIVES, "InferenceObjective", true);
            fake.forbid(OBJECTIVES, true);
        },
        |source| source.if_allowed([Kind::InferenceObjective]),
    );
    let mut world = world.await;
    world.until_endpoints(&[1]).await;
    world
        .until_problem("KindNotRead: InferenceObjective objects are not read (403: you may not")
        .await;
}

#[tokio::test]
async fn rights_to_namespaces_alone_suffice_and_what_is_missing_is_named() {
    let own = "/api/v1/namespaces/default/pods";
    let services = "/api/v1/namespaces/forebay-system/services";
    let mut world = World::start(&["default"], |fake| {
        fake.install(POOLS, "InferencePool", true);
        fake.install(NAMESPACES, "Namespace", false);
        fake.forbid(NAMESPACES, true);
        // The fake has its objects by path, and knows of no filter.
        let pools = "/apis/inference.networking.k8s.io/v1/namespaces/default/inferencepools";
        fake.install(own, "Pod", true);
        // Those through which Gateways are reached are in a namespace of their own.
        fake.install("/api/v1/services", "Service", true);
        fake.install("/api/v1/namespaces/default/services", "Service", true);
        fake.install(services, "Service", true);
        fake.forbid(services, true);
        fake.install(pools, "InferencePool", true);
        fake.apply(pools, pool("p"));
        fake.apply(own, pod("a1", "10.0.0.1"));
        fake.apply(PODS, pod("elsewhere", "10.0.0.7"));
    })
    .await;
    let limit = Duration::from_secs(2);
    let early = tokio::time::timeout(limit, world.published.changed()).await;
    assert!(
        early.is_err(),
        "published without its own Services:\n{}",
        world.text()
    );
    world.fake.forbid(services, false);
    world.until_endpoints(&[1]).await;
    world
        .until_problem("KindNotRead: Namespace objects are not read (403: you may not")
        .await;
    world.fake.apply(own, pod("a2", "10.0.0.2"));
    world.until_endpoints(&[1, 2]).await;
}
