//! Keeps the leases of pods' NICs, and gives back what claims no longer have.

use std::sync::Arc;
use std::time::Duration;

use forebay_node::ipam::now_s;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::OwnKeeper;

/// Between two looks whether something is due: leases last for minutes at least, and are asked for again at half
/// of that.
const EVERY: Duration = Duration::from_secs(20);

/// Works until the process ends: when `freed` says so, and now and then. What it did to a lease is to be `seen`.
pub(super) async fn keep(mut keeper: OwnKeeper, freed: Arc<Notify>, seen: Arc<Notify>) {
    let mut before = Vec::new();
    loop {
        let worked = tokio::task::spawn_blocking(move || {
            let told = keeper.work(now_s());
            (keeper, told)
        });
        let told = match worked.await {
            Ok((same, told)) => {
                keeper = same;
                told
            }
            Err(error) => {
                tracing::error!("leases are no longer kept: {error}");
                return;
            }
        };
        for what in told.iter().filter(|what| !before.contains(*what)) {
            tracing::warn!("{what}");
            seen.notify_one();
        }
        before = told;
        tokio::select! {
            () = freed.notified() => {}
            () = sleep(EVERY) => {}
        }
    }
}
