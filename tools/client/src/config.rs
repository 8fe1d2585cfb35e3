// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What a client is told at attach.

use crate::Error;
use neonsan_proto::{Features, Mode, VolumeName, MAX_DEPTH};
use neonsan_session::Timeouts;
use std::net::SocketAddr;
use std::path::PathBuf;

/// What a client is told at attach.
#[derive(Clone, Debug)]
pub struct Config {
    /// `pool/volume` or `pool/volume@snapshot`.
    pub volume: String,
    /// The nodes that may serve it, in the order in which they are tried. At least one.
    pub nodes: Vec<SocketAddr>,
    /// Who else may have the volume open.
    pub mode: Mode,
    /// Take the volume from the host that holds it.
    pub force: bool,
    /// Identity of this host; by default a random one. The machine's own must not leave the machine
    /// as it is (see machine-id(5)), so it is for the caller to make one of it.
    pub host_id: [u8; 16],
    /// Identity of this boot of the host; by default zero, which says nothing. A host that comes
    /// back with another one takes over at once what an older boot has left.
    pub host_boot: u64,
    /// The host's name for people.
    pub host_name: String,
    /// How many connections are wanted; the node may allow fewer.
    pub connections: u16,
    /// How many requests may be in flight on each; the node may allow fewer.
    pub depth: u16,
    /// Whether headers and payloads carry checksums if the node can do that.
    pub checksums: bool,
    /// The named timeouts.
    pub timeouts: Timeouts,
    /// Where to note the session while it is open, so that the next client of the same volume, host
    /// and boot resumes it at once should this process be killed; by default nowhere. A directory
    /// that does not outlive the boot; it is made for the owner alone.
    pub session_dir: Option<PathBuf>,
}

impl Config {
    /// Default values for everything but the volume and its nodes: one connection, exclusive,
    /// without checksums.
    pub fn new(volume: &str, nodes: Vec<SocketAddr>) -> Self {
        Config {
            volume: volume.to_owned(),
            nodes,
            mode: Mode::Exclusive,
            force: false,
            host_id: random_id(),
            host_boot: 0,
            host_name: host_name(),
            connections: 1,
            depth: 128,
            checksums: false,
            timeouts: Timeouts::DEFAULT,
            session_dir: None,
        }
    }

    /// Checks every value.
    pub fn check(&self) -> Result<(), Error> {
        let misuse = |text: String| Err(Error::Misuse(text));
        if let Err(error) = VolumeName::parse(&self.volume) {
            return misuse(format!("volume '{}': {error}", self.volume));
        }
        if self.nodes.is_empty() {
            return misuse("no node is given: name at least one as host[:port]".into());
        }
        if self.connections == 0 || self.depth == 0 || self.depth > MAX_DEPTH {
            return misuse(format!(
                "connections must be at least 1, depth 1 to {MAX_DEPTH} (given: {} and {})",
                self.connections, self.depth
            ));
        }
        match self.timeouts.check() {
            Ok(()) => Ok(()),
            Err(bad) => misuse(bad.to_string()),
        }
    }

    pub(crate) fn features(&self) -> Features {
        if self.checksums {
            Features::HEADER_CRC.union(Features::PAYLOAD_CRC)
        } else {
            Features::NONE
        }
    }
}

/// 16 random bytes, never all zero.
pub(crate) fn random_id() -> [u8; 16] {
    let mut id = [0; 16];
    // getrandom(2) for so few bytes neither fails nor returns less once the system has booted; the
    // lowest bit set makes sure that the identity is valid even then.
    let _ = rustix::rand::getrandom(&mut id[..], rustix::rand::GetRandomFlags::empty());
    id[15] |= 1;
    id
}

fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}
