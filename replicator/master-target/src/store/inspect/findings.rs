//! What an inspection has found so far, and how far it has come. It judges nothing: what damage
//! means is told by `harm`.

use crate::store::error::{Result, StoreError};
use crate::store::manifest::RetentionSpan;
use redoubt_engine::storage::StorageError;
use redoubt_log::{ByteRange, DiskIndex, Sequence};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Damaged places named one by one in a file; the others are counted, for a file that is damaged
/// all over would fill the memory with its damage.
const PLACES_PER_FILE: usize = 16;

/// What damage touches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Harm {
    /// All that only the manifest knows.
    Manifest,
    /// A replica disk.
    Replica(DiskIndex),
    /// Records of the journal.
    Positions(LostRecords),
    /// Old content: of one range where that is known, else all of the file's.
    Content {
        /// The file's interval and disks.
        span: RetentionSpan,
        /// The range, where it is known.
        range: Option<(DiskIndex, ByteRange)>,
    },
}

/// Records that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LostRecords {
    /// The last whole record before them, where that is known.
    pub(super) after: Option<Sequence>,
    /// The last of them, where a whole record follows.
    pub(super) until: Option<Sequence>,
    /// Whether a target would still read them.
    pub(super) is_needed: bool,
}

/// A place that does not hold what was written to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) path: PathBuf,
    pub(super) byte: u64,
    pub(super) what: String,
    pub(super) harm: Harm,
}

/// A file of a later release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Newer {
    pub(super) path: PathBuf,
    pub(super) version: u32,
    pub(super) known: u32,
}

/// What was found at one machine.
pub(super) struct Findings<'a> {
    pub(super) progress: Progress<'a>,
    pub(super) damage: Vec<Found>,
    pub(super) newer: Vec<Newer>,
    /// Places of the file that is looked at, named or not.
    places: Option<usize>,
}

impl<'a> Findings<'a> {
    pub(super) fn new(progress: Progress<'a>) -> Self {
        Self { progress, damage: Vec::new(), newer: Vec::new(), places: None }
    }

    /// Begins with a file of so many bytes.
    pub(super) fn begin_file(&mut self, bytes: u64) {
        self.places = Some(0);
        self.progress.begin_file(bytes);
    }

    /// Takes down a damaged place, unless the file has too many.
    pub(super) fn damaged(&mut self, found: Found) {
        let places = self.places.as_mut().map_or(0, |places| {
            *places += 1;
            *places
        });
        if places <= PLACES_PER_FILE {
            self.damage.push(found);
        }
    }

    /// Ends with a file. Places that were not named count as `harm`, the most that they can mean.
    pub(super) fn end_file(&mut self, path: &Path, harm: Harm) {
        let unnamed = self.places.take().unwrap_or(0).saturating_sub(PLACES_PER_FILE);
        if unnamed > 0 {
            let byte = self.damage.last().map_or(0, |found| found.byte);
            let what = format!("{unnamed} more places behind this one are damaged");
            self.damage.push(Found { path: path.to_owned(), byte, what, harm });
        }
        self.progress.end_file();
    }

    /// Takes down what an error says of a file, read at `byte`. Only what prevents the inspection
    /// as a whole remains an error.
    pub(super) fn take(
        &mut self,
        path: &Path,
        byte: u64,
        error: StoreError,
        harm: Harm,
    ) -> Result<()> {
        let (byte, what) = match error {
            StoreError::Damaged { position, what, .. } => (position, what),
            StoreError::NewerVersion { version, known, .. } => {
                self.newer.push(Newer { path: path.to_owned(), version, known });
                return Ok(());
            }
            StoreError::Storage(error) => (byte, unreadable(error)?),
            other => return Err(other),
        };
        self.damaged(Found { path: path.to_owned(), byte, what, harm });
        Ok(())
    }
}

/// What a failed look at a file says of it. Whoever may not read it learns nothing of it.
fn unreadable(error: StorageError) -> Result<String> {
    match error.source.kind() {
        ErrorKind::PermissionDenied => Err(error.into()),
        ErrorKind::NotFound => Ok("the file is missing".to_owned()),
        _ => Ok(format!("cannot be read: {}: {}", error.operation, error.source)),
    }
}

/// Whether the error says that there is no such file.
pub(super) fn is_missing(error: &StoreError) -> bool {
    matches!(error, StoreError::Storage(error) if error.source.kind() == ErrorKind::NotFound)
}

/// How far an inspection has come.
pub(super) struct Progress<'a> {
    total: u64,
    done: u64,
    file_end: u64,
    checked: u64,
    tell: &'a mut dyn FnMut(u64, u64),
}

impl<'a> Progress<'a> {
    pub(super) fn new(total: u64, tell: &'a mut dyn FnMut(u64, u64)) -> Self {
        Self { total, done: 0, file_end: 0, checked: 0, tell }
    }

    /// So many bytes were checked.
    pub(super) fn checked(&mut self, bytes: u64) {
        self.checked += bytes;
        self.done = self.done.saturating_add(bytes).min(self.file_end);
        self.tell();
    }

    /// Bytes checked so far.
    pub(super) fn checked_bytes(&self) -> u64 {
        self.checked
    }

    fn begin_file(&mut self, bytes: u64) {
        self.file_end = self.done.saturating_add(bytes);
    }

    /// What of the file was empty needed no look.
    fn end_file(&mut self) {
        self.done = self.file_end;
        self.tell();
    }

    fn tell(&mut self) {
        (self.tell)(self.done, self.total.max(self.done));
    }
}
