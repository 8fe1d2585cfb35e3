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

use std::sync::atomic::{AtomicBool, Ordering};
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
    /// What ends the term after a pause, and the pauses when it began; a snapshot
    /// has nothing of that.
    lease: Option<(Arc<Pulse>, u64)>,
}

impl Ownership {
    pub(super) fn new(name: VolumeName, pulse: &Arc<Pulse>) -> Arc<Self> {
        Arc::new(Self {
            name,
            lost: AtomicBool::new(false),
            lease: Some((Arc::clone(pulse), pulse.pauses())),
        })
    }

    /// That of a snapshot of the volume: nobody can take it, and nobody changes
    /// it, so that a pause does no harm.
    pub(super) fn of_snapshot(name: VolumeName) -> Arc<Self> {
        Arc::new(Self {
            name,
            lost: AtomicBool::new(false),
            lease: None,
        })
    }

    /// The volume has another owner, or may have.
    pub(super) fn lose(&self, why: &str) {
        if !self.lost.swap(true, Ordering::AcqRel) {
            tracing::warn!(volume = %self.name, why, "this node has lost the volume");
        }
    }

    pub(super) fn is_lost(&self) -> bool {
        if self.lost.load(Ordering::Acquire) {
            return true;
        }
        let lease = self.lease.as_ref();
        if lease.is_some_and(|(pulse, pauses)| pulse.paused_since(*pauses)) {
            self.lose("the process stood still for too long");
            return true;
        }
        false
    }

    /// What requests are answered then.
    pub(super) fn error(&self) -> Error {
        Error::new(
            ErrorKind::NotOwner,
            format!("another node has taken the volume {}", self.name),
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
        let owner = image.lock_owner()?.ok_or_else(|| {
            Error::new(
                ErrorKind::Busy,
                format!("the volume {name} was taken by another node at once"),
            )
        })?;
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
        match self.image.lock_owner() {
            Ok(Some(owner)) if owner == self.owner => {}
            Ok(Some(owner)) => self.ownership.lose(&format!("{owner} has it")),
            Ok(None) => self.ownership.lose("the lock was broken"),
            Err(error) if error.kind() == ErrorKind::NotOwner => {
                self.ownership.lose("the cluster refuses this client");
            }
            // The cluster's trouble ends nothing: requests wait too.
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
