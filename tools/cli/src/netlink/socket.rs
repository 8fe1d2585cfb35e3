// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Requests, dumps and events of the family, and what the kernel's errors mean.

use super::attrs::{Attrs, AttrsMut};
use crate::error::{Error, Kind, Result};
use crate::uapi;
use netlink_packet_core::Emitable as _;
use netlink_packet_core::{
    NetlinkBuffer, NetlinkHeader, NLMSG_DONE, NLMSG_ERROR, NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CAPPED,
    NLM_F_DUMP, NLM_F_REQUEST,
};
use netlink_sys::protocols::NETLINK_GENERIC;
use netlink_sys::{Socket, SocketAddr};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use std::path::Path;
use std::time::Duration;

const HEADER_BYTES: usize = 16;
const GENL_HEADER_BYTES: usize = 4;

// The controller of generic netlink: include/uapi/linux/genetlink.h.
const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const CTRL_ATTR_MCAST_GROUPS: u16 = 7;
const CTRL_ATTR_MCAST_GRP_NAME: u16 = 1;
const CTRL_ATTR_MCAST_GRP_ID: u16 = 2;

/// Where the extended ack keeps its text: include/uapi/linux/netlink.h.
const NLMSGERR_ATTR_MSG: u16 = 1;

/// How the kernel refuses an attribute whose number is beyond those that the family knows.
const UNKNOWN_ATTRIBUTE: &str = "Unknown attribute type";

/// An answer or an event: its command and its attributes.
pub struct Event {
    /// A number of `uapi::cmd`.
    pub cmd: u8,
    payload: Vec<u8>,
}

impl Event {
    /// What came with it.
    pub fn attrs(&self) -> Attrs<'_> {
        Attrs(&self.payload)
    }
}

/// A connection to the family in the kernel.
pub struct Client {
    socket: Socket,
    sequence: u32,
    family: u16,
    /// Number of the group of events.
    events: Option<u32>,
}

/// The kernel's negative answer.
struct Refused {
    errno: Errno,
    text: Option<String>,
}

impl Client {
    /// Finds the family.
    pub fn connect() -> Result<Self> {
        let failed = |error: std::io::Error| {
            Error::new(
                Kind::Other,
                format!("a netlink socket cannot be used: {error}"),
            )
        };
        let mut socket = Socket::new(NETLINK_GENERIC).map_err(failed)?;
        socket.bind_auto().map_err(failed)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(failed)?;
        socket.set_ext_ack(true).map_err(failed)?;
        socket.set_cap_ack(true).map_err(failed)?;
        let mut client = Client {
            socket,
            sequence: 0,
            family: GENL_ID_CTRL,
            events: None,
        };
        client.resolve()?;
        Ok(client)
    }

    fn resolve(&mut self) -> Result<()> {
        let mut request = AttrsMut::default();
        request.text(CTRL_ATTR_FAMILY_NAME, uapi::FAMILY_NAME);
        let answers = self
            .exchange(CTRL_CMD_GETFAMILY, 1, 0, &request)?
            .map_err(|refused| match refused.errno {
                Errno::NOENT => module_missing(Path::new("/sys/module/neonsan").exists()),
                _ => refused.explain("the kernel does not tell about the family neonsan"),
            })?;
        let attrs = answers.first().map(Event::attrs);
        let family = attrs.and_then(|attrs| attrs.number(CTRL_ATTR_FAMILY_ID));
        self.family = family
            .and_then(|id| id.try_into().ok())
            .ok_or_else(|| module_missing(false))?;
        self.events = attrs.and_then(|attrs| {
            attrs
                .nested(CTRL_ATTR_MCAST_GROUPS)?
                // Groups are numbered from 1 within their nest; this family has one.
                .all_nested(1)
                .find(|group| {
                    group.text(CTRL_ATTR_MCAST_GRP_NAME).as_deref() == Some(uapi::group::EVENTS)
                })?
                .u32(CTRL_ATTR_MCAST_GRP_ID)
        });
        Ok(())
    }

    /// Like [`Client::request`]; `None` if the module is too old to know an attribute.
    pub fn request_known(
        &mut self,
        cmd: u8,
        attrs: &AttrsMut,
        what: &str,
    ) -> Result<Option<Vec<Event>>> {
        match self.exchange(cmd, uapi::FAMILY_VERSION, 0, attrs)? {
            Ok(answers) => Ok(Some(answers)),
            Err(refused) if refused.is_unknown_attribute() => Ok(None),
            Err(refused) => Err(refused.explain(what)),
        }
    }

    /// Sends a request and returns its replies. `what` begins the message of an error for which
    /// the kernel gives no text of its own.
    pub fn request(&mut self, cmd: u8, attrs: &AttrsMut, what: &str) -> Result<Vec<Event>> {
        self.exchange(cmd, uapi::FAMILY_VERSION, 0, attrs)?
            .map_err(|refused| refused.explain(what))
    }

    /// Like [`Client::request`]; the inner error says that the device is busy, which may pass.
    pub fn request_or_busy(
        &mut self,
        cmd: u8,
        attrs: &AttrsMut,
        what: &str,
    ) -> Result<std::result::Result<Vec<Event>, Error>> {
        match self.exchange(cmd, uapi::FAMILY_VERSION, 0, attrs)? {
            Ok(answers) => Ok(Ok(answers)),
            Err(refused) if refused.errno == Errno::BUSY => Ok(Err(refused.explain(what))),
            Err(refused) => Err(refused.explain(what)),
        }
    }

    /// Asks for all objects.
    pub fn dump(&mut self, cmd: u8, what: &str) -> Result<Vec<Event>> {
        self.exchange(cmd, uapi::FAMILY_VERSION, NLM_F_DUMP, &AttrsMut::default())?
            .map_err(|refused| refused.explain(what))
    }

    /// From here on [`Client::next_events`] returns the family's events.
    pub fn subscribe(&mut self) -> Result<()> {
        let group = self.events.ok_or_else(|| {
            Error::new(
                Kind::Module,
                "the kernel module has no events: it is of another version",
            )
        })?;
        self.socket.add_membership(group).map_err(|error| {
            if error.kind() == std::io::ErrorKind::PermissionDenied {
                let message = "events name volumes and nodes, and are not shown to you";
                return Error::new(Kind::Permission, message)
                    .with_hint("run the command as root: it needs CAP_SYS_ADMIN");
            }
            Error::new(
                Kind::Other,
                format!("the kernel does not give events: {error}"),
            )
        })
    }

    /// Waits for events. `None` says that some were lost because they were not read fast enough.
    pub fn next_events(&mut self) -> Result<Option<Vec<Event>>> {
        match self.receive() {
            Ok(datagram) => Ok(Some(
                messages(&datagram)
                    .filter(|(header, _)| header.message_type == self.family)
                    .filter_map(|(_, payload)| event_of(payload))
                    .collect(),
            )),
            Err(error) if error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => Ok(None),
            Err(error) => Err(broken(&error)),
        }
    }

    /// Like [`Client::next_events`], but waits no longer than this; then there are none.
    pub fn next_events_within(&mut self, limit: Duration) -> Result<Option<Vec<Event>>> {
        let mut descriptors = [PollFd::new(&self.socket, PollFlags::IN)];
        let limit = Timespec::try_from(limit).ok();
        match rustix::event::poll(&mut descriptors, limit.as_ref()) {
            Ok(0) | Err(Errno::INTR) => Ok(Some(Vec::new())),
            Ok(_) => self.next_events(),
            Err(error) => Err(broken(&error.into())),
        }
    }

    fn exchange(
        &mut self,
        cmd: u8,
        version: u8,
        flags: u16,
        attrs: &AttrsMut,
    ) -> Result<std::result::Result<Vec<Event>, Refused>> {
        self.sequence += 1;
        let mut message = vec![0; HEADER_BYTES];
        message.extend([cmd, version, 0, 0]);
        message.extend(attrs.as_bytes());
        let mut header = NetlinkHeader::default();
        header.length = message.len() as u32;
        header.message_type = self.family;
        header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        header.sequence_number = self.sequence;
        header.emit(&mut message[..HEADER_BYTES]);
        self.socket
            .send(&message, 0)
            .map_err(|error| broken(&error))?;

        let mut answers = Vec::new();
        loop {
            let datagram = self.receive().map_err(|error| broken(&error))?;
            for (header, payload) in messages(&datagram) {
                if header.sequence_number != self.sequence {
                    continue;
                }
                match header.message_type {
                    NLMSG_ERROR | NLMSG_DONE => {
                        return Ok(match Refused::parse(&header, payload) {
                            Some(refused) => Err(refused),
                            None => Ok(answers),
                        });
                    }
                    _ => answers.extend(event_of(payload)),
                }
            }
        }
    }

    fn receive(&self) -> std::io::Result<Vec<u8>> {
        loop {
            match self.socket.recv_from_full() {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                result => return result.map(|(datagram, _)| datagram),
            }
        }
    }
}

fn broken(error: &std::io::Error) -> Error {
    Error::new(Kind::Other, format!("the netlink socket failed: {error}"))
}

fn module_missing(loaded: bool) -> Error {
    if loaded {
        Error::new(
            Kind::Module,
            "the kernel module neonsan is loaded, but cannot be controlled from this network namespace",
        )
        .with_hint("run the command in the initial network namespace: nsenter --net=/proc/1/ns/net neonsan …")
    } else {
        Error::new(Kind::Module, "the kernel module neonsan is not loaded").with_hint(
            "run `modprobe neonsan` as root; if there is no such module, build and install it for \
             this kernel (Documentation/quickstart.rst)",
        )
    }
}

/// The messages of a datagram with what follows their netlink header. A damaged one ends the run.
fn messages(datagram: &[u8]) -> impl Iterator<Item = (NetlinkHeader, &[u8])> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        use netlink_packet_core::Parseable as _;
        let buffer = NetlinkBuffer::new_checked(rest).ok()?;
        let header = NetlinkHeader::parse(&buffer).ok()?;
        let len = header.length as usize;
        let payload = rest.get(HEADER_BYTES..len)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some((header, payload))
    })
}

fn event_of(payload: &[u8]) -> Option<Event> {
    Some(Event {
        cmd: *payload.first()?,
        payload: payload.get(GENL_HEADER_BYTES..)?.to_vec(),
    })
}

impl Refused {
    /// Reads an acknowledgement or the end of a dump; `None` if it is positive.
    fn parse(header: &NetlinkHeader, payload: &[u8]) -> Option<Self> {
        let (code, rest) = payload.split_first_chunk::<4>()?;
        let errno = i32::from_ne_bytes(*code)
            .checked_neg()
            .filter(|errno| *errno > 0)?;
        // An acknowledgement repeats the header of the request, and the whole request unless it
        // is capped; the extended ack follows.
        let tlvs = if header.message_type == NLMSG_DONE {
            Some(rest)
        } else if header.flags & NLM_F_CAPPED != 0 {
            rest.get(HEADER_BYTES..)
        } else {
            let request = rest
                .first_chunk::<4>()
                .map(|len| u32::from_ne_bytes(*len) as usize);
            request.and_then(|len| rest.get(len.next_multiple_of(4)..))
        };
        let text = tlvs
            .filter(|_| header.flags & NLM_F_ACK_TLVS != 0)
            .and_then(|tlvs| Attrs(tlvs).text(NLMSGERR_ATTR_MSG));
        Some(Refused {
            errno: Errno::from_raw_os_error(errno),
            text,
        })
    }

    fn is_unknown_attribute(&self) -> bool {
        self.errno == Errno::INVAL && self.text.as_deref() == Some(UNKNOWN_ATTRIBUTE)
    }

    fn explain(self, what: &str) -> Error {
        let kind = kind_of(self.errno);
        match self.text {
            Some(text) => Error::new(kind, text),
            None if kind == Kind::Permission => Error::new(kind, format!("{what}: not permitted"))
                .with_hint("run the command as root: it needs CAP_SYS_ADMIN"),
            None => Error::new(
                kind,
                format!("{what}: {}", std::io::Error::from(self.errno)),
            ),
        }
    }
}

/// What an error number of the module means.
fn kind_of(errno: Errno) -> Kind {
    match errno {
        Errno::PERM | Errno::ACCESS => Kind::Permission,
        Errno::NODEV | Errno::NOENT | Errno::NXIO => Kind::NotFound,
        Errno::BUSY | Errno::EXIST | Errno::STALE | Errno::ALREADY => Kind::Busy,
        // The node has too many sessions, or is doing something with the volume.
        Errno::USERS | Errno::AGAIN => Kind::Temporary,
        Errno::CONNREFUSED
        | Errno::CONNRESET
        | Errno::CONNABORTED
        | Errno::HOSTUNREACH
        | Errno::NETUNREACH
        | Errno::NETDOWN
        | Errno::ADDRNOTAVAIL
        | Errno::NOTCONN
        | Errno::PIPE
        | Errno::SHUTDOWN
        | Errno::TIMEDOUT
        | Errno::HOSTDOWN => Kind::Unreachable,
        Errno::PROTO | Errno::PROTONOSUPPORT | Errno::BADMSG => Kind::Protocol,
        Errno::INVAL | Errno::RANGE | Errno::MSGSIZE | Errno::OPNOTSUPP | Errno::ROFS => {
            Kind::Refused
        }
        Errno::NOSPC => Kind::NoSpace,
        Errno::IO | Errno::UCLEAN | Errno::REMOTEIO => Kind::Data,
        Errno::INTR => Kind::Interrupted,
        _ => Kind::Other,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_may_pass_by_itself_is_told_from_what_does_not() {
        for (errno, kind) in [
            // Held by another host, or attached here already.
            (Errno::BUSY, Kind::Busy),
            (Errno::STALE, Kind::Busy),
            (Errno::NOENT, Kind::NotFound),
            (Errno::USERS, Kind::Temporary),
            (Errno::AGAIN, Kind::Temporary),
            (Errno::CONNREFUSED, Kind::Unreachable),
            (Errno::SHUTDOWN, Kind::Unreachable),
        ] {
            assert_eq!(kind_of(errno), kind, "{errno:?}");
        }
    }

    /// An acknowledgement as the kernel writes it.
    fn ack(flags: u16, errno: i32, repeated: &[u8], text: Option<&str>) -> Vec<u8> {
        let mut message = vec![0; HEADER_BYTES];
        message.extend((-errno).to_ne_bytes());
        message.extend(repeated);
        if let Some(text) = text {
            let mut attrs = AttrsMut::default();
            attrs.text(NLMSGERR_ATTR_MSG, text);
            message.extend(attrs.as_bytes());
        }
        let mut header = NetlinkHeader::default();
        header.length = message.len() as u32;
        header.message_type = NLMSG_ERROR;
        header.flags = flags;
        header.emit(&mut message[..HEADER_BYTES]);
        message
    }

    fn refusal(datagram: &[u8]) -> Option<Error> {
        let (header, payload) = messages(datagram).next().unwrap();
        Refused::parse(&header, payload).map(|refused| refused.explain("cannot do it"))
    }

    #[test]
    fn an_older_module_is_told_by_the_attribute_that_it_does_not_know() {
        let is_unknown = |errno, text| {
            let datagram = ack(
                NLM_F_CAPPED | NLM_F_ACK_TLVS,
                errno,
                &[0; HEADER_BYTES],
                Some(text),
            );
            let (header, payload) = messages(&datagram).next().unwrap();
            Refused::parse(&header, payload)
                .unwrap()
                .is_unknown_attribute()
        };
        assert!(is_unknown(22, "Unknown attribute type"));
        assert!(!is_unknown(22, "name the host"));
        assert!(!is_unknown(16, "Unknown attribute type"));
    }

    #[test]
    fn the_text_of_the_kernel_is_found_behind_what_it_repeats() {
        let mut request = vec![0; 24];
        request[0] = 22;
        let capped = ack(
            NLM_F_CAPPED | NLM_F_ACK_TLVS,
            16,
            &request[..16],
            Some("it is in use"),
        );
        let whole = ack(NLM_F_ACK_TLVS, 16, &request, Some("it is in use"));
        for datagram in [capped, whole] {
            let error = refusal(&datagram).unwrap();
            assert_eq!(error.kind(), Kind::Busy);
            assert_eq!(error.to_string(), "it is in use");
        }
    }

    #[test]
    fn without_a_text_the_number_speaks() {
        let error = refusal(&ack(NLM_F_CAPPED, 1, &[0; 16], None)).unwrap();
        assert_eq!(error.kind(), Kind::Permission);
        assert!(error.to_string().contains("as root"), "{error}");
        assert!(refusal(&ack(NLM_F_CAPPED, 0, &[0; 16], None)).is_none());
    }

    #[test]
    fn damaged_messages_end_the_run() {
        let mut datagram = ack(NLM_F_CAPPED, 1, &[0; 16], None);
        assert_eq!(messages(&datagram).count(), 1);
        datagram.truncate(20);
        assert_eq!(messages(&datagram).count(), 0);
        assert_eq!(messages(&[]).count(), 0);
    }
}
