//! The master target's role: sessions on one side, the store on the other, and a thread for each
//! that must not wait for the other. It acknowledges what the store has synced, and nothing else.

mod apply;
mod arrivals;
mod checks;
mod connection;
mod control;
mod error;
mod inspect;
mod journal;
mod lock;
mod machine;
mod operator;
mod points;
mod protected;
mod report;
mod status;
mod suspicion;
mod unopened;
mod verify;

pub use error::TargetError;
pub use inspect::inspect;

use crate::store::{Store, StoreOptions};
use arrivals::{Arrivals, Terms};
use control::Control;
use protected::{Registry, now};
use redoubt_control::audit::AuditLog;
use redoubt_control::options::Token;
use redoubt_control::runtime::{create_private_directory, expect_own_directory};
use redoubt_control::service::{StopSignals, notify_ready};
use redoubt_control::socket::Server;
use redoubt_control::status::Role;
use redoubt_control::{InviteOptions, TargetOptions};
use redoubt_engine::uring_directory::{UringOptions, open_directory};
use redoubt_transport::{Listener, Site};
use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::oneshot;

/// Holds the address that tokens name, so that invitations can be made beside a running target or
/// without one.
const ADDRESS_FILE: &str = "address";

/// Below the data directory: the site's identity, its invitations, and who has joined.
const SITE_DIRECTORY: &str = "site";

/// Runs the master target until SIGTERM or SIGINT; `listening` learns the address once it serves.
pub fn run(options: TargetOptions, listening: impl FnOnce(SocketAddr)) -> Result<(), TargetError> {
    let signals = StopSignals::block().map_err(signals_failed)?;
    let is_own = |data: &Path| holds_target(data) || data.join(lock::FILE).exists();
    expect_own_directory(&options.data, Role::Target, is_own)?;
    create_private_directory(&options.data)?;
    create_private_directory(options.runtime.path())?;
    let _lock = lock::take(&options.data)?;
    let site = Arc::new(Site::open_or_create(&options.data.join(SITE_DIRECTORY))?);
    let storage = open_directory(&options.data, UringOptions::default());
    let store_options =
        StoreOptions { pending_limit: options.journal_budget_bytes, ..StoreOptions::default() };
    let store = Arc::new(Store::open(storage, store_options, now())?);
    for (machine, error) in store.unopened() {
        tracing::error!(%machine, %error, "this machine is left alone until it is mended");
    }
    let audit = AuditLog::new(&options.data);
    let registry = Registry::new(store, options.keep, options.journal_keep, audit.clone());
    operator::finish_removals(&registry, &site, &audit);
    let (told, stop) = oneshot::channel();
    signals.call(move || drop(told)).map_err(signals_failed)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| TargetError::start("the network's runtime", source))?;
    let result = runtime.block_on(async {
        let listener = Listener::bind(options.listen, site.clone())?;
        let address = listener.local_address()?;
        let advertised = options.advertise.as_ref().map(ToString::to_string);
        let advertised = advertised.unwrap_or_else(|| address.to_string());
        write_address(&options.data, &advertised)?;
        for id in site.machines()? {
            match site.machine(id) {
                Ok(Some(machine)) => registry.protect(id, &machine.name)?,
                Ok(None) => {}
                Err(error) => tracing::error!(machine = %id, %error, "this machine cannot connect"),
            }
        }
        unopened::note(&registry, &site, &options.data, &audit);
        let control = Control {
            registry: registry.clone(),
            site: site.clone(),
            audit,
            data: options.data.clone(),
        };
        let _chronicler = registry.follow()?;
        let _server = Server::start(&options.runtime, Role::Target, Arc::new(control))?;
        listening(address);
        notify_ready();
        let terms = Terms { point_interval: options.point_interval };
        Arrivals { listener, registry: registry.clone(), site, terms }.serve(stop).await;
        // The threads end while the machines' tasks still take what they have to tell.
        stop_machines(registry).await
    });
    // What reads a disk for a copy must not keep the process: it ends with it.
    runtime.shutdown_background();
    result
}

/// Whether a directory has something of a target in it.
fn holds_target(data: &Path) -> bool {
    let has = |name: &str| data.join(name).exists();
    // A site's own directory has machines/ as well, beside tokens/.
    has(SITE_DIRECTORY) || has("machines") && !has("tokens")
}

/// Ends the machines' threads, on a thread of its own: those that tokio lends may all wait for
/// disks.
async fn stop_machines(registry: Registry) -> Result<(), TargetError> {
    let (ends, ended) = oneshot::channel::<()>();
    let stop = move || {
        registry.stop();
        drop(ends);
    };
    let thread = std::thread::Builder::new()
        .name("stop".to_owned())
        .spawn(stop)
        .map_err(|source| TargetError::start("the thread that ends the others", source))?;
    // Nothing is sent: it is heard when the thread is over, however it ended.
    let _ = ended.await;
    thread.join().map_err(|_| TargetError::Failed { what: "a machine's" })
}

/// Makes a token for one machine.
pub fn invite(options: &InviteOptions) -> Result<Token, TargetError> {
    let path = options.data.join(ADDRESS_FILE);
    let address = std::fs::read_to_string(&path)
        .map_err(|source| TargetError::NoSite { data: options.data.clone(), source })?;
    let site = Site::open(&options.data.join(SITE_DIRECTORY))?;
    let token = site.invite(address.trim(), options.machine.clone(), options.expires)?;
    control::audit_invite(&options.data, options.machine.as_ref());
    Ok(Token::new(&token.to_string()))
}

fn write_address(data: &Path, address: &str) -> Result<(), TargetError> {
    let path = data.join(ADDRESS_FILE);
    let beside = data.join("address.new");
    let write = || {
        let mut file = File::create(&beside)?;
        file.write_all(address.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&beside, &path)?;
        File::open(data)?.sync_all()
    };
    write().map_err(|source| TargetError::File { path, source })
}

fn signals_failed(source: std::io::Error) -> TargetError {
    TargetError::start("signal handling", source)
}
