//! QUIC and identity: the only crate that knows quinn and rustls.
