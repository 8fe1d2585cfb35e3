// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Who may connect to the data port, and how many connections each may have.
//!
//! * [`diag`]: whose a connection from this machine is; the kernel is asked.
//! * [`users`]: the users that a setting names.
//! * [`admission`]: limits per peer, with a reserve for others.

mod admission;
mod diag;
mod users;

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

pub use admission::{Admission, Full, PeerKey, Shares};
pub use diag::{canonical, Diag, Origin};
pub use users::{check as check_user, LocalUsers};

/// What is known of a connection that was just accepted.
#[derive(Debug)]
pub struct Arrival {
    /// For whom it counts.
    pub peer: PeerKey,
    /// Why it must not reach a volume, for people.
    pub denied: Option<String>,
}

/// Asks about every connection that is accepted. Owned by the thread that accepts.
#[derive(Debug)]
pub struct Doorkeeper {
    /// What asks the kernel, or why it cannot be asked.
    diag: Result<Diag, String>,
}

impl Doorkeeper {
    /// Opens what it needs. Where the system refuses, all connections are denied: a client may be on
    /// this machine whatever its address is, and only the kernel knows.
    pub fn new() -> Self {
        let diag = open_diag();
        if let Err(reason) = &diag {
            tracing::error!(
                "cannot ask the kernel whether connections come from this machine, and whose they \
                 are, so none is served: {reason}"
            );
        }
        Self { diag }
    }

    /// Looks at a connection from `peer`.
    pub fn look(
        &mut self,
        socket: BorrowedFd<'_>,
        peer: SocketAddr,
        users: &LocalUsers,
    ) -> Arrival {
        if self.diag.is_err() {
            // It may have been for want of memory or files.
            self.diag = open_diag();
        }
        let origin = match &mut self.diag {
            Ok(diag) => diag.origin(socket, peer).map_err(|e| e.to_string()),
            Err(reason) => Err(reason.clone()),
        };
        match origin {
            Ok(Origin::Remote) => Arrival {
                peer: PeerKey::remote(peer),
                denied: None,
            },
            Ok(Origin::Local { uid }) => Arrival {
                peer: PeerKey::Local(uid),
                denied: (!users.contains(uid)).then(|| {
                    format!(
                        "on this machine the data port is for root and for the node's own user, \
                         and the client runs as uid {uid}: run it as root, or add that user to \
                         data.local_users of the node"
                    )
                }),
            },
            Err(reason) => Arrival {
                peer: PeerKey::Unknown,
                denied: Some(format!(
                    "the node cannot tell whether the client is on its machine, and which user it \
                     runs as there ({reason}), so it is not let in: the log of the node may say what \
                     it lacks"
                )),
            },
        }
    }
}

/// Opens what asks the kernel; else says what to do.
fn open_diag() -> Result<Diag, String> {
    Diag::open().map_err(|error| {
        format!(
            "AF_NETLINK cannot be used: {error}; let the node use it (RestrictAddressFamilies= of its \
             unit)"
        )
    })
}
