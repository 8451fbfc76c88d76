//! Whether somebody has interrupted the run. Every wait looks here, so that an interrupted run ends
//! as a failed one does: by taking away what it has made. It must never end the process itself.

use anyhow::{Result, ensure};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Between two looks during a pause.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

static STOPPED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// From now on SIGINT, SIGTERM and SIGHUP are remembered instead of ending the process.
pub fn watch() -> Result<()> {
    let flag = STOPPED.get_or_init(Arc::default);
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, flag.clone())?;
    }
    Ok(())
}

/// An error once the run was interrupted.
pub fn check() -> Result<()> {
    let stopped = STOPPED.get().is_some_and(|flag| flag.load(Ordering::Relaxed));
    ensure!(!stopped, "interrupted");
    Ok(())
}

/// Waits for so long, or until the run is interrupted.
pub fn pause(time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    loop {
        check()?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(LOOK_INTERVAL));
    }
}
