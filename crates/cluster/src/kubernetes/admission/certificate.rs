//! Certificates of a webhook: made here, or read from a folder; and what a TLS server needs of them.
//!
//! The authority of a certificate that is made here signs that one only: its key is gone when it has.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::watch;

/// How long a certificate holds.
pub(super) const LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);
/// How old one is when another is made: a third of its life is left for what stands in the way of that.
pub(super) const RENEW_AFTER: Duration = Duration::from_secs(60 * 24 * 3600);
/// Clocks of others may be behind by so much.
const BACKDATED: Duration = Duration::from_secs(3600);
/// How often a folder is looked at. A Secret in a volume changes within a minute anyway.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Bytes of a file of a certificate.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A certificate chain with its key, as PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Pair {
    /// The chain, the server's own first.
    pub chain_pem: String,
    /// Its key.
    pub key_pem: String,
}

impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pair").finish_non_exhaustive()
    }
}

/// What a TLS server shows.
#[derive(Clone)]
pub struct ServerTls(Arc<ServerConfig>);

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").finish_non_exhaustive()
    }
}

impl ServerTls {
    /// A server that shows `pair`, and asks for no certificate of its clients: the API server has none
    /// unless it is configured, and what it may ask here changes nothing that others must not see.
    ///
    /// # Errors
    /// What is wrong with the certificate or the key.
    pub fn of(pair: &Pair) -> Result<ServerTls, String> {
        let chain = CertificateDer::pem_slice_iter(pair.chain_pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| format!("the certificate cannot be read: {error}"))?;
        let key = PrivateKeyDer::from_pem_slice(pair.key_pem.as_bytes())
            .map_err(|error| format!("the key cannot be read: {error}"))?;
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(|error| format!("certificate and key do not go together: {error}"))?;
        Ok(ServerTls(Arc::new(config)))
    }

    pub(super) fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.0)
    }
}

/// A certificate and its authority's.
pub(super) struct Issued {
    pub(super) pair: Pair,
    pub(super) authority_pem: String,
}

/// Makes a certificate for a server of these names.
pub(super) fn issue(names: &[String], now: SystemTime) -> Result<Issued, rcgen::Error> {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let from = rcgen::date_time_ymd(1970, 1, 1) + since.saturating_sub(BACKDATED);
    let until = rcgen::date_time_ymd(1970, 1, 1) + since + LIFETIME;
    let mut params = CertificateParams::new(Vec::new())?;
    let title = format!("forebay webhook authority {}", since.as_secs());
    params.distinguished_name.push(DnType::CommonName, title);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    (params.not_before, params.not_after) = (from, until);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;

    let mut params = CertificateParams::new(names.to_vec())?;
    let title = names.first().map_or("webhook", String::as_str);
    // The field is of 64 characters, and nobody reads it: names are looked for in the list of them.
    let title = &title[..title.floor_char_boundary(64)];
    params.distinguished_name.push(DnType::CommonName, title);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    (params.not_before, params.not_after) = (from, until);
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &authority)?;
    Ok(Issued {
        pair: Pair {
            chain_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        },
        authority_pem: authority.pem(),
    })
}

/// Follows `tls.crt` and `tls.key` of a folder, for ever. What does not hold is told, and the last that did
/// serves on.
pub async fn folder(folder: PathBuf, out: watch::Sender<Option<ServerTls>>) {
    let mut last: Result<Option<Pair>, String> = Ok(None);
    loop {
        let read = read(&folder);
        if read.as_ref().map(Some) != last.as_ref().map(Option::as_ref) {
            match read.as_ref().map_err(Clone::clone).and_then(ServerTls::of) {
                Ok(tls) => {
                    out.send_replace(Some(tls));
                    tracing::info!("the certificate of {} is in force", folder.display());
                }
                Err(why) => tracing::warn!("{}: {why}", folder.display()),
            }
            last = read.map(Some);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn read(folder: &std::path::Path) -> Result<Pair, String> {
    let text = |name: &str| {
        let path = folder.join(name);
        let told = |error: std::io::Error| format!("{name}: {error}");
        let bytes = std::fs::metadata(&path).map_err(told)?.len();
        if bytes > FILE_BYTES_MAX {
            return Err(format!("{name} is longer than {FILE_BYTES_MAX} bytes"));
        }
        std::fs::read_to_string(path).map_err(told)
    };
    Ok(Pair {
        chain_pem: text("tls.crt")?,
        key_pem: text("tls.key")?,
    })
}

pub(super) fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// The text that stands as base64 in a Secret.
pub(super) fn from_base64(text: &str) -> Option<String> {
    String::from_utf8(STANDARD.decode(text).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_made_that_a_server_can_show() {
        let names = ["hook.ns.svc".to_owned()];
        let issued = issue(&names, SystemTime::now()).unwrap();
        ServerTls::of(&issued.pair).unwrap();
        let other = issue(&names, SystemTime::now()).unwrap();
        assert_ne!(issued.authority_pem, other.authority_pem);
        let mixed = Pair {
            chain_pem: issued.pair.chain_pem,
            key_pem: other.pair.key_pem,
        };
        let why = ServerTls::of(&mixed).unwrap_err();
        assert!(why.contains("do not go together"), "{why}");
    }

    #[test]
    fn a_folder_without_its_files_says_which_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tls.crt"), "x").unwrap();
        assert!(read(folder.path()).unwrap_err().starts_with("tls.key: "));
    }
}
