// SPDX-License-Identifier: GPL-2.0 OR MIT

//! `neonsan volume import`: a file's bytes into a volume, over the data protocol. Zeroes are not sent
//! where that can be helped.

use super::transfer::{
    attach, client_config, explain, identity, joined, progress_bar, report, shown, thread, Sums,
    PIECES,
};
use super::volume::{
    client as control_client, explain as explain_api, explain_change, noticed, parse_block_size,
    runtime, waiting_for, warn as warn_of, LONG_TIMEOUT,
};
use crate::cli::{Common, VolumeImport};
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::format::{Format, HEAD_BYTES, TAIL_BYTES};
use crate::image::{file_error, in_use};
use crate::output::{note, warn};
use crate::partitions::Table;
use crate::signals::Signals;
use crate::sparse::{Piece, Source, PIECE_BYTES};
use crate::target::Target;
use crate::units::show_size;
use bytes::Bytes;
use indicatif::ProgressBar;
use neonsan_api::{ApiError, ClientError, ErrorCode, VolumeCreate, VolumeName};
use neonsan_client::Client;
use neonsan_proto::{Capabilities, Mode};
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::cell::Cell;
use std::fs::File;
use std::io::{IsTerminal as _, Seek as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Zeroes written at a time at most, so that progress is seen.
const HOLE_BYTES: u64 = 64 << 20;

/// Pieces that were read and wait to be sent.
const READ_AHEAD: usize = 4;

/// How long a node may take to let go of a volume that is to be deleted: it learns by the connection
/// that its session has ended.
const RELEASE: Duration = Duration::from_secs(5);

const STDIN: &str = "standard input";

/// Writes a file into a volume.
pub fn run(common: &Common, config: &Config, args: &VolumeImport, api: Option<&str>) -> Result<()> {
    let target: Target = args.target.parse()?;
    if target.volume.contains('@') {
        let message = format!("{} is a snapshot, which can only be read", target.volume);
        return Err(Error::new(Kind::Usage, message).with_hint("name a volume"));
    }
    let client_config = client_config(config, &target, &args.transfer, Mode::Exclusive)?;
    let source = open(&args.file, args.force)?;
    check_format(&source, args)?;
    let table = Table::find(&|at, length| source.look(at, length));
    let create = match args.create {
        true => Some(creation(&target, &source, table, args)?),
        false => None,
    };
    let control = control_client(api, config, Some(&target))?;
    let bar = progress_bar(common, source.size());
    let sums = runtime()?.block_on(async {
        // From here on a signal does not end the process before it has tidied up.
        let mut signals = Signals::new()?;
        let created = match &create {
            None => None,
            Some(create) => {
                Some(Created::make(&mut signals, &control, create, &args.target).await?)
            }
        };
        let result = async {
            let client = attach(&mut signals, client_config).await?;
            let result = async {
                if let Some(created) = &created {
                    created.check(&client)?;
                }
                check_table(&client, &source, table, args);
                let (fresh, size) = (created.is_some(), source.size());
                let begun = Cell::new(false);
                let sending = send(&client, source, &args.file, fresh, &bar, &begun);
                let sums =
                    signals
                        .or(sending)
                        .await
                        .map_err(|error| match begun.get() && !fresh {
                            true => error.with_more(format!(
                            "{} does not have the whole image, and what was in it is overwritten \
                             in part: import again",
                            target.volume
                        )),
                            false => error,
                        })?;
                // Of a pipe it is known only now.
                if size.is_none() {
                    check_whole(&client, sums.data + sums.zeroes, table, args);
                }
                Ok(sums)
            };
            let result = result.await;
            client.detach().await;
            result
        };
        match (result.await, created) {
            (Err(error), Some(created)) => Err(created.remove(&mut signals, error).await),
            (result, _) => result,
        }
    })?;
    bar.finish_and_clear();
    let size = sums.data + sums.zeroes;
    report(common, &target, &args.file, size, sums, false)
}

/// Opens what is to be imported. Reads the beginning of a pipe. `force`: a device that is in use, too.
fn open(path: &Path, force: bool) -> Result<Source> {
    let error = |error: &std::io::Error| match path.as_os_str() == "-" {
        true => Error::new(Kind::Other, format!("{STDIN}: {error}")),
        false => file_error(path, error),
    };
    let file = if path.as_os_str() == "-" {
        let stdin = std::io::stdin();
        if stdin.is_terminal() {
            let message = "standard input is a terminal, which has no image";
            return Err(Error::new(Kind::Usage, message)
                .with_hint("name a file, or let a program write into this one: … | neonsan volume import TARGET -"));
        }
        // Not by the buffer of std: what that had read would be lost.
        File::from(stdin.as_fd().try_clone_to_owned().map_err(|e| error(&e))?)
    } else {
        match open_unused(path) {
            Err(e) if Errno::from_io_error(&e) == Some(Errno::BUSY) => {
                let in_use = in_use(path);
                if !force {
                    return Err(in_use.with_hint(
                        "an image of it would mix states of different moments: unmount it, or import a \
                         snapshot of it; --force reads it as it is; `lsblk` shows more",
                    ));
                }
                warn(&format!(
                    "{}; the image may mix states of different moments",
                    in_use.message()
                ));
                File::open(path).map_err(|e| error(&e))?
            }
            result => result.map_err(|e| error(&e))?,
        }
    };
    let kind = file.metadata().map_err(|e| error(&e))?.file_type();
    let what = match () {
        () if kind.is_dir() => "a directory",
        () if kind.is_char_device() => "a character device",
        // What a program before has read of standard input is not to be read again.
        () if path.as_os_str() == "-" && (&file).stream_position().is_ok_and(|at| at > 0) => {
            return Source::stream(file).map_err(|e| error(&e));
        }
        () => return Source::new(file).map_err(|e| error(&e)),
    };
    let message = format!("{} is {what}", shown(path, STDIN));
    Err(Error::new(Kind::Usage, message)
        .with_hint("an image is read from a regular file, a block device, or a pipe"))
}

/// Opens a file. A block device is held alone as long as it is read, as export does: EBUSY says that it is
/// mounted, is swap, or is a part of another device.
fn open_unused(path: &Path) -> std::io::Result<File> {
    let is_device = std::fs::metadata(path)?.file_type().is_block_device();
    // Without O_CREAT it has a meaning for block devices alone.
    let flags = if is_device {
        OFlags::EXCL
    } else {
        OFlags::empty()
    };
    let mut options = File::options();
    options
        .read(true)
        .custom_flags(flags.bits() as i32)
        .open(path)
}

/// Refuses what is no raw image, unless somebody insists; and what is nothing.
fn check_format(source: &Source, args: &VolumeImport) -> Result<()> {
    let name = shown(&args.file, STDIN);
    if source.size() == Some(0) {
        let message = format!("{name} is empty: there is nothing to import");
        return Err(Error::new(Kind::Refused, message).with_hint(
            "if a program was to write it, see whether that has failed; an empty volume is made by \
             `neonsan volume create`",
        ));
    }
    if args.format.is_some() {
        return Ok(());
    }
    // What is shorter than the head is looked at as far as it goes.
    let head = source.size().unwrap_or(u64::MAX).min(HEAD_BYTES as u64);
    let head = source.look(0, head as usize).unwrap_or_default();
    let tail = source.tail(TAIL_BYTES).unwrap_or_default();
    let Some(format) = Format::of(&head, &tail) else {
        return Ok(());
    };
    let file = (args.file.as_os_str() != "-").then_some(args.file.as_path());
    let message = format!("{name} is no raw image: it is {}", format.name());
    Err(Error::new(Kind::Refused, message).with_hint(format.advice(file, &args.target)))
}

/// The volume to be made for an image.
fn creation(
    target: &Target,
    source: &Source,
    table: Option<Table>,
    args: &VolumeImport,
) -> Result<VolumeCreate> {
    let block_size = args.block_size.unwrap_or(512);
    let name = shown(&args.file, STDIN);
    if let Some(table) = table.filter(|table| !table.fits(block_size, source.size())) {
        let (kind, made_for) = (table.kind, table.made_for());
        let message = format!(
            "{name} has a partition table ({kind}) for blocks of {made_for} bytes: on a volume with \
             blocks of {block_size} its partitions are not found"
        );
        if args.format.is_none() {
            return Err(Error::new(Kind::Refused, message).with_hint(format!(
                "create the volume with --block-size {made_for}; --format raw writes it as it is"
            )));
        }
        warn(&message);
    }
    let size = match (args.size, source.size()) {
        (Some(size), Some(has)) if size < has => {
            let message = format!(
                "{name} has {} and does not fit a volume of {}",
                show_size(has),
                show_size(size)
            );
            return Err(Error::new(Kind::Refused, message).with_hint("make --size larger"));
        }
        (Some(size), _) => size,
        // What the last block has more reads as zeroes.
        (None, Some(has)) => has.next_multiple_of(block_size.max(512)),
        (None, None) => {
            let message = format!("how much will come from {name} is not known beforehand");
            return Err(Error::new(Kind::Usage, message)
                .with_hint("say with --size how large the volume is to be, as in --size 20G"));
        }
    };
    Ok(VolumeCreate {
        name: target
            .volume
            .parse()
            .map_err(|error| Error::new(Kind::Usage, format!("'{}': {error}", target.volume)))?,
        size_bytes: size,
        logical_block_size_bytes: parse_block_size(block_size)?,
        physical_block_size_bytes: None,
        engine: None,
    })
}

/// Says what is wrong with a partition table for this volume: nothing that would keep anybody from
/// importing it, since a person may want to put it right later.
fn check_table(client: &Client, source: &Source, table: Option<Table>, args: &VolumeImport) {
    let Some(table) = table else { return };
    let geometry = client.geometry();
    let block_size = u64::from(geometry.logical_block_size.get());
    let (room, kind) = (geometry.size_bytes.get(), table.kind);
    let name = shown(&args.file, STDIN);
    if !table.fits(block_size, source.size()) {
        // Of a new volume it has been said already.
        if !args.create {
            let made_for = table.made_for();
            warn(&format!(
                "{name} has a partition table ({kind}) for blocks of {made_for} bytes, and the volume \
                 has blocks of {block_size}: its partitions will not be found; import it into a volume \
                 made with --block-size {made_for}"
            ));
        }
        return;
    }
    let end = table.end_bytes(block_size);
    if end > room {
        warn(&format!(
            "the partition table ({kind}) of {name} reaches to {end} bytes, and the volume has {room}: \
             the image is not whole, or the volume is too small"
        ));
        return;
    }
    if let Some(size) = source.size() {
        check_whole(client, size, Some(table), args);
    }
    if kind == "GPT" && end < room {
        warn(&format!(
            "the volume is larger than the disk of which {name} is an image: the copy of the partition \
             table (GPT) is not at its end; once attached, `sfdisk --relocate gpt-bak-std \
             /dev/neonsanN` or `sgdisk -e /dev/neonsanN` puts it there"
        ));
    }
}

/// Says that an image is cut off: its partition table describes more than has come, as of a download that
/// was broken off, or of a pipe whose program has failed, which ends like any other.
fn check_whole(client: &Client, size: u64, table: Option<Table>, args: &VolumeImport) {
    let geometry = client.geometry();
    let block_size = u64::from(geometry.logical_block_size.get());
    let Some(table) = table.filter(|table| table.fits(block_size, Some(size))) else {
        return;
    };
    let end = table.end_bytes(block_size);
    // What reaches beyond the volume has been told of.
    if end > size && end <= geometry.size_bytes.get() {
        warn(&format!(
            "the partition table ({}) of {} reaches to {end} bytes, and {size} were there: the image is \
             not whole; if it came from a pipe, see whether the program that wrote it has failed",
            table.kind,
            shown(&args.file, STDIN),
        ));
    }
}

/// A volume that was made for an import, and is to go if that fails.
struct Created<'a> {
    control: &'a neonsan_api::Client,
    name: &'a VolumeName,
    id: String,
    /// As a person named it.
    target: &'a str,
}

impl<'a> Created<'a> {
    /// Makes it. After a signal the node's answer is waited for all the same, until another one comes: only
    /// it says whether there is a volume now, which is to go again.
    async fn make(
        signals: &mut Signals,
        control: &'a neonsan_api::Client,
        create: &'a VolumeCreate,
        target: &'a str,
    ) -> Result<Self> {
        let look = format!("`neonsan volume info {target}` shows the volume");
        let what = || format!("{}; Ctrl-C ends that", waiting_for(control));
        let creating = noticed(control.create_volume(create), what);
        tokio::pin!(creating);
        let (created, interrupted) = match signals.or(async { Ok((&mut creating).await) }).await {
            Ok(created) => (created, None),
            Err(interrupted) => {
                note(&format!(
                    "{}, so that a volume that it has created is deleted again; another signal (Ctrl-C) \
                     ends that at once",
                    waiting_for(control)
                ));
                match signals.or(async { Ok(creating.await) }).await {
                    Ok(created) => (created, Some(interrupted)),
                    Err(interrupted) => {
                        return Err(interrupted.with_more(format!(
                            "whether the node creates the volume all the same is seen when it answers: \
                             {look}"
                        )))
                    }
                }
            }
        };
        let volume = created.map_err(|error| explain_change(error, &look))?;
        warn_of(&volume);
        let created = Created {
            control,
            name: &create.name,
            id: volume.id,
            target,
        };
        match interrupted {
            None => Ok(created),
            Some(interrupted) => Err(created.remove(signals, interrupted).await),
        }
    }

    /// Refuses to write into a volume that is not the one which was created: the control API and the
    /// data protocol may have been asked of two nodes, each with a volume of this name.
    fn check(&self, client: &Client) -> Result<()> {
        let (opened, id) = (identity(client), &self.id);
        if opened == *id {
            return Ok(());
        }
        let message = format!(
            "the volume {} that was created has the identity {id}, the one that the nodes of the data \
             protocol serve has {opened}: nothing was written",
            self.name
        );
        Err(Error::new(Kind::Refused, message)
            .with_hint("name one node for both with --api and --node"))
    }

    /// Deletes it after a failure. Returns the failure, and what has become of the volume.
    async fn remove(&self, signals: &mut Signals, error: Error) -> Error {
        let again = format!("neonsan volume delete {}", self.target);
        let what = || {
            format!(
                "{}, to delete the volume that was created; Ctrl-C ends that, and leaves it",
                waiting_for(self.control)
            )
        };
        let deleting = noticed(self.delete(), what);
        let deleted = signals.or(async { deleting.await.map_err(explain_api) });
        let what = match deleted.await {
            Ok(()) => "the volume that was created for it is deleted again".to_owned(),
            Err(why) => format!(
                "the volume {} was created for it, is not whole, and could not be deleted again ({}): \
                 {again}",
                self.name,
                why.message()
            ),
        };
        error.with_more(what)
    }

    async fn delete(&self) -> std::result::Result<(), ClientError> {
        let control = self.control.clone().with_timeout(LONG_TIMEOUT);
        let end = Instant::now() + RELEASE;
        loop {
            // Never another one that has come to have its name.
            let found = match control.volume(self.name).await {
                Ok(volume) => volume,
                Err(ClientError::Refused(error)) if error.code == ErrorCode::NotFound => {
                    return Ok(())
                }
                Err(error) => return Err(error),
            };
            if found.id != self.id {
                let error = ApiError::new(ErrorCode::Conflict, "another volume has its name now");
                return Err(ClientError::Refused(error));
            }
            match control.delete_volume(self.name).await {
                Err(ClientError::Refused(error))
                    if error.code == ErrorCode::Busy && Instant::now() < end =>
                {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                result => return result,
            }
        }
    }
}

/// Reads pieces in a thread of its own: a disk that sleeps or a pipe into which nobody writes must keep
/// neither heartbeats nor signals waiting.
fn read_ahead(
    source: Source,
    max_hole: u64,
) -> Result<mpsc::Receiver<std::io::Result<(u64, Piece)>>> {
    let (sender, pieces) = mpsc::channel(READ_AHEAD);
    thread("reader", move || {
        for piece in source.pieces(max_hole) {
            let is_last = piece.is_err();
            if sender.blocking_send(piece).is_err() || is_last {
                break;
            }
        }
    })?;
    Ok(pieces)
}

/// Sends every piece of the source and makes it durable. `fresh`: the volume reads as zeroes, which then
/// need not be written; and its beginning is written last, so that a volume whose import was cut off is
/// not taken for a whole one. `begun` is set before the first byte goes out.
async fn send(
    client: &Client,
    source: Source,
    path: &Path,
    fresh: bool,
    bar: &ProgressBar,
    begun: &Cell<bool>,
) -> Result<Sums> {
    let geometry = client.geometry();
    let room = geometry.size_bytes.get();
    if let Some(size) = source.size().filter(|size| *size > room) {
        return Err(does_not_fit(path, &show_size(size), room));
    }
    let block = u64::from(geometry.logical_block_size.get());
    let zeroes = geometry.capabilities().contains(Capabilities::WRITE_ZEROES);
    // Zeroes that must be sent are pieces like any other.
    let max_hole = if zeroes || fresh {
        HOLE_BYTES
    } else {
        PIECE_BYTES
    };
    let is_stream = matches!(source, Source::Stream { .. });
    let mut pieces = read_ahead(source, max_hole)?;
    let mut sums = Sums::default();
    let mut under_way = JoinSet::new();
    let mut first = None;
    let mut end_of_input = Vec::new();
    while let Some(piece) = pieces.recv().await {
        let (at, piece) = piece.map_err(|error| read_error(path, &error))?;
        let length = piece.length();
        if at + length > room {
            return Err(does_not_fit(path, "more than that", room));
        }
        match &piece {
            Piece::Zeroes(_) => {
                sums.zeroes += length;
                end_of_input.clear();
            }
            Piece::Data(data) => {
                sums.data += length;
                end_of_input = data[data.len().saturating_sub(TAIL_BYTES)..].to_vec();
            }
        }
        let whole = whole_blocks(client, at, piece, block, fresh).await?;
        begun.set(true);
        for (at, piece) in whole {
            let client = client.clone();
            match piece {
                Piece::Zeroes(_) if fresh => {}
                Piece::Zeroes(length) if zeroes => {
                    under_way.spawn(async move { client.write_zeroes(at, length, false).await });
                }
                Piece::Zeroes(length) => {
                    let data = Bytes::from(vec![0; length as usize]);
                    under_way.spawn(async move { client.write(at, data).await });
                }
                Piece::Data(data) if fresh && at == 0 => first = Some(Bytes::from(data)),
                Piece::Data(data) => {
                    under_way.spawn(async move { client.write(at, data.into()).await });
                }
            }
        }
        while under_way.len() >= PIECES {
            if let Some(result) = under_way.join_next().await {
                joined(result)?;
            }
        }
        bar.set_position(at + length);
    }
    while let Some(result) = under_way.join_next().await {
        joined(result)?;
    }
    client.flush().await.map_err(explain)?;
    if let Some(first) = first {
        client.write(0, first).await.map_err(explain)?;
        client.flush().await.map_err(explain)?;
    }
    // Of a pipe the end is seen only now.
    if is_stream && Format::of(&[], &end_of_input).is_some() {
        warn(
            "what was imported ends like a virtual disk in the format VHD: if it is one of a fixed \
             size, the last 512 bytes are no part of the disk",
        );
    }
    Ok(sums)
}

/// A piece in whole blocks. Behind the end of what is imported a new volume has zeroes, and another one
/// keeps what is there.
async fn whole_blocks(
    client: &Client,
    at: u64,
    piece: Piece,
    block: u64,
    fresh: bool,
) -> Result<Vec<(u64, Piece)>> {
    let length = piece.length();
    let odd = length % block;
    if odd == 0 {
        return Ok(vec![(at, piece)]);
    }
    let whole = length - odd;
    let rest = match fresh {
        true => vec![0; (block - odd) as usize],
        false => {
            let last = client.read(at + whole, block as usize).await;
            last.map_err(explain)?.split_off(odd as usize)
        }
    };
    Ok(match piece {
        Piece::Data(mut data) => {
            data.extend(rest);
            vec![(at, Piece::Data(data))]
        }
        Piece::Zeroes(_) => {
            let mut last = vec![0; odd as usize];
            last.extend(rest);
            let mut pieces = vec![(at + whole, Piece::Data(last))];
            if whole > 0 {
                pieces.insert(0, (at, Piece::Zeroes(whole)));
            }
            pieces
        }
    })
}

fn read_error(path: &Path, error: &std::io::Error) -> Error {
    file_error(&PathBuf::from(&*shown(path, STDIN)), error)
}

fn does_not_fit(path: &Path, has: &str, room: u64) -> Error {
    let message = format!(
        "{} has {has} and does not fit the volume, which has {}",
        shown(path, STDIN),
        show_size(room)
    );
    Error::new(Kind::Refused, message)
        .with_hint("make the volume larger with `neonsan volume resize`")
}
