// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What timeouts may be.

use neonsan_session::{BadTimeout, Timeouts, MAX_TIMEOUT_MS};

/// Sets the value at this place of `Timeouts::BOUNDS`.
fn with(place: usize, value: u32) -> Timeouts {
    let mut times = Timeouts::DEFAULT;
    let fields = [
        &mut times.request_ms,
        &mut times.connect_ms,
        &mut times.heartbeat_interval_ms,
        &mut times.heartbeat_timeout_ms,
        &mut times.reconnect_delay_min_ms,
        &mut times.reconnect_delay_max_ms,
        &mut times.loss_ms,
    ];
    *fields.into_iter().nth(place).expect("a place") = value;
    times
}

// The kernel's milliseconds end at 2^31.
const _: () = assert!(MAX_TIMEOUT_MS < 1 << 31);

#[test]
fn each_value_has_its_bounds_and_the_message_says_them() {
    assert_eq!(Timeouts::DEFAULT.check(), Ok(()));
    for (place, bound) in Timeouts::BOUNDS.iter().enumerate() {
        let outside = [bound.min_ms.checked_sub(1), Some(MAX_TIMEOUT_MS + 1)];
        let outside = outside.into_iter().flatten();
        for value in outside.chain([i32::MAX as u32, 1 << 31, u32::MAX]) {
            let refused = with(place, value).check();
            assert_eq!(refused, Err(BadTimeout::Range(*bound)), "{value}");
            let text = BadTimeout::Range(*bound).to_string();
            assert!(text.starts_with(bound.label), "{text}");
            assert!(
                text.contains(&format!("{} ms to 24 days", bound.min_ms)),
                "{text}"
            );
        }
        // Within its own bounds it may still contradict another one.
        for value in [bound.min_ms, MAX_TIMEOUT_MS] {
            let checked = with(place, value).check();
            assert!(
                !matches!(checked, Err(BadTimeout::Range(_))),
                "{}",
                bound.name
            );
        }
    }
}

#[test]
fn pairs_keep_their_order() {
    assert_eq!(with(2, 9_000).check(), Err(BadTimeout::Heartbeat));
    assert_eq!(with(2, 8_999).check(), Ok(()));
    assert_eq!(with(4, 501).check(), Err(BadTimeout::ReconnectDelay));
    assert_eq!(with(4, 500).check(), Ok(()));
}
