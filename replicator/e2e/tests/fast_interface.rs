//! The JSON of commands that need no protected machine, from the built command: a target alone, a
//! directory, this machine's disks; and what is printed where nothing can be. It needs no root.

mod interface;

use anyhow::{Result, ensure};
use interface::{Schema, refused};
use redoubt_e2e::disk::scratch;
use redoubt_e2e::site::{Plan, Role, Site, binary};
use std::fs;
use std::process::Command;

#[test]
fn a_target_alone_prints_what_the_schemas_say() -> Result<()> {
    let scratch = scratch()?;
    let mut site =
        Site::prepare(scratch.path(), &Plan { disks: Vec::new(), point_interval: "1s" }, &[])?;
    let data = site.data();
    let mut invite = site.command(Role::Target);
    invite.args(["invite", "--machine", "web-01", "--data"]).arg(&data);
    let invited = Schema::load("invite")?.printed(&mut invite, 0)?;
    ensure!(invited["token"].as_str().is_some_and(|token| !token.is_empty()));

    let status = Schema::load("status")?.printed(site.command(Role::Target).arg("status"), 0)?;
    ensure!(status["role"] == "target" && status["machines"] == serde_json::json!([]));
    for words in [
        &["points"][..],
        &["mark"],
        &["verify"],
        &["pause", "--machine", "nobody"],
        &["resume"],
        &["unprotect", "--disk", "sda"],
        &["copy-out", "--disk", "sda", "--to", "/nonexistent/x"],
        &["place", "--machine", "web-01", "--disk", "sda", "--on", "/dev/null"],
    ] {
        let why = refused(site.command(Role::Target).args(words), 1)?;
        ensure!(!why.is_empty(), "{words:?}");
    }

    let inspect = Schema::load("inspect")?;
    let mut beside = site.command(Role::Target);
    let said = inspect.printed(beside.arg("inspect").arg(&data), 0)?;
    ensure!(said["running"] == true && said["site"]["unused_invitations"] == 2, "{said:#}");
    let audit = Schema::load("audit")?.check_lines(&site.audited(Role::Target)?)?;
    ensure!(audit.iter().any(|entry| entry["action"] == "invite"), "{audit:?}");
    site.stop_role(Role::Target)?;

    // An answer that is no is printed like any other.
    fs::write(data.join("site/identity/server.cert.pem"), "damage")?;
    let said = inspect.printed(Command::new(binary()?).arg("inspect").arg(&data), 3)?;
    ensure!(said["verdict"] == "damaged", "{said:#}");
    refused(Command::new(binary()?).arg("inspect").arg(scratch.path()), 1)?;
    refused(Command::new(binary()?).args(["inspect", "/nonexistent"]), 1).map(drop)
}

#[test]
fn this_machine_and_its_disks_are_told_by_the_schemas() -> Result<()> {
    Schema::load("disks")?.printed(Command::new(binary()?).arg("disks"), 0)?;
    let scratch = scratch()?;
    let state = scratch.path().join("state");
    let mut check = Command::new(binary()?);
    check.args(["agent", "--check", "--disk", "/dev/null", "--state"]).arg(&state);
    let said = Schema::load("check")?.printed(&mut check, 3)?;
    ensure!(said["disks"][0]["mode"].is_null() && said["disks"][0]["reason"].is_string());
    ensure!(!state.exists(), "a check changes nothing");
    Ok(())
}

#[test]
fn where_no_role_runs_standard_output_is_empty() -> Result<()> {
    let scratch = scratch()?;
    for words in [
        &["status"][..],
        &["status", "--watch"],
        &["status", "--side", "agent"],
        &["points"],
        &["mark"],
        &["verify"],
        &["pause"],
        &["resume"],
        &["unprotect"],
        &["copy-out", "--disk", "sda", "--to", "x"],
        &["place", "--machine", "web-01", "--disk", "sda", "--on", "/dev/null"],
    ] {
        let mut command = Command::new(binary()?);
        command.arg("--runtime-dir").arg(scratch.path()).args(words);
        let why = refused(&mut command, 5)?;
        ensure!(why.contains("--runtime-dir"), "{words:?}: {why}");
    }
    Ok(())
}

#[test]
fn a_wrong_command_line_is_told_in_the_log_that_it_asks_for() -> Result<()> {
    for (words, expected) in [
        (&["mark", "--lable", "x"][..], "--lable"),
        (&["frobnicate"], "frobnicate"),
        (&["copy-out", "--to", "x"], "--disk"),
        (&["points", "--machine", "A B"], "is not allowed"),
        (&["mark", "--timeout", "60"], "is not a length of time"),
    ] {
        let why = refused(Command::new(binary()?).args(words), 2)?;
        ensure!(why.contains(expected) && !why.starts_with("error"), "{words:?}: {why}");
    }
    Ok(())
}
