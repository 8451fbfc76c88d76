//! The lying storage's own promises: synced data survives, unsynced data sometimes does not.
