// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The storage of a node: blocks, a write cache that a loss of power may take, and operations that
//! take their time and do not care whether anybody still waits for them.
//!
//! The engine also watches over fencing, without asking the gate: it is told who was let in, and
//! from then on no operation of anybody displaced may touch a block.
//!
//! Several nodes may have this one storage (a cluster's image, say). It then belongs to one of them
//! at a time, for a *term*. A node that takes it begins a new term, and the storage refuses whatever
//! comes with an older one: that is what breaking a lock and blocklisting its holder come to.

use crate::clock::{Core, Event};
use crate::content::{Block, BLOCK_BYTES, ZEROES};
use crate::net::ConnId;
use neonsan_proto::{Kind, RequestFlags};
use neonsan_session::server::{Command, Remembered};
use std::collections::{BTreeMap, BTreeSet};

/// Identity of a session, as far as this simulation goes.
pub(crate) type SessionId = [u8; 16];

/// On whose behalf an operation runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticket {
    pub(crate) node: usize,
    /// Its session only reads, beside others.
    pub(crate) read_only: bool,
    /// The term in which the node let the connection in.
    pub(crate) term: u64,
    pub(crate) conn: ConnId,
    pub(crate) session: SessionId,
    pub(crate) generation: u64,
    pub(crate) index: u16,
    pub(crate) epoch: u64,
}

/// An operation that has come to its end.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) ticket: Ticket,
    pub(crate) command: Command,
    /// What was read.
    pub(crate) data: Vec<u8>,
    /// The storage did not carry it out, or not to its end: another node has the volume.
    pub(crate) refused: bool,
}

#[derive(Debug)]
struct Op {
    ticket: Ticket,
    command: Command,
    data: Vec<u8>,
    /// The blocks that come first: those below this one, or the others.
    split: u64,
    low_first: bool,
    step: u8,
    /// Its node has lost the volume.
    refused: bool,
}

/// Properties of the engine of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EngineSetup {
    /// Shortest and longest usual time between two steps of an operation, in microseconds.
    pub(crate) step_us: (u64, u64),
    /// Writes are durable only after FLUSH or with FUA.
    pub(crate) volatile_cache: bool,
    /// FLUSH does nothing: a planted bug.
    pub(crate) lying_flush: bool,
    /// The engine watches over fencing.
    pub(crate) watched: bool,
    /// The storage carries out what comes with an older term: a planted bug.
    pub(crate) without_blocklist: bool,
    /// After so much silence the storage takes a node for dead, in microseconds.
    pub(crate) watch_us: u64,
}

/// The storage of one volume.
#[derive(Debug)]
pub(crate) struct Engine {
    setup: EngineSetup,
    durable: Vec<Block>,
    /// What was written since it was made durable last.
    cached: BTreeMap<u64, Block>,
    ops: BTreeMap<u64, Op>,
    next_op: u64,
    hangs_until_us: u64,
    /// The generation in force of each session.
    generations: BTreeMap<SessionId, u64>,
    /// The epoch in force of each connection of each session.
    epochs: BTreeMap<(SessionId, u16), u64>,
    /// What the node saved beside the volume.
    pub(crate) remembered: Vec<Remembered>,
    owner: Option<SessionId>,
    displaced: BTreeSet<SessionId>,
    /// The term in force, and whose it is.
    term: u64,
    term_owner: Option<usize>,
    nodes: Vec<NodeSeen>,
}

/// A node as its storage sees it.
#[derive(Clone, Copy, Debug, Default)]
struct NodeSeen {
    /// Since when its process does nothing.
    away_since_us: Option<u64>,
    /// It cannot reach the storage before this time.
    cut_off_until_us: u64,
}

impl Engine {
    /// An engine with a volume of zeroes.
    pub(crate) fn new(setup: EngineSetup, blocks: u64, nodes: usize) -> Self {
        Engine {
            setup,
            durable: vec![ZEROES; blocks as usize],
            cached: BTreeMap::new(),
            ops: BTreeMap::new(),
            next_op: 0,
            hangs_until_us: 0,
            generations: BTreeMap::new(),
            epochs: BTreeMap::new(),
            remembered: Vec::new(),
            owner: None,
            displaced: BTreeSet::new(),
            term: 0,
            term_owner: None,
            nodes: vec![NodeSeen::default(); nodes],
        }
    }

    // ---- terms ----

    /// A node takes the volume. Whatever another one has under way gets to some point, or not even
    /// begins, and nothing of it touches a block later. Returns the new term, and who had the
    /// last.
    pub(crate) fn take(&mut self, core: &mut Core, node: usize) -> (u64, Option<(usize, u64)>) {
        let last = self
            .term_owner
            .filter(|owner| *owner != node)
            .map(|owner| (owner, self.term));
        let ids: Vec<u64> = self.ops.keys().copied().collect();
        for id in ids {
            if self.setup.without_blocklist {
                break;
            }
            let Some(mut op) = self.ops.remove(&id) else {
                continue;
            };
            self.stop_somewhere(core, &mut op);
            op.refused = true;
            self.ops.insert(id, op);
        }
        self.term += 1;
        self.term_owner = Some(node);
        core.trace(|| format!("node {node} has the volume, term {}", self.term));
        (self.term, last)
    }

    /// Saves what a node's gate remembers, unless another node has the volume.
    pub(crate) fn save(&mut self, term: u64, remembered: Vec<Remembered>) -> bool {
        let valid = term == self.term;
        if valid {
            self.remembered = remembered;
        }
        valid
    }

    /// A node's process stands still or is gone (since when), or is there.
    pub(crate) fn set_away(&mut self, node: usize, since_us: Option<u64>) {
        self.nodes[node].away_since_us = since_us;
    }

    /// A node cannot reach the storage for a while.
    pub(crate) fn cut_off(&mut self, core: &Core, node: usize, for_us: u64) {
        self.nodes[node].cut_off_until_us = core.now_us + for_us;
    }

    /// Until when a node cannot reach the storage, if it cannot.
    pub(crate) fn cut_off_until_us(&self, core: &Core, node: usize) -> Option<u64> {
        let until_us = self.nodes[node].cut_off_until_us;
        (until_us > core.now_us).then_some(until_us)
    }

    /// Whether another node has the volume and, by all that the storage knows, uses it.
    pub(crate) fn is_in_other_hands(&self, core: &Core, node: usize) -> bool {
        let Some(owner) = self.term_owner.filter(|owner| *owner != node) else {
            return false;
        };
        let away_since_us = self.nodes[owner].away_since_us;
        let silent = away_since_us.is_some_and(|at| core.now_us - at >= self.setup.watch_us);
        !silent && self.cut_off_until_us(core, owner).is_none()
    }

    // ---- sessions ----

    /// Number of blocks.
    pub(crate) fn blocks(&self) -> u64 {
        self.durable.len() as u64
    }

    /// The volume grows.
    pub(crate) fn grow(&mut self, blocks: u64) {
        let blocks = (blocks as usize).max(self.durable.len());
        self.durable.resize(blocks, ZEROES);
    }

    /// What a block holds for a reader.
    pub(crate) fn block(&self, block: u64) -> Block {
        match self.cached.get(&block) {
            Some(bytes) => *bytes,
            None => self.durable[block as usize],
        }
    }

    /// No operation makes a step for a while.
    pub(crate) fn hang(&mut self, core: &Core, for_us: u64) {
        self.hangs_until_us = core.now_us + for_us;
    }

    /// A session's connection was let in: whatever it displaces must not touch a block any more.
    /// Returns the session that lost the volume to it, if one did.
    pub(crate) fn let_in(
        &mut self,
        core: &mut Core,
        ticket: &Ticket,
        opens: bool,
    ) -> Option<SessionId> {
        let session = ticket.session;
        if ticket.term != self.term {
            // The node does not know yet that it has lost the volume. Nobody is harmed: the storage
            // does nothing that is asked for on this connection.
            return None;
        }
        if self.displaced.contains(&session) {
            core.fail(format!(
                "session {} was let in again after another had the volume",
                name(&session)
            ));
        }
        let generation = self.generations.entry(session).or_insert(0);
        if opens {
            *generation = (*generation).max(ticket.generation);
        } else if ticket.generation != *generation {
            core.fail(format!(
                "a connection joined generation {} while {} is in force",
                ticket.generation, generation
            ));
        }
        self.epochs.insert((session, ticket.index), ticket.epoch);
        let lost = self
            .owner
            .filter(|owner| *owner != session && !ticket.read_only);
        if let Some(lost) = lost {
            self.displaced.insert(lost);
        }
        if !ticket.read_only {
            self.owner = Some(session);
        }
        // Nothing displaced may even be there: it would touch blocks later.
        for op in self.ops.values().filter(|op| !op.refused) {
            if let Some(why) = self.displacement(&op.ticket) {
                core.fail(format!(
                    "{:?} of {} is in the engine while its successor is let in: {why}",
                    op.command.kind,
                    describe(&op.ticket)
                ));
            }
        }
        lost
    }

    /// The session that was let in last.
    pub(crate) fn owner(&self) -> Option<SessionId> {
        self.owner
    }

    /// Why an operation may not touch a block any more.
    fn displacement(&self, ticket: &Ticket) -> Option<String> {
        if !self.setup.watched {
            return None;
        }
        if ticket.term != self.term {
            return Some("another node has the volume".into());
        }
        if self.owner != Some(ticket.session) && !ticket.read_only {
            return Some("another session has the volume".into());
        }
        let generation = self.generations.get(&ticket.session).copied().unwrap_or(0);
        if ticket.generation < generation {
            return Some(format!("generation {generation} is in force"));
        }
        let epoch = self
            .epochs
            .get(&(ticket.session, ticket.index))
            .copied()
            .unwrap_or(0);
        (ticket.epoch < epoch).then(|| format!("epoch {epoch} of the connection is in force"))
    }

    /// Begins an operation.
    pub(crate) fn begin(
        &mut self,
        core: &mut Core,
        ticket: Ticket,
        command: Command,
        data: Vec<u8>,
    ) {
        let (first, count) = blocks_of(&command);
        let data = if command.kind == Kind::Read {
            vec![0; command.length as usize]
        } else {
            data
        };
        let op = Op {
            ticket,
            command,
            data,
            split: first + core.rng.below(count + 1),
            low_first: core.rng.permille(500),
            step: 0,
            refused: ticket.term != self.term && !self.setup.without_blocklist,
        };
        self.next_op += 1;
        self.ops.insert(self.next_op, op);
        let delay = core.rng.delay_us(self.setup.step_us);
        core.after(delay, Event::Engine { op: self.next_op });
    }

    /// An operation makes its next step.
    pub(crate) fn on_step(&mut self, core: &mut Core, id: u64) -> Option<Done> {
        let node = self.ops.get(&id)?.ticket.node;
        let stands_until_us = self.hangs_until_us.max(self.nodes[node].cut_off_until_us);
        if stands_until_us > core.now_us {
            let delay = core.rng.delay_us(self.setup.step_us);
            core.at(stands_until_us + delay, Event::Engine { op: id });
            return None;
        }
        let mut op = self.ops.remove(&id)?;
        if op.refused {
            return Some(Done {
                ticket: op.ticket,
                command: op.command,
                data: Vec::new(),
                refused: true,
            });
        }
        op.step += 1;
        if op.step <= 2 {
            self.touch(core, &mut op);
            self.ops.insert(id, op);
            let delay = core.rng.delay_us(self.setup.step_us);
            core.after(delay, Event::Engine { op: id });
            return None;
        }
        if op.command.flags.contains(RequestFlags::FUA) {
            let (first, count) = blocks_of(&op.command);
            for block in first..first + count {
                self.make_durable(block);
            }
        }
        Some(Done {
            ticket: op.ticket,
            command: op.command,
            data: op.data,
            refused: false,
        })
    }

    /// Carries out one half of an operation.
    fn touch(&mut self, core: &mut Core, op: &mut Op) {
        if op.ticket.read_only && op.command.kind != Kind::Read {
            core.fail(format!(
                "{:?} of {}, which may only read",
                op.command.kind,
                describe(&op.ticket)
            ));
        }
        if let Some(why) = self.displacement(&op.ticket) {
            core.fail(format!(
                "{:?} of {} touches the engine: {why}",
                op.command.kind,
                describe(&op.ticket)
            ));
        }
        if op.command.kind == Kind::Flush {
            if op.step == 2 && !self.setup.lying_flush {
                let cached: Vec<u64> = self.cached.keys().copied().collect();
                for block in cached {
                    self.make_durable(block);
                }
            }
            return;
        }
        let (first, count) = blocks_of(&op.command);
        for at in 0..count {
            let block = first + at;
            let is_first = (block < op.split) == op.low_first;
            if is_first != (op.step == 1) {
                continue;
            }
            let from = at as usize * BLOCK_BYTES;
            match op.command.kind {
                Kind::Read => {
                    let bytes = self.block(block);
                    op.data[from..from + BLOCK_BYTES].copy_from_slice(&bytes);
                }
                Kind::Write => {
                    let mut bytes = ZEROES;
                    bytes.copy_from_slice(&op.data[from..from + BLOCK_BYTES]);
                    self.put(block, bytes);
                }
                _ => self.put(block, ZEROES),
            }
        }
    }

    fn put(&mut self, block: u64, bytes: Block) {
        if self.setup.volatile_cache {
            self.cached.insert(block, bytes);
        } else {
            self.durable[block as usize] = bytes;
        }
    }

    fn make_durable(&mut self, block: u64) {
        if let Some(bytes) = self.cached.remove(&block) {
            self.durable[block as usize] = bytes;
        }
    }

    /// The node's process ended: each of its operations is carried out to some point, or not at
    /// all, and none later.
    pub(crate) fn on_node_gone(&mut self, core: &mut Core, node: usize) {
        let ids: Vec<u64> = self
            .ops
            .iter()
            .filter(|(_, op)| op.ticket.node == node)
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            let Some(mut op) = self.ops.remove(&id) else {
                continue;
            };
            self.stop_somewhere(core, &mut op);
        }
    }

    /// Carries an operation that will never end to some point.
    fn stop_somewhere(&mut self, core: &mut Core, op: &mut Op) {
        while !op.refused && op.step < 2 && op.command.kind != Kind::Flush && core.rng.permille(500)
        {
            op.step += 1;
            self.touch(core, op);
        }
    }

    /// The power goes: some of the cache was written back in time, the rest is lost.
    pub(crate) fn lose_cache(&mut self, core: &mut Core) {
        let cached: Vec<u64> = self.cached.keys().copied().collect();
        for block in cached {
            if core.rng.permille(300) {
                self.make_durable(block);
            }
        }
        self.cached.clear();
    }
}

/// The first block of a command and how many there are.
pub(crate) fn blocks_of(command: &Command) -> (u64, u64) {
    let block = BLOCK_BYTES as u64;
    (command.offset / block, u64::from(command.length) / block)
}

/// A session's name for people.
pub(crate) fn name(session: &SessionId) -> String {
    format!("s{}", session[0])
}

fn describe(ticket: &Ticket) -> String {
    format!(
        "{} generation {} connection {} epoch {}",
        name(&ticket.session),
        ticket.generation,
        ticket.index,
        ticket.epoch
    )
}
