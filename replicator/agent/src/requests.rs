//! What is asked of the target through this machine's agent: its points, a disk as it was at one,
//! and whether a disk is there what it is here.

use redoubt_log::{DiskIndex, PointId, Sequence};
use redoubt_protocol::AgentMessage;
use redoubt_protocol::message::{OpenedPoint, PointSummary, RequestId};
use redoubt_protocol::verify::{Check, DifferentPiece};
use redoubt_transport::PointReceiver;
use std::collections::{HashMap, VecDeque};
use tokio::sync::mpsc;

/// Chunks of a point that may wait for the file they go to: each is at most 1 MiB.
const CHUNKS_WAITING: usize = 4;

/// What becomes of a question.
pub(crate) type PointsReply = std::sync::mpsc::Sender<Result<Vec<PointSummary>, String>>;

/// Why the target has compared nothing.
#[derive(Debug)]
pub(crate) enum NotChecked {
    /// The connection has ended: another may follow.
    Lost(String),
    /// It says why.
    Refused(String),
}

/// The pieces that differ.
pub(crate) type CheckAnswer = Result<Vec<DifferentPiece>, NotChecked>;

/// A part of a point's content: what is not sent reads as zero.
pub(crate) enum PointPart {
    /// The point was opened.
    Opened(OpenedPoint),
    /// Bytes of it.
    Data(u64, Vec<u8>),
    /// All of it was sent.
    End,
    /// There will be no more.
    Failed(String),
}

/// A question of the operator.
pub(crate) enum Ask {
    /// All points.
    Points { reply: PointsReply },
    /// A disk at a point.
    Read { disk: DiskIndex, point: Option<PointId>, parts: mpsc::Sender<PointPart> },
    /// Whether a disk is at a point what hashes say.
    Check { check: Check, reply: std::sync::mpsc::Sender<CheckAnswer> },
}

impl Ask {
    /// The sending half for [`Ask::Read`], with its bound.
    pub fn parts() -> (mpsc::Sender<PointPart>, mpsc::Receiver<PointPart>) {
        mpsc::channel(CHUNKS_WAITING)
    }

    /// Answers that it cannot be done; who asked may have gone.
    pub fn fail(self, why: &str) {
        match self {
            Self::Points { reply } => drop(reply.send(Err(why.to_owned()))),
            Self::Read { parts, .. } => drop(parts.try_send(PointPart::Failed(why.to_owned()))),
            Self::Check { reply, .. } => drop(reply.send(Err(NotChecked::Lost(why.to_owned())))),
        }
    }
}

enum Waiting {
    Points {
        reply: PointsReply,
        so_far: Vec<PointSummary>,
    },
    /// The answer and the content come on streams of their own, in any order.
    Read {
        parts: mpsc::Sender<PointPart>,
        stream: Option<PointReceiver>,
        is_open: bool,
    },
    Check {
        reply: std::sync::mpsc::Sender<CheckAnswer>,
    },
}

/// Questions under way.
#[derive(Default)]
pub(crate) struct Pending {
    waiting: HashMap<RequestId, Waiting>,
    /// Lists that wait for the one under way: the target answers one at a time. Who waits is a
    /// conversation of an operator's, of which there are few.
    lists: VecDeque<PointsReply>,
    last: u64,
}

impl Pending {
    /// Takes a question; returns what to say to the target, where it is to be said now.
    pub fn ask(&mut self, ask: Ask) -> Option<AgentMessage> {
        self.last += 1;
        let request = RequestId(self.last);
        let lists = |waiting: &Waiting| matches!(waiting, Waiting::Points { .. });
        Some(match ask {
            Ask::Points { reply } if self.waiting.values().any(lists) => {
                self.lists.push_back(reply);
                return None;
            }
            Ask::Points { reply } => {
                self.waiting.insert(request, Waiting::Points { reply, so_far: Vec::new() });
                AgentMessage::ListPoints { request, after: Sequence(0) }
            }
            Ask::Read { disk, point, parts } => {
                let read = Waiting::Read { parts, stream: None, is_open: false };
                self.waiting.insert(request, read);
                AgentMessage::ReadPoint { request, disk, point }
            }
            Ask::Check { check, reply } => {
                self.waiting.insert(request, Waiting::Check { reply });
                AgentMessage::Check { request, check }
            }
        })
    }

    /// A page of points; returns the question for the next, or for the next list.
    pub fn points(
        &mut self,
        request: RequestId,
        points: Vec<PointSummary>,
        more: bool,
    ) -> Option<AgentMessage> {
        let Some(Waiting::Points { so_far, .. }) = self.waiting.get_mut(&request) else {
            return None;
        };
        let after = points.last().map(|point| point.sequence);
        so_far.extend(points);
        if let (true, Some(after)) = (more, after) {
            return Some(AgentMessage::ListPoints { request, after });
        }
        if let Some(Waiting::Points { reply, so_far }) = self.waiting.remove(&request) {
            // Who asked may have gone.
            let _ = reply.send(Ok(so_far));
        }
        let reply = self.lists.pop_front()?;
        self.ask(Ask::Points { reply })
    }

    /// A point was opened, or cannot be.
    pub fn opened(&mut self, request: RequestId, result: Result<OpenedPoint, String>) {
        let failed = result.is_err();
        if let Some(Waiting::Read { parts, is_open, .. }) = self.waiting.get_mut(&request) {
            let part = result.map_or_else(PointPart::Failed, PointPart::Opened);
            // The first part always has room; who asked may have gone.
            let _ = parts.try_send(part);
            *is_open = true;
        }
        if failed {
            self.waiting.remove(&request);
        }
        self.receive_if_ready(request);
    }

    /// A check is answered.
    pub fn checked(&mut self, request: RequestId, result: Result<Vec<DifferentPiece>, String>) {
        if let Some(Waiting::Check { reply }) = self.waiting.remove(&request) {
            // The verify may have ended.
            let _ = reply.send(result.map_err(NotChecked::Refused));
        }
    }

    /// A point's content comes.
    pub fn point_stream(&mut self, incoming: PointReceiver) {
        let request = incoming.request();
        if let Some(Waiting::Read { stream, .. }) = self.waiting.get_mut(&request) {
            *stream = Some(incoming);
        }
        self.receive_if_ready(request);
    }

    /// Once both the answer and the stream are there, the content goes to who asked.
    fn receive_if_ready(&mut self, request: RequestId) {
        let ready = matches!(
            self.waiting.get(&request),
            Some(Waiting::Read { stream: Some(_), is_open: true, .. })
        );
        if !ready {
            return;
        }
        let Some(Waiting::Read { parts, stream: Some(mut stream), .. }) =
            self.waiting.remove(&request)
        else {
            return;
        };
        tokio::spawn(async move {
            loop {
                let mut buffer = Vec::new();
                let part = match stream.next(&mut buffer).await {
                    Ok(Some(offset)) => PointPart::Data(offset, buffer),
                    Ok(None) => PointPart::End,
                    Err(error) => PointPart::Failed(error.to_string()),
                };
                let ends = !matches!(part, PointPart::Data(..));
                if parts.send(part).await.is_err() || ends {
                    return;
                }
            }
        });
    }

    /// Nobody waits for these any more.
    pub fn forget_given_up(&mut self) {
        self.waiting.retain(|_, waiting| match waiting {
            Waiting::Read { parts, .. } => !parts.is_closed(),
            Waiting::Points { .. } | Waiting::Check { .. } => true,
        });
    }

    /// The connection that would answer has ended.
    pub fn fail_all(&mut self, why: &str) {
        self.lists.drain(..).for_each(|reply| Ask::Points { reply }.fail(why));
        for (_, waiting) in self.waiting.drain() {
            match waiting {
                Waiting::Points { reply, .. } => drop(reply.send(Err(why.to_owned()))),
                Waiting::Read { parts, .. } => {
                    drop(parts.try_send(PointPart::Failed(why.to_owned())));
                }
                Waiting::Check { reply } => {
                    drop(reply.send(Err(NotChecked::Lost(why.to_owned()))));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_points_are_asked_for_one_after_the_other() {
        let mut pending = Pending::default();
        let (reply, answers) = std::sync::mpsc::channel();
        let mut ask = || pending.ask(Ask::Points { reply: reply.clone() });
        let Some(AgentMessage::ListPoints { request: first, .. }) = ask() else {
            panic!("the first is asked for at once");
        };
        assert_eq!((ask(), ask()), (None, None));
        let next = pending.points(first, Vec::new(), false);
        assert!(answers.try_recv().unwrap().is_ok());
        let Some(AgentMessage::ListPoints { request: second, .. }) = next else {
            panic!("nobody asks for the second");
        };
        assert!(second != first);
        // The target is lost: nobody waits for ever.
        pending.fail_all("gone");
        assert!(answers.try_iter().all(|answer| answer.is_err()));
        assert!(pending.ask(Ask::Points { reply }).is_some());
    }
}
