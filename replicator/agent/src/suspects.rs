//! What a verify has found goes into the log, so that the target knows which points to doubt:
//! before what differed is told anew, and again in a log that begins before the target had it.

use crate::frame_log::FrameLog;
use crate::owner::Owner;
use crate::verify::Found;
use redoubt_log::{Record, Sequence, WallTime};
use redoubt_tracker::LogSink;

/// What the target does not have yet: a record for each batch of a verify that differed, and a
/// verify goes on only as the target answers.
#[derive(Default)]
pub(crate) struct Suspects {
    found: Vec<Record>,
    /// Where the present log tells of them.
    told: Vec<(Sequence, Record)>,
}

impl Suspects {
    /// A difference was found.
    pub fn add(&mut self, found: &Found, at: WallTime) {
        let Some(first) = found.different.iter().next() else { return };
        self.found.push(Record::Suspect {
            disk: found.disk,
            at,
            bytes: found.different.total_bytes(),
            ranges: u32::try_from(found.different.len()).unwrap_or(u32::MAX),
            offset: first.offset,
        });
    }

    /// A log begins: what was told in another one counts no more.
    pub fn log_begins(&mut self) {
        self.found.splice(0..0, self.told.drain(..).map(|(_, record)| record));
    }

    /// The target has everything up to here.
    pub fn acknowledged(&mut self, sequence: Sequence) {
        self.told.retain(|(place, _)| *place > sequence);
    }

    fn tell(&mut self, log: &mut FrameLog, is_tracked: impl Fn(&Record) -> bool) {
        for record in self.found.drain(..).filter(is_tracked) {
            log.suspect(record.clone());
            log.checkpoint();
            self.told.push((log.position(), record));
        }
    }
}

impl Owner {
    /// Says in the log what was found; called where nothing in it is unchecked.
    pub fn tell_suspects(&mut self) {
        let tracked = self.all_disks();
        let Some(log) = self.log.as_mut().filter(|log| log.is_checked()) else { return };
        // A disk that was let go meanwhile may be one that the target does not know.
        self.suspects.tell(log, |record| record.disks().iter().all(|disk| tracked.contains(disk)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame_log::Terms;
    use redoubt_log::{
        ByteRange, DiskIndex, Generation, Incarnation, MachineId, PointId, RangeSet, RoleEpoch,
    };
    use std::time::Instant;

    fn log(resume: Sequence) -> FrameLog {
        let terms = Terms {
            machine: MachineId([1; 16]),
            generation: Generation([2; 16]),
            incarnation: Incarnation(1),
            role_epoch: RoleEpoch(0),
        };
        FrameLog::new(terms, resume, Sequence(0), (WallTime(1), Instant::now()))
    }

    fn told(log: &mut FrameLog) -> usize {
        std::iter::from_fn(|| log.take()).count()
    }

    #[test]
    fn what_was_found_is_told_until_the_target_has_it() {
        let mut different = RangeSet::default();
        different.insert(ByteRange::new(4096, 8192));
        let found = Found { disk: DiskIndex(0), different, point: PointId([3; 16]) };
        let mut suspects = Suspects::default();
        suspects.add(&found, WallTime(5));
        let mut first = log(Sequence(0));
        suspects.tell(&mut first, |_| true);
        suspects.tell(&mut first, |_| true);
        assert_eq!(told(&mut first), 1, "once in a log");
        // That log was lost before the target had it.
        suspects.log_begins();
        let mut second = log(Sequence(0));
        suspects.tell(&mut second, |_| true);
        assert_eq!(told(&mut second), 1);
        suspects.acknowledged(second.position());
        suspects.log_begins();
        let mut third = log(Sequence(0));
        suspects.tell(&mut third, |_| true);
        assert_eq!(told(&mut third), 0);
        // A disk that is let go is told of no more.
        suspects.add(&found, WallTime(6));
        suspects.tell(&mut third, |_| false);
        suspects.tell(&mut third, |_| true);
        assert_eq!(told(&mut third), 0);
    }
}
