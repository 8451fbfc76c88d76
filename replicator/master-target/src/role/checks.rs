//! Compares a disk as it is at a point with the hashes that the agent sends. One check of a machine
//! at a time, on a thread that may wait for the disk. It says what it has, and decides nothing.

use super::connection::Speaker;
use super::protected::Protected;
use crate::store::PointChoice;
use redoubt_protocol::TargetMessage;
use redoubt_protocol::message::{RequestId, bounded_text};
use redoubt_protocol::verify::{Check, DifferentPiece, granule_hashes, piece_hash};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::{Mutex, Semaphore};

/// How often a wait for the point to be applied looks.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Checks of a machine at once: one that compares, and one that waits for it, where the first is of
/// a connection that has ended. An agent asks one at a time.
const CHECKS_AT_ONCE: usize = 2;

/// The turns of a machine's checks.
pub(super) struct Turns {
    admitted: Arc<Semaphore>,
    compares: Arc<Mutex<()>>,
}

impl Default for Turns {
    fn default() -> Self {
        Self { admitted: Arc::new(Semaphore::new(CHECKS_AT_ONCE)), compares: Arc::default() }
    }
}

/// Answers a check once its point is applied; gives it up when the connection has ended.
pub(super) async fn answer(
    machine: Arc<Protected>,
    request: RequestId,
    check: Check,
    say: Speaker,
) {
    let Ok(admitted) = machine.checks.admitted.clone().try_acquire_owned() else {
        let result = Err("too many checks of this machine are under way".to_owned());
        say.say(TargetMessage::Checked { request, result });
        return;
    };
    let result = match wait_until_applied(&machine, &check, &say).await {
        None => return,
        Some(Err(why)) => Err(why),
        Some(Ok(())) => {
            let turn = machine.checks.compares.clone().lock_owned().await;
            let compare = move || {
                let _turn = turn;
                compare(&machine, &check)
            };
            tokio::task::spawn_blocking(compare)
                .await
                .unwrap_or_else(|_| Err("the check has failed: see the target's log".into()))
        }
    };
    let result = result.map_err(|why| bounded_text(&why).to_owned());
    // An answer may be large, and counts as under way until it has gone out.
    say.say_in_turn(TargetMessage::Checked { request, result }, admitted);
}

/// `None` when nobody waits for the answer any more.
async fn wait_until_applied(
    machine: &Protected,
    check: &Check,
    say: &Speaker,
) -> Option<Result<(), String>> {
    while machine.applied.load(Ordering::Acquire) < check.sequence.0 {
        let hindrance = {
            let live = machine.live();
            live.apply_error.clone().or_else(|| live.full.clone())
        };
        if let Some(why) = hindrance {
            return Some(Err(format!("the target does not come to the point: {why}")));
        }
        if say.is_closed() {
            return None;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Some(Ok(()))
}

fn compare(machine: &Protected, check: &Check) -> Result<Vec<DifferentPiece>, String> {
    let view = machine.store.view(check.disk, PointChoice::Id(check.point));
    let view = view.map_err(|error| error.to_string())?;
    if !check.fits(view.size()) {
        return Err(format!("the agent asks for pieces that disk {} does not have", check.disk));
    }
    let mut different = Vec::new();
    let mut buffer = Vec::new();
    for (number, piece) in (0..).zip(&check.pieces) {
        buffer.resize(usize::try_from(piece.length).expect("at most a MiB"), 0);
        view.read(piece.offset, &mut buffer).map_err(|error| error.to_string())?;
        let granules: Vec<_> = granule_hashes(&buffer).collect();
        if piece_hash(&granules) != piece.hash {
            different.push(DifferentPiece { piece: number, granules });
        }
    }
    Ok(different)
}
