//! What a machine is told that cannot be served, over a real connection and with a real store.

use super::*;
use crate::store::{Store, StoreOptions};
use redoubt_control::audit::AuditLog;
use redoubt_engine::uring_directory::{UringOptions, open_directory};
use redoubt_transport::{AgentIdentity, connect, enrol};
use std::path::Path;

const HOUR: Duration = Duration::from_secs(3600);
const TERMS: Terms = Terms { point_interval: HOUR };

struct Target {
    site: Arc<Site>,
    registry: Registry,
    address: String,
    stop: oneshot::Sender<()>,
    serving: tokio::task::JoinHandle<()>,
}

impl Target {
    fn start(data: &Path) -> Self {
        let site = Arc::new(Site::open_or_create(&data.join("site")).unwrap());
        let storage = open_directory(data, UringOptions::default());
        let store = Store::open(storage, StoreOptions::default(), super::super::protected::now());
        let registry =
            Registry::new(Arc::new(store.unwrap()), HOUR, Duration::ZERO, AuditLog::new(data));
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), site.clone()).unwrap();
        let address = listener.local_address().unwrap().to_string();
        let (stop, stopped) = oneshot::channel();
        let arrivals =
            Arrivals { listener, registry: registry.clone(), site: site.clone(), terms: TERMS };
        let serving = tokio::spawn(arrivals.serve(stopped));
        Self { site, registry, address, stop, serving }
    }

    async fn join(&self, state: &Path) -> AgentIdentity {
        let token = self.site.invite(&self.address, None, HOUR).unwrap();
        enrol(state, &token, "db").await.unwrap()
    }

    async fn connect(&self, identity: &AgentIdentity) -> Parts<AgentMessage, TargetMessage> {
        connect(identity, &self.address).await.unwrap().into_parts()
    }

    async fn stop(self) {
        drop(self.stop);
        self.serving.await.unwrap();
        tokio::task::spawn_blocking(move || self.registry.stop()).await.unwrap();
    }
}

/// A machine was shut out at the site, and its store still holds its name.
#[tokio::test]
async fn a_machine_whose_name_is_anothers_is_told_so() {
    let base = tempfile::tempdir().unwrap();
    let target = Target::start(&base.path().join("data"));
    let first = target.join(&base.path().join("first")).await;
    let connected = target.connect(&first).await;
    target.site.remove_machine(first.machine).unwrap();
    let second = target.join(&base.path().join("second")).await;
    let mut refused = target.connect(&second).await;
    let TargetMessage::Refused(refusal) = refused.receiver.receive().await.unwrap() else {
        panic!("it was not refused");
    };
    assert_eq!(refusal.code, RefusalCode::NameTaken);
    assert!(refusal.text.contains("called db;"), "{refusal}");
    assert!(refusal.text.contains("redoubt invite --machine OTHER"), "{refusal}");
    // The connection of one that does not close by itself ends all the same.
    refused.handle.closed().await;
    assert!(target.registry.get(second.machine).is_none());
    drop(connected);
    target.stop().await;
}
