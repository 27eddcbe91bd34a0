//! YAML to objects and back to text, for every test of this crate.
#![allow(dead_code, reason = "each test binary uses its part")]

use forebay_api::{Index, Object, Publication, Settings, describe};
use forebay_model::snapshot::Problem;
use serde_json::Value;

/// The documents of `text`.
pub(crate) fn values(text: &str) -> Vec<Value> {
    let options = serde_saphyr::options! { strict_booleans: true };
    serde_saphyr::from_multiple_with_options(text, options)
        .unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// The objects of `text`, all of which are good.
pub(crate) fn parse(text: &str) -> Vec<Object> {
    let values = values(text).into_iter();
    let parsed = values.map(|value| Object::parse(value).unwrap_or_else(|p| panic!("{p:#?}")));
    parsed.map(|parsed| parsed.object).collect()
}

/// An index as of files with the objects of `text`.
pub(crate) fn index(text: &str) -> Index {
    let mut index = Index::new(Settings::default());
    parse(text)
        .into_iter()
        .for_each(|object| index.apply(object));
    index
}

/// Lowers the objects of `text` and expects the snapshot to read `want`.
#[track_caller]
pub(crate) fn check(text: &str, want: &str) {
    compare(&describe::snapshot(&index(text).publish().snapshot), want);
}

/// Lowers the objects of `text` and expects their statuses to read `want`.
#[track_caller]
pub(crate) fn check_statuses(text: &str, want: &str) {
    compare(&describe::statuses(&index(text).publish().statuses), want);
}

/// Parses one object and expects its problems, warnings included, to read `want`.
#[track_caller]
pub(crate) fn check_problems(text: &str, want: &str) {
    let value = values(text).remove(0);
    let problems: Vec<Problem> = match Object::parse(value) {
        Ok(parsed) => parsed.warnings,
        Err(problems) => problems,
    };
    let lines: String = problems
        .iter()
        .map(|problem| format!("{problem}\n"))
        .collect();
    compare(&lines, want);
}

/// The snapshot and the statuses.
pub(crate) fn describe_all(published: &Publication) -> String {
    describe::snapshot(&published.snapshot) + &describe::statuses(&published.statuses)
}

#[track_caller]
pub(crate) fn compare(got: &str, want: &str) {
    let want = want.trim_start_matches('\n');
    assert!(got == want, "wanted:\n{want}\ngot:\n{got}");
}
