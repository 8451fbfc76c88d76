//! Programs that a measurement runs: found or named as missing, killed with their owner, waited for
//! with a bound. It must never end a process that it has not started.

use crate::stop;
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Between two looks at a program that is timed: short beside everything that is measured here.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);

/// From SIGTERM to the end of a program.
const END_WITHIN: Duration = Duration::from_secs(10);

/// Bytes of a failed program's log that are shown.
const LOG_BYTES_SHOWN: usize = 2000;

/// Where programs are looked for beside `PATH`: an administrator's are not in everybody's.
const SYSTEM_DIRECTORIES: [&str; 2] = ["/usr/sbin", "/sbin"];

/// A program by its name, where it is installed.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path);
    let directories = directories.chain(SYSTEM_DIRECTORIES.map(PathBuf::from));
    directories.map(|directory| directory.join(program)).find(|file| file.is_file())
}

/// Names what is missing of what `who` needs, with the Debian packages; none where all is there.
pub fn missing(who: &str, needed: &[(&str, &str)]) -> Option<String> {
    let absent: Vec<_> = needed.iter().filter(|(program, _)| find(program).is_none()).collect();
    let programs: Vec<&str> = absent.iter().map(|(program, _)| *program).collect();
    let mut packages: Vec<&str> = absent.iter().map(|(_, package)| *package).collect();
    packages.sort_unstable();
    packages.dedup();
    (!absent.is_empty()).then(|| {
        let (programs, packages) = (programs.join(" and "), packages.join(" "));
        format!("{who}: no {programs} here (Debian: apt-get install {packages})")
    })
}

/// A command that ends with the thread that started it, below `launcher`: words before a command
/// that end in becoming it.
pub fn command(launcher: &[OsString], program: &str) -> Result<Command> {
    let found = find(program).with_context(|| format!("{program} is not installed"))?;
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM"]).args(launcher).arg(found);
    Ok(command)
}

/// A started program; ended with its owner.
pub struct Running {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Running {
    /// Starts it; what it prints goes to the end of the log. Its input is empty unless the command
    /// says otherwise.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let output = OpenOptions::new().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stdout(output);
        Self::spawn(name, command, log)
    }

    /// Starts it between two others of a pipeline: from `input`, and to the next one where
    /// `feeds`.
    pub fn start_between(
        name: &str,
        command: &mut Command,
        input: Option<ChildStdout>,
        feeds: bool,
        log: &Path,
    ) -> Result<(Self, Option<ChildStdout>)> {
        command.stdin(input.map_or_else(Stdio::null, Stdio::from));
        command.stdout(if feeds { Stdio::piped() } else { Stdio::null() });
        let mut running = Self::spawn(name, command, log)?;
        let output = running.child.stdout.take();
        Ok((running, output))
    }

    fn spawn(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let errors = OpenOptions::new().create(true).append(true).open(log)?;
        let child = command.stderr(errors).spawn();
        let child = child.with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// Fails where it has ended by itself.
    pub fn expect_alive(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(self.failed(status)),
        }
    }

    /// Whether it has ended, which must have been a good end.
    pub fn has_ended(&mut self) -> Result<bool> {
        match self.child.try_wait()? {
            None => Ok(false),
            Some(status) if status.success() => Ok(true),
            Some(status) => Err(self.failed(status)),
        }
    }

    /// Waits for its good end.
    pub fn finish(mut self, within: Duration) -> Result<()> {
        let began = Instant::now();
        while !self.has_ended()? {
            stop::check()?;
            ensure!(began.elapsed() < within, "{} has not ended within {within:?}", self.name);
            std::thread::sleep(LOOK_INTERVAL);
        }
        Ok(())
    }

    /// Asks it to end, by SIGTERM, and waits until it has, whatever its status.
    pub fn end(mut self) -> Result<()> {
        self.stop()
    }

    fn stop(&mut self) -> Result<()> {
        if self.child.try_wait()?.is_none() {
            kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGTERM)?;
        }
        let began = Instant::now();
        while self.child.try_wait()?.is_none() {
            if began.elapsed() > END_WITHIN {
                self.child.kill()?;
                self.child.wait()?;
                bail!("{} does not end at SIGTERM and was killed", self.name);
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
        Ok(())
    }

    fn failed(&self, status: ExitStatus) -> anyhow::Error {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let shown = &log[log.len().saturating_sub(LOG_BYTES_SHOWN)..];
        let shown = String::from_utf8_lossy(shown);
        anyhow::anyhow!("{}: {status}\n{}", self.name, shown.trim_end())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // In order, for some of them have a kernel's feature to switch off.
        if let Err(error) = self.stop() {
            eprintln!("cannot end {}: {error}", self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_fails_shows_what_it_said() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let mut shell = command(&[], "sh").unwrap();
        let running = Running::start("it", shell.args(["-c", "echo no room; exit 3"]), log.path());
        let error = running.unwrap().finish(Duration::from_secs(60)).unwrap_err().to_string();
        assert!(error.contains("it: exit status: 3") && error.contains("no room"), "{error}");
    }

    #[test]
    fn a_program_ends_with_its_owner_and_at_the_end_of_its_time() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let start = || Running::start("it", command(&[], "sleep").unwrap().arg("600"), log.path());
        let running = start().unwrap();
        let process = PathBuf::from(format!("/proc/{}", running.child.id()));
        let late = running.finish(Duration::from_millis(20)).unwrap_err();
        assert!(late.to_string().contains("not ended within"), "{late}");
        assert!(!process.exists());
        start().unwrap().end().unwrap();
    }

    #[test]
    fn what_is_missing_is_named_with_its_package() {
        let needed = [("sh", "dash"), ("no-such-tool", "some-package")];
        let said = missing("a peer", &needed).unwrap();
        assert_eq!(said, "a peer: no no-such-tool here (Debian: apt-get install some-package)");
        assert_eq!(missing("a peer", &needed[..1]), None);
    }

    #[test]
    fn what_is_not_installed_is_not_found() {
        assert!(find("sh").is_some() && find("no-such-program-anywhere").is_none());
        assert!(command(&[], "no-such-program-anywhere").is_err());
    }
}
