//! Random writes straight to a disk at a given rate, by fio. It must never outlive the test that
//! started it.

use crate::command::text;
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// fio at work; killed with its owner.
pub struct RandomWrites {
    fio: Child,
    log: std::path::PathBuf,
}

impl RandomWrites {
    /// Starts direct random writes of 4 to 256 KiB, eight in flight, unlike any before.
    pub fn start(
        device: &Path,
        megabytes_per_second: u32,
        runs: Duration,
        log: &Path,
    ) -> Result<Self> {
        Self::start_over(device, None, megabytes_per_second, runs, log)
    }

    /// The same over the first bytes of the disk only, where so many are given.
    pub fn start_over(
        device: &Path,
        first_bytes: Option<u64>,
        megabytes_per_second: u32,
        runs: Duration,
        log: &Path,
    ) -> Result<Self> {
        let mut command = fio(device, runs);
        command.args(["--rw=randwrite", "--bsrange=4k-256k", "--ioengine=libaio", "--iodepth=8"]);
        command.args(["--refill_buffers", "--norandommap"]);
        command.arg(format!("--rate={megabytes_per_second}m"));
        if let Some(bytes) = first_bytes {
            command.arg(format!("--size={bytes}"));
        }
        Self::spawn(command, log)
    }

    /// Starts writes of one block of 4 KiB, with a pause of a fifth of a millisecond between two.
    pub fn start_over_one_block(
        device: &Path,
        offset: u64,
        runs: Duration,
        log: &Path,
    ) -> Result<Self> {
        let mut command = fio(device, runs);
        command.args(["--rw=write", "--bs=4k", "--size=4k", "--ioengine=psync"]);
        command.args([&format!("--offset={offset}"), "--refill_buffers", "--thinktime=200"]);
        Self::spawn(command, log)
    }

    fn spawn(mut command: Command, log: &Path) -> Result<Self> {
        let output = File::create(log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let fio = command.spawn().context("cannot run fio")?;
        Ok(Self { fio, log: log.to_path_buf() })
    }

    /// Whether it still writes.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.fio.try_wait()?.is_none())
    }

    /// Ends it now.
    pub fn end(&mut self) -> Result<()> {
        self.fio.kill()?;
        self.fio.wait()?;
        Ok(())
    }

    /// Waits for its end, which must be a good one.
    pub fn finish(mut self) -> Result<()> {
        let status = self.fio.wait()?;
        ensure!(status.success(), "fio: {status}\n{}", text(&std::fs::read(&self.log)?));
        Ok(())
    }
}

/// fio with direct writes for so long, killed with the thread that started it.
fn fio(device: &Path, runs: Duration) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "fio", "--name=load", "--thread"]);
    command.arg(format!("--filename={}", device.display()));
    command.args(["--direct=1", "--time_based"]).arg(format!("--runtime={}", runs.as_secs()));
    command
}

impl Drop for RandomWrites {
    fn drop(&mut self) {
        // It has ended already where the test has waited for it.
        if matches!(self.fio.try_wait(), Ok(None))
            && let Err(error) = self.fio.kill().and_then(|()| self.fio.wait())
        {
            eprintln!("cannot kill fio: {error}");
        }
    }
}
