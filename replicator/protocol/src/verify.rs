//! Proving a replica by hash: what the agent asks the target to compare, what the target answers,
//! and what comes of it. The hashes find what went wrong, not who is hostile: both ends are the
//! machine's own.
//!
//! ```text
//! granule: 4096 bytes of a disk, the last one as many as there are; its hash: 16 bytes of BLAKE3
//! piece:   a run of granules; its hash: 16 bytes of BLAKE3 over its granules' hashes, in order
//! ```

use redoubt_log::{ByteRange, DiskIndex, PointId, Sequence};
use serde::{Deserialize, Serialize};

/// Bytes of a disk that one hash stands for: the tracker's granule, so that what differs is
/// demanded as exactly as anything can be.
pub const CHECK_GRANULE_BYTES: u64 = 4096;

/// Most bytes of a piece: a read of the disk.
pub const PIECE_BYTES: u64 = 1 << 20;

/// Most bytes of one check: with every granule a piece of its own, the question has under 460 KiB,
/// and the answer, if every one differs, under 330 KiB.
pub const CHECK_BYTES: u64 = 64 << 20;

/// Most differing ranges that a result lists: what a person can use, and a tenth of a message.
pub const DIFFERENCES_LISTED: usize = 1000;

/// The hash of a granule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GranuleHash(pub [u8; 16]);

/// The hash of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PieceHash(pub [u8; 16]);

/// The hashes of the granules that begin with the first byte.
pub fn granule_hashes(bytes: &[u8]) -> impl Iterator<Item = GranuleHash> {
    let granules = bytes.chunks(usize::try_from(CHECK_GRANULE_BYTES).expect("4096"));
    granules.map(|granule| GranuleHash(cut(&blake3::hash(granule))))
}

/// The hash of a piece with these granules.
pub fn piece_hash(granules: &[GranuleHash]) -> PieceHash {
    let mut hasher = blake3::Hasher::new();
    for hash in granules {
        hasher.update(&hash.0);
    }
    PieceHash(cut(&hasher.finalize()))
}

fn cut(hash: &blake3::Hash) -> [u8; 16] {
    hash.as_bytes()[..16].try_into().expect("16 of 32")
}

/// A question: is the disk, as it is at this point, what these hashes say?
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Which disk.
    pub disk: DiskIndex,
    /// At which point.
    pub point: PointId,
    /// The point's marker: the answer waits until it is applied.
    pub sequence: Sequence,
    /// Ascending; no two share a byte; together at most [`CHECK_BYTES`].
    pub pieces: Vec<Piece>,
}

/// A run of granules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// First byte: of a granule.
    pub offset: u64,
    /// Bytes, at most [`PIECE_BYTES`]: whole granules, or up to the end of the disk.
    pub length: u32,
    /// What they hold.
    pub hash: PieceHash,
}

impl Piece {
    /// The piece's place, if it is one that a disk can have.
    pub fn range(&self) -> Option<ByteRange> {
        ByteRange::checked(self.offset, u64::from(self.length)).filter(|range| {
            range.offset.is_multiple_of(CHECK_GRANULE_BYTES)
                && !range.is_empty()
                && range.length <= PIECE_BYTES
        })
    }
}

impl Check {
    /// Whether it can be answered for a disk of this size.
    pub fn fits(&self, size_bytes: u64) -> bool {
        let (mut end, mut total) = (0, 0);
        self.pieces.iter().all(|piece| {
            let Some(range) = piece.range().filter(|range| range.offset >= end) else {
                return false;
            };
            (end, total) = (range.end(), total + range.length);
            let is_whole = end.is_multiple_of(CHECK_GRANULE_BYTES) || end == size_bytes;
            is_whole && end <= size_bytes && total <= CHECK_BYTES
        })
    }
}

/// A piece that is not what its hash says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DifferentPiece {
    /// Its number in the question.
    pub piece: u32,
    /// What the target has of its granules, in order.
    pub granules: Vec<GranuleHash>,
}

/// What a verify has come to. Nothing that was neither compared nor left out is counted as equal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyOutcome {
    /// Compared, at some point of the log each; what differs is among them.
    pub compared_bytes: u64,
    /// Written too often to be compared in any try, or hindered.
    pub not_compared_bytes: u64,
    /// Left out: given up by the machine, so that what a device returns for it means nothing.
    pub discarded_bytes: u64,
    /// Compared and different: read again.
    pub differing_bytes: u64,
    /// The first [`DIFFERENCES_LISTED`] ranges of those.
    pub differences: Vec<Difference>,
    /// How many ranges more there are.
    pub unlisted: u64,
    /// The last point at which anything was compared.
    pub point: Option<PointId>,
    /// What last kept bytes from being compared, other than that they were written.
    pub hindrance: Option<String>,
}

/// A range of a disk of which the replica held something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Which disk.
    pub disk: DiskIndex,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{AgentMessage, LENGTH_BYTES, RequestId, TargetMessage, decode, encode};

    /// Two builds of different age must find the same hashes.
    #[test]
    fn golden_hashes() {
        let bytes: Vec<u8> = (0..10_000_u32).map(|at| (at % 251) as u8).collect();
        let hashes: Vec<GranuleHash> = granule_hashes(&bytes).collect();
        let hex = |hash: &[u8; 16]| hash.map(|byte| format!("{byte:02x}")).concat();
        // The first is BLAKE3's own test vector of 4096 bytes, cut.
        let golden = [
            "015094013f57a5277b59d8475c050104",
            "535cf151d8b1d9c63d5ae6a37ef7771c",
            "bdf815c482acce739d3c4f29cc1fa04d",
        ];
        assert_eq!(hashes.iter().map(|hash| hex(&hash.0)).collect::<Vec<_>>(), golden);
        assert_eq!(hex(&piece_hash(&hashes).0), "89f7dd69392e7da15cb5f88c2e7ce47f");
    }

    fn check(pieces: &[(u64, u32)]) -> Check {
        let hash = PieceHash([0xff; 16]);
        let piece = |&(offset, length)| Piece { offset, length, hash };
        Check {
            disk: DiskIndex(63),
            point: PointId([0xff; 16]),
            sequence: Sequence(u64::MAX),
            pieces: pieces.iter().map(piece).collect(),
        }
    }

    /// What follows the variant's number.
    #[test]
    fn golden_check() {
        let check = check(&[(4096, 8192)]);
        let bytes = encode(&AgentMessage::Check { request: RequestId(7), check }).unwrap();
        let body = &bytes[LENGTH_BYTES + 1..];
        let hex: String = body.iter().map(|byte| format!("{byte:02x}")).collect();
        let ones = "ff".repeat(16);
        let expected = [
            "07",                 // request
            "3f",                 // disk
            &format!("10{ones}"), // point: 16 bytes
            "fdffffffffffffffff", // sequence
            "01",                 // one piece
            "fb0010",             // offset: 4096
            "fb0020",             // length: 8192
            &ones,                // its hash
        ];
        assert_eq!(hex, expected.concat());
    }

    #[test]
    fn only_what_can_be_answered_fits() {
        let size = (4 << 20) + 512;
        assert!(check(&[(0, 4096), (4096, 1 << 20), (4 << 20, 512)]).fits(size));
        for bad in [
            &[(512, 4096)][..],
            &[(0, 0)],
            &[(0, 512)],
            &[(0, (1 << 20) + 4096)],
            &[(4096, 4096), (0, 4096)],
            &[(0, 8192), (4096, 4096)],
            &[(4 << 20, 4096)],
            &[(8 << 20, 4096)],
            &[(u64::MAX - 4095, 4096)],
        ] {
            assert!(!check(bad).fits(size), "{bad:?}");
        }
        let too_much: Vec<(u64, u32)> = (0..=64).map(|at| (at << 20, 1 << 20)).collect();
        assert!(!check(&too_much).fits(1 << 30) && check(&too_much[1..]).fits(1 << 30));
    }

    #[test]
    fn the_largest_check_and_its_answer_are_messages() {
        let granules = CHECK_BYTES / CHECK_GRANULE_BYTES;
        let far = (1 << 62) / CHECK_GRANULE_BYTES;
        let pieces: Vec<(u64, u32)> =
            (0..granules).map(|at| ((far + 2 * at) * CHECK_GRANULE_BYTES, 4096)).collect();
        let check = check(&pieces);
        assert!(check.fits(u64::MAX));
        let request = RequestId(u64::MAX);
        let message = AgentMessage::Check { request, check };
        let bytes = encode(&message).unwrap();
        assert_eq!(decode::<AgentMessage>(&bytes[LENGTH_BYTES..]).unwrap(), message);

        let granule = GranuleHash([0xff; 16]);
        let different = |piece| DifferentPiece { piece, granules: vec![granule] };
        let pieces = (0..u32::try_from(granules).unwrap()).map(different).collect();
        let message = TargetMessage::Checked { request, result: Ok(pieces) };
        let bytes = encode(&message).unwrap();
        assert_eq!(decode::<TargetMessage>(&bytes[LENGTH_BYTES..]).unwrap(), message);
    }

    #[test]
    fn the_longest_outcome_is_a_message() {
        let difference = Difference { disk: DiskIndex(63), offset: u64::MAX, length: u64::MAX };
        let outcome = VerifyOutcome {
            differences: vec![difference; DIFFERENCES_LISTED],
            hindrance: Some("x".repeat(crate::message::TEXT_LIMIT)),
            ..VerifyOutcome::default()
        };
        let message = AgentMessage::Verified { request: RequestId(1), result: Ok(outcome) };
        let bytes = encode(&message).unwrap();
        assert_eq!(decode::<AgentMessage>(&bytes[LENGTH_BYTES..]).unwrap(), message);
    }
}
