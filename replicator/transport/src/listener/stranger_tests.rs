//! What strangers cost: forged addresses nothing, slow ones their own places for a while, and none
//! of them keeps a machine out. Every address of 127.0.0.0/8 is one source here.

use super::*;
use crate::certificate::{SERVER_NAME, fingerprint};
use crate::connection::{connect, dial, socket};
use crate::door::PLACES_OF_A_SOURCE;
use crate::enrol::{ANSWER_PATIENCE, enrol};
use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

const HOUR: Duration = Duration::from_secs(3600);

/// What is not possible within this time over loopback is taken as not possible.
const SILENCE: Duration = Duration::from_millis(300);

/// Beyond our own bounds by what a busy machine may add.
const SLACK: Duration = Duration::from_secs(20);

struct Served {
    site: Arc<Site>,
    door: Arc<Door>,
    address: SocketAddr,
    arrivals: UnboundedReceiver<Result<Arrival>>,
    _directory: tempfile::TempDir,
}

/// A site that lets in whom it should, as the target does.
fn serve() -> Served {
    let directory = tempfile::tempdir().unwrap();
    let site = Arc::new(Site::open_or_create(directory.path()).unwrap());
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), site.clone()).unwrap();
    let (address, door) = (listener.local_address().unwrap(), listener.door.clone());
    let (told, arrivals) = unbounded_channel();
    tokio::spawn(async move {
        while let Some(arriving) = listener.accept().await {
            let told = told.clone();
            tokio::spawn(async move {
                // The test may have seen all that it wants.
                let _ = told.send(arriving.finish().await);
            });
        }
    });
    Served { site, door, address, arrivals, _directory: directory }
}

impl Served {
    fn stranger(&self, protocol: &[u8]) -> quinn::ClientConfig {
        let authority = certificate::der(&self.site.authority().certificate).unwrap();
        tls::enrolling_client_with(fingerprint(&authority), protocol).unwrap()
    }

    /// A stranger from this address, who has an endpoint of its own.
    async fn knock(
        &self,
        source: [u8; 4],
        protocol: &[u8],
    ) -> std::result::Result<(quinn::Endpoint, quinn::Connection), quinn::ConnectionError> {
        let endpoint = socket(SocketAddr::from((source, 0)), None).unwrap();
        let config = self.stranger(protocol);
        let connecting = endpoint.connect_with(config, self.address, SERVER_NAME).unwrap();
        Ok((endpoint.clone(), connecting.await?))
    }

    fn free_places(&self, source: [u8; 4]) -> usize {
        let places = std::iter::from_fn(|| self.door.enter(IpAddr::from(source)));
        places.take(PLACES_OF_A_SOURCE).collect::<Vec<_>>().len()
    }

    /// Joins and connects, as a machine does; neither may wait for strangers.
    async fn expect_a_machine_to_get_in(&mut self) {
        let state = tempfile::tempdir().unwrap();
        let address = self.address.to_string();
        let token = self.site.invite(&address, None, HOUR).unwrap();
        let began = Instant::now();
        let identity = enrol(state.path(), &token, "db").await.unwrap();
        let connection = connect(&identity, &address).await.unwrap();
        assert!(began.elapsed() < CONNECT_TIMEOUT, "{:?}", began.elapsed());
        drop(connection);
    }
}

/// The first datagram of a stranger who connects to nowhere.
async fn first_datagram(served: &Served) -> Vec<u8> {
    let nowhere = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let endpoint = socket("127.0.0.1:0".parse().unwrap(), None).unwrap();
    let config = served.stranger(tls::ALPN);
    let place = nowhere.local_addr().unwrap();
    let _connecting = endpoint.connect_with(config, place, SERVER_NAME).unwrap();
    let mut datagram = vec![0; 2000];
    let length = nowhere.recv(&mut datagram).await.unwrap();
    datagram.truncate(length);
    datagram
}

#[tokio::test]
async fn a_forged_address_takes_no_place() {
    let mut served = serve();
    let datagram = first_datagram(&served).await;
    for _ in 0..4 * PLACES_OF_A_SOURCE {
        let forger = UdpSocket::bind("127.0.0.2:0").unwrap();
        forger.set_nonblocking(true).unwrap();
        let forger = tokio::net::UdpSocket::from_std(forger).unwrap();
        forger.send_to(&datagram, served.address).await.unwrap();
        // It is asked to prove its address, with less than it has sent, and never does.
        let mut asked = [0; 2000];
        let length = forger.recv(&mut asked).await.unwrap();
        assert!(length < datagram.len(), "{length} bytes for {}", datagram.len());
    }
    assert_eq!(served.free_places([127, 0, 0, 2]), PLACES_OF_A_SOURCE);
    served.expect_a_machine_to_get_in().await;
}

#[tokio::test]
async fn slow_strangers_keep_nobody_out_and_are_let_go() {
    let mut served = serve();
    let source = [127, 0, 0, 2];
    let mut slow = Vec::new();
    for _ in 0..PLACES_OF_A_SOURCE {
        // They come to join, and then say nothing.
        slow.push(served.knock(source, tls::ALPN_ENROL).await.unwrap());
    }
    let began = Instant::now();
    let refused = served.knock(source, tls::ALPN_ENROL).await.err().unwrap();
    assert!(matches!(refused, quinn::ConnectionError::ConnectionClosed(_)), "{refused}");
    served.expect_a_machine_to_get_in().await;
    for (_, connection) in &slow {
        connection.closed().await;
    }
    let waited = began.elapsed();
    assert!(waited < CONNECT_TIMEOUT + SLACK, "{waited:?}");
    while served.knock(source, tls::ALPN_ENROL).await.is_err() {
        assert!(began.elapsed() < CONNECT_TIMEOUT + STRANGER_PAUSE + SLACK, "no place came free");
    }
}

#[tokio::test]
async fn who_stops_in_the_middle_of_a_handshake_is_let_go() {
    let mut served = serve();
    // A line that carries the first word and the proof of the address, and then nothing more.
    let line = tokio::net::UdpSocket::bind("127.0.0.2:0").await.unwrap();
    let endpoint = socket("127.0.0.1:0".parse().unwrap(), None).unwrap();
    let config = served.stranger(tls::ALPN);
    let place = line.local_addr().unwrap();
    let _connecting = endpoint.connect_with(config, place, SERVER_NAME).unwrap();
    let mut buffer = [0; 2000];
    let (length, client) = line.recv_from(&mut buffer).await.unwrap();
    line.send_to(&buffer[..length], served.address).await.unwrap();
    let mut is_asked = false;
    loop {
        let (length, from) = line.recv_from(&mut buffer).await.unwrap();
        if from == served.address {
            is_asked = true;
            line.send_to(&buffer[..length], client).await.unwrap();
        } else if is_asked {
            line.send_to(&buffer[..length], served.address).await.unwrap();
            break;
        }
    }
    let began = Instant::now();
    let error = served.arrivals.recv().await.unwrap().err().unwrap();
    assert!(matches!(error, TransportError::Lost(_)), "{error}");
    assert!(began.elapsed() < CONNECT_TIMEOUT + SLACK, "{error} after {:?}", began.elapsed());
}

#[tokio::test]
async fn who_fails_keeps_its_place_for_a_moment() {
    let mut served = serve();
    let source = [127, 0, 0, 2];
    // It has no certificate, and does not come to join.
    let knocked = served.knock(source, tls::ALPN).await;
    let error = served.arrivals.recv().await.unwrap().err().unwrap();
    assert!(matches!(error, TransportError::NoCertificate), "{error}");
    assert_eq!(served.free_places(source), PLACES_OF_A_SOURCE - 1);
    let began = Instant::now();
    while served.free_places(source) < PLACES_OF_A_SOURCE {
        assert!(began.elapsed() < STRANGER_PAUSE + SLACK, "its place is never free again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(knocked);
    served.expect_a_machine_to_get_in().await;
    assert_eq!(served.free_places([127, 0, 0, 1]), PLACES_OF_A_SOURCE);
}

#[tokio::test]
async fn a_stranger_cannot_make_us_hold_much() {
    let directory = tempfile::tempdir().unwrap();
    let site = Arc::new(Site::open_or_create(directory.path()).unwrap());
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), site.clone()).unwrap();
    let authority = certificate::der(&site.authority().certificate).unwrap();
    let config = tls::enrolling_client_with(fingerprint(&authority), tls::ALPN_ENROL).unwrap();
    let address = listener.local_address().unwrap().to_string();
    let accepted = async { listener.accept().await.unwrap().incoming.await.unwrap() };
    // Accepted, and nothing is read of it.
    let (dialled, _unread) = tokio::join!(dial(&address, config), accepted);
    let (_endpoint, connection) = dialled.unwrap();
    let (mut out, _back) = connection.open_bi().await.unwrap();
    let piece = vec![0; 4096];
    let mut taken = 0;
    while let Ok(written) = tokio::time::timeout(SILENCE, out.write(&piece)).await {
        taken += written.unwrap();
    }
    assert_eq!(taken, tls::STRANGER_WINDOW_BYTES as usize);
    let opened = tokio::time::timeout(SILENCE, connection.open_uni()).await;
    assert!(opened.is_err(), "a stranger has opened a stream of frames");
}

/// Who is refused says goodbye before its process ends: else its place would be held for nothing.
#[tokio::test]
async fn who_is_refused_takes_nobodys_time() {
    let mut served = serve();
    let state = tempfile::tempdir().unwrap();
    let token = served.site.invite(&served.address.to_string(), None, Duration::ZERO).unwrap();
    let refused = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        // The runtime ends with this, as that of an agent does.
        (runtime.block_on(enrol(state.path(), &token, "db")).err().unwrap(), Instant::now())
    });
    let (error, ended) = refused.await.unwrap();
    assert!(matches!(error, TransportError::EnrolRefused { .. }), "{error}");
    let arrival = served.arrivals.recv().await.unwrap().unwrap();
    assert!(matches!(arrival, Arrival::NotEnrolled));
    assert!(ended.elapsed() < ANSWER_PATIENCE, "{:?}", ended.elapsed());
}

#[tokio::test]
async fn a_request_that_would_be_long_is_not_waited_for() {
    let mut served = serve();
    let (_endpoint, connection) = served.knock([127, 0, 0, 2], tls::ALPN_ENROL).await.unwrap();
    let (mut out, _back) = connection.open_bi().await.unwrap();
    let length = u32::try_from(redoubt_protocol::MESSAGE_LIMIT).unwrap();
    out.write_all(&length.to_le_bytes()).await.unwrap();
    let error = served.arrivals.recv().await.unwrap().err().unwrap();
    assert!(error.to_string().contains("are the most"), "{error}");
    served.expect_a_machine_to_get_in().await;
}
