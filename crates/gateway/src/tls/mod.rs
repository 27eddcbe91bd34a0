//! TLS towards clients: which listener a connection is for, and what ends it there.
//!
//! The name that a client asks for picks the listener ([`hello`] reads it before anything is agreed
//! on); each listener has a configuration of its own, so that a session of one cannot be resumed at
//! another that asks more of its clients. Roots of trust are in [`trust`], the way to backends in
//! [`backend`].

pub(crate) mod backend;
pub(crate) mod hello;
pub(crate) mod trust;

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use forebay_model::route::HostPattern;
use forebay_model::snapshot::{Certificate, Listener, Port, Snapshot};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, DnsName, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, version};

/// Cryptography for both sides.
pub(crate) static PROVIDER: LazyLock<Arc<CryptoProvider>> =
    LazyLock::new(|| Arc::new(rustls::crypto::ring::default_provider()));

/// The listeners of each port with TLS, in the order of [`Port::listeners`].
pub(crate) type TlsPorts = HashMap<u16, Vec<Ends>>;

/// Where the TLS of a listener's connections ends.
#[derive(Clone, Debug)]
pub(crate) enum Ends {
    /// Here.
    Here(Arc<ServerConfig>),
    /// At the backend.
    Behind,
    /// Nowhere: its certificates or its clients' roots do not hold. Its connections are refused.
    Broken,
}

/// Whether a listener or route for `hosts` is for this server name. A client that names nobody is
/// for those that are for every host.
pub(crate) fn covers(hosts: Option<&HostPattern>, name: Option<&str>) -> bool {
    match (hosts, name) {
        (None, _) => true,
        (Some(pattern), Some(name)) => pattern.covers(name),
        (Some(_), None) => false,
    }
}

/// Which listener is for this server name; the most specific ones come first.
pub(crate) fn listener_for(listeners: &[Listener], name: Option<&str>) -> Option<usize> {
    let mut listeners = listeners.iter();
    listeners.position(|listener| covers(listener.hostname.as_ref(), name))
}

/// Where TLS ends for every listener. One that is made of the same as in the `last` snapshot stays,
/// and with it the sessions that clients may resume. What does not hold is left out and reported;
/// handshakes that would need it fail, the others go on.
pub(crate) fn ports(
    snapshot: &Snapshot,
    last: (&Snapshot, &TlsPorts),
    report: &mut dyn FnMut(String),
) -> TlsPorts {
    let (last, ends) = last;
    let tls = snapshot.ports.iter().filter(|(_, port)| port.tls);
    tls.map(|(number, port)| {
        let before = last.ports.get(number).zip(ends.get(number));
        (*number, port_ends(port, before, report))
    })
    .collect()
}

fn port_ends(
    port: &Port,
    before: Option<(&Port, &Vec<Ends>)>,
    report: &mut dyn FnMut(String),
) -> Vec<Ends> {
    let kept = |at: usize, listener: &Listener| {
        let (port, ends) = before?;
        let same = |other: &&Listener| made_alike(listener, other);
        let at = match port.listeners.get(at).filter(same) {
            Some(_) => at,
            None => port.listeners.iter().position(|other| same(&other))?,
        };
        ends.get(at).cloned()
    };
    let listeners = port.listeners.iter().enumerate();
    listeners
        .map(|(at, listener)| kept(at, listener).unwrap_or_else(|| Ends::of(listener, report)))
        .collect()
}

/// Whether both are the same listener and lead to the same configuration.
fn made_alike(a: &Listener, b: &Listener) -> bool {
    a.gateway == b.gateway
        && a.name == b.name
        && a.refused == b.refused
        && a.tls_routes.is_some() == b.tls_routes.is_some()
        && a.certificates == b.certificates
        && a.clients == b.clients
}

impl Ends {
    fn of(listener: &Listener, report: &mut dyn FnMut(String)) -> Self {
        if listener.refused {
            // Whoever configured it has been told why.
            return Self::Broken;
        }
        if listener.certificates.is_empty() && listener.tls_routes.is_some() {
            return Self::Behind;
        }
        let mut report = |what: String| {
            let (name, gateway) = (&listener.name, &listener.gateway);
            report(format!("{what}; listener {name} of Gateway {gateway}"));
        };
        let mut keys = Vec::new();
        for certificate in &listener.certificates {
            match certified(certificate) {
                Ok(key) => keys.push(Arc::new(key)),
                Err(what) => report(format!("Secret {}: {what}", certificate.secret)),
            }
        }
        if keys.is_empty() {
            return Self::Broken;
        }
        let verifier = listener.clients.as_deref().map(trust::of_clients);
        let builder = ServerConfig::builder_with_provider(Arc::clone(&PROVIDER))
            .with_protocol_versions(&[&version::TLS13, &version::TLS12])
            .expect("ring supports TLS 1.2 and 1.3");
        let builder = match verifier {
            None => builder.with_no_client_auth(),
            Some(Ok(verifier)) => builder.with_client_cert_verifier(verifier),
            Some(Err(what)) => {
                report(format!("roots of clients' certificates: {what}"));
                return Self::Broken;
            }
        };
        let mut config = builder.with_cert_resolver(Arc::new(Keys(keys)));
        if listener.tls_routes.is_none() {
            config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        }
        // Sessions travel with clients, sealed: a table of them would be full after some hundred.
        if let Ok(ticketer) = rustls::crypto::ring::Ticketer::new() {
            config.ticketer = ticketer;
        }
        Self::Here(Arc::new(config))
    }
}

/// The chain and key of a Secret, once they are known to belong together.
pub(crate) fn certified(certificate: &Certificate) -> Result<CertifiedKey, String> {
    let chain = CertificateDer::pem_slice_iter(&certificate.chain_pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| format!("tls.crt is not PEM: {e}"))?;
    if chain.is_empty() {
        return Err("tls.crt holds no certificate".to_owned());
    }
    let key = PrivateKeyDer::from_pem_slice(&certificate.key_pem)
        .map_err(|e| format!("tls.key is not a PEM private key: {e}"))?;
    let signer = rustls::crypto::ring::sign::any_supported_type(&key)
        .map_err(|e| format!("tls.key cannot be used: {e}"))?;
    let certified = CertifiedKey::new(chain, signer);
    certified
        .keys_match()
        .map_err(|e| format!("tls.key does not belong to tls.crt: {e}"))?;
    Ok(certified)
}

/// The certificates of one listener; the first one is for whoever fits none.
#[derive(Debug)]
struct Keys(Vec<Arc<CertifiedKey>>);

impl ResolvesServerCert for Keys {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if let [only] = &*self.0 {
            return Some(Arc::clone(only));
        }
        let name = hello
            .server_name()
            .and_then(|name| DnsName::try_from(name).ok());
        let name = name.map(ServerName::from);
        // An ECDSA and an RSA certificate may be for one name: take what the client understands.
        let rank = |key: &&Arc<CertifiedKey>| {
            let named = name.as_ref().is_some_and(|name| is_for(key, name));
            let understood = key.key.choose_scheme(hello.signature_schemes()).is_some();
            (!named, !understood)
        };
        self.0.iter().min_by_key(rank).cloned()
    }
}

/// Whether a certificate names `name`.
fn is_for(key: &CertifiedKey, name: &ServerName<'_>) -> bool {
    let leaf = key.cert.first();
    let leaf = leaf.and_then(|leaf| ParsedCertificate::try_from(leaf).ok());
    leaf.is_some_and(|leaf| rustls::client::verify_server_name(&leaf, name).is_ok())
}
