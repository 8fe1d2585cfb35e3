// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The network: connections of two byte streams, each in order, all else at its mercy.
//!
//! A stream delivers its bytes in order or not at all; it may be slow, stand still for a while, or
//! fall silent for ever without either end being told. Sends and receives take and give as many
//! bytes as chance likes. Connections do not wait for each other.

use crate::clock::{Core, Event};
use std::collections::VecDeque;

/// One connection; never used twice in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ConnId(pub(crate) usize);

/// An end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Host,
    Node,
}

impl Side {
    /// The other end.
    pub(crate) const fn peer(self) -> Side {
        match self {
            Side::Host => Side::Node,
            Side::Node => Side::Host,
        }
    }

    const fn index(self) -> usize {
        match self {
            Side::Host => 0,
            Side::Node => 1,
        }
    }
}

/// What came of a send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// So many bytes were taken; at least one.
    Bytes(usize),
    /// No room: a wake-up follows.
    Full,
    /// The connection is reset.
    Reset,
}

/// What came of a receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Got {
    /// So many bytes were given; at least one.
    Bytes(usize),
    /// Nothing there: a wake-up follows when there is.
    Nothing,
    /// The peer closed in order.
    End,
    /// The connection is reset.
    Reset,
}

/// How one side ends a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Closing {
    /// In order: the peer gets what was sent, then the end.
    Fin,
    /// At once: what travels is lost.
    Rst,
    /// The peer is told nothing (the machine lost its power, or the path is gone).
    Silent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    Flowing,
    /// Nothing arrives before this time.
    StalledUntil(u64),
    /// Nothing arrives any more.
    Dead,
}

#[derive(Debug)]
enum Piece {
    Data(Vec<u8>),
    Fin,
    Rst,
}

/// The bytes towards one side.
#[derive(Debug)]
struct Stream {
    travelling: VecDeque<(u64, Piece)>,
    travelling_bytes: usize,
    last_arrival_us: u64,
    pace: Pace,
    inbox: VecDeque<u8>,
    ended: bool,
    reset: bool,
    /// The side that reads it has closed its socket.
    closed: bool,
    /// The side that writes it waits for room.
    writer_waits: bool,
    /// A wake-up of the side that reads it is under way.
    wake_due: bool,
}

impl Stream {
    fn new() -> Self {
        Stream {
            travelling: VecDeque::new(),
            travelling_bytes: 0,
            last_arrival_us: 0,
            pace: Pace::Flowing,
            inbox: VecDeque::new(),
            ended: false,
            reset: false,
            closed: false,
            writer_waits: false,
            wake_due: false,
        }
    }
}

#[derive(Debug)]
struct Conn {
    host: usize,
    link: u16,
    node: usize,
    /// Towards the host, towards the node.
    streams: [Stream; 2],
}

/// Properties of all connections of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NetSetup {
    /// Shortest and longest usual time on the way, in microseconds.
    pub(crate) delay_us: (u64, u64),
    /// Bytes that one stream holds before its writer must wait.
    pub(crate) window_bytes: usize,
    /// How many of a million pieces have a bit turned over, while faults last.
    pub(crate) flips_ppm: u64,
}

/// Every connection that ever was.
#[derive(Debug)]
pub(crate) struct Net {
    setup: NetSetup,
    conns: Vec<Conn>,
    /// Nothing gets through, and new connections are not even refused, before this time.
    parted_until_us: u64,
    /// The same for single hosts.
    isolated: Vec<(usize, u64)>,
}

impl Net {
    /// A network without connections.
    pub(crate) fn new(setup: NetSetup) -> Self {
        Net {
            setup,
            conns: Vec::new(),
            parted_until_us: 0,
            isolated: Vec::new(),
        }
    }

    /// Whether a host cannot reach any node.
    pub(crate) fn is_parted(&self, core: &Core, host: usize) -> bool {
        let isolated = |(h, until): &(usize, u64)| *h == host && core.now_us < *until;
        core.now_us < self.parted_until_us || self.isolated.iter().any(isolated)
    }

    /// Keeps everything of one host from getting through for a while.
    pub(crate) fn isolate(&mut self, core: &Core, host: usize, for_us: u64) {
        let until_us = core.now_us + for_us;
        self.isolated.push((host, until_us));
        for id in 0..self.conns.len() {
            if self.conns[id].host == host {
                self.stall(ConnId(id), Side::Host, Some(until_us));
                self.stall(ConnId(id), Side::Node, Some(until_us));
            }
        }
    }

    /// Keeps everything from getting through for a while.
    pub(crate) fn part(&mut self, core: &Core, for_us: u64) {
        self.parted_until_us = core.now_us + for_us;
        for id in 0..self.conns.len() {
            for side in [Side::Host, Side::Node] {
                self.stall(ConnId(id), side, Some(self.parted_until_us));
            }
        }
    }

    /// Nothing is parted any more (streams that died stay dead).
    pub(crate) fn heal(&mut self, core: &mut Core) {
        self.parted_until_us = 0;
        self.isolated.clear();
        for (id, conn) in self.conns.iter_mut().enumerate() {
            for (stream, to) in conn.streams.iter_mut().zip([Side::Host, Side::Node]) {
                if let Pace::StalledUntil(_) = stream.pace {
                    stream.pace = Pace::Flowing;
                    core.after(
                        0,
                        Event::Arrive {
                            conn: ConnId(id),
                            to,
                        },
                    );
                }
            }
        }
    }

    /// The host, its link and the node of a connection.
    pub(crate) fn owner(&self, id: ConnId) -> (usize, u16, usize) {
        let conn = &self.conns[id.0];
        (conn.host, conn.link, conn.node)
    }

    /// Makes a connection; the caller schedules who learns of it when.
    pub(crate) fn connect(&mut self, host: usize, link: u16, node: usize) -> ConnId {
        self.conns.push(Conn {
            host,
            link,
            node,
            streams: [Stream::new(), Stream::new()],
        });
        ConnId(self.conns.len() - 1)
    }

    /// The connections that both ends still use.
    pub(crate) fn open_conns(&self) -> Vec<ConnId> {
        self.conns
            .iter()
            .enumerate()
            .filter(|(_, c)| c.streams.iter().all(|s| !s.closed && !s.reset))
            .map(|(id, _)| ConnId(id))
            .collect()
    }

    /// Slows one direction down until a time; none: for ever.
    pub(crate) fn stall(&mut self, id: ConnId, to: Side, until_us: Option<u64>) {
        let stream = &mut self.conns[id.0].streams[to.index()];
        stream.pace = match (stream.pace, until_us) {
            (Pace::Dead, _) | (_, None) => Pace::Dead,
            (Pace::StalledUntil(before), Some(until)) => Pace::StalledUntil(before.max(until)),
            (Pace::Flowing, Some(until)) => Pace::StalledUntil(until),
        };
    }

    /// Resets one end now, as a firewall or a broken path does; the other end learns nothing of it.
    pub(crate) fn reset_end(&mut self, core: &mut Core, id: ConnId, side: Side) {
        let stream = &mut self.conns[id.0].streams[side.index()];
        stream.reset = true;
        stream.inbox.clear();
        self.wake(core, id, side, 0);
    }

    /// Hands bytes to the socket.
    pub(crate) fn send(&mut self, core: &mut Core, id: ConnId, from: Side, bytes: &[u8]) -> Sent {
        let setup = self.setup;
        let conn = &mut self.conns[id.0];
        let own = &conn.streams[from.index()];
        if own.reset || own.closed {
            return Sent::Reset;
        }
        let to = from.peer();
        let stream = &mut conn.streams[to.index()];
        let room = setup
            .window_bytes
            .saturating_sub(stream.travelling_bytes + stream.inbox.len());
        if room == 0 {
            stream.writer_waits = true;
            return Sent::Full;
        }
        let most = bytes.len().min(room);
        let n = if core.rng.permille(300) {
            core.rng.range(1, most as u64) as usize
        } else {
            most
        };
        let mut data = bytes[..n].to_vec();
        if !core.calm && setup.flips_ppm > 0 && core.rng.below(1_000_000) < setup.flips_ppm {
            let bit = core.rng.below(n as u64 * 8);
            data[(bit / 8) as usize] ^= 1 << (bit % 8);
            core.trace(|| format!("net {id:?} bit flip towards {to:?}"));
        }
        stream.travelling_bytes += n;
        self.launch(core, id, to, Piece::Data(data));
        Sent::Bytes(n)
    }

    fn launch(&mut self, core: &mut Core, id: ConnId, to: Side, piece: Piece) {
        let delay = core.rng.delay_us(self.setup.delay_us);
        let stream = &mut self.conns[id.0].streams[to.index()];
        let at = stream.last_arrival_us.max(core.now_us + delay);
        stream.last_arrival_us = at;
        stream.travelling.push_back((at, piece));
        core.at(at, Event::Arrive { conn: id, to });
    }

    /// Moves what has arrived into the inbox of a side.
    pub(crate) fn on_arrive(&mut self, core: &mut Core, id: ConnId, to: Side) {
        let parted_until_us = self.parted_until_us;
        let stream = &mut self.conns[id.0].streams[to.index()];
        let held_until_us = match stream.pace {
            Pace::Dead => return,
            Pace::StalledUntil(at) if at > core.now_us => at,
            Pace::StalledUntil(_) | Pace::Flowing => parted_until_us,
        };
        if held_until_us > core.now_us {
            core.at(held_until_us, Event::Arrive { conn: id, to });
            return;
        }
        stream.pace = Pace::Flowing;
        let mut news = false;
        let mut answer_reset = false;
        while let Some((at, _)) = stream.travelling.front() {
            if *at > core.now_us {
                break;
            }
            let Some((_, piece)) = stream.travelling.pop_front() else {
                break;
            };
            match piece {
                Piece::Data(data) => {
                    stream.travelling_bytes -= data.len();
                    if stream.closed {
                        answer_reset = true;
                    } else if !stream.reset {
                        stream.inbox.extend(data);
                        news = true;
                    }
                }
                Piece::Fin => {
                    stream.ended = true;
                    news = true;
                }
                Piece::Rst => {
                    stream.reset = true;
                    stream.inbox.clear();
                    news = true;
                }
            }
        }
        if answer_reset && !self.conns[id.0].streams[to.peer().index()].closed {
            // Bytes for a socket that is gone.
            self.launch(core, id, to.peer(), Piece::Rst);
        }
        if news {
            self.wake(core, id, to, 200);
        }
    }

    /// Lets a side look at its socket soon.
    pub(crate) fn wake(&mut self, core: &mut Core, id: ConnId, side: Side, within_us: u64) {
        let stream = &mut self.conns[id.0].streams[side.index()];
        if !stream.wake_due && !stream.closed {
            stream.wake_due = true;
            let delay = core.rng.below(within_us + 1);
            core.after(delay, Event::Wake { conn: id, side });
        }
    }

    /// A side is looking at its socket now. False if it has none any more.
    pub(crate) fn on_wake(&mut self, id: ConnId, side: Side) -> bool {
        let stream = &mut self.conns[id.0].streams[side.index()];
        stream.wake_due = false;
        !stream.closed
    }

    /// Takes bytes from the socket.
    pub(crate) fn recv(&mut self, core: &mut Core, id: ConnId, side: Side, to: &mut [u8]) -> Got {
        let stream = &mut self.conns[id.0].streams[side.index()];
        if stream.reset || stream.closed {
            return Got::Reset;
        }
        if stream.inbox.is_empty() {
            return if stream.ended { Got::End } else { Got::Nothing };
        }
        let most = to.len().min(stream.inbox.len());
        let n = if core.rng.permille(200) {
            core.rng.range(1, most as u64) as usize
        } else {
            most
        };
        for (to, from) in to.iter_mut().zip(stream.inbox.drain(..n)) {
            *to = from;
        }
        if stream.writer_waits {
            stream.writer_waits = false;
            self.wake(core, id, side.peer(), 100);
        }
        Got::Bytes(n)
    }

    /// Whether the peer has closed or reset, and nothing is left to be received.
    pub(crate) fn is_over(&self, id: ConnId, side: Side) -> bool {
        let stream = &self.conns[id.0].streams[side.index()];
        stream.reset || (stream.ended && stream.inbox.is_empty())
    }

    /// How many bytes wait to be received.
    pub(crate) fn waiting(&self, id: ConnId, side: Side) -> usize {
        self.conns[id.0].streams[side.index()].inbox.len()
    }

    /// Closes one end.
    pub(crate) fn close(&mut self, core: &mut Core, id: ConnId, side: Side, how: Closing) {
        let stream = &mut self.conns[id.0].streams[side.index()];
        if stream.closed {
            return;
        }
        stream.closed = true;
        // A real socket with unread bytes resets its peer.
        let unread = !stream.inbox.is_empty();
        stream.inbox.clear();
        let piece = match how {
            Closing::Silent => return,
            Closing::Fin if !unread => Piece::Fin,
            Closing::Fin | Closing::Rst => Piece::Rst,
        };
        if piece_is_reset(&piece) {
            // A reset overtakes nothing, but what the peer has not read yet is lost.
            core.trace(|| format!("net {id:?} reset by {side:?}"));
        }
        self.launch(core, id, side.peer(), piece);
    }
}

fn piece_is_reset(piece: &Piece) -> bool {
    matches!(piece, Piece::Rst)
}
