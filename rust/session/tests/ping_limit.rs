// SPDX-License-Identifier: GPL-2.0 OR MIT

//! A node's PINGs are answered as long as they come as heartbeats do, and are bounded.

use neonsan_session::{
    client::{PingLimit, MAX_PINGS, PING_MS},
    CloseCause, Instant,
};

#[test]
fn a_flood_closes_the_connection() {
    let mut pings = PingLimit::new(Instant(1_000));
    for _ in 0..MAX_PINGS {
        assert_eq!(pings.on_ping(Instant(1_000)), Ok(()));
    }
    let flood = pings.on_ping(Instant(1_000 + PING_MS - 1));
    assert_eq!(flood, Err(CloseCause::TooMuchInFlight));
    assert_eq!(pings.on_ping(Instant(1_000 + PING_MS)), Ok(()));
    let flood = pings.on_ping(Instant(1_000 + PING_MS));
    assert_eq!(flood, Err(CloseCause::TooMuchInFlight));
}

#[test]
fn heartbeats_never_do() {
    let mut pings = PingLimit::new(Instant(0));
    for beat in 0..100_000 {
        assert_eq!(pings.on_ping(Instant(beat * PING_MS)), Ok(()), "{beat}");
    }
}

#[test]
fn silence_saves_no_more_than_the_limit() {
    let mut pings = PingLimit::new(Instant(0));
    let late = Instant(u64::MAX);
    let answered = (0..1_000).filter(|_| pings.on_ping(late).is_ok());
    assert_eq!(answered.count(), MAX_PINGS as usize);
    // A clock that stands still, or seems to go back, earns nothing.
    assert!(pings.on_ping(Instant(5)).is_err());
}
