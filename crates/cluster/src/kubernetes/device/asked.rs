//! What a claim asks for, before there is an allocation.

use bytes::Bytes;
use forebay_fabric::unnamed::{self, Of, Unnamed};
use http::StatusCode;
use serde_json::Value;

use super::API;
use crate::kubernetes::server::{Failure, Server, json};

/// Looks claims and their classes up. Clones are the same.
#[derive(Clone, Debug)]
pub struct Asked(Server);

impl Asked {
    /// Asks `server`.
    #[must_use]
    pub fn new(server: Server) -> Asked {
        Asked(server)
    }

    /// Whether a claim of a pod in `namespace` asks for devices of `driver` and no others, by its classes.
    ///
    /// # Errors
    /// That cannot be told: what is not there.
    pub async fn is_of(
        &self,
        namespace: &str,
        claim: &Unnamed,
        driver: &str,
    ) -> Result<bool, String> {
        let (path, pointer) = match &claim.of {
            Of::Claim(name) => (format!("resourceclaims/{name}"), "/spec"),
            Of::Template(name) => (format!("resourceclaimtemplates/{name}"), "/spec/spec"),
        };
        let path = format!("{API}/namespaces/{namespace}/{path}");
        let object = self.get(&path).await?;
        let spec = object.pointer(pointer).cloned().unwrap_or_default();
        let classes = unnamed::classes(&spec);
        for class in &classes {
            let class = self.get(&format!("{API}/deviceclasses/{class}")).await?;
            if !unnamed::is_of(&class, driver) {
                return Ok(false);
            }
        }
        Ok(!classes.is_empty())
    }

    async fn get(&self, path: &str) -> Result<Value, String> {
        let told = |failure: Failure| match failure.is(StatusCode::NOT_FOUND) {
            true => format!(
                "{} is not there",
                path.trim_start_matches(API).trim_start_matches('/')
            ),
            false => failure.to_string(),
        };
        let body: Bytes = self.0.get(path).await.map_err(told)?;
        json(&body).map_err(told)
    }
}
