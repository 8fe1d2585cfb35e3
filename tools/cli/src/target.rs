// SPDX-License-Identifier: GPL-2.0 OR MIT

//! How people name volumes and nodes: `neonsan://host[:port][,…]/pool/volume[@snapshot]`.

use crate::error::{Error, Kind, Result};
use crate::output::readable;
use neonsan_api::DEFAULT_DATA_PORT;
use neonsan_proto::{NameError, VolumeName};
use serde::Serialize;
use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, ToSocketAddrs};
use std::str::FromStr;

/// What every target is shown as in messages.
pub const FORM: &str = "neonsan://host[:port]/pool/volume[@snapshot]";

const SCHEME: &str = "neonsan://";

/// Where a node takes data connections, as written: a name is resolved only when it is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAddress {
    host: Host,
    port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    Address(IpAddr),
    /// A link-local address with the interface that it is on.
    Scoped(Ipv6Addr, String),
    Name(String),
}

/// How an address begins that stands for a name which could not be resolved yet.
const UNRESOLVED: u16 = 0xff00;

/// Whether an address only stands for its name: see [`ResolvedNode::unresolved`].
pub fn is_unresolved(address: IpAddr, name: Option<&str>) -> bool {
    match address {
        IpAddr::V6(address) => name.is_some() && address.segments()[0] == UNRESOLVED,
        IpAddr::V4(_) => false,
    }
}

/// Resolves all of them at the same time, in their order: a resolver that is away takes half a minute for each
/// name, and a unit that attaches at boot has two minutes for all.
pub fn resolve_each(addresses: &[NodeAddress]) -> Vec<Result<Vec<ResolvedNode>>> {
    all_at_once(addresses, NodeAddress::resolve)
}

/// What `call` makes of each, in order. Where no thread is to be had, one after the other.
fn all_at_once<T: Sync, R: Send>(items: &[T], call: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let call = &call;
    std::thread::scope(|scope| {
        let begin = |item| {
            let thread = std::thread::Builder::new();
            (item, thread.spawn_scoped(scope, move || call(item)).ok())
        };
        let begun: Vec<_> = items.iter().map(begin).collect();
        let end = |(item, thread): (_, Option<std::thread::ScopedJoinHandle<'_, R>>)| {
            let result = thread.and_then(|thread| thread.join().ok());
            result.unwrap_or_else(|| call(item))
        };
        begun.into_iter().map(end).collect()
    })
}

/// A node's address as numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ResolvedNode {
    /// IPv4 or IPv6 address.
    pub address: IpAddr,
    /// Index of the interface of a link-local address.
    pub scope_id: Option<u32>,
    /// TCP port.
    pub port: u16,
    /// The host name that was resolved to the address.
    pub name: Option<String>,
}

impl ResolvedNode {
    /// A name that could not be resolved yet. The module keeps names with an address only, so this one has
    /// an address at which no node can be: multicast of a scope that is reserved, to which TCP does not even
    /// try to connect. Each name has its own, since the module tells nodes apart by their addresses.
    pub fn unresolved(name: &str, port: u16) -> Self {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        let address = (u128::from(UNRESOLVED) << 112) | u128::from(hasher.finish());
        ResolvedNode {
            address: IpAddr::V6(Ipv6Addr::from(address)),
            scope_id: None,
            port,
            name: Some(name.to_owned()),
        }
    }

    /// Whether it is a name that could not be resolved yet.
    pub fn is_unresolved(&self) -> bool {
        is_unresolved(self.address, self.name.as_deref())
    }

    /// As a socket takes it, with the interface of a link-local address.
    pub fn socket(&self) -> SocketAddr {
        match (self.address, self.scope_id) {
            (IpAddr::V6(address), Some(scope)) => {
                SocketAddr::V6(SocketAddrV6::new(address, self.port, 0, scope))
            }
            (address, _) => SocketAddr::new(address, self.port),
        }
    }
}

impl fmt::Display for ResolvedNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) if self.is_unresolved() => {
                write!(f, "{name}:{} (not resolved yet)", self.port)
            }
            Some(name) => write!(f, "{} ({name})", self.socket()),
            None => self.socket().fmt(f),
        }
    }
}

impl FromStr for NodeAddress {
    type Err = Error;

    /// Reads `host`, `host:port`, `[v6]`, `[v6]:port` or `v6`.
    fn from_str(text: &str) -> Result<Self> {
        let bad = |why: String| {
            Error::new(
                Kind::Usage,
                format!("'{}' is no address of a node: {why}", readable(text)),
            )
            .with_hint(
                "write host, host:port, 192.0.2.1:port or [2001:db8::1]:port; \
                 without a port it is 9666",
            )
        };
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let Some((host, after)) = rest.split_once(']') else {
                return Err(bad("the ']' is missing".into()));
            };
            let port = match after.strip_prefix(':') {
                Some(port) => Some(port),
                None if after.is_empty() => None,
                None => return Err(bad(format!("'{after}' follows the ']'"))),
            };
            match host.split_once('%') {
                None => match host.parse() {
                    Ok(address) => (Host::Address(IpAddr::V6(address)), port),
                    Err(_) => return Err(bad(format!("'{host}' is no IPv6 address"))),
                },
                Some((address, interface)) => match address.parse() {
                    Ok(address) if !interface.is_empty() => {
                        (Host::Scoped(address, interface.to_owned()), port)
                    }
                    _ => return Err(bad(format!("'{host}' is no IPv6 address"))),
                },
            }
        } else if let Ok(address) = text.parse::<Ipv6Addr>() {
            (Host::Address(IpAddr::V6(address)), None)
        } else {
            let (host, port) = match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            };
            match host.parse() {
                Ok(address) => (Host::Address(IpAddr::V4(address)), port),
                Err(_) => (Host::Name(host_name(host).map_err(bad)?), port),
            }
        };
        let port = match port {
            None => DEFAULT_DATA_PORT,
            Some(port) => match port.parse() {
                Ok(port) if port > 0 => port,
                _ => return Err(bad(format!("the port '{port}' is not from 1 to 65535"))),
            },
        };
        Ok(NodeAddress { host, port })
    }
}

/// What is wrong with a name, with the character itself where the rules see only bytes.
pub fn explain_name(name: &str, error: NameError) -> String {
    let NameError::BadCharacter { at, .. } = error else {
        return error.to_string();
    };
    let found = name
        .char_indices()
        .find(|(start, c)| (*start..start + c.len_utf8()).contains(&at));
    let Some((start, c)) = found else {
        return error.to_string();
    };
    let position = name[..start].chars().count();
    let what = match c.is_control() {
        true => show_char(c),
        false => format!("the character {}", show_char(c)),
    };
    let mut text = format!(
        "{what} at position {position} is not allowed: use letters from a to z, digits, '.', '_' and '-'"
    );
    if c == '\r' {
        text += "; a file that was written on Windows has one at the end of each line";
    }
    text
}

/// A character as people know it.
fn show_char(c: char) -> String {
    match c {
        '\r' => "a carriage return".into(),
        '\n' => "a line feed".into(),
        '\t' => "a tab".into(),
        '\0' => "a zero byte".into(),
        '\u{a0}' => "a no-break space".into(),
        '\u{feff}' => "a byte order mark".into(),
        c if c.is_control() => format!("a control character (U+{:04X})", c as u32),
        // What is not seen, or writes from right to left, would make the message a riddle.
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' => {
            format!("an invisible character (U+{:04X})", c as u32)
        }
        c => format!("'{c}'"),
    }
}

fn host_name(name: &str) -> std::result::Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if name.is_empty() {
        Err("the host is missing".into())
    } else if name.len() > 253 {
        Err("the host name is longer than 253 characters".into())
    } else if let Some(c) = name.chars().find(|c| !fits(*c)) {
        Err(format!("a host name cannot have {}", show_char(c)))
    } else if name.split('.').all(|part| part.parse::<u32>().is_ok()) {
        Err("it looks like an IPv4 address but is none".into())
    } else {
        Ok(name.to_owned())
    }
}

impl fmt::Display for NodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Address(IpAddr::V4(address)) => write!(f, "{address}:{}", self.port),
            Host::Address(IpAddr::V6(address)) => write!(f, "[{address}]:{}", self.port),
            Host::Scoped(address, interface) => write!(f, "[{address}%{interface}]:{}", self.port),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

impl NodeAddress {
    /// The host alone, as a URL of another port has it.
    pub fn host(&self) -> String {
        match &self.host {
            Host::Address(IpAddr::V4(address)) => address.to_string(),
            Host::Address(IpAddr::V6(address)) | Host::Scoped(address, _) => format!("[{address}]"),
            Host::Name(name) => name.clone(),
        }
    }

    /// Whether it is written as this machine itself: a loopback address, or `localhost`.
    pub fn is_this_machine(&self) -> bool {
        match &self.host {
            Host::Address(address) => address.to_canonical().is_loopback(),
            Host::Scoped(..) => false,
            Host::Name(name) => name.eq_ignore_ascii_case("localhost"),
        }
    }

    /// The host's name, if it is not written as a number.
    pub fn name(&self) -> Option<&str> {
        match &self.host {
            Host::Name(name) => Some(name),
            Host::Address(_) | Host::Scoped(..) => None,
        }
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address as numbers; a name may have several. The order is the resolver's.
    pub fn resolve(&self) -> Result<Vec<ResolvedNode>> {
        let node = |address, scope_id| ResolvedNode {
            address,
            scope_id,
            port: self.port,
            name: None,
        };
        match &self.host {
            Host::Address(address) => Ok(vec![node(*address, None)]),
            Host::Scoped(address, interface) => {
                let index = interface_index(interface)?;
                Ok(vec![node(IpAddr::V6(*address), Some(index))])
            }
            Host::Name(name) => resolve_name(name, self.port),
        }
    }
}

/// The addresses of a name, in the resolver's order.
pub fn resolve_name(name: &str, port: u16) -> Result<Vec<ResolvedNode>> {
    let unknown = |why: String| {
        Error::new(
            Kind::Unreachable,
            format!("the name '{name}' cannot be resolved: {why}"),
        )
        .with_hint("check the spelling and DNS, or write the address as a number")
    };
    let mut nodes = Vec::new();
    let found = (name, port)
        .to_socket_addrs()
        .map_err(|error| unknown(error.to_string()))?;
    for address in found {
        let resolved = ResolvedNode {
            address: address.ip(),
            scope_id: None,
            port,
            name: Some(name.to_owned()),
        };
        if !nodes.contains(&resolved) {
            nodes.push(resolved);
        }
    }
    if nodes.is_empty() {
        return Err(unknown("it has no address".into()));
    }
    Ok(nodes)
}

fn interface_index(interface: &str) -> Result<u32> {
    if let Ok(index) = interface.parse() {
        return Ok(index);
    }
    let path = format!("/sys/class/net/{interface}/ifindex");
    std::fs::read_to_string(path)
        .ok()
        .filter(|_| !interface.contains('/'))
        .and_then(|index| index.trim().parse().ok())
        .ok_or_else(|| {
            Error::new(
                Kind::Usage,
                format!("there is no network interface '{interface}'"),
            )
            .with_hint("behind the % of a link-local address stands a name that `ip link` shows")
        })
}

/// A volume, and perhaps the nodes that serve it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// In the order of the URL; empty if the target is a volume alone.
    pub nodes: Vec<NodeAddress>,
    /// `pool/volume` or `pool/volume@snapshot`, checked.
    pub volume: String,
}

impl FromStr for Target {
    type Err = Error;

    /// Reads a URL, or `pool/volume[@snapshot]` alone.
    fn from_str(text: &str) -> Result<Self> {
        let (nodes, volume) = match text.strip_prefix(SCHEME) {
            None if text.contains("://") => {
                let error = format!("'{text}' does not start with {SCHEME}");
                return Err(Error::new(Kind::Usage, error).with_hint(format!("write {FORM}")));
            }
            None => (Vec::new(), text),
            Some(rest) => {
                let Some((hosts, volume)) = rest.split_once('/') else {
                    return Err(Error::new(Kind::Usage, format!("'{text}' names no volume"))
                        .with_hint(format!("write {FORM}")));
                };
                let nodes = if hosts.is_empty() {
                    Vec::new()
                } else {
                    hosts.split(',').map(str::parse).collect::<Result<_>>()?
                };
                (nodes, volume)
            }
        };
        VolumeName::parse(volume).map_err(|error| {
            let why = explain_name(volume, error);
            let message = format!("'{}' is no volume: {why}", readable(volume));
            Error::new(Kind::Usage, message)
                .with_hint(format!("write {FORM}, or pool/volume with --node"))
        })?;
        Ok(Target {
            nodes,
            volume: volume.to_owned(),
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes.is_empty() {
            return f.write_str(&self.volume);
        }
        f.write_str(SCHEME)?;
        for (index, node) in self.nodes.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            write!(f, "{comma}{node}")?;
        }
        write!(f, "/{}", self.volume)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_in_all_their_forms() {
        for (text, shown) in [
            ("neonsan://h/p/v", "neonsan://h:9666/p/v"),
            ("neonsan://h:1/p/v@s", "neonsan://h:1/p/v@s"),
            ("neonsan://192.0.2.1/p/v", "neonsan://192.0.2.1:9666/p/v"),
            (
                "neonsan://[2001:db8::1]/p/v",
                "neonsan://[2001:db8::1]:9666/p/v",
            ),
            (
                "neonsan://[fe80::1%eth0]:7/p/v",
                "neonsan://[fe80::1%eth0]:7/p/v",
            ),
            (
                "neonsan://a,b:2,[::1]:3/p/v",
                "neonsan://a:9666,b:2,[::1]:3/p/v",
            ),
            ("neonsan:///p/v", "p/v"),
            ("p/v", "p/v"),
            ("p/v@s", "p/v@s"),
        ] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), shown, "{text}");
        }
        for (text, is_this) in [
            ("127.0.0.1", true),
            ("127.9.9.9:7", true),
            ("[::1]:9666", true),
            ("::ffff:127.0.0.1", true),
            ("LocalHost", true),
            ("192.0.2.1", false),
            ("localhost.example", false),
            ("fe80::1", false),
        ] {
            let node: NodeAddress = text.parse().unwrap();
            assert_eq!(node.is_this_machine(), is_this, "{text}");
        }
        // A link-local address is nothing without its interface.
        let scoped: NodeAddress = "[fe80::1%7]:5".parse().unwrap();
        let resolved = scoped.resolve().unwrap();
        assert_eq!(resolved[0].socket().to_string(), "[fe80::1%7]:5");
        let plain: NodeAddress = "2001:db8::1".parse().unwrap();
        assert_eq!(plain.to_string(), "[2001:db8::1]:9666");
    }

    #[test]
    fn bad_targets_are_refused_with_the_form() {
        for text in [
            "",
            "v",
            "p/",
            "/v",
            "http://h/p/v",
            "neonsan://h",
            "neonsan://h:0/p/v",
            "neonsan://h:65536/p/v",
            "neonsan://h:x/p/v",
            "neonsan://h h/p/v",
            "neonsan://[::1/p/v",
            "neonsan://[::1]x/p/v",
            "neonsan://[zz]/p/v",
            "neonsan://1.2.3/p/v",
            "neonsan://a,,b/p/v",
            "neonsan://h/p/v/w",
            "neonsan://h/p/v@",
            "neonsan://h/p/v w",
            "neonsan://h/p/\u{fc}",
        ] {
            let error = text.parse::<Target>().unwrap_err();
            assert_eq!(error.kind(), Kind::Usage, "{text}");
            assert!(error.to_string().contains("write "), "{text}: {error}");
        }
        for (text, said) in [
            (
                "p/\u{dc}ber",
                "'p/\u{dc}ber' is no volume: the character '\u{dc}' at position 2",
            ),
            ("p/a\u{e9}\u{dc}", "the character '\u{e9}' at position 3"),
            (
                "p/v\r",
                "'p/v\\r' is no volume: a carriage return at position 3",
            ),
            ("p/v\r", "written on Windows"),
            ("p/\tv", "a tab at position 2"),
            ("p/v\u{1b}", "a control character (U+001B)"),
            ("p/v\u{200b}", "an invisible character (U+200B)"),
            ("p/v\u{a0}", "a no-break space"),
            (
                "neonsan://h\u{f6}st/p/v",
                "a host name cannot have '\u{f6}'",
            ),
            (
                "neonsan://h\r/p/v",
                "a host name cannot have a carriage return",
            ),
        ] {
            let error = text.parse::<Target>().unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
            assert!(!error.contains(char::REPLACEMENT_CHARACTER), "{error}");
        }
        let long = format!("p/{}", "v".repeat(254));
        let error = long.parse::<Target>().unwrap_err().to_string();
        assert!(error.contains("longer than 255"), "{error}");
    }

    #[test]
    fn a_name_without_an_address_is_told_from_all_that_have_one() {
        let late = ResolvedNode::unresolved("late.test", 7);
        assert!(late.is_unresolved());
        assert_eq!(late.to_string(), "late.test:7 (not resolved yet)");
        assert_eq!(late, ResolvedNode::unresolved("late.test", 7));
        assert_ne!(
            late.address,
            ResolvedNode::unresolved("later.test", 7).address
        );
        // Linux refuses to connect to it, without a packet.
        assert!(std::net::TcpStream::connect(late.socket()).is_err());
        for address in ["192.0.2.1", "::1", "2001:db8::1", "fe80::1"] {
            assert!(!is_unresolved(address.parse().unwrap(), Some("late.test")));
        }
        assert!(!is_unresolved(late.address, None));
    }

    #[test]
    fn names_are_resolved_at_the_same_time_and_keep_their_order() {
        // Each waits until all have begun.
        let all = std::sync::Barrier::new(8);
        let names: Vec<usize> = (0..8).collect();
        let found = all_at_once(&names, |name| {
            all.wait();
            name * 2
        });
        assert_eq!(found, [0, 2, 4, 6, 8, 10, 12, 14]);
        let nodes: Vec<NodeAddress> = ["192.0.2.1", "nobody.invalid", "::1"]
            .iter()
            .map(|node| node.parse().unwrap())
            .collect();
        let found: Vec<_> = resolve_each(&nodes).iter().map(Result::is_ok).collect();
        assert_eq!(found, [true, false, true]);
    }

    #[test]
    fn numbers_resolve_without_a_resolver() {
        let node: NodeAddress = "192.0.2.1:5".parse().unwrap();
        assert_eq!(
            node.resolve().unwrap(),
            [ResolvedNode {
                address: "192.0.2.1".parse().unwrap(),
                scope_id: None,
                port: 5,
                name: None,
            }]
        );
        let node: NodeAddress = "[fe80::1%no-such-interface]".parse().unwrap();
        assert!(node.resolve().unwrap_err().to_string().contains("ip link"));
    }
}
