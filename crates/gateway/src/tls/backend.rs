//! TLS towards backends: what a policy asks for, as connections need it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use forebay_model::Snapshot;
use forebay_model::route::{BackendTls, ServicePort};
use rustc_hash::{FxHashMap, FxHashSet};
use rustls::client::{ClientConfig, Resumption};
use rustls::pki_types::ServerName;
use rustls::sign::SingleCertAndKey;
use rustls::version;

use super::{PROVIDER, certified, trust};

/// Sessions kept of one endpoint and protocol; each is used once, and a new connection brings more.
const SESSIONS_MAX: usize = 8;

/// What is spoken within TLS, which the handshake agrees on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Inside {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// Whatever the client speaks, of which nothing is said.
    Bytes,
}

/// How backends under one policy are met.
#[derive(Debug)]
pub struct Connector {
    /// Tells connectors apart: connections and sessions of one are not used by another.
    pub(crate) number: u64,
    /// The name that is asked for.
    pub(crate) name: ServerName<'static>,
    config: ClientConfig,
}

/// A policy that cannot be followed, and why: its requests are refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Unusable(pub(crate) Arc<str>);

/// What a policy comes to.
pub(crate) type Met = Result<Arc<Connector>, Unusable>;

impl Connector {
    /// For one policy.
    ///
    /// # Errors
    /// If it cannot be followed.
    pub(crate) fn new(tls: &BackendTls) -> Result<Self, String> {
        let name = ServerName::try_from(tls.hostname.to_string())
            .map_err(|_| format!("{:?} is not a server name", tls.hostname))?;
        let builder = ClientConfig::builder_with_provider(Arc::clone(&PROVIDER))
            .with_protocol_versions(&[&version::TLS13, &version::TLS12])
            .expect("ring supports TLS 1.2 and 1.3")
            .dangerous() // The verifier is rustls' own, with names of the policy.
            .with_custom_certificate_verifier(trust::of_backend(tls)?);
        let config = match &tls.client {
            None => builder.with_no_client_auth(),
            Some(certificate) => {
                let key = certified(certificate)
                    .map_err(|e| format!("client certificate {}: {e}", certificate.secret))?;
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key)))
            }
        };
        // Numbers are never given twice, so that what is kept under one cannot be mistaken.
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Ok(Self {
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            name,
            config,
        })
    }

    /// A configuration for the connections to one endpoint, with sessions of their own: those of
    /// another endpoint would be refused.
    pub(crate) fn config(&self, inside: Inside) -> Arc<ClientConfig> {
        let mut config = self.config.clone();
        config.resumption = Resumption::in_memory_sessions(SESSIONS_MAX);
        config.alpn_protocols = match inside {
            Inside::Http1 => vec![b"http/1.1".to_vec()],
            Inside::Http2 => vec![b"h2".to_vec()],
            Inside::Bytes => Vec::new(),
        };
        Arc::new(config)
    }
}

/// The connectors of all Services that have a policy.
#[derive(Clone, Debug, Default)]
pub(crate) struct Connectors(Arc<Made>);

#[derive(Debug, Default)]
struct Made {
    services: FxHashMap<ServicePort, Met>,
    /// Services under equal policies share a connector.
    policies: HashMap<Arc<BackendTls>, Met>,
    numbers: FxHashSet<u64>,
}

impl Connectors {
    /// Of a Service with a policy.
    pub(crate) fn of(&self, service: &ServicePort) -> Option<&Met> {
        self.0.services.get(service)
    }

    /// Whether connections of the connector with this number may be kept.
    pub(crate) fn uses(&self, number: u64) -> bool {
        self.0.numbers.contains(&number)
    }

    /// Those of the next snapshot. A policy that stays keeps its connector, and what is connected
    /// by it; one that cannot be followed is reported once.
    pub(crate) fn next(&self, snapshot: &Snapshot, report: &mut dyn FnMut(String)) -> Self {
        let mut made = Made::default();
        let services = snapshot.services.values();
        let with_policy = services.filter_map(|to| Some((&to.of, to.tls.as_ref()?)));
        for (service, tls) in with_policy {
            let met = made.policies.entry(Arc::clone(tls)).or_insert_with(|| {
                let kept = self.0.policies.get(tls).cloned();
                kept.unwrap_or_else(|| meet(service, tls, report))
            });
            made.numbers
                .extend(met.iter().map(|connector| connector.number));
            made.services.insert(service.clone(), met.clone());
        }
        Self(Arc::new(made))
    }
}

fn meet(service: &ServicePort, tls: &BackendTls, report: &mut dyn FnMut(String)) -> Met {
    Connector::new(tls).map(Arc::new).map_err(|what| {
        report(format!("TLS towards Service {service}: {what}"));
        Unusable(what.into())
    })
}
