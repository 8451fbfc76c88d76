//! The local socket's messages, configuration files and the audit log.
