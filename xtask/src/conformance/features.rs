//! Which features of the Gateway API Forebay claims: those that the program itself lists, so that
//! the GatewayClass and the tests say the same.
//!
//! docs/conformance/README.md gives a reason for each feature that is not claimed; a test holds the
//! page against the suite's own list.

use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

/// What is claimed of a program that does not list it by itself.
const CLAIMED: [&str; 45] = [
    "BackendTLSPolicy",
    "BackendTLSPolicySANValidation",
    "GRPCRoute",
    "GRPCRouteNamedRouteRule",
    "Gateway",
    "GatewayAddressEmpty",
    "GatewayBackendClientCertificate",
    "GatewayFrontendClientCertificateValidation",
    "GatewayFrontendClientCertificateValidationInsecureFallback",
    "GatewayHTTPListenerIsolation",
    "GatewayHTTPSListenerDetectMisdirectedRequests",
    "GatewayPort8080",
    "GatewayStaticAddresses",
    "HTTPRoute",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
    "HTTPRouteBackendProtocolH2C",
    "HTTPRouteBackendProtocolWebSocket",
    "HTTPRouteBackendRequestHeaderModification",
    "HTTPRouteBackendTimeout",
    "HTTPRouteCORS",
    "HTTPRouteDestinationPortMatching",
    "HTTPRouteHostRewrite",
    "HTTPRouteMethodMatching",
    "HTTPRouteNamedRouteRule",
    "HTTPRouteParentRefPort",
    "HTTPRoutePathRedirect",
    "HTTPRoutePathRewrite",
    "HTTPRoutePortRedirect",
    "HTTPRouteQueryParamMatching",
    "HTTPRouteRequestMirror",
    "HTTPRouteRequestMultipleMirrors",
    "HTTPRouteRequestPercentageMirror",
    "HTTPRouteRequestTimeout",
    "HTTPRouteResponseHeaderModification",
    "HTTPRouteRetry",
    "HTTPRouteRetryBackendTimeout",
    "HTTPRouteRetryConnectionError",
    "HTTPRouteSchemeRedirect",
    "ListenerSet",
    "ReferenceGrant",
    "TLSRoute",
    "TLSRouteModeMixed",
    "TLSRouteModeTerminate",
];

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
        eprintln!(
            "{} has no command `features`: this tool's own list is used",
            program.display()
        );
        return Ok(CLAIMED.map(str::to_owned).to_vec());
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
    use crate::conformance::{API, Module};
    use crate::shell;

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

    /// The names in the first column of the page's table.
    fn excused(page: &str) -> BTreeSet<String> {
        let section = page.split("## Not claimed").nth(1).expect("the section");
        let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
        rows.flat_map(|row| {
            let cell = row.split('|').next().unwrap_or_default();
            let names = cell.split(['`', ',', ' ']).filter(|name| !name.is_empty());
            names.map(str::to_owned).collect::<Vec<_>>()
        })
        .collect()
    }

    #[test]
    fn every_feature_is_claimed_or_has_a_reason_why_not() {
        let api = match Module::find(API) {
            Ok(api) => api,
            Err(error) => {
                return crate::test::skip("conformance features", &format!("{error:#}"));
            }
        };
        let known: BTreeSet<String> = known(&api.dir).expect("the features").into_keys().collect();
        let page = fs::read_to_string(shell::root().join("docs/conformance/README.md"));
        let excused = excused(&page.expect("docs/conformance/README.md"));
        let claimed: BTreeSet<String> = CLAIMED.map(str::to_owned).into();
        let both: Vec<_> = claimed.intersection(&excused).collect();
        assert!(both.is_empty(), "claimed and excused: {both:?}");
        let named: BTreeSet<String> = claimed.union(&excused).cloned().collect();
        assert_eq!(named, known);
    }
}
