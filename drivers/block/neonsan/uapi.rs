// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Numbers of the generic netlink family `neonsan`, shared by the module and the command line.
//!
//! Made from `Documentation/netlink/specs/neonsan.yaml` by the test `tools/uapi/tests/spec.rs`,
//! which also notices when the two differ. Change the spec, not this file. It is part of the
//! interface between kernel and user space: numbers are only ever added, at the end.

/// Name of the family.
pub const FAMILY_NAME: &str = "neonsan";

/// Version of the family.
pub const FAMILY_VERSION: u8 = 1;

/// Longest volume name in bytes, pool and snapshot included.
pub const VOLUME_MAX_LEN: usize = 255;

/// `address-max-len` of the spec.
pub const ADDRESS_MAX_LEN: usize = 16;

/// `uuid-len` of the spec.
pub const UUID_LEN: usize = 16;

/// `message-max-len` of the spec.
pub const MESSAGE_MAX_LEN: usize = 255;

/// `host-name-max-len` of the spec.
pub const HOST_NAME_MAX_LEN: usize = 255;

/// `host-boot-len` of the spec.
pub const HOST_BOOT_LEN: usize = 8;

/// How a volume is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Mode {
    /// One host reads and writes. A second host is refused.
    Exclusive = 0,
    /// Several hosts read and write, and keep order among themselves.
    Shared = 1,
    /// No writes. Always the case for a snapshot.
    ReadOnly = 2,
}

impl Mode {
    /// Every value, in order.
    pub const ALL: &'static [Mode] = &[Mode::Exclusive, Mode::Shared, Mode::ReadOnly];

    /// The value of an attribute; `None` if this version does not know it.
    pub fn from_raw(raw: u32) -> Option<Self> {
        Self::ALL.get(raw as usize).copied()
    }

    /// The name in the spec.
    pub const fn name(self) -> &'static str {
        match self {
            Mode::Exclusive => "exclusive",
            Mode::Shared => "shared",
            Mode::ReadOnly => "read-only",
        }
    }
}

/// State of the session behind a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum SessionState {
    /// Attach is under way, there is no block device yet.
    Opening = 0,
    /// Every connection is up.
    Live = 1,
    /// Some connections are down and being re-made. Requests of those connections are parked, the
    /// others go on.
    Degraded = 2,
    /// No connection is up. Requests are parked, reconnecting.
    Recovering = 3,
    /// The loss timeout has run out, or the volume was taken away. I/O fails.
    Failed = 4,
    /// The device is being taken away.
    Detaching = 5,
}

impl SessionState {
    /// Every value, in order.
    pub const ALL: &'static [SessionState] = &[
        SessionState::Opening,
        SessionState::Live,
        SessionState::Degraded,
        SessionState::Recovering,
        SessionState::Failed,
        SessionState::Detaching,
    ];

    /// The value of an attribute; `None` if this version does not know it.
    pub fn from_raw(raw: u32) -> Option<Self> {
        Self::ALL.get(raw as usize).copied()
    }

    /// The name in the spec.
    pub const fn name(self) -> &'static str {
        match self {
            SessionState::Opening => "opening",
            SessionState::Live => "live",
            SessionState::Degraded => "degraded",
            SessionState::Recovering => "recovering",
            SessionState::Failed => "failed",
            SessionState::Detaching => "detaching",
        }
    }
}

/// State of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ConnectionState {
    /// Down, with nothing to wait for.
    Idle = 0,
    /// Down, until the reconnect delay has passed.
    Waiting = 1,
    /// The TCP connection is being made.
    Connecting = 2,
    /// Hello, and open or join.
    Handshake = 3,
    /// Carries requests.
    Live = 4,
    /// Being taken down; its requests are about to be parked.
    Draining = 5,
}

impl ConnectionState {
    /// Every value, in order.
    pub const ALL: &'static [ConnectionState] = &[
        ConnectionState::Idle,
        ConnectionState::Waiting,
        ConnectionState::Connecting,
        ConnectionState::Handshake,
        ConnectionState::Live,
        ConnectionState::Draining,
    ];

    /// The value of an attribute; `None` if this version does not know it.
    pub fn from_raw(raw: u32) -> Option<Self> {
        Self::ALL.get(raw as usize).copied()
    }

    /// The name in the spec.
    pub const fn name(self) -> &'static str {
        match self {
            ConnectionState::Idle => "idle",
            ConnectionState::Waiting => "waiting",
            ConnectionState::Connecting => "connecting",
            ConnectionState::Handshake => "handshake",
            ConnectionState::Live => "live",
            ConnectionState::Draining => "draining",
        }
    }
}

/// Kind of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Op {
    /// `read`.
    Read = 0,
    /// `write`.
    Write = 1,
    /// `flush`.
    Flush = 2,
    /// `discard`.
    Discard = 3,
    /// `write-zeroes`.
    WriteZeroes = 4,
}

impl Op {
    /// Every value, in order.
    pub const ALL: &'static [Op] = &[Op::Read, Op::Write, Op::Flush, Op::Discard, Op::WriteZeroes];

    /// The value of an attribute; `None` if this version does not know it.
    pub fn from_raw(raw: u32) -> Option<Self> {
        Self::ALL.get(raw as usize).copied()
    }

    /// The name in the spec.
    pub const fn name(self) -> &'static str {
        match self {
            Op::Read => "read",
            Op::Write => "write",
            Op::Flush => "flush",
            Op::Discard => "discard",
            Op::WriteZeroes => "write-zeroes",
        }
    }
}

/// Where a request in flight is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RequestState {
    /// Has a slot and waits to be sent.
    Queued = 0,
    /// Has been given to the socket and waits for its reply.
    Sent = 1,
    /// Its connection was lost. It is sent again after recovery.
    Parked = 2,
}

impl RequestState {
    /// Every value, in order.
    pub const ALL: &'static [RequestState] = &[
        RequestState::Queued,
        RequestState::Sent,
        RequestState::Parked,
    ];

    /// The value of an attribute; `None` if this version does not know it.
    pub fn from_raw(raw: u32) -> Option<Self> {
        Self::ALL.get(raw as usize).copied()
    }

    /// The name in the spec.
    pub const fn name(self) -> &'static str {
        match self {
            RequestState::Queued => "queued",
            RequestState::Sent => "sent",
            RequestState::Parked => "parked",
        }
    }
}

/// What is protected by CRC32C on the wire.
pub mod checksum {
    /// The header of every message.
    pub const HEADER: u32 = 1 << 0;

    /// The payload of reads and writes. Needs header.
    pub const PAYLOAD: u32 = 1 << 1;

    /// Every flag with its name in the spec.
    pub const NAMES: &[(&str, u32)] = &[("header", HEADER), ("payload", PAYLOAD)];
}

/// What a volume can do. The same bits as on the wire.
pub mod ability {
    /// Writes are refused.
    pub const READ_ONLY: u32 = 1 << 0;

    /// Acknowledged writes are durable only after a flush.
    pub const VOLATILE_CACHE: u32 = 1 << 1;

    /// A write can ask to be durable before it is acknowledged.
    pub const FUA: u32 = 1 << 2;

    /// `discard`.
    pub const DISCARD: u32 = 1 << 3;

    /// Discarded ranges read as zeroes.
    pub const DISCARD_ZEROES: u32 = 1 << 4;

    /// `write-zeroes`.
    pub const WRITE_ZEROES: u32 = 1 << 5;

    /// Writes within the atomic limits are never torn.
    pub const ATOMIC: u32 = 1 << 6;

    /// Seeks cost.
    pub const ROTATIONAL: u32 = 1 << 7;

    /// Every flag with its name in the spec.
    pub const NAMES: &[(&str, u32)] = &[
        ("read-only", READ_ONLY),
        ("volatile-cache", VOLATILE_CACHE),
        ("fua", FUA),
        ("discard", DISCARD),
        ("discard-zeroes", DISCARD_ZEROES),
        ("write-zeroes", WRITE_ZEROES),
        ("atomic", ATOMIC),
        ("rotational", ROTATIONAL),
    ];
}

/// What happens to new requests of a suspended device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum SuspendMode {
    /// They wait until the device is resumed.
    Normal = 0,
    /// They fail at once, with EIO.
    Error = 1,
}

impl SuspendMode {
    /// Every value, in order.
    pub const ALL: &'static [SuspendMode] = &[SuspendMode::Normal, SuspendMode::Error];

    /// The value of an attribute; `None` if this version does not know it.
    pub fn from_raw(raw: u32) -> Option<Self> {
        Self::ALL.get(raw as usize).copied()
    }

    /// The name in the spec.
    pub const fn name(self) -> &'static str {
        match self {
            SuspendMode::Normal => "normal",
            SuspendMode::Error => "error",
        }
    }
}

/// Commands and events.
pub mod cmd {
    /// Open a volume and add its block device. Returns when the device is usable, or fails with a
    /// message that says why it is not.
    pub const ATTACH: u8 = 1;
    /// Take a block device away and close its volume. Refused while the device is open, unless
    /// forced. A forced detach needs no network.
    pub const DETACH: u8 = 2;
    /// All that is known about one device, or about each of them; for a caller without
    /// CAP_SYS_ADMIN only index, name, state, lost-ms and suspend. A device that is too big for
    /// one message of a dump comes without its connections; ask for it alone to get them.
    pub const DEVICE_GET: u8 = 3;
    /// Change a device, in whatever state it is. Timeouts that are not named stay as they are.
    /// Nodes that are named take the place of those named before, and those that nodes told of
    /// stay behind them. Connections that are up stay where they are; a device that is lost, or
    /// being attached, goes to the first of the new nodes at once.
    pub const DEVICE_SET: u8 = 4;
    /// A block device was added.
    pub const ATTACHED: u8 = 5;
    /// A block device is gone.
    pub const DETACHED: u8 = 6;
    /// A connection was lost. Its requests are parked until it is back.
    pub const CONNECTION_LOST: u8 = 7;
    /// A lost connection is back and its parked requests were sent again.
    pub const CONNECTION_RECOVERED: u8 = 8;
    /// The loss timeout ran out, or the volume was taken away. I/O fails.
    pub const FAILED: u8 = 9;
    /// The volume has a new size and so has its block device.
    pub const RESIZED: u8 = 10;
    /// The node said that it is about to stop.
    pub const GOING_AWAY: u8 = 11;
    /// Writes that were acknowledged but not flushed may be lost, since the node lost its volatile
    /// state. The next flush fails.
    pub const DATA_AT_RISK: u8 = 12;
    /// From now on no new request goes to the node: it waits or fails, by the mode. What is in
    /// flight goes on. Of a suspended device it changes the mode.
    pub const SUSPEND: u8 = 13;
    /// End suspend. Requests that wait go to the node.
    pub const RESUME: u8 = 14;
    /// A device was suspended, or its mode was changed.
    pub const SUSPENDED: u8 = 15;
    /// A suspended device was resumed.
    pub const RESUMED: u8 = 16;
    /// The device has had no service for 5 seconds; sent again every 30 seconds until it has, or
    /// fails for good. Whoever knows more than the module may act: names of nodes may have other
    /// addresses now.
    pub const STILL_LOST: u8 = 17;
    /// The volume was shrunk, and the device does not follow: its requests wait until the volume
    /// is grown again, or somebody accepts the size.
    pub const SHRUNK: u8 = 18;
}

/// Names of the multicast groups.
pub mod group {
    /// Every event.
    pub const EVENTS: &str = "events";
}

/// Attribute types, one module for each set.
pub mod attr {
    /// The address of a storage node.
    pub mod node {
        /// IPv4 address. A node has either this or ipv6.
        pub const IPV4: u16 = 1;
        /// `ipv6`.
        pub const IPV6: u16 = 2;
        /// TCP port in host byte order. 9666 when absent.
        pub const PORT: u16 = 3;
        /// Interface index for a link-local IPv6 address.
        pub const SCOPE_ID: u16 = 4;
        /// The host name that was resolved to this address, for people. The module does not
        /// resolve names.
        pub const NAME: u16 = 5;
        /// The operator has not named it, another node told of it.
        pub const LEARNED: u16 = 6;
        /// The highest attribute type of this set.
        pub const MAX: u16 = 6;
    }

    /// Every time the module waits, in milliseconds, 24 days at most.
    pub mod timeouts {
        /// How long a request may stay unanswered on a live connection before that connection is
        /// given up and the request is sent again.
        pub const REQUEST: u16 = 1;
        /// For one try to connect, from the first SYN to the end of the handshake.
        pub const CONNECT: u16 = 2;
        /// After how much silence a heartbeat is sent.
        pub const HEARTBEAT_INTERVAL: u16 = 3;
        /// A connection on which nothing was heard for this time is given up. Longer than
        /// heartbeat-interval.
        pub const HEARTBEAT_TIMEOUT: u16 = 4;
        /// Time from the beginning of the first try to reconnect, which is made at once, to that
        /// of the second. It doubles with each try.
        pub const RECONNECT_DELAY_MIN: u16 = 5;
        /// The pause between tries grows up to this.
        pub const RECONNECT_DELAY_MAX: u16 = 6;
        /// How long a volume may stay lost before its I/O fails. 0 waits for ever: a restart of a
        /// node is never seen as an I/O error.
        pub const LOSS: u16 = 7;
        /// The highest attribute type of this set.
        pub const MAX: u16 = 7;
    }

    /// What the block device promises, from what the volume says. In bytes.
    pub mod limits {
        /// `logical-block-size`.
        pub const LOGICAL_BLOCK_SIZE: u16 = 1;
        /// `physical-block-size`.
        pub const PHYSICAL_BLOCK_SIZE: u16 = 2;
        /// Preferred smallest I/O.
        pub const IO_MIN: u16 = 3;
        /// Preferred I/O. 0 when there is none.
        pub const IO_OPT: u16 = 4;
        /// Longest read or write in one request.
        pub const IO_MAX: u16 = 5;
        /// `discard-granularity`.
        pub const DISCARD_GRANULARITY: u16 = 6;
        /// 0 when the volume cannot discard.
        pub const DISCARD_MAX: u16 = 7;
        /// 0 when the volume cannot write zeroes.
        pub const WRITE_ZEROES_MAX: u16 = 8;
        /// `atomic-unit-min`.
        pub const ATOMIC_UNIT_MIN: u16 = 9;
        /// 0 when the volume gives no guarantee against torn writes.
        pub const ATOMIC_UNIT_MAX: u16 = 10;
        /// An atomic write must not cross a multiple of this. 0 for none.
        pub const ATOMIC_BOUNDARY: u16 = 11;
        /// `abilities`.
        pub const ABILITIES: u16 = 12;
        /// The highest attribute type of this set.
        pub const MAX: u16 = 12;
    }

    /// One request in flight.
    pub mod request {
        /// The tag of the block layer.
        pub const TAG: u16 = 1;
        /// As on the wire.
        pub const COOKIE: u16 = 2;
        /// `op`.
        pub const OP: u16 = 3;
        /// `state`.
        pub const STATE: u16 = 4;
        /// In bytes.
        pub const OFFSET: u16 = 5;
        /// In bytes.
        pub const LENGTH: u16 = 6;
        /// Time in this state, in milliseconds.
        pub const AGE_MS: u16 = 7;
        /// Time until its connection is given up for its sake, in milliseconds. Absent unless the
        /// request is sent.
        pub const DEADLINE_MS: u16 = 8;
        /// The highest attribute type of this set.
        pub const MAX: u16 = 8;
    }

    /// Counters since attach.
    pub mod statistics {
        /// `reads`.
        pub const READS: u16 = 1;
        /// `writes`.
        pub const WRITES: u16 = 2;
        /// `flushes`.
        pub const FLUSHES: u16 = 3;
        /// `discards`.
        pub const DISCARDS: u16 = 4;
        /// `write-zeroes`.
        pub const WRITE_ZEROES: u16 = 5;
        /// `read-bytes`.
        pub const READ_BYTES: u16 = 6;
        /// `written-bytes`.
        pub const WRITTEN_BYTES: u16 = 7;
        /// Requests that ended with an error.
        pub const ERRORS: u16 = 8;
        /// Requests sent again after a lost connection.
        pub const RESENT: u16 = 9;
        /// Requests whose timeout ran out.
        pub const TIMEOUTS: u16 = 10;
        /// Calls that gave data to the socket. A batch of requests is one.
        pub const SENDS: u16 = 11;
        /// Bytes that were acknowledged and not flushed when the node lost its volatile state.
        /// Only for the device as a whole.
        pub const LOST_BYTES: u16 = 12;
        /// The highest attribute type of this set.
        pub const MAX: u16 = 12;
    }

    /// One TCP connection of a session. The hardware queue of the block device with the same index
    /// belongs to it.
    pub mod connection {
        /// `index`.
        pub const INDEX: u16 = 1;
        /// `state`.
        pub const STATE: u16 = 2;
        /// Time in this state, in milliseconds.
        pub const SINCE_MS: u16 = 3;
        /// The node at the other end, or the next to be tried.
        pub const NODE: u16 = 4;
        /// Counts the times that this connection was made.
        pub const EPOCH: u16 = 5;
        /// Requests that hold a slot of this connection, parked ones included.
        pub const IN_FLIGHT: u16 = 6;
        /// `parked`.
        pub const PARKED: u16 = 7;
        /// Times this connection was lost.
        pub const LOSSES: u16 = 8;
        /// Why it was lost last.
        pub const LAST_CAUSE: u16 = 9;
        /// Absent when nothing is in flight.
        pub const OLDEST_REQUEST: u16 = 10;
        /// Time since something was received, in milliseconds.
        pub const SILENT_MS: u16 = 11;
        /// `statistics`.
        pub const STATISTICS: u16 = 12;
        /// Time until the next try to connect, in milliseconds. Absent unless the connection is
        /// waiting for it.
        pub const RETRY_MS: u16 = 13;
        /// Time until what goes on is given up, in milliseconds: the try to connect, or the
        /// connection if nothing is heard on it until then. Absent when neither counts.
        pub const DEADLINE_MS: u16 = 14;
        /// The highest attribute type of this set.
        pub const MAX: u16 = 14;
    }

    /// A block device and the session behind it.
    pub mod device {
        /// N of /dev/neonsanN. In an attach request the index wished for.
        pub const INDEX: u16 = 1;
        /// Name of the block device, as in neonsan0.
        pub const NAME: u16 = 2;
        /// The volume, pool/volume or pool/volume@snapshot.
        pub const VOLUME: u16 = 3;
        /// The nodes that serve the volume, the preferred one first.
        pub const NODE: u16 = 4;
        /// `mode`.
        pub const MODE: u16 = 5;
        /// Who holds the volume. The same for every attach of one host, across reboots. Not all
        /// zero.
        pub const HOST_ID: u16 = 6;
        /// The host's name for people, shown where the volume is refused to another host. None
        /// when absent.
        pub const HOST_NAME: u16 = 7;
        /// Identity of the volume, wherever it is served.
        pub const VOLUME_ID: u16 = 8;
        /// Number of connections. In an attach request 0 or absence leaves it to the node and the
        /// number of CPUs.
        pub const CONNECTIONS: u16 = 9;
        /// Requests in flight on each connection, at most.
        pub const QUEUE_DEPTH: u16 = 10;
        /// `timeouts`.
        pub const TIMEOUTS: u16 = 11;
        /// In an attach request those wished for, later those agreed on.
        pub const CHECKSUMS: u16 = 12;
        /// Attach: take the volume from the host that holds it; that host is fenced first. Detach:
        /// even when the device is open or its node does not answer; requests in flight fail.
        pub const FORCE: u16 = 13;
        /// `state`.
        pub const STATE: u16 = 14;
        /// Time without service, in milliseconds. 0 while there is service.
        pub const LOST_MS: u16 = 15;
        /// Identity of the session. With it a connection can join the session.
        pub const SESSION_ID: u16 = 16;
        /// Grows each time the session is opened anew.
        pub const GENERATION: u16 = 17;
        /// Identity of the volatile state of the node.
        pub const BOOT_ID: u16 = 18;
        /// In bytes.
        pub const SIZE: u16 = 19;
        /// `limits`.
        pub const LIMITS: u16 = 20;
        /// How many hold the block device open, mounts included.
        pub const OPEN_COUNT: u16 = 21;
        /// `connection`.
        pub const CONNECTION: u16 = 22;
        /// `statistics`.
        pub const STATISTICS: u16 = 23;
        /// The connection that an event is about.
        pub const CONNECTION_INDEX: u16 = 24;
        /// What happened, for people.
        pub const MESSAGE: u16 = 25;
        /// Time until I/O begins to fail unless the volume comes back, in milliseconds. Absent
        /// while it has service, and when that time is for ever.
        pub const LOSS_DEADLINE_MS: u16 = 26;
        /// What happens to new requests. Absent unless the device is suspended; in a suspend
        /// request absence means normal.
        pub const SUSPEND: u16 = 27;
        /// Bytes that were acknowledged and not flushed when the node lost its volatile state,
        /// until somebody clears it. They may hold older data.
        pub const AT_RISK_BYTES: u16 = 28;
        /// Somebody has taken note of at-risk-bytes.
        pub const CLEAR_AT_RISK: u16 = 29;
        /// Why I/O fails, for people. Absent unless it does.
        pub const FAILURE: u16 = 30;
        /// The host from which attach took the volume, as the node named it, for people. Absent
        /// when it took it from nobody.
        pub const FENCED: u16 = 31;
        /// Number of poll queues: connections for requests whose submitter asks for the result
        /// instead of being told. In an attach request they come on top of connections; later they
        /// are the last of those.
        pub const POLL_QUEUES: u16 = 32;
        /// Identity of the host's boot, as on the wire (8 bytes, little-endian): another one after
        /// each start of the kernel. Without force, what a session of the host has left is taken
        /// over at once by another boot only. All zero, or absent: not said.
        pub const HOST_BOOT: u16 = 33;
        /// The size in bytes to which the volume was shrunk. Absent unless the device waits for
        /// somebody to decide on that: its requests wait meanwhile, as when it is lost.
        pub const SHRUNK_SIZE: u16 = 34;
        /// Let the device shrink to this size in bytes, which must be the shrunk-size.
        pub const ACCEPT_SIZE: u16 = 35;
        /// The highest attribute type of this set.
        pub const MAX: u16 = 35;
    }
}
