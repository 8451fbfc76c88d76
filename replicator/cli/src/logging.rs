//! Logs go to standard error, which results never do, as text or JSON. `REDOUBT_LOG` chooses what
//! is logged.

use crate::arguments::LogFormat;
use clap::ValueEnum;
use std::cell::OnceCell;
use std::ffi::OsString;
use std::io::{self, IsTerminal};
use tracing_subscriber::filter::{EnvFilter, LevelFilter};

/// The log of this process. Of a role its format is known only when its file has been read.
pub struct Log {
    flag: Option<LogFormat>,
    started: OnceCell<LogFormat>,
}

impl Log {
    /// A log that is yet to be started, and the format that the command line asks for.
    pub fn new(flag: Option<LogFormat>) -> Self {
        Self { flag, started: OnceCell::new() }
    }

    /// Starts the log: the flag beats the file. Once it runs it stays as it is.
    pub fn start(&self, file: Option<LogFormat>) -> LogFormat {
        *self.started.get_or_init(|| {
            let format = self.flag.or(file).unwrap_or(LogFormat::Text);
            start(format);
            format
        })
    }

    /// Tells why the command ends as it does.
    pub fn report(&self, message: &str) {
        match self.start(None) {
            LogFormat::Text => eprintln!("redoubt: {message}"),
            LogFormat::Json => tracing::error!("{message}"),
        }
    }
}

fn start(format: LogFormat) {
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

/// The format that words ask for which are no command line as a whole: what is wrong with them is
/// told in it.
pub fn asked_for(words: impl Iterator<Item = OsString>) -> Option<LogFormat> {
    let mut words = words.take_while(|word| word != "--");
    while let Some(word) = words.next() {
        let format = match word.to_str()? {
            "--log" => words.next()?,
            word => match word.strip_prefix("--log=") {
                Some(format) => format.into(),
                None => continue,
            },
        };
        return LogFormat::from_str(format.to_str()?, false).ok();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_format_is_found_among_wrong_words() {
        let asked = |words: &str| asked_for(words.split(' ').map(OsString::from));
        for words in ["mark --log json --lable x", "--log=json frobnicate", "x --log json"] {
            assert_eq!(asked(words), Some(LogFormat::Json), "{words}");
        }
        for words in ["mark", "mark --log", "mark --log xml", "mark -- --log json"] {
            assert_eq!(asked(words), None, "{words}");
        }
        assert_eq!(asked("--log text x"), Some(LogFormat::Text));
    }
}
