//! Who connects: machines that joined, and machines that join. Each machine has a task of its own;
//! a stranger costs a handshake and no more.

use super::connection::{CLOSE_PATIENCE, Link};
use super::error::TargetError;
use super::machine::{self, MachineEvent, MachineTask};
use super::protected::{Protected, Registry};
use crate::store::StoreError;
use redoubt_log::MachineId;
use redoubt_log::frame::FrameKey;
use redoubt_protocol::message::{Refusal, RefusalCode};
use redoubt_protocol::{AgentMessage, ConnectionId, TargetMessage};
use redoubt_transport::{Arrival, Arriving, Connection, Listener, Parts, Site};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Between two errors in the log of one machine that cannot be served.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

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
        let complaints = Arc::<Complaints>::default();
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
                complaints: complaints.clone(),
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
    complaints: Arc<Complaints>,
}

/// When each machine that cannot be served was last named as an error: its agent comes again every
/// few seconds.
#[derive(Default)]
struct Complaints(Mutex<BTreeMap<MachineId, Instant>>);

impl Complaints {
    /// Whether the machine is to be named now; then it is taken as named.
    fn is_due(&self, id: MachineId, now: Instant) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_recent = |last: &Instant| now.saturating_duration_since(*last) < COMPLAIN_EVERY;
        if told.get(&id).is_some_and(is_recent) {
            return false;
        }
        told.insert(id, now);
        true
    }
}

impl Greeting {
    async fn greet(self, arriving: Arriving) {
        let remote = arriving.remote_address();
        match arriving.finish().await {
            Ok(Arrival::Machine(id, connection)) => match self.machine(id).await {
                Ok((machine, key)) => self.take_in(&machine, key, connection).await,
                Err(error) => {
                    if self.complaints.is_due(id, Instant::now()) {
                        let machine = id;
                        tracing::error!(%machine, %remote, %error, "machine cannot be served");
                    }
                    turn_away(connection, refusal_of(&error)).await;
                }
            },
            Ok(Arrival::Enrolled(id, name)) => {
                tracing::info!(machine = %id, %name, %remote, "a machine has joined");
                self.registry.note_joined(id, &name, remote).await;
            }
            Ok(Arrival::NotEnrolled) => tracing::warn!(%remote, "a machine was not enrolled"),
            Err(error) => tracing::debug!(%remote, %error, "a handshake has failed"),
        }
    }

    /// A machine of this site, and the key of its frames: its store is made at its first
    /// connection, so that no crash can come between. Disks and locks are waited for on a thread
    /// of its own.
    async fn machine(&self, id: MachineId) -> Result<(Arc<Protected>, FrameKey), TargetError> {
        let (site, registry) = (self.site.clone(), self.registry.clone());
        let unopened = move || TargetError::Unopened { machine: id };
        let find = move || {
            let enrolled = site.machine(id)?.ok_or_else(unopened)?;
            registry.protect(id, &enrolled.name)?;
            let machine = registry.get(id).ok_or_else(unopened)?;
            Ok((machine, enrolled.frame_key))
        };
        let found = tokio::task::spawn_blocking(find).await;
        start_tasks(&self.registry, self.terms);
        found.unwrap_or(Err(TargetError::Failed { what: "a greeting" }))
    }

    async fn take_in(&self, machine: &Protected, key: FrameKey, connection: Connection) {
        let number = ConnectionId(self.connections.fetch_add(1, Ordering::Relaxed) + 1);
        let link = Link::new(number, connection, key, &machine.events);
        // The task ends only with the process.
        let _ = machine.events.send(MachineEvent::Arrived(number, link)).await;
    }
}

/// Tells a machine why it is not served; it closes once it has heard it.
async fn turn_away(connection: Connection, refusal: Refusal) {
    let Parts { mut sender, handle, receiver: _receiver } =
        connection.into_parts::<TargetMessage, AgentMessage>();
    let reason = refusal.to_string();
    let told = async {
        sender.send(&TargetMessage::Refused(refusal)).await?;
        Err::<(), _>(handle.closed().await)
    };
    // A machine that has gone comes again and is told then.
    let _ = tokio::time::timeout(CLOSE_PATIENCE, told).await;
    handle.close(&reason);
}

fn refusal_of(error: &TargetError) -> Refusal {
    match error {
        TargetError::Store(StoreError::NameTaken(name)) => Refusal {
            code: RefusalCode::NameTaken,
            text: format!(
                "another machine of its site is called {name}; enrol this one anew by another \
                 name, with a new state directory and a token of `redoubt invite --machine OTHER`"
            ),
        },
        TargetError::Store(error) => machine::refusal_of(error),
        other => Refusal { code: RefusalCode::NotReady, text: other.to_string() },
    }
}

#[cfg(test)]
pub(super) mod tests;
