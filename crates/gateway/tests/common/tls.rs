//! Certificates, clients of TLS, and servers that end it in front of scripted endpoints.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use forebay_model::ObjectName;
use forebay_model::route::Trust;
use forebay_model::snapshot::Certificate;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, HandshakeKind, RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Who signs.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub der: CertificateDer<'static>,
    pub pem: Arc<[u8]>,
}

/// A certificate, as a Secret holds it.
pub struct Issued {
    pub secret: Arc<Certificate>,
    pub der: CertificateDer<'static>,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let own = params.self_signed(&key).unwrap();
        Self {
            der: own.der().clone(),
            pem: pem("CERTIFICATE", own.der()),
            issuer: Issuer::new(params, key),
        }
    }

    /// A certificate for these names; those with a colon are URIs.
    pub fn issue(&self, names: &[&str]) -> Issued {
        let (uris, hosts): (Vec<&str>, Vec<&str>) = names.iter().partition(|n| n.contains(':'));
        let hosts: Vec<String> = hosts.into_iter().map(str::to_owned).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        let uris = uris
            .into_iter()
            .map(|uri| SanType::URI(uri.try_into().unwrap()));
        params.subject_alt_names.extend(uris);
        let key = KeyPair::generate().unwrap();
        let made = params.signed_by(&key, &self.issuer).unwrap();
        issued(names.first().unwrap_or(&"client"), &made, &key)
    }

    pub fn trust(&self) -> Trust {
        Trust::Bundle(Arc::clone(&self.pem))
    }

    fn roots(&self) -> RootCertStore {
        roots([&self.der])
    }
}

/// A certificate that signs itself.
pub fn issue(host: &str) -> Issued {
    let made = rcgen::generate_simple_self_signed([host.to_owned()]).unwrap();
    issued(host, &made.cert, &made.signing_key)
}

fn issued(name: &str, made: &rcgen::Certificate, key: &KeyPair) -> Issued {
    Issued {
        secret: Arc::new(Certificate {
            secret: ObjectName::new("default", name),
            chain_pem: pem("CERTIFICATE", made.der()),
            key_pem: pem("PRIVATE KEY", &key.serialize_der()),
        }),
        der: made.der().clone(),
    }
}

fn pem(label: &str, der: &[u8]) -> Arc<[u8]> {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let text = format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n");
    text.into_bytes().into()
}

impl Issued {
    fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.der.clone()]
    }

    fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(&self.secret.key_pem).unwrap()
    }
}

fn roots<'d>(of: impl IntoIterator<Item = &'d CertificateDer<'static>>) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    for der in of {
        roots.add(der.clone()).unwrap();
    }
    roots
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

// === clients ===

/// A client that trusts these.
pub fn client_config(trusted: &[&CertificateDer<'static>]) -> ClientConfig {
    client_with(trusted, None)
}

/// The same with a certificate of its own.
pub fn client_with(trusted: &[&CertificateDer<'static>], own: Option<&Issued>) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots(trusted.iter().copied()));
    match own {
        None => builder.with_no_client_auth(),
        Some(own) => builder
            .with_client_auth_cert(own.chain(), own.key())
            .unwrap(),
    }
}

/// A handshake for `host`.
pub async fn shake_with(
    config: &Arc<ClientConfig>,
    port: u16,
    host: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let name = ServerName::try_from(host.to_owned()).unwrap();
    TlsConnector::from(Arc::clone(config))
        .connect(name, stream)
        .await
}

/// The server's certificate.
pub fn served(stream: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    stream.get_ref().1.peer_certificates().unwrap()[0]
        .clone()
        .into_owned()
}

// === endpoints with TLS ===

/// Ends TLS before an endpoint that speaks without it.
pub struct Front {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Shaken>>>,
}

/// What a handshake with a [`Front`] came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Shaken {
    pub name: Option<String>,
    pub protocol: Option<String>,
    /// The client's certificate.
    pub client: Option<CertificateDer<'static>>,
    pub resumed: bool,
}

impl Front {
    /// Shows `own` and passes bytes on to `behind`.
    pub fn new(own: &Issued, behind: SocketAddr) -> Self {
        Self::of(own, None, &["h2", "http/1.1"], behind)
    }

    /// The same for clients with a certificate that `clients` signed, and for these protocols.
    pub fn of(
        own: &Issued,
        clients: Option<&Authority>,
        protocols: &[&str],
        behind: SocketAddr,
    ) -> Self {
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let roots = Arc::new(authority.roots());
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let mut config = builder.with_single_cert(own.chain(), own.key()).unwrap();
        config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
        let seen = Arc::default();
        Self {
            address: serve(Arc::new(config), behind, Arc::clone(&seen)),
            seen,
        }
    }

    /// Handshakes so far.
    pub fn seen(&self) -> Vec<Shaken> {
        self.seen.lock().unwrap().clone()
    }
}

fn serve(
    config: Arc<ServerConfig>,
    behind: SocketAddr,
    seen: Arc<Mutex<Vec<Shaken>>>,
) -> SocketAddr {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (config, seen) = (Arc::clone(&config), Arc::clone(&seen));
                tokio::spawn(async move {
                    let Ok(mut stream) = TlsAcceptor::from(config).accept(stream).await else {
                        return;
                    };
                    seen.lock().unwrap().push(shaken(stream.get_ref().1));
                    let mut behind = TcpStream::connect(behind).await.unwrap();
                    let _ended = tokio::io::copy_bidirectional(&mut stream, &mut behind).await;
                });
            }
        });
    });
    address
}

fn shaken(of: &rustls::ServerConnection) -> Shaken {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let client = of.peer_certificates().and_then(|chain| chain.first());
    Shaken {
        name: of.server_name().map(str::to_owned),
        protocol: of.alpn_protocol().map(text),
        client: client.map(|der| der.clone().into_owned()),
        resumed: of.handshake_kind() == Some(HandshakeKind::Resumed),
    }
}
