//! The picker's own certificate: made at the start, or from files that are followed.
//!
//! Proxies of the endpoint-picker protocol take whatever certificate a picker shows; one that nobody
//! has signed keeps the traffic from those who only listen.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use forebay_model::ObjectName;
use forebay_model::snapshot::Certificate;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ServerConfig, version};

use super::Security;
use crate::tls::{PROVIDER, certified};

/// How often files are looked at. A Secret in a volume changes within a minute anyway.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The configuration in force.
#[derive(Clone, Debug)]
pub(super) struct Current {
    config: Arc<ArcSwap<ServerConfig>>,
    followed: Option<PathBuf>,
}

impl Current {
    /// What `security` asks for; `None` for no TLS.
    pub(super) fn of(security: &Security) -> io::Result<Option<Self>> {
        let (key, followed) = match security {
            Security::Plaintext => return Ok(None),
            Security::SelfSigned => (self_signed()?, None),
            Security::Files { folder, reload } => {
                let pair = Pair::read(folder)?;
                (pair.key(folder)?, reload.then(|| folder.clone()))
            }
        };
        Ok(Some(Self {
            config: Arc::new(ArcSwap::from_pointee(config(key))),
            followed,
        }))
    }

    /// For the next connection.
    pub(super) fn config(&self) -> Arc<ServerConfig> {
        self.config.load_full()
    }

    /// Follows the files, for ever. What does not hold is reported, and the last one that did serves on.
    pub(super) async fn follow(self) {
        let Some(folder) = self.followed else {
            return;
        };
        let mut last = Pair::read(&folder).ok();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let next = Pair::read(&folder);
            if let Ok(next) = &next
                && last.as_ref() == Some(next)
            {
                continue;
            }
            let made = next.and_then(|pair| Ok((pair.key(&folder)?, pair)));
            match made {
                Ok((key, pair)) => {
                    self.config.store(Arc::new(config(key)));
                    last = Some(pair);
                    tracing::info!(folder = %folder.display(), "a new certificate is in force");
                }
                Err(error) => {
                    tracing::warn!(%error, "the certificate cannot be read; the last one serves on");
                }
            }
        }
    }
}

/// A certificate chain and its key, as they lie in files.
#[derive(PartialEq, Eq)]
struct Pair {
    chain: Vec<u8>,
    key: Vec<u8>,
}

impl Pair {
    fn read(folder: &Path) -> io::Result<Self> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read(&path).map_err(|error| {
                io::Error::new(error.kind(), format!("{}: {error}", path.display()))
            })
        };
        Ok(Self {
            chain: read("tls.crt")?,
            key: read("tls.key")?,
        })
    }

    fn key(&self, folder: &Path) -> io::Result<CertifiedKey> {
        let pair = Certificate {
            secret: ObjectName::new("", ""),
            chain_pem: self.chain.as_slice().into(),
            key_pem: self.key.as_slice().into(),
        };
        certified(&pair).map_err(|why| {
            let message = format!("{}: {why}", folder.display());
            io::Error::new(io::ErrorKind::InvalidData, message)
        })
    }
}

fn self_signed() -> io::Result<CertifiedKey> {
    let names = vec!["forebay-epp".to_owned(), "localhost".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).map_err(io::Error::other)?;
    let key = made.signing_key.serialize_der();
    let key = rustls::pki_types::PrivateKeyDer::try_from(key).map_err(io::Error::other)?;
    let signer = rustls::crypto::ring::sign::any_supported_type(&key).map_err(io::Error::other)?;
    Ok(CertifiedKey::new(vec![made.cert.der().clone()], signer))
}

fn config(key: CertifiedKey) -> ServerConfig {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(&PROVIDER))
        .with_protocol_versions(&[&version::TLS13, &version::TLS12])
        .expect("ring supports TLS 1.2 and 1.3")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}
