//! A site with a listener, and a network that loses, delays and repeats datagrams by a seed.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use redoubt_log::MachineId;
use redoubt_transport::{AgentIdentity, Arrival, Connection, Listener, Result, Site, enrol};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::UdpSocket;

pub const HOUR: Duration = Duration::from_secs(3600);

/// What the proxy does to each datagram.
#[derive(Clone, Copy, Default)]
pub struct Line {
    pub drop_per_mille: u32,
    pub repeat_per_mille: u32,
    pub delay_milliseconds: u64,
}

/// Starts a proxy towards `target`; it lives as long as the runtime.
pub async fn proxy(seed: u64, line: Line, target: SocketAddr) -> SocketAddr {
    eprintln!("proxy seed {seed}");
    let front = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let address = front.local_addr().unwrap();
    let random = Arc::new(Mutex::new(StdRng::seed_from_u64(seed)));
    tokio::spawn(async move {
        let mut backs: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
        let mut buffer = vec![0; 65536];
        while let Ok((length, from)) = front.recv_from(&mut buffer).await {
            if !backs.contains_key(&from) {
                let back = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
                tokio::spawn(answers(back.clone(), front.clone(), from, line, random.clone()));
                backs.insert(from, back);
            }
            forward(&random, line, &backs[&from], target, &buffer[..length]).await;
        }
    });
    address
}

async fn answers(
    back: Arc<UdpSocket>,
    front: Arc<UdpSocket>,
    client: SocketAddr,
    line: Line,
    random: Arc<Mutex<StdRng>>,
) {
    let mut buffer = vec![0; 65536];
    while let Ok((length, _)) = back.recv_from(&mut buffer).await {
        forward(&random, line, &front, client, &buffer[..length]).await;
    }
}

async fn forward(
    random: &Mutex<StdRng>,
    line: Line,
    socket: &Arc<UdpSocket>,
    to: SocketAddr,
    datagram: &[u8],
) {
    let (copies, delay) = {
        let mut random = random.lock().unwrap();
        let copies = match random.random_range(0..1000) {
            roll if roll < line.drop_per_mille => 0,
            roll if roll < line.drop_per_mille + line.repeat_per_mille => 2,
            _ => 1,
        };
        (copies, random.random_range(0..=line.delay_milliseconds))
    };
    for _ in 0..copies {
        let (socket, datagram) = (socket.clone(), datagram.to_vec());
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(delay)).await;
            // A client that is gone is like a datagram that is lost.
            let _ = socket.send_to(&datagram, to).await;
        });
    }
}

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

/// Both ends of one connection.
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
        Arrival::Machine(machine, connection) => Ok((client?, machine, connection)),
        _ => panic!("a machine that has joined came to join"),
    }
}
