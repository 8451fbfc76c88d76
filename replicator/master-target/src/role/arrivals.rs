//! Who connects: machines that joined, and machines that join. Each machine has a task of its own;
//! a stranger costs a handshake and no more.

use super::connection::Link;
use super::error::TargetError;
use super::machine::{MachineEvent, MachineTask};
use super::protected::Registry;
use redoubt_log::MachineId;
use redoubt_protocol::ConnectionId;
use redoubt_transport::{Arrival, Arriving, Connection, Listener, Site};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::oneshot;

/// What every session is offered.
#[derive(Clone, Copy)]
pub(super) struct Terms {
    /// Between two recovery points.
    pub point_interval: Duration,
}

/// The listening end.
pub(super) struct Arrivals {
    pub listener: Listener,
    pub registry: Registry,
    pub site: Arc<Site>,
    pub terms: Terms,
}

impl Arrivals {
    /// Serves until `stop` ends.
    pub async fn serve(self, mut stop: oneshot::Receiver<()>) {
        let connections = Arc::new(AtomicU64::new(0));
        self.start_tasks();
        loop {
            let arriving = tokio::select! {
                _ = &mut stop => break,
                arriving = self.listener.accept() => arriving,
            };
            let Some(arriving) = arriving else { break };
            self.start_tasks();
            let greeting = Greeting {
                registry: self.registry.clone(),
                site: self.site.clone(),
                terms: self.terms,
                connections: connections.clone(),
            };
            tokio::spawn(greeting.greet(arriving));
        }
        self.listener.close("the target stops").await;
    }

    fn start_tasks(&self) {
        start_tasks(&self.registry, self.terms);
    }
}

fn start_tasks(registry: &Registry, terms: Terms) {
    for ends in registry.take_started() {
        tokio::spawn(MachineTask::new(ends, terms).run());
    }
}

struct Greeting {
    registry: Registry,
    site: Arc<Site>,
    terms: Terms,
    connections: Arc<AtomicU64>,
}

impl Greeting {
    async fn greet(self, arriving: Arriving) {
        let remote = arriving.remote_address();
        match arriving.finish().await {
            Ok(Arrival::Machine(id, connection)) => {
                if let Err(error) = self.take_in(id, connection).await {
                    tracing::error!(machine = %id, %remote, %error, "machine cannot be served");
                }
            }
            Ok(Arrival::Enrolled(id, name)) => {
                tracing::info!(machine = %id, %name, %remote, "a machine has joined");
            }
            Ok(Arrival::NotEnrolled) => tracing::warn!(%remote, "a machine was not enrolled"),
            Err(error) => tracing::debug!(%remote, %error, "a handshake has failed"),
        }
    }

    /// A machine of this site: its store is made at its first connection, so that no crash can come
    /// between.
    async fn take_in(&self, id: MachineId, connection: Connection) -> Result<(), TargetError> {
        let Some(enrolled) = self.site.machine(id)? else { return Ok(()) };
        self.registry.protect(id, &enrolled.name)?;
        start_tasks(&self.registry, self.terms);
        let machine = self.registry.get(id).ok_or(TargetError::Unopened { machine: id })?;
        let number = ConnectionId(self.connections.fetch_add(1, Ordering::Relaxed) + 1);
        let link = Link::new(number, connection, enrolled.frame_key, &machine.events);
        // The task ends only with the process.
        let _ = machine.events.send(MachineEvent::Arrived(number, link)).await;
        Ok(())
    }
}
