//! The Unified Agent: tracks, reads, seals and ships a machine's changes.
