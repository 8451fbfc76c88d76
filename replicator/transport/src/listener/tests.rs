//! Certificates that are over, foreign, missing or shut out: each has an error of its own at both
//! ends.

use super::*;
use crate::agent_identity::AgentIdentity;
use crate::connection::{connect, dial};
use std::path::Path;
use std::time::{Duration, SystemTime};

const HOUR: Duration = Duration::from_secs(3600);

fn identity(site: &Site, machine: MachineId, until: SystemTime) -> AgentIdentity {
    let key = certificate::new_machine_key().unwrap();
    let request = certificate::request(&key).unwrap();
    AgentIdentity {
        machine,
        name: "db".parse().unwrap(),
        address: String::new(),
        frame_key: redoubt_log::frame::FrameKey::new([1; 32]),
        certificate: certificate::sign_machine(site.authority(), &request, machine, until).unwrap(),
        key,
        authority: site.authority().certificate.clone(),
    }
}

/// A site that listens; both ends' errors of one attempt to connect.
async fn attempt(
    site: Site,
    identity: impl FnOnce(&Site) -> AgentIdentity,
) -> (TransportError, TransportError) {
    let site = Arc::new(site);
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), site.clone()).unwrap();
    let address = listener.local_address().unwrap().to_string();
    let identity = identity(&site);
    let server = async { listener.accept().await.unwrap().finish().await.err().unwrap() };
    let client = async { connect(&identity, &address).await.err().unwrap() };
    tokio::join!(client, server)
}

fn site(directory: &Path) -> Site {
    Site::open_or_create(directory).unwrap()
}

#[tokio::test]
async fn expired_machine() {
    let directory = tempfile::tempdir().unwrap();
    let (client, server) = attempt(site(directory.path()), |site| {
        identity(site, MachineId::random(), SystemTime::now() - HOUR)
    })
    .await;
    for error in [client, server] {
        assert!(matches!(error, TransportError::Expired { whose: "machine's" }), "{error}");
    }
}

#[tokio::test]
async fn expired_target() {
    let directory = tempfile::tempdir().unwrap();
    let over = SystemTime::now() - HOUR;
    let site = Site::open_or_create_until(directory.path(), over).unwrap();
    let (client, server) =
        attempt(site, |site| identity(site, MachineId::random(), SystemTime::now() + HOUR)).await;
    for error in [client, server] {
        assert!(matches!(error, TransportError::Expired { whose: "target's" }), "{error}");
    }
}

#[tokio::test]
async fn target_of_another_site() {
    let (directory, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let other = site(other.path());
    let (client, _) = attempt(site(directory.path()), |_| {
        identity(&other, MachineId::random(), SystemTime::now() + HOUR)
    })
    .await;
    assert!(matches!(client, TransportError::ForeignSite { .. }), "{client}");
}

#[tokio::test]
async fn machine_of_another_site() {
    let (directory, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let other = site(other.path());
    let (client, server) = attempt(site(directory.path()), |site| AgentIdentity {
        // It trusts this site, but was signed by another.
        authority: site.authority().certificate.clone(),
        ..identity(&other, MachineId::random(), SystemTime::now() + HOUR)
    })
    .await;
    for error in [client, server] {
        assert!(matches!(error, TransportError::ForeignMachine), "{error}");
    }
}

#[tokio::test]
async fn machine_that_was_shut_out() {
    let directory = tempfile::tempdir().unwrap();
    let machine = MachineId::random();
    let (client, server) =
        attempt(site(directory.path()), |site| identity(site, machine, SystemTime::now() + HOUR))
            .await;
    assert!(matches!(client, TransportError::Removed(_)), "{client}");
    for error in [client, server] {
        assert!(error.to_string().contains("not known here"), "{error}");
    }
}

#[tokio::test]
async fn machine_without_certificate() {
    let directory = tempfile::tempdir().unwrap();
    let site = Arc::new(site(directory.path()));
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), site.clone()).unwrap();
    let address = listener.local_address().unwrap().to_string();
    let authority = certificate::der(&site.authority().certificate).unwrap();
    let config =
        tls::enrolling_client_with(certificate::fingerprint(&authority), tls::ALPN).unwrap();
    let server = async { listener.accept().await.unwrap().finish().await.err().unwrap() };
    let (client, server) = tokio::join!(dial(&address, config), server);
    assert!(matches!(server, TransportError::NoCertificate), "{server}");
    let (_endpoint, connection) = client.unwrap();
    let told = connection.closed().await.to_string();
    assert!(told.contains("enrol it with a token"), "{told}");
}

#[tokio::test]
async fn a_request_cannot_wish_for_another_machine() {
    let directory = tempfile::tempdir().unwrap();
    let site = site(directory.path());
    let (own, other) = (MachineId::random(), MachineId::random());
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    let uri = format!("redoubt:machine:{other}");
    params.subject_alt_names = vec![rcgen::SanType::URI(uri.try_into().unwrap())];
    let request = params.serialize_request(&key).unwrap().pem().unwrap();
    let until = SystemTime::now() + HOUR;
    let signed = certificate::sign_machine(site.authority(), &request, own, until).unwrap();
    assert_eq!(certificate::machine_of(&certificate::der(&signed).unwrap()).unwrap(), own);
}
