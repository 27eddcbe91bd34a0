//! What is configured of an endpoint, next to what is measured of it: labels and place.

use std::sync::Arc;

use forebay_model::endpoint::Labels;
use forebay_model::{Endpoint, Topology};

/// One slot's endpoint as it is configured.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Site {
    pub(crate) labels: Arc<Labels>,
    pub(crate) topology: Topology,
}

impl Site {
    pub(crate) fn of(endpoint: &Endpoint) -> Self {
        Self {
            labels: Arc::clone(&endpoint.labels),
            topology: endpoint.topology.clone(),
        }
    }

    /// Whether this is what is configured of `endpoint`.
    pub(crate) fn is_of(&self, endpoint: &Endpoint) -> bool {
        (Arc::ptr_eq(&self.labels, &endpoint.labels) || self.labels == endpoint.labels)
            && self.topology == endpoint.topology
    }
}

/// A range of prompt lengths as in `0-8192`, ends included; `None` if the text is none.
pub(crate) fn token_range(text: &str) -> Option<(u32, u32)> {
    let (min, max) = text.split_once('-')?;
    let (min, max) = (min.trim().parse().ok()?, max.trim().parse().ok()?);
    (min <= max).then_some((min, max))
}
