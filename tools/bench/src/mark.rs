// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Windows: what happens between two marks is counted by the emulator's plugin.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// An instruction that does nothing and that the plugin knows: see tools/testing/bench/count.c.
fn begin() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: `nopl 0x4e530001(%rax,%rax,1)` reads and writes nothing.
    unsafe {
        std::arch::asm!(
            ".byte 0x0f, 0x1f, 0x84, 0x00, 0x01, 0x00, 0x53, 0x4e",
            options(nomem, nostack, preserves_flags)
        );
    }
}

/// The other one.
fn end() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: `nopl 0x4e530002(%rax,%rax,1)` reads and writes nothing.
    unsafe {
        std::arch::asm!(
            ".byte 0x0f, 0x1f, 0x84, 0x00, 0x02, 0x00, 0x53, 0x4e",
            options(nomem, nostack, preserves_flags)
        );
    }
}

/// Context switches of the whole machine since it booted.
fn context_switches() -> io::Result<u64> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let line = stat.lines().find_map(|l| l.strip_prefix("ctxt "));
    line.and_then(|n| n.trim().parse().ok())
        .ok_or_else(|| io::Error::other("/proc/stat has no count of context switches"))
}

/// What was seen at a mark.
struct Seen {
    completed: u64,
    switches: u64,
    done: Vec<(u64, u64)>,
}

/// Counts requests of any number of threads, and sets marks after a warm-up and then after each
/// window. The load goes on at its depth all the time, so that no window has a beginning or an end
/// with few requests in flight.
pub struct Windows {
    warmup: u64,
    length: u64,
    repeats: u64,
    completed: AtomicU64,
    stop: AtomicBool,
    /// Touched only by the thread that crosses a threshold.
    seen: Mutex<Seen>,
}

impl Windows {
    /// `repeats` windows of `length` requests after `warmup` requests.
    pub fn new(warmup: u64, length: u64, repeats: u64) -> Self {
        Windows {
            warmup,
            length: length.max(1),
            repeats,
            completed: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            seen: Mutex::new(Seen {
                completed: 0,
                switches: 0,
                done: Vec::new(),
            }),
        }
    }

    /// Whether all windows are over.
    pub fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Which window a count of completed requests is in; 0 is the warm-up.
    fn window_of(&self, completed: u64) -> u64 {
        match completed.checked_sub(self.warmup) {
            None => 0,
            Some(n) => 1 + n / self.length,
        }
    }

    /// `n` requests were completed.
    pub fn add(&self, n: u64) -> io::Result<()> {
        let before = self.completed.fetch_add(n, Ordering::Relaxed);
        let now = before + n;
        if self.window_of(before) == self.window_of(now) || self.is_over() {
            return Ok(());
        }
        // Uncontended but for a window that is shorter than the threads are many.
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if self.window_of(before) > 0 {
            end();
            let switches = context_switches()?;
            let window = (now - seen.completed, switches - seen.switches);
            seen.done.push(window);
        }
        if seen.done.len() as u64 >= self.repeats {
            self.stop.store(true, Ordering::Relaxed);
            return Ok(());
        }
        seen.completed = now;
        seen.switches = context_switches()?;
        begin();
        Ok(())
    }

    /// Prints a line for each window, as [`report`](crate::report) reads it.
    pub fn print(&self) {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        for (requests, switches) in &seen.done {
            println!("@window {requests} {switches}");
        }
    }
}
