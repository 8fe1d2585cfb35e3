// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Looking whether an engine has a volume, for those who cannot wait for ever.
//!
//! Clients ask for volumes by any name, and all engines are asked for each. One whose storage does not
//! answer would keep everybody from the volumes of the others, and keep a thread for each name that
//! somebody makes up. So a look is a thread of its own, of which there are few, and whoever asked waits for
//! a moment. One pool may hang by itself, since it may be a file system of its own: it uses up its own
//! places, and not those of other pools.

use std::collections::BTreeMap;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use neonsan_api::VolumeName;
use neonsan_engine::{Engine, Error, ErrorKind, Result};

/// A look that takes longer does not count, and stands for others that would.
const PATIENCE: Duration = Duration::from_secs(3);

/// Looks at a time, in all and in one pool.
const MOST: usize = 16;
const MOST_OF_A_POOL: usize = 4;

struct Look {
    pool: String,
    since: Instant,
}

#[derive(Default)]
struct Running {
    looks: BTreeMap<u64, Look>,
    next: u64,
}

/// The looks at one engine. The lock is held to note a beginning or an end only.
#[derive(Default)]
pub(super) struct Looks {
    running: Mutex<Running>,
    ended: Condvar,
}

/// Whether one more look may begin.
#[derive(Debug, PartialEq, Eq)]
enum Room {
    Yes,
    /// Not before one ends, which may be soon.
    Wait,
    /// Those that are out have not come back for long.
    No,
}

impl Running {
    fn room(&self, pool: &str, now: Instant) -> Room {
        let of_pool = || self.looks.values().filter(|look| look.pool == pool);
        let is_stuck = |look: &Look| now.duration_since(look.since) >= PATIENCE;
        if of_pool().any(is_stuck) {
            return Room::No;
        }
        if self.looks.len() >= MOST && self.looks.values().all(is_stuck) {
            return Room::No;
        }
        if of_pool().count() >= MOST_OF_A_POOL || self.looks.len() >= MOST {
            return Room::Wait;
        }
        Room::Yes
    }
}

fn silent(engine: &str) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        format!(
            "the engine {engine} does not answer, so nobody knows whether it has the volume: see \
             `neonsan node health`, and the kernel's log for its storage"
        ),
    )
}

impl Looks {
    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for room, and takes it.
    fn begin(&self, pool: &str, deadline: Instant) -> Option<u64> {
        let mut running = self.running();
        loop {
            let now = Instant::now();
            match running.room(pool, now) {
                Room::Yes => break,
                Room::No => return None,
                Room::Wait if now >= deadline => return None,
                Room::Wait => {
                    running = self
                        .ended
                        .wait_timeout(running, deadline - now)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0;
                }
            }
        }
        let id = running.next;
        running.next += 1;
        let look = Look {
            pool: pool.to_owned(),
            since: Instant::now(),
        };
        running.looks.insert(id, look);
        Some(id)
    }

    fn end(&self, id: u64) {
        self.running().looks.remove(&id);
        self.ended.notify_all();
    }

    /// Whether the engine has the volume, damaged or not. Blocks for a moment at most.
    ///
    /// # Errors
    ///
    /// What the engine says; [`ErrorKind::Unavailable`] if it does not answer.
    pub(super) fn exists(
        self: &Arc<Self>,
        engine_name: &str,
        engine: &Arc<dyn Engine>,
        name: &VolumeName,
    ) -> Result<bool> {
        let deadline = Instant::now() + PATIENCE;
        let id = self
            .begin(name.pool(), deadline)
            .ok_or_else(|| silent(engine_name))?;
        let (send, answer) = mpsc::channel();
        let (looks, engine, name) = (Arc::clone(self), Arc::clone(engine), name.clone());
        let spawned = thread::Builder::new()
            .name("find-volume".to_owned())
            .spawn(move || {
                let found = engine.exists(&name);
                // What it has of the engine is given up first.
                drop(engine);
                looks.end(id);
                // Nobody waits any more when it comes too late.
                let _ = send.send(found);
            });
        if let Err(error) = spawned {
            self.end(id);
            return Err(Error::os(error, "cannot start a thread"));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        match answer.recv_timeout(left) {
            Ok(found) => found,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                Err(silent(engine_name))
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn running(looks: &[(&str, Instant)]) -> Running {
        let looks = looks.iter().zip(0..).map(|((pool, since), id)| {
            let pool = (*pool).to_owned();
            let since = *since;
            (id, Look { pool, since })
        });
        Running {
            looks: looks.collect(),
            next: 100,
        }
    }

    #[test]
    fn a_pool_that_hangs_takes_no_place_of_another() {
        let begun = Instant::now();
        let later = begun + PATIENCE;
        let all_of_a = [("a", begun); MOST_OF_A_POOL];
        assert_eq!(running(&all_of_a[1..]).room("a", begun), Room::Yes);
        assert_eq!(running(&all_of_a).room("a", begun), Room::Wait);
        assert_eq!(running(&all_of_a).room("b", begun), Room::Yes);
        // One that does not come back is enough to know.
        assert_eq!(running(&all_of_a[..1]).room("a", later), Room::No);
        assert_eq!(running(&all_of_a[..1]).room("b", later), Room::Yes);
    }

    #[test]
    fn an_engine_that_hangs_keeps_few_threads_whatever_names_are_made_up() {
        let begun = Instant::now();
        let later = begun + PATIENCE;
        let names: Vec<String> = (0..MOST).map(|n| format!("pool{n}")).collect();
        let mut looks: Vec<_> = names.iter().map(|name| (name.as_str(), begun)).collect();
        assert_eq!(running(&looks).room("one-more", begun), Room::Wait);
        assert_eq!(running(&looks).room("one-more", later), Room::No);
        // One of them is young, and may end soon.
        looks[0].1 = later;
        assert_eq!(running(&looks).room("one-more", later), Room::Wait);
    }
}
