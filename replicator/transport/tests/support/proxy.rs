//! A network that loses, delays, reorders and repeats datagrams by a seed, which it prints.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::UdpSocket;

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
            let back = match backs.entry(from) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => {
                    let back = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
                    tokio::spawn(answers(back.clone(), front.clone(), from, line, random.clone()));
                    new.insert(back)
                }
            };
            forward(&random, line, back, target, &buffer[..length]).await;
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
