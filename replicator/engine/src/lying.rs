//! A disk that lies, in memory, for tests: what was not synced may or may not outlive a cut of the
//! power, sector by sector and name by name, by a seeded coin. Must never lose what was synced.
//!
//! The model:
//! - Data and a new file's size become durable by the file's `sync`; names by `sync_directory` of a
//!   directory that the change touches (a rename touches two). Neither does the other's work.
//! - At a cut each unsynced sector (512 bytes) becomes one of its contents since the last sync, so
//!   writes tear and pass each other. A file whose size was never synced may come back empty.
//! - Renames are atomic. Changes of the same name stay in order; others are lost independently.
//! - A sync that fails gives its writes up, as Linux does: later syncs succeed without them.
//! - Each request of a batch is an operation of its own, in a random order, so that a cut may come
//!   between them. The operation on which the cut falls may have happened or not.

mod devices;
mod fault;
mod medium;
mod names;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use crate::steps;
use crate::storage::{BlockFile, Open, ReadRequest, Result, Storage, StorageError, WriteRequest};
pub use fault::{Fault, Kind};
use fault::{Harm, fire};
use medium::{Medium, no_space};
use names::{Names, Node};

/// Said of every operation between a cut and the restart, and for ever of older handles.
#[derive(Debug, thiserror::Error)]
#[error("the power of the lying storage was cut: restart it and open the file again")]
struct PowerCut;

/// Whether an operation failed because the power was cut, rather than by a fault.
pub fn is_power_cut(error: &StorageError) -> bool {
    error.source.get_ref().is_some_and(|inner| inner.is::<PowerCut>())
}

/// A directory tree in memory. Clones are the same storage.
#[derive(Clone)]
pub struct LyingStorage {
    state: Arc<Mutex<State>>,
}

struct State {
    rng: StdRng,
    /// Counts cuts: a handle knows the run in which it was opened.
    run: u64,
    powered: bool,
    operations: u64,
    cut_after: Option<u64>,
    capacity: u64,
    faults: Vec<Fault>,
    directories: BTreeSet<PathBuf>,
    /// Removed and not durably so, each with the directories that were below it.
    removed_trees: Vec<(PathBuf, BTreeSet<PathBuf>)>,
    /// What devices are known by.
    identities: BTreeMap<PathBuf, String>,
    names: Names,
    files: BTreeMap<Node, File>,
    next_node: Node,
}

struct File {
    medium: Medium,
    /// Held by each handle as well: a removed file lives while it is open.
    token: Arc<()>,
    /// Held by the handle that claims it, and the run in which it was opened.
    claim: (u64, Weak<()>),
}

impl LyingStorage {
    /// An empty, powered storage without limits; all its coins follow from the seed.
    pub fn new(seed: u64) -> Self {
        let state = State {
            rng: StdRng::seed_from_u64(seed),
            run: 0,
            powered: true,
            operations: 0,
            cut_after: None,
            capacity: 1 << 60,
            faults: Vec::new(),
            directories: BTreeSet::from([PathBuf::new()]),
            removed_trees: Vec::new(),
            identities: BTreeMap::new(),
            names: Names::default(),
            files: BTreeMap::new(),
            next_node: 0,
        };
        LyingStorage { state: Arc::new(Mutex::new(state)) }
    }

    /// Cuts the power now: what is not durable is kept or lost by coin, and every operation fails
    /// until `restart`.
    pub fn crash(&self) {
        self.state().crash();
    }

    /// Lets this many operations pass and cuts the power in the next one.
    pub fn crash_after(&self, operations: u64) {
        let mut state = self.state();
        state.cut_after = Some(state.operations + operations);
    }

    /// Power comes back (after a cut, if there was none yet). Handles from before stay dead; faults
    /// and the capacity stay; an ordered cut that did not come is forgotten.
    pub fn restart(&self) {
        let mut state = self.state();
        if state.powered {
            state.crash();
        }
        state.powered = true;
        state.cut_after = None;
    }

    /// Whether the power is off.
    pub fn is_crashed(&self) -> bool {
        !self.state().powered
    }

    /// Orders a fault.
    pub fn inject(&self, fault: Fault) {
        self.state().faults.push(fault);
    }

    /// Takes back all faults that did not fire, and those that last.
    pub fn clear_faults(&self) {
        self.state().faults.clear();
    }

    /// Limits the bytes that files may take in whole sectors (names take none).
    pub fn set_capacity(&self, bytes: u64) {
        self.state().capacity = bytes;
    }

    /// Operations so far; each request of a batch is one.
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A test's panic elsewhere leaves no half-made change: each is made under one guard.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs one operation of a path.
    fn operate<T>(
        &self,
        path: &Path,
        kind: Kind,
        words: impl FnOnce() -> String,
        effect: impl FnOnce(&mut State, Option<Harm>) -> io::Result<T>,
    ) -> Result<T> {
        let outcome = steps::check_path(path).and_then(|()| self.state().step(path, kind, effect));
        steps::named(path, words, outcome)
    }
}

impl Storage for LyingStorage {
    fn open(&self, path: &Path, how: Open) -> Result<Arc<dyn BlockFile>> {
        let kind = match how {
            Open::ReadOnly | Open::ReadWrite | Open::Claim => Kind::Look,
            Open::CreateSparse(_) | Open::CreateAllocated(_) => Kind::Name,
        };
        let file = self.operate(
            path,
            kind,
            || format!("open as {how:?}"),
            |state, _| {
                let node = match how {
                    Open::ReadOnly | Open::ReadWrite | Open::Claim => state.find(path)?,
                    Open::CreateSparse(size) => state.create(path, size, false)?,
                    Open::CreateAllocated(size) => state.create(path, size, true)?,
                };
                let run = state.run;
                let file = state.files.get_mut(&node).expect("a node that was found has a file");
                let claim = if how == Open::Claim { Some(file.claim(run)?) } else { None };
                Ok(LyingFile {
                    storage: self.clone(),
                    path: path.to_path_buf(),
                    node,
                    run,
                    size: file.medium.size(),
                    writable: how != Open::ReadOnly,
                    _token: file.token.clone(),
                    _claim: claim,
                })
            },
        )?;
        Ok(Arc::new(file))
    }

    fn create_directory(&self, path: &Path) -> Result<()> {
        self.operate(
            path,
            Kind::Name,
            || "create directory".into(),
            |state, _| {
                state.directories.extend(path.ancestors().map(Path::to_path_buf));
                Ok(())
            },
        )
    }

    fn list(&self, path: &Path) -> Result<Vec<String>> {
        self.operate(path, Kind::Look, || "list".into(), |state, _| Ok(state.list(path)))
    }

    fn remove(&self, path: &Path) -> Result<()> {
        self.operate(
            path,
            Kind::Name,
            || "remove".into(),
            |state, _| {
                state.find(path)?;
                state.names.remove(path);
                Ok(())
            },
        )
    }

    fn remove_tree(&self, path: &Path) -> Result<()> {
        self.operate(
            path,
            Kind::Name,
            || "remove with all below it".into(),
            |state, _| state.remove_tree(path),
        )
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        steps::named(to, || "rename to".into(), steps::check_path(to))?;
        self.operate(
            from,
            Kind::Name,
            || format!("rename to {}", to.display()),
            |state, _| {
                let node = state.find(from)?;
                state.check_parent(to)?;
                state.names.rename(from, to, node);
                Ok(())
            },
        )
    }

    fn sync_directory(&self, path: &Path) -> Result<()> {
        self.operate(
            path,
            Kind::Sync,
            || "sync directory".into(),
            |state, harm| {
                if !state.directories.contains(path) {
                    return Err(io::ErrorKind::NotFound.into());
                }
                if harm.is_some() {
                    return Err(eio());
                }
                state.sync_directory(path);
                state.collect();
                Ok(())
            },
        )
    }

    fn load(&self, path: &Path) -> Result<Option<Vec<u8>>> {
        self.operate(
            path,
            Kind::Read,
            || "load".into(),
            |state, harm| {
                let Some(node) = state.names.find(path) else { return Ok(None) };
                let size = state.files[&node].medium.size();
                let mut bytes = vec![0; usize::try_from(size).map_err(io::Error::other)?];
                state.read(node, 0, &mut bytes, harm);
                Ok(Some(bytes))
            },
        )
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        steps::replace(self, path, bytes)
    }

    fn free_space(&self) -> Result<u64> {
        let root = Path::new("");
        self.operate(root, Kind::Look, || "ask for free space".into(), |state, _| Ok(state.free()))
    }
}

struct LyingFile {
    storage: LyingStorage,
    path: PathBuf,
    node: Node,
    run: u64,
    size: u64,
    writable: bool,
    _token: Arc<()>,
    _claim: Option<Arc<()>>,
}

impl LyingFile {
    fn operate<T>(
        &self,
        kind: Kind,
        words: impl FnOnce() -> String,
        effect: impl FnOnce(&mut State, Option<Harm>) -> io::Result<T>,
    ) -> Result<T> {
        let outcome = {
            let mut state = self.storage.state();
            if state.run != self.run {
                Err(power_cut())
            } else if kind == Kind::Write && !self.writable {
                Err(io::Error::from_raw_os_error(libc::EBADF))
            } else {
                state.step(&self.path, kind, effect)
            }
        };
        steps::named(&self.path, words, outcome)
    }

    fn shuffled(&self, length: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..length).collect();
        order.shuffle(&mut self.storage.state().rng);
        order
    }
}

impl BlockFile for LyingFile {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, batch: &mut [ReadRequest<'_>]) -> Result<()> {
        for index in self.shuffled(batch.len()) {
            let ReadRequest { offset, buffer } = &mut batch[index];
            let (offset, length) = (*offset, buffer.len());
            self.operate(
                Kind::Read,
                || format!("read {length} bytes at {offset}"),
                |state, harm| {
                    steps::check_range(self.size, offset, length as u64)?;
                    state.read(self.node, offset, buffer, harm);
                    Ok(())
                },
            )?;
        }
        Ok(())
    }

    fn write(&self, batch: &[WriteRequest<'_>]) -> Result<()> {
        for index in self.shuffled(batch.len()) {
            let WriteRequest { offset, data } = batch[index];
            let length = data.len() as u64;
            self.operate(
                Kind::Write,
                || format!("write {length} bytes at {offset}"),
                |state, harm| {
                    steps::check_range(self.size, offset, length)?;
                    state.write(self.node, offset, data, harm)
                },
            )?;
        }
        Ok(())
    }

    fn zero(&self, offset: u64, length: u64) -> Result<()> {
        self.operate(
            Kind::Write,
            || format!("zero {length} bytes at {offset}"),
            |state, _| {
                steps::check_range(self.size, offset, length)?;
                state.medium(self.node).zero(offset, length);
                Ok(())
            },
        )
    }

    fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>> {
        self.operate(
            Kind::Look,
            || format!("look for data at {offset}"),
            |state, _| {
                // A device does not say where it holds nothing.
                let left = self.size.saturating_sub(offset);
                match self.path.is_absolute() {
                    true => Ok((left > 0).then_some((offset, left))),
                    false => Ok(state.medium(self.node).next_data(offset)),
                }
            },
        )
    }

    fn sync(&self) -> Result<()> {
        self.operate(
            Kind::Sync,
            || "sync".into(),
            |state, harm| {
                let medium = state.medium(self.node);
                if harm.is_some() {
                    medium.sync_failed();
                    return Err(eio());
                }
                medium.sync();
                Ok(())
            },
        )
    }

    fn identity(&self) -> Result<Option<String>> {
        self.operate(
            Kind::Look,
            || "ask for its identity".into(),
            |state, _| Ok(state.identities.get(&self.path).cloned()),
        )
    }
}

impl State {
    /// Counts an operation and lets it happen, fail by a fault, or meet the cut.
    fn step<T>(
        &mut self,
        path: &Path,
        kind: Kind,
        effect: impl FnOnce(&mut State, Option<Harm>) -> io::Result<T>,
    ) -> io::Result<T> {
        if !self.powered {
            return Err(power_cut());
        }
        if self.cut_after.is_some_and(|limit| self.operations >= limit) {
            if self.rng.random_bool(0.5) {
                // Whether it worked or not: nobody hears of it.
                effect(self, None).ok();
            }
            self.crash();
            return Err(power_cut());
        }
        self.operations += 1;
        match fire(&mut self.faults, path, kind) {
            // A failing sync has an effect of its own.
            Some(Harm::Eio) if kind == Kind::Sync => effect(self, Some(Harm::Eio)),
            Some(Harm::Eio) => Err(eio()),
            Some(Harm::Enospc) => Err(no_space()),
            harm => effect(self, harm),
        }
    }

    fn crash(&mut self) {
        if !self.powered {
            return;
        }
        self.powered = false;
        self.run += 1;
        self.names.crash(&mut self.rng);
        // What comes back of a removed tree comes back with its directories.
        self.removed_trees.clear();
        let parents = self.names.iter().flat_map(|(name, _)| name.ancestors().skip(1));
        self.directories.extend(parents.map(Path::to_path_buf));
        for file in self.files.values_mut() {
            file.medium.crash(&mut self.rng);
            // The handles are dead: they hold nothing any more.
            file.token = Arc::new(());
        }
        self.collect();
    }

    fn find(&self, path: &Path) -> io::Result<Node> {
        self.names.find(path).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn check_parent(&self, path: &Path) -> io::Result<()> {
        if self.directories.contains(steps::parent(path)) {
            return Ok(());
        }
        Err(io::ErrorKind::NotFound.into())
    }

    fn remove_tree(&mut self, path: &Path) -> io::Result<()> {
        if !self.directories.contains(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let names = self.names.iter().map(|(name, _)| name.clone());
        let names: Vec<PathBuf> = names.filter(|name| name.starts_with(path)).collect();
        names.iter().for_each(|name| self.names.remove(name));
        let (gone, kept) =
            std::mem::take(&mut self.directories).into_iter().partition(|it| it.starts_with(path));
        self.directories = kept;
        self.removed_trees.push((path.to_owned(), gone));
        Ok(())
    }

    /// The names in the directory are durable then, and the trees that were removed from it.
    fn sync_directory(&mut self, path: &Path) {
        self.names.sync(path);
        let removed = self.removed_trees.extract_if(.., |(root, _)| steps::parent(root) == path);
        for directory in removed.flat_map(|(_, directories)| directories) {
            self.names.sync(&directory);
        }
    }

    fn create(&mut self, path: &Path, size: u64, reserved: bool) -> io::Result<Node> {
        self.check_parent(path)?;
        if self.names.find(path).is_some() || self.directories.contains(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let medium = Medium::new(size, reserved);
        if medium.space() > self.free() {
            return Err(no_space());
        }
        let node = self.next_node;
        self.next_node += 1;
        self.files.insert(node, File::new(medium));
        self.names.create(path, node);
        Ok(node)
    }

    fn list(&self, path: &Path) -> Vec<String> {
        let files = self.names.iter().map(|(name, _)| name);
        let mut names: Vec<String> = files
            .chain(&self.directories)
            .filter(|name| name.parent() == Some(path))
            .filter_map(|name| name.file_name())
            .filter(|name| steps::is_listed(name))
            .map(|name| name.to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    fn read(&mut self, node: Node, offset: u64, buffer: &mut [u8], harm: Option<Harm>) {
        if harm == Some(Harm::BitFlip) {
            self.flip_bit(node, offset, buffer.len());
        }
        self.medium(node).read(offset, buffer);
    }

    fn write(
        &mut self,
        node: Node,
        offset: u64,
        data: &[u8],
        harm: Option<Harm>,
    ) -> io::Result<()> {
        if self.medium(node).growth(offset, data.len() as u64) > self.free() {
            return Err(no_space());
        }
        self.medium(node).write(offset, data);
        if harm == Some(Harm::BitFlip) {
            self.flip_bit(node, offset, data.len());
        }
        Ok(())
    }

    fn flip_bit(&mut self, node: Node, offset: u64, length: usize) {
        let medium = &mut self.files.get_mut(&node).expect("an open file is kept").medium;
        medium.flip_bit(offset, length as u64, &mut self.rng);
    }

    fn medium(&mut self, node: Node) -> &mut Medium {
        &mut self.files.get_mut(&node).expect("an open file is kept").medium
    }

    /// A removed file gives its space back when its last handle is closed.
    fn free(&self) -> u64 {
        let named: BTreeSet<Node> = self.names.iter().map(|(_, node)| node).collect();
        let taken: u64 = self
            .files
            .iter()
            .filter(|(node, file)| named.contains(node) || Arc::strong_count(&file.token) > 1)
            .map(|(_, file)| file.medium.space())
            .sum();
        self.capacity.saturating_sub(taken)
    }

    /// Forgets files that no name leads to, now or after a cut, and that nobody holds.
    fn collect(&mut self) {
        let names = &self.names;
        self.files.retain(|node, file| Arc::strong_count(&file.token) > 1 || names.mention(*node));
    }
}

fn power_cut() -> io::Error {
    io::Error::other(PowerCut)
}

fn eio() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}
