//! Writes a disk as it was at a point, streamed back from the target, into a file of this machine.
//! What exists is overwritten only when that was said, and a copy that was not finished does not
//! stay.

use crate::requests::{Ask, PointPart};
use redoubt_control::Response;
use redoubt_control::socket::Responder;
use redoubt_log::{DiskIndex, PointId};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// How often the command hears how far it is.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// What is copied where.
pub(crate) struct CopyOut<'a> {
    pub disk: DiskIndex,
    pub point: Option<PointId>,
    pub to: &'a Path,
    pub force: bool,
}

/// Copies; the last response, or why there is none.
pub(crate) fn run(
    order: &CopyOut<'_>,
    asks: &mpsc::Sender<Ask>,
    responder: &mut dyn Responder,
) -> Result<Response, String> {
    let beside = beside(order)?;
    let file = create(order, &beside)?;
    let result = fill(order, &file, asks, responder).and_then(|response| {
        let failed = |error| format!("{}: {error}", order.to.display());
        fs::rename(&beside, order.to).map_err(failed).map(|()| response)
    });
    if result.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_file(&beside);
    }
    result
}

/// What is written until it is whole; what stands at the goal is touched only then.
fn beside(order: &CopyOut<'_>) -> Result<PathBuf, String> {
    let name = order.to.file_name();
    let name = name.ok_or_else(|| format!("{}: give the path of a file", order.to.display()))?;
    let mut partial = name.to_owned();
    partial.push(".partial");
    Ok(order.to.with_file_name(partial))
}

fn create(order: &CopyOut<'_>, beside: &Path) -> Result<File, String> {
    if order.to.exists() && !order.to.is_file() {
        return Err(format!("{}: not a regular file: give the path of a file", order.to.display()));
    }
    if order.to.exists() && !order.force {
        return Err(format!("{}: it exists; give --force to overwrite it", order.to.display()));
    }
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(beside).map_err(|error| format!("{}: {error}", beside.display()))
}

fn fill(
    order: &CopyOut<'_>,
    file: &File,
    asks: &mpsc::Sender<Ask>,
    responder: &mut dyn Responder,
) -> Result<Response, String> {
    let failed = |error: io::Error| format!("{}: {error}", order.to.display());
    let (parts, mut incoming) = Ask::parts();
    asks.blocking_send(Ask::Read { disk: order.disk, point: order.point, parts })
        .map_err(|_| "the agent is stopping".to_owned())?;
    let mut opened = None;
    let mut told = Instant::now();
    loop {
        let gone = || PointPart::Failed("the target stopped sending the point".to_owned());
        match incoming.blocking_recv().unwrap_or_else(gone) {
            PointPart::Opened(point) => {
                file.set_len(point.size_bytes).map_err(failed)?;
                opened = Some(point);
            }
            PointPart::Data(offset, bytes) => {
                file.write_all_at(&bytes, offset).map_err(failed)?;
                let total_bytes = opened.map_or(0, |point| point.size_bytes);
                if told.elapsed() >= PROGRESS_EVERY {
                    told = Instant::now();
                    responder
                        .send(&Response::Progress { done_bytes: offset, total_bytes })
                        .map_err(|error| error.to_string())?;
                }
            }
            PointPart::End => {
                let point = opened.ok_or("the target sent no point")?;
                file.sync_all().map_err(failed)?;
                let (point, bytes) = (point.point.into(), point.size_bytes);
                return Ok(Response::CopiedOut { point, bytes });
            }
            PointPart::Failed(why) => return Err(why),
        }
    }
}
