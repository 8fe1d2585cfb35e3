// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Asks the kernel whose the other end of a TCP connection is, if that end is on this machine.
//!
//! Three questions over netlink, each a message of fixed size: `NETLINK_SOCK_DIAG` for one exact
//! socket (by both addresses and ports), and `NETLINK_ROUTE` for whether an address is one of this
//! machine's. The messages are declared here with `zerocopy`, which the wire protocol uses too; a
//! netlink library would bring more code than these few structures.
//!
//! What may be believed, in the order in which it is asked:
//!
//! 1. The peer's socket counts only while it is ESTABLISHED and has an inode. One that was closed is
//!    shown with uid 0, whoever had it; a half-closed one is no client of ours.
//! 2. After that our own socket must still be ESTABLISHED, and be the very socket that was accepted
//!    (the same inode). Then the connection lived the whole time, and what was seen in 1 is its other
//!    end: no other socket can have taken over its addresses and ports meanwhile.
//!
//! Everything else is an error, and whoever asks must not serve the connection.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::{
    netlink, recv, send, socket_with, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType,
};
use zerocopy::network_endian::U16;
use zerocopy::{FromBytes as _, IntoBytes as _};
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Kinds of messages: `SOCK_DIAG_BY_FAMILY`, `RTM_GETROUTE`, `RTM_NEWROUTE`, `NLMSG_ERROR`, `NLMSG_DONE`.
const BY_FAMILY: u16 = 20;
const GET_ROUTE: u16 = 26;
const NEW_ROUTE: u16 = 24;
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// `NLM_F_REQUEST` and `NLM_F_DUMP`.
const REQUEST: u16 = 1;
const DUMP: u16 = 0x300;

/// `TCP_ESTABLISHED` of `linux/tcp.h`.
const ESTABLISHED: u8 = 1;

/// `IPPROTO_TCP`.
const TCP: u8 = 6;

/// `RTN_LOCAL`: the route leads to this machine itself.
const LOCAL: u8 = 2;

/// `RTA_DST` and `RTA_OIF`.
const DESTINATION: u16 = 1;
const INTERFACE: u16 = 4;

/// "Any cookie".
const NO_COOKIE: u32 = u32::MAX;

/// The kernel answers within the call that asks; more means that it does not answer.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Header {
    len: u32,
    kind: u16,
    flags: u16,
    sequence: u32,
    port: u32,
}

/// `struct inet_diag_sockid`.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct SocketId {
    source_port: U16,
    destination_port: U16,
    source: [u8; 16],
    destination: [u8; 16],
    interface: u32,
    cookie: [u32; 2],
}

/// `struct inet_diag_req_v2`.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct SocketRequest {
    header: Header,
    family: u8,
    protocol: u8,
    extensions: u8,
    pad: u8,
    states: u32,
    id: SocketId,
}

/// `struct inet_diag_msg`.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct SocketReply {
    family: u8,
    state: u8,
    timer: u8,
    retransmits: u8,
    id: SocketId,
    expires: u32,
    receive_queue: u32,
    send_queue: u32,
    uid: u32,
    inode: u32,
}

/// `struct rtmsg`.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Route {
    family: u8,
    destination_len: u8,
    source_len: u8,
    tos: u8,
    table: u8,
    protocol: u8,
    scope: u8,
    kind: u8,
    flags: u32,
}

/// `struct rtattr`.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Attribute {
    len: u16,
    kind: u16,
}

const _: () = {
    assert!(size_of::<Header>() == 16);
    assert!(size_of::<SocketId>() == 48);
    assert!(size_of::<SocketRequest>() == 72);
    assert!(size_of::<SocketReply>() == 72);
    assert!(size_of::<Route>() == 12);
};

/// What is known of a socket of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found {
    uid: u32,
    inode: u32,
}

/// Where a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Another machine.
    Remote,
    /// A socket of this machine, of the user with this number.
    Local {
        /// The user.
        uid: u32,
    },
}

/// Two netlink sockets. Owned by the one thread that accepts connections.
#[derive(Debug)]
pub struct Diag {
    sockets: OwnedFd,
    routes: OwnedFd,
    sequence: u32,
}

/// `None` is `NETLINK_ROUTE`, whose number is 0.
fn open(protocol: Option<rustix::net::Protocol>) -> io::Result<OwnedFd> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        protocol,
    )?;
    rustix::net::sockopt::set_socket_timeout(
        &socket,
        rustix::net::sockopt::Timeout::Recv,
        Some(PATIENCE),
    )?;
    Ok(socket)
}

/// The bytes of an address as `inet_diag` has them, and its family.
fn bytes_of(ip: IpAddr) -> (AddressFamily, [u8; 16]) {
    match ip {
        IpAddr::V4(v4) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&v4.octets());
            (AddressFamily::INET, bytes)
        }
        IpAddr::V6(v6) => (AddressFamily::INET6, v6.octets()),
    }
}

/// The address that `inet_diag` means by these bytes, IPv4 as such.
fn address_of(family: u8, bytes: [u8; 16]) -> IpAddr {
    if u16::from(family) == AddressFamily::INET.as_raw() {
        let [a, b, c, d, ..] = bytes;
        IpAddr::from([a, b, c, d])
    } else {
        Ipv6Addr::from(bytes).to_canonical()
    }
}

/// An address with an IPv4 address written as one.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) if v6.ip().to_ipv4_mapped().is_some() => {
            SocketAddr::new(v6.ip().to_canonical(), v6.port())
        }
        other => other,
    }
}

fn scope_of(address: SocketAddr) -> u32 {
    match address {
        SocketAddr::V6(v6) => v6.scope_id(),
        SocketAddr::V4(_) => 0,
    }
}

/// The end of a connection at which nobody is any more.
fn gone() -> io::Error {
    io::Error::new(
        io::ErrorKind::NotConnected,
        "its other end was closed before it was accepted",
    )
}

fn malformed() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the kernel's answer makes no sense",
    )
}

impl Diag {
    /// Opens the netlink sockets.
    ///
    /// # Errors
    ///
    /// What the system says; `EAFNOSUPPORT` in a sandbox without AF_NETLINK.
    pub fn open() -> io::Result<Self> {
        Ok(Self {
            sockets: open(Some(netlink::SOCK_DIAG))?,
            routes: open(None)?,
            sequence: 0,
        })
    }

    /// Where the connection `socket`, which was just accepted from `peer`, comes from.
    ///
    /// # Errors
    ///
    /// The peer is on this machine, or may be, and whose it is cannot be said: it must not be served.
    pub fn origin(&mut self, socket: BorrowedFd<'_>, peer: SocketAddr) -> io::Result<Origin> {
        let local: SocketAddr = rustix::net::getsockname(socket)?
            .try_into()
            .map_err(|_| malformed())?;
        let (peer, local) = (canonical(peer), canonical(local));
        let is_local =
            peer.ip().is_loopback() || peer.ip() == local.ip() || self.is_own_address(peer)?;
        if !is_local {
            return Ok(Origin::Remote);
        }
        let theirs = self.established(peer, local)?;
        let ours = self.established(local, peer)?;
        // The kernel's numbers of sockets fit into 32 bits, and it shows those.
        if u64::from(ours.inode) != rustix::fs::fstat(socket)?.st_ino {
            return Err(io::Error::other(
                "the connection was replaced by another one",
            ));
        }
        Ok(Origin::Local { uid: theirs.uid })
    }

    /// The socket of this machine with these addresses, if it is ESTABLISHED.
    fn established(&mut self, source: SocketAddr, destination: SocketAddr) -> io::Result<Found> {
        let (family, source_bytes) = bytes_of(source.ip());
        let (_, destination_bytes) = bytes_of(destination.ip());
        let id = SocketId {
            source_port: source.port().into(),
            destination_port: destination.port().into(),
            source: source_bytes,
            destination: destination_bytes,
            interface: scope_of(source),
            cookie: [NO_COOKIE; 2],
        };
        let body = match self.ask_for_socket(family, id) {
            // The kernel says the same of a socket that is not there and of a protocol that it cannot show.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(match self.is_shown(family, TCP) {
                    Ok(true) => gone(),
                    Ok(false) => io::Error::new(
                        error.kind(),
                        "the kernel shows no TCP sockets: its module tcp_diag is missing (modprobe \
                         tcp_diag)",
                    ),
                    Err(error) => error,
                });
            }
            body => body?,
        };
        let (reply, _) = SocketReply::read_from_prefix(&body).map_err(|_| malformed())?;
        // Where there is no such socket, the kernel shows one that listens at its address.
        let is_it = reply.id.source_port.get() == source.port()
            && reply.id.destination_port.get() == destination.port()
            && address_of(reply.family, reply.id.source) == source.ip()
            && address_of(reply.family, reply.id.destination) == destination.ip();
        if !is_it || reply.state != ESTABLISHED || reply.inode == 0 {
            return Err(gone());
        }
        Ok(Found {
            uid: reply.uid,
            inode: reply.inode,
        })
    }

    /// What the kernel says of one TCP socket.
    fn ask_for_socket(&mut self, family: AddressFamily, id: SocketId) -> io::Result<Vec<u8>> {
        let request = self.socket_request(REQUEST, family, TCP, u32::MAX, id);
        send(&self.sockets, request.as_bytes(), SendFlags::empty())?;
        receive(&self.sockets, self.sequence, BY_FAMILY)
    }

    /// Whether the kernel shows sockets of a protocol; it loads the module for that by itself unless that
    /// is forbidden. Asks for all those in none of the states, of which there are none.
    fn is_shown(&mut self, family: AddressFamily, protocol: u8) -> io::Result<bool> {
        let id = SocketId {
            source_port: U16::ZERO,
            destination_port: U16::ZERO,
            source: [0; 16],
            destination: [0; 16],
            interface: 0,
            cookie: [NO_COOKIE; 2],
        };
        let request = self.socket_request(REQUEST | DUMP, family, protocol, 0, id);
        send(&self.sockets, request.as_bytes(), SendFlags::empty())?;
        match receive(&self.sockets, self.sequence, DONE) {
            // What ends a list says how that went: nothing, or the number of an error.
            Ok(body) => match i32::read_from_prefix(&body) {
                Ok((0, _)) => Ok(true),
                Ok(_) => Ok(false),
                Err(_) => Err(malformed()),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The next request about sockets.
    fn socket_request(
        &mut self,
        flags: u16,
        family: AddressFamily,
        protocol: u8,
        states: u32,
        id: SocketId,
    ) -> SocketRequest {
        self.sequence = self.sequence.wrapping_add(1);
        SocketRequest {
            header: Header {
                len: size_of::<SocketRequest>() as u32,
                kind: BY_FAMILY,
                flags,
                sequence: self.sequence,
                port: 0,
            },
            family: family.as_raw() as u8,
            protocol,
            extensions: 0,
            pad: 0,
            states,
            id,
        }
    }

    /// Whether an address is one of this machine's.
    fn is_own_address(&mut self, peer: SocketAddr) -> io::Result<bool> {
        let (family, bytes) = bytes_of(peer.ip());
        let len = if peer.is_ipv4() { 4 } else { 16 };
        let mut attributes = Vec::new();
        let mut attribute = |kind, value: &[u8]| {
            let head = Attribute {
                len: (size_of::<Attribute>() + value.len()) as u16,
                kind,
            };
            attributes.extend_from_slice(head.as_bytes());
            attributes.extend_from_slice(value);
        };
        attribute(DESTINATION, &bytes[..len]);
        if scope_of(peer) != 0 {
            attribute(INTERFACE, &scope_of(peer).to_ne_bytes());
        }
        self.sequence = self.sequence.wrapping_add(1);
        let header = Header {
            len: (size_of::<Header>() + size_of::<Route>() + attributes.len()) as u32,
            kind: GET_ROUTE,
            flags: REQUEST,
            sequence: self.sequence,
            port: 0,
        };
        let route = Route {
            family: family.as_raw() as u8,
            destination_len: (len * 8) as u8,
            source_len: 0,
            tos: 0,
            table: 0,
            protocol: 0,
            scope: 0,
            kind: 0,
            flags: 0,
        };
        let request = [header.as_bytes(), route.as_bytes(), &attributes].concat();
        send(&self.routes, &request, SendFlags::empty())?;
        match receive(&self.routes, self.sequence, NEW_ROUTE) {
            Ok(body) => {
                let (route, _) = Route::read_from_prefix(&body).map_err(|_| malformed())?;
                Ok(route.kind == LOCAL)
            }
            // A rule of the routes refuses it, or there is no way back to it (any more): the addresses of
            // this machine are found before every such rule.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NetworkUnreachable
                        | io::ErrorKind::HostUnreachable
                        | io::ErrorKind::PermissionDenied
                        | io::ErrorKind::InvalidInput
                ) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

/// The body of the answer with this number. An answer that came too late for an earlier question is
/// passed over.
fn receive(socket: &OwnedFd, sequence: u32, kind: u16) -> io::Result<Vec<u8>> {
    loop {
        let mut buffer = [0u8; 8192];
        let (len, _) = recv(socket, &mut buffer, RecvFlags::empty())?;
        let message = &buffer[..len];
        let (header, body) = Header::read_from_prefix(message).map_err(|_| malformed())?;
        if header.sequence != sequence {
            continue;
        }
        if header.kind == ERROR {
            let (error, _) = i32::read_from_prefix(body).map_err(|_| malformed())?;
            return Err(io::Error::from_raw_os_error(error.saturating_neg()));
        }
        if header.kind != kind {
            return Err(malformed());
        }
        let end = (header.len as usize).saturating_sub(size_of::<Header>());
        return Ok(body.get(..end).ok_or_else(malformed)?.to_vec());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::os::fd::AsFd as _;

    fn own_uid() -> u32 {
        rustix::process::geteuid().as_raw()
    }

    fn pair(listen: &str) -> (TcpStream, TcpStream, SocketAddr) {
        let listener = TcpListener::bind(listen).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, peer) = listener.accept().unwrap();
        (client, accepted, peer)
    }

    #[test]
    fn the_owner_of_a_local_peer_is_found() {
        let mut diag = Diag::open().unwrap();
        for listen in ["127.0.0.1:0", "127.0.0.7:0", "[::1]:0"] {
            let (_client, accepted, peer) = pair(listen);
            let origin = diag.origin(accepted.as_fd(), peer).unwrap();
            assert_eq!(origin, Origin::Local { uid: own_uid() }, "{listen}");
        }
    }

    #[test]
    fn an_ipv4_peer_of_an_ipv6_socket_is_found() {
        let mut diag = Diag::open().unwrap();
        let listener = TcpListener::bind("[::]:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let _client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (accepted, peer) = listener.accept().unwrap();
        assert!(peer.is_ipv6());
        let origin = diag.origin(accepted.as_fd(), peer).unwrap();
        assert_eq!(origin, Origin::Local { uid: own_uid() });
    }

    #[test]
    fn a_peer_that_closed_or_half_closed_has_no_owner() {
        let mut diag = Diag::open().unwrap();
        let (client, accepted, peer) = pair("127.0.0.1:0");
        client.shutdown(Shutdown::Write).unwrap();
        diag.origin(accepted.as_fd(), peer).unwrap_err();
        let (client, accepted, peer) = pair("127.0.0.1:0");
        drop(client);
        diag.origin(accepted.as_fd(), peer).unwrap_err();
    }

    #[test]
    fn a_peer_that_is_gone_is_no_reason_to_look_for_a_module() {
        let mut diag = Diag::open().unwrap();
        for listen in ["127.0.0.1:0", "[::1]:0"] {
            let (client, accepted, peer) = pair(listen);
            // Reset: neither end is in the kernel's tables any more.
            let now = Some(std::time::Duration::ZERO);
            rustix::net::sockopt::set_socket_linger(&client, now).unwrap();
            drop(client);
            let error = diag.origin(accepted.as_fd(), peer).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotConnected, "{error}");
            assert!(!error.to_string().contains("modprobe"), "{error}");
        }
    }

    #[test]
    fn a_protocol_that_the_kernel_does_not_show_is_told_from_one_without_sockets() {
        let mut diag = Diag::open().unwrap();
        for family in [AddressFamily::INET, AddressFamily::INET6] {
            assert!(diag.is_shown(family, TCP).unwrap());
            // No protocol has this number.
            assert!(!diag.is_shown(family, 200).unwrap());
        }
    }

    #[test]
    fn another_socket_with_the_same_addresses_is_not_taken_for_the_peer() {
        let mut diag = Diag::open().unwrap();
        let (_client, _accepted, peer) = pair("127.0.0.1:0");
        let (_other, other, _) = pair("127.0.0.1:0");
        // Not the peer of this socket: there is no such connection, only one that listened.
        diag.origin(other.as_fd(), peer).unwrap_err();
    }

    #[test]
    fn addresses_of_this_machine_are_told_from_others() {
        let mut diag = Diag::open().unwrap();
        for own in ["127.0.0.1:1", "127.8.8.8:1", "[::1]:1"] {
            assert!(diag.is_own_address(own.parse().unwrap()).unwrap(), "{own}");
        }
        for other in ["192.0.2.1:1", "[2001:db8::1]:1"] {
            assert!(
                !diag.is_own_address(other.parse().unwrap()).unwrap(),
                "{other}"
            );
        }
    }
}
