//! The tokenizers that pools name: loaded from their folders in the background, and looked up by
//! requests.
//!
//! A tokenizer that is not there yet, or cannot be used, is no reason to wait: prompts are compared
//! byte by byte then, which decisions say. Bounds: [`TOKENIZERS_MAX`] tokenizers; further names are
//! refused.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use forebay_tokenize::Tokenizer;

use crate::per_worker::lock;

/// Tokenizers that are kept at a time; one takes tens of megabytes.
const TOKENIZERS_MAX: usize = 64;
/// The name of the simulated servers' tokenizer, which needs no files.
pub const SIMULATED: &str = "simulated";

/// Tokenizers by name.
#[derive(Debug, Default)]
pub struct Tokenizers {
    root: Option<PathBuf>,
    known: Mutex<HashMap<Arc<str>, State>>,
}

#[derive(Clone, Debug)]
enum State {
    Loading,
    Ready(Arc<Tokenizer>, Option<SystemTime>),
    /// Why, and what its files were when it was tried.
    Failed(Arc<str>, Option<SystemTime>),
}

impl Tokenizers {
    /// Tokenizers of the folders within `root`.
    #[must_use]
    pub fn new(root: Option<PathBuf>) -> Self {
        Self {
            root,
            known: Mutex::default(),
        }
    }

    /// The tokenizer of this name, if it can be used by now.
    pub fn get(&self, name: &str) -> Option<Arc<Tokenizer>> {
        match lock(&self.known).get(name)? {
            State::Ready(tokenizer, _) => Some(Arc::clone(tokenizer)),
            State::Loading | State::Failed(..) => None,
        }
    }

    /// What has become of each: a word, and a reason if it cannot be used.
    pub fn describe(&self) -> Vec<(Arc<str>, &'static str, Option<Arc<str>>)> {
        let known = lock(&self.known);
        let mut all: Vec<_> = known
            .iter()
            .map(|(name, state)| match state {
                State::Loading => (Arc::clone(name), "loading", None),
                State::Ready(..) => (Arc::clone(name), "ready", None),
                State::Failed(why, _) => (Arc::clone(name), "failed", Some(Arc::clone(why))),
            })
            .collect();
        all.sort();
        all
    }

    /// Loads those of `names` that are not there, or whose files have changed; forgets others.
    pub fn look<'a>(self: &Arc<Self>, names: impl Iterator<Item = &'a str>) {
        let names: std::collections::BTreeSet<&str> = names.take(TOKENIZERS_MAX).collect();
        let mut known = lock(&self.known);
        known.retain(|name, _| names.contains(&**name));
        for name in names {
            let changed = self.changed(name);
            let current = match known.get(name) {
                None => false,
                Some(State::Loading) => true,
                Some(State::Ready(_, at) | State::Failed(_, at)) => *at == changed,
            };
            if current {
                continue;
            }
            if name == SIMULATED {
                let tokenizer = Arc::new(Tokenizer::Simulated);
                known.insert(name.into(), State::Ready(tokenizer, None));
                continue;
            }
            known.insert(
                name.into(),
                State::Failed("not supported yet".into(), changed),
            );
        }
    }

    /// When the files of a tokenizer last changed; `None` if there are none.
    fn changed(&self, name: &str) -> Option<SystemTime> {
        let folder = self.root.as_ref()?.join(name);
        let time = |file: &str| folder.join(file).metadata().and_then(|m| m.modified()).ok();
        [
            "tokenizer.json",
            "tokenizer_config.json",
            "chat_template.jinja",
        ]
        .into_iter()
        .filter_map(time)
        .max()
    }
}
