//! The target's end: one UDP port for machines that have joined and machines that join.
//! It knows who is there, and never what they may do.

use crate::certificate;
use crate::connection::{CONNECT_TIMEOUT, Connection, socket};
use crate::door::{Door, Place};
use crate::enrol;
use crate::error::{REMOVED_CODE, Result, TransportError};
use crate::site::Site;
use crate::tls;
use quinn::crypto::rustls::HandshakeData;
use redoubt_log::{MachineId, Name};
use rustls::pki_types::CertificateDer;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// How long who was not let in keeps its place: what a handshake costs us is then bounded by the
/// number of places a second.
const STRANGER_PAUSE: Duration = Duration::from_secs(1);

/// How long an end that was told may take to be heard: a round trip or two.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);

/// The target's end of all connections.
pub struct Listener {
    endpoint: quinn::Endpoint,
    site: Arc<Site>,
    door: Arc<Door>,
}

/// Somebody who knocks; nothing is known yet but that it receives what is sent to its address.
pub struct Arriving {
    incoming: quinn::Incoming,
    site: Arc<Site>,
    place: Place,
}

/// Who came.
pub enum Arrival {
    /// A machine that joined earlier, proven by its certificate and still known here. Until it is
    /// trusted with more it may send messages, as little at once as a stranger, and no frames.
    Machine(MachineId, Connection),
    /// A machine that has joined just now; it will come again.
    Enrolled(MachineId, Name),
    /// A machine whose token was refused; it has been told why.
    NotEnrolled,
}

impl Listener {
    /// Listens at the address; port 0 means any. Needs a tokio runtime.
    pub fn bind(address: SocketAddr, site: Arc<Site>) -> Result<Self> {
        let endpoint = socket(address, Some(tls::server(&site)?)).map_err(|error| match error {
            TransportError::Setup { detail, .. } => {
                let detail = format!("{detail}; give an address of this machine and a free port");
                TransportError::setup("cannot listen", detail)
            }
            other => other,
        })?;
        Ok(Self { endpoint, site, door: Arc::default() })
    }

    /// Where it listens.
    pub fn local_address(&self) -> Result<SocketAddr> {
        self.endpoint.local_addr().map_err(|error| TransportError::setup("find the port", error))
    }

    /// The next who knocks; finish each in a task of its own, since it may be slow. `None` once
    /// closed. Who finds no place is refused, and may come again.
    pub async fn accept(&self) -> Option<Arriving> {
        loop {
            let incoming = self.endpoint.accept().await?;
            let remote = incoming.remote_address();
            if !incoming.remote_address_validated() {
                // A sender's address may be forged: before it costs us a place, it has to bring
                // back what we send there (RFC 9000, 8.1.2). We remember nothing of it until then.
                if let Err(error) = incoming.retry() {
                    tracing::debug!(%remote, %error, "no address can be asked for");
                }
                continue;
            }
            match self.door.enter(remote.ip()) {
                Some(place) => return Some(Arriving { incoming, site: self.site.clone(), place }),
                None => {
                    tracing::debug!(%remote, "too many knock at once: refused");
                    incoming.refuse();
                }
            }
        }
    }

    /// Closes all connections with the reason, and waits until that was said; not for ever, since
    /// a stranger may have gone in the middle.
    pub async fn close(&self, reason: &str) {
        self.endpoint.close(0u32.into(), reason.as_bytes());
        let said = tokio::time::timeout(CLOSE_PATIENCE, self.endpoint.wait_idle()).await;
        if said.is_err() {
            tracing::debug!("not everybody has heard that the target closes");
        }
    }
}

impl Arriving {
    /// Where it comes from.
    pub fn remote_address(&self) -> SocketAddr {
        self.incoming.remote_address()
    }

    /// Finds out who it is.
    pub async fn finish(self) -> Result<Arrival> {
        let Self { incoming, site, place } = self;
        let identified = tokio::time::timeout(CONNECT_TIMEOUT, identify(incoming, site)).await;
        let who = identified.unwrap_or_else(|_| {
            Err(TransportError::Lost("the handshake took too long".to_owned()))
        });
        if !matches!(who, Ok(Arrival::Machine(..) | Arrival::Enrolled(..))) {
            tokio::spawn(async move {
                tokio::time::sleep(STRANGER_PAUSE).await;
                drop(place);
            });
        }
        who
    }
}

async fn identify(incoming: quinn::Incoming, site: Arc<Site>) -> Result<Arrival> {
    let lost = |error| TransportError::of_connection(&error, None);
    let connection = incoming.await.map_err(lost)?;
    let protocol = connection
        .handshake_data()
        .and_then(|data| data.downcast::<HandshakeData>().ok())
        .and_then(|data| data.protocol);
    if protocol.as_deref() == Some(tls::ALPN_ENROL) {
        let joined = enrol::answer(&connection, site).await?;
        return Ok(
            joined.map_or(Arrival::NotEnrolled, |(machine, name)| Arrival::Enrolled(machine, name))
        );
    }
    let shown = connection
        .peer_identity()
        .and_then(|shown| shown.downcast::<Vec<CertificateDer<'static>>>().ok());
    let Some(own) = shown.as_ref().and_then(|chain| chain.first()) else {
        let refusal = TransportError::NoCertificate;
        connection.close(1u32.into(), refusal.to_string().as_bytes());
        return Err(refusal);
    };
    let machine = certificate::machine_of(own)?;
    if site.machine(machine)?.is_none() {
        let text = format!("machine {machine} is not known here any more: enrol it again");
        connection.close(REMOVED_CODE.into(), text.as_bytes());
        return Err(TransportError::Protocol(text));
    }
    Ok(Arrival::Machine(machine, Connection::accepted(connection).await?))
}

#[cfg(test)]
mod stranger_tests;
#[cfg(test)]
mod tests;
