//! Whom to trust: bundles of authorities that several references make up together, for the
//! certificates of clients (`spec.tls.frontend` of a Gateway) and of backends (BackendTLSPolicy).

use std::sync::Arc;

use forebay_model::ObjectName;
use forebay_model::route::Trust;
use forebay_model::snapshot::ClientTrust;

use super::references::{Look, kind_of};
use crate::kinds::gateway::{ClientMode, ClientValidation, FrontendTls};
use crate::reason;
use crate::status::Fault;

/// What references to authorities come to: the bundle of those that hold, if one does, and the
/// first fault.
pub(super) struct Authorities {
    pub(super) bundle: Option<Arc<[u8]>>,
    pub(super) fault: Option<Fault>,
}

impl Authorities {
    /// Joins what was found.
    pub(super) fn join<'a>(found: impl Iterator<Item = Result<&'a str, Fault>>) -> Self {
        let mut text = String::new();
        let mut fault = None;
        for found in found {
            match found {
                Ok(bundle) => {
                    text.push_str(bundle);
                    if !bundle.ends_with('\n') {
                        text.push('\n');
                    }
                }
                Err(other) => fault = fault.or(Some(other)),
            }
        }
        let bundle = (!text.is_empty()).then(|| Arc::from(text.into_bytes()));
        Self { bundle, fault }
    }
}

/// Client certificates of one port: whom to trust, or why nobody can be.
#[derive(Clone, Debug, Default)]
pub(super) struct Clients {
    /// `None`: clients are not asked for a certificate, or nobody could be trusted.
    pub(super) trust: Option<Arc<ClientTrust>>,
    /// A reference that does not hold.
    pub(super) unresolved: Option<Fault>,
    /// No reference holds: connections must fail.
    pub(super) refused: Option<Fault>,
}

/// What the HTTPS listeners of `port` ask of clients.
pub(super) fn clients(
    look: &Look<'_>,
    namespace: &str,
    frontend: Option<&FrontendTls>,
    port: u16,
) -> Clients {
    let Some(validation) = frontend.and_then(|frontend| validation_of(frontend, port)) else {
        return Clients::default();
    };
    let found = validation.ca_certificate_refs.iter().map(|to| {
        let kind = (to.group.as_str(), to.kind.as_str());
        if kind != ("", "ConfigMap") {
            let kind = kind_of(&to.group, &to.kind);
            let message = format!("{kind} holds no authorities; use a ConfigMap");
            return Err(Fault::new(reason::INVALID_CA_CERTIFICATE_KIND, message));
        }
        let name = ObjectName::new(to.namespace.as_deref().unwrap_or(namespace), &to.name);
        look.permit(("Gateway", namespace), kind, &name)?;
        look.authorities(&name, reason::INVALID_CA_CERTIFICATE_REF)
    });
    let found = Authorities::join(found);
    let trust = found.bundle.map(|bundle| {
        Arc::new(ClientTrust {
            trust: Trust::Bundle(bundle),
            optional: validation.mode == ClientMode::AllowInsecureFallback,
        })
    });
    let refused = trust.is_none().then(|| {
        let message = "no certificate of an authority for clients can be had";
        Fault::new(reason::NO_VALID_CA_CERTIFICATE, message)
    });
    Clients {
        trust,
        unresolved: found.fault,
        refused,
    }
}

/// A configuration for the port replaces the default, also by asking for nothing.
fn validation_of(frontend: &FrontendTls, port: u16) -> Option<&ClientValidation> {
    let own = frontend.per_port.iter().find(|own| own.port == port);
    let config = own.map_or(&frontend.every_port, |own| &own.tls);
    config.validation.as_ref()
}

/// Whether clients without a valid certificate are let in somewhere.
pub(super) fn is_insecure(frontend: &FrontendTls) -> bool {
    let configs = frontend.per_port.iter().map(|own| &own.tls);
    let mut configs = configs.chain([&frontend.every_port]);
    configs.any(|config| {
        let validation = config.validation.as_ref();
        validation.is_some_and(|v| v.mode == ClientMode::AllowInsecureFallback)
    })
}
