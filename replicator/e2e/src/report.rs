//! What the product reports as JSON, read by its documented names. It must never guess: a missing
//! name is an error.

use anyhow::{Context, Result};
use serde_json::Value;
use std::path::PathBuf;
use std::time::SystemTime;

/// One disk in `status`.
#[derive(Clone, Debug)]
pub struct DiskStatus {
    /// Its name.
    pub name: String,
    /// `initial-sync`, `streaming` and so on.
    pub state: String,
    /// Why it is in that state; empty where there is nothing to say.
    pub reason: String,
    /// What still has to be sent.
    pub bytes_remaining: u64,
    /// Records that the ring had no room for.
    pub losses: u64,
    /// Submissions and completions that the tracker did not see.
    pub misses: u64,
    /// What the capture does: `bitmap`, `metadata` or `data`.
    pub mode: String,
    /// Where its replica stands, at the target only.
    pub replica_path: Option<PathBuf>,
}

/// One recovery point in `points`.
#[derive(Clone, Debug)]
pub struct Point {
    /// Its id, as `copy-out` takes it.
    pub id: String,
    /// When it was taken.
    pub taken_at: SystemTime,
    /// Whether all disks of the machine are in it.
    pub complete: bool,
    /// Whether no loss, gap or unsettled write touches it.
    pub proven: bool,
}

/// The result of `verify`.
#[derive(Clone, Debug)]
pub struct Verified {
    /// Whether everything was compared and nothing differed.
    pub equal: bool,
    /// Bytes that were compared.
    pub compared_bytes: u64,
    /// Bytes that were not.
    pub not_compared_bytes: u64,
    /// Bytes that were left out.
    pub discarded_bytes: u64,
    /// What kept bytes from being compared.
    pub hindrance: Option<String>,
    /// Disk, offset and length of what differed.
    pub differences: Vec<(String, u64, u64)>,
}

/// What a verify has printed.
pub fn verified(printed: &str) -> Result<Verified> {
    let value: Value = serde_json::from_str(printed).context("verify printed no JSON")?;
    let count = |name: &str| value[name].as_u64().with_context(|| format!("no {name} in {value}"));
    let difference = |range: &Value| {
        let place = range["offset"].as_u64().zip(range["length"].as_u64());
        let (offset, length) = place.context("no place of a difference")?;
        Ok((string(range, "disk")?, offset, length))
    };
    let differences = value["differences"].as_array().context("no differences")?;
    Ok(Verified {
        equal: value["equal"].as_bool().context("no equal")?,
        compared_bytes: count("compared_bytes")?,
        not_compared_bytes: count("not_compared_bytes")?,
        discarded_bytes: count("discarded_bytes")?,
        hindrance: value["hindrance"].as_str().map(str::to_owned),
        differences: differences.iter().map(difference).collect::<Result<_>>()?,
    })
}

/// The only machine in a status; null where none is known yet.
pub fn machine(status: &str) -> Result<Value> {
    let status: Value = serde_json::from_str(status).context("status is no JSON")?;
    // Where several roles stand behind one socket directory there is a list of them.
    let role = status.get(0).unwrap_or(&status);
    let machines = role["machines"].as_array().context("no machines")?;
    Ok(machines.first().cloned().unwrap_or_default())
}

/// The disks of the only machine in a status.
pub fn disks(status: &str) -> Result<Vec<DiskStatus>> {
    let machine = machine(status)?;
    if machine.is_null() {
        return Ok(Vec::new());
    }
    machine["disks"].as_array().context("no disks")?.iter().map(disk).collect()
}

fn disk(value: &Value) -> Result<DiskStatus> {
    Ok(DiskStatus {
        name: string(value, "name")?,
        state: string(value, "state")?,
        reason: value["reason"].as_str().unwrap_or_default().to_owned(),
        bytes_remaining: value["bytes_remaining"].as_u64().context("no bytes_remaining")?,
        losses: value["tracker"]["losses"].as_u64().unwrap_or_default(),
        misses: value["tracker"]["misses"].as_u64().unwrap_or_default(),
        mode: value["tracker"]["mode"].as_str().unwrap_or_default().to_owned(),
        replica_path: value["replica_path"].as_str().map(PathBuf::from),
    })
}

/// The list of points that are applied, oldest first.
pub fn points(list: &str) -> Result<Vec<Point>> {
    let list: Value = serde_json::from_str(list).context("points is no JSON")?;
    let list = list.get("points").unwrap_or(&list);
    let list = list.as_array().context("no list of points")?.iter();
    list.filter(|value| value["state"] != "waiting").map(point).collect()
}

fn point(value: &Value) -> Result<Point> {
    let taken_at: jiff::Timestamp =
        string(value, "taken_at")?.parse().context("taken_at is no RFC 3339 time")?;
    Ok(Point {
        id: string(value, "id")?,
        taken_at: taken_at.into(),
        complete: value["complete"].as_bool().context("no complete")?,
        proven: value["proven"].as_bool().context("no proven")?,
    })
}

fn string(value: &Value, name: &str) -> Result<String> {
    Ok(value[name].as_str().with_context(|| format!("no {name} in {value}"))?.to_owned())
}
