//! What the built command prints with `--json`, held against the schemas of docs/interface. It
//! knows the outputs by these files alone, as any other program does.

use anyhow::{Context, Result, ensure};
use jsonschema::{Draft, Validator};
use redoubt_e2e::command::{output, text};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;

/// The schema of one output.
pub struct Schema {
    name: String,
    validator: Validator,
}

impl Schema {
    /// The one of this name.
    pub fn load(name: &str) -> Result<Self> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/interface");
        let path = directory.join(format!("{name}.schema.json"));
        let stored = fs::read(&path).with_context(|| path.display().to_string())?;
        let options = jsonschema::options().with_draft(Draft::Draft202012);
        let validator =
            options.should_validate_formats(true).build(&serde_json::from_slice(&stored)?)?;
        Ok(Self { name: name.to_owned(), validator })
    }

    /// A line that follows the schema.
    pub fn check(&self, line: &str) -> Result<Value> {
        let value = serde_json::from_str(line).with_context(|| format!("{}: {line}", self.name))?;
        let wrong: Vec<String> = self
            .validator
            .iter_errors(&value)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect();
        ensure!(wrong.is_empty(), "{}: {}\n{value:#}", self.name, wrong.join("\n"));
        Ok(value)
    }

    /// A whole output: lines that each follow the schema, and nothing else.
    pub fn check_lines(&self, printed: &str) -> Result<Vec<Value>> {
        ensure!(printed.is_empty() || printed.ends_with('\n'), "{}: {printed:?}", self.name);
        printed.lines().map(|line| self.check(line)).collect()
    }

    /// Runs a command that must end with this status and print one line that follows the schema.
    pub fn printed(&self, command: &mut Command, status: i32) -> Result<Value> {
        let ended = output(command.arg("--json"))?;
        let told = || format!("{command:?}: {}: {}", ended.status, text(&ended.stderr));
        ensure!(ended.status.code() == Some(status), "{}", told());
        let mut lines = self.check_lines(&text(&ended.stdout)).with_context(told)?;
        ensure!(lines.len() == 1, "{}: {} lines", told(), lines.len());
        Ok(lines.remove(0))
    }
}

/// Runs a command that must fail with this status: with `--json`, too, standard output stays empty,
/// and the message is an object of the log where that is JSON.
pub fn refused(command: &mut Command, status: i32) -> Result<String> {
    let ended = output(command.args(["--json", "--log", "json"]))?;
    let error = text(&ended.stderr);
    ensure!(ended.status.code() == Some(status), "{command:?}: {}: {error}", ended.status);
    ensure!(ended.stdout.is_empty(), "{command:?} prints {}", text(&ended.stdout));
    let entry = error.lines().last().with_context(|| format!("{command:?} says nothing"))?;
    let entry: Value = serde_json::from_str(entry).with_context(|| error.clone())?;
    ensure!(entry["level"] == "ERROR", "{entry:#}");
    Ok(entry["message"].as_str().context("no message")?.to_owned())
}
