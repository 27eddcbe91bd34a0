//! TLS towards pickers.
//!
//! By default whatever certificate a picker shows is taken: pickers sign their own at each start, and
//! the guides of the endpoint-picker protocol have gateways accept that. It keeps the traffic from
//! those who only listen. Pools whose annotation says so are verified, in the way of other backends.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use forebay_model::pool::PickerTransport;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};

use crate::tls::PROVIDER;
use crate::tls::backend::{Connector, Inside};

/// The configuration and the name to ask for, where `transport` has TLS.
pub(super) fn of(
    transport: &PickerTransport,
    address: SocketAddr,
) -> Result<Option<(Arc<ClientConfig>, ServerName<'static>)>, String> {
    match transport {
        PickerTransport::Plaintext => Ok(None),
        PickerTransport::TlsUnverified => {
            static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
            let config = CONFIG.get_or_init(|| Arc::new(unverified()));
            Ok(Some((Arc::clone(config), ServerName::from(address.ip()))))
        }
        PickerTransport::Tls(tls) => {
            let connector = Connector::new(tls).map_err(|why| format!("TLS: {why}"))?;
            let config = connector.config(Inside::Http2);
            Ok(Some((config, connector.name)))
        }
    }
}

fn unverified() -> ClientConfig {
    let anyone = Anyone(PROVIDER.signature_verification_algorithms);
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&PROVIDER))
        .with_safe_default_protocol_versions()
        .expect("ring has what the default versions need")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(anyone))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// Takes any certificate, of whoever holds its key.
#[derive(Debug)]
struct Anyone(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
