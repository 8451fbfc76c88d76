//! The names of the lying storage: what its readers see, and what a cut may take back. Changes of
//! one name stay in order; beyond that any of them may be lost. Must never make a second link.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rand::Rng;
use rand::rngs::StdRng;

use crate::steps::parent;

/// The number of a file, whatever its names.
pub(super) type Node = u64;

/// A change of names, not durable before a sync of a directory that it touches.
enum Change {
    Created {
        path: PathBuf,
        node: Node,
    },
    Removed {
        path: PathBuf,
    },
    /// Atomic, also between two directories, as a journalling file system has it.
    Renamed {
        from: PathBuf,
        to: PathBuf,
        node: Node,
    },
}

impl Change {
    fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        let (first, second) = match self {
            Change::Created { path, .. } | Change::Removed { path } => (path, None),
            Change::Renamed { from, to, .. } => (from, Some(to)),
        };
        std::iter::once(first).chain(second)
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, Node>) {
        match self {
            Change::Created { path, node } => {
                names.insert(path.clone(), *node);
            }
            Change::Removed { path } => {
                names.remove(path);
            }
            Change::Renamed { from, to, node } => {
                names.remove(from);
                names.insert(to.clone(), *node);
            }
        }
    }
}

/// All names of files.
#[derive(Default)]
pub(super) struct Names {
    current: BTreeMap<PathBuf, Node>,
    durable: BTreeMap<PathBuf, Node>,
    pending: Vec<Change>,
}

impl Names {
    pub(super) fn find(&self, path: &Path) -> Option<Node> {
        self.current.get(path).copied()
    }

    /// What is seen now, in order of names.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&PathBuf, Node)> {
        self.current.iter().map(|(path, node)| (path, *node))
    }

    /// Whether a name seen now, or one that a cut may bring back, leads to the node.
    pub(super) fn mention(&self, node: Node) -> bool {
        let pending = self.pending.iter().any(|change| match change {
            Change::Created { node: named, .. } | Change::Renamed { node: named, .. } => {
                *named == node
            }
            Change::Removed { .. } => false,
        });
        pending || self.current.values().chain(self.durable.values()).any(|named| *named == node)
    }

    pub(super) fn create(&mut self, path: &Path, node: Node) {
        self.change(Change::Created { path: path.into(), node });
    }

    /// A device is there, or another stands in its place: nothing of that is lost by a cut.
    pub(super) fn plug_in(&mut self, path: &Path, node: Node) {
        self.current.insert(path.into(), node);
        self.durable.insert(path.into(), node);
    }

    /// Two devices change their paths.
    pub(super) fn swap(&mut self, first: &Path, second: &Path) {
        for names in [&mut self.current, &mut self.durable] {
            let nodes = (names.remove(first), names.remove(second));
            names.extend(nodes.0.map(|node| (second.to_owned(), node)));
            names.extend(nodes.1.map(|node| (first.to_owned(), node)));
        }
    }

    pub(super) fn remove(&mut self, path: &Path) {
        self.change(Change::Removed { path: path.into() });
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path, node: Node) {
        if from != to {
            self.change(Change::Renamed { from: from.into(), to: to.into(), node });
        }
    }

    /// Makes durable what touches the directory, and what that builds upon.
    pub(super) fn sync(&mut self, directory: &Path) {
        let mut needed: Vec<PathBuf> = Vec::new();
        let mut chosen: Vec<bool> = Vec::new();
        for change in self.pending.iter().rev() {
            let touches = change.paths().any(|p| parent(p) == directory || needed.contains(p));
            if touches {
                needed.extend(change.paths().cloned());
            }
            chosen.push(touches);
        }
        // Chosen from the last to the first, so taken from the end.
        for change in std::mem::take(&mut self.pending) {
            if chosen.pop() == Some(true) {
                change.apply(&mut self.durable);
            } else {
                self.pending.push(change);
            }
        }
    }

    /// Keeps or loses each pending change by coin; one that builds upon a lost one is lost as well.
    pub(super) fn crash(&mut self, rng: &mut StdRng) {
        let keep = [0.0, 0.5, 0.9, 1.0][rng.random_range(0..4)];
        let mut lost: Vec<PathBuf> = Vec::new();
        for change in std::mem::take(&mut self.pending) {
            if change.paths().any(|path| lost.contains(path)) || !rng.random_bool(keep) {
                lost.extend(change.paths().cloned());
            } else {
                change.apply(&mut self.durable);
            }
        }
        self.current = self.durable.clone();
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.current);
        self.pending.push(change);
    }
}
