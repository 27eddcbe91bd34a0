//! Inference pools.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::endpoint::Endpoint;
use crate::name::ObjectName;
use crate::picker::PickerConfig;
use crate::route::{BackendTls, Trust};

/// The endpoints that one `InferencePool` selects, and the policy that goes with it.
#[derive(Clone, PartialEq, Debug)]
pub struct Pool {
    /// The `InferencePool` object.
    pub name: ObjectName,
    /// Every endpoint that the selector matches, ready or not, ordered by address.
    pub endpoints: Vec<Endpoint>,
    /// How requests travel to the endpoints.
    pub protocol: AppProtocol,
    /// How an endpoint is chosen.
    pub picker: PickerConfig,
    /// `InferenceObjective` name to priority; higher is more critical, negative may be shed.
    pub objectives: BTreeMap<Arc<str>, i32>,
    /// Who chooses in place of the built-in picker, if the pool names somebody.
    pub external: Option<ExternalPicker>,
    /// Model rewrites in order of precedence: the first rule that matches wins.
    pub rewrites: Vec<RewriteRule>,
}

/// `InferencePool.spec.endpointPickerRef`, resolved.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExternalPicker {
    /// The Service.
    pub service: ObjectName,
    /// Its port.
    pub port: u16,
    /// Its ready addresses, ordered; empty if the picker is down or the reference does not hold.
    pub endpoints: Vec<SocketAddr>,
    /// What happens to requests when the picker does not answer.
    pub failure_mode: FailureMode,
    /// How the picker is spoken to.
    pub transport: PickerTransport,
}

/// How an external picker is spoken to; always HTTP/2.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub enum PickerTransport {
    /// Over TLS, whatever certificate the picker shows. Pickers sign their own, and what is at stake
    /// is which endpoint of the pool a request goes to.
    #[default]
    TlsUnverified,
    /// Over TLS, with a certificate that must hold.
    Tls(Arc<BackendTls>),
    /// Without TLS.
    Plaintext,
}

impl PickerTransport {
    /// The transport that the annotation `forebay.dev/picker-tls` of a pool names by `word`, towards
    /// the picker behind `service`; `None` for a word that means nothing.
    #[must_use]
    pub fn named(word: &str, service: &ObjectName) -> Option<Self> {
        Some(match word {
            "insecure-skip-verify" => Self::TlsUnverified,
            "plaintext" => Self::Plaintext,
            "verify" => Self::Tls(Arc::new(BackendTls {
                hostname: format!("{}.{}.svc", service.name, service.namespace).into(),
                trust: Trust::System,
                names: Vec::new(),
                client: None,
            })),
            _ => return None,
        })
    }
}

/// `endpointPickerRef.failureMode`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum FailureMode {
    /// They are refused.
    #[default]
    FailClose,
    /// The built-in picker chooses.
    FailOpen,
}

/// `InferencePool.spec.appProtocol`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum AppProtocol {
    /// HTTP/1.1.
    #[default]
    Http,
    /// HTTP/2 with prior knowledge, without TLS.
    H2c,
}

/// One rule of an `InferenceModelRewrite`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RewriteRule {
    /// Model names that the rule is for; empty means every model.
    pub models: Vec<Arc<str>>,
    /// Replacements with their share of traffic; never empty, total weight above zero.
    pub targets: Vec<RewriteTarget>,
}

/// One replacement of a rewrite rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RewriteTarget {
    /// Share among the rule's targets.
    pub weight: u32,
    /// The model name that the server sees.
    pub model: Arc<str>,
}

impl RewriteRule {
    /// Whether the rule is for `model`.
    #[must_use]
    pub fn matches(&self, model: &str) -> bool {
        self.models.is_empty() || self.models.iter().any(|m| &**m == model)
    }

    /// The target that owns position `at` (any number; taken modulo the total weight).
    #[must_use]
    pub fn target_at(&self, at: u64) -> &RewriteTarget {
        let total: u64 = self.targets.iter().map(|t| u64::from(t.weight)).sum();
        let mut left = at % total.max(1);
        for target in &self.targets {
            match left.checked_sub(u64::from(target.weight)) {
                Some(rest) => left = rest,
                None => return target,
            }
        }
        &self.targets[0]
    }
}

impl Pool {
    /// The endpoints that may get new requests.
    pub fn ready(&self) -> impl Iterator<Item = &Endpoint> {
        self.endpoints.iter().filter(|e| e.ready)
    }

    /// The rewrite that applies to `model`, if any.
    #[must_use]
    pub fn rewrite_for(&self, model: &str) -> Option<&RewriteRule> {
        self.rewrites.iter().find(|r| r.matches(model))
    }
}
