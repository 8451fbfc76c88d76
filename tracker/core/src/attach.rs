//! In which order the programs are attached; nothing of how.

use crate::rules::{Rule, holds};

/// The two ends of a write that programs watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Where writes are queued.
    Submission,
    /// Where writes end.
    Completion,
}

/// Completions first: a write in flight at attach then shows as a completion without a submission,
/// and is read back.
pub fn attach_order() -> [Side; 2] {
    if holds(Rule::CompletionFirst) {
        [Side::Completion, Side::Submission]
    } else {
        [Side::Submission, Side::Completion]
    }
}
