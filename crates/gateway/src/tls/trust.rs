//! Whom to trust: roots, and what a certificate must say, in both directions.

use std::fmt;
use std::sync::{Arc, OnceLock};

use forebay_model::route::{BackendTls, SubjectName, Trust};
use forebay_model::snapshot::ClientTrust;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{
    WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor, verify_server_name,
};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    SignatureScheme,
};

use super::PROVIDER;

/// The roots that `trust` names; at least one.
fn roots(trust: &Trust) -> Result<Arc<RootCertStore>, String> {
    match trust {
        Trust::System => system_roots(),
        Trust::Bundle(pem) => bundle(pem).map(Arc::new),
    }
}

fn bundle(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for (n, certificate) in CertificateDer::pem_slice_iter(pem).enumerate() {
        certificate
            .map_err(|e| format!("the bundle is not PEM: {e}"))
            .and_then(|der| roots.add(der).map_err(|e| e.to_string()))
            .map_err(|e| format!("certificate {} of the bundle: {e}", n + 1))?;
    }
    if roots.is_empty() {
        return Err("the bundle holds no certificate".to_owned());
    }
    Ok(roots)
}

/// The machine's roots, read once in the life of the process. They are the files of the system, not
/// a list within the program, so that whoever runs it says whom it trusts; images without a system
/// (distroless ones too) carry `/etc/ssl/certs/ca-certificates.crt`.
fn system_roots() -> Result<Arc<RootCertStore>, String> {
    static ROOTS: OnceLock<Result<Arc<RootCertStore>, String>> = OnceLock::new();
    ROOTS.get_or_init(read_system_roots).clone()
}

fn read_system_roots() -> Result<Arc<RootCertStore>, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // Bundles of the field hold some that are no longer well formed; nobody should miss those.
    roots.add_parsable_certificates(found.certs);
    if !roots.is_empty() {
        return Ok(Arc::new(roots));
    }
    let why = found.errors.first().map(|e| format!(" ({e})"));
    Err(format!(
        "the machine has no root certificates{}: install ca-certificates, or name a bundle in \
         SSL_CERT_FILE",
        why.unwrap_or_default()
    ))
}

// === clients ===

/// What checks the certificates of clients.
///
/// # Errors
/// If there are no roots to check against.
pub(super) fn of_clients(trust: &ClientTrust) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let roots = roots(&trust.trust)?;
    let strict = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&PROVIDER))
        .build()
        .map_err(|e| e.to_string())?;
    Ok(if trust.optional {
        Arc::new(Optional(strict))
    } else {
        strict
    })
}

/// `AllowInsecureFallback`: a certificate is asked for, and whoever has none, or one that does not
/// hold, is served all the same. That the client owns the key of what it shows is checked still.
#[derive(Debug)]
struct Optional(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Optional {
    fn client_auth_mandatory(&self) -> bool {
        false
    }
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }
    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

// === backends ===

/// What checks the certificates of backends.
///
/// # Errors
/// If there are no roots to check against.
pub(super) fn of_backend(tls: &BackendTls) -> Result<Arc<dyn ServerCertVerifier>, String> {
    let roots = roots(&tls.trust)?;
    let whole =
        WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&PROVIDER))
            .build()
            .map_err(|e| e.to_string())?;
    if tls.names.is_empty() {
        return Ok(whole);
    }
    Ok(Arc::new(OneOfNames {
        roots,
        names: tls.names.clone(),
        whole,
        algorithms: PROVIDER.signature_verification_algorithms,
    }))
}

/// The usual verification of the chain, and then one of these names in place of the server's.
struct OneOfNames {
    roots: Arc<RootCertStore>,
    names: Vec<SubjectName>,
    whole: Arc<WebPkiServerVerifier>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl fmt::Debug for OneOfNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OneOfNames")
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

impl ServerCertVerifier for OneOfNames {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let leaf = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(
            &leaf,
            &self.roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        if self
            .names
            .iter()
            .any(|name| carries(end_entity, &leaf, name))
        {
            return Ok(ServerCertVerified::assertion());
        }
        Err(CertificateError::NotValidForName.into())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.whole.verify_tls12_signature(message, cert, dss)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.whole.verify_tls13_signature(message, cert, dss)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.whole.supported_verify_schemes()
    }
}

/// Whether a certificate is for `name`. A wildcard in a policy stands for itself: it is the name
/// that the certificate must carry, letter for letter.
fn carries(der: &CertificateDer<'_>, leaf: &ParsedCertificate<'_>, name: &SubjectName) -> bool {
    let parsed = || webpki::EndEntityCert::try_from(der).ok();
    match name {
        SubjectName::Hostname(host) if host.starts_with("*.") => parsed().is_some_and(|leaf| {
            leaf.valid_dns_names()
                .any(|own| own.eq_ignore_ascii_case(host))
        }),
        SubjectName::Hostname(host) => {
            ServerName::try_from(&**host).is_ok_and(|host| verify_server_name(leaf, &host).is_ok())
        }
        SubjectName::Uri(uri) => {
            parsed().is_some_and(|leaf| leaf.valid_uri_names().any(|own| own == &**uri))
        }
    }
}
