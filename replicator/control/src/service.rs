//! What a role owes the system that it runs under: to stop when it is told to, and to say when it
//! is ready. It never ends the process; what stopping means is the role's.

use nix::sys::signal::{SigSet, Signal};
use std::{io, thread};

/// The signals that tell a role to stop: SIGTERM, and SIGINT of a terminal.
pub struct StopSignals(SigSet);

impl StopSignals {
    /// Keeps the signals from every thread that is started from here on, so that they are left to
    /// the one that waits for them: call it before the first thread starts.
    ///
    /// # Errors
    /// The kernel refuses the mask.
    pub fn block() -> io::Result<Self> {
        let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
        signals.thread_block()?;
        Ok(Self(signals))
    }

    /// Calls `stop`, once, at the first of the signals.
    ///
    /// # Errors
    /// There is no thread to be had that waits.
    pub fn call(self, stop: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let wait = move || {
            match self.0.wait() {
                Ok(signal) => tracing::info!(%signal, "stopping"),
                Err(error) => tracing::error!(%error, "signals cannot be waited for: stopping"),
            }
            stop();
        };
        thread::Builder::new().name("signals".to_owned()).spawn(wait).map(drop)
    }
}

/// Tells the service manager, where there is one, that the role serves.
pub fn notify_ready() {
    if let Err(error) = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]) {
        tracing::debug!(%error, "no service manager was told");
    }
}
