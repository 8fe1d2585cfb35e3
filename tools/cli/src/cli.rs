// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The command line: every command, option and its help.
// The comments here are the text of --help, where brackets stand for what may be left out.
#![allow(rustdoc::broken_intra_doc_links)]

use crate::config::Timeouts;
use crate::units::{parse_api_timeout_ms, parse_duration_ms, parse_size};
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Deserialize;
use std::path::PathBuf;

const TARGETS: &str = "\
Targets:
  neonsan://host[:port]/pool/volume[@snapshot]
      host is a name, an IPv4 address, or an IPv6 address in brackets. Several
      hosts that serve the volume are separated by commas: neonsan://a,b:9666/p/v
  pool/volume[@snapshot]
      with the nodes from --node or from the config file";

const EXIT_CODES: &str = "\
Exit codes:
   0  done                             7  busy, held by another, or there already
   1  another error                    8  no node answers at the address
   2  wrong usage                      9  not a NeonSAN node, or none that fits
   3  bad config file                 10  refused: size, limit or ability
   4  no permission                   11  no space
   5  kernel module not loaded        12  stored data is damaged
   6  no such device or volume        13  not at this moment: try again
                                      130  interrupted";

/// Options of every command.
#[derive(Args, Clone, Debug)]
pub struct Common {
    /// Print JSON, in the forms that Documentation/cli-json.rst describes
    #[arg(long, global = true)]
    pub json: bool,

    /// Read defaults from FILE [default: /etc/neonsan/neonsan.toml, if it exists]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Attach NeonSAN volumes as block devices, and manage volumes
#[derive(Parser, Debug)]
#[command(name = "neonsan", version, after_help = EXIT_CODES, max_term_width = 100)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub struct Neonsan {
    /// Options of every command.
    #[command(flatten)]
    pub common: Common,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Attach a volume as a block device
#[derive(Parser, Debug)]
#[command(name = "neonsan-attach", version, max_term_width = 100)]
#[command(after_help = TARGETS, after_long_help = TARGETS)]
pub struct NeonsanAttach {
    /// Options of every command.
    #[command(flatten)]
    pub common: Common,

    /// Options of attach.
    #[command(flatten)]
    pub attach: Attach,
}

/// Take a block device away and close its volume
#[derive(Parser, Debug)]
#[command(name = "neonsan-detach", version, max_term_width = 100)]
pub struct NeonsanDetach {
    /// Options of every command.
    #[command(flatten)]
    pub common: Common,

    /// Options of detach.
    #[command(flatten)]
    pub detach: Detach,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Attach a volume as a block device and print its path
    #[command(after_help = TARGETS)]
    Attach(Attach),
    /// Take a block device away and close its volume
    Detach(Detach),
    /// List the attached devices
    List,
    /// Show all that is known about a device
    Info(Info),
    /// Change the timeouts or the nodes of a device that is in use
    Set(Set),
    /// Let no new I/O of a device go to its node, until resume
    Suspend(Suspend),
    /// End suspend: I/O goes to the node again
    Resume(Resume),
    /// Print what happens to devices, as it happens
    Watch(Watch),
    /// Resolve the names of nodes again where a device is lost, and give it their new addresses
    Resolve(Resolve),
    /// Create, list, change, delete, import, export, snapshot and clone volumes on a node
    Volume(Volume),
    /// Show the nodes that serve the same volumes
    Node(Node),
    /// Look at what this host needs for its volumes, and say what is wrong and what to do
    Doctor(Doctor),
    /// Print what can follow on a command line, for the completion of shells
    #[command(name = "__complete", hide = true, disable_help_flag = true)]
    Complete(Complete),
}

/// Options of doctor.
#[derive(Args, Debug)]
pub struct Doctor {
    /// A node that this host is to reach, beside those of the config file, of units and of devices;
    /// may be given several times
    #[arg(long = "node", value_name = "HOST[:PORT]")]
    pub nodes: Vec<String>,

    /// Look at the files below DIRECTORY instead: for tests.
    #[arg(long, value_name = "DIRECTORY", hide = true)]
    pub root: Option<PathBuf>,
}

/// Words of a command line.
#[derive(Args, Debug)]
pub struct Complete {
    /// The program's name and the words up to the cursor
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub words: Vec<String>,
}

/// How a volume is opened.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// This host alone reads and writes; another host is refused
    Exclusive,
    /// Several hosts read and write, and keep order among themselves
    Shared,
    /// This host only reads
    ReadOnly,
}

/// Options of attach.
#[derive(Args, Debug)]
pub struct Attach {
    /// The volume: neonsan://host[:port]/pool/volume[@snapshot], or pool/volume
    pub target: String,

    /// A node that serves the volume; may be given several times, the preferred one first
    #[arg(long = "node", value_name = "HOST[:PORT]")]
    pub nodes: Vec<String>,

    /// How the volume is opened [default: exclusive; read-only for a snapshot]
    #[arg(long, value_enum)]
    pub mode: Option<Mode>,

    /// Same as --mode read-only
    #[arg(long, short = 'r', conflicts_with = "mode")]
    pub read_only: bool,

    /// Take the volume from the host that holds it; that host is fenced first
    #[arg(long)]
    pub force: bool,

    /// Attach as /dev/neonsanN [default: the lowest free number]
    #[arg(long, value_name = "N")]
    pub index: Option<u32>,

    /// Number of connections [default: one for each CPU, up to what the node allows]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub connections: Option<u32>,

    /// Connections more, for I/O that is polled for (io_uring with IOPOLL) [default: 0]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=63))]
    pub poll_queues: Option<u32>,

    /// Requests in flight on each connection [default: what the node allows, up to 128]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub queue_depth: Option<u32>,

    /// Protect every message header on the wire with CRC32C
    #[arg(long)]
    pub header_crc: bool,

    /// Protect headers and data on the wire with CRC32C
    #[arg(long)]
    pub payload_crc: bool,

    /// Identity of this host, which holds the volume [default: made from /etc/machine-id and the firmware's UUID]
    #[arg(long, value_name = "UUID")]
    pub host_id: Option<String>,

    /// Timeouts.
    #[command(flatten)]
    pub timeouts: TimeoutArgs,
}

/// The timeouts, each with a unit as in 500ms, 5s or 2m.
#[derive(Args, Debug)]
#[command(next_help_heading = "Timeouts (as in 500ms, 5s, 2m)")]
pub struct TimeoutArgs {
    /// Give a connection up when one request stays unanswered on it this long; the request is then
    /// sent again, it does not fail
    #[arg(long, value_name = "TIME", value_parser = parse_duration_ms)]
    pub request_timeout: Option<u32>,

    /// For one try to connect, handshake included
    #[arg(long, value_name = "TIME", value_parser = parse_duration_ms)]
    pub connect_timeout: Option<u32>,

    /// Send a heartbeat on a connection that was silent this long
    #[arg(long, value_name = "TIME", value_parser = parse_duration_ms)]
    pub heartbeat_interval: Option<u32>,

    /// Give a connection up when nothing was heard on it this long
    #[arg(long, value_name = "TIME", value_parser = parse_duration_ms)]
    pub heartbeat_timeout: Option<u32>,

    /// Pause before the second try to reconnect; doubles with each try
    #[arg(long, value_name = "TIME", value_parser = parse_duration_ms)]
    pub reconnect_delay_min: Option<u32>,

    /// The longest pause between tries to reconnect
    #[arg(long, value_name = "TIME", value_parser = parse_duration_ms)]
    pub reconnect_delay_max: Option<u32>,

    /// Fail I/O when the volume stays lost this long; 0 waits for ever
    #[arg(long, value_name = "TIME", value_parser = parse_duration_ms)]
    pub loss_timeout: Option<u32>,
}

impl TimeoutArgs {
    /// The same without clap.
    pub fn timeouts(&self) -> Timeouts {
        Timeouts {
            request: self.request_timeout,
            connect: self.connect_timeout,
            heartbeat_interval: self.heartbeat_interval,
            heartbeat_timeout: self.heartbeat_timeout,
            reconnect_delay_min: self.reconnect_delay_min,
            reconnect_delay_max: self.reconnect_delay_max,
            loss: self.loss_timeout,
        }
    }
}

/// Options of detach.
#[derive(Args, Debug)]
pub struct Detach {
    /// The devices: /dev/neonsan0, neonsan0, 0, or the name of an attached volume
    #[arg(required_unless_present = "all", value_name = "DEVICE")]
    pub devices: Vec<String>,

    /// Detach every device
    #[arg(long, conflicts_with = "devices")]
    pub all: bool,

    /// Detach even if the device is open or its node does not answer; its I/O fails. Needs no
    /// network
    #[arg(long, short)]
    pub force: bool,

    /// While the device is open or busy, try again for this long, and then name who has it open
    /// (udev looks at each disk that a program has closed, for one); 0 does not wait
    #[arg(long, value_name = "TIME", value_parser = parse_duration_ms, default_value = "5s")]
    pub wait: u32,
}

/// Options of info.
#[derive(Args, Debug)]
pub struct Info {
    /// The device: /dev/neonsan0, neonsan0, 0, or the name of an attached volume
    pub device: String,

    /// Print the options with which QEMU uses the device as a disk
    #[arg(long, conflicts_with = "libvirt")]
    pub qemu: bool,

    /// Print the XML with which libvirt uses the device as a disk
    #[arg(long)]
    pub libvirt: bool,

    /// Name of the disk within the guest, for --libvirt
    #[arg(long, value_name = "NAME", default_value = "vda", requires = "libvirt")]
    pub target_dev: String,
}

/// What happens to new I/O of a suspended device.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum SuspendMode {
    /// It waits until the device is resumed
    Normal,
    /// It fails at once, with EIO
    Error,
}

/// Options of suspend.
#[derive(Args, Debug)]
pub struct Suspend {
    /// The device: /dev/neonsan0, neonsan0, 0, or the name of an attached volume
    pub device: String,

    /// What happens to new I/O; what is in flight goes on
    #[arg(long, value_enum, default_value = "normal")]
    pub mode: SuspendMode,
}

/// Options of resume.
#[derive(Args, Debug)]
pub struct Resume {
    /// The device: /dev/neonsan0, neonsan0, 0, or the name of an attached volume
    pub device: String,
}

/// Options of set.
#[derive(Args, Debug)]
pub struct Set {
    /// The device: /dev/neonsan0, neonsan0, 0, or the name of an attached volume
    #[arg(required_unless_present = "all")]
    pub device: Option<String>,

    /// Every device
    #[arg(long, conflicts_with = "device")]
    pub all: bool,

    /// A node that serves the volume from now on, in place of those named before; may be given
    /// several times, the preferred one first
    #[arg(long = "node", value_name = "HOST[:PORT]", conflicts_with = "all")]
    pub nodes: Vec<String>,

    /// Let a device follow a volume that was shrunk: what lies behind its new end is gone
    #[arg(long, conflicts_with = "all")]
    pub accept_size: bool,

    /// Stop showing that writes may be lost: somebody has seen to it
    #[arg(long)]
    pub clear_data_at_risk: bool,

    /// Timeouts; those not named stay as they are.
    #[command(flatten)]
    pub timeouts: TimeoutArgs,
}

/// Options of watch.
#[derive(Args, Debug)]
pub struct Watch {
    /// Only events of this device: /dev/neonsan0, neonsan0 or 0
    pub device: Option<String>,

    /// Stop after N events
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
}

/// Options of resolve.
#[derive(Args, Debug)]
pub struct Resolve {
    /// Look at the devices that are lost now and end, instead of waiting for more
    #[arg(long)]
    pub once: bool,
}

/// Commands on volumes, and where the node is asked about them.
#[derive(Args, Debug)]
pub struct Volume {
    /// Control API of the node: http://host[:port] or unix:/path [default: port 9667 of the
    /// target's host, or that of the config file; of this machine /run/neonsan/control.sock, or
    /// else port 9667]
    #[arg(long, global = true, value_name = "ADDRESS")]
    pub api: Option<String>,

    /// Give up when the node gives no sign of life for this long, from 1s to 590s [default: 10s, or
    /// that of the config file]
    #[arg(long, global = true, value_name = "TIME", value_parser = parse_api_timeout_ms)]
    pub api_timeout: Option<u32>,

    /// What to do.
    #[command(subcommand)]
    pub command: VolumeCommand,
}

/// Commands on volumes.
#[derive(Subcommand, Debug)]
pub enum VolumeCommand {
    /// Create a volume
    Create(VolumeCreate),
    /// List the volumes of a node
    List(VolumeList),
    /// Show all that a node knows about a volume
    Info(VolumeInfo),
    /// Change the size of a volume; devices that have it attached follow
    Resize(VolumeResize),
    /// Delete a volume and its data
    Delete(VolumeDelete),
    /// Write a file, such as a disk image, into a volume
    Import(VolumeImport),
    /// Write the contents of a volume or snapshot into a file
    Export(VolumeExport),
    /// Keep the content of a volume as it is at one moment
    Snapshot(VolumeSnapshot),
    /// Create a volume with the content of a snapshot
    Clone(VolumeClone),
    /// Copy what a clone shares with the snapshot it was made from, so that it needs that no more
    Flatten(VolumeFlatten),
    /// Give a copy of a volume an identity of its own
    Adopt(VolumeAdopt),
}

/// Commands on snapshots.
#[derive(Args, Debug)]
pub struct VolumeSnapshot {
    /// What to do.
    #[command(subcommand)]
    pub command: SnapshotCommand,
}

/// Commands on snapshots.
#[derive(Subcommand, Debug)]
pub enum SnapshotCommand {
    /// Create a snapshot of a volume, in use or not
    Create(SnapshotTarget),
    /// List the snapshots of a volume, the oldest first
    List(SnapshotList),
    /// Show a snapshot, its clones and who reads it
    Info(SnapshotTarget),
    /// Delete a snapshot that nobody reads and no clone needs
    Delete(SnapshotChange),
    /// Give a volume that nobody holds the content and size of its snapshot
    Rollback(SnapshotChange),
}

/// A snapshot.
#[derive(Args, Debug)]
pub struct SnapshotTarget {
    /// neonsan://host/pool/volume@snapshot, or pool/volume@snapshot
    pub target: String,
}

/// Options of volume snapshot list.
#[derive(Args, Debug)]
pub struct SnapshotList {
    /// neonsan://host/pool/volume, or pool/volume
    pub target: String,
}

/// Options of what destroys data.
#[derive(Args, Debug)]
pub struct SnapshotChange {
    /// neonsan://host/pool/volume@snapshot, or pool/volume@snapshot
    pub target: String,

    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,
}

/// Options of volume clone.
#[derive(Args, Debug)]
pub struct VolumeClone {
    /// The snapshot: neonsan://host/pool/volume@snapshot, or pool/volume@snapshot
    pub target: String,

    /// The new volume: pool/volume. It is made on the same node and engine
    pub name: String,
}

/// Options of volume flatten.
#[derive(Args, Debug)]
pub struct VolumeFlatten {
    /// neonsan://host/pool/volume, or pool/volume
    pub target: String,
}

/// Options of volume adopt.
#[derive(Args, Debug)]
pub struct VolumeAdopt {
    /// The copy, not the original: neonsan://host/pool/volume, or pool/volume
    pub target: String,
}

/// Commands on nodes, and which node is asked.
#[derive(Args, Debug)]
pub struct Node {
    /// Control API of a node: http://host[:port] or unix:/path [default: that of the config file,
    /// or of this machine /run/neonsan/control.sock, or else port 9667]
    #[arg(long, global = true, value_name = "ADDRESS")]
    pub api: Option<String>,

    /// Give up when the node gives no sign of life for this long, from 1s to 590s [default: 10s, or
    /// that of the config file]
    #[arg(long, global = true, value_name = "TIME", value_parser = parse_api_timeout_ms)]
    pub api_timeout: Option<u32>,

    /// What to do.
    #[command(subcommand)]
    pub command: NodeCommand,
}

/// Commands on nodes.
#[derive(Subcommand, Debug)]
pub enum NodeCommand {
    /// List the node and those that have volumes in common with it
    List,
    /// Show how the node and its engines are; exit status 1 if something is wrong
    Health,
}

/// How the nodes are reached that hold a volume's data.
#[derive(Args, Debug)]
pub struct Transfer {
    /// A node that serves the volume; may be given several times, the preferred one first
    #[arg(long = "node", value_name = "HOST[:PORT]")]
    pub nodes: Vec<String>,

    /// Number of connections
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub connections: u16,
}

/// What an imported file is taken for.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageFormat {
    /// A raw disk image, whatever it looks like
    Raw,
}

/// Options of volume import.
#[derive(Args, Debug)]
pub struct VolumeImport {
    /// neonsan://host/pool/volume, or pool/volume
    pub target: String,

    /// The file: a raw disk image, or a block device that nobody uses; - is standard input. Behind its
    /// end the volume stays as it is
    pub file: PathBuf,

    /// Take the file for what is said here. Without, what looks like another format (qcow2, VMDK,
    /// VHD, compressed, …) is refused
    #[arg(long, value_enum)]
    pub format: Option<ImageFormat>,

    /// Create the volume first, as large as the file; if the import fails it is deleted again
    #[arg(long)]
    pub create: bool,

    /// Read a block device that is in use, mounted for one: what is written meanwhile may tear the image
    #[arg(long, short)]
    pub force: bool,

    /// Size for --create, as in 20G [default: that of the file]
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "create")]
    pub size: Option<u64>,

    /// Logical block size for --create: 512, 1024, 2048 or 4096 [default: 512]
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "create")]
    pub block_size: Option<u64>,

    /// The nodes.
    #[command(flatten)]
    pub transfer: Transfer,
}

/// Options of volume export.
#[derive(Args, Debug)]
pub struct VolumeExport {
    /// neonsan://host/pool/volume[@snapshot], or pool/volume[@snapshot]
    pub target: String,

    /// The file to write, a raw disk image, or a block device that nobody uses; - is standard output.
    /// In a file zeroes become holes
    pub file: PathBuf,

    /// Overwrite the file if it exists
    #[arg(long, short)]
    pub force: bool,

    /// The nodes.
    #[command(flatten)]
    pub transfer: Transfer,
}

/// Options of volume create.
#[derive(Args, Debug)]
pub struct VolumeCreate {
    /// neonsan://host/pool/volume, or pool/volume
    pub target: String,

    /// Size, as in 10G
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub size: u64,

    /// Logical block size: 512, 1024, 2048 or 4096
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "512")]
    pub block_size: u64,

    /// Physical block size: what a write never tears [default: what the engine guarantees]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub physical_block_size: Option<u64>,

    /// Engine of the node that stores it [default: the node's default]
    #[arg(long)]
    pub engine: Option<String>,
}

/// Options of volume list.
#[derive(Args, Debug)]
pub struct VolumeList {
    /// Only the volumes of this pool
    pub pool: Option<String>,
}

/// Options of volume info.
#[derive(Args, Debug)]
pub struct VolumeInfo {
    /// neonsan://host/pool/volume, or pool/volume
    pub target: String,
}

/// Options of volume resize.
#[derive(Args, Debug)]
pub struct VolumeResize {
    /// neonsan://host/pool/volume, or pool/volume
    pub target: String,

    /// The new size, as in 20G
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub size: u64,

    /// Allow a smaller size, which destroys what lies behind it
    #[arg(long)]
    pub allow_shrink: bool,
}

/// Options of volume delete.
#[derive(Args, Debug)]
pub struct VolumeDelete {
    /// neonsan://host/pool/volume, or pool/volume
    pub target: String,

    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn definitions_are_sound() {
        super::Neonsan::command().debug_assert();
        super::NeonsanAttach::command().debug_assert();
        super::NeonsanDetach::command().debug_assert();
    }
}
