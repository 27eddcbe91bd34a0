//! Which features of the Gateway API Forebay claims: those that the program itself lists, so that
//! the GatewayClass and the tests say the same.
//!
//! Why others are not claimed is in docs/conformance/README.md.

use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

/// A channel of the Gateway API, as its folder of definitions is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Channel {
    Standard,
    Experimental,
}

impl Channel {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::Experimental => "experimental",
        }
    }
}

/// The features that a program claims, sorted.
pub(super) fn claimed(program: &Path) -> Result<Vec<String>> {
    let output = Command::new(program)
        .arg("features")
        .output()
        .with_context(|| format!("cannot start {}", program.display()))?;
    if !output.status.success() {
        bail!(
            "{} has no command `features`: it is too old",
            program.display()
        );
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let names: BTreeSet<String> = text.split_whitespace().map(str::to_owned).collect();
    if names.is_empty() {
        bail!("{} claims no feature", program.display());
    }
    Ok(names.into_iter().collect())
}

/// The channel with the definitions that these features need: the standard one, unless one of them
/// is experimental.
pub(super) fn channel(api: &Path, claimed: &[String]) -> Result<Channel> {
    let known = known(api)?;
    let mut channel = Channel::Standard;
    for name in claimed {
        match known.get(name) {
            None => bail!("{name} is claimed, and the Gateway API has no such feature"),
            Some(Channel::Standard) => {}
            Some(Channel::Experimental) => {
                eprintln!("{name} needs the experimental channel");
                channel = Channel::Experimental;
            }
        }
    }
    Ok(channel)
}

/// Every feature of the Gateway API's module, with its channel.
fn known(api: &Path) -> Result<BTreeMap<String, Channel>> {
    let folder = api.join("pkg/features");
    let entries =
        fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut source = String::new();
    for entry in entries {
        let path = entry?.path();
        let text = fs::read_to_string(&path);
        source += &text.with_context(|| format!("cannot read {}", path.display()))?;
    }
    let known = parse(&source);
    if known.is_empty() {
        bail!("{} lists no feature as it used to", folder.display());
    }
    Ok(known)
}

/// Reads the constants `SupportX FeatureName = "X"`, some of which leave the type out, and the values with `Name: SupportX` and
/// `Channel: FeatureChannelY`.
fn parse(source: &str) -> BTreeMap<String, Channel> {
    let mut names = BTreeMap::new();
    let mut known = BTreeMap::new();
    for line in source.lines().map(str::trim) {
        let words: Vec<&str> = line
            .trim_start_matches("const ")
            .split_whitespace()
            .collect();
        if let [constant, "FeatureName", "=", name] | [constant, "=", name] = words[..]
            && constant.starts_with("Support")
        {
            names.insert(constant, name.trim_matches('"'));
        }
    }
    let mut current = None;
    for line in source.lines().map(str::trim) {
        let Some((key, value)) = line.split_once(':') else {
            continue;
        };
        let value = value.trim().trim_end_matches(',');
        match key {
            "Name" => current = names.get(value),
            "Channel" => {
                let channel = match value {
                    "FeatureChannelExperimental" => Channel::Experimental,
                    _ => Channel::Standard,
                };
                if let Some(name) = current.take() {
                    known.insert((*name).to_owned(), channel);
                }
            }
            _ => {}
        }
    }
    known
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_read_with_their_channel() {
        let source = "
            const SupportOne FeatureName = \"One\"
            var x = Feature{
                Name:    SupportOne,
                Channel: FeatureChannelStandard,
            }
            // This option
            SupportTwo = \"Two\"
            TwoFeature = Feature{
                Name:    SupportTwo,
                Channel: FeatureChannelExperimental,
            }";
        let known = parse(source);
        assert_eq!(known["One"], Channel::Standard);
        assert_eq!(known["Two"], Channel::Experimental);
        assert_eq!(known.len(), 2);
    }
}
