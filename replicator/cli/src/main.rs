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

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = arguments::Arguments::parse();
    logging::start(arguments.log);
    match commands::run(&arguments) {
        Ok(status) => status.into(),
        Err(error) => {
            logging::report(arguments.log, &failure::explain(&error));
            failure::exit_status(&error).into()
        }
    }
}
