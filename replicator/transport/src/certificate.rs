//! Certificates: a site's authority, its server's and its machines'. Keys are made here and never
//! leave their machine.

use crate::error::{Result, TransportError};
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
