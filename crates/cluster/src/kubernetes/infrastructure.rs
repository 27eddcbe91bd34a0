//! Services and pods of Gateways: what there is is gathered, what to do is planned in `forebay-api`,
//! and here it is done. Only the leader does.
//!
//! What there is is read from the server before every plan rather than from watches: an allocation of
//! ports that was made from stale Services could give one port to two Gateways.

use std::sync::Arc;
use std::time::Duration;

use forebay_api::infrastructure::{Delete, Made, Plan, Put, Site, Wanted, plan, selector};
use forebay_api::reason;
use forebay_model::snapshot::Problem;
use http::StatusCode;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

use super::backoff::{Backoff, random};
use super::metrics::{Metrics, Written};
use super::server::{Failure, Server, Write, json};
use super::watch::encoded;

/// Shortest time between two plans: each lists what there is.
const PACE: Duration = Duration::from_secs(1);
/// Time after which it is looked whether everything still is as it was made.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// Waits after something could not be done.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LONGEST: Duration = Duration::from_secs(60);

/// What is told to the keeper of the infrastructure, and by it.
#[derive(Clone, Debug)]
pub(crate) struct Needs {
    /// What Gateways want; `None` until that is known.
    pub(crate) wanted: Arc<watch::Sender<Option<Arc<[Wanted]>>>>,
    /// Something of ours may have been changed by somebody else.
    pub(crate) disturbed: Arc<Notify>,
    /// What could not be done.
    pub(crate) problems: Arc<watch::Sender<Arc<[Problem]>>>,
}

impl Needs {
    pub(crate) fn new() -> Self {
        Self {
            wanted: Arc::new(watch::Sender::new(None)),
            disturbed: Arc::default(),
            problems: Arc::new(watch::Sender::new(Arc::default())),
        }
    }

    /// This is what Gateways want from now on.
    pub(crate) fn want(&self, wanted: Vec<Wanted>) {
        self.wanted.send_if_modified(|last| {
            if last.as_deref() == Some(&wanted) {
                return false;
            }
            *last = Some(wanted.into());
            true
        });
    }
}

/// Makes what Gateways want while `led` says so, for ever.
pub(crate) async fn keep(
    server: Server,
    site: Site,
    needs: Needs,
    mut led: watch::Receiver<bool>,
    metrics: Metrics,
) {
    let mut keeper = Keeper {
        server,
        site,
        metrics,
        may_dedicate: true,
    };
    let mut wanted = needs.wanted.subscribe();
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_LONGEST);
    loop {
        if led.wait_for(|leads| *leads).await.is_err() {
            // The election is over, and with it all of this.
            return std::future::pending().await;
        }
        let began = Instant::now();
        let Some(now) = wanted.borrow_and_update().clone() else {
            tokio::select! {
                _ = wanted.changed() => {}
                _ = led.changed() => {}
            }
            continue;
        };
        let leads = || *led.borrow();
        let problems = keeper.keep_once(&now, leads).await;
        let next = match problems.is_empty() {
            true => {
                backoff.reset();
                began + LOOK_AGAIN
            }
            false => Instant::now() + backoff.wait(random()),
        };
        publish(&needs, problems);
        sleep_until(began + PACE).await;
        tokio::select! {
            _ = wanted.changed() => {}
            () = needs.disturbed.notified() => {}
            () = sleep_until(next) => {}
            _ = led.wait_for(|leads| !*leads) => publish(&needs, Vec::new()),
        }
    }
}

/// Tells the source, and the log what is new.
fn publish(needs: &Needs, problems: Vec<Problem>) {
    needs.problems.send_if_modified(|last| {
        if **last == *problems {
            return false;
        }
        *last = problems.into();
        true
    });
}

struct Keeper {
    server: Server,
    site: Site,
    metrics: Metrics,
    /// Whether we may make pods of Gateways' own, as far as it is known.
    may_dedicate: bool,
}

impl Keeper {
    /// Gathers, plans and acts, as long as we lead; what could not be done.
    async fn keep_once(&mut self, wanted: &[Wanted], leads: impl Fn() -> bool) -> Vec<Problem> {
        let mut site = self.site.clone();
        let mut unseen = None;
        let present = match self.gather(wanted, &mut site, &mut unseen).await {
            Ok(present) => present,
            Err(failure) => return vec![undone("infrastructure of Gateways", &failure)],
        };
        let Plan {
            puts,
            deletes,
            mut problems,
        } = plan(wanted, &present, &site);
        problems.extend(unseen);
        for put in puts {
            // Another may be at it by now, from a plan of its own.
            if leads() {
                problems.extend(self.put(put).await);
            }
        }
        for delete in deletes {
            if leads() {
                problems.extend(self.delete(delete).await);
            }
        }
        problems
    }

    /// Everything of ours that is there. What `site` asks for and we may not so much as look at is
    /// taken out of it, with a problem that says so, where Gateways are reached without it.
    async fn gather(
        &mut self,
        wanted: &[Wanted],
        site: &mut Site,
        unseen: &mut Option<Problem>,
    ) -> Result<Vec<(Made, Value)>, Failure> {
        let dedicated = wanted.iter().any(|one| one.data_plane.is_some());
        let mut present = Vec::new();
        for made in Made::ALL {
            let beside = made == Made::ServiceAccount && site.service_accounts;
            let always = made == Made::Service || beside;
            let skipped = match made {
                Made::ClusterRoleBinding => site.cluster_role.is_none(),
                Made::RoleBinding => site.cluster_role.is_none() || site.namespaces.is_empty(),
                Made::Service | Made::ServiceAccount | Made::Deployment => false,
            };
            if skipped || !(always || dedicated || self.may_dedicate) {
                continue;
            }
            match self.list(made).await {
                Ok(objects) => present.extend(objects.into_iter().map(|object| (made, object))),
                Err(failure) if beside && !dedicated && failure.is(StatusCode::FORBIDDEN) => {
                    site.service_accounts = false;
                    *unseen = Some(undone("ServiceAccounts of Gateways", &failure));
                }
                // Without these rights we cannot have made any.
                Err(failure) if !always && !dedicated && failure.is(StatusCode::FORBIDDEN) => {
                    self.may_dedicate = false;
                }
                Err(failure) => return Err(failure),
            }
        }
        Ok(present)
    }

    /// Everything of one kind that we have made.
    async fn list(&self, made: Made) -> Result<Vec<Value>, Failure> {
        #[derive(Deserialize)]
        struct List {
            items: Option<Vec<Value>>,
        }
        let places = places(made, &self.site);
        let labels = encoded(&selector(&self.site.namespace));
        let mut objects = Vec::new();
        for place in places {
            let path = format!("{}?labelSelector={labels}", made.path(place));
            let list: List = json(&self.server.get(&path).await?)?;
            objects.extend(list.items.into_iter().flatten());
        }
        Ok(objects)
    }

    async fn put(&self, put: Put) -> Option<Problem> {
        let what = named(put.made, &put.path);
        let done = match put.is_new() {
            true => self.put_new(&put).await,
            false => self.apply(&put).await,
        };
        match done {
            Ok(()) => {
                tracing::info!("{what} is applied");
                self.metrics.infrastructure_written(Written::Done);
                None
            }
            Err(failure) => {
                let what_of = match failure.is(StatusCode::CONFLICT) {
                    true => Written::Conflict,
                    false => Written::Failed,
                };
                self.metrics.infrastructure_written(what_of);
                Some(undone(&what, &failure))
            }
        }
    }

    /// Server-side apply would take over an object of this name that somebody else has made.
    async fn put_new(&self, put: &Put) -> Result<(), Failure> {
        match self.server.get(&put.path).await {
            Err(failure) if failure.is(StatusCode::NOT_FOUND) => self.apply(put).await,
            Err(failure) => Err(failure),
            Ok(_) => Err(Failure::Refused {
                status: StatusCode::CONFLICT,
                why: "there is one already that is not ours; delete or rename it".to_owned(),
            }),
        }
    }

    async fn apply(&self, put: &Put) -> Result<(), Failure> {
        let applied = self.server.write(Write::Apply, &put.path, &put.object);
        applied.await.map(drop)
    }

    async fn delete(&self, delete: Delete) -> Option<Problem> {
        let what = named(delete.made, &delete.path);
        match self.server.delete(&delete.path, &delete.uid).await {
            Ok(()) => {
                tracing::info!("{what} is deleted: no Gateway needs it");
                self.metrics.infrastructure_written(Written::Done);
                None
            }
            // Gone, or another one by now.
            Err(failure)
                if failure.is(StatusCode::NOT_FOUND) || failure.is(StatusCode::CONFLICT) =>
            {
                None
            }
            Err(failure) => {
                self.metrics.infrastructure_written(Written::Failed);
                Some(undone(&what, &failure))
            }
        }
    }
}

/// Where things of this kind may be: the namespaces of Gateways, and ours for the Services of those that
/// share pods. `None` stands for all of the cluster.
fn places(made: Made, site: &Site) -> Vec<Option<&str>> {
    let followed = site.namespaces.iter().map(String::as_str);
    let mut all: Vec<&str> = match made {
        Made::ClusterRoleBinding => return vec![None],
        _ if site.namespaces.is_empty() => return vec![None],
        Made::Service => followed.chain([site.namespace.as_str()]).collect(),
        Made::ServiceAccount | Made::RoleBinding | Made::Deployment => followed.collect(),
    };
    all.sort_unstable();
    all.dedup();
    all.into_iter().map(Some).collect()
}

/// `Service forebay-system/gw-apps-edge-0123456789`.
fn named(made: Made, path: &str) -> String {
    let parts: Vec<&str> = path.split('/').collect();
    let name = match parts.as_slice() {
        [.., "namespaces", namespace, _, name] => format!("{namespace}/{name}"),
        [.., name] => (*name).to_owned(),
        [] => String::new(),
    };
    format!("{} {name}", made.as_str())
}

fn undone(what: &str, failure: &Failure) -> Problem {
    Problem {
        object: what.to_owned(),
        field: String::new(),
        reason: reason::NO_INFRASTRUCTURE,
        message: format!("cannot be brought into order, and is tried again: {failure}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_we_may_not_make_somewhere_is_not_looked_for_there() {
        let mut site = Site {
            namespace: "own".to_owned(),
            namespaces: vec!["b".to_owned(), "a".to_owned()],
            selector: std::collections::BTreeMap::new(),
            service_type: None,
            image: String::new(),
            cluster_role: None,
            service_accounts: true,
        };
        let of = |made, site: &Site| {
            let places = places(made, site).into_iter();
            let places: Vec<String> = places.map(|at| at.unwrap_or("*").to_owned()).collect();
            places.join(" ")
        };
        assert_eq!(of(Made::Service, &site), "a b own");
        assert_eq!(of(Made::ServiceAccount, &site), "a b");
        assert_eq!(of(Made::RoleBinding, &site), "a b");
        assert_eq!(of(Made::ClusterRoleBinding, &site), "*");
        site.namespaces.clear();
        assert_eq!(of(Made::Deployment, &site), "*");
    }

    #[test]
    fn objects_are_named_as_people_name_them() {
        let path = format!("{}/gw-a", Made::Service.path(Some("own")));
        assert_eq!(named(Made::Service, &path), "Service own/gw-a");
        let path = format!("{}/gw-a", Made::ClusterRoleBinding.path(None));
        assert_eq!(
            named(Made::ClusterRoleBinding, &path),
            "ClusterRoleBinding gw-a"
        );
    }
}
