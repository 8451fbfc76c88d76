//! Configuration files: TOML, every key optional, every unknown key and wrong value an error with
//! file and line. Flags beat the file; that is decided where flags are known, not here.

use crate::bounded::{KeepTime, PointInterval, RingSize, WindowSize};
use crate::options::{DiskArgument, HostPort, LogFormat};
use crate::units::{Size, Span};
use redoubt_log::Name;
use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::{fmt, fs, io};

/// Where the agent's file stands unless `--config` says otherwise.
pub const AGENT_FILE: &str = "/etc/redoubt/agent.toml";
/// Where the target's file stands unless `--config` says otherwise.
pub const TARGET_FILE: &str = "/etc/redoubt/target.toml";

/// `agent.toml`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AgentFile {
    /// As `--state`.
    pub state: Option<PathBuf>,
    /// As `--token-file`; a token itself does not belong into a configuration.
    pub token_file: Option<PathBuf>,
    /// As `--runtime-dir`.
    pub runtime_dir: Option<PathBuf>,
    /// As `--disk`: `[[disk]]` tables.
    pub disk: Vec<DiskEntry>,
    /// As `--ring`.
    pub ring: Option<RingSize>,
    /// As `--window`.
    pub window: Option<WindowSize>,
    /// As `--log`.
    pub log: Option<LogFormat>,
}

/// One `[[disk]]` of `agent.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskEntry {
    /// The device node: an absolute path.
    #[serde(deserialize_with = "device")]
    pub device: PathBuf,
    /// The name to protect it under.
    pub name: Option<Name>,
}

/// `target.toml`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TargetFile {
    /// As `--data`.
    pub data: Option<PathBuf>,
    /// As `--listen`.
    #[serde(deserialize_with = "parsed")]
    pub listen: Option<SocketAddr>,
    /// As `--advertise`.
    #[serde(deserialize_with = "parsed")]
    pub advertise: Option<HostPort>,
    /// As `--point-interval`.
    pub point_interval: Option<PointInterval>,
    /// As `--keep`.
    pub keep: Option<KeepTime>,
    /// As `--journal-keep`.
    pub journal_keep: Option<Span>,
    /// As `--journal-budget`.
    pub journal_budget: Option<Size>,
    /// As `--runtime-dir`.
    pub runtime_dir: Option<PathBuf>,
    /// As `--log`.
    pub log: Option<LogFormat>,
}

/// What is wrong with a configuration file.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("configuration {path} cannot be read: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line of it is wrong.
    #[error("configuration {path}, line {line}: {message}")]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
}

/// Reads `chosen`, or `default` where nothing was chosen; a default that does not exist is empty.
///
/// # Errors
/// The file cannot be read (a chosen one must exist), or holds an unknown key or a wrong value.
pub fn load<T>(chosen: Option<&Path>, default: &Path) -> Result<T, ConfigError>
where
    T: DeserializeOwned + Default,
{
    let path = chosen.unwrap_or(default);
    match fs::read_to_string(path) {
        Ok(text) => parse(path, &text),
        Err(error) if chosen.is_none() && error.kind() == io::ErrorKind::NotFound => {
            Ok(T::default())
        }
        Err(source) => Err(ConfigError::Read { path: path.to_owned(), source }),
    }
}

fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        ConfigError::Line {
            path: path.to_owned(),
            line: before.matches('\n').count() + 1,
            message: error.message().to_owned(),
        }
    })
}

fn parsed<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
{
    String::deserialize(deserializer)?.parse().map(Some).map_err(D::Error::custom)
}

fn device<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.starts_with('/') {
        return Ok(text.into());
    }
    Err(D::Error::custom(format!(
        "{text:?} is not a device: give an absolute path such as /dev/sda"
    )))
}

impl From<DiskEntry> for DiskArgument {
    fn from(entry: DiskEntry) -> Self {
        Self { device: entry.device, name: entry.name }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error<T: DeserializeOwned + fmt::Debug>(text: &str) -> String {
        parse::<T>(Path::new("/etc/x.toml"), text).unwrap_err().to_string()
    }

    #[test]
    fn every_key_is_read() {
        let target: TargetFile = parse(
            Path::new("t"),
            "data = \"/srv\"\nlisten = \"0.0.0.0:7401\"\nadvertise = \"h.example:7401\"\n\
             point_interval = \"5s\"\n\
             keep = \"30d\"\njournal_keep = \"0s\"\njournal_budget = \"1GiB\"\n\
             runtime_dir = \"/run/x\"\nlog = \"json\"\n",
        )
        .unwrap();
        assert_eq!(target.listen.unwrap().port(), 7401);
        assert_eq!(target.advertise.unwrap().host, "h.example");
        assert_eq!(target.keep.unwrap().duration().as_secs(), 30 * 86_400);
        assert_eq!(target.journal_budget.unwrap().0, 1 << 30);
        assert_eq!((target.log, target.data), (Some(LogFormat::Json), Some("/srv".into())));
        let agent: AgentFile = parse(
            Path::new("a"),
            "state = \"/s\"\ntoken_file = \"/t\"\nruntime_dir = \"/run/x\"\nring = \"8MiB\"\n\
             window = \"16MiB\"\nlog = \"text\"\n[[disk]]\ndevice = \"/dev/sda\"\n[[disk]]\n\
             device = \"/dev/sdb\"\nname = \"db\"\n",
        )
        .unwrap();
        assert_eq!(agent.ring, Some("8MiB".parse().unwrap()));
        assert_eq!(agent.window, Some("16MiB".parse().unwrap()));
        assert_eq!((agent.log, agent.token_file), (Some(LogFormat::Text), Some("/t".into())));
        let disks: Vec<_> = agent.disk.into_iter().map(DiskArgument::from).collect();
        assert_eq!(disks, ["/dev/sda".parse().unwrap(), "/dev/sdb=db".parse().unwrap()]);
    }

    #[test]
    fn errors_name_file_and_line() {
        let unknown = error::<TargetFile>("data = \"/srv\"\n\nkeeep = \"1h\"\n");
        assert!(
            unknown.starts_with("configuration /etc/x.toml, line 3: unknown field `keeep`"),
            "{unknown}"
        );
        let span = error::<TargetFile>("# retention\nkeep = \"1 hour\"\n");
        assert!(span.contains("line 2: \"1 hour\" is not a length of time"), "{span}");
        let size = error::<AgentFile>("ring = \"64MB\"");
        assert!(size.contains("line 1: \"64MB\" is not a size"), "{size}");
        let ring = error::<AgentFile>("\nring = \"48MiB\"");
        assert!(ring.contains("line 2: a ring of 48MiB is not possible"), "{ring}");
        let window = error::<AgentFile>("\nwindow = \"1MiB\"");
        assert!(window.contains("line 2: 1MiB is not possible"), "{window}");
        let interval = error::<TargetFile>("\npoint_interval = \"0s\"");
        assert!(interval.contains("line 2: points cannot be taken every 0s"), "{interval}");
        let keep = error::<TargetFile>("keep = \"0s\"");
        assert!(keep.contains("line 1: points that are kept for 0s"), "{keep}");
        let listen = error::<TargetFile>("\nlisten = \"nowhere\"");
        assert!(listen.contains("line 2: "), "{listen}");
        let device = error::<AgentFile>("\n[[disk]]\ndevice = \"sda\"\n");
        assert!(device.contains("line 3: \"sda\" is not a device"), "{device}");
        let name = error::<AgentFile>("[[disk]]\ndevice = \"/dev/sda\"\nname = \"A B\"\n");
        assert!(name.contains("line 3: name \"A B\" is not allowed"), "{name}");
        let log = error::<AgentFile>("\n\nlog = \"xml\"\n");
        assert!(log.contains("line 3: unknown variant `xml`, expected `text` or `json`"), "{log}");
        let syntax = error::<AgentFile>("state = \"/s\"\nring = = 3\n");
        assert!(syntax.contains("line 2: "), "{syntax}");
        let twice = error::<AgentFile>("state = \"/s\"\nstate = \"/t\"\n");
        assert!(twice.contains("line 2: "), "{twice}");
    }

    #[test]
    fn only_a_default_file_may_be_missing() {
        let none = Path::new("/nonexistent/agent.toml");
        assert!(load::<AgentFile>(None, none).unwrap().state.is_none());
        let error = load::<AgentFile>(Some(none), none).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/agent.toml cannot be read"), "{error}");
    }
}
