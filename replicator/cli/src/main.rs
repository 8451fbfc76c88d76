//! The `redoubt` command: parse, call, print. It decides nothing that a role should decide.

mod arguments;
mod commands;
mod failure;
mod logging;
mod output;
mod progress;
mod roles;
mod table;
mod talk;

use arguments::LogFormat;
use clap::Parser;
use logging::Log;
use redoubt_control::ExitStatus;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = match arguments::Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return refuse(&error),
    };
    let log = Log::new(arguments.log);
    match commands::run(&arguments, &log) {
        Ok(status) => status.into(),
        Err(error) => {
            log.report(&failure::explain(&error));
            failure::exit_status(&error).into()
        }
    }
}

/// Says what is wrong with the command line, or what was asked of it (`--help`, `--version`).
fn refuse(error: &clap::Error) -> ExitCode {
    let format = logging::asked_for(std::env::args_os());
    if !error.use_stderr() || format != Some(LogFormat::Json) {
        error.exit();
    }
    let text = error.to_string();
    Log::new(format).report(text.strip_prefix("error: ").unwrap_or(&text).trim_end());
    ExitStatus::Usage.into()
}
