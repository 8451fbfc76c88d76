//! The `redoubt` command: parses the command line and hands over; it must hold no logic of its own.
fn main() {}
