// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Random traffic on several connections against a model, with connections
//! that break in the middle and a volume that grows meanwhile.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashMap;

use common::wire::{Open, Wire, CHECKED};
use common::{block_on, create, directory, Node};
use neonsan_api::VolumeResize;
use neonsan_proto::{Features, Header, Kind, RequestFlags, Status};

const BLOCK: u64 = 512;
/// Blocks that each connection has for itself.
const SHARE: u64 = 512;
const DEPTH: usize = 32;

/// xorshift64; the seed is printed by whoever fails.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// What a request in flight will have done.
enum Expected {
    Data(Vec<u8>),
    Nothing,
}

/// Requests in flight on one connection, none of which meet, and what the
/// blocks of the connection hold.
struct Traffic {
    random: Random,
    first: u64,
    model: Vec<u8>,
    busy: Vec<bool>,
    in_flight: HashMap<u64, (u64, u64, Expected)>,
}

impl Traffic {
    fn new(seed: u64, connection: u64) -> Self {
        Self {
            random: Random(seed * 100 + connection + 1),
            first: connection * SHARE,
            model: vec![0; (SHARE * BLOCK) as usize],
            busy: vec![false; SHARE as usize],
            in_flight: HashMap::new(),
        }
    }

    /// Sends a request on blocks which no other one in flight touches.
    fn send(&mut self, wire: &mut Wire) {
        let count = 1 + self.random.below(48);
        let start = self.random.below(SHARE - count);
        let blocks = start as usize..(start + count) as usize;
        if self.busy[blocks.clone()].contains(&true) {
            return;
        }
        self.busy[blocks].fill(true);
        let bytes = (start * BLOCK) as usize..((start + count) * BLOCK) as usize;
        let offset = (self.first + start) * BLOCK;
        let length = (count * BLOCK) as u32;
        let fua = match self.random.below(8) {
            0 => RequestFlags::FUA,
            _ => RequestFlags::NONE,
        };
        let none = RequestFlags::NONE;
        let (cookie, expected) = match self.random.below(10) {
            0..=3 => {
                let cookie = wire.ask(Kind::Read, none, offset, length, &[]);
                (cookie, Expected::Data(self.model[bytes].to_vec()))
            }
            4..=7 => {
                let value = self.random.below(256) as u8;
                self.model[bytes.clone()].fill(value);
                let cookie = wire.ask(Kind::Write, fua, offset, length, &self.model[bytes]);
                (cookie, Expected::Nothing)
            }
            8 => {
                self.model[bytes].fill(0);
                let cookie = wire.ask(Kind::WriteZeroes, fua, offset, length, &[]);
                (cookie, Expected::Nothing)
            }
            _ => {
                self.model[bytes].fill(0);
                let cookie = wire.ask(Kind::Discard, none, offset, length, &[]);
                (cookie, Expected::Nothing)
            }
        };
        self.in_flight.insert(cookie, (start, count, expected));
    }

    /// Takes one answer.
    fn receive(&mut self, wire: &mut Wire) {
        let reply = wire.receive_reply().unwrap();
        let (start, count, expected) = self.in_flight.remove(&reply.header.cookie()).unwrap();
        assert_eq!(reply.header.status(), Status::Ok);
        match expected {
            Expected::Data(data) => assert!(reply.payload == data, "{count} blocks at {start}"),
            Expected::Nothing => assert!(reply.payload.is_empty()),
        }
        self.busy[start as usize..(start + count) as usize].fill(false);
    }

    fn run(&mut self, wire: &mut Wire, rounds: usize) {
        for _ in 0..rounds {
            while self.in_flight.len() < DEPTH && self.random.below(4) > 0 {
                self.send(wire);
            }
            if !self.in_flight.is_empty() {
                self.receive(wire);
            }
        }
        while !self.in_flight.is_empty() {
            self.receive(wire);
        }
    }

    /// Reads everything.
    fn check(&self, wire: &mut Wire) {
        let data = wire.read(self.first * BLOCK, (SHARE * BLOCK) as u32);
        assert!(data == self.model, "the blocks of a connection differ");
    }
}

#[test]
fn random_traffic_agrees_with_a_model() {
    let dir = directory();
    let node = Node::start(dir.path());
    let seed = u64::from(std::process::id());
    println!("seed {seed}");
    for (engine, features) in [("mem", Features::NONE), ("main", CHECKED)] {
        let name = format!("p/{engine}");
        create(&node, &name, 4 * SHARE * BLOCK, 512, engine);
        let mut open = Open::new(&name, 1);
        open.features = features;
        let mut wires = vec![Wire::open(node.data, &open).unwrap()];
        for connection in 1..4 {
            wires.push(Wire::join(node.data, &open, connection, 1).unwrap());
        }
        let mut traffic: Vec<_> = (0..4).map(|c| Traffic::new(seed, c)).collect();
        for round in 0..4u64 {
            std::thread::scope(|scope| {
                for (traffic, wire) in traffic.iter_mut().zip(&mut wires) {
                    scope.spawn(|| traffic.run(wire, 300));
                }
                let resize = VolumeResize {
                    size_bytes: (4 * SHARE + round + 1) * BLOCK,
                    allow_shrink: false,
                };
                let name = name.parse().unwrap();
                block_on(node.api().resize_volume(&name, &resize)).unwrap();
            });
            assert_eq!(wires[0].flush(), Status::Ok);
            for (traffic, wire) in traffic.iter().zip(&mut wires) {
                traffic.check(wire);
            }
            // A connection breaks with a write half sent, and is replaced.
            let victim = 1 + (round % 3) as u16;
            let wire = &mut wires[usize::from(victim)];
            let offset = traffic[usize::from(victim)].first * BLOCK;
            let half = Header::request(Kind::Write, RequestFlags::NONE, 1 << 40, offset, 65536);
            wire.send(half, &[0xee; 30_000]);
            wires[usize::from(victim)] = Wire::join(node.data, &open, victim, 2 + round).unwrap();
            traffic[usize::from(victim)].check(&mut wires[usize::from(victim)]);
        }
        wires.swap_remove(0).release();
    }
    assert_eq!(node.metric("neonsan_node_in_flight_bytes"), 0.0);
    assert_eq!(
        node.metric("neonsan_node_requests_failed_total{op=\"write\"}"),
        0.0
    );
}
