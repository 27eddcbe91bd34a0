//! TLS towards clients: certificates from the snapshot, chosen by SNI.

use std::collections::HashMap;
use std::sync::Arc;

use forebay_model::route::HostPattern;
use forebay_model::snapshot::{Certificate, Port, Snapshot};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, version};

/// Server configurations by port.
pub(crate) type TlsPorts = HashMap<u16, Arc<ServerConfig>>;

/// Builds the server configurations; one whose certificates are those of the `last` snapshot stays,
/// and with it the sessions that clients may resume. A certificate that does not hold is left out
/// and reported; handshakes that would need it fail, the others go on.
pub(crate) fn ports(
    snapshot: &Snapshot,
    last: (&Snapshot, &TlsPorts),
    report: &mut dyn FnMut(String),
) -> TlsPorts {
    let (last, configs) = last;
    let kept = |number: &u16, port: &Port| {
        let before = last.ports.get(number)?;
        let config = configs.get(number)?;
        certificates(before)
            .eq(certificates(port))
            .then(|| Arc::clone(config))
    };
    let config = |(number, port): (&u16, &Port)| {
        let config = kept(number, port).unwrap_or_else(|| Arc::new(server_config(port, report)));
        (*number, config)
    };
    let tls = snapshot.ports.iter().filter(|(_, port)| port.tls);
    tls.map(config).collect()
}

/// What a port's configuration is made of.
fn certificates(port: &Port) -> impl Iterator<Item = (Option<&HostPattern>, &[Arc<Certificate>])> {
    let listeners = port.listeners.iter();
    listeners.map(|l| (l.hostname.as_ref(), l.certificates.as_slice()))
}

fn server_config(port: &Port, report: &mut dyn FnMut(String)) -> ServerConfig {
    let mut by_host = BySni { hosts: Vec::new() };
    for listener in &port.listeners {
        for certificate in &listener.certificates {
            match certified(certificate) {
                Ok(key) => by_host
                    .hosts
                    .push((listener.hostname.clone(), Arc::new(key))),
                Err(what) => report(format!(
                    "Secret {}: {what}; listener {} of Gateway {} cannot use it",
                    certificate.secret, listener.name, listener.gateway
                )),
            }
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13, &version::TLS12])
        .expect("ring supports TLS 1.2 and 1.3")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(by_host));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config
}

fn certified(certificate: &Certificate) -> Result<CertifiedKey, String> {
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

/// Certificates with the host patterns of their listeners, most specific first.
#[derive(Debug)]
struct BySni {
    hosts: Vec<(Option<HostPattern>, Arc<CertifiedKey>)>,
}

impl ResolvesServerCert for BySni {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().map(str::to_ascii_lowercase);
        self.hosts
            .iter()
            .find(|(pattern, _)| match (pattern, &name) {
                (None, _) => true,
                (Some(pattern), Some(name)) => pattern.covers(name),
                (Some(_), None) => false,
            })
            .map(|(_, key)| Arc::clone(key))
    }
}
