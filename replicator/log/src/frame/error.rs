//! Why bytes are no frame, in words that name the frame and what can be done. It decides nothing.

use crate::record::RecordError;
use crate::{MachineId, Sequence};

/// Why bytes are no frame that may be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Fewer bytes than a header has.
    #[error("frame header is cut off after {given} bytes")]
    CutOff {
        /// Bytes there are.
        given: usize,
    },
    /// The first bytes are not those of a frame.
    #[error("these bytes are no frame")]
    Magic,
    /// Another layout than this release reads.
    #[error("frame version {version} is not known: upgrade redoubt on this side")]
    Version {
        /// The version it claims.
        version: u16,
    },
    /// A field of the header breaks a limit or contradicts another.
    #[error("frame header: {what}")]
    Header {
        /// Which and how.
        what: &'static str,
    },
    /// Not as many bytes as the header says.
    #[error("frame of {needed} bytes came with {given}")]
    Length {
        /// Bytes there are.
        given: usize,
        /// Bytes the header tells of.
        needed: usize,
    },
    /// The bytes changed on their way or on a disk.
    #[error("frame {first}..={last}: checksum is wrong: bytes were damaged on the way or on disk")]
    Checksum {
        /// Its first sequence, if that is right.
        first: Sequence,
        /// Its last sequence, if that is right.
        last: Sequence,
    },
    /// It was not sealed by the machine that it names.
    #[error(
        "frame {first}..={last} was not sealed with the key of machine {machine}: \
         was it enrolled again?"
    )]
    Mac {
        /// The machine that it names.
        machine: MachineId,
        /// Its first sequence.
        first: Sequence,
        /// Its last sequence.
        last: Sequence,
    },
    /// A folded frame has no proof of its machine.
    #[error("frame {first}..={last} was folded on the way and proves no machine")]
    Folded {
        /// Its first sequence.
        first: Sequence,
        /// Its last sequence.
        last: Sequence,
    },
    /// The payload does not decompress to what the header says.
    #[error("frame {first}..={last}: payload does not decompress to its length")]
    Compressed {
        /// Its first sequence.
        first: Sequence,
        /// Its last sequence.
        last: Sequence,
    },
    /// The record table contradicts the header.
    #[error("frame {first}..={last}: record table: {what}")]
    Table {
        /// Its first sequence.
        first: Sequence,
        /// Its last sequence.
        last: Sequence,
        /// How.
        what: &'static str,
    },
    /// A record of the table is none.
    #[error("frame from {first}: record {index}: {source}")]
    Record {
        /// Its first sequence.
        first: Sequence,
        /// Which record, from 0.
        index: usize,
        /// Why.
        source: RecordError,
    },
}
