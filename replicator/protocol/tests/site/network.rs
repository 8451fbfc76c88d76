//! Virtual time and a network of links: each stream keeps its order, streams overtake each other,
//! cuts hit each stream and each end at another moment.

use super::Event;
use rand::Rng;
use rand::rngs::StdRng;
use redoubt_protocol::{AgentMessage, ConnectionId, FRAME_STREAMS, FramePlace, TargetMessage};
use std::collections::BTreeMap;
use std::time::Duration;

pub enum Delivery {
    Opened { link: u64 },
    ToAgent { link: u64, message: TargetMessage },
    AgentEnd { link: u64 },
    ToTarget { link: u64, message: AgentMessage },
    Frame { link: u64, stream: usize, place: FramePlace, frame: u64 },
    TargetEnd { link: u64 },
}

/// The two directions of the control stream, then the frame streams.
const TO_AGENT: usize = 0;
const TO_TARGET: usize = 1;
const STREAMS: usize = 2 + FRAME_STREAMS;

struct Link {
    run: u64,
    connection: ConnectionId,
    /// When the last thing put on each stream arrives.
    busy_until: [Duration; STREAMS],
    /// Streams on which nothing arrives any more.
    dead: [bool; STREAMS],
    cut: bool,
}

#[derive(Default)]
pub struct Network {
    queue: BTreeMap<(Duration, u64), Event>,
    now: Duration,
    counter: u64,
    links: Vec<Link>,
}

impl Network {
    pub fn now(&self) -> Duration {
        self.now
    }

    pub fn next(&mut self) -> Option<Event> {
        let ((at, _), event) = self.queue.pop_first()?;
        self.now = at;
        Some(event)
    }

    pub fn later(&mut self, at: Duration, event: Event) {
        self.counter += 1;
        self.queue.insert((at.max(self.now), self.counter), event);
    }

    pub fn agent_end(&self, link: u64) -> (u64, ConnectionId) {
        let link = &self.links[at(link)];
        (link.run, link.connection)
    }

    pub fn open(&mut self, random: &mut StdRng, run: u64, connection: ConnectionId) {
        let link = self.links.len() as u64;
        let busy_until = [self.now; STREAMS];
        self.links.push(Link { run, connection, busy_until, dead: [false; STREAMS], cut: false });
        match random.random_range(0..10) {
            0 => self.put(random, link, TO_AGENT, Delivery::AgentEnd { link }),
            _ => self.put(random, link, TO_AGENT, Delivery::Opened { link }),
        }
    }

    fn link_of(&self, run: u64, connection: ConnectionId) -> Option<u64> {
        let found = self
            .links
            .iter()
            .rposition(|link| link.run == run && link.connection == connection && !link.cut);
        found.map(|place| place as u64)
    }

    fn put(&mut self, random: &mut StdRng, link: u64, stream: usize, delivery: Delivery) {
        // Now and then a packet is lost and sent again.
        let slow = if random.random_range(0..20) == 0 { 150_000 } else { 5_000 };
        let wait = Duration::from_micros(random.random_range(50..slow));
        let busy = &mut self.links[at(link)].busy_until[stream];
        *busy = (*busy).max(self.now + wait);
        let at = *busy;
        self.later(at, Event::Network(delivery));
    }

    pub fn say_to_target(
        &mut self,
        random: &mut StdRng,
        run: u64,
        connection: ConnectionId,
        message: AgentMessage,
    ) {
        if let Some(link) = self.link_of(run, connection) {
            self.put(random, link, TO_TARGET, Delivery::ToTarget { link, message });
        }
    }

    pub fn frame(
        &mut self,
        random: &mut StdRng,
        run: u64,
        connection: ConnectionId,
        (stream, place, frame): (usize, FramePlace, u64),
    ) {
        if let Some(link) = self.link_of(run, connection) {
            let delivery = Delivery::Frame { link, stream, place, frame };
            self.put(random, link, 2 + stream, delivery);
        }
    }

    pub fn say_to_agent(&mut self, random: &mut StdRng, link: u64, message: TargetMessage) {
        if !self.links[at(link)].cut {
            self.put(random, link, TO_AGENT, Delivery::ToAgent { link, message });
        }
    }

    pub fn agent_closes(&mut self, random: &mut StdRng, run: u64, connection: ConnectionId) {
        if let Some(link) = self.link_of(run, connection) {
            self.put(random, link, TO_TARGET, Delivery::TargetEnd { link });
            self.links[at(link)].cut = true;
        }
    }

    pub fn target_closes(&mut self, random: &mut StdRng, link: u64) {
        if !self.links[at(link)].cut {
            self.put(random, link, TO_AGENT, Delivery::AgentEnd { link });
            self.links[at(link)].cut = true;
        }
    }

    /// All links break; each end notices at its own time, and some of what is under way still
    /// arrives.
    pub fn cut_all(&mut self, random: &mut StdRng) {
        for place in 0..self.links.len() {
            if self.links[place].cut {
                continue;
            }
            self.links[place].cut = true;
            self.links[place].dead = std::array::from_fn(|_| random.random());
            let link = place as u64;
            for end in [Delivery::AgentEnd { link }, Delivery::TargetEnd { link }] {
                let wait = Duration::from_millis(random.random_range(0..3000));
                self.later(self.now + wait, Event::Network(end));
            }
        }
    }

    /// The target's process is gone: nothing that is under way finds it.
    pub fn forget_at_target(&mut self) {
        for link in &mut self.links {
            link.dead[TO_TARGET..].fill(true);
        }
    }

    /// Whether the thing arrives, or died with its stream.
    pub fn arrives(&mut self, delivery: &Delivery) -> bool {
        let (link, stream) = match delivery {
            Delivery::Opened { link } | Delivery::ToAgent { link, .. } => (*link, TO_AGENT),
            Delivery::ToTarget { link, .. } => (*link, TO_TARGET),
            Delivery::Frame { link, stream, .. } => (*link, 2 + stream),
            Delivery::AgentEnd { link } => {
                self.links[at(*link)].dead[TO_AGENT] = true;
                return true;
            }
            Delivery::TargetEnd { link } => {
                self.links[at(*link)].dead[TO_TARGET..].fill(true);
                return true;
            }
        };
        !self.links[at(link)].dead[stream]
    }
}

fn at(link: u64) -> usize {
    usize::try_from(link).expect("links are counted from 0")
}
