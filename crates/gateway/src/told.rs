//! The fields of a request that a pool's policy wants to be told, for [`forebay_decide::Ask`].
//!
//! Which these are is the configuration's business; most policies want none, which costs nothing.

use forebay_model::PickerConfig;
use http::{HeaderMap, HeaderValue};
use smallvec::SmallVec;

/// Names with the values that the request has. A field that is there several times counts with its
/// first value, and one that is no text does not count.
#[derive(Debug)]
pub(crate) struct ToldFields<'p>(SmallVec<[(&'p str, HeaderValue); 2]>);

impl<'p> ToldFields<'p> {
    /// What of `headers` the policy wants to be told.
    pub(crate) fn of(picker: &'p PickerConfig, headers: &HeaderMap) -> Self {
        let names = forebay_decide::reads_fields(picker).into_iter();
        Self(
            names
                .filter_map(|name| Some((name, headers.get(name)?.clone())))
                .collect(),
        )
    }

    /// The same as texts.
    pub(crate) fn as_texts(&self) -> SmallVec<[(&'p str, &str); 2]> {
        let fields = self.0.iter();
        fields
            .filter_map(|(name, value)| Some((*name, value.to_str().ok()?)))
            .collect()
    }
}
