//! The command line as programs and fingers know it: every command, option, value and default. A
//! change here is a change of the interface, and is told in the changelog.

use super::Arguments;
use clap::{Arg, ArgAction, CommandFactory};
use redoubt_control::RuntimeDirectory;
use std::collections::BTreeMap;

/// Of every command what may be given: `--option VALUE`, `[default]`, `!` where it is needed, `...`
/// where it may be repeated.
const COMMANDS: &[(&str, &[&str])] = &[
    #[cfg(feature = "target")]
    (
        "master-target",
        &[
            "--data DIR [/var/lib/redoubt/target]",
            "--listen ADDR:PORT",
            "--advertise HOST:PORT",
            "--point-interval TIME [5s]",
            "--keep TIME [1h]",
            "--journal-keep TIME [0s]",
            "--journal-budget SIZE [4GiB]",
            "--config FILE [/etc/redoubt/target.toml]",
        ],
    ),
    #[cfg(feature = "target")]
    (
        "invite",
        &[
            "--data DIR [what its configuration says, else /var/lib/redoubt/target]",
            "--machine NAME",
            "--expires TIME [1h]",
            "--config FILE [/etc/redoubt/target.toml]",
            "--json",
        ],
    ),
    #[cfg(feature = "target")]
    ("inspect", &["DIR !", "--finish", "--json"]),
    #[cfg(feature = "agent")]
    (
        "agent",
        &[
            "--state DIR [/var/lib/redoubt/agent]",
            "--token TOKEN",
            "--token-file FILE",
            "--disk DEV[=NAME] ...",
            "--check",
            "--detach",
            "--json",
            "--ring SIZE [64MiB]",
            "--window SIZE [32MiB]",
            "--config FILE [/etc/redoubt/agent.toml]",
        ],
    ),
    #[cfg(feature = "agent")]
    ("disks", &["--json"]),
    ("status", &["--side SIDE", "--watch", "--json"]),
    (
        "mark",
        &[
            "--side SIDE [target]",
            "--machine NAME",
            "--label TEXT",
            "--timeout TIME [60s]",
            "--applied",
            "--json",
        ],
    ),
    ("points", &["--side SIDE [target]", "--machine NAME", "--json"]),
    (
        "copy-out",
        &[
            "--side SIDE [target]",
            "--machine NAME",
            "--disk NAME !",
            "--point POINT [latest]",
            "--to FILE !",
            "--force",
            "--json",
        ],
    ),
    ("verify", &["--side SIDE [target]", "--machine NAME", "--disk NAME", "--json"]),
    ("pause", &["--side SIDE [target]", "--machine NAME", "--json"]),
    ("resume", &["--side SIDE [target]", "--machine NAME", "--json"]),
    (
        "unprotect",
        &["--side SIDE [target]", "--machine NAME", "--disk NAME", "--delete-replica", "--json"],
    ),
    ("place", &["--machine NAME !", "--disk NAME !", "--on DEV !", "--json"]),
    ("completions", &["SHELL !"]),
    ("manual", &["--to DIR !"]),
];

/// What every command takes, too.
const GLOBAL: &[&str] = &["--log FORMAT [text]", "--runtime-dir DIR [/run/redoubt]"];

/// The fixed values of options.
const VALUES: &[(&str, &[&str])] = &[("side", &["agent", "target"]), ("log", &["text", "json"])];

fn written(argument: &Arg) -> String {
    let mut text = argument.get_long().map_or_else(String::new, |long| format!("--{long}"));
    let takes_value = argument.get_action().takes_values();
    if let Some(name) = argument.get_value_names().filter(|_| takes_value) {
        text = format!("{text} {}", name.join(" ")).trim().to_owned();
    }
    if let Some(default) = default(argument) {
        text = format!("{text} [{default}]");
    }
    let marks = [
        (argument.is_required_set(), " !"),
        (matches!(argument.get_action(), ArgAction::Append), " ..."),
    ];
    marks.iter().filter(|(is, _)| *is).for_each(|(_, mark)| text.push_str(mark));
    text
}

/// What the parser fills in, or what the help says that is filled in later (for a file may have a
/// word on it).
fn default(argument: &Arg) -> Option<String> {
    if let Some(value) = argument.get_default_values().first().filter(|_| !is_switch(argument)) {
        return Some(value.to_string_lossy().into_owned());
    }
    let help = argument.get_help()?.to_string();
    let (_, tail) = help.split_once("[default: ")?;
    Some(tail.split_once(']')?.0.to_owned())
}

fn is_switch(argument: &Arg) -> bool {
    !argument.get_action().takes_values()
}

fn options(command: &clap::Command, global: bool) -> Vec<String> {
    let own = command.get_arguments().filter(|argument| {
        argument.is_global_set() == global
            && !["help", "version"].contains(&argument.get_id().as_str())
    });
    own.map(written).collect()
}

#[test]
fn every_option_and_default_is_as_agreed() {
    let command = Arguments::command();
    let found: BTreeMap<String, Vec<String>> = command
        .get_subcommands()
        .map(|sub| (sub.get_name().to_owned(), options(sub, false)))
        .collect();
    let agreed: BTreeMap<String, Vec<String>> = COMMANDS
        .iter()
        .map(|(name, options)| ((*name).to_owned(), options.iter().map(|o| (*o).into()).collect()))
        .collect();
    assert_eq!(found, agreed);
    assert_eq!(options(&command, true), GLOBAL);
    assert_eq!(RuntimeDirectory::DEFAULT, "/run/redoubt");
    assert_eq!(RuntimeDirectory::VARIABLE, "REDOUBT_RUNTIME_DIR");
}

#[test]
fn fixed_values_are_as_agreed_and_explained() {
    let mut command = Arguments::command();
    command.build();
    let arguments = command.get_subcommands().flat_map(clap::Command::get_arguments);
    let mut seen = 0;
    for argument in arguments {
        let Some((_, agreed)) = VALUES.iter().find(|(id, _)| argument.get_id() == id) else {
            continue;
        };
        let values = argument.get_possible_values();
        let names: Vec<&str> = values.iter().map(|value| value.get_name()).collect();
        assert_eq!(&names, agreed);
        assert!(values.iter().all(|value| value.get_help().is_some()), "{}", argument.get_id());
        seen += 1;
    }
    assert!(seen > VALUES.len());
}

/// What a role is run with stands in its file, too, under the option's name.
#[cfg(all(feature = "agent", feature = "target"))]
#[test]
fn every_option_of_a_role_is_a_key_of_its_file() {
    use redoubt_control::config::{self, AgentFile, ConfigError, TargetFile};
    let base = tempfile::tempdir().unwrap();
    let path = base.path().join("role.toml");
    let refusal = |role: &str| -> String {
        let loaded: Result<(), ConfigError> = match role {
            "agent" => config::load::<AgentFile>(Some(&path), &path).map(drop),
            _ => config::load::<TargetFile>(Some(&path), &path).map(drop),
        };
        loaded.unwrap_err().to_string()
    };
    // Not of a role that runs, or (a token) a secret that is good once.
    let not_in_file = ["config", "check", "detach", "json", "token"];
    let mut command = Arguments::command();
    command.build();
    let mut seen = 0;
    for role in ["agent", "master-target"] {
        let sub = command.find_subcommand(role).unwrap();
        for long in sub.get_arguments().filter_map(Arg::get_long) {
            if ["help", "version"].contains(&long) {
                continue;
            }
            // Nothing is written as a date: what is wrong is the value or the key.
            std::fs::write(&path, format!("{} = 1979-05-27\n", long.replace('-', "_"))).unwrap();
            let error = refusal(role);
            assert_eq!(error.contains("unknown field"), not_in_file.contains(&long), "{error}");
            seen += 1;
        }
    }
    assert_eq!(seen, 12 + 10);
}
