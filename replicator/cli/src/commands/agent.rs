//! `redoubt agent`: starts the role of a protected machine, checks whether it could, or removes its
//! traces. Flags beat the file; the rest is the role's.

use super::disks;
use crate::arguments::Arguments;
use crate::logging::Log;
use crate::{output, roles};
use anyhow::Context;
use clap::Args;
use redoubt_control::config::{self, AGENT_FILE, AgentFile};
use redoubt_control::options::{RING_BYTES_DEFAULT, WINDOW_BYTES_DEFAULT};
use redoubt_control::status::CheckReport;
use redoubt_control::{AgentOptions, DiskArgument, ExitStatus, RingSize, Token, WindowSize};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::{fmt, fs};

/// Run the agent of this machine: it ships every write to the master target.
#[derive(Debug, Args)]
#[command(
    long_about = "Run the agent of this machine: it tracks every write to the disks and ships it \
        to the master target.\n\n\
        The token of `redoubt invite` is needed the first time and ignored later. Disks are \
        remembered; more --disk later adds, and `redoubt unprotect` takes away. An unreachable \
        target is retried for ever. Runs until SIGTERM; writes are marked in the kernel even \
        while it is stopped.",
    after_long_help = "Examples:\n  \
        redoubt agent --check --disk /dev/sda\n  \
        redoubt agent --token-file /root/token --disk /dev/sda=root --disk /dev/sdb\n  \
        redoubt agent --detach\n\n\
        What the agent runs with may stand in /etc/redoubt/agent.toml, too; flags beat it:\n  \
        token_file = \"/root/token\"\n  \
        [[disk]]\n  \
        device = \"/dev/sda\"\n  \
        name = \"root\""
)]
pub struct Agent {
    /// Directory of identity and tracking state [default: /var/lib/redoubt/agent].
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,

    /// The token of an invitation; other users can see it in the process list.
    #[arg(long, value_name = "TOKEN", value_parser = token, conflicts_with = "token_file")]
    token: Option<Token>,

    /// File that holds the token, or - for standard input.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,

    /// A disk or partition to protect, and its name; may be given several times.
    #[arg(long = "disk", value_name = "DEV[=NAME]")]
    disks: Vec<DiskArgument>,

    /// Only say whether this machine and these disks (of --disk or the file) can be protected, or
    /// why not and what to do; exit status 3 if not.
    #[arg(long, conflicts_with = "detach")]
    check: bool,

    /// Remove what an agent with this state directory left in the kernel; tracking ends.
    #[arg(long)]
    detach: bool,

    /// With --check: print a JSON object.
    #[arg(long, requires = "check")]
    json: bool,

    /// Memory between kernel and agent: a power of two, 1MiB to 1GiB [default: 64MiB].
    #[arg(long, value_name = "SIZE")]
    ring: Option<RingSize>,

    /// Memory for what is sent and not acknowledged, 4MiB to 1GiB [default: 32MiB].
    #[arg(long, value_name = "SIZE")]
    window: Option<WindowSize>,

    /// Configuration file [default: /etc/redoubt/agent.toml].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

const STATE_DEFAULT: &str = "/var/lib/redoubt/agent";
/// A token is a line of text: more is another file.
const TOKEN_LIMIT_BYTES: u64 = 64 << 10;

/// Runs the role to its end, or checks, or detaches.
pub fn run(command: &Agent, arguments: &Arguments, log: &Log) -> anyhow::Result<ExitStatus> {
    let file: AgentFile = config::load(command.config.as_deref(), Path::new(AGENT_FILE))?;
    log.start(file.log.map(Into::into));
    let token_file = command.token_file.clone().or_else(|| file.token_file.clone());
    let mut options = merge(command, file, arguments);
    if command.detach {
        roles::detach_agent(&options.state)?;
        return Ok(ExitStatus::Done);
    }
    if command.check {
        return check(&options, command.json);
    }
    if let (None, Some(path)) = (&options.token, token_file) {
        options.token = Some(read_token(&path)?);
    }
    roles::run_agent(options)?;
    Ok(ExitStatus::Done)
}

fn check(options: &AgentOptions, json: bool) -> anyhow::Result<ExitStatus> {
    let report = roles::check_agent(options)?;
    match json {
        true => output::print_json(&report)?,
        false => output::print(&render(&report))?,
    }
    Ok(if report.is_protectable() { ExitStatus::Done } else { ExitStatus::No })
}

fn render(report: &CheckReport) -> String {
    let why = disks::reason(report.reason.as_deref(), report.remedy.as_deref());
    let machine = match report.mode {
        Some(mode) if report.reason.is_none() => format!("this machine: {mode} mode"),
        Some(mode) => format!("this machine: {mode} mode only: {why}"),
        None => format!("this machine cannot be protected: {why}"),
    };
    match report.disks.is_empty() {
        true => {
            format!("{machine}\nno disk was checked: give --disk DEV; `redoubt disks` lists them\n")
        }
        false => format!("{machine}\n{}", disks::render(&report.disks)),
    }
}

fn merge(command: &Agent, file: AgentFile, arguments: &Arguments) -> AgentOptions {
    let ring = command.ring.or(file.ring);
    let window = command.window.or(file.window);
    // Disks on the command line stand for all of the file's, as any flag does.
    let disks = match command.disks.is_empty() {
        true => file.disk.into_iter().map(DiskArgument::from).collect(),
        false => command.disks.clone(),
    };
    AgentOptions {
        state: command.state.clone().or(file.state).unwrap_or_else(|| STATE_DEFAULT.into()),
        token: command.token.clone(),
        disks,
        runtime: arguments.runtime(file.runtime_dir),
        ring_bytes: ring.map_or(RING_BYTES_DEFAULT, RingSize::bytes),
        window_bytes: window.map_or(WINDOW_BYTES_DEFAULT, WindowSize::bytes),
    }
}

fn token(text: &str) -> Result<Token, fmt::Error> {
    Ok(Token::new(text))
}

/// Reads the last line that is not empty: what `redoubt invite` printed may be given as it is.
fn read_token(path: &Path) -> anyhow::Result<Token> {
    let mut text = String::new();
    let from_input = path == Path::new("-");
    let shown = match from_input {
        true => "standard input".to_owned(),
        false => format!("token file {}", path.display()),
    };
    if from_input {
        io::stdin().lock().take(TOKEN_LIMIT_BYTES).read_to_string(&mut text)
    } else {
        fs::File::open(path).and_then(|file| file.take(TOKEN_LIMIT_BYTES).read_to_string(&mut text))
    }
    .with_context(|| format!("{shown} cannot be read"))?;
    let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty());
    line.map(Token::new).with_context(|| format!("{shown} is empty: run redoubt invite"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::Command;
    use clap::Parser;

    fn merged(flags: &[&str], file: AgentFile) -> AgentOptions {
        let words = ["redoubt", "agent"].iter().chain(flags);
        let arguments = Arguments::try_parse_from(words).unwrap();
        let Command::Agent(command) = &arguments.command else { panic!() };
        merge(command, file, &arguments)
    }

    #[test]
    fn defaults_are_those_of_the_manual() {
        let options = merged(&["--disk", "/dev/sda=root"], AgentFile::default());
        assert_eq!(options.state, Path::new("/var/lib/redoubt/agent"));
        assert_eq!((options.ring_bytes, options.window_bytes), (64 << 20, 32 << 20));
        assert_eq!(options.disks, ["/dev/sda=root".parse().unwrap()]);
        assert_eq!(options.token, None);
    }

    #[test]
    fn a_check_without_a_disk_says_that_none_was_checked() {
        let mode = Some(redoubt_control::status::TrackerMode::Data);
        let report = CheckReport { mode, reason: None, remedy: None, disks: Vec::new() };
        let text = render(&report);
        assert!(text.starts_with("this machine: data mode\nno disk was checked: "), "{text}");
        assert!(text.contains("redoubt disks"), "{text}");
    }

    #[test]
    fn impossible_memory_is_a_usage_error() {
        for flags in
            [["--ring", "48MiB"], ["--ring", "2GiB"], ["--ring", "4KiB"], ["--window", "1MiB"]]
        {
            let words = ["redoubt", "agent"].iter().chain(&flags);
            let error = Arguments::try_parse_from(words).unwrap_err();
            assert_eq!(error.exit_code(), i32::from(ExitStatus::Usage.code()), "{error}");
        }
    }

    #[test]
    fn a_token_file_may_hold_all_that_invite_printed() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("token");
        fs::write(&path, "a token for web-01:\n\nsecret\n\n").unwrap();
        assert_eq!(read_token(&path).unwrap().expose(), "secret");
        fs::write(&path, "\n").unwrap();
        assert!(read_token(&path).unwrap_err().to_string().contains("is empty"));
        let missing = read_token(&base.path().join("none")).unwrap_err();
        assert!(missing.to_string().contains("none cannot be read"));
    }
}
