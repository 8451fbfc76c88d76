//! Points for an agent that asks: the list in pages, and a disk as it was at one, sent over a
//! stream of its own. Reading happens on a thread that may wait for the disk.

use super::protected::{Protected, READS_AT_ONCE};
use crate::store::{Point, PointChoice, View, harmed_disks};
use bytes::Bytes;
use redoubt_log::{DiskIndex, DiskSet, PointId, PointKind, Sequence, is_zero};
use redoubt_protocol::TargetMessage;
use redoubt_protocol::message::{
    OpenedPoint, POINT_LABEL_LIMIT, POINTS_PER_MESSAGE, PointSummary, RequestId,
};
use redoubt_transport::{ConnectionHandle, POINT_CHUNK_LIMIT, TransportError};
use std::sync::Arc;
use tokio::sync::mpsc;

/// Chunks that may wait for the line: each is at most 1 MiB.
const CHUNKS_WAITING: usize = 2;

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
    say: mpsc::UnboundedSender<TargetMessage>,
) {
    let Ok(_turn) = machine.lists.clone().try_acquire_owned() else {
        tracing::warn!(machine = %machine.name, "its agent asks for too many lists at once");
        return;
    };
    let page = tokio::task::spawn_blocking(move || list_page(&machine, request, after)).await;
    // A connection that is lost says so where it is heard; a page that is not made is asked for
    // again.
    page.into_iter().for_each(|page| drop(say.send(page)));
}

/// A page of a machine's points behind `after`.
fn list_page(machine: &Protected, request: RequestId, after: Sequence) -> TargetMessage {
    let points = machine.store.points();
    let lost = machine.store.lost_points();
    let summary = |point: &Point| summary(point, harmed_disks(point, &lost));
    let mut rest = points.iter().filter(|point| point.sequence > after);
    let page: Vec<_> = rest.by_ref().take(POINTS_PER_MESSAGE).map(summary).collect();
    TargetMessage::Points { request, points: page, more: rest.next().is_some() }
}

fn summary(point: &Point, harmed: DiskSet) -> PointSummary {
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
        proven: point.proven,
        harmed,
    }
}

/// Opens a point, says so, and sends what is not zero of it.
pub(super) async fn send_point(
    machine: Arc<Protected>,
    asked: PointRequest,
    connection: ConnectionHandle,
    say: mpsc::UnboundedSender<TargetMessage>,
) {
    let request = asked.request;
    let Ok(_turn) = machine.reads.clone().try_acquire_owned() else {
        let why = format!("{READS_AT_ONCE} points of this machine are being read: try again later");
        drop(say.send(TargetMessage::PointOpened { request, result: Err(why) }));
        return;
    };
    let choice = asked.point.map_or(PointChoice::Latest, PointChoice::Id);
    let open = move || machine.store.view(asked.disk, choice);
    let view = match tokio::task::spawn_blocking(open).await {
        Ok(Ok(view)) => view,
        Ok(Err(error)) => {
            let result = Err(error.to_string());
            drop(say.send(TargetMessage::PointOpened { request, result }));
            return;
        }
        Err(_) => return,
    };
    let opened = OpenedPoint { point: view.point().id, size_bytes: view.size() };
    drop(say.send(TargetMessage::PointOpened { request, result: Ok(opened) }));
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
