//! Looks at a target's directory without being its target: its site, its store, and whether one
//! runs on it now. It writes nothing, unless it is to finish what an apply has left half done.

use super::error::TargetError;
use super::protected::now;
use super::{ADDRESS_FILE, SITE_DIRECTORY, holds_target, lock};
use crate::store::StoreError;
use crate::store::inspect::{StoreInspection, finish, inspect as inspect_store};
use redoubt_control::audit::AuditLog;
use redoubt_control::inspection::{
    Damage, FinishedApply, Inspection, JoinedMachine, NewerFile, SiteInspection, Verdict,
};
use redoubt_control::{HostPort, InspectOptions, Response, UtcTime};
use redoubt_engine::uring_directory::{UringOptions, open_directory};
use redoubt_transport::TransportError;
use redoubt_transport::inspection::{
    SiteDamage, SiteInspection as Site, SitePart, inspect as inspect_site,
};
use std::cell::Cell;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::Path;

/// The most bytes of an address: a host name has 255.
const ADDRESS_LIMIT: u64 = 512;

/// Explains a target's directory and checks every checksum in it; `progress` hears how many bytes
/// of how many are behind.
pub fn inspect(
    options: &InspectOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Inspection, TargetError> {
    let data = options.directory.as_path();
    expect_target(data)?;
    let unreadable = |source: StoreError| TargetError::unreadable(data, source);
    let storage = open_directory(data, UringOptions::default());
    let mut finished = Vec::new();
    let lock = if options.finish { Some(lock_to_finish(data)?) } else { None };
    if lock.is_some() {
        let outcome = finish(&storage, data, now());
        note_finished(data, &outcome);
        finished = outcome?;
    }
    let was_running = Cell::new(false);
    let is_running = || {
        let runs = lock.is_none() && lock::is_held(data);
        was_running.set(was_running.get() | runs);
        runs
    };
    is_running();
    let site = inspect_site(&data.join(SITE_DIRECTORY));
    let site = site.map_err(|source: TransportError| TargetError::unreadable(data, source))?;
    let store = inspect_store(&*storage, data, &is_running, progress).map_err(unreadable)?;
    is_running();
    Ok(assemble(data, was_running.get(), site, store, finished))
}

/// Whether the directory is a target's at all.
fn expect_target(data: &Path) -> Result<(), TargetError> {
    let not_one = |reason: &str| {
        let reason = reason.to_owned();
        TargetError::NotATarget { directory: data.to_owned(), reason }
    };
    match fs::read_dir(data) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(not_one("there is no such directory"));
        }
        Err(error) if error.kind() == ErrorKind::NotADirectory => {
            return Err(not_one("it is no directory"));
        }
        Err(error) => return Err(TargetError::unreadable(data, error)),
    }
    match holds_target(data) {
        true => Ok(()),
        false => Err(not_one("it holds neither site/ nor machines/")),
    }
}

fn lock_to_finish(data: &Path) -> Result<nix::fcntl::Flock<File>, TargetError> {
    let taken = lock::take(data).map_err(|error| match error {
        TargetError::Locked { data } => TargetError::RunsHere { data },
        other => other,
    });
    if let Err(refused) = &taken {
        note(data, &data.display().to_string(), &Response::failed(refused));
    }
    taken
}

/// Writes down which applies were finished.
fn note_finished(data: &Path, outcome: &Result<Vec<FinishedApply>, StoreError>) {
    let directory = data.display().to_string();
    match outcome {
        Err(error) => note(data, &directory, &Response::failed(error)),
        Ok(finished) if finished.is_empty() => {
            note(data, &directory, &Response::Told { message: "nothing was half done".to_owned() });
        }
        Ok(finished) => finished.iter().for_each(|apply| {
            let response = match &apply.failed {
                Some(why) => Response::failed(why),
                None => Response::Told { message: format!("the apply to {}", apply.to) },
            };
            note(data, apply.name.as_str(), &response);
        }),
    }
}

fn note(data: &Path, object: &str, response: &Response) {
    let actor = Some(nix::unistd::getuid().as_raw());
    AuditLog::new(data).note_answer(actor, "finish", object, response);
}

fn assemble(
    data: &Path,
    running: bool,
    site: Option<Site>,
    store: StoreInspection,
    finished: Vec<FinishedApply>,
) -> Inspection {
    let mut damage = Vec::new();
    let mut newer = Vec::new();
    let address = address(data, &mut damage);
    let has_identity = site.as_ref().is_some_and(|site| {
        site.fingerprint.is_some() || !site.damage.is_empty() || !site.newer.is_empty()
    });
    if !has_identity && !store.machines.is_empty() {
        let path = data.join(SITE_DIRECTORY).join("identity");
        let what = "the identity is missing".to_owned();
        damage.push(of_site(SiteDamage { path, what, part: SitePart::Identity }));
    }
    let mut checked_bytes = store.checked_bytes;
    let site = site.map(|site| {
        checked_bytes += site.checked_bytes;
        damage.extend(site.damage.into_iter().map(of_site));
        let file = |(path, version, known)| NewerFile { machine: None, path, version, known };
        newer.extend(site.newer.into_iter().map(file));
        SiteInspection {
            fingerprint: site
                .fingerprint
                .map(|hash| hash.iter().map(|b| format!("{b:02x}")).collect()),
            address,
            unused_invitations: site.unused_invitations,
            machines: site
                .machines
                .into_iter()
                .map(|(id, name)| JoinedMachine {
                    id: id.into(),
                    name: name.map(|name| name.as_str().to_owned()),
                })
                .collect(),
        }
    });
    damage.extend(store.damage);
    newer.extend(store.newer);
    let has_failed = finished.iter().any(|apply| apply.failed.is_some());
    let verdict = match (damage.is_empty() && !has_failed, newer.is_empty()) {
        (false, _) => Verdict::Damaged,
        (true, false) => Verdict::NewerVersion,
        (true, true) => Verdict::Unharmed,
    };
    Inspection {
        directory: data.to_owned(),
        inspected_at: UtcTime::now(),
        running,
        verdict,
        checked_bytes,
        site,
        machines: store.machines,
        damage,
        newer,
        finished,
        leftovers: store.leftovers,
    }
}

/// What the target wrote at its last start, if it ever served.
fn address(data: &Path, damage: &mut Vec<Damage>) -> Option<String> {
    let path = data.join(ADDRESS_FILE);
    let mut text = String::new();
    let read =
        File::open(&path).and_then(|file| file.take(ADDRESS_LIMIT).read_to_string(&mut text));
    let what = match read {
        Ok(_) if text.trim().parse::<HostPort>().is_ok() => return Some(text.trim().to_owned()),
        Ok(_) => "it holds no address".to_owned(),
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        Err(error) => format!("cannot be read: {error}"),
    };
    damage.push(Damage {
        means: "invitations made now would name a wrong address; a target that starts writes the \
                file anew, and nothing else is touched"
            .to_owned(),
        ..of_site(SiteDamage { path, what, part: SitePart::Invitation })
    });
    None
}

fn of_site(found: SiteDamage) -> Damage {
    let means = match found.part {
        SitePart::Identity => {
            "agents that joined cannot connect to a target with this identity: restore the file, \
             or enrol each machine again; stores, points and replica disks are not touched"
                .to_owned()
        }
        SitePart::Machine(machine) => format!(
            "machine {machine} cannot connect until this file is restored or the machine is \
             enrolled again; its store and its points are not touched"
        ),
        SitePart::Invitation => "this invitation is worth nothing: make another with `redoubt \
                                 invite`; nothing else is touched"
            .to_owned(),
    };
    Damage {
        machine: None,
        path: found.path,
        byte: 0,
        what: found.what,
        means,
        disks: Vec::new(),
        points: None,
        positions: None,
    }
}
