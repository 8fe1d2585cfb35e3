// SPDX-License-Identifier: GPL-2.0 OR MIT
//! A term: the time during which this node has a volume.
//!
//! ```text
//!            another client has the lock:
//!            break it, fencing that client
//!                     │      ▲
//!                     ▼      │ it changed hands meanwhile
//!   open the image ─► who owns it? ─► acquire the lock ─► newest OSD map ─► owner?
//!                                                                             │ yes
//!        closed, lock released ◄─ Owned ◄─────────────────────────────────────┘
//!                                   │ the cluster refuses requests, another
//!                                   ▼ owner is seen, or the process stood still
//!                                 Lost ─► closed
//! ```
//!
//! Each term has a client of the cluster of its own: breaking a lock puts the
//! owner's whole client on the cluster's blocklist. From then on the cluster
//! refuses what that client has sent or will send, however late; that, and not
//! the old owner's good behaviour, keeps old writes out. The new owner has the
//! map with the blocklist before it serves, and every OSD that it talks to has
//! it before it answers. A lost term is never owned again.
//!
//! The blocklist forgets a client after a while (an hour by default), and librados
//! sends what was not answered again and again. So a node that was cut off from the
//! cluster, but ran, would write after that what is older than what the next owner
//! wrote. Against that there are two limits, both of `max_operation`: a request is
//! begun only within that time of the last moment at which the cluster confirmed
//! the ownership, and is given up that long after it was begun. So twice that time
//! after another node has taken the volume nothing is left that could be sent, but
//! for what lies in sockets, which the system gives up within a quarter of an hour.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Weak};
use std::time::Duration;

use neonsan_api::VolumeName;

use super::pulse::Pulse;
use super::queue::{Served, Shape};
use super::registry::Claim;
use super::sys::{Access, Cluster, ClusterOptions, Image};
use crate::{Error, ErrorKind, Result};

/// How often the cluster is asked who owns a volume, so that an idle owner
/// notices too.
const CHECK: Duration = Duration::from_secs(1);

/// How often taking is tried while the volume changes hands.
const TRIES: usize = 10;

/// Whether the term lasts. Shared by all that serve the volume.
#[derive(Debug)]
pub(super) struct Ownership {
    name: VolumeName,
    /// Set once.
    lost: AtomicBool,
    /// When that was, as the pulse counts the time; set once, after `lost`.
    lost_at_ms: AtomicU64,
    /// What ends the term without the cluster's word; a snapshot has nothing of
    /// that.
    lease: Option<Lease>,
}

/// What ends a term after a pause of the process, or of the cluster.
#[derive(Debug)]
struct Lease {
    pulse: Arc<Pulse>,
    /// The pauses when the term began.
    pauses: u64,
    /// When the cluster was asked that confirmed last that the term lasts. Written
    /// by the thread that keeps the term.
    confirmed_ms: AtomicU64,
}

impl Ownership {
    pub(super) fn new(name: VolumeName, pulse: &Arc<Pulse>) -> Arc<Self> {
        Arc::new(Self {
            name,
            lost: AtomicBool::new(false),
            lost_at_ms: AtomicU64::new(0),
            lease: Some(Lease {
                pulse: Arc::clone(pulse),
                pauses: pulse.pauses(),
                confirmed_ms: AtomicU64::new(Pulse::now_ms()),
            }),
        })
    }

    /// That of a snapshot of the volume: nobody can take it, and nobody changes
    /// it, so that a pause does no harm.
    pub(super) fn of_snapshot(name: VolumeName) -> Arc<Self> {
        Arc::new(Self {
            name,
            lost: AtomicBool::new(false),
            lost_at_ms: AtomicU64::new(0),
            lease: None,
        })
    }

    /// The volume has another owner, or may have.
    pub(super) fn lose(&self, why: &str) {
        if !self.lost.swap(true, Ordering::AcqRel) {
            self.lost_at_ms
                .store(Pulse::now_ms().max(1), Ordering::Release);
            tracing::warn!(volume = %self.name, why, "this node has lost the volume");
        }
    }

    pub(super) fn is_lost(&self) -> bool {
        if self.lost.load(Ordering::Acquire) {
            return true;
        }
        let Some(lease) = &self.lease else {
            return false;
        };
        if lease.pulse.paused_since(lease.pauses) {
            self.lose("the process stood still for too long");
            return true;
        }
        let confirmed_ms = lease.confirmed_ms.load(Ordering::Acquire);
        if lease.pulse.is_silent_since(confirmed_ms) {
            self.lose("the cluster has not confirmed for too long that this node has it");
            return true;
        }
        false
    }

    /// When the volume was lost, as the pulse counts the time.
    pub(super) fn lost_at_ms(&self) -> Option<u64> {
        Some(self.lost_at_ms.load(Ordering::Acquire)).filter(|at| *at > 0)
    }

    /// The cluster, asked at `asked_ms`, has said that this node has the volume.
    fn confirm(&self, asked_ms: u64) {
        if let Some(lease) = &self.lease {
            lease.confirmed_ms.fetch_max(asked_ms, Ordering::AcqRel);
        }
    }

    /// The outcome of an operation on the volume, for who asked for it. What the
    /// cluster refuses, or has not carried out in time, ends the term.
    pub(super) fn settle<T>(&self, result: Result<T>) -> Result<T> {
        match &result {
            Err(error) if error.kind() == ErrorKind::NotOwner => {
                self.lose("the cluster refuses its requests");
                result
            }
            // Not that it failed: the cluster may do it later. Whoever comes back
            // takes the volume anew and sends it again.
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                self.lose("a request was given up, and may be carried out later");
                Err(self.error())
            }
            _ => result,
        }
    }

    /// What requests are answered then.
    pub(super) fn error(&self) -> Error {
        Error::new(
            ErrorKind::NotOwner,
            format!(
                "this node has lost the volume {}: another one has taken it, or may",
                self.name
            ),
        )
    }
}

/// A term. Dropping it closes the image and ends the client, which blocks, and
/// releases the lock if it was not lost.
pub(super) struct Term {
    pub(super) ownership: Arc<Ownership>,
    /// Holds its pool, which holds the client.
    pub(super) image: Image,
    /// This term's address as the lock's owner.
    owner: String,
    /// Last: from then on the volume can be opened again here.
    _claim: Claim,
}

/// Whether to take the volume from an owner that seems to be alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    Polite,
    Force,
}

/// The owner of the image's lock if its client is still there: it watches the
/// image. A dead client's watch ends after half a minute.
pub(super) fn live_owner(image: &Image) -> Result<Option<String>> {
    let Some(owner) = image.lock_owner()? else {
        return Ok(None);
    };
    let is_alive = image.watchers()?.contains(&owner);
    Ok(is_alive.then_some(owner))
}

impl Served for Term {
    fn image(&self) -> &Image {
        &self.image
    }

    fn ownership(&self) -> &Arc<Ownership> {
        &self.ownership
    }
}

impl Term {
    /// Takes the volume. Blocks.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Busy`] if another node has the volume and the manner is
    /// polite, or if it keeps changing hands.
    pub(super) fn begin(
        options: &ClusterOptions,
        pool: &str,
        claim: Claim,
        pulse: &Arc<Pulse>,
        manner: Manner,
    ) -> Result<Self> {
        let name = claim.name().clone();
        // Before anything of the term, so that no pause is missed.
        let ownership = Ownership::new(name.clone(), pulse);
        let cluster = Arc::new(Cluster::connect(options)?);
        let pool = Arc::new(cluster.pool(pool, name.pool())?);
        let image = Image::open(&pool, name.volume(), Access::Write)?;
        if manner == Manner::Polite {
            if let Some(owner) = live_owner(&image)? {
                return Err(Error::new(
                    ErrorKind::Busy,
                    format!("another node, at {owner}, has the volume {name} open"),
                ));
            }
        }
        own(&cluster, &image, &name)?;
        let asked_ms = Pulse::now_ms();
        let owner = image.lock_owner()?.ok_or_else(|| {
            Error::new(
                ErrorKind::Busy,
                format!("the volume {name} was taken by another node at once"),
            )
        })?;
        ownership.confirm(asked_ms);
        pulse.watch(&ownership, image.in_flight());
        Ok(Self {
            ownership,
            image,
            owner,
            _claim: claim,
        })
    }

    /// Notes the image's size, which another client may have changed: librbd
    /// hears of that, and has it carried out by the owner of the lock.
    fn look_at_size(&self, shape: &Shape) {
        let Some(_resizing) = shape.try_resizing() else {
            return;
        };
        match self.image.sizes() {
            Ok((size_bytes, _)) => {
                let size_bytes = shape.whole_blocks(size_bytes);
                if size_bytes == 0 {
                    let volume = &self.ownership.name;
                    tracing::error!(%volume, "somebody has made the image empty");
                } else if size_bytes != shape.size_bytes() && !self.ownership.is_lost() {
                    let volume = &self.ownership.name;
                    tracing::info!(%volume, size_bytes, "the image has another size");
                    shape.set_size(size_bytes);
                }
            }
            Err(error) => {
                let volume = &self.ownership.name;
                tracing::debug!(%volume, %error, "cannot get the size of a volume");
            }
        }
    }

    /// Asks the cluster whether this term lasts.
    fn check(&self) {
        if self.ownership.is_lost() {
            return;
        }
        let asked_ms = Pulse::now_ms();
        match self.image.lock_owner() {
            Ok(Some(owner)) if owner == self.owner => self.ownership.confirm(asked_ms),
            Ok(Some(owner)) => self.ownership.lose(&format!("{owner} has it")),
            Ok(None) => self.ownership.lose("the lock was broken"),
            Err(error) if error.kind() == ErrorKind::NotOwner => {
                self.ownership.lose("the cluster refuses this client");
            }
            // The cluster's trouble ends nothing at once: requests wait too. If it
            // lasts, the term ends by itself.
            Err(error) => {
                tracing::warn!(volume = %self.ownership.name, %error, "cannot ask who owns a volume");
            }
        }
    }
}

/// Makes this client the owner of the image, and fences every other.
///
/// # Errors
///
/// [`ErrorKind::Unsupported`] if settings in the cluster would keep that from
/// being done, or would make it useless; [`ErrorKind::Busy`] if the volume keeps
/// changing hands.
pub(super) fn own(cluster: &Cluster, image: &Image, name: &VolumeName) -> Result<()> {
    image.check_settings()?;
    for _ in 0..TRIES {
        if let Some(owner) = image.lock_owner()? {
            tracing::info!(volume = %name, %owner, "taking the volume from another node");
            if !image.break_lock(&owner)? {
                continue;
            }
        }
        if !image.acquire_lock()? {
            continue;
        }
        cluster.wait_for_latest_osdmap()?;
        if image.is_lock_owner()? {
            return Ok(());
        }
    }
    Err(Error::new(
        ErrorKind::Busy,
        format!("the volume {name} keeps changing hands: several nodes take it from each other"),
    ))
}

/// Watches over a term until it comes back through `closing`, and ends it: the
/// only place where a term ends, since that blocks.
pub(super) fn keep(term: &Weak<Term>, shape: &Shape, closing: &Receiver<Arc<Term>>) {
    loop {
        match closing.recv_timeout(CHECK) {
            Ok(term) => return drop(term),
            Err(RecvTimeoutError::Timeout) => {
                if let Some(term) = term.upgrade() {
                    term.check();
                    term.look_at_size(shape);
                }
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}
