//! docs/conformance/README.md, held against what the program claims.

use std::collections::BTreeSet;
use std::path::Path;

use forebay_api::features::UNSUPPORTED;

/// The names in the first column of the table of features that are not claimed.
fn excused(page: &str) -> BTreeSet<&str> {
    let section = page.split("## Not claimed").nth(1).expect("the section");
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let cells = rows.filter_map(|row| row.split('|').nth(1));
    let names = cells.flat_map(|cell| cell.split(['`', ',', ' ']));
    names.filter(|name| !name.is_empty()).collect()
}

#[test]
fn every_feature_that_is_not_claimed_has_a_reason_on_the_page() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/conformance/README.md");
    let page = std::fs::read_to_string(page).expect("docs/conformance/README.md");
    let unsupported: BTreeSet<&str> = UNSUPPORTED.iter().map(|(name, _)| *name).collect();
    assert_eq!(excused(&page), unsupported);
}
