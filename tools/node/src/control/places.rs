// SPDX-License-Identifier: GPL-2.0 OR MIT
//! How many control connections there may be, and which makes room for a new one.
//!
//! A connection is *idle* until a whole request has arrived, and again when it has been answered. An
//! idle one never keeps a new one out: the one that has been idle for the longest makes room. A busy
//! one is left alone. Where all are busy, a reserve is left, so that the node's health can be asked
//! for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

/// Connections beyond the limit while all others are busy.
const RESERVE: usize = 16;

#[derive(Debug)]
struct Place {
    busy: bool,
    /// Idle or busy since.
    since: Instant,
    leave: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    open: BTreeMap<u64, Place>,
}

/// The places of one kind of listener. Locked when a connection comes, begins or ends a request, and
/// goes.
#[derive(Clone, Debug, Default)]
pub(super) struct Places(Arc<Mutex<Table>>);

/// The place of one connection, until it is dropped.
#[derive(Debug)]
pub(super) struct Ticket {
    places: Places,
    id: u64,
    leave: Arc<Notify>,
}

/// A request that is being answered, until it is dropped.
#[derive(Debug)]
pub(super) struct Busy<'a>(&'a Ticket);

impl Places {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a new connection, of `max` in all; `None` if all others, and the reserve, are busy.
    pub(super) fn enter(&self, max: usize) -> Option<Ticket> {
        let mut table = self.table();
        if table.open.len() >= max {
            let idle = table.open.iter().filter(|(_, place)| !place.busy);
            let oldest = idle.min_by_key(|(_, place)| place.since).map(|(id, _)| *id);
            match oldest {
                Some(id) => {
                    if let Some(place) = table.open.remove(&id) {
                        place.leave.notify_one();
                    }
                }
                None if table.open.len() >= max.saturating_add(RESERVE) => return None,
                None => {}
            }
        }
        let id = table.next;
        table.next += 1;
        let leave = Arc::new(Notify::new());
        let place = Place {
            busy: false,
            since: Instant::now(),
            leave: Arc::clone(&leave),
        };
        table.open.insert(id, place);
        drop(table);
        Some(Ticket {
            places: self.clone(),
            id,
            leave,
        })
    }
}

impl Ticket {
    /// Ends when the connection has to make room.
    pub(super) async fn must_leave(&self) {
        self.leave.notified().await;
    }

    /// A whole request has arrived. `None`: the connection had to make room meanwhile, and the request
    /// must not be carried out.
    pub(super) fn begin(&self) -> Option<Busy<'_>> {
        let mut table = self.places.table();
        let place = table.open.get_mut(&self.id)?;
        place.busy = true;
        place.since = Instant::now();
        Some(Busy(self))
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.0.places.table().open.get_mut(&self.0.id) {
            place.busy = false;
            place.since = Instant::now();
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.places.table().open.remove(&self.id);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn has_left(ticket: &Ticket) -> bool {
        ticket.begin().is_none()
    }

    #[test]
    fn the_oldest_idle_connection_makes_room() {
        let places = Places::default();
        let first = places.enter(2).unwrap();
        let second = places.enter(2).unwrap();
        let busy = first.begin().unwrap();
        let third = places.enter(2).unwrap();
        assert!(has_left(&second));
        drop(busy);
        // `first` has been idle for less long than `third`.
        let _fourth = places.enter(2).unwrap();
        assert!(has_left(&third));
        assert!(!has_left(&first));
    }

    #[test]
    fn busy_connections_leave_a_reserve() {
        let places = Places::default();
        let tickets: Vec<_> = (0..2 + RESERVE)
            .map(|_| {
                let ticket = places.enter(2).unwrap();
                std::mem::forget(ticket.begin().unwrap());
                ticket
            })
            .collect();
        assert!(places.enter(2).is_none());
        drop(tickets);
        assert!(places.enter(2).is_some());
    }

    #[tokio::test]
    async fn who_has_to_leave_is_told() {
        let places = Places::default();
        let first = places.enter(1).unwrap();
        let _second = places.enter(1).unwrap();
        first.must_leave().await;
    }
}
