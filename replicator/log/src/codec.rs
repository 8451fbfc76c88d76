//! Bounded bincode for the messages of the crates above, which use serde's derives and never see
//! bincode itself. It never reads past the given bytes, nor allocates more than a small multiple of
//! what was received.

use serde::{Serialize, de::DeserializeOwned};
use std::error::Error;

/// The most bytes that one message may have, whatever its own limit says: what is larger belongs
/// into frames.
pub const MESSAGE_LIMIT: usize = 1 << 20;

/// Why a message was not encoded or decoded.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// It has more bytes than its limit.
    #[error(
        "message of {length} bytes is over its limit of {limit}: are both sides of one release?"
    )]
    TooLong {
        /// Bytes it has.
        length: usize,
        /// Bytes it may have.
        limit: usize,
    },
    /// The bytes are no such message.
    #[error("message does not decode ({source}): are both sides of one release?")]
    Malformed {
        /// What the decoder said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The message is followed by bytes that are not its own.
    #[error("message is followed by {count} stray bytes: are both sides of one release?")]
    TrailingBytes {
        /// How many.
        count: usize,
    },
    /// The value has a shape that the format cannot hold.
    #[error("message does not encode ({source}); this is a defect of redoubt, please report it")]
    Unencodable {
        /// What the encoder said.
        source: Box<dyn Error + Send + Sync>,
    },
}

/// Encodes a message of at most `limit` bytes.
pub fn encode_bounded<T: Serialize>(message: &T, limit: usize) -> Result<Vec<u8>, CodecError> {
    let bytes = bincode::serde::encode_to_vec(message, bincode::config::standard())
        .map_err(|source| CodecError::Unencodable { source: Box::new(source) })?;
    within_limit(bytes.len(), limit)?;
    Ok(bytes)
}

/// Decodes a message that fills `bytes` exactly and has at most `limit` bytes.
pub fn decode_bounded<T: DeserializeOwned>(bytes: &[u8], limit: usize) -> Result<T, CodecError> {
    within_limit(bytes.len(), limit)?;
    // bincode bounds what a decoder may claim in memory, but only by a constant. A message claims
    // at most eight times its bytes when honest (a one-byte varint of a u64), so each step
    // allows sixteen times its own.
    let (message, used) = match bytes.len() {
        0..=0x100 => decode_claiming::<T, 0x1000>(bytes),
        0x101..=0x1000 => decode_claiming::<T, 0x1_0000>(bytes),
        0x1001..=0x1_0000 => decode_claiming::<T, 0x10_0000>(bytes),
        _ => decode_claiming::<T, 0x100_0000>(bytes),
    }?;
    match bytes.len() - used {
        0 => Ok(message),
        count => Err(CodecError::TrailingBytes { count }),
    }
}

fn decode_claiming<T: DeserializeOwned, const CLAIM: usize>(
    bytes: &[u8],
) -> Result<(T, usize), CodecError> {
    let config = bincode::config::standard().with_limit::<CLAIM>();
    bincode::serde::decode_from_slice(bytes, config)
        .map_err(|source| CodecError::Malformed { source: Box::new(source) })
}

fn within_limit(length: usize, limit: usize) -> Result<(), CodecError> {
    let limit = limit.min(MESSAGE_LIMIT);
    if length > limit { Err(CodecError::TooLong { length, limit }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MachineId, Sequence};
    use proptest::prelude::*;
    use serde::Deserialize;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    enum Message {
        Hello { machine: MachineId, name: String },
        Numbers(Vec<u64>),
        Position(Option<Sequence>),
    }

    fn message() -> impl Strategy<Value = Message> {
        prop_oneof![
            (any::<[u8; 16]>(), ".{0,40}")
                .prop_map(|(id, name)| Message::Hello { machine: MachineId(id), name }),
            proptest::collection::vec(any::<u64>(), 0..600).prop_map(Message::Numbers),
            any::<Option<u64>>().prop_map(|at| Message::Position(at.map(Sequence))),
        ]
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(message in message()) {
            let bytes = encode_bounded(&message, MESSAGE_LIMIT).unwrap();
            prop_assert_eq!(decode_bounded::<Message>(&bytes, bytes.len()).unwrap(), message);
        }

        #[test]
        fn any_bytes_are_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            if let Ok(message) = decode_bounded::<Message>(&bytes, 400) {
                prop_assert!(encode_bounded(&message, 400).unwrap().len() <= bytes.len());
            }
        }
    }

    #[test]
    fn small_numbers_fill_a_message_to_its_limit() {
        for count in [1, 254, 4000, 65_000, 1_000_000] {
            let message = Message::Numbers(vec![7; count]);
            let bytes = encode_bounded(&message, MESSAGE_LIMIT).unwrap();
            assert_eq!(decode_bounded::<Message>(&bytes, MESSAGE_LIMIT).unwrap(), message);
        }
    }

    #[test]
    fn limits_hold_on_both_sides() {
        let bytes = encode_bounded(&Message::Numbers(vec![1; 100]), 200).unwrap();
        let refused = encode_bounded(&Message::Numbers(vec![1; 100]), 50);
        assert!(matches!(refused, Err(CodecError::TooLong { limit: 50, .. })));
        let refused = decode_bounded::<Message>(&bytes, bytes.len() - 1);
        assert!(matches!(refused, Err(CodecError::TooLong { .. })));
        let refused = encode_bounded(&vec![1_u8; MESSAGE_LIMIT], usize::MAX);
        assert!(matches!(refused, Err(CodecError::TooLong { limit: MESSAGE_LIMIT, .. })));
    }

    #[test]
    fn truncated_and_followed_messages_are_refused() {
        let name = "alpha".to_owned();
        let message = Message::Hello { machine: MachineId([3; 16]), name };
        let mut bytes = encode_bounded(&message, 100).unwrap();
        for length in 0..bytes.len() {
            let refused = decode_bounded::<Message>(&bytes[..length], 100);
            assert!(matches!(refused, Err(CodecError::Malformed { .. })), "{length} bytes");
        }
        bytes.push(0);
        let refused = decode_bounded::<Message>(&bytes, 100);
        assert!(matches!(refused, Err(CodecError::TrailingBytes { count: 1 })));
    }

    #[test]
    fn claimed_lengths_are_not_allocated() {
        // variant 0, an id, then a text of 2^60 bytes
        let mut bytes = vec![0_u8, 16];
        bytes.extend([1; 16]);
        bytes.push(253);
        bytes.extend((1_u64 << 60).to_le_bytes());
        let refused = decode_bounded::<Message>(&bytes, 100);
        assert!(matches!(refused, Err(CodecError::Malformed { .. })));
    }
}
