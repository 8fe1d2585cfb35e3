// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What a user calls.

use crate::control::{now, Control, Message, Shared};
use crate::{Config, Error, Event};
use bytes::Bytes;
use neonsan_proto::{Geometry, Kind, OpenReply, RequestFlags};
use neonsan_session::client::{Durability, Request};
use neonsan_session::Timeouts;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, RwLock};
use tokio::sync::{broadcast, mpsc, oneshot};

/// Modifiers of a write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteFlags {
    /// Return only when the data is durable.
    pub fua: bool,
    /// After a power loss all of it or none of it is there; the write must fit the volume's
    /// atomic limits.
    pub atomic: bool,
}

/// An attached volume. Clones share the session; it ends with [`Client::detach`] or when the last
/// clone is dropped.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    handle: Arc<Handle>,
    next_lane: Arc<AtomicUsize>,
}

/// Ends the session when the last client goes.
struct Handle {
    sender: mpsc::UnboundedSender<Message>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        let (done, _) = oneshot::channel();
        let _ = self.sender.send(Message::Close { done });
    }
}

impl Client {
    /// Opens the volume and returns when every connection is in force.
    ///
    /// # Errors
    ///
    /// [`Error::Misuse`] for a bad configuration; [`Error::Connect`] or [`Error::Refused`] when
    /// every node has been tried once.
    pub async fn attach(config: Config) -> Result<Client, Error> {
        config.check()?;
        let shared = Arc::new(Shared {
            lanes: OnceLock::new(),
            opened: RwLock::new(OpenReply::default()),
            durability: Arc::new(Durability::new()),
            events: broadcast::channel(64).0,
        });
        let (sender, messages) = mpsc::unbounded_channel();
        let (attached, result) = oneshot::channel();
        let control = Control::new(config, Arc::clone(&shared), sender.clone(), attached);
        tokio::spawn(control.run(messages));
        result.await.unwrap_or(Err(Error::Detached))?;
        let next_lane = Arc::new(AtomicUsize::new(0));
        Ok(Client {
            shared,
            handle: Arc::new(Handle { sender }),
            next_lane,
        })
    }

    /// Size, limits and abilities of the volume as last told by the node.
    pub fn geometry(&self) -> Geometry {
        self.shared.opened().geometry
    }

    /// All that the node said when the volume was opened last.
    pub fn opened(&self) -> OpenReply {
        self.shared.opened()
    }

    /// How many connections the session has.
    pub fn connections(&self) -> usize {
        self.shared.lanes().len()
    }

    /// What happens from now on. A slow reader misses old events, not new ones.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.shared.events.subscribe()
    }

    /// Changes the named timeouts.
    pub fn set_timeouts(&self, timeouts: Timeouts) -> Result<(), Error> {
        timeouts
            .check()
            .map_err(|bad| Error::Misuse(bad.to_string()))?;
        self.handle
            .sender
            .send(Message::SetTimeouts(timeouts))
            .map_err(|_| Error::Detached)
    }

    /// Ends the session. Requests that were not answered end with [`Error::Detached`].
    pub async fn detach(&self) {
        let (done, closed) = oneshot::channel();
        if self.handle.sender.send(Message::Close { done }).is_ok() {
            let _ = closed.await;
        }
    }

    /// One request on the next lane.
    async fn run(&self, request: Request, payload: Bytes) -> Result<Vec<u8>, Error> {
        let lanes = self.shared.lanes();
        let turn = self.next_lane.fetch_add(1, Ordering::Relaxed);
        match lanes.get(turn % lanes.len().max(1)) {
            Some(lane) => lane.run(request, payload, now()).await,
            None => Err(Error::Detached),
        }
    }

    /// Reads `length` bytes at `offset`, in as many requests as the volume's limits ask for.
    pub async fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>, Error> {
        let max = self.geometry().max_io_bytes.get() as usize;
        let mut out = Vec::with_capacity(length);
        while out.len() < length {
            let part = (length - out.len()).min(max);
            let at = offset + out.len() as u64;
            let request = plain(Kind::Read, at, part as u32);
            out.extend_from_slice(&self.run(request, Bytes::new()).await?);
        }
        Ok(out)
    }

    /// Writes `data` at `offset`, in as many requests as the volume's limits ask for.
    pub async fn write(&self, offset: u64, data: Bytes) -> Result<(), Error> {
        self.write_with(offset, data, WriteFlags::default()).await
    }

    /// Writes `data` at `offset` with modifiers. An atomic write is never split.
    pub async fn write_with(
        &self,
        mut offset: u64,
        mut data: Bytes,
        flags: WriteFlags,
    ) -> Result<(), Error> {
        let mut wire = RequestFlags::NONE;
        if flags.fua {
            wire = wire.union(RequestFlags::FUA);
        }
        if flags.atomic {
            wire = wire.union(RequestFlags::ATOMIC);
        }
        let max = self.geometry().max_io_bytes.get() as usize;
        while !data.is_empty() {
            let part = if flags.atomic {
                data.len()
            } else {
                data.len().min(max)
            };
            let payload = data.split_to(part);
            let length = payload.len() as u32;
            let request = Request {
                kind: Kind::Write,
                flags: wire,
                offset,
                length,
            };
            self.run(request, payload).await?;
            offset += part as u64;
        }
        Ok(())
    }

    /// Makes every write that was answered before this call durable.
    pub async fn flush(&self) -> Result<(), Error> {
        self.run(plain(Kind::Flush, 0, 0), Bytes::new())
            .await
            .map(drop)
    }

    /// Tells that a range is no longer needed.
    pub async fn discard(&self, offset: u64, length: u64) -> Result<(), Error> {
        let max = self.geometry().max_discard_bytes.get();
        self.split(Kind::Discard, RequestFlags::NONE, offset, length, max)
            .await
    }

    /// Makes a range read as zeroes; `keep_allocated`: without giving its space back.
    pub async fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        keep_allocated: bool,
    ) -> Result<(), Error> {
        let flags = if keep_allocated {
            RequestFlags::NO_UNMAP
        } else {
            RequestFlags::NONE
        };
        let max = self.geometry().max_write_zeroes_bytes.get();
        self.split(Kind::WriteZeroes, flags, offset, length, max)
            .await
    }

    async fn split(
        &self,
        kind: Kind,
        flags: RequestFlags,
        offset: u64,
        length: u64,
        max: u32,
    ) -> Result<(), Error> {
        // Without the ability the node says so; one request finds out.
        let max = if max == 0 {
            u64::from(u32::MAX)
        } else {
            u64::from(max)
        };
        let mut at = 0;
        while at < length {
            let part = (length - at).min(max);
            let request = Request {
                kind,
                flags,
                offset: offset + at,
                length: part as u32,
            };
            self.run(request, Bytes::new()).await?;
            at += part;
        }
        Ok(())
    }
}

fn plain(kind: Kind, offset: u64, length: u32) -> Request {
    Request {
        kind,
        flags: RequestFlags::NONE,
        offset,
        length,
    }
}
