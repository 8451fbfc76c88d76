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
use std::path::Path;
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
    let file = create(order)?;
    let result = fill(order, &file, asks, responder);
    if result.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_file(order.to);
    }
    result
}

fn create(order: &CopyOut<'_>) -> Result<File, String> {
    if order.to.exists() && !order.to.is_file() {
        return Err(format!("{}: not a regular file: give the path of a file", order.to.display()));
    }
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    match order.force {
        true => options.create(true).truncate(true),
        false => options.create_new(true),
    };
    options.open(order.to).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => {
            format!("{}: it exists; give --force to overwrite it", order.to.display())
        }
        _ => format!("{}: {error}", order.to.display()),
    })
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
