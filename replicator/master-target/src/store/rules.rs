//! The rules that keep the store right, by the names of the design's model, and the question
//! whether one holds. In the product every rule always holds; only this crate's own tests may take
//! one out, to show that it matters.

/// One rule. The code asks [`holds`] at the very place where the rule is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// No replica block is written before the retention file with its old content is synced and
    /// sealed.
    SealBeforeWrite,
    /// After a cut a sealed retention file is reused, never rebuilt from the half-written replica.
    SealedIsKept,
    /// The manifest advances only after the replica is synced.
    SyncBeforeAdvance,
    /// Readers see the retention index before the first replica write.
    PublishBeforeWrite,
    /// A reader of the replica checks the indexes again after its read.
    ReaderLooksAgain,
    /// The retention file nearest after the point wins, not the newest.
    NearestWins,
    /// Recovery durably erases what lies behind the last good entry before it appends.
    EraseBehindTail,
    /// A sequence is stated as durable only after the journal's sync has returned.
    AckAfterSync,
    /// An incarnation is durable before it is handed out, and fences the older ones.
    FenceDurable,
    /// What is deleted goes from the manifest first, durably, and from the disk second.
    ForgetFirst,
}

/// Whether the rule holds: always, but for a test that has taken it out.
#[cfg(not(test))]
pub(crate) const fn holds(_rule: Rule) -> bool {
    true
}

#[cfg(test)]
pub(crate) use taken_out::{holds, without};

#[cfg(test)]
mod taken_out {
    use super::Rule;
    use std::cell::Cell;

    thread_local! {
        static OFF: Cell<Option<Rule>> = const { Cell::new(None) };
    }

    /// Whether the rule holds in this thread.
    pub(crate) fn holds(rule: Rule) -> bool {
        OFF.get() != Some(rule)
    }

    /// Runs `body` without the rule.
    pub(crate) fn without<T>(rule: Option<Rule>, body: impl FnOnce() -> T) -> T {
        struct Restore(Option<Rule>);
        impl Drop for Restore {
            fn drop(&mut self) {
                OFF.set(self.0);
            }
        }
        let _restore = Restore(OFF.replace(rule));
        body()
    }
}
