//! Rules of GatewayConfig.

use super::Report;
use crate::kinds::config::{GatewayConfig, Placement};

/// Pods of one Gateway.
const REPLICAS_MAX: u32 = 100;

pub(super) fn config(config: &GatewayConfig, report: &mut Report<'_>) {
    let spec = &config.spec;
    let dedicated = spec.placement == Placement::Dedicated;
    report.check(
        spec.replicas
            .is_none_or(|n| (1..=REPLICAS_MAX).contains(&n)),
        "spec.replicas",
        format!("1 to {REPLICAS_MAX} pods are allowed"),
    );
    if let Some(image) = &spec.image {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._:/@-".contains(c);
        report.check(
            image.starts_with(|c: char| c.is_ascii_alphanumeric()) && image.chars().all(allowed),
            "spec.image",
            "not the name of an image",
        );
        report.check(
            dedicated,
            "spec.image",
            "is for placement Dedicated: shared pods have that of their Deployment",
        );
    }
    if let Some(resources) = &spec.resources {
        report.check(
            resources.is_object(),
            "spec.resources",
            "write requests and limits",
        );
        report.check(
            dedicated,
            "spec.resources",
            "are for placement Dedicated: shared pods have those of their Deployment",
        );
    }
}
