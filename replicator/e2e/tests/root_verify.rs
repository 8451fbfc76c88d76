//! Verify on real disks under load: nothing is found where nothing is wrong, exactly what was
//! garbled is found, and it is repaired. The long rounds are in all_verify.rs.

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use redoubt_e2e::command::{output, text, wait_until};
use redoubt_e2e::disk::keep_mounts_private;
use redoubt_e2e::site::Role;
use redoubt_e2e::verified::{GRANULE_BYTES, Load, LoadedSite};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const RAW_BYTES: u64 = 256 << 20;
const LOAD: Load =
    Load { raw_bytes: RAW_BYTES, megabytes_per_second: 10, runs: Duration::from_secs(600) };

const ENDS_WITHIN: Duration = Duration::from_secs(120);

fn start() -> Result<(LoadedSite, StdRng)> {
    keep_mounts_private()?;
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    Ok((LoadedSite::start(&LOAD, seed)?, StdRng::seed_from_u64(seed)))
}

#[test]
fn clean_verifies_find_nothing_and_what_is_garbled_is_found_and_repaired() -> Result<()> {
    let (mut loaded, mut random) = start()?;
    for role in [Role::Target, Role::Agent, Role::Target] {
        loaded.expect_equal(role)?;
    }
    let before = loaded.site.mark("before", true)?;
    for role in [Role::Target, Role::Agent] {
        ensure!(suspicion(&loaded, role, &before)?.is_none(), "nothing was found yet");
    }
    for role in [Role::Target, Role::Agent] {
        let offset = random.random_range(RAW_BYTES / 2..RAW_BYTES);
        loaded.expect_found_and_repaired(offset, role)?;
        loaded.expect_equal(role)?;
    }
    let after = loaded.site.mark("after", true)?;
    for role in [Role::Target, Role::Agent] {
        let why = suspicion(&loaded, role, &before)?.context("the point is not suspect")?;
        ensure!(why.starts_with("verify-difference: ") && why.contains("4096 bytes"), "{why}");
        ensure!(suspicion(&loaded, role, &after)?.is_none(), "it is newer than the repair");
    }
    let audited = loaded.site.audited(Role::Target)?;
    ensure!(audited.lines().any(|line| line.contains("\"suspect\"")), "{audited}");
    let audited = loaded.site.audited(Role::Agent)?;
    let differences = audited.lines().filter(|line| line.contains("verify-difference"));
    ensure!(differences.count() == 2, "the agent has audited: {audited}");
    for role in [Role::Agent, Role::Target] {
        let audited = loaded.site.audited(role)?;
        let differs = |line: &str| line.contains("\"verify\"") && line.contains("\"differs\"");
        ensure!(audited.lines().filter(|line| differs(line)).count() == 1, "{audited}");
    }
    let offset = random.random_range(0..RAW_BYTES / 2);
    let found = loaded.garble_under_load(offset, Role::Target)?;
    eprintln!("byte {offset} under load: found {found}");
    loaded.expect_equal(Role::Target)?;
    loaded.finish()
}

/// Why a side calls a point suspect, if it does: it is proven else.
fn suspicion(loaded: &LoadedSite, role: Role, id: &str) -> Result<Option<String>> {
    let listed = output(loaded.site.command(role).args(["points", "--json"]))?;
    let listed: Vec<serde_json::Value> = serde_json::from_str(&text(&listed.stdout))?;
    let point = listed.iter().find(|point| point["id"] == id).context("no such point")?;
    let why = point["suspect"].as_str().map(str::to_owned);
    ensure!(point["proven"] == why.is_none(), "{point}");
    Ok(why)
}

/// What a device returns for discarded blocks means nothing, until they are written.
#[test]
fn what_is_discarded_is_left_out_until_it_is_written() -> Result<()> {
    let (mut loaded, mut random) = start()?;
    let first =
        random.random_range(RAW_BYTES / 2 / GRANULE_BYTES..RAW_BYTES / 4 * 3 / GRANULE_BYTES);
    let (offset, length) = (first * GRANULE_BYTES, 8 << 20);
    let mut discard = Command::new("blkdiscard");
    discard.args(["--offset", &offset.to_string(), "--length", &length.to_string()]);
    let discarded = output(discard.arg(&loaded.raw.device))?;
    ensure!(discarded.status.success(), "{}", text(&discarded.stderr));
    let left_out = loaded.expect_equal(Role::Target)?.discarded_bytes;
    ensure!(left_out == length, "{left_out} bytes were left out, {length} were discarded");
    loaded.raw.write_at(&[0x5a; 3 * 4096], offset)?;
    let left_out = loaded.expect_equal(Role::Agent)?.discarded_bytes;
    ensure!(left_out == length - 3 * GRANULE_BYTES, "{left_out} bytes were left out");
    loaded.finish()
}

/// A verify at the agent that hangs, since the target was stopped.
fn hanging_verify(loaded: &mut LoadedSite) -> Result<Child> {
    let target = loaded.site.process_id(Role::Target)?;
    signal(target, "STOP")?;
    let mut command = loaded.site.command(Role::Agent);
    command.args(["verify", "--json"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let verify = command.spawn()?;
    wait_until("the beginning of the verify", ENDS_WITHIN, || {
        Ok(loaded.site.logged(Role::Agent)?.contains("verify begins").then_some(()))
    })?;
    let second = output(loaded.site.command(Role::Agent).args(["verify", "--json"]))?;
    let why = text(&second.stderr);
    ensure!(second.status.code() == Some(1) && why.contains("runs already"), "{why}");
    Ok(verify)
}

fn signal(process: u32, name: &str) -> Result<()> {
    let process = process.to_string();
    redoubt_e2e::command::run("kill", &[format!("-{name}"), process]).map(drop)
}

#[test]
fn one_verify_runs_at_a_time_and_ends_with_who_asked() -> Result<()> {
    let (mut loaded, _) = start()?;
    let mut verify = hanging_verify(&mut loaded)?;
    verify.kill()?;
    verify.wait()?;
    let target = loaded.site.process_id(Role::Target)?;
    signal(target, "CONT")?;
    loaded.site.wait_for_streaming(ENDS_WITHIN)?;
    let verified = wait_until("the end of the first verify", ENDS_WITHIN, || {
        let next = output(loaded.site.command(Role::Agent).args(["verify", "--json"]))?;
        Ok(next.status.success().then_some(text(&next.stdout)))
    })?;
    ensure!(verified.contains("\"equal\":true"), "{verified}");
    loaded.expect_equal(Role::Target)?;
    loaded.finish()
}

/// A verify asked at the agent outlives its connection: what was lost with it is asked again.
#[test]
fn a_verify_goes_on_when_the_target_comes_back() -> Result<()> {
    let (mut loaded, _) = start()?;
    let missed = loaded.misses()?;
    let mut verify = hanging_verify(&mut loaded)?;
    loaded.site.kill_role(Role::Target)?;
    loaded.site.start_role(Role::Target)?;
    wait_until("the end of the verify", ENDS_WITHIN, || Ok(verify.try_wait()?))?;
    let ended = verify.wait_with_output()?;
    let told = format!("{}{}", text(&ended.stdout), text(&ended.stderr));
    let verified = redoubt_e2e::report::verified(&text(&ended.stdout)).context(told)?;
    ensure!(verified.differences.is_empty(), "{verified:?}");
    if loaded.misses()? == missed {
        ensure!(ended.status.success() && verified.equal, "{}: {verified:?}", ended.status);
    }
    loaded.finish()
}
