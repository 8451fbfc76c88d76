//! The kernel side: the CO-RE programs that mark and capture, and their ABI.
