// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The load: a fixed number of direct I/Os at a constant depth, through io_uring with registered
//! buffers and file, which costs least and adds the same to every peer.

use crate::amount::Amount;
use crate::mark::Windows;
use crate::memory::Region;
use clap::ValueEnum;
use io_uring::{opcode, squeue, types, IoUring};
use std::fs::OpenOptions;
use std::io::{self, Seek as _, SeekFrom};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Pattern {
    /// Random reads.
    Randread,
    /// Random writes.
    Randwrite,
    /// Sequential reads.
    Read,
    /// Sequential writes.
    Write,
}

/// Options of `load`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The device.
    #[arg(long)]
    device: PathBuf,
    /// What to do.
    #[arg(long)]
    pattern: Pattern,
    /// Bytes of a request.
    #[arg(long, default_value_t = 4096)]
    bytes: u32,
    #[command(flatten)]
    amount: Amount,
    /// Ask the device for completions instead of waiting for interrupts (IOPOLL).
    #[arg(long)]
    poll: bool,
}

/// Where the next request goes.
struct Places {
    pattern: Pattern,
    blocks: u64,
    next: u64,
    random: u64,
}

impl Places {
    fn next_block(&mut self) -> u64 {
        match self.pattern {
            Pattern::Read | Pattern::Write => {
                self.next = (self.next + 1) % self.blocks;
                self.next
            }
            Pattern::Randread | Pattern::Randwrite => {
                // xorshift64: the same places in every run.
                self.random ^= self.random << 13;
                self.random ^= self.random >> 7;
                self.random ^= self.random << 17;
                self.random % self.blocks
            }
        }
    }
}

/// One thread's load.
struct Job<'a> {
    options: &'a Options,
    ring: IoUring,
    buffers: Region,
    places: Places,
}

impl Job<'_> {
    fn entry(&mut self, slot: u32) -> io::Result<squeue::Entry> {
        let bytes = self.options.bytes;
        let buffer = self
            .buffers
            .slice(u64::from(slot) * u64::from(bytes), bytes as usize)?;
        let offset = self.places.next_block() * u64::from(bytes);
        // One registered buffer for all slots, one registered file.
        let entry = match self.options.pattern {
            Pattern::Randread | Pattern::Read => {
                opcode::ReadFixed::new(types::Fixed(0), buffer.iov_base.cast(), bytes, 0)
                    .offset(offset)
                    .build()
            }
            Pattern::Randwrite | Pattern::Write => {
                opcode::WriteFixed::new(types::Fixed(0), buffer.iov_base.cast(), bytes, 0)
                    .offset(offset)
                    .build()
            }
        };
        Ok(entry.user_data(u64::from(slot)))
    }

    fn push(&mut self, slot: u32) -> io::Result<()> {
        let entry = self.entry(slot)?;
        // SAFETY: The buffer is part of `buffers`, which lives until the ring is drained.
        unsafe { self.ring.submission().push(&entry) }
            .map_err(|_| io::Error::other("the submission queue is full"))
    }

    fn run(&mut self, windows: &Windows) -> io::Result<()> {
        let mut slots = Vec::with_capacity(self.options.amount.depth as usize);
        for slot in 0..self.options.amount.depth {
            self.push(slot)?;
        }
        let mut in_flight = self.options.amount.depth;
        while in_flight > 0 {
            self.ring.submit_and_wait(1)?;
            slots.clear();
            for entry in self.ring.completion() {
                if u32::try_from(entry.result()) != Ok(self.options.bytes) {
                    let error = io::Error::from_raw_os_error(-entry.result());
                    return Err(io::Error::other(format!("a request failed: {error}")));
                }
                slots.push(entry.user_data() as u32);
            }
            windows.add(slots.len() as u64)?;
            if windows.is_over() {
                in_flight -= slots.len() as u32;
                continue;
            }
            for slot in &slots {
                self.push(*slot)?;
            }
        }
        Ok(())
    }
}

fn job(options: &Options, index: u32, windows: &Windows) -> io::Result<()> {
    let writes = matches!(options.pattern, Pattern::Randwrite | Pattern::Write);
    let mut file = OpenOptions::new()
        .read(true)
        .write(writes)
        .custom_flags(libc::O_DIRECT)
        .open(&options.device)?;
    let size = file.seek(SeekFrom::End(0))?;
    let blocks = size / u64::from(options.bytes);
    if blocks == 0 || options.amount.depth == 0 {
        return Err(io::Error::other("the device has no room for a request"));
    }
    let mut builder = IoUring::builder();
    builder.setup_single_issuer().setup_defer_taskrun();
    if options.poll {
        builder.setup_iopoll();
    }
    let ring: IoUring = builder.build(options.amount.depth.next_power_of_two())?;
    let buffers = Region::new(options.amount.depth as usize * options.bytes as usize)?;
    let whole = buffers.slice(0, options.amount.depth as usize * options.bytes as usize)?;
    // SAFETY: The memory lives as long as the ring.
    unsafe { ring.submitter().register_buffers(&[whole])? };
    ring.submitter().register_files(&[file.as_raw_fd()])?;
    let mut job = Job {
        options,
        ring,
        buffers,
        places: Places {
            pattern: options.pattern,
            blocks,
            next: u64::from(index) * (blocks / u64::from(options.amount.jobs)),
            random: 0x9e37_79b9_7f4a_7c15 ^ u64::from(index + 1),
        },
    };
    job.run(windows)
}

/// Runs the load and prints its windows.
pub fn run(options: &Options) -> io::Result<()> {
    options
        .amount
        .run(|index, windows| job(options, index, windows))
}
