//! The benchmark harness: runs Redoubt and its peers in one run; it must never claim a speed it did
//! not measure.
fn main() {}
