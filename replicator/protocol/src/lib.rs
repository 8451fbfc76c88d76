//! Messages and session state machines: no socket, no clock, no disk.
