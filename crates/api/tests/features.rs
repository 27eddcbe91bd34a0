//! The claimed features against those that the conformance suite knows.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use forebay_api::features::{SUPPORTED, UNSUPPORTED, VERSION};

#[test]
fn both_lists_are_sorted_and_no_feature_is_in_two_places() {
    let unsupported: Vec<_> = UNSUPPORTED.iter().map(|(name, _)| *name).collect();
    assert!(SUPPORTED.is_sorted() && unsupported.is_sorted());
    let all: BTreeSet<_> = SUPPORTED.iter().chain(&unsupported).collect();
    assert_eq!(all.len(), SUPPORTED.len() + UNSUPPORTED.len());
    // By the CRD of GatewayClass.
    assert!(SUPPORTED.len() <= 64);
}

#[test]
fn what_is_claimed_and_what_is_not_are_together_all_that_the_suite_knows() {
    let Some(folder) = features_folder() else {
        let name = "what_is_claimed_and_what_is_not_are_together_all_that_the_suite_knows";
        eprintln!("{name}: skipped: no Go module cache with sigs.k8s.io/gateway-api@{VERSION}");
        return;
    };
    let mut known = BTreeSet::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        known.extend(text.lines().filter_map(feature).map(str::to_owned));
    }
    let ours = SUPPORTED
        .iter()
        .chain(UNSUPPORTED.iter().map(|(name, _)| name));
    let ours: BTreeSet<_> = ours.map(|name| (*name).to_owned()).collect();
    assert_eq!(ours, known);
}

/// Where Go keeps the sources of the suite's feature list, if it has them.
fn features_folder() -> Option<PathBuf> {
    let go = Command::new("go")
        .args(["env", "GOMODCACHE"])
        .output()
        .ok()?;
    let cache = String::from_utf8(go.stdout).ok()?;
    let module = format!("sigs.k8s.io/gateway-api@{VERSION}/pkg/features");
    let folder = PathBuf::from(cache.trim()).join(module);
    folder.is_dir().then_some(folder)
}

/// The name in a line such as `SupportGateway FeatureName = "Gateway"`.
fn feature(line: &str) -> Option<&str> {
    let (name, value) = line.trim().split_once(" = ")?;
    if !name.starts_with("Support") {
        return None;
    }
    value.strip_prefix('"')?.strip_suffix('"')
}
