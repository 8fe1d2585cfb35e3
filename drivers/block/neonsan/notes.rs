// SPDX-License-Identifier: GPL-2.0

//! What people are told of a device's troubles: by the log, by events, and when they ask.

use crate::{
    control,
    device::Device,
    params::{DeviceError, Message},
    recovery,
};
use kernel::{
    prelude::*,
    sync::{atomic::Relaxed, Arc},
};
use neonsan_kernel::errno;
use neonsan_proto::Status;
use neonsan_session::CloseCause;

/// What people are told when they ask.
#[derive(Default)]
pub(crate) struct Notes {
    /// Why I/O fails.
    pub(crate) failure: Option<Message>,
    /// From whom attach took the volume.
    pub(crate) fenced: Option<Message>,
    /// What a node said when it refused, if nothing was opened since.
    pub(crate) refusal: Option<Message>,
}

impl Device {
    /// A connection could not be made.
    pub(crate) fn note_connect_failure(
        &self,
        connection: u16,
        cause: CloseCause,
        error: DeviceError,
    ) {
        if self.lost_before() {
            pr_debug!(
                "{}: connection {connection}: {}\n",
                self.name(),
                error.message
            );
        }
        if let CloseCause::Refused(_) | CloseCause::VolumeChanged(_) = cause {
            self.notes().lock().refusal = Some(error.message);
        }
        let (progress, _) = self.progress();
        let mut progress = progress.lock();
        progress.failures = progress.failures.saturating_add(1);
        progress.permanent = recovery::is_permanent(cause);
        progress.error = Some(error);
    }

    /// Why I/O fails, in words: the node's own if there are any.
    pub(crate) fn failure_text(&self, cause: CloseCause) -> Message {
        match (cause, &self.notes().lock().refusal) {
            (CloseCause::Fenced | CloseCause::VolumeChanged(_), Some(refusal)) => {
                Message::from_fmt(format_args!("{cause}: {refusal}"))
            }
            _ => Message::from_fmt(format_args!("{cause}")),
        }
    }

    /// What a node said when it was asked who has the volume now.
    pub(crate) fn note_inquiry(self: &Arc<Self>, answer: Option<DeviceError>) {
        let Some(answer) =
            answer.filter(|answer| answer.error == errno!(ESTALE) || answer.error == EBUSY)
        else {
            return;
        };
        self.notes().lock().refusal = Some(answer.message);
        let why = self.failure_text(CloseCause::Fenced);
        self.notes().lock().failure = Some(why);
        pr_err!("{}: {why}\n", self.name());
        control::event_failed(self, why.as_str());
    }

    /// Whether the refusal to open was only that there is a holder from whom the volume is to be
    /// taken: then the next try does that. `text` is how the node names the holder.
    pub(crate) fn begin_forcing(&self, cause: CloseCause, text: &str) -> bool {
        let is_holder = matches!(cause, CloseCause::Refused(Status::HeldByOther));
        if !is_holder || !self.params().force || self.forcing().load(Relaxed) {
            return false;
        }
        // What a person at this host might do about it follows after a colon.
        let holder = text.split(": ").next().unwrap_or(text);
        self.notes().lock().fenced = Some(Message::from_str(holder));
        self.forcing().store(true, Relaxed);
        true
    }

    /// Tells people that the device waits for one of them.
    pub(crate) fn tell_of_shrinking(&self, size_bytes: u64) {
        let had_bytes = self.volume().map_or(0, |v| v.geometry.size_bytes.get());
        let text = Message::from_fmt(format_args!(
            "the volume was shrunk to {size_bytes} bytes, the device has {had_bytes}: requests wait \
             until it is grown again, or `neonsan set --accept-size neonsan{}`",
            self.index()
        ));
        pr_err!("{}: {text}\n", self.name());
        control::event_shrunk(self, size_bytes, text.as_str());
    }

    fn lost_before(&self) -> bool {
        self.session().lock().lost_since().is_some()
    }

    /// Tells people that writes may be lost.
    pub(crate) fn report_lost_writes(&self, bytes: u64) {
        let text = Message::from_fmt(format_args!(
            "the node lost its cache, and with it up to {bytes} bytes that were answered but not \
             flushed: the next flush fails"
        ));
        pr_err!("{}: {text}\n", self.name());
        control::event_data_at_risk(self, text.as_str());
    }
}
