//! The tokenizers that pools name: loaded from their folders in the background, and looked up by
//! requests.
//!
//! A tokenizer that is not there yet, or cannot be used, is no reason to wait: prompts are compared
//! byte by byte then, which decisions say. Bounds: [`TOKENIZERS_MAX`] tokenizers; further names are
//! refused.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use forebay_tokenize::{Files, Tokenizer};

use crate::per_worker::lock;

/// Tokenizers that are kept at a time; one takes tens of megabytes.
const TOKENIZERS_MAX: usize = 64;
/// Bytes of one file; the largest vocabularies take some 30 million.
const FILE_BYTES_MAX: u64 = 256 << 20;
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
    /// For the first time.
    Loading,
    Ready(Arc<Tokenizer>, Option<SystemTime>),
    /// With the time of the files that were tried.
    Failed(Option<SystemTime>),
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
                Some(State::Ready(_, at) | State::Failed(at)) => *at == changed,
            };
            if current {
                continue;
            }
            if name == SIMULATED {
                let tokenizer = Arc::new(Tokenizer::Simulated);
                known.insert(name.into(), State::Ready(tokenizer, None));
                continue;
            }
            let (Some(folder), Some(_)) = (self.folder(name), changed) else {
                let why = match &self.root {
                    None => "no folder of tokenizers was given: see --tokenizers".to_owned(),
                    Some(root) => format!("there is no {}", root.join(name).display()),
                };
                if !matches!(known.get(name), Some(State::Failed(..))) {
                    tracing::warn!(tokenizer = name, "prompts are compared byte by byte: {why}");
                }
                known.insert(name.into(), State::Failed(changed));
                continue;
            };
            // What is there serves on until the new one is ready.
            let meanwhile = match known.get(name) {
                Some(State::Ready(tokenizer, _)) => State::Ready(Arc::clone(tokenizer), changed),
                Some(State::Loading | State::Failed(..)) | None => State::Loading,
            };
            known.insert(name.into(), meanwhile);
            self.load(name, folder, changed);
        }
    }

    /// Loads a tokenizer on a thread of its own: it takes a second or two.
    fn load(self: &Arc<Self>, name: &str, folder: PathBuf, changed: Option<SystemTime>) {
        let (own, name): (_, Arc<str>) = (Arc::clone(self), name.into());
        let work = move || {
            let state = match read(&folder) {
                Ok(tokenizer) => {
                    tracing::info!(tokenizer = %name, "tokenizer is ready");
                    State::Ready(Arc::new(tokenizer), changed)
                }
                Err(why) => {
                    tracing::warn!(tokenizer = %name, "prompts are compared byte by byte: {why}");
                    State::Failed(changed)
                }
            };
            // Unless nobody names it any more.
            if let Some(known) = lock(&own.known).get_mut(&name) {
                *known = state;
            }
        };
        let thread = std::thread::Builder::new().name("tokenizer".to_owned());
        if let Err(error) = thread.spawn(work) {
            tracing::warn!("no thread to load a tokenizer: {error}");
        }
    }

    /// Where its files are. A name that leads elsewhere has none.
    fn folder(&self, name: &str) -> Option<PathBuf> {
        if name.is_empty() || name.starts_with('.') || name.contains(['/', '\\', '\0']) {
            return None;
        }
        Some(self.root.as_ref()?.join(name))
    }

    /// When the files of a tokenizer last changed; `None` if there are none.
    fn changed(&self, name: &str) -> Option<SystemTime> {
        let folder = self.folder(name)?;
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

/// A tokenizer of the files in a folder; why not, otherwise.
///
/// # Errors
/// A sentence.
pub fn read(folder: &Path) -> Result<Tokenizer, String> {
    let file = |name: &str| {
        let path = folder.join(name);
        match path.metadata() {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("{}: {error}", path.display())),
            Ok(found) if found.len() > FILE_BYTES_MAX => {
                return Err(format!(
                    "{} has more than {FILE_BYTES_MAX} bytes",
                    path.display()
                ));
            }
            Ok(_) => {}
        }
        let bytes = std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Some(bytes))
    };
    let tokenizer = file("tokenizer.json")?;
    let tokenizer =
        tokenizer.ok_or_else(|| format!("{} has no tokenizer.json", folder.display()))?;
    let config = file("tokenizer_config.json")?;
    let template = file("chat_template.jinja")?;
    let template = template.map(String::from_utf8).transpose();
    let template = template.map_err(|error| format!("chat_template.jinja: {error}"))?;
    let files = Files {
        tokenizer: &tokenizer,
        config: config.as_deref(),
        template: template.as_deref(),
    };
    Tokenizer::of_files(files).map_err(|error| format!("{}: {error}", folder.display()))
}
