//! Runs programs and waits for conditions. It must never wait without a bound.

use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Between two looks at a condition: short beside everything that is waited for here.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Runs a program to its end and returns what it printed; an error tells all of it.
pub fn run<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments);
    finish(&mut command)
}

/// Runs a prepared command to its end and returns its standard output.
pub fn finish(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    if !output.status.success() {
        bail!("{command:?}: {}\n{}{}", output.status, text(&output.stdout), text(&output.stderr));
    }
    Ok(text(&output.stdout))
}

/// Runs a prepared command to its end, whatever its end is.
pub fn output(command: &mut Command) -> Result<Output> {
    command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))
}

/// Bytes that a program printed, as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Looks until there is an answer; fails once the time is over, with what was waited for.
pub fn wait_until<T>(
    what: &str,
    at_most: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let began = Instant::now();
    loop {
        if let Some(answer) = look().with_context(|| format!("while waiting for {what}"))? {
            return Ok(answer);
        }
        if began.elapsed() > at_most {
            bail!("{what}: not within {at_most:?}");
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}
