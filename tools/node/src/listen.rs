// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Listening on TCP addresses, also on those that come later.
//!
//! An address that no interface has yet (DHCP, a bond, an IPv6 address that is still checked for
//! duplicates, one that moves between machines) is waited for. Every other failure ends the start.

use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::net::{bind as bind_socket, listen, socket_with, sockopt};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::config::Config;
use crate::node::NodeError;

/// Connections that may wait to be accepted. The system lowers it to `net.core.somaxconn`.
pub const BACKLOG: i32 = 4096;

/// How often an address that is not there yet is tried.
pub const RETRY: Duration = Duration::from_secs(1);

/// Binds one address. `ipv6_only` is for an IPv6 address: it takes no IPv4 connections.
fn bind(address: SocketAddr, ipv6_only: bool) -> io::Result<TcpListener> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    // A restart does not wait for old connections to be forgotten.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if ipv6_only && address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    bind_socket(&socket, &address)?;
    listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// Whether the failure ends by itself when the address comes.
pub fn is_not_there_yet(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable
}

/// Listens on `address` of the configuration; the listener does not block.
///
/// An IPv6 address takes IPv4 connections too if the system lets it, unless the configuration has an
/// IPv4 address with the same port: then each takes its own.
///
/// # Errors
///
/// What the system says.
pub fn listen_on(config: &Config, address: SocketAddr) -> io::Result<TcpListener> {
    let has_ipv4 = config
        .tcp_addresses()
        .any(|other| other.is_ipv4() && other.port() == address.port());
    bind(address, has_ipv4)
}

/// Addresses of the configuration that are not there yet, by their settings. Written by what waits
/// for them, read by what tells of the node.
#[derive(Debug, Default)]
pub struct Waiting(Mutex<BTreeSet<(&'static str, SocketAddr)>>);

impl Waiting {
    fn addresses(&self) -> MutexGuard<'_, BTreeSet<(&'static str, SocketAddr)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that `address` of `setting` is waited for.
    pub fn add(&self, setting: &'static str, address: SocketAddr) {
        tracing::warn!(
            %address,
            "no interface of this machine has an address of {setting} yet: the node waits for it"
        );
        self.addresses().insert((setting, address));
    }

    /// The address has come.
    fn remove(&self, setting: &'static str, address: SocketAddr) {
        self.addresses().remove(&(setting, address));
    }

    /// Whether `address` of `setting` is waited for.
    pub fn contains(&self, setting: &'static str, address: SocketAddr) -> bool {
        self.addresses().contains(&(setting, address))
    }

    /// What is waited for, for people.
    pub fn problems(&self) -> Vec<String> {
        self.addresses()
            .iter()
            .map(|(setting, address)| {
                format!("no interface of this machine has the address {address} of {setting} yet")
            })
            .collect()
    }
}

/// Listens on each of `addresses`, or notes that it is waited for.
///
/// # Errors
///
/// An address cannot be listened on for another reason than that it is not there.
pub fn listen_or_wait(
    config: &Config,
    setting: &'static str,
    addresses: &[SocketAddr],
    waiting: &Waiting,
) -> Result<Vec<TcpListener>, NodeError> {
    let mut listeners = Vec::new();
    for &address in addresses {
        match listen_on(config, address) {
            Ok(listener) => listeners.push(listener),
            Err(error) if is_not_there_yet(&error) => waiting.add(setting, address),
            Err(source) => {
                return Err(NodeError::Listen {
                    address: address.to_string(),
                    hint: NodeError::listen_hint(&source, setting),
                    source,
                })
            }
        }
    }
    Ok(listeners)
}

/// Waits for `address` and listens on it.
pub async fn listen_later(
    config: &Config,
    setting: &'static str,
    address: SocketAddr,
    waiting: &Waiting,
) -> TcpListener {
    let mut told = false;
    loop {
        tokio::time::sleep(RETRY).await;
        match listen_on(config, address) {
            Ok(listener) => {
                waiting.remove(setting, address);
                return listener;
            }
            Err(error) if is_not_there_yet(&error) => told = false,
            Err(error) if !told => {
                told = true;
                let hint = NodeError::listen_hint(&error, setting);
                tracing::error!("cannot listen on {address} yet: {error}{hint}");
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    #[test]
    fn both_families_listen_on_one_port() {
        let v6 = bind("[::]:0".parse().unwrap(), true).unwrap();
        let port = v6.local_addr().unwrap().port();
        let v4 = bind(SocketAddr::from(([0, 0, 0, 0], port)), true).unwrap();
        TcpStream::connect(("127.0.0.1", port)).unwrap();
        assert!(v4.accept().unwrap().1.is_ipv4());
        TcpStream::connect(("::1", port)).unwrap();
        assert!(v6.accept().unwrap().1.is_ipv6());
    }

    #[test]
    fn more_wait_to_be_accepted_than_the_usual_128() {
        let listener = bind("127.0.0.1:0".parse().unwrap(), false).unwrap();
        let address = listener.local_addr().unwrap();
        let somaxconn = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
        let most: usize = somaxconn.trim().parse().unwrap();
        let clients: Vec<_> = (0..most.min(600))
            .map(|_| TcpStream::connect_timeout(&address, Duration::from_secs(20)).unwrap())
            .collect();
        assert!(clients.len() >= 128);
    }

    #[test]
    fn an_address_of_no_interface_is_not_there_yet() {
        let error = bind("192.0.2.1:0".parse().unwrap(), false).unwrap_err();
        assert!(is_not_there_yet(&error), "{error}");
    }
}
