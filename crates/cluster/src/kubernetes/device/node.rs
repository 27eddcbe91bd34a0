//! The node that a driver runs on, as the API server has it.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::kubernetes::backoff::{Backoff, random};
use crate::kubernetes::server::{Failure, Server, json};

use super::{RETRY_FIRST, RETRY_LONGEST};

/// What is known of a node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeObject {
    /// Its UID.
    pub uid: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Read {
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    uid: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

/// The node of this name; waits until there is one and the server tells of it.
pub async fn node(server: &Server, name: &str) -> NodeObject {
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_LONGEST);
    loop {
        match read(server, name).await {
            Ok(node) => return node,
            Err(error) => tracing::warn!("node {name} cannot be read, it is tried again: {error}"),
        }
        tokio::time::sleep(backoff.wait(random())).await;
    }
}

pub(super) async fn read(server: &Server, name: &str) -> Result<NodeObject, Failure> {
    let bytes = server.get(&format!("/api/v1/nodes/{name}")).await?;
    let Read { metadata } = json(&bytes)?;
    Ok(NodeObject {
        uid: metadata.uid,
        labels: metadata.labels,
    })
}
