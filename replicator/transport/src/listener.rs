//! The target's end: one UDP port for machines that have joined and machines that join.
//! It knows who is there, and never what they may do.

use crate::certificate;
use crate::connection::{CONNECT_TIMEOUT, Connection, socket};
use crate::enrol;
use crate::error::{Result, TransportError};
use crate::site::Site;
use crate::tls;
use quinn::crypto::rustls::HandshakeData;
use redoubt_log::{MachineId, Name};
use rustls::pki_types::CertificateDer;
use std::net::SocketAddr;
use std::sync::Arc;

/// The target's end of all connections.
pub struct Listener {
    endpoint: quinn::Endpoint,
    site: Arc<Site>,
}

/// Somebody who knocks; nothing is known yet.
pub struct Arriving {
    incoming: quinn::Incoming,
    site: Arc<Site>,
}

/// Who came.
pub enum Arrival {
    /// A machine that joined earlier, proven by its certificate and still known here.
    Machine(MachineId, Connection),
    /// A machine that has joined just now; it will come again.
    Enrolled(MachineId, Name),
    /// A machine whose token was refused; it has been told why.
    NotEnrolled,
}

impl Listener {
    /// Listens at the address; port 0 means any. Needs a tokio runtime.
    pub fn bind(address: SocketAddr, site: Arc<Site>) -> Result<Self> {
        let endpoint = socket(address, Some(tls::server(&site)?))?;
        Ok(Self { endpoint, site })
    }

    /// Where it listens.
    pub fn local_address(&self) -> Result<SocketAddr> {
        self.endpoint.local_addr().map_err(|error| TransportError::setup("find the port", error))
    }

    /// The next who knocks; finish each in a task of its own, since it may be slow. `None` once
    /// closed.
    pub async fn accept(&self) -> Option<Arriving> {
        let incoming = self.endpoint.accept().await?;
        Some(Arriving { incoming, site: self.site.clone() })
    }

    /// Closes all connections with the reason, and waits until that was said.
    pub async fn close(&self, reason: &str) {
        self.endpoint.close(0u32.into(), reason.as_bytes());
        self.endpoint.wait_idle().await;
    }
}

impl Arriving {
    /// Where it comes from.
    pub fn remote_address(&self) -> SocketAddr {
        self.incoming.remote_address()
    }

    /// Finds out who it is.
    pub async fn finish(self) -> Result<Arrival> {
        tokio::time::timeout(CONNECT_TIMEOUT, self.identify())
            .await
            .unwrap_or_else(|_| Err(TransportError::Lost("the handshake took too long".to_owned())))
    }

    async fn identify(self) -> Result<Arrival> {
        let lost = |error| TransportError::of_connection(&error, None);
        let connection = self.incoming.await.map_err(lost)?;
        let protocol = connection
            .handshake_data()
            .and_then(|data| data.downcast::<HandshakeData>().ok())
            .and_then(|data| data.protocol);
        if protocol.as_deref() == Some(tls::ALPN_ENROL) {
            let joined = enrol::answer(&connection, self.site).await?;
            return Ok(joined
                .map_or(Arrival::NotEnrolled, |(machine, name)| Arrival::Enrolled(machine, name)));
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
        if self.site.machine(machine)?.is_none() {
            let text = format!("machine {machine} is not known here any more: enrol it again");
            connection.close(2u32.into(), text.as_bytes());
            return Err(TransportError::Protocol(text));
        }
        Ok(Arrival::Machine(machine, Connection::accepted(connection).await?))
    }
}

#[cfg(test)]
mod tests;
