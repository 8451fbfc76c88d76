//! A storage that calls the test before each operation, so that anything can happen between two of
//! them. It changes nothing of what the storage below does.

use redoubt_engine::storage::{BlockFile, Open, ReadRequest, Result, Storage, WriteRequest};
use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;

type Hook = Box<dyn FnMut()>;

thread_local! {
    static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
}

/// Runs `body`; `hook` is called before each operation, but not within itself.
pub(super) fn hooked<T>(hook: impl FnMut() + 'static, body: impl FnOnce() -> T) -> T {
    struct Restore(Option<Hook>);
    impl Drop for Restore {
        fn drop(&mut self) {
            HOOK.set(self.0.take());
        }
    }
    let _restore = Restore(HOOK.replace(Some(Box::new(hook))));
    body()
}

fn call() {
    if let Some(mut hook) = HOOK.take() {
        hook();
        HOOK.set(Some(hook));
    }
}

pub(super) struct HookedStorage<S>(pub(super) S);

struct HookedFile(Arc<dyn BlockFile>);

impl<S: Storage> Storage for HookedStorage<S> {
    fn open(&self, path: &Path, how: Open) -> Result<Arc<dyn BlockFile>> {
        call();
        Ok(Arc::new(HookedFile(self.0.open(path, how)?)))
    }
    fn create_directory(&self, path: &Path) -> Result<()> {
        call();
        self.0.create_directory(path)
    }
    fn list(&self, path: &Path) -> Result<Vec<String>> {
        call();
        self.0.list(path)
    }
    fn remove(&self, path: &Path) -> Result<()> {
        call();
        self.0.remove(path)
    }
    fn remove_tree(&self, path: &Path) -> Result<()> {
        call();
        self.0.remove_tree(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        call();
        self.0.rename(from, to)
    }
    fn sync_directory(&self, path: &Path) -> Result<()> {
        call();
        self.0.sync_directory(path)
    }
    fn load(&self, path: &Path) -> Result<Option<Vec<u8>>> {
        call();
        self.0.load(path)
    }
    fn replace(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        call();
        self.0.replace(path, bytes)
    }
    fn free_space(&self) -> Result<u64> {
        call();
        self.0.free_space()
    }
}

impl BlockFile for HookedFile {
    fn size(&self) -> u64 {
        self.0.size()
    }
    fn read(&self, batch: &mut [ReadRequest<'_>]) -> Result<()> {
        call();
        self.0.read(batch)
    }
    fn write(&self, batch: &[WriteRequest<'_>]) -> Result<()> {
        // One by one, so that the test sees every state between two of them.
        for request in batch {
            call();
            self.0.write(std::slice::from_ref(request))?;
        }
        Ok(())
    }
    fn zero(&self, offset: u64, length: u64) -> Result<()> {
        call();
        self.0.zero(offset, length)
    }
    fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>> {
        call();
        self.0.next_data(offset)
    }
    fn sync(&self) -> Result<()> {
        call();
        self.0.sync()
    }
    fn identity(&self) -> Result<Option<String>> {
        call();
        self.0.identity()
    }
}
