// SPDX-License-Identifier: GPL-2.0

//! Between blk-mq and the connections: one hardware queue is one connection.

use crate::{
    clock::now,
    connection::{Connection, TRANSMIT_WORK},
    device::Device,
    transmit,
    uapi::Op, //
};
use core::convert::Infallible;
use kernel::{
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed},
        Arc, ArcBorrow,
    },
};
use neonsan_kernel::block::{
    self,
    mq::{self, Operations, OwnedRequest, RequestOp, TimeoutAction},
    SECTOR_SIZE,
};
use neonsan_proto::{Kind, RequestFlags};
use neonsan_session::{
    client::{judge_late, FlushMark, Late, Request},
    CloseCause, Cookie, Tag,
};

/// The driver's operations.
pub(crate) struct Queue;

/// What the driver keeps beside each request.
pub(crate) struct RequestData {
    /// The request's name on the wire. Written by whoever owns the request.
    cookie: Atomic<u64>,
    /// The name under which it is sent from a copy, since its data changed while it was sent before;
    /// any other, such as that of an older request of this tag, means nothing. Written by whoever owns
    /// the request.
    changed: Atomic<u64>,
    /// For a flush: what it covers. Written by whoever owns the request.
    flush_mark: [Atomic<u64>; 2],
    /// For a flush: how many bytes were answered before it. Written by whoever owns the request.
    flush_bytes: Atomic<u64>,
}

impl RequestData {
    /// The name on the wire.
    pub(crate) fn cookie(&self) -> Cookie {
        Cookie::from_wire(self.cookie.load(Relaxed))
    }

    /// The name of a new request.
    fn set_cookie(&self, cookie: Cookie) {
        self.cookie.store(cookie.to_wire(), Relaxed);
    }

    /// The same request has a new name, under which it is sent again.
    pub(crate) fn rename(&self, cookie: Cookie) {
        let has_changed = self.has_changed();
        self.set_cookie(cookie);
        if has_changed {
            self.set_changed();
        }
    }

    /// Its data changed while it was sent.
    pub(crate) fn set_changed(&self) {
        self.changed.store(self.cookie.load(Relaxed), Relaxed);
    }

    /// Whether its data changed while it was sent before.
    pub(crate) fn has_changed(&self) -> bool {
        self.changed.load(Relaxed) == self.cookie.load(Relaxed)
    }

    /// For a flush: what it covers.
    pub(crate) fn flush_mark(&self) -> FlushMark {
        let [number, losses] = &self.flush_mark;
        FlushMark::from_words([number.load(Relaxed), losses.load(Relaxed)])
    }

    /// For a flush: how many bytes were answered before it.
    pub(crate) fn flush_bytes(&self) -> u64 {
        self.flush_bytes.load(Relaxed)
    }

    /// A flush begins: what it covers is all that was answered so far.
    fn begin_flush(&self, device: &Device) {
        self.flush_bytes.store(device.answered_bytes(), Relaxed);
        self.set_flush_mark(device.durability().begin_flush());
    }

    /// Sets it.
    fn set_flush_mark(&self, mark: FlushMark) {
        for (to, word) in self.flush_mark.iter().zip(mark.to_words()) {
            to.store(word, Relaxed);
        }
    }
}

/// What a request asks for, in the terms of the wire; `None` for what the driver never offered.
pub(crate) fn describe(rq: &mq::Request<Queue>) -> Option<Request> {
    let (kind, mut flags) = match rq.op() {
        RequestOp::Read => (Kind::Read, RequestFlags::NONE),
        RequestOp::Write => (Kind::Write, RequestFlags::NONE),
        RequestOp::Flush => (Kind::Flush, RequestFlags::NONE),
        RequestOp::Discard => (Kind::Discard, RequestFlags::NONE),
        RequestOp::WriteZeroes => (Kind::WriteZeroes, RequestFlags::NONE),
        RequestOp::Other(_) => return None,
    };
    if kind == Kind::Flush {
        return Some(Request {
            kind,
            flags,
            offset: 0,
            length: 0,
        });
    }
    if rq.is_fua() && matches!(kind, Kind::Write | Kind::WriteZeroes) {
        flags = flags.union(RequestFlags::FUA);
    }
    if rq.is_atomic() && kind == Kind::Write {
        flags = flags.union(RequestFlags::ATOMIC);
    }
    if rq.is_no_unmap() && kind == Kind::WriteZeroes {
        flags = flags.union(RequestFlags::NO_UNMAP);
    }
    let offset = rq.sector().checked_mul(u64::from(SECTOR_SIZE))?;
    Some(Request {
        kind,
        flags,
        offset,
        length: rq.len_bytes(),
    })
}

/// The kind of a request, for people.
pub(crate) fn op_of(kind: Kind) -> Op {
    match kind {
        Kind::Write => Op::Write,
        Kind::Flush => Op::Flush,
        Kind::Discard => Op::Discard,
        Kind::WriteZeroes => Op::WriteZeroes,
        _ => Op::Read,
    }
}

/// Gives a request its place among those of the connection. Returns its name on the wire. If that
/// fails the request must be ended; a slot belongs to a tag, so it does not.
fn claim(connection: &Connection, rq: &OwnedRequest<Queue>) -> Option<Cookie> {
    let request = describe(rq)?;
    connection.slots.claim(Tag(rq.tag()), request, now())
}

/// Gives a request that was answered, and is to be sent again, a place and a new name.
pub(crate) fn claim_again(connection: &Connection, rq: &OwnedRequest<Queue>) -> bool {
    let cookie = claim(connection, rq);
    if let Some(cookie) = cookie {
        rq.data().rename(cookie);
    }
    cookie.is_some()
}

#[vtable]
impl Operations for Queue {
    type RequestData = RequestData;
    type QueueData = ();
    type HwData = Arc<Connection>;
    type TagSetData = Arc<Device>;

    fn new_request_data() -> impl PinInit<RequestData, Infallible> {
        init!(RequestData {
            cookie: Atomic::new(0),
            // No request has this name: a name has the generation of a slot, which is at least 1.
            changed: Atomic::new(u64::MAX),
            flush_mark: [Atomic::new(0), Atomic::new(0)],
            flush_bytes: Atomic::new(0),
        })
    }

    fn nr_poll_queues(device: ArcBorrow<'_, Device>) -> u32 {
        device.poll_queues().into()
    }

    fn init_hctx(device: ArcBorrow<'_, Device>, index: u32) -> Result<Arc<Connection>> {
        device.connection(u16::try_from(index)?).ok_or(EINVAL)
    }

    fn queue_rq(
        connection: ArcBorrow<'_, Connection>,
        (): (),
        rq: OwnedRequest<Queue>,
        is_last: bool,
    ) {
        if rq.op() == RequestOp::Flush {
            rq.data().begin_flush(&connection.device);
        }
        if connection.refuses.load(Relaxed) != 0 {
            connection.errors.add(1, Relaxed);
            rq.end(block::Status::IOERR);
        } else if let Some(cookie) = claim(&connection, &rq) {
            rq.data().set_cookie(cookie);
            connection.pending.push(rq);
        } else {
            rq.end(block::Status::NOTSUPP);
        }
        if is_last {
            transmit::submit(connection);
        }
    }

    fn commit_rqs(connection: ArcBorrow<'_, Connection>, (): ()) {
        transmit::submit(connection);
    }

    fn timeout(connection: ArcBorrow<'_, Connection>, (): (), tag: u16) -> TimeoutAction {
        let limit_ms = u64::from(connection.device.timeouts().request_ms);
        if let Some(info) = connection.slots.info(Tag(tag)) {
            let age_ms = now().since_ms(info.since);
            let gate = connection.transmit.state();
            match judge_late(info.state, gate, age_ms, limit_ms) {
                Late::No => {}
                Late::Unsent => {
                    connection.timeouts.add(1, Relaxed);
                    Arc::from(connection).queue_work::<TRANSMIT_WORK>();
                }
                Late::GivenUp => {
                    connection.timeouts.add(1, Relaxed);
                    connection.fault(CloseCause::RequestTimeout);
                }
            }
        }
        TimeoutAction::ResetTimer
    }

    fn poll(connection: ArcBorrow<'_, Connection>) -> u32 {
        connection.polling.poll()
    }
}
