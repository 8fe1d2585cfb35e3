// SPDX-License-Identifier: GPL-2.0 OR MIT

//! `neonsan volume export`: a volume's bytes into a file, over the data protocol.

use super::transfer::{
    attach, client_config, identity, joined, progress_bar, report, thread, Sums, PIECES,
};
use super::volume::{client as control_client, runtime};
use crate::cli::{Common, VolumeExport};
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::image::Image;
use crate::output::warn;
use crate::signals::Signals;
use crate::sparse::{runs, PIECE_BYTES};
use crate::target::Target;
use indicatif::ProgressBar;
use neonsan_api::{OpenMode, SessionInfo};
use neonsan_client::Client;
use neonsan_proto::Mode;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// How long the control API may take to say who holds a volume that is exported.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);

/// Pieces that came and wait to be written.
const WRITE_BEHIND: usize = 4;

/// Writes a volume into a file.
pub fn run(common: &Common, config: &Config, args: &VolumeExport, api: Option<&str>) -> Result<()> {
    let target: Target = args.target.parse()?;
    let path = &args.file;
    let client_config = client_config(config, &target, &args.transfer, Mode::ReadOnly)?;
    let control = control_client(api, config, Some(&target))?.with_timeout(ASK_TIMEOUT);
    let is_stream = path.as_os_str() == "-";
    if is_stream {
        Image::check_standard_output()?;
    }
    let (size, sums) = runtime()?.block_on(async {
        let mut signals = Signals::new()?;
        let client = attach(&mut signals, client_config).await?;
        let size = client.geometry().size_bytes.get();
        let result = async {
            warn_if_written(&client, &control, &target).await;
            let image = Arc::new(match is_stream {
                true => Image::standard_output()?,
                false => Image::create(path, size, args.force)?,
            });
            let bar = progress_bar(common, Some(size));
            let received = signals.or(receive(&client, size, &image, &bar)).await;
            bar.finish_and_clear();
            received.map_err(|error| {
                image.abandon();
                match image.is_spoiled() {
                    true => error.with_more(format!(
                        "{} does not have the whole image, and what was on it is overwritten in part: \
                         export again",
                        path.display()
                    )),
                    false => error,
                }
            })
        };
        let result = result.await;
        client.detach().await;
        Ok::<_, Error>((size, result?))
    })?;
    report(common, &target, path, size, sums, is_stream)
}

/// Warns of an image that mixes states: a host may write to the volume meanwhile. Only the control API
/// knows, and what it does not say is no reason not to export.
async fn warn_if_written(client: &Client, control: &neonsan_api::Client, target: &Target) {
    // What is no volume's name is a snapshot's, to which nobody writes.
    let Ok(name) = target.volume.parse() else {
        return;
    };
    let Ok(volume) = control.volume(&name).await else {
        return;
    };
    // Another node may have a volume of this name.
    if volume.id != identity(client) {
        return;
    }
    let writes = |session: &&SessionInfo| session.mode != OpenMode::ReadOnly;
    let writers = volume.sessions.iter().filter(writes);
    let hosts: Vec<_> = writers.map(|session| session.host.as_str()).collect();
    if !hosts.is_empty() {
        warn(&format!(
            "{name} is held for writing, by {}: the image may mix states of different moments; make a \
             snapshot and export that",
            hosts.join(", ")
        ));
    }
}

/// Reads the whole volume into the image, and finishes that. What the disk or the reader of the pipe
/// takes its time for happens in a thread of its own, and keeps neither heartbeats nor signals waiting.
async fn receive(
    client: &Client,
    size: u64,
    image: &Arc<Image>,
    bar: &ProgressBar,
) -> Result<Sums> {
    let (pieces, mut to_write) = mpsc::channel::<(u64, Vec<u8>)>(WRITE_BEHIND);
    let (done, mut written) = oneshot::channel();
    let image = Arc::clone(image);
    thread("writer", move || {
        let result = (|| {
            let (mut sums, mut end) = (Sums::default(), 0);
            let mut first = None;
            while let Some((at, data)) = to_write.blocking_recv() {
                end = at + data.len() as u64;
                // A device is written in place. Its beginning comes last, so that neither what was
                // there nor half an image is taken for a whole one.
                if at == 0 && image.is_device() {
                    image.zero_at(&vec![0; data.len()], at)?;
                    image.sync()?;
                    first = Some(data);
                    continue;
                }
                write(&image, at, &data, &mut sums)?;
            }
            // All has come; else somebody has given up.
            if end == size {
                if let Some(first) = first {
                    image.sync()?;
                    write(&image, 0, &first, &mut sums)?;
                }
                image.finish()?;
            }
            Ok(sums)
        })();
        let _ = done.send(result);
    })?;
    let mut under_way = VecDeque::new();
    let mut at = 0;
    while at < size || !under_way.is_empty() {
        if at < size && under_way.len() < PIECES {
            let client = client.clone();
            let length = PIECE_BYTES.min(size - at) as usize;
            let read = tokio::spawn(async move { client.read(at, length).await });
            under_way.push_back((at, read));
            at += length as u64;
            continue;
        }
        let Some((start, read)) = under_way.pop_front() else {
            break;
        };
        let data = joined(read.await)?;
        let length = data.len() as u64;
        if pieces.send((start, data)).await.is_err() {
            break;
        }
        bar.inc(length);
    }
    drop(pieces);
    let ended = |_| Error::new(Kind::Other, "the thread that writes the image has ended");
    (&mut written).await.map_err(ended)?
}

/// Writes a piece: its zeroes as cheaply as the place allows.
fn write(image: &Image, at: u64, data: &[u8], sums: &mut Sums) -> Result<()> {
    for (offset, run, zero) in runs(data) {
        let at = at + offset as u64;
        if zero {
            sums.zeroes += run.len() as u64;
            image.zero_at(run, at)?;
        } else {
            sums.data += run.len() as u64;
            image.write_at(run, at)?;
        }
    }
    Ok(())
}
