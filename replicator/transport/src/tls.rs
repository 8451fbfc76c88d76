//! The settings of TLS and QUIC, each with its reason. It makes configurations and no connections.

use crate::agent_identity::AgentIdentity;
use crate::certificate;
use crate::connection::CONNECTION_WINDOW_BYTES;
use crate::error::{Result, TransportError};
use crate::site::Site;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{IdleTimeout, TransportConfig, VarInt};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{CertificateError, DigitallySignedStruct, SignatureScheme};
use std::sync::Arc;
use std::time::Duration;

/// The protocol of machines that have joined.
pub(crate) const ALPN: &[u8] = b"redoubt/1";

/// The protocol of machines that join.
pub(crate) const ALPN_ENROL: &[u8] = b"redoubt-enrol/1";

/// How often an idle line is proven to live: often enough that NATs keep it, and that a dead one is
/// found in time.
const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// After this much silence the line is dead: five lost proofs in a row.
const IDLE_MILLISECONDS: u32 = 10_000;

/// Streams that a peer may have open: three of frames, and as many points being copied out as
/// anybody will.
const STREAMS: u32 = 16;

/// Bytes that a stranger may have on its way, whose memory nobody has earned yet: a request to join
/// is a few kilobytes.
pub(crate) const STRANGER_WINDOW_BYTES: u32 = 32 << 10;

/// First datagrams that wait to be looked at, each with keys of its own: a moment of a flood.
const FIRST_DATAGRAMS: usize = 1024;

/// What may wait behind a first datagram: the rest of a large hello.
const BEHIND_FIRST_BYTES: u64 = 8 << 10;

/// Packets that a fresh connection may send before it knows the line; the largest that any path
/// carries.
const FIRST_MTU: u16 = 1200;

pub(crate) fn server(site: &Site) -> Result<quinn::ServerConfig> {
    let setup = |error: &dyn std::fmt::Display| TransportError::setup("prepare TLS", error);
    let roots = Arc::new(roots(&site.authority().certificate)?);
    // A machine that joins has no certificate yet; the listener sees to it that only those that
    // join lack one.
    let clients = WebPkiClientVerifier::builder_with_provider(roots, provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| setup(&error))?;
    let chain = vec![
        certificate::der(&site.server().certificate)?,
        certificate::der(&site.authority().certificate)?,
    ];
    let mut tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .and_then(|builder| {
            builder
                .with_client_cert_verifier(clients)
                .with_single_cert(chain, private_key(&site.server().key)?)
        })
        .map_err(|error| setup(&error))?;
    tls.alpn_protocols = vec![ALPN.to_vec(), ALPN_ENROL.to_vec()];
    let quic = QuicServerConfig::try_from(tls).map_err(|error| setup(&error))?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(quic));
    let mut strangers = transport();
    strangers
        .receive_window(VarInt::from_u32(STRANGER_WINDOW_BYTES))
        .max_concurrent_uni_streams(VarInt::from_u32(0));
    config
        .transport_config(Arc::new(strangers))
        .max_incoming(FIRST_DATAGRAMS)
        .incoming_buffer_size(BEHIND_FIRST_BYTES)
        .incoming_buffer_size_total(BEHIND_FIRST_BYTES * FIRST_DATAGRAMS as u64);
    Ok(config)
}

/// Gives a machine that has a session all that its connection needs.
pub(crate) fn trust(connection: &quinn::Connection) {
    connection.set_receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES));
    connection.set_max_concurrent_uni_streams(VarInt::from_u32(STREAMS));
}

pub(crate) fn client(identity: &AgentIdentity) -> Result<quinn::ClientConfig> {
    let setup = |error: &dyn std::fmt::Display| TransportError::setup("prepare TLS", error);
    let chain = vec![certificate::der(&identity.certificate)?];
    let roots = roots(&identity.authority)?;
    let tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .and_then(|builder| {
            builder
                .with_root_certificates(roots)
                .with_client_auth_cert(chain, private_key(&identity.key)?)
        })
        .map_err(|error| setup(&error))?;
    finish_client(tls, ALPN)
}

pub(crate) fn enrolling_client(fingerprint: [u8; 32]) -> Result<quinn::ClientConfig> {
    enrolling_client_with(fingerprint, ALPN_ENROL)
}

pub(crate) fn enrolling_client_with(
    fingerprint: [u8; 32],
    protocol: &[u8],
) -> Result<quinn::ClientConfig> {
    let tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| TransportError::setup("prepare TLS", error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned { fingerprint }))
        .with_no_client_auth();
    finish_client(tls, protocol)
}

fn finish_client(mut tls: rustls::ClientConfig, alpn: &[u8]) -> Result<quinn::ClientConfig> {
    tls.alpn_protocols = vec![alpn.to_vec()];
    let quic = QuicClientConfig::try_from(tls)
        .map_err(|error| TransportError::setup("prepare TLS", error))?;
    let mut config = quinn::ClientConfig::new(Arc::new(quic));
    config.transport_config(Arc::new(transport()));
    Ok(config)
}

fn transport() -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_MILLISECONDS))))
        .max_concurrent_uni_streams(VarInt::from_u32(STREAMS))
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        // A stream may fill the whole connection: the frame that is missing must never wait for its
        // window.
        .stream_receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(u64::from(CONNECTION_WINDOW_BYTES))
        .datagram_receive_buffer_size(None)
        .initial_mtu(FIRST_MTU);
    config
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn roots(authority: &str) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots
        .add(certificate::der(authority)?)
        .map_err(|error| TransportError::setup("read the site's certificate", error))?;
    Ok(roots)
}

fn private_key(pem: &str) -> std::result::Result<PrivateKeyDer<'static>, rustls::Error> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| rustls::Error::General(format!("private key: {error}")))
}

/// Trusts the authority with this fingerprint, and through it the server; nobody else.
#[derive(Debug)]
struct Pinned {
    fingerprint: [u8; 32],
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        let foreign = || rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let authority = intermediates
            .iter()
            .find(|shown| certificate::fingerprint(shown) == self.fingerprint)
            .ok_or_else(foreign)?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|_| foreign())?
            .verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
