//! The rules without which the tracker would be wrong, by the names of the design's model.
//! Production code asks `holds(Rule::X)` where it follows a rule; outside this crate's own tests
//! the answer is a constant `true`.

/// A rule of the tracker. Each has a test that fails when it alone does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(test, derive(PartialOrd, Ord))]
pub(crate) enum Rule {
    /// Mask writes in flight when the read began, not only those submitted since.
    MaskBeforeStart,
    /// Mask writes submitted while the read ran.
    MaskDuring,
    /// Two writes in flight on one range: read it again when they have completed.
    OverlapSettles,
    /// A completion without a submission puts its range into `D`.
    UnmatchedSettles,
    /// A completion without a submission overlapped all that is in flight on its range.
    UnknownOverlapSettles,
    /// After a pause: capture on first, bitmap cut second.
    ResumeThenCut,
    /// At a gap the matcher forgets what it thought in flight.
    ForgetAtGap,
    /// Attach completion programs before submission programs.
    CompletionFirst,
    /// A write that fails is read back.
    FailedSettles,
    /// A gap found in mid-ring: drain the rest first, then let the matcher forget.
    DrainBeforeForget,
    /// With the spare array not dropped a gap copies both into `D` and cuts nothing.
    CutNeedsSpare,
    /// After a gap or a restart `D` holds every epoch not dropped, not only the last.
    GapTakesAllEpochs,
    /// An epoch is dropped only when the target has acknowledged what covers it.
    DropAfterAck,
    /// What covers an epoch is a log position, after its cut, at which `D` was empty.
    DropWhenSettled,
    /// Covering positions named a tail of the log that is lost; they are void.
    RestartVoidsCover,
    /// A read clears only what `D` held when the read began.
    NewerDemandStays,
    /// A write without captured data is read back when it has completed.
    UncapturedSettles,
    /// A write without captured data in flight does not satisfy a demand for its range.
    UncapturedKeepsDemand,
    /// An overlap whose newest submission has completed holds back points until it is settled.
    OverlapHoldsPoints,
    /// A write that has been in flight for very long is let go, and its range read again.
    OverdueSettles,
    /// A check leaves out what was in flight when its read began.
    ChecksMaskBeforeStart,
    /// A check leaves out what was submitted between its read's start and its point.
    ChecksMaskDuring,
    /// A check leaves out what the log was found to lack before its point.
    DemandIsNotChecked,
    /// A gap ends every check.
    GapVoidsChecks,
    /// A difference is no finding where a write ends, before it is told, that nobody saw begin.
    UnknownEndDoubts,
    /// A write for which the log has no room counts as one without data.
    NoRoomIsUncaptured,
}

/// Whether a rule is followed.
#[cfg(not(test))]
#[inline(always)]
pub(crate) const fn holds(_rule: Rule) -> bool {
    true
}

#[cfg(test)]
pub(crate) use switch::{holds, without};

#[cfg(test)]
mod switch {
    use super::Rule;
    use std::cell::Cell;

    thread_local!(static OFF: Cell<Option<Rule>> = const { Cell::new(None) });

    pub(crate) fn holds(rule: Rule) -> bool {
        OFF.get() != Some(rule)
    }

    /// Runs `body` as if one rule had been left out.
    pub(crate) fn without<T>(rule: Option<Rule>, body: impl FnOnce() -> T) -> T {
        OFF.set(rule);
        let result = body();
        OFF.set(None);
        result
    }
}
