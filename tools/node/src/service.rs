// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What the service manager is told: ready, reloading, stopping, and that the node still serves.

use std::time::Duration;

use sd_notify::NotifyState;

use crate::shared::Shared;

fn tell(states: &[NotifyState<'_>]) {
    // Without a service manager this does nothing.
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, ?states, "cannot notify the service manager");
    }
}

/// The node serves.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The node reads its configuration again; [`ready`] follows.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "cannot read the clock for the service manager"),
    }
}

/// The node stops.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// What the node is doing, for people.
pub fn status(text: &str) {
    tell(&[NotifyState::Status(text)]);
}

/// Tells the service manager again and again that the node serves, if it wants to know
/// (`WatchdogSec=`).
///
/// A sign is given only when the hub and every worker have looked at the time since the one before,
/// which each does ten times a second while it is able to serve; and it comes from the thread that
/// answers the control API. A node in which one of them hangs gives none, and is started again.
pub async fn watch(shared: &Shared) {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return;
    };
    let pause = (limit / 3).max(Duration::from_millis(300));
    let mut before = shared.metrics.beats();
    loop {
        tokio::time::sleep(pause).await;
        let beats = shared.metrics.beats();
        let hanging: Vec<String> = (beats.iter().zip(&before).enumerate())
            .filter(|(_, (now, before))| now == before)
            .map(|(index, _)| match index {
                0 => "hub".to_owned(),
                worker => format!("data-{}", worker - 1),
            })
            .collect();
        if hanging.is_empty() {
            before = beats;
            tell(&[NotifyState::Watchdog]);
        } else {
            tracing::error!(
                threads = hanging.join(", "),
                "threads of the node hang: the service manager is not told that it serves"
            );
        }
    }
}
