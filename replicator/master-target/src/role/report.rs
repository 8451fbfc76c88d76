//! What an agent reports, cut to what is kept of it: its texts go into the status and the audit
//! log, and an agent may be hostile. It reads nothing but the report.

use redoubt_log::DiskIndex;
use redoubt_protocol::message::{DiskReport, Report};

/// The most bytes of a reason: a code, and a device or an error behind it.
const REASON_LIMIT: usize = 200;

/// The report, with nothing in it that is longer than what an agent of ours would say.
pub(super) fn bounded(mut report: Report) -> Report {
    report.disks.truncate(usize::from(DiskIndex::LIMIT));
    report.disks.shrink_to_fit();
    for disk in &mut report.disks {
        bound(disk);
    }
    report
}

fn bound(disk: &mut DiskReport) {
    let end = disk.reason.floor_char_boundary(REASON_LIMIT);
    let plain = |sign: char| if sign.is_control() { '\u{fffd}' } else { sign };
    disk.reason = disk.reason[..end].chars().map(plain).collect();
    // What is no word of ours is not proven.
    let known = ["proven", "unverified", "suspect"];
    let verdict = known.iter().find(|word| **word == disk.tracker.verdict);
    disk.tracker.verdict = (*verdict.unwrap_or(&"suspect")).to_owned();
}

#[cfg(test)]
mod tests {
    use super::*;
    use redoubt_log::Sequence;
    use redoubt_protocol::message::{DiskState, TrackerMode, TrackerReport};

    fn disk(reason: &str, verdict: &str) -> DiskReport {
        DiskReport {
            index: DiskIndex(0),
            state: DiskState::Streaming,
            reason: reason.to_owned(),
            bytes_remaining: 0,
            eta_seconds: None,
            churn_bytes_per_second: 0,
            sent_bytes_per_second: 0,
            tracker: TrackerReport {
                mode: TrackerMode::Data,
                losses: 0,
                misses: 0,
                verdict: verdict.to_owned(),
            },
        }
    }

    fn kept(disks: Vec<DiskReport>) -> Vec<DiskReport> {
        let sequence = Sequence(1);
        bounded(Report { rpo_milliseconds: 0, sequence, acknowledged: sequence, disks }).disks
    }

    #[test]
    fn texts_without_end_are_cut_and_nothing_else_is_changed() {
        let long = "\u{1f600}".repeat(250_000);
        let cut = kept(vec![disk(&long, &long); 1000]);
        assert_eq!(cut.len(), 64);
        assert!(
            cut.iter().all(|disk| disk.reason.len() == 200 && disk.tracker.verdict == "suspect")
        );
        assert_eq!(kept(vec![disk("a\u{1b}[2Jb\n", "")])[0].reason, "a\u{fffd}[2Jb\u{fffd}");
        for verdict in ["proven", "unverified", "suspect"] {
            let honest = vec![disk("read-error: /dev/sda", verdict)];
            assert_eq!(kept(honest.clone()), honest);
        }
    }
}
