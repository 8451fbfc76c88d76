//! The two ways in which an apply touches replica disks: reading what will be overwritten, and
//! writing what won. It never decides when: the caller has sealed before it writes, and syncs
//! before it says so.

use super::error::{Result, StoreError};
use super::fold::Fold;
use super::journal_reader::JournalReader;
use super::retention::{PIECE_LIMIT, RetentionWriter};
use super::shared::Shared;
use redoubt_engine::storage::{BlockFile, Open, ReadRequest, WriteRequest};
use redoubt_log::frame::DecodedFrame;
use redoubt_log::{ByteRange, DiskIndex, Sequence};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes read at once: enough to keep a disk busy, little in the budget.
const BATCH_BYTES: u64 = 2 << 20;
/// Reads at once: the engine's depth several times over.
const BATCH_READS: usize = 256;

/// The replica disks that were written.
pub(super) type Replicas = BTreeMap<DiskIndex, Arc<dyn BlockFile>>;

/// Writes what won of the `frames` frames after `from`, frame by frame. Nothing is durable yet.
pub(super) fn write(shared: &Shared, from: Sequence, frames: u32, fold: &Fold) -> Result<Replicas> {
    let mut replicas = Replicas::new();
    for disk in fold.disks().iter() {
        let file = shared.storage.open(&shared.replica_path(disk)?, Open::ReadWrite)?;
        replicas.insert(disk, file);
    }
    let mut reader = JournalReader::new(shared, from);
    let mut payload = Vec::new();
    for number in 0..frames {
        let damaged = |what| StoreError::damaged(&shared.layout.journal(), 0, what);
        let frame = reader.next()?.ok_or_else(|| damaged("frames are missing".to_owned()))?;
        let decoded =
            frame.decode_body(&mut payload).map_err(|error| damaged(error.to_string()))?;
        write_frame(&replicas, number, &decoded, fold)?;
    }
    Ok(replicas)
}

/// Makes the written replica disks durable.
pub(super) fn sync(replicas: &Replicas) -> Result<()> {
    replicas.values().try_for_each(|file| Ok(file.sync()?))
}

fn write_frame(
    replicas: &Replicas,
    number: u32,
    frame: &DecodedFrame<'_>,
    fold: &Fold,
) -> Result<()> {
    let mut batches: BTreeMap<DiskIndex, Vec<WriteRequest<'_>>> = BTreeMap::new();
    for (index, placed) in (0..).zip(frame.records()) {
        let Some((disk, range)) = placed.record.extent() else { continue };
        let payload = frame.payload_of(placed);
        for part in fold.won(number, index, disk, range) {
            if payload.is_empty() {
                replicas[&disk].zero(part.offset, part.length)?;
                continue;
            }
            let start = index_of(part.offset - range.offset);
            let data = &payload[start..start + index_of(part.length)];
            batches.entry(disk).or_default().push(WriteRequest { offset: part.offset, data });
        }
    }
    batches.iter().try_for_each(|(disk, batch)| Ok(replicas[disk].write(batch)?))
}

/// Hands what the replica disk holds of the ranges to the retention file, in order; holes are not
/// read.
pub(super) fn copy_old_content(
    file: &dyn BlockFile,
    disk: DiskIndex,
    ranges: impl Iterator<Item = ByteRange>,
    writer: &mut RetentionWriter,
) -> Result<()> {
    let mut batch = Batch { file, disk, pieces: Vec::new(), buffer: Vec::new() };
    let mut data = ByteRange::new(0, 0);
    for range in ranges {
        let mut at = range.offset;
        while at < range.end() {
            if data.end() <= at {
                let next = file.next_data(at)?.unwrap_or((u64::MAX, 0));
                data = ByteRange::new(next.0, next.1);
            }
            let gap = ByteRange::between(at, data.offset.min(range.end()));
            if !gap.is_empty() {
                batch.flush(writer)?;
                writer.push_zeros(disk, gap)?;
            }
            at = at.max(gap.end());
            let part = ByteRange::between(at, data.end().min(range.end()));
            while at < part.end() {
                let piece = ByteRange::new(at, (part.end() - at).min(PIECE_LIMIT));
                batch.push(piece, writer)?;
                at = piece.end();
            }
        }
    }
    batch.flush(writer)
}

/// Pieces that wait to be read together.
struct Batch<'a> {
    file: &'a dyn BlockFile,
    disk: DiskIndex,
    pieces: Vec<ByteRange>,
    buffer: Vec<u8>,
}

impl Batch<'_> {
    fn push(&mut self, piece: ByteRange, writer: &mut RetentionWriter) -> Result<()> {
        self.pieces.push(piece);
        let bytes = self.pieces.iter().map(|piece| piece.length).sum::<u64>();
        let full = bytes >= BATCH_BYTES || self.pieces.len() >= BATCH_READS;
        if full { self.flush(writer) } else { Ok(()) }
    }

    fn flush(&mut self, writer: &mut RetentionWriter) -> Result<()> {
        let bytes = self.pieces.iter().map(|piece| piece.length).sum::<u64>();
        self.buffer.resize(index_of(bytes), 0);
        let mut rest = self.buffer.as_mut_slice();
        let mut requests = Vec::with_capacity(self.pieces.len());
        for piece in &self.pieces {
            let (buffer, behind) = rest.split_at_mut(index_of(piece.length));
            requests.push(ReadRequest { offset: piece.offset, buffer });
            rest = behind;
        }
        self.file.read(&mut requests)?;
        let mut start = 0;
        for piece in self.pieces.drain(..) {
            let end = start + index_of(piece.length);
            writer.push(self.disk, piece.offset, &self.buffer[start..end])?;
            start = end;
        }
        Ok(())
    }
}

fn index_of(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a frame or a batch fits in memory")
}
