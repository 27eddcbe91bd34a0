//! References to objects: whether another namespace grants them, and what certificates they lead
//! to. Every look at an object that may change by itself is remembered, so that the index knows
//! whose changes concern routing and whose do not.

use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use forebay_model::ObjectName;
use forebay_model::snapshot::Certificate;

use crate::index::objects::{Objects, in_namespace};
use crate::kinds::GATEWAY_GROUP;
use crate::kinds::core::{Secret, Service};
use crate::kinds::gateway::{From, LabelSelector, SecretRef};
use crate::reason;
use crate::status::Fault;

/// The objects that routing was made from, found or not.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) services: HashSet<ObjectName>,
    pub(crate) secrets: HashSet<ObjectName>,
    pub(crate) config_maps: HashSet<ObjectName>,
    pub(crate) namespaces: HashSet<Arc<str>>,
}

/// The objects, through which every look is remembered.
pub(super) struct Look<'a> {
    pub(super) objects: &'a Objects,
    seen: RefCell<Seen>,
}

impl<'a> Look<'a> {
    pub(super) fn new(objects: &'a Objects) -> Self {
        Self {
            objects,
            seen: RefCell::default(),
        }
    }

    pub(super) fn into_seen(self) -> Seen {
        self.seen.into_inner()
    }

    pub(super) fn service(&self, name: &ObjectName) -> Option<&'a Service> {
        self.seen.borrow_mut().services.insert(name.clone());
        self.objects.services.get(name)
    }

    fn secret(&self, name: &ObjectName) -> Option<&'a Secret> {
        self.seen.borrow_mut().secrets.insert(name.clone());
        self.objects.secrets.get(name)
    }

    /// The text under `ca.crt`.
    fn bundle(&self, name: &ObjectName) -> Option<&'a String> {
        self.seen.borrow_mut().config_maps.insert(name.clone());
        self.objects.config_maps.get(name)?.data.bundle.as_ref()
    }

    /// Whether objects of namespace `from` are let in by an object of namespace `own`.
    pub(super) fn lets_in(
        &self,
        (allowed, selector): (From, Option<&LabelSelector>),
        own: &str,
        from: &Arc<str>,
    ) -> bool {
        match allowed {
            From::All => true,
            From::Same => *own == **from,
            From::None => false,
            From::Selector => selector.is_some_and(|selector| {
                self.seen.borrow_mut().namespaces.insert(Arc::clone(from));
                let object = self.objects.namespaces.get(from);
                let mut labels = object
                    .map(|n| n.metadata.labels.clone())
                    .unwrap_or_default();
                // The API server sets this label on every namespace; a file need not.
                let own = "kubernetes.io/metadata.name".to_owned();
                labels.insert(own, from.to_string());
                selector.matches(&labels)
            }),
        }
    }

    /// Whether a reference from an object of Gateway API (its kind and namespace) to another
    /// namespace is granted there.
    pub(super) fn permit(
        &self,
        (from_kind, from_namespace): (&str, &str),
        (to_group, to_kind): (&str, &str),
        to: &ObjectName,
    ) -> Result<(), Fault> {
        if *to.namespace == *from_namespace {
            return Ok(());
        }
        let grants = in_namespace(&self.objects.grants, &to.namespace);
        let mut grants = grants.map(|(_, grant)| &grant.spec);
        let granted = grants.any(|grant| {
            let from = grant.from.iter().any(|from| {
                (
                    from.group.as_str(),
                    from.kind.as_str(),
                    from.namespace.as_str(),
                ) == (GATEWAY_GROUP, from_kind, from_namespace)
            });
            from && grant.to.iter().any(|own| {
                (own.group.as_str(), own.kind.as_str()) == (to_group, to_kind)
                    && own.name.as_deref().is_none_or(|name| *name == *to.name)
            })
        });
        if granted {
            return Ok(());
        }
        let message = format!(
            "{to_kind} {to} is in another namespace; a ReferenceGrant there must allow {from_kind} of {from_namespace}"
        );
        Err(Fault::new(reason::REF_NOT_PERMITTED, message))
    }

    /// The certificate that an object (its kind and namespace) refers to. `wrong` is the reason to
    /// give if it is none.
    pub(super) fn certificate(
        &self,
        from: (&str, &str),
        to: &SecretRef,
        wrong: &'static str,
    ) -> Result<Arc<Certificate>, Fault> {
        let fault = |message| Fault::new(wrong, message);
        let kind = (to.group.as_str(), to.kind.as_str());
        if kind != ("", "Secret") {
            let kind = kind_of(&to.group, &to.kind);
            let message = format!("{kind} holds no certificate; use a Secret");
            return Err(fault(message));
        }
        let name = ObjectName::new(to.namespace.as_deref().unwrap_or(from.1), &to.name);
        self.permit(from, kind, &name)?;
        let missing = || fault(format!("Secret {name} does not exist"));
        let secret = self.secret(&name).ok_or_else(missing)?;
        if secret.kind != "kubernetes.io/tls" {
            let message = format!(
                "Secret {name} has type {:?}, not kubernetes.io/tls",
                secret.kind
            );
            return Err(fault(message));
        }
        let pem = |plain: &Option<String>, encoded: &Option<String>, key: &str, what: &str| {
            let plain = plain.as_ref().map(|text| text.clone().into_bytes());
            let decode = |text: &String| STANDARD.decode(text.trim().replace(['\n', ' '], ""));
            let bytes = plain.or_else(|| decode(encoded.as_ref()?).ok());
            let bytes = bytes.filter(|bytes| is_pem(bytes, what));
            let help = || {
                fault(format!(
                    "Secret {name} has no PEM {} in {key}",
                    what.to_lowercase()
                ))
            };
            bytes.map(Arc::from).ok_or_else(help)
        };
        let (plain, encoded) = (&secret.string_data, &secret.data);
        Ok(Arc::new(Certificate {
            chain_pem: pem(
                &plain.certificate,
                &encoded.certificate,
                "tls.crt",
                "CERTIFICATE",
            )?,
            key_pem: pem(&plain.key, &encoded.key, "tls.key", "PRIVATE KEY")?,
            secret: name,
        }))
    }

    /// The bundle of authorities in a ConfigMap. `wrong` is the reason to give if there is none.
    pub(super) fn authorities(
        &self,
        name: &ObjectName,
        wrong: &'static str,
    ) -> Result<&'a str, Fault> {
        let help = || {
            let message = format!("ConfigMap {name} does not exist or has no PEM in ca.crt");
            Fault::new(wrong, message)
        };
        let text = self.bundle(name).filter(|text| {
            let bytes = text.as_bytes();
            is_pem(bytes, "CERTIFICATE")
        });
        text.map(String::as_str).ok_or_else(help)
    }
}

/// A kind as it is written in messages: with its group unless that is the core.
pub(super) fn kind_of(group: &str, kind: &str) -> String {
    match group {
        "" => kind.to_owned(),
        group => format!("{group}/{kind}"),
    }
}

/// Whether `bytes` begin a PEM block whose label ends in `what` and whose body is base64. Whether
/// certificate and key belong together is seen by the TLS library that loads them.
fn is_pem(bytes: &[u8], what: &str) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return false;
    };
    let block = || {
        let (_, block) = text.split_once("-----BEGIN ")?;
        let (label, rest) = block.split_once("-----")?;
        let (body, _) = rest.split_once("-----END ")?;
        let body: String = body.split_whitespace().collect();
        Some(label.ends_with(what) && !body.is_empty() && STANDARD.decode(body).is_ok())
    };
    block().unwrap_or(false)
}
