//! `EndpointPickerConfig`, the file that llm-d's endpoint picker is configured with, as it is: read
//! strictly, its references followed, and every plugin turned into its equivalent of a
//! [`PickerConfig`]. What has no equivalent is refused by name, all of it in one go, since a picker
//! that leaves a filter or a scorer out decides differently.
//!
//! Pure text to values; who reads files and follows them is elsewhere. `document.rs` holds the
//! shapes of the versions, `lower.rs` follows references. docs/picker-config.md lists every plugin.

mod admission;
mod document;
mod fields;
mod filters;
mod flow;
mod lower;
mod parts;
mod producers;
mod refused;
mod scorers;
#[cfg(test)]
mod tests;
mod units;
mod words;

use forebay_model::PickerConfig;
use forebay_model::snapshot::Problem;
use serde::Serialize;
use serde_json::Value;

use document::Document;
pub use document::Version;
use fields::Faults;

/// How the document is called in problems.
pub(crate) const OBJECT: &str = "EndpointPickerConfig";
/// A value of the wrong type, or out of its range.
const MALFORMED: &str = crate::reason::MALFORMED;
/// A field that there is not.
const UNKNOWN_FIELD: &str = "NoSuchField";

/// A reference that leads nowhere, or to something else.
const UNRESOLVED: &str = "Unresolved";
/// Plugins that there is nothing like here.
const NO_EQUIVALENT: &str = "NoEquivalent";
/// Worth knowing.
const NOTE: &str = "Note";

/// Bytes of one document; a larger one is not read. A ConfigMap holds 1 MiB.
pub const TEXT_BYTES_MAX: usize = 1 << 20;

/// A configuration that holds.
#[derive(Clone, PartialEq, Debug)]
pub struct Loaded {
    /// What it says, in our terms.
    pub picker: PickerConfig,
    /// Which API it is written in.
    pub version: Version,
    /// What became of each plugin, in the order written; defaults that were added come last.
    pub plugins: Vec<Became>,
    /// What is worth knowing: old names, and what has no effect here.
    pub notes: Vec<Problem>,
}

/// What became of one plugin.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Became {
    /// Its name in the document.
    pub name: String,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether it is written, or added because something that is written needs it.
    pub written: bool,
    /// What it is here, in words.
    pub became: String,
}

/// Reads a document of any version, as YAML or JSON.
///
/// # Errors
/// Everything that is wrong with it, each with its place and cure.
pub fn read(text: &str) -> Result<Loaded, Vec<Problem>> {
    let faults = Faults::default();
    let document = parse(text, &faults).and_then(|value| Document::read(value, &faults));
    let loaded = document.map(|document| lower::lower(&document, &faults));
    let faults = faults.into_inner();
    match loaded {
        Some(loaded) if faults.is_empty() => Ok(loaded),
        Some(_) | None => Err(faults),
    }
}

fn parse(text: &str, faults: &Faults) -> Option<Value> {
    if text.len() > TEXT_BYTES_MAX {
        let message = format!("longer than {TEXT_BYTES_MAX} bytes");
        faults.add("", MALFORMED, message);
        return None;
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_documents: 1,
            max_nodes: 100_000,
            max_events: 200_000,
            max_aliases: 100,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 10_000,
        },
        strict_booleans: true,
        with_snippet: false,
    };
    match serde_saphyr::from_str_with_options(text, options) {
        Ok(value) => Some(value),
        Err(error) => {
            faults.add("", MALFORMED, format!("no YAML: {error}"));
            None
        }
    }
}
