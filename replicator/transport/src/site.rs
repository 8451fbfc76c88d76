//! A site's identity at its target, on disk: the authority, the invitations and the machines that
//! joined. Several processes may use one directory at a time; a token is never good twice, whatever
//! is cut when.
//!
//! ```text
//! <directory>/             0700
//!   identity/              made once, whole, under another name, then renamed
//!     version  authority.{cert,key}.pem  server.{cert,key}.pem
//!   tokens/<id>            an invitation: hash of its secret, expiry, name
//!   tokens/<id>.used       who used it; created before anything is answered, and never twice
//!   machines/<machine id>  name and frame key of a machine that joined
//!   lock                   held while a machine is taken in: no two get one name
//! ```
//!
//! A record of tokens/ or machines/ is bincode, the version first, and from version 2 on the first
//! four bytes of the BLAKE3 of all before them.

mod invitations;

use crate::certificate::{self, Pair};
use crate::enrol::{EnrolAnswer, EnrolRefusal, EnrolRefusalCode, EnrolRequest};
use crate::error::{Result, TransportError};
use crate::files;
use crate::token::Token;
use crate::version;
use redoubt_log::codec::{decode_bounded, encode_bounded};
use redoubt_log::frame::FrameKey;
use redoubt_log::{MachineId, Name};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use subtle::ConstantTimeEq;

/// Version of the identity. Version 1: the first.
pub(crate) const VERSION: u32 = 1;

/// Version of each record. Version 1 had no checksum; it is still read.
const RECORD_VERSION: u8 = 2;

/// Bytes of a record's checksum.
const CHECKSUM_BYTES: usize = 4;

/// Largest record in bytes: a name and a few hashes.
const RECORD_LIMIT: usize = 4096;

/// A site's identity at its target.
pub struct Site {
    directory: PathBuf,
    authority: Pair,
    server: Pair,
}

/// A machine that joined the site.
#[derive(Clone, Debug)]
pub struct EnrolledMachine {
    /// For ever.
    pub machine: MachineId,
    /// Its name: the inviter's choice, else its host name as far as that is one.
    pub name: Name,
    /// Proves its frames.
    pub frame_key: FrameKey,
}

#[derive(Serialize, Deserialize)]
struct TokenRecord {
    version: u8,
    secret_hash: [u8; 32],
    expires_seconds: u64,
    machine: Option<Name>,
}

#[derive(Serialize, Deserialize)]
struct UsedRecord {
    version: u8,
    key_hash: [u8; 32],
    machine: MachineId,
}

#[derive(Serialize, Deserialize)]
struct MachineRecord {
    version: u8,
    name: Name,
    frame_key: [u8; 32],
}

impl Site {
    /// Opens the site's identity, or makes it where there is none.
    pub fn open_or_create(directory: &Path) -> Result<Self> {
        Self::open_or_create_until(directory, certificate::end_of_validity())
    }

    pub(crate) fn open_or_create_until(directory: &Path, until: SystemTime) -> Result<Self> {
        files::create_directory(directory)?;
        files::create_directory(&directory.join("tokens"))?;
        files::create_directory(&directory.join("machines"))?;
        if !directory.join("identity").exists() {
            create_identity(directory, until)?;
        }
        Self::open(directory)
    }

    /// Opens a site's identity that is there, e.g. beside a running target.
    pub fn open(directory: &Path) -> Result<Self> {
        let identity = directory.join("identity");
        let path = identity.join("version");
        version::check(&path, &files::load_text(&path)?, VERSION)?;
        let pair = |name: &str| -> Result<Pair> {
            Ok(Pair {
                certificate: files::load_text(&identity.join(format!("{name}.cert.pem")))?,
                key: files::load_text(&identity.join(format!("{name}.key.pem")))?,
            })
        };
        let (authority, server) = (pair("authority")?, pair("server")?);
        Ok(Self { directory: directory.to_owned(), authority, server })
    }

    /// Invites one machine to the target at `address` (host and port, as machines reach it).
    ///
    /// # Errors
    /// [`TransportError::NameTaken`] where a machine of that name has joined.
    pub fn invite(&self, address: &str, machine: Option<Name>, expires: Duration) -> Result<Token> {
        if let Some(name) = &machine
            && self.has_joined(name)?
        {
            return Err(TransportError::NameTaken { name: name.clone() });
        }
        let authority = certificate::der(&self.authority.certificate)?;
        let token = Token {
            address: address.to_owned(),
            fingerprint: certificate::fingerprint(&authority),
            id: rand::random(),
            secret: rand::random(),
            machine: machine.clone(),
        };
        let record = TokenRecord {
            version: RECORD_VERSION,
            secret_hash: secret_hash(&token.secret),
            // From the end of the second that has begun: no token is good for less than it says.
            expires_seconds: seconds_now()
                .saturating_add(expires.as_secs())
                .saturating_add(u64::from(!expires.is_zero())),
            machine,
        };
        create_record(&self.token_path(&token.id, ""), &record)?;
        Ok(token)
    }

    /// The machines that joined, in order. What is known of one may be damaged while all others
    /// are well.
    pub fn machines(&self) -> Result<Vec<MachineId>> {
        let names = files::list(&self.directory.join("machines"))?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// A machine that joined, or `None`.
    pub fn machine(&self, machine: MachineId) -> Result<Option<EnrolledMachine>> {
        let record: Option<MachineRecord> = load_record(&self.machine_path(machine))?;
        Ok(record.map(|record| EnrolledMachine {
            machine,
            name: record.name,
            frame_key: FrameKey::new(record.frame_key),
        }))
    }

    /// Whether a machine of this name has joined. One whose record is damaged has no name here; its
    /// store still holds its name against another's.
    pub fn has_joined(&self, name: &Name) -> Result<bool> {
        let is_called = |machine| match self.machine(machine) {
            Ok(known) => Ok(known.is_some_and(|known| known.name == *name)),
            Err(TransportError::Damaged { .. }) => Ok(false),
            Err(error) => Err(error),
        };
        let found = self.machines()?.into_iter().map(is_called).find(|is| !matches!(is, Ok(false)));
        found.unwrap_or(Ok(false))
    }

    /// Shuts a machine out: its certificate, and the token that it came with, are worth nothing
    /// from here on. Fine where it is shut out already.
    pub fn remove_machine(&self, machine: MachineId) -> Result<()> {
        self.forget_tokens_of(machine)?;
        let path = self.machine_path(machine);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(files::failed(&path, "remove")(error))
            }
            _ => files::sync_parent(&path),
        }
    }

    pub(crate) fn authority(&self) -> &Pair {
        &self.authority
    }

    pub(crate) fn server(&self) -> &Pair {
        &self.server
    }

    /// Takes a machine in, if its token is good and its name free. The token is used up on disk
    /// before the answer exists, and by nothing else; the same key with the same token gets the
    /// same answer again, in case the first was lost. Who does not know the secret learns nothing.
    pub(crate) fn enrol(
        &self,
        request: &EnrolRequest,
    ) -> Result<std::result::Result<EnrolAnswer, EnrolRefusal>> {
        use EnrolRefusalCode::{Expired, Malformed, NameTaken, Unknown, Used, WrongSecret};
        let refuse = |code, text: &str| Ok(Err(EnrolRefusal { code, text: text.to_owned() }));
        let again = "make a new one with `redoubt invite`";
        let Some(token) = load_record::<TokenRecord>(&self.token_path(&request.token_id, ""))?
        else {
            return refuse(Unknown, &format!("the token is not known here; {again}"));
        };
        let given = secret_hash(&request.secret);
        if !bool::from(given.ct_eq(&token.secret_hash)) {
            return refuse(WrongSecret, &format!("the token's secret is wrong; {again}"));
        }
        let Ok(key_hash) = certificate::requested_key(&request.certificate_request) else {
            return refuse(Malformed, "the certificate request cannot be read");
        };
        let _alone = files::lock(&self.directory.join("lock"))?;
        let used_path = self.token_path(&request.token_id, ".used");
        let used = load_record::<UsedRecord>(&used_path)?;
        if used.as_ref().is_some_and(|used| used.key_hash != key_hash) {
            return refuse(Used, &format!("the token was used by another machine; {again}"));
        }
        if used.is_none() && token.expires_seconds <= seconds_now() {
            return refuse(Expired, &format!("the token has expired; {again}"));
        }
        let name = match token.machine.or_else(|| as_name(&request.host_name)) {
            Some(name) => name,
            None => return refuse(Malformed, "the host name is no name: invite with --machine"),
        };
        let machine = used.as_ref().map_or_else(MachineId::random, |used| used.machine);
        if self.machine(machine)?.is_none() && self.has_joined(&name)? {
            let text = format!(
                "another machine of its site is called {name}; invite this one by another name, \
                 with `redoubt invite --machine OTHER`"
            );
            return refuse(NameTaken, &text);
        }
        let claim = UsedRecord { version: RECORD_VERSION, key_hash, machine };
        if used.is_none() && !create_record(&used_path, &claim)? {
            return refuse(Used, &format!("the token was used by another machine; {again}"));
        }
        self.answer(request, machine, name).map(Ok)
    }

    fn answer(
        &self,
        request: &EnrolRequest,
        machine: MachineId,
        name: Name,
    ) -> Result<EnrolAnswer> {
        let record = MachineRecord { version: RECORD_VERSION, name, frame_key: rand::random() };
        let path = self.machine_path(machine);
        create_record(&path, &record)?;
        let record = load_record::<MachineRecord>(&path)?.unwrap_or(record);
        let certificate = certificate::sign_machine(
            &self.authority,
            &request.certificate_request,
            machine,
            certificate::end_of_validity(),
        )?;
        Ok(EnrolAnswer {
            machine,
            name: record.name,
            certificate,
            authority: self.authority.certificate.clone(),
            frame_key: record.frame_key,
        })
    }

    fn token_path(&self, id: &[u8; 16], suffix: &str) -> PathBuf {
        let id = uuid::Uuid::from_bytes(*id).simple();
        self.directory.join("tokens").join(format!("{id}{suffix}"))
    }

    fn machine_path(&self, machine: MachineId) -> PathBuf {
        self.directory.join("machines").join(machine.to_string())
    }
}

fn create_identity(directory: &Path, until: SystemTime) -> Result<()> {
    let authority = certificate::new_authority(until)?;
    let server = certificate::new_server(&authority, until)?;
    let unique = uuid::Uuid::new_v4().simple().to_string();
    let beside = directory.join(format!(".identity-{unique}"));
    files::create_directory(&beside)?;
    for (name, text) in [
        ("authority.cert.pem", &authority.certificate),
        ("authority.key.pem", &authority.key),
        ("server.cert.pem", &server.certificate),
        ("server.key.pem", &server.key),
        ("version", &format!("{VERSION}\n")),
    ] {
        files::replace(&beside.join(name), text.as_bytes())?;
    }
    let identity = directory.join("identity");
    if let Err(error) = fs::rename(&beside, &identity) {
        // Another process was faster: its identity counts.
        fs::remove_dir_all(&beside).map_err(files::failed(&beside, "remove"))?;
        if !identity.exists() {
            return Err(files::failed(&identity, "create")(error));
        }
    }
    files::sync_parent(&identity)
}

fn create_record<T: Serialize>(path: &Path, record: &T) -> Result<bool> {
    let mut bytes = encode_bounded(record, RECORD_LIMIT)
        .map_err(|error| TransportError::setup("encode a record", error))?;
    bytes.extend(checksum(&bytes));
    files::create(path, &bytes)
}

fn load_record<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    files::load(path)?.map(|bytes| decode_record(path, &bytes)).transpose()
}

fn decode_record<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T> {
    let damaged = |what: String| TransportError::Damaged { path: path.to_owned(), what };
    let fields = record_fields(path, bytes)?;
    decode_bounded(fields, RECORD_LIMIT).map_err(|error| damaged(error.to_string()))
}

/// The bytes of a record without its checksum, once that is right.
fn record_fields<'a>(path: &Path, bytes: &'a [u8]) -> Result<&'a [u8]> {
    let damaged = |what: &str| TransportError::Damaged { path: path.to_owned(), what: what.into() };
    let [version, rest @ ..] = bytes else { return Err(damaged("the record is empty")) };
    let Some((fields, sum)) = bytes.split_last_chunk::<CHECKSUM_BYTES>() else {
        return Err(damaged("the record is cut off"));
    };
    match *version {
        1 => Ok(bytes),
        RECORD_VERSION if checksum(fields) == *sum => Ok(fields),
        later if later > RECORD_VERSION && !is_record_but_for_version(rest) => {
            Err(version::newer(path, u32::from(later), u32::from(RECORD_VERSION)))
        }
        _ => Err(damaged("the record's checksum does not match")),
    }
}

/// Whether a record of a seemingly later version is one of this version whose first byte changed.
fn is_record_but_for_version(rest: &[u8]) -> bool {
    let mut bytes = vec![RECORD_VERSION];
    bytes.extend(rest);
    bytes.split_last_chunk::<CHECKSUM_BYTES>().is_some_and(|(fields, sum)| checksum(fields) == *sum)
}

fn checksum(fields: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let hash = blake3::hash(fields);
    *hash.as_bytes().first_chunk().expect("a BLAKE3 hash has 32 bytes")
}

fn secret_hash(secret: &[u8; 16]) -> [u8; 32] {
    *blake3::hash(secret).as_bytes()
}

/// The host name as a machine's name: without its domain, in small letters.
fn as_name(host_name: &str) -> Option<Name> {
    let first = host_name.split('.').next().unwrap_or_default();
    first.to_ascii_lowercase().parse().ok()
}

fn seconds_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

pub mod inspection;
#[cfg(test)]
mod tests;
