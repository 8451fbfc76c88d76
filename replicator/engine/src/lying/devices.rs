//! Block devices of the lying storage: an absolute path names one. What is plugged in or changes
//! its path does so for certain; what is written to a device is lost by cuts as of any file.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::medium::Medium;
use super::{File, LyingStorage};

impl LyingStorage {
    /// Puts a block device of zeros at an absolute path, known by this; in the place of another
    /// where one is there.
    pub fn plug_in(&self, path: &Path, size: u64, identity: Option<&str>) {
        let mut state = self.state();
        let node = state.next_node;
        state.next_node += 1;
        let mut medium = Medium::new(size, true);
        medium.sync();
        state.files.insert(node, File::new(medium));
        state.names.plug_in(path, node);
        state.identities.remove(path);
        state.identities.extend(identity.map(|known| (path.to_owned(), known.to_owned())));
    }

    /// Two devices change their paths, as devices do at a reboot.
    pub fn swap_devices(&self, first: &Path, second: &Path) {
        let mut state = self.state();
        state.names.swap(first, second);
        let known = [first, second].map(|path| state.identities.remove(path));
        for (path, known) in [second, first].into_iter().zip(known) {
            state.identities.extend(known.map(|known| (path.to_owned(), known)));
        }
    }
}

impl File {
    pub(super) fn new(medium: Medium) -> Self {
        Self { medium, token: Arc::default(), claim: Default::default() }
    }

    /// Claims it, as one handle of a run may.
    pub(super) fn claim(&mut self, run: u64) -> io::Result<Arc<()>> {
        if self.claim.0 == run && self.claim.1.strong_count() > 0 {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        let claim = Arc::default();
        self.claim = (run, Arc::downgrade(&claim));
        Ok(claim)
    }
}
