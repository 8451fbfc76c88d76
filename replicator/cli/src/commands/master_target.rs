//! `redoubt master-target`: starts the role at the second site. Flags beat the file; the rest is
//! the role's.

use crate::arguments::Arguments;
use crate::failure::{explain, usage};
use crate::logging::Log;
use crate::output::{self, Reader};
use crate::roles;
use clap::Args;
use redoubt_control::config::{self, ConfigError, TARGET_FILE, TargetFile};
use redoubt_control::options::{
    JOURNAL_BUDGET_BYTES_DEFAULT, JOURNAL_KEEP_DEFAULT, KEEP_DEFAULT, POINT_INTERVAL_DEFAULT,
};
use redoubt_control::{ExitStatus, HostPort, KeepTime, PointInterval, Size, Span, TargetOptions};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Where a target keeps everything unless the operator says otherwise.
const DATA_DEFAULT: &str = "/var/lib/redoubt/target";

/// Run the master target: it keeps replica disks and recovery points.
#[derive(Debug, Args)]
#[command(
    long_about = "Run the master target: it takes what agents ship, applies it to replica disks \
        and keeps recovery points.\n\n\
        The first start makes the site's identity. Replica disks are sparse files below the data \
        directory, or devices that `redoubt place` has chosen. Prints `listening on ADDR:PORT` \
        once it serves, and runs until SIGTERM.",
    after_long_help = "Examples:\n  \
        redoubt master-target --listen 10.0.0.7:7401\n  \
        redoubt master-target --data /srv/replicas --listen 0.0.0.0:7401 \\\n    \
        --advertise replica.example.org:7401 --point-interval 10s --keep 1d\n\n\
        What it runs with may stand in /etc/redoubt/target.toml, too; flags beat it:\n  \
        listen = \"10.0.0.7:7401\"\n  \
        point_interval = \"10s\"\n  \
        keep = \"1d\""
)]
pub struct MasterTarget {
    /// Directory of identity, journals, replica disks and points [default:
    /// /var/lib/redoubt/target].
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,

    /// Where agents connect; port 0 takes a free one.
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,

    /// What tokens tell agents to connect to; needed where --listen is a wildcard.
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<HostPort>,

    /// Time between two recovery points [default: 5s].
    #[arg(long, value_name = "TIME")]
    point_interval: Option<PointInterval>,

    /// How long recovery points are kept [default: 1h].
    #[arg(long, value_name = "TIME")]
    keep: Option<KeepTime>,

    /// How long the journal is kept after it was applied [default: 0s].
    #[arg(long, value_name = "TIME")]
    journal_keep: Option<Span>,

    /// Journal of one machine beyond which catch-up is applied in steps [default: 4GiB].
    #[arg(long, value_name = "SIZE")]
    journal_budget: Option<Size>,

    /// Configuration file [default: /etc/redoubt/target.toml].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Runs the role to its end.
pub fn run(command: &MasterTarget, arguments: &Arguments, log: &Log) -> anyhow::Result<ExitStatus> {
    let file = load(command.config.as_deref())?;
    log.start(file.log.map(Into::into));
    let options = merge(command, file, arguments)?;
    roles::run_target(options, |address| {
        match output::show(&format!("listening on {address}\n")) {
            Ok(Reader::There) => {}
            Ok(Reader::Gone) => tracing::warn!("nobody reads the address on standard output"),
            Err(error) => tracing::warn!("{}", explain(&error)),
        }
    })?;
    Ok(ExitStatus::Done)
}

/// The target's configuration.
pub fn load(chosen: Option<&Path>) -> Result<TargetFile, ConfigError> {
    config::load(chosen, Path::new(TARGET_FILE))
}

/// The target's directory by flag, by file or by default.
pub fn data_of(flag: Option<&Path>, file: Option<PathBuf>) -> PathBuf {
    flag.map(Path::to_owned).or(file).unwrap_or_else(|| DATA_DEFAULT.into())
}

fn merge(
    command: &MasterTarget,
    file: TargetFile,
    arguments: &Arguments,
) -> anyhow::Result<TargetOptions> {
    let listen = command.listen.or(file.listen).ok_or_else(|| {
        usage("where to listen is not known: give --listen ADDR:PORT, such as 10.0.0.7:7401")
    })?;
    let advertise = command.advertise.clone().or(file.advertise);
    if listen.ip().is_unspecified() && advertise.is_none() {
        return Err(usage(format!(
            "agents cannot connect to the wildcard {listen}: give --advertise HOST:PORT, too"
        )));
    }
    let point_interval = command.point_interval.or(file.point_interval);
    let journal_keep = command.journal_keep.or(file.journal_keep);
    let budget = command.journal_budget.or(file.journal_budget);
    Ok(TargetOptions {
        data: data_of(command.data.as_deref(), file.data),
        listen,
        advertise,
        point_interval: point_interval.map_or(POINT_INTERVAL_DEFAULT, PointInterval::duration),
        keep: command.keep.or(file.keep).map_or(KEEP_DEFAULT, KeepTime::duration),
        journal_keep: journal_keep.map_or(JOURNAL_KEEP_DEFAULT, |span| span.0),
        journal_budget_bytes: budget.map_or(JOURNAL_BUDGET_BYTES_DEFAULT, |size| size.0),
        runtime: arguments.runtime(file.runtime_dir),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::Command;
    use crate::failure::exit_status;
    use clap::Parser;

    fn merged(flags: &[&str], file: TargetFile) -> anyhow::Result<TargetOptions> {
        let words = ["redoubt", "master-target"].iter().chain(flags);
        let arguments = Arguments::try_parse_from(words).unwrap();
        let Command::MasterTarget(command) = &arguments.command else { panic!() };
        merge(command, file, &arguments)
    }

    #[test]
    fn defaults_are_those_of_the_manual() {
        let options = merged(&["--listen", "127.0.0.1:0"], TargetFile::default()).unwrap();
        assert_eq!(options.data, Path::new("/var/lib/redoubt/target"));
        assert_eq!((options.point_interval.as_secs(), options.keep.as_secs()), (5, 3600));
        assert_eq!((options.journal_keep.as_secs(), options.journal_budget_bytes), (0, 4 << 30));
        assert_eq!(options.advertise, None);
    }

    #[test]
    fn flags_beat_the_file() {
        let file = || TargetFile {
            listen: Some("127.0.0.1:1".parse().unwrap()),
            keep: Some("2h".parse().unwrap()),
            runtime_dir: Some("/run/file".into()),
            ..TargetFile::default()
        };
        let from_file = merged(&[], file()).unwrap();
        assert_eq!((from_file.listen.port(), from_file.keep.as_secs()), (1, 7200));
        let flags = ["--listen", "127.0.0.1:2", "--keep", "3h", "--runtime-dir", "/run/flag"];
        let both = merged(&flags, file()).unwrap();
        assert_eq!((both.listen.port(), both.keep.as_secs()), (2, 3 * 3600));
        assert_eq!(both.runtime.path(), Path::new("/run/flag"));
    }

    #[test]
    fn what_cannot_work_is_a_usage_error() {
        for (flags, word) in [(&[][..], "--listen"), (&["--listen", "0.0.0.0:7401"], "--advertise")]
        {
            let error = merged(flags, TargetFile::default()).unwrap_err();
            assert_eq!(exit_status(&error), ExitStatus::Usage);
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
