//! Logs go to standard error, which results never do, as text or JSON. `REDOUBT_LOG` chooses what
//! is logged.

use crate::arguments::LogFormat;
use std::io::{self, IsTerminal};
use tracing_subscriber::filter::{EnvFilter, LevelFilter};

/// Starts logging for the whole process.
pub fn start(format: LogFormat) {
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .with_env_var("REDOUBT_LOG")
        .from_env_lossy();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(io::stderr().is_terminal()).with_target(false).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}

/// Tells why the command ends.
pub fn report(format: LogFormat, message: &str) {
    match format {
        LogFormat::Text => eprintln!("redoubt: {message}"),
        LogFormat::Json => tracing::error!("{message}"),
    }
}
