//! What is written to the API server, by one process at a time: statuses and infrastructure.
//!
//! Every process that could write keeps the same books, so that one that is elected can begin at
//! once.

use forebay_api::infrastructure::Site;
use tokio::sync::watch;

use super::infrastructure::{self, Needs};
use super::lease::{self, Lease};
use super::metrics::Metrics;
use super::server::Server;
use super::source::KubernetesSource;
use super::statuses::{self, Desk};

/// How to write.
#[derive(Clone, Debug)]
pub struct ControllerOptions {
    /// `controllerName` in the statuses that are ours.
    pub controller: String,
    /// Who may write; `None` if there is nobody else.
    pub election: Option<Election>,
    /// Where and how infrastructure of Gateways is made.
    pub site: Site,
}

/// Where an election is held.
#[derive(Clone, Debug)]
pub struct Election {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of the Lease, the same for all who stand.
    pub lease: String,
    /// Who we are; no two have the same name.
    pub identity: String,
}

/// Writes what a source has to say of its objects.
#[derive(Debug)]
pub struct Controller {
    server: Server,
    metrics: Metrics,
    desk: Desk,
    needs: Needs,
    election: Option<Election>,
    site: Site,
}

impl Controller {
    /// A controller that writes what `source` computes; both are to be run.
    #[must_use]
    pub fn of(
        source: &mut KubernetesSource,
        server: Server,
        metrics: Metrics,
        options: ControllerOptions,
    ) -> Self {
        let desk = Desk::new(options.controller);
        let needs = Needs::new();
        source.set_writers(desk.clone(), needs.clone());
        Self {
            server,
            metrics,
            desk,
            needs,
            election: options.election,
            site: options.site,
        }
    }

    /// Writes whenever it is elected, until `stop` ends; then makes room for the next.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let Self {
            server,
            metrics,
            desk,
            needs,
            election,
            site,
        } = self;
        let (leads, led) = watch::channel(false);
        let writing = statuses::write(desk.clone(), server.clone(), metrics.clone(), time);
        let keeping =
            infrastructure::keep(server.clone(), site, needs, led.clone(), metrics.clone());
        let electing = async {
            match election {
                Some(election) => {
                    let lease = Lease {
                        server,
                        namespace: election.namespace,
                        name: election.lease,
                    };
                    let identity = election.identity;
                    lease::run(lease, identity, leads, metrics, micro_time, stop).await;
                }
                None => {
                    metrics.set_leader(true);
                    leads.send_replace(true);
                    stop.await;
                }
            }
        };
        tokio::select! {
            () = electing => {}
            () = follow(desk, led) => {}
            () = writing => {}
            () = keeping => {}
        }
    }
}

/// Tells the desk who leads.
async fn follow(desk: Desk, mut led: watch::Receiver<bool>) {
    loop {
        let leads = *led.borrow_and_update();
        desk.note(|books, now| books.lead(leads, now));
        if led.changed().await.is_err() {
            // The election is over, and with it all of this.
            return std::future::pending().await;
        }
    }
}

/// The time of day as conditions have it.
fn time() -> String {
    let now = jiff::Timestamp::now();
    now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The time of day as Leases have it.
pub(super) fn micro_time() -> String {
    let now = jiff::Timestamp::now();
    now.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_api() {
        let is = |text: &str, len| text.len() == len && text.parse::<jiff::Timestamp>().is_ok();
        assert!(is(&time(), 20), "{}", time());
        assert!(is(&micro_time(), 27), "{}", micro_time());
    }
}
