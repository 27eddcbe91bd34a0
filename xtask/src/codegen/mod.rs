//! `cargo xtask codegen`: files that follow from something else, written anew, or with `--check`
//! compared with what is committed.
//!
//! `deploy/crds` holds the definitions of kinds that a cluster may lack, from the schemas in this
//! module; each chart has a copy of its own. `deploy/install.yaml` and `deploy/node.yaml` are what the charts make
//! of their own defaults. `crates/wire` and `crates/nri` have the Rust of their protobuf.

mod config;
mod crd;
mod inference;
mod install;
mod profile;
mod protobuf;
mod schema;

use crate::shell;
use anyhow::{Context, Result, bail};
use crd::Definition;
use std::fs;
use std::path::{Path, PathBuf};

pub(crate) use install::gateway;

/// What to do.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    cargo xtask codegen           write the files\n  \
    cargo xtask codegen --check   fail if a committed file is not what would be written")]
pub(crate) struct Args {
    /// Write nothing; fail if there is something to write
    #[arg(long)]
    check: bool,
}

/// Folders that hold every definition, and nothing else.
const DEFINITION_DIRS: [&str; 3] = [
    "deploy/crds",
    "deploy/chart/forebay/crds",
    "deploy/chart/forebay-node/crds",
];

/// A file as it should be.
struct Output {
    /// Below the root of the repository.
    path: PathBuf,
    text: String,
}

/// Writes or compares.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut outputs = cheap_files()?;
    outputs.extend(install::manifests()?);
    if args.check {
        return check_against(shell::root(), &outputs);
    }
    for output in &outputs {
        let path = shell::root().join(&output.path);
        let folder = path.parent().context("a file without a folder")?;
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        fs::write(&path, &output.text)
            .with_context(|| format!("cannot write {}", path.display()))?;
        println!("{}", output.path.display());
    }
    for stale in stale(shell::root(), &outputs)? {
        fs::remove_file(shell::root().join(&stale))?;
        println!("removed {}", stale.display());
    }
    Ok(())
}

/// The step of `cargo xtask lint`. What needs Helm is left out where there is no Go to build it.
pub(crate) fn check() -> Result<String> {
    let mut outputs = cheap_files()?;
    let mut remark = String::new();
    if shell::which("go").is_some() {
        outputs.extend(install::manifests()?);
        install::lint()?;
    } else {
        remark
            .push_str("deploy/install.yaml and node.yaml not compared: go is not installed, so there is no Helm");
    }
    check_against(shell::root(), &outputs)?;
    Ok(remark)
}

fn check_against(root: &Path, outputs: &[Output]) -> Result<()> {
    let differs = |output: &&Output| {
        fs::read_to_string(root.join(&output.path)).ok() != Some(output.text.clone())
    };
    let mut wrong: Vec<PathBuf> = outputs
        .iter()
        .filter(differs)
        .map(|output| output.path.clone())
        .collect();
    wrong.extend(stale(root, outputs)?);
    if !wrong.is_empty() {
        let names: Vec<String> = wrong
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        bail!(
            "not as generated: {}: run `cargo xtask codegen` and commit",
            names.join(", ")
        );
    }
    Ok(())
}

/// Definitions that are no longer generated.
fn stale(root: &Path, outputs: &[Output]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for dir in DEFINITION_DIRS {
        let entries = match fs::read_dir(root.join(dir)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| format!("cannot list {dir}")),
        };
        for entry in entries {
            let path = Path::new(dir).join(entry?.file_name());
            if !outputs.iter().any(|output| output.path == path) {
                found.push(path);
            }
        }
    }
    Ok(found)
}

/// Those that need no other program.
fn cheap_files() -> Result<Vec<Output>> {
    let mut all = definition_files()?;
    all.extend(protobuf::outputs()?);
    Ok(all)
}

fn definition_files() -> Result<Vec<Output>> {
    let mut all = Vec::new();
    for definition in definitions() {
        let text = text_of(&definition)?;
        let chart = format!("deploy/chart/{}/crds", definition.chart);
        for dir in [DEFINITION_DIRS[0], &chart] {
            all.push(Output {
                path: Path::new(dir).join(definition.file_name()),
                text: text.clone(),
            });
        }
    }
    Ok(all)
}

fn definitions() -> Vec<Definition> {
    let mut all = inference::definitions();
    all.push(config::definition());
    all.push(profile::definition());
    all
}

fn text_of(definition: &Definition) -> Result<String> {
    let yaml = serde_saphyr::to_string(&definition.to_value())
        .with_context(|| format!("cannot write {}", definition.name()))?;
    Ok(format!(
        "# Generated by `cargo xtask codegen` from xtask/src/codegen.\n# {}\n{}\n",
        definition.remark,
        yaml.trim_end()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn what_is_committed_is_what_is_generated() {
        let outputs = cheap_files().expect("the files");
        check_against(shell::root(), &outputs).expect("no difference");
    }

    #[test]
    fn a_definition_survives_being_written_as_yaml() {
        for definition in definitions() {
            let text = text_of(&definition).expect("YAML");
            let read: Value = serde_saphyr::from_str(&text).expect("YAML again");
            assert_eq!(read, definition.to_value(), "{}", definition.name());
        }
    }

    #[test]
    fn every_field_that_a_person_writes_is_described() {
        fn undescribed(schema: &Value, at: &str, found: &mut Vec<String>) {
            for (name, field) in schema["properties"].as_object().into_iter().flatten() {
                let at = format!("{at}.{name}");
                if field["description"].is_null() && at != ".metadata" {
                    found.push(at.clone());
                }
                undescribed(field, &at, found);
                undescribed(&field["items"], &at, found);
            }
        }
        for definition in definitions() {
            let object = definition.to_value();
            let schema = &object["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
            let mut found = Vec::new();
            undescribed(schema, "", &mut found);
            assert!(found.is_empty(), "{}: {found:?}", definition.name());
        }
    }

    #[test]
    fn a_file_that_differs_and_one_that_is_left_over_are_both_named() {
        let root = tempfile::tempdir().expect("a folder");
        let dir = root.path().join(DEFINITION_DIRS[0]);
        fs::create_dir_all(&dir).expect("the folder of definitions");
        fs::write(dir.join("old.yaml"), "old").expect("a file left over");
        fs::write(dir.join("new.yaml"), "edited").expect("a file that was edited");
        let outputs = [Output {
            path: Path::new(DEFINITION_DIRS[0]).join("new.yaml"),
            text: "new".to_owned(),
        }];
        let error = check_against(root.path(), &outputs).expect_err("two differences");
        let text = error.to_string();
        assert!(
            text.contains("crds/new.yaml") && text.contains("crds/old.yaml"),
            "{text}"
        );
    }
}
