//! The rules that each kind's CRD states in OpenAPI and CEL, checked all at once with the path of
//! each field. The API server has checked them already; files have not been checked by anybody.
//!
//! Past this point values are lowered without a second look. References are not followed here, and
//! what the CRDs let through is let through: what of it cannot be served is said on the status of
//! the object (see `lower::prepared`).

mod config;
mod gateway;
mod httproute;
mod inference;
mod policy;
mod routes;
pub(crate) mod syntax;

use std::fmt::Display;

use forebay_model::snapshot::Problem;

use crate::object::{Inner, Object};
use crate::reason;

/// Everything that is wrong with `object`, of any severity.
pub(crate) fn object(object: &Object, label: &str) -> Vec<Problem> {
    let mut report = Report::new(label);
    metadata(object, &mut report);
    match &object.0 {
        Inner::GatewayClass(class) => gateway::class(class, &mut report),
        Inner::Gateway(gateway) => gateway::gateway(gateway, &mut report),
        Inner::ListenerSet(set) => gateway::listener_set(set, &mut report),
        Inner::HttpRoute(route) => httproute::route(route, &mut report),
        Inner::GrpcRoute(route) => routes::grpc(route, &mut report),
        Inner::TlsRoute(route) => routes::tls(route, &mut report),
        Inner::BackendTlsPolicy(policy) => policy::policy(policy, &mut report),
        Inner::ReferenceGrant(grant) => gateway::grant(grant, &mut report),
        Inner::GatewayConfig(config) => config::config(config, &mut report),
        Inner::InferencePool(pool) => inference::pool(pool, &mut report),
        Inner::InferenceObjective(objective) | Inner::LegacyInferenceObjective(objective) => {
            inference::pool_ref(&objective.spec.pool_ref, &mut report);
        }
        Inner::InferenceModelRewrite(rewrite) | Inner::LegacyInferenceModelRewrite(rewrite) => {
            inference::rewrite(rewrite, &mut report);
        }
        // What routing cannot use of these is found where it is used.
        Inner::Service(_)
        | Inner::EndpointSlice(_)
        | Inner::Secret(_)
        | Inner::ConfigMap(_)
        | Inner::Pod(_)
        | Inner::Namespace(_) => {}
    }
    report.problems
}

fn metadata(object: &Object, report: &mut Report<'_>) {
    let meta = object.meta();
    report.check(
        syntax::is_dns_subdomain(&meta.name),
        "metadata.name",
        "give a name of lower-case letters, digits, - and .; at most 253 characters",
    );
    report.check(
        meta.namespace.as_deref().is_none_or(syntax::is_dns_label),
        "metadata.namespace",
        "a namespace is lower-case letters, digits and -; at most 63 characters",
    );
}

/// The problems of one object.
pub(crate) struct Report<'a> {
    label: &'a str,
    problems: Vec<Problem>,
}

impl<'a> Report<'a> {
    fn new(label: &'a str) -> Self {
        Self {
            label,
            problems: Vec::new(),
        }
    }

    fn add(&mut self, reason: &'static str, field: impl Display, message: impl Into<String>) {
        self.problems.push(Problem {
            object: self.label.to_owned(),
            field: field.to_string(),
            reason,
            message: message.into(),
        });
    }

    /// Adds `InvalidValue` unless `holds`.
    fn check(&mut self, holds: bool, field: impl Display, message: impl Into<String>) {
        if !holds {
            self.add(reason::INVALID_VALUE, field, message);
        }
    }

    /// Adds `UnsupportedField` if the field is written.
    fn unsupported<T>(&mut self, value: Option<&T>, field: impl Display) {
        if value.is_some() {
            let message = "not supported; it has no effect";
            self.add(reason::UNSUPPORTED_FIELD, field, message);
        }
    }

    /// Checks the length of a list.
    fn len(&mut self, len: usize, range: std::ops::RangeInclusive<usize>, field: impl Display) {
        let message = format!(
            "has {len} items, {} to {} are allowed",
            range.start(),
            range.end()
        );
        self.check(range.contains(&len), field, message);
    }

    /// Checks that no key comes twice.
    fn unique<K: PartialEq + Display>(
        &mut self,
        keys: impl IntoIterator<Item = K>,
        field: impl Fn(usize) -> String,
    ) {
        let keys: Vec<K> = keys.into_iter().collect();
        for (at, key) in keys.iter().enumerate() {
            if keys[..at].contains(key) {
                self.check(false, field(at), format!("{key} is there twice"));
            }
        }
    }
}
