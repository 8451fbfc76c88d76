//! Points for an agent that asks: the list in pages, and a disk as it was at one, sent over a
//! stream of its own. Reading happens on a thread that may wait for the disk.

use super::connection::Speaker;
use super::protected::{Protected, READS_AT_ONCE};
use crate::store::{ListedPoint, PointChoice, StoreError, View, harmed_disks};
use bytes::Bytes;
use redoubt_log::{DiskIndex, DiskSet, PointId, PointKind, Sequence, is_zero};
use redoubt_protocol::TargetMessage;
use redoubt_protocol::message::{
    OpenedPoint, POINT_LABEL_LIMIT, POINTS_PER_MESSAGE, PointSummary, RequestId, bounded_text,
};
use redoubt_transport::{ConnectionHandle, POINT_CHUNK_LIMIT, TransportError};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// Chunks that may wait for the line: each is at most 1 MiB.
const CHUNKS_WAITING: usize = 2;

/// How long a reader waits for its point to be applied: an interval's worth, and less than who
/// asked waits for a word.
const APPLY_PATIENCE: Duration = Duration::from_secs(10);

/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What an agent wants to read.
pub(super) struct PointRequest {
    pub request: RequestId,
    pub disk: DiskIndex,
    pub point: Option<PointId>,
}

/// Sends a page of a machine's points behind `after`. The list is locked while it is written down:
/// nobody else waits for that.
pub(super) async fn send_page(
    machine: Arc<Protected>,
    request: RequestId,
    after: Sequence,
    say: Speaker,
    turn: OwnedSemaphorePermit,
) {
    let page = tokio::task::spawn_blocking(move || list_page(&machine, request, after)).await;
    if let Ok(page) = page {
        say.say_in_turn(page, turn);
    }
}

/// A page of a machine's points behind `after`.
fn list_page(machine: &Protected, request: RequestId, after: Sequence) -> TargetMessage {
    let points = machine.store.listed_points();
    let lost = machine.store.lost_points();
    let summary =
        |listed: &ListedPoint| summary(machine, listed, harmed_disks(&listed.point, &lost));
    let mut rest = points.iter().filter(|listed| listed.point.sequence > after);
    let page: Vec<_> = rest.by_ref().take(POINTS_PER_MESSAGE).map(summary).collect();
    TargetMessage::Points { request, points: page, more: rest.next().is_some() }
}

fn summary(machine: &Protected, listed: &ListedPoint, harmed: DiskSet) -> PointSummary {
    let ListedPoint { point, waits, suspicion } = listed;
    let mut label = point.label.clone();
    label.truncate(label.floor_char_boundary(POINT_LABEL_LIMIT));
    PointSummary {
        point: point.id,
        taken_at: point.taken_at,
        application_consistent: point.kind == PointKind::ApplicationConsistent,
        label,
        sequence: point.sequence,
        disks: DiskSet(point.disks.0 & !harmed.0),
        complete: point.complete && harmed.is_empty(),
        proven: listed.is_proven(),
        harmed,
        waits: *waits,
        suspect: suspicion.as_ref().map(|suspicion| machine.reason_of(suspicion)),
    }
}

/// Opens a disk at a point. One that waits to be applied is waited for, as long as nothing hinders
/// that, but not for ever.
pub(super) fn open(
    machine: &Protected,
    disk: DiskIndex,
    choice: PointChoice,
) -> Result<View, String> {
    let deadline = Instant::now() + APPLY_PATIENCE;
    loop {
        let error = match machine.store.view(disk, choice) {
            Err(error @ StoreError::PointWaits(_)) => error,
            other => return other.map_err(|error| error.to_string()),
        };
        if let Some(why) = &machine.live().apply_error {
            return Err(format!("{error} (apply-failed: {why})"));
        }
        if Instant::now() >= deadline {
            return Err(error.to_string());
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Opens a point, says so, and sends what is not zero of it.
pub(super) async fn send_point(
    machine: Arc<Protected>,
    asked: PointRequest,
    connection: ConnectionHandle,
    say: Speaker,
) {
    let request = asked.request;
    let Ok(_turn) = machine.reads.clone().try_acquire_owned() else {
        let why = format!("{READS_AT_ONCE} points of this machine are being read: try again later");
        say.say(TargetMessage::PointOpened { request, result: Err(why) });
        return;
    };
    let choice = asked.point.map_or(PointChoice::Latest, PointChoice::Id);
    let open = move || open(&machine, asked.disk, choice);
    let view = match tokio::task::spawn_blocking(open).await {
        Ok(Ok(view)) => view,
        Ok(Err(why)) => {
            let result = Err(bounded_text(&why).to_owned());
            say.say(TargetMessage::PointOpened { request, result });
            return;
        }
        Err(_) => return,
    };
    let opened = OpenedPoint { point: view.point().id, size_bytes: view.size() };
    say.say(TargetMessage::PointOpened { request, result: Ok(opened) });
    if let Err(error) = stream(view, &connection, request).await {
        tracing::warn!(%error, "a point was not sent to its end");
    }
}

async fn stream(
    view: View,
    connection: &ConnectionHandle,
    request: RequestId,
) -> Result<(), TransportError> {
    let (chunks, mut ready) = mpsc::channel(CHUNKS_WAITING);
    let reading = tokio::task::spawn_blocking(move || read(&view, &chunks));
    let mut sender = connection.open_point(request).await?;
    while let Some((offset, bytes)) = ready.recv().await {
        sender.send(offset, bytes).await?;
    }
    match reading.await {
        Ok(Ok(())) => sender.finish().await,
        Ok(Err(error)) => {
            sender.abort();
            Err(TransportError::Lost(error.to_string()))
        }
        Err(error) => Err(TransportError::Lost(error.to_string())),
    }
}

/// Reads the view from end to end; zeros are left out.
fn read(view: &View, chunks: &mpsc::Sender<(u64, Bytes)>) -> crate::store::Result<()> {
    let mut at = 0;
    while let Some(data) = view.next_data(at)? {
        let length = data.length.min(POINT_CHUNK_LIMIT as u64);
        let mut buffer = vec![0; usize::try_from(length).expect("at most a chunk")];
        view.read(data.offset, &mut buffer)?;
        at = data.offset + length;
        if !is_zero(&buffer) && chunks.blocking_send((data.offset, buffer.into())).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
