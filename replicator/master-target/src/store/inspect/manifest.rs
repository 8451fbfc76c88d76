//! Reads a machine's manifest for an inspection: bounded, and with an eye for a version that is
//! only damaged.

use super::findings::{Findings, Found, Harm};
use crate::store::error::{Result, StoreError};
use crate::store::manifest::{Manifest, VERSION};
use redoubt_engine::storage::{Open, ReadRequest, Storage};
use redoubt_log::MachineId;
use std::path::Path;

/// The most bytes of a manifest: those of a million points with their files.
const LIMIT: u64 = 512 << 20;

/// The manifest, or `None` where there is none or what there is cannot be used; then the findings
/// say why, unless there is none.
pub(super) fn read(
    storage: &dyn Storage,
    path: &Path,
    machine: MachineId,
    findings: &mut Findings<'_>,
) -> Result<(Option<Manifest>, bool)> {
    let bytes = match load(storage, path) {
        Ok(bytes) => bytes,
        Err(error) if super::findings::is_missing(&error) => return Ok((None, false)),
        Err(error) => {
            findings.take(path, 0, error, Harm::Manifest)?;
            return Ok((None, true));
        }
    };
    findings.progress.checked(bytes.len() as u64);
    match decode(path, &bytes) {
        Ok((manifest, _)) if manifest.machine != machine => {
            let what = format!("it is of machine {}", manifest.machine);
            findings.damaged(Found { path: path.to_owned(), byte: 0, what, harm: Harm::Manifest });
            Ok((None, true))
        }
        Ok((manifest, wrong)) => {
            if let Some((byte, what)) = wrong {
                findings.damaged(Found { path: path.to_owned(), byte, what, harm: Harm::Manifest });
            }
            Ok((Some(manifest), true))
        }
        Err(error) => {
            findings.take(path, 0, error, Harm::Manifest)?;
            Ok((None, true))
        }
    }
}

/// A manifest as it stands now, or `None` where it cannot be used: for a second look.
pub(super) fn peek(storage: &dyn Storage, path: &Path) -> Option<Manifest> {
    let bytes = load(storage, path).ok()?;
    decode(path, &bytes).ok().map(|(manifest, _)| manifest)
}

fn load(storage: &dyn Storage, path: &Path) -> Result<Vec<u8>> {
    let file = storage.open(path, Open::ReadOnly)?;
    if file.size() > LIMIT {
        return Err(StoreError::damaged(path, 0, format!("{} bytes are no manifest", file.size())));
    }
    let mut bytes = vec![0; usize::try_from(file.size()).expect("the limit fits in memory")];
    file.read(&mut [ReadRequest { offset: 0, buffer: &mut bytes }])?;
    Ok(bytes)
}

/// The manifest, and what is wrong with its version where all the rest is right: the checksum tells
/// which version the body is of.
fn decode(path: &Path, bytes: &[u8]) -> Result<(Manifest, Option<(u64, String)>)> {
    let error = match Manifest::decode(path, bytes) {
        Ok(manifest) => return Ok((manifest, None)),
        Err(error) => error,
    };
    let mut spaces = bytes.iter().enumerate().filter(|(_, byte)| **byte == b' ').map(|(at, _)| at);
    if let (Some(before), Some(behind)) = (spaces.next(), spaces.next()) {
        let known = VERSION.to_string();
        let mended = [&bytes[..=before], known.as_bytes(), &bytes[behind..]].concat();
        if let Ok(manifest) = Manifest::decode(path, &mended) {
            let version = String::from_utf8_lossy(&bytes[before + 1..behind]);
            let what = format!("says version {version}, and is whole as version {VERSION}");
            return Ok((manifest, Some((before as u64 + 1, what))));
        }
    }
    Err(error)
}
