//! Connections after `101 Switching Protocols`: bytes both ways until both sides are done.

use std::rc::Rc;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use crate::pump::{self, First, Passed};
use crate::relay::Settle;
use crate::upstream::Upgraded;

/// Joins the client's side with the endpoint's in a task of this worker.
pub(crate) fn join(client: OnUpgrade, upstream: Upgraded, mut settle: Settle) {
    let held = settle.hold_connection();
    let idle_limit = settle.tunnel_idle_timeout();
    tokio::task::spawn_local(async move {
        let _held = held;
        let (mut upstream, early, _counted) = upstream.into_parts();
        let Ok(client) = client.await else { return };
        let mut client = TokioIo::new(client);
        let passed = Rc::default();
        let first = First {
            for_client: early,
            ..First::default()
        };
        let ending = pump::join(&mut client, &mut upstream, first, &passed, idle_limit).await;
        let Passed {
            bytes_in,
            bytes_out,
        } = &*passed;
        settle.tunnel_closed(ending, bytes_in.get(), bytes_out.get());
    });
}
