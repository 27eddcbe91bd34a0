//! Dependencies that a crate names and never uses: they cost build time and invite questions.
//!
//! A text search, not a compiler: a dependency counts as used when its name stands in one of the
//! crate's Rust files. That finds forgotten lines, and never complains wrongly unless a crate is
//! needed for its features alone (`KEPT_FOR_FEATURES`).

use crate::shell;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::fs;
use std::path::Path;

/// Named to switch a feature on in a dependency of a dependency, never imported.
const KEPT_FOR_FEATURES: [&str; 1] = ["k8s-openapi"];

/// Looks at every crate of the workspace; fails with the list of `crate: dependency` pairs.
pub(crate) fn check() -> Result<String> {
    let text =
        shell::capture(shell::cargo().args(["metadata", "--no-deps", "--format-version=1"]))?;
    let metadata: Value = serde_json::from_str(&text).context("cargo metadata is not JSON")?;
    let mut unused = Vec::new();
    for package in array(&metadata["packages"]) {
        let name = package["name"].as_str().unwrap_or_default();
        let manifest = Path::new(package["manifest_path"].as_str().unwrap_or_default());
        let folder = manifest.parent().context("a manifest without a folder")?;
        let mut source = String::new();
        read_rust_files(folder, &mut source)?;
        for dependency in array(&package["dependencies"]) {
            let known_as = dependency["rename"]
                .as_str()
                .or_else(|| dependency["name"].as_str());
            let known_as = known_as.unwrap_or_default();
            if !KEPT_FOR_FEATURES.contains(&known_as) && !names(&source, known_as) {
                unused.push(format!("{name}: {known_as}"));
            }
        }
    }
    if !unused.is_empty() {
        bail!("{} never used: {}", unused.len(), unused.join(", "));
    }
    Ok(String::new())
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn read_rust_files(folder: &Path, into: &mut String) -> Result<()> {
    for entry in
        fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?
    {
        let path = entry?.path();
        if path.is_dir() {
            read_rust_files(&path, into)?;
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            into.push_str(&fs::read_to_string(&path)?);
            into.push('\n');
        }
    }
    Ok(())
}

/// True when the dependency's identifier stands in the source as a whole word outside comments.
fn names(source: &str, dependency: &str) -> bool {
    let identifier = dependency.replace('-', "_");
    source
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .any(|line| {
            line.split(|c: char| !c.is_alphanumeric() && c != '_')
                .any(|word| word == identifier)
        })
}

#[cfg(test)]
mod tests {
    use super::names;

    #[test]
    fn a_dependency_is_used_when_its_name_is_a_word_of_the_code() {
        assert!(names("use serde_json::Value;", "serde-json"));
        assert!(names("fn f() { memchr::memchr(b'a', x) }", "memchr"));
        assert!(!names("use serde_json::Value;", "serde"));
        assert!(!names("// serde would do\nuse std::fmt;", "serde"));
    }
}
