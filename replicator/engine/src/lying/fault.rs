//! Faults that a test orders: which operations fail, how and when. Must never fire on its own.

use std::path::Path;

/// What an operation does, as far as faults choose by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Reads of files, whole ones as well.
    Read,
    /// Writes and zeroing.
    Write,
    /// Syncs of files and directories.
    Sync,
    /// Opening, listing, and asking for free space or data.
    Look,
    /// Creating, renaming, removing.
    Name,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Harm {
    Eio,
    Enospc,
    BitFlip,
}

/// An ordered fault. It fires once, on the first operation that fits, unless told otherwise.
#[derive(Clone, Debug)]
pub struct Fault {
    pub(super) harm: Harm,
    path: String,
    kind: Option<Kind>,
    passing: u64,
    lasting: bool,
}

impl Fault {
    /// Operations on paths that contain `path` fail with EIO. A failing sync gives up what it
    /// should have made durable: readers still see it, and later syncs succeed without it.
    pub fn eio(path: impl Into<String>) -> Self {
        Self::new(Harm::Eio, path.into())
    }

    /// Writes, creations and renames on paths that contain `path` fail with ENOSPC.
    pub fn enospc(path: impl Into<String>) -> Self {
        Self::new(Harm::Enospc, path.into())
    }

    /// One stored bit flips, unsaid, in what an operation on a path that contains `path` reads or
    /// has just written.
    pub fn bit_flip(path: impl Into<String>) -> Self {
        Self::new(Harm::BitFlip, path.into())
    }

    /// Lets this many fitting operations pass first.
    pub fn after(mut self, operations: u64) -> Self {
        self.passing = operations;
        self
    }

    /// Fits only operations of this kind.
    pub fn on(mut self, kind: Kind) -> Self {
        self.kind = Some(kind);
        self
    }

    /// Fires on every fitting operation, until `clear_faults`.
    pub fn lasting(mut self) -> Self {
        self.lasting = true;
        self
    }

    fn new(harm: Harm, path: String) -> Self {
        Fault { harm, path, kind: None, passing: 0, lasting: false }
    }

    fn fits(&self, path: &Path, kind: Kind) -> bool {
        let possible = match self.harm {
            Harm::Eio => true,
            Harm::Enospc => matches!(kind, Kind::Write | Kind::Name),
            Harm::BitFlip => matches!(kind, Kind::Read | Kind::Write),
        };
        possible
            && self.kind.is_none_or(|wanted| wanted == kind)
            && path.to_string_lossy().contains(&self.path)
    }
}

/// The first fault that fires on this operation; one that does not last is used up by it.
pub(super) fn fire(faults: &mut Vec<Fault>, path: &Path, kind: Kind) -> Option<Harm> {
    let mut fired = None;
    for (index, fault) in faults.iter_mut().enumerate() {
        if !fault.fits(path, kind) {
            continue;
        }
        if fault.passing > 0 {
            fault.passing -= 1;
        } else if fired.is_none() {
            fired = Some((index, fault.harm, fault.lasting));
        }
    }
    let (index, harm, lasting) = fired?;
    if !lasting {
        faults.remove(index);
    }
    Some(harm)
}
