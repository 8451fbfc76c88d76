//! The commit-writer oracle: filesystems under load, a site beside them, and every recovery point
//! checked. It must never count a point that it has not mounted, nor shrink by itself: the caller's
//! numbers hold.

use crate::check::{Checked, DATABASE, NOISE, check_point};
use crate::command::wait_until;
use crate::commits::{CommitWriter, Journal};
use crate::disk::{Filesystem, LoopDisk, Mounted, keep_mounts_private, scratch};
use crate::noise::Noise;
use crate::report::Point;
use crate::site::{Plan, Role, Site};
use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

const DISK_BYTES: u64 = 512 << 20;
/// Rows before the agent comes: initial sync then finds a disk in use.
const ROWS_BEFORE: usize = 50;
const ROWS_WITHIN: Duration = Duration::from_secs(60);
/// Initial sync of half a gigabyte, or the whole of it again, on two busy cores.
const STREAMING_WITHIN: Duration = Duration::from_secs(300);
/// So long without a new point, all roles running, is a failure.
const NEW_POINT_WITHIN: Duration = Duration::from_secs(180);
/// A role runs so long at most before it is killed, and stays down so long at most.
const KILLED_AFTER_MAX: Duration = Duration::from_secs(6);
const DOWN_MAX: Duration = Duration::from_secs(2);
/// After so many kills the site is left alone until it has made a new point: catch-up is killed
/// into, and ends.
const KILLS_PER_POINT: usize = 3;
/// Each so many points one is asked for, to know without any clock what must be in it.
const POINTS_PER_MARK: usize = 4;

/// What an oracle run consists of.
pub struct Run<'a> {
    /// One disk each, a database on each, committed to in this order.
    pub filesystems: &'a [Filesystem],
    /// How the databases keep commits whole.
    pub journal: Journal,
    /// So many good points, at least.
    pub points: usize,
    /// Kill -9 of either role, so often each.
    pub kills: usize,
    /// Between two points.
    pub point_interval: &'a str,
}

/// The disks, mounted, with all that writes to them.
struct Load {
    writer: CommitWriter,
    noise: Vec<Noise>,
    mounted: Vec<Mounted>,
    disks: Vec<LoopDisk>,
}

/// Runs the oracle; an error says which point was bad and how.
pub fn run(run: &Run<'_>) -> Result<()> {
    run_through(run, |site, random| kill_roles(site, run.kills, random))
}

/// The same with kills at random instants for so long, of either role or of both at once, instead
/// of a number of them.
pub fn run_killing_for(run: &Run<'_>, long: Duration) -> Result<()> {
    run_through(run, |site, random| kill_for(site, long, random))
}

fn run_through(
    run: &Run<'_>,
    hardship: impl FnOnce(&mut Site, &mut StdRng) -> Result<()>,
) -> Result<()> {
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    keep_mounts_private()?;
    let scratch = scratch()?;
    let load = start_load(run, scratch.path(), &mut random)?;
    let names: Vec<String> = (0..load.disks.len()).map(|index| format!("disk-{index}")).collect();
    let disks = names.iter().zip(&load.disks);
    let disks = disks.map(|(name, disk)| (name.as_str(), disk.device.as_path())).collect();
    let plan = Plan { disks, point_interval: run.point_interval };
    let mut site = Site::start(scratch.path(), &plan)?;

    hardship(&mut site, &mut random)?;
    let marked = collect_points(&mut site, &load.writer, run.points)?;

    let Load { writer, noise, mounted, disks: _held } = load;
    let acknowledged = writer.stop()?;
    let files = noise.into_iter().map(Noise::stop).collect::<Result<Vec<_>>>()?;
    mounted.into_iter().try_for_each(Mounted::unmount)?;
    site.expect_equal_replicas().context("the source has stopped")?;

    let checked: Vec<Checked> = names
        .into_iter()
        .zip(run.filesystems)
        .zip(files)
        .map(|((name, &filesystem), files)| Checked { name, filesystem, files })
        .collect();
    let points = good_points(&site)?;
    for point in &points {
        let marked = marked.get(&point.id).map(Vec::as_slice);
        check_point(&site, point, &checked, &acknowledged, marked, scratch.path())?;
    }
    let rows = acknowledged[0].len();
    eprintln!("{} points good, {} of them marked; {rows} rows", points.len(), marked.len());
    ensure!(points.len() >= run.points, "only {} points, wanted {}", points.len(), run.points);
    site.stop_role(Role::Agent)?;
    site.stop_role(Role::Target)
}

fn start_load(run: &Run<'_>, scratch: &Path, random: &mut StdRng) -> Result<Load> {
    let (mut disks, mut mounted, mut noise) = (Vec::new(), Vec::new(), Vec::new());
    for (index, filesystem) in run.filesystems.iter().enumerate() {
        let disk = LoopDisk::create(&scratch.join(format!("disk-{index}.img")), DISK_BYTES)?;
        filesystem.make(&disk)?;
        mounted.push(Mounted::new(*filesystem, &disk, &scratch.join(format!("disk-{index}")))?);
        disks.push(disk);
    }
    let databases: Vec<_> = mounted.iter().map(|mounted| mounted.path.join(DATABASE)).collect();
    let writer = CommitWriter::start(&databases, run.journal, random.random())?;
    for mounted in &mounted {
        noise.push(Noise::start(&mounted.path.join(NOISE), random.random())?);
    }
    writer.wait_for_rows(ROWS_BEFORE, ROWS_WITHIN)?;
    Ok(Load { writer, noise, mounted, disks })
}

/// Kills each role so often, in any order, at any instant: in initial sync, in catch-up, in
/// streaming.
fn kill_roles(site: &mut Site, kills: usize, random: &mut StdRng) -> Result<()> {
    let mut victims = [Role::Agent, Role::Target].repeat(kills);
    victims.shuffle(random);
    for (index, victim) in victims.into_iter().enumerate() {
        std::thread::sleep(random.random_range(Duration::ZERO..KILLED_AFTER_MAX));
        site.kill_role(victim).with_context(|| format!("kill {index}"))?;
        std::thread::sleep(random.random_range(Duration::ZERO..DOWN_MAX));
        site.start_role(victim).with_context(|| format!("restart after kill {index}"))?;
        if (index + 1) % KILLS_PER_POINT == 0 {
            let points = good_points(site)?.len();
            wait_for_points(site, points + 1).with_context(|| format!("after kill {index}"))?;
        }
    }
    Ok(())
}

/// Kills one role, or both in any order, again and again.
fn kill_for(site: &mut Site, long: Duration, random: &mut StdRng) -> Result<()> {
    let (began, mut kills) = (Instant::now(), 0);
    while began.elapsed() < long {
        std::thread::sleep(random.random_range(Duration::ZERO..KILLED_AFTER_MAX));
        let mut victims = vec![Role::Agent, Role::Target];
        victims.shuffle(random);
        victims.truncate(random.random_range(1..=victims.len()));
        for victim in &victims {
            site.kill_role(*victim).with_context(|| format!("kill {kills}"))?;
            kills += 1;
        }
        std::thread::sleep(random.random_range(Duration::ZERO..DOWN_MAX));
        victims.shuffle(random);
        for victim in victims {
            site.start_role(victim).with_context(|| format!("restart after kill {kills}"))?;
        }
        if random.random_range(0..KILLS_PER_POINT) == 0 {
            let points = good_points(site)?.len();
            wait_for_points(site, points + 1).with_context(|| format!("after kill {kills}"))?;
        }
    }
    eprintln!("{kills} kills");
    Ok(())
}

/// Waits until there are as many points as wanted; returns, by point, the rows that a marked one
/// must hold.
fn collect_points(
    site: &mut Site,
    writer: &CommitWriter,
    wanted: usize,
) -> Result<HashMap<String, Vec<usize>>> {
    site.wait_for_streaming(STREAMING_WITHIN)?;
    let mut marked = HashMap::new();
    loop {
        let rows = writer.acknowledged().iter().map(Vec::len).collect();
        marked.insert(site.mark("oracle", false)?, rows);
        let points = good_points(site)?.len();
        if points >= wanted {
            return Ok(marked);
        }
        wait_for_points(site, wanted.min(points + POINTS_PER_MARK))?;
    }
}

fn wait_for_points(site: &mut Site, wanted: usize) -> Result<()> {
    let mut seen = good_points(site)?.len();
    while seen < wanted {
        seen = wait_until("a new recovery point", NEW_POINT_WITHIN, || {
            // Both must be there; an error tells which is not.
            site.process_id(Role::Agent)?;
            site.process_id(Role::Target)?;
            let points = good_points(site)?.len();
            Ok((points > seen).then_some(points))
        })
        .with_context(|| format!("{:?}", site.status()))?;
    }
    Ok(())
}

/// The points that the product vouches for, of all disks.
fn good_points(site: &Site) -> Result<Vec<Point>> {
    Ok(site.points()?.into_iter().filter(|point| point.complete && point.proven).collect())
}
