//! The list of models, merged from those of many servers.
//!
//! Replicas of a pool serve the same models but not the same adapters, and start at different
//! times; clients want one list that does not flicker. Off the hot path, so it is parsed plainly.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value, json};

/// Models in one list; further ones are left out.
pub const MODELS_MAX: usize = 10_000;

/// Models by id.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ModelList {
    cards: BTreeMap<String, Map<String, Value>>,
}

/// Why a server's list cannot be used.
#[derive(Debug)]
pub enum ModelsError {
    /// It is not JSON.
    Json(serde_json::Error),
    /// It has no array `data`.
    NoData,
}

impl fmt::Display for ModelsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json(_) => f.write_str("the model server's list of models is not JSON"),
            Self::NoData => f.write_str("the model server's list of models has no array `data`"),
        }
    }
}

impl std::error::Error for ModelsError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Json(source) => Some(source),
            Self::NoData => None,
        }
    }
}

impl ModelList {
    /// Adds the models of one server's answer to `GET /v1/models`. Entries without an id are left
    /// out. Of a model that is known, members that were absent are taken over, and the earliest
    /// `created`, so that the order of servers does not show.
    ///
    /// # Errors
    /// If `body` is not a list of models; nothing is added then.
    pub fn merge(&mut self, body: &[u8]) -> Result<(), ModelsError> {
        let mut list: Value = serde_json::from_slice(body).map_err(ModelsError::Json)?;
        let Some(Value::Array(cards)) = list.get_mut("data").map(Value::take) else {
            return Err(ModelsError::NoData);
        };
        for card in cards {
            if let Value::Object(card) = card {
                self.merge_card(card);
            }
        }
        Ok(())
    }

    /// Adds a model that only the gateway knows by this name, such as one that a rewrite serves.
    pub fn add(&mut self, id: &str, created_s: u64, owned_by: &str) {
        let card = json!({
            "id": id, "object": "model", "created": created_s, "owned_by": owned_by,
        });
        if let Value::Object(card) = card {
            self.merge_card(card);
        }
    }

    /// The ids, base models in order, each followed by its adapters.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.ordered()
            .into_iter()
            .filter_map(|card| card.get("id")?.as_str())
    }

    /// The answer to `GET /v1/models`.
    #[must_use]
    pub fn render(&self) -> Vec<u8> {
        json!({ "object": "list", "data": self.ordered() })
            .to_string()
            .into_bytes()
    }

    fn merge_card(&mut self, card: Map<String, Value>) {
        let Some(id) = card.get("id").and_then(Value::as_str) else {
            return;
        };
        if self.cards.len() >= MODELS_MAX && !self.cards.contains_key(id) {
            return;
        }
        let known = self.cards.entry(id.to_owned()).or_default();
        for (member, value) in card {
            match known.get_mut(&member) {
                Some(old) if old.is_null() => *old = value,
                Some(old) if member == "created" && value.as_u64() < old.as_u64() => *old = value,
                Some(_) => {}
                None => {
                    known.insert(member, value);
                }
            }
        }
    }

    fn ordered(&self) -> Vec<&Map<String, Value>> {
        let mut cards: Vec<_> = self.cards.iter().collect();
        cards.sort_by_key(|(id, card)| {
            let parent = card.get("parent").and_then(Value::as_str);
            (parent.unwrap_or(id), parent.is_some(), id.as_str())
        });
        cards.into_iter().map(|(_, card)| card).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(lists: &[&str]) -> ModelList {
        let mut models = ModelList::default();
        for list in lists {
            models
                .merge(list.as_bytes())
                .expect("the test's list is valid");
        }
        models
    }

    // Shaped as vLLM 0.32.0 answers.
    const ONE: &str = r#"{"object":"list","data":[
        {"id":"tiny","object":"model","created":20,"owned_by":"vllm","root":"/m","parent":null,"max_model_len":4096},
        {"id":"ad1","object":"model","created":20,"owned_by":"vllm","root":"/a/1","parent":"tiny"}]}"#;
    const TWO: &str = r#"{"object":"list","data":[
        {"id":"ad0","object":"model","created":10,"root":"/a/0","parent":"tiny"},
        {"id":"tiny","object":"model","created":10,"owned_by":"vllm","root":"/m","parent":null},
        {"id":"base","object":"model","created":5}, {"no":"id"}, 3]}"#;

    #[test]
    fn adapters_follow_their_base_whatever_the_order_of_servers() {
        for lists in [[ONE, TWO], [TWO, ONE]] {
            let models = merged(&lists);
            let ids: Vec<_> = models.ids().collect();
            assert_eq!(ids, ["base", "tiny", "ad0", "ad1"]);
        }
        assert_eq!(merged(&[ONE, TWO]).render(), merged(&[TWO, ONE]).render());
    }

    #[test]
    fn members_of_both_servers_are_kept() {
        let body: Value = serde_json::from_slice(&merged(&[TWO, ONE]).render()).unwrap();
        assert_eq!(
            body["data"][1],
            json!({"id": "tiny", "object": "model", "created": 10, "owned_by": "vllm",
                "root": "/m", "parent": null, "max_model_len": 4096})
        );
        assert_eq!(body["object"], "list");
    }

    #[test]
    fn names_that_only_the_gateway_knows_are_listed() {
        let mut models = merged(&[ONE]);
        models.add("alias", 7, "forebay");
        models.add("tiny", 7, "forebay");
        assert_eq!(models.ids().collect::<Vec<_>>(), ["alias", "tiny", "ad1"]);
    }

    #[test]
    fn what_is_no_list_is_refused() {
        let mut models = ModelList::default();
        assert!(matches!(models.merge(b"<html>"), Err(ModelsError::Json(_))));
        assert!(matches!(models.merge(b"[]"), Err(ModelsError::NoData)));
        assert!(matches!(
            models.merge(b"{\"data\":{}}"),
            Err(ModelsError::NoData)
        ));
        assert_eq!(models, ModelList::default());
    }

    #[test]
    fn a_list_has_a_bound() {
        let cards: Vec<String> = (0..=MODELS_MAX)
            .map(|n| format!("{{\"id\":\"m{n}\"}}"))
            .collect();
        let models = merged(&[&format!("{{\"data\":[{}]}}", cards.join(","))]);
        assert_eq!(models.ids().count(), MODELS_MAX);
    }
}
