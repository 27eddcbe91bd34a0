//! Connections after `101 Switching Protocols`: bytes both ways until one side is done.

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;

use crate::relay::Settle;
use crate::upstream::Upgraded;

/// Joins the client's side with the endpoint's in a task of this worker.
pub(crate) fn join(client: OnUpgrade, upstream: Upgraded, mut settle: Settle) {
    let held = settle.hold_connection();
    tokio::task::spawn_local(async move {
        let _held = held;
        let (mut upstream, early, _counted) = upstream.into_parts();
        let Ok(client) = client.await else { return };
        let mut client = TokioIo::new(client);
        if client.write_all(&early).await.is_err() {
            return;
        }
        let (bytes_in, bytes_out) = tokio::io::copy_bidirectional(&mut client, &mut upstream)
            .await
            .unwrap_or_default();
        settle.tunnel_closed(bytes_in, bytes_out + early.len() as u64);
    });
}
