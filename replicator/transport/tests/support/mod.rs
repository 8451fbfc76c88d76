//! A site with a listener, and machines that join it.

use redoubt_log::MachineId;
use redoubt_transport::{AgentIdentity, Arrival, Connection, Listener, Result, Site, enrol};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub const HOUR: Duration = Duration::from_secs(3600);

/// A listening site in a directory.
pub fn listen(directory: &Path) -> (Arc<Site>, Listener, SocketAddr) {
    let site = Arc::new(Site::open_or_create(directory).unwrap());
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), site.clone()).unwrap();
    let address = listener.local_address().unwrap();
    (site, listener, address)
}

/// A machine that has joined through `address`.
pub async fn join(
    site: &Site,
    listener: &Listener,
    address: SocketAddr,
    state: &Path,
) -> AgentIdentity {
    let token = site.invite(&address.to_string(), None, HOUR).unwrap();
    let client = enrol(state, &token, "db-1");
    let server = async { listener.accept().await.unwrap().finish().await.unwrap() };
    let (identity, arrival) = tokio::join!(client, server);
    let identity = identity.unwrap();
    assert!(matches!(arrival, Arrival::Enrolled(machine, _) if machine == identity.machine));
    identity
}

/// Both ends of one connection, of which each trusts the other.
pub async fn meet(
    listener: &Listener,
    identity: &AgentIdentity,
    address: SocketAddr,
) -> Result<(Connection, MachineId, Connection)> {
    let address = address.to_string();
    let client = redoubt_transport::connect(identity, &address);
    let server = async { listener.accept().await.unwrap().finish().await };
    let (client, server) = tokio::join!(client, server);
    match server? {
        Arrival::Machine(machine, connection) => {
            connection.trust();
            Ok((client?, machine, connection))
        }
        _ => panic!("a machine that has joined came to join"),
    }
}
