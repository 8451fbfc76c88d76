//! Certificates: a site's authority, its server's and its machines'. Keys are made here and never
//! leave their machine.

use crate::error::{Result, TransportError};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use redoubt_log::MachineId;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::time::{Duration, SystemTime};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The name in every target's certificate: which target it is says the address, which site the
/// authority.
pub(crate) const SERVER_NAME: &str = "target.redoubt.internal";

/// How a machine's certificate names it.
const MACHINE_URI: &str = "redoubt:machine:";

const DAY: Duration = Duration::from_secs(86_400);

/// All certificates are good for ten years: nothing renews them yet, and protection that ends by
/// itself a year after the installation is worse than a long certificate; a machine is shut out by
/// name at the target.
const VALIDITY: Duration = Duration::from_secs(3653 * 86_400);

/// A certificate and its key, as PEM.
pub(crate) struct Pair {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

/// Makes the authority of a new site.
pub(crate) fn new_authority(until: SystemTime) -> Result<Pair> {
    let mut params = params("Redoubt site", until);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let key = KeyPair::generate().map_err(cannot("make the site's key"))?;
    let certificate = params.self_signed(&key).map_err(cannot("make the site's certificate"))?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// Makes a target's certificate.
pub(crate) fn new_server(authority: &Pair, until: SystemTime) -> Result<Pair> {
    let mut params = params("Redoubt master target", until);
    let name = SERVER_NAME.try_into().map_err(cannot("name the target"))?;
    params.subject_alt_names = vec![SanType::DnsName(name)];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate().map_err(cannot("make the target's key"))?;
    let certificate = params
        .signed_by(&key, &issuer(authority)?)
        .map_err(cannot("make the target's certificate"))?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// A machine's new key, as PEM.
pub(crate) fn new_machine_key() -> Result<String> {
    Ok(KeyPair::generate().map_err(cannot("make the machine's key"))?.serialize_pem())
}

/// The request to be sent to the site for this key. It holds no wish: the site decides about names.
pub(crate) fn request(key: &str) -> Result<String> {
    let key = KeyPair::from_pem(key).map_err(cannot("read the machine's key"))?;
    let request = CertificateParams::default().serialize_request(&key);
    request.and_then(|request| request.pem()).map_err(cannot("make a certificate request"))
}

/// The hash of the public key that a request is for, once its signature is checked.
pub(crate) fn requested_key(request: &str) -> Result<[u8; 32]> {
    let parsed = CertificateSigningRequestParams::from_pem(request)
        .map_err(cannot("read the certificate request"))?;
    Ok(*blake3::hash(parsed.public_key.der_bytes()).as_bytes())
}

/// Makes a machine's certificate for the key of its request; all else that the request says is
/// ignored.
pub(crate) fn sign_machine(
    authority: &Pair,
    request: &str,
    machine: MachineId,
    until: SystemTime,
) -> Result<String> {
    let parsed = CertificateSigningRequestParams::from_pem(request)
        .map_err(cannot("read the certificate request"))?;
    let mut params = params(&machine.to_string(), until);
    let uri = format!("{MACHINE_URI}{machine}");
    params.subject_alt_names =
        vec![SanType::URI(uri.try_into().map_err(cannot("name the machine"))?)];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = params
        .signed_by(&parsed.public_key, &issuer(authority)?)
        .map_err(cannot("make the machine's certificate"))?;
    Ok(certificate.pem())
}

/// How long a certificate that is made now is good for.
pub(crate) fn end_of_validity() -> SystemTime {
    SystemTime::now() + VALIDITY
}

/// The machine that a certificate, already checked against the authority, is for.
pub(crate) fn machine_of(certificate: &[u8]) -> Result<MachineId> {
    let unknown = || TransportError::Protocol("its certificate names no machine".to_owned());
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| unknown())?;
    let names = parsed.subject_alternative_name().map_err(|_| unknown())?.ok_or_else(unknown)?;
    let mut uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix(MACHINE_URI),
        _ => None,
    });
    uris.next().and_then(|id| id.parse().ok()).ok_or_else(unknown)
}

/// A certificate's bytes out of its PEM.
pub(crate) fn der(pem: &str) -> Result<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(cannot("read a certificate"))
}

/// What a token pins: the hash of the authority's certificate.
pub(crate) fn fingerprint(certificate: &[u8]) -> [u8; 32] {
    *blake3::hash(certificate).as_bytes()
}

/// Proves every byte of a certificate's text by the signature under the authority's key; the
/// authority signs itself. The error says what is wrong.
pub(crate) fn prove(certificate: &str, authority: &str) -> std::result::Result<(), String> {
    let read = |text: &str| {
        let der = CertificateDer::from_pem_slice(text.as_bytes())
            .map_err(|error| format!("no certificate in PEM: {error}"))?;
        if is_pem_of(text, "CERTIFICATE", &der) { Ok(der) } else { Err(FOREIGN_TEXT.to_owned()) }
    };
    let parse = |der| {
        X509Certificate::from_der(der)
            .map_err(|error| format!("the certificate cannot be read: {error}"))
    };
    let (der, authority) = (read(certificate)?, read(authority)?);
    let (_, certificate) = parse(&der)?;
    let (_, authority) = parse(&authority)?;
    let tail = signed_tail(&certificate.signature_value.data);
    let whole = wrapped(&[certificate.tbs_certificate.as_ref(), &tail].concat());
    if *whole != *der {
        return Err(FOREIGN_TEXT.to_owned());
    }
    certificate
        .verify_signature(Some(authority.public_key()))
        .map_err(|_| "the certificate's signature is wrong".to_owned())
}

/// What stands behind the signed part of a certificate of ours in DER: ecdsa-with-SHA256, and the
/// signature. Parsers are lenient here, where nothing is signed.
fn signed_tail(signature: &[u8]) -> Vec<u8> {
    const ALGORITHM: [u8; 12] = [0x30, 10, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
    let length = u8::try_from(signature.len() + 1).unwrap_or(u8::MAX);
    [&ALGORITHM[..], &[3, length, 0], signature].concat()
}

/// A DER sequence of at least 256 bytes, as every certificate is.
fn wrapped(content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap_or(u16::MAX).to_be_bytes();
    [&[0x30, 0x82], &length[..], content].concat()
}

/// Proves every byte of a key's text: it is the key of the certificate, which holds its public
/// half. The error says what is wrong.
pub(crate) fn prove_key(key: &str, certificate: &str) -> std::result::Result<(), String> {
    let pair =
        KeyPair::from_pem(key).map_err(|error| format!("the key cannot be read: {error}"))?;
    if !is_pem_of(key, "PRIVATE KEY", pair.serialized_der()) {
        return Err(FOREIGN_TEXT.to_owned());
    }
    let der = der(certificate).map_err(|error| error.to_string())?;
    let is_its = X509Certificate::from_der(&der).is_ok_and(|(_, certificate)| {
        *certificate.public_key().subject_public_key.data == *pair.der_bytes()
    });
    if is_its { Ok(()) } else { Err("the key is not the one of the certificate".to_owned()) }
}

const FOREIGN_TEXT: &str = "the text holds bytes that nobody wrote";

/// Whether the text is the PEM of these bytes and nothing else, but for its line ends.
fn is_pem_of(text: &str, label: &str, der: &[u8]) -> bool {
    let words = format!("-----BEGIN{label}-----{}-----END{label}-----", STANDARD.encode(der));
    let is_space = |c: &char| c.is_ascii_whitespace();
    text.chars().filter(|c| !is_space(c)).eq(words.chars().filter(|c| !is_space(c)))
}

fn params(name: &str, until: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, name);
    // The clocks of two sites may differ.
    params.not_before = (SystemTime::now() - DAY).into();
    params.not_after = until.into();
    params.use_authority_key_identifier_extension = true;
    params
}

fn issuer(authority: &Pair) -> Result<Issuer<'static, KeyPair>> {
    let key = KeyPair::from_pem(&authority.key).map_err(cannot("read the site's key"))?;
    Issuer::from_ca_cert_pem(&authority.certificate, key)
        .map_err(cannot("read the site's certificate"))
}

fn cannot<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> TransportError {
    move |error| TransportError::setup(what, error)
}
