//! Looks at a site's directory by its files alone and proves what can be proven: certificates by
//! their signatures, keys by their certificates, records by their checksums. It never writes, and
//! shows no secret.

use super::{MachineRecord, RECORD_LIMIT, TokenRecord, UsedRecord, VERSION, decode_record};
use crate::error::{Result, TransportError};
use crate::{certificate, files, version};
use redoubt_log::{MachineId, Name};
use serde::de::DeserializeOwned;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

/// The most bytes of a certificate's or key's text: ours have a thousand.
const TEXT_LIMIT: u64 = 64 << 10;

/// What a site's directory holds.
#[derive(Debug, Default)]
pub struct SiteInspection {
    /// What tokens pin; `None` where the authority is missing or damaged.
    pub fingerprint: Option<[u8; 32]>,
    /// The machines that joined, in order; `None` for the name of one whose record is damaged.
    pub machines: Vec<(MachineId, Option<Name>)>,
    /// Invitations that nobody has used, expired ones as well.
    pub unused_invitations: u64,
    /// What is not what was written.
    pub damage: Vec<SiteDamage>,
    /// Files of a later release: which, its version, and the newest known here.
    pub newer: Vec<(PathBuf, u32, u32)>,
    /// Bytes that were proven.
    pub checked_bytes: u64,
}

/// A file that is not what was written.
#[derive(Debug)]
pub struct SiteDamage {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub what: String,
    /// Whose it is.
    pub part: SitePart,
}

/// What a file of a site is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SitePart {
    /// The site's own identity.
    Identity,
    /// What is known of a machine.
    Machine(MachineId),
    /// An invitation.
    Invitation,
}

/// Looks at the site in this directory; `None` where there is none.
pub fn inspect(directory: &Path) -> Result<Option<SiteInspection>> {
    if !directory.exists() {
        return Ok(None);
    }
    let mut look = Look { directory, seen: SiteInspection::default() };
    look.machines()?;
    look.invitations()?;
    look.identity()?;
    Ok(Some(look.seen))
}

struct Look<'a> {
    directory: &'a Path,
    seen: SiteInspection,
}

impl Look<'_> {
    fn identity(&mut self) -> Result<()> {
        let identity = self.directory.join("identity");
        if !identity.exists() {
            let is_new = self.seen.machines.is_empty() && self.seen.unused_invitations == 0;
            if !is_new {
                self.damaged(&identity, "the identity is missing", SitePart::Identity);
            }
            return Ok(());
        }
        let known = self.seen.damage.len();
        let path = identity.join("version");
        let stated = self.text(&path)?.map(|text| version::check(&path, &text, VERSION));
        let mut pair = |name: &str| -> Result<(Option<String>, Option<String>)> {
            let certificate = self.text(&identity.join(format!("{name}.cert.pem")))?;
            Ok((certificate, self.text(&identity.join(format!("{name}.key.pem")))?))
        };
        let (authority, authority_key) = pair("authority")?;
        let (server, server_key) = pair("server")?;
        if let Some(authority) = &authority {
            self.certificate(&identity, "authority", authority, authority);
            self.key(&identity, "authority", authority_key.as_ref(), authority);
            if let Some(server) = &server {
                self.certificate(&identity, "server", server, authority);
                self.key(&identity, "server", server_key.as_ref(), server);
            }
            self.seen.fingerprint = certificate::prove(authority, authority)
                .ok()
                .and_then(|()| certificate::der(authority).ok())
                .map(|der| certificate::fingerprint(&der));
        }
        // An identity that is whole as this version is not of another one.
        match stated {
            Some(Err(TransportError::NewerVersion { path, version, known: own })) => {
                if self.seen.damage.len() == known {
                    let what = format!("says version {version}, and is whole as version {own}");
                    self.damaged(&path, what, SitePart::Identity);
                } else {
                    self.seen.damage.truncate(known);
                    self.seen.newer.push((path, version, own));
                }
            }
            Some(Err(error)) => self.take(&path, error, SitePart::Identity)?,
            Some(Ok(())) | None => {}
        }
        Ok(())
    }

    fn certificate(&mut self, identity: &Path, name: &str, text: &str, authority: &str) {
        if let Err(what) = certificate::prove(text, authority) {
            self.damaged(&identity.join(format!("{name}.cert.pem")), what, SitePart::Identity);
        }
    }

    fn key(&mut self, identity: &Path, name: &str, text: Option<&String>, certificate: &str) {
        if let Some(Err(what)) = text.map(|text| certificate::prove_key(text, certificate)) {
            self.damaged(&identity.join(format!("{name}.key.pem")), what, SitePart::Identity);
        }
    }

    fn machines(&mut self) -> Result<()> {
        let directory = self.directory.join("machines");
        for name in self.names(&directory)? {
            let Ok(machine) = name.parse::<MachineId>() else { continue };
            let part = SitePart::Machine(machine);
            let record: Option<MachineRecord> = self.record(&directory.join(name), part)?;
            self.seen.machines.push((machine, record.map(|record| record.name)));
        }
        Ok(())
    }

    fn invitations(&mut self) -> Result<()> {
        let directory = self.directory.join("tokens");
        let names = self.names(&directory)?;
        for name in names.iter().filter(|name| !name.starts_with('.')) {
            let path = directory.join(name);
            if name.ends_with(".used") {
                let _used: Option<UsedRecord> = self.record(&path, SitePart::Invitation)?;
                continue;
            }
            let token: Option<TokenRecord> = self.record(&path, SitePart::Invitation)?;
            let is_used = names.contains(&format!("{name}.used"));
            self.seen.unused_invitations += u64::from(token.is_some() && !is_used);
        }
        Ok(())
    }

    fn record<T: DeserializeOwned>(&mut self, path: &Path, part: SitePart) -> Result<Option<T>> {
        let decoded = load(path, RECORD_LIMIT as u64).and_then(|bytes| {
            self.seen.checked_bytes += bytes.len() as u64;
            decode_record(path, &bytes)
        });
        match decoded {
            Ok(record) => Ok(Some(record)),
            Err(error) => self.take(path, error, part).map(|()| None),
        }
    }

    fn text(&mut self, path: &Path) -> Result<Option<String>> {
        let text = load(path, TEXT_LIMIT).and_then(|bytes| {
            self.seen.checked_bytes += bytes.len() as u64;
            String::from_utf8(bytes).map_err(|error| TransportError::Damaged {
                path: path.to_owned(),
                what: error.to_string(),
            })
        });
        match text {
            Ok(text) => Ok(Some(text)),
            Err(error) => self.take(path, error, SitePart::Identity).map(|()| None),
        }
    }

    fn names(&mut self, directory: &Path) -> Result<Vec<String>> {
        match files::list(directory) {
            Ok(names) => Ok(names),
            Err(error) => self.take(directory, error, SitePart::Identity).map(|()| Vec::new()),
        }
    }

    /// Takes down what an error says of a file. Whoever may not read it learns nothing of it.
    fn take(&mut self, path: &Path, error: TransportError, part: SitePart) -> Result<()> {
        match error {
            TransportError::Damaged { what, .. } => self.damaged(path, what, part),
            TransportError::NewerVersion { version, known, .. } => {
                self.seen.newer.push((path.to_owned(), version, known));
            }
            TransportError::File { source, .. } if source.kind() == ErrorKind::NotFound => {
                self.damaged(path, "the file is missing", part);
            }
            TransportError::File { source, .. } if source.kind() != ErrorKind::PermissionDenied => {
                self.damaged(path, format!("cannot be read: {source}"), part);
            }
            other => return Err(other),
        }
        Ok(())
    }

    fn damaged(&mut self, path: &Path, what: impl Into<String>, part: SitePart) {
        self.seen.damage.push(SiteDamage { path: path.to_owned(), what: what.into(), part });
    }
}

/// A whole small file; one that is too long is not ours.
fn load(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let opened = File::open(path).map_err(files::failed(path, "open"))?;
    opened.take(limit + 1).read_to_end(&mut bytes).map_err(files::failed(path, "read"))?;
    if bytes.len() as u64 > limit {
        let what = format!("more than {limit} bytes");
        return Err(TransportError::Damaged { path: path.to_owned(), what });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Site;
    use crate::enrol::EnrolRequest;
    use std::fs;
    use std::time::Duration;

    fn site(root: &Path) -> MachineId {
        let site = Site::open_or_create(root).unwrap();
        let hour = Duration::from_secs(3600);
        let token = site.invite("t:1", None, hour).unwrap();
        site.invite("t:1", None, hour).unwrap();
        let key = certificate::new_machine_key().unwrap();
        let request = EnrolRequest {
            protocol_version: redoubt_protocol::PROTOCOL_VERSION,
            token_id: token.id,
            secret: token.secret,
            certificate_request: certificate::request(&key).unwrap(),
            host_name: "db-1".into(),
        };
        site.enrol(&request).unwrap().ok().unwrap().machine
    }

    fn files_below(root: &Path) -> Vec<PathBuf> {
        let mut files = Vec::new();
        for name in files::list(root).unwrap() {
            let path = root.join(name);
            if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
        }
        // The lock has no content.
        files.retain(|path| !path.ends_with("lock"));
        files
    }

    #[test]
    fn a_whole_site_is_explained() {
        let root = tempfile::tempdir().unwrap();
        assert!(inspect(&root.path().join("none")).unwrap().is_none());
        let machine = site(root.path());
        let seen = inspect(root.path()).unwrap().unwrap();
        assert!(seen.damage.is_empty() && seen.newer.is_empty(), "{seen:?}");
        assert_eq!(seen.machines, [(machine, Some("db-1".parse().unwrap()))]);
        assert_eq!(seen.unused_invitations, 1);
        let authority = fs::read_to_string(root.path().join("identity/authority.cert.pem"));
        let der = certificate::der(&authority.unwrap()).unwrap();
        assert_eq!(seen.fingerprint, Some(certificate::fingerprint(&der)));
    }

    #[test]
    fn every_flipped_bit_of_every_file_is_found_at_its_file() {
        let root = tempfile::tempdir().unwrap();
        site(root.path());
        let files = files_below(root.path());
        assert_eq!(files.len(), 9);
        for path in files {
            let whole = fs::read(&path).unwrap();
            // Every bit of the small ones, every thirteenth of the texts.
            let step = if whole.len() > 200 { 13 } else { 1 };
            // The end of the version's line means nothing.
            let bytes = if path.ends_with("version") { 1 } else { whole.len() };
            for bit in (0..bytes * 8).step_by(step) {
                let mut flipped = whole.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                fs::write(&path, &flipped).unwrap();
                let seen = inspect(root.path()).unwrap().unwrap();
                let what = format!("bit {bit} of {}", path.display());
                assert!(seen.newer.is_empty(), "{what}: {:?}", seen.newer);
                assert!(seen.damage.iter().any(|found| found.path == path), "{what}");
                // A damaged certificate may cost those that it proves; a record is alone.
                let is_record = !path.starts_with(root.path().join("identity"));
                assert!(!is_record || seen.damage.len() == 1, "{what}");
            }
            fs::write(&path, &whole).unwrap();
        }
        assert!(inspect(root.path()).unwrap().unwrap().damage.is_empty());
    }

    #[test]
    fn what_is_missing_cut_or_too_long_is_found() {
        let root = tempfile::tempdir().unwrap();
        let machine = site(root.path());
        for path in files_below(root.path()) {
            let whole = fs::read(&path).unwrap();
            // Half a version is a whole one without its line's end.
            let half = if path.ends_with("version") { 0 } else { whole.len() / 2 };
            for bytes in [&whole[..0], &whole[..half], &[b'x'; 100_000]] {
                fs::write(&path, bytes).unwrap();
                let seen = inspect(root.path()).unwrap().unwrap();
                let found = seen.damage.iter().any(|found| found.path == path);
                assert!(found || !seen.newer.is_empty(), "{}", path.display());
            }
            fs::write(&path, &whole).unwrap();
        }
        let record = root.path().join(format!("machines/{machine}"));
        fs::write(&record, [1, 2]).unwrap();
        let seen = inspect(root.path()).unwrap().unwrap();
        assert_eq!(seen.damage[0].part, SitePart::Machine(machine));
        assert_eq!(seen.machines, [(machine, None)]);
        fs::remove_dir_all(root.path().join("identity")).unwrap();
        let seen = inspect(root.path()).unwrap().unwrap();
        assert_eq!(seen.damage.last().unwrap().part, SitePart::Identity);
        assert!(seen.fingerprint.is_none());
    }

    #[test]
    fn a_later_version_is_no_damage() {
        let root = tempfile::tempdir().unwrap();
        site(root.path());
        fs::write(root.path().join("identity/version"), "3\n").unwrap();
        fs::remove_file(root.path().join("identity/server.key.pem")).unwrap();
        let seen = inspect(root.path()).unwrap().unwrap();
        assert!(seen.damage.is_empty(), "{:?}", seen.damage);
        assert_eq!((seen.newer.len(), seen.newer[0].1, seen.newer[0].2), (1, 3, 1));
    }
}
