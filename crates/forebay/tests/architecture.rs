//! ARCHITECTURE.md's table of what may use what, held against the manifests, and the records of decisions.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Crates that must not reach an asynchronous runtime, HTTP or Kubernetes, by whatever way.
const PURE: [&str; 7] = [
    "model", "dialect", "decide", "api", "tokenize", "fabric", "k8s-cel",
];
const FORBIDDEN: [&str; 4] = ["tokio", "hyper", "kube", "k8s-openapi"];

type Edges = BTreeMap<String, BTreeSet<String>>;

fn root() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The table under "What may use what".
fn allowed() -> Edges {
    let page = std::fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let table = page
        .split("\n## What may use what\n")
        .nth(1)
        .expect("the section with the table");
    let rows = table
        .lines()
        .skip_while(|line| !line.starts_with("|---"))
        .skip(1);
    let rows = rows.take_while(|line| line.starts_with('|'));
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let uses = cells[1].split(',').map(|name| name.trim().to_owned());
        (
            cells[0].to_owned(),
            uses.filter(|name| !name.is_empty()).collect(),
        )
    })
    .collect()
}

fn metadata(arguments: &[&str]) -> Value {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--offline"])
        .args(arguments)
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON")
}

/// `forebay-decide` to `decide`, as the table has it.
fn short(name: &str) -> String {
    name.strip_prefix("forebay-").unwrap_or(name).to_owned()
}

/// What each crate of the workspace uses of it; only for tests does not count.
fn actual() -> Edges {
    let metadata = metadata(&["--no-deps"]);
    let packages = metadata["packages"].as_array().expect("packages");
    let ours: BTreeSet<&str> = packages.iter().filter_map(|p| p["name"].as_str()).collect();
    let uses = |package: &Value| {
        let all = package["dependencies"]
            .as_array()
            .expect("dependencies")
            .iter();
        let real = all
            .filter(|d| d["kind"] != "dev")
            .filter_map(|d| d["name"].as_str());
        real.filter(|name| ours.contains(name))
            .map(short)
            .collect::<BTreeSet<String>>()
    };
    packages
        .iter()
        .map(|p| (short(p["name"].as_str().expect("a name")), uses(p)))
        .collect()
}

#[test]
fn crates_use_what_the_table_allows_and_the_table_is_no_longer_than_that() {
    let (allowed, actual) = (allowed(), actual());
    let mut wrong = Vec::new();
    for (name, uses) in &actual {
        let Some(may) = allowed.get(name) else {
            wrong.push(format!("`{name}` has no row"));
            continue;
        };
        wrong.extend(
            uses.difference(may)
                .map(|u| format!("`{name}` uses `{u}`, its row does not")),
        );
        wrong.extend(
            may.difference(uses)
                .map(|u| format!("`{name}` does not use `{u}`, its row does")),
        );
    }
    wrong.extend(
        allowed
            .keys()
            .filter(|n| !actual.contains_key(*n))
            .map(|n| format!("no crate `{n}`")),
    );
    assert!(
        wrong.is_empty(),
        "the code and the table under \"What may use what\" in ARCHITECTURE.md differ:\n  {}\n\
         If the new arrow is right, change the crate's row there (\"| crate | may use |\") in the \
         same commit and say why; if not, take the dependency out of the crate's Cargo.toml",
        wrong.join("\n  ")
    );
}

#[test]
fn pure_crates_reach_no_runtime_and_no_kubernetes() {
    let metadata = metadata(&[]);
    let nodes = metadata["resolve"]["nodes"]
        .as_array()
        .expect("the resolved graph");
    let names: BTreeMap<&str, &str> = metadata["packages"]
        .as_array()
        .expect("packages")
        .iter()
        .filter_map(|p| Some((p["id"].as_str()?, p["name"].as_str()?)))
        .collect();
    let real = |dep: &Value| {
        let kinds = dep["dep_kinds"].as_array().expect("kinds of dependency");
        kinds.iter().any(|kind| kind["kind"].is_null())
    };
    let uses: BTreeMap<&str, Vec<&str>> = nodes
        .iter()
        .filter_map(|node| {
            let deps = node["deps"].as_array()?.iter().filter(|dep| real(dep));
            Some((
                node["id"].as_str()?,
                deps.filter_map(|dep| dep["pkg"].as_str()).collect(),
            ))
        })
        .collect();
    for pure in PURE {
        let name = format!("forebay-{pure}");
        let (start, _) = names
            .iter()
            .find(|(_, own)| **own == name)
            .expect("a crate of ours");
        let mut reached = BTreeSet::from([*start]);
        let mut next = vec![*start];
        while let Some(id) = next.pop() {
            next.extend(uses[id].iter().filter(|dep| reached.insert(**dep)));
        }
        let reached: BTreeSet<&str> = reached.iter().map(|id| names[id]).collect();
        for forbidden in FORBIDDEN {
            assert!(
                !reached.contains(forbidden),
                "{name} reaches {forbidden}, but ARCHITECTURE.md says \"`model`, `dialect`, `decide`, \
                 `api`, `tokenize` and `fabric` are pure\"; `cargo tree -p {name} -i {forbidden}` shows the way"
            );
        }
    }
}

/// The files below `folder` that are read by people or compilers.
fn texts(folder: &Path, out: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            texts(&path, out);
        } else if name.ends_with(".rs") || name.ends_with(".md") {
            out.push(path);
        }
    }
}

#[test]
fn every_decision_has_a_number_of_its_own_and_whoever_names_one_names_one_that_is_there() {
    let folder = root().join("docs/decisions");
    let mut names = BTreeSet::new();
    let mut numbers = BTreeSet::new();
    for entry in std::fs::read_dir(&folder).expect("the decisions") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy();
        let number = name[..3].to_owned();
        let text = std::fs::read_to_string(&path).expect("UTF-8");
        assert!(text.starts_with(&format!("# {number}. ")), "{name}");
        assert!(numbers.insert(number), "{name}: its number is taken");
        names.insert(name.into_owned());
    }
    let mut files = Vec::new();
    for part in ["docs", "crates", "xtask"] {
        texts(&root().join(part), &mut files);
    }
    // Put together here, so that this file names none.
    let mark = ["decisions", ""].join("/");
    for file in files {
        let text = std::fs::read_to_string(&file).expect("UTF-8");
        for (at, _) in text.match_indices(&mark) {
            let rest = &text[at + mark.len()..];
            let Some(end) = rest.find(".md") else {
                continue;
            };
            let named = format!("{}.md", &rest[..end]);
            let is_name = named.starts_with(|c: char| c.is_ascii_digit()) && !named.contains('\n');
            assert!(
                !is_name || names.contains(&named),
                "{} names {named}",
                file.display()
            );
        }
    }
}
