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

/// The disks of the only machine in a status.
pub fn disks(status: &str) -> Result<Vec<DiskStatus>> {
    let status: Value = serde_json::from_str(status).context("status is no JSON")?;
    // Where several roles stand behind one socket directory there is a list of them.
    let role = status.get(0).unwrap_or(&status);
    let Some(machine) = role["machines"].as_array().context("no machines")?.first() else {
        return Ok(Vec::new());
    };
    machine["disks"].as_array().context("no disks")?.iter().map(disk).collect()
}

fn disk(value: &Value) -> Result<DiskStatus> {
    Ok(DiskStatus {
        name: string(value, "name")?,
        state: string(value, "state")?,
        reason: value["reason"].as_str().unwrap_or_default().to_owned(),
        bytes_remaining: value["bytes_remaining"].as_u64().context("no bytes_remaining")?,
        losses: value["tracker"]["losses"].as_u64().unwrap_or_default(),
        replica_path: value["replica_path"].as_str().map(PathBuf::from),
    })
}

/// The list of points, oldest first.
pub fn points(list: &str) -> Result<Vec<Point>> {
    let list: Value = serde_json::from_str(list).context("points is no JSON")?;
    let list = list.get("points").unwrap_or(&list);
    list.as_array().context("no list of points")?.iter().map(point).collect()
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
