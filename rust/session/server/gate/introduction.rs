// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What happens when a client introduces itself: who may open a session or join one, and whom that
//! displaces.

use super::entrance::Entrance;
use super::{Connection, ConnectionId, Gate, Opening, RefuseReason, Session, State};
use crate::server::IntroducedAs;
use crate::{CloseCause, Instant};
use neonsan_proto::{Mode, OpenFlags, OpenRequest, Status};

impl Gate {
    /// A client has introduced itself on a new connection. Its volume name was resolved to this
    /// gate by the caller.
    pub fn introduce(
        &mut self,
        id: ConnectionId,
        kind: IntroducedAs,
        request: &OpenRequest,
        now: Instant,
    ) -> Opening {
        let result = match check_request(request, kind) {
            Err(status) => Err(RefuseReason::new(status)),
            Ok(()) => match kind {
                IntroducedAs::Open => self.open(request, now),
                IntroducedAs::Join => self.join(request),
            },
        };
        match result {
            Err(reason) => Opening::Refused(reason),
            Ok(Some(session)) => {
                self.memory.touch();
                self.entrances.push(Entrance {
                    id,
                    session,
                    epoch: request.epoch.get(),
                    version: self.memory_version(),
                    forced: request.flags().contains(OpenFlags::FORCE),
                    deadline: now.after_ms(self.config.drain_timeout_ms),
                    due: None,
                });
                Opening::Waiting
            }
            Ok(None) => {
                let index = request.connection.get();
                let epoch = request.epoch.get();
                self.connections.push(Connection {
                    id,
                    session_id: request.session_id,
                    index,
                    generation: request.generation.get(),
                    state: State::Waiting {
                        deadline: now.after_ms(self.config.drain_timeout_ms),
                    },
                    due: None,
                });
                self.note_epoch(request.session_id, index, epoch);
                if let Some(session) = self.session_mut(&request.session_id) {
                    session.empty_since = None;
                }
                Opening::Waiting
            }
        }
    }

    /// Gives the session if it is one that would begin.
    fn open(
        &mut self,
        request: &OpenRequest,
        now: Instant,
    ) -> Result<Option<Session>, RefuseReason> {
        // What has lingered is over by now, whether or not anybody looked.
        self.handle_timeout(now);
        let generation = request.generation.get();
        let host_boot = request.host_boot.get();
        let id = request.session_id;
        if let Some(known) = self.sessions.iter().find(|s| s.id == id).copied() {
            if known.over {
                // It was fenced, or it ended, and its last requests are not out yet.
                return Err(self.refuse_over(&known));
            }
            if generation <= known.generation {
                let mut reason = RefuseReason::new(Status::StaleGeneration);
                reason.generation = known.generation;
                return Err(reason);
            }
            // A session does not outlive the kernel that has it.
            let other_boot = is_other_boot(known.host_boot, host_boot);
            if known.host_id != request.host_id || known.mode != request.mode() || other_boot {
                return Err(RefuseReason::new(Status::BadOpen));
            }
            if self.must_try_again(&known, true) {
                return Err(try_again());
            }
            if known.host_boot == 0 && host_boot != 0 {
                self.memory.touch();
            }
            self.revoke_session(&id, CloseCause::Replaced);
            if let Some(session) = self.session_mut(&id) {
                session.generation = generation;
                if session.host_boot == 0 {
                    session.host_boot = host_boot;
                }
            }
            return Ok(None);
        }
        if self.memory.is_fenced(&id) {
            return Err(RefuseReason::new(Status::Fenced));
        }
        if let Some(released) = self.memory.is_older_than_released(&id, generation) {
            let mut reason = RefuseReason::new(Status::StaleGeneration);
            reason.generation = released;
            return Err(reason);
        }
        let session = Session {
            id,
            host_id: request.host_id,
            host_boot,
            mode: request.mode(),
            generation,
            since: now,
            empty_since: None,
            max_connections: self.config.max_connections,
            over: false,
        };
        let staying = || {
            let entering = self.entrances.iter().map(|e| &e.session);
            let sessions = self.sessions.iter().chain(entering);
            sessions.filter(|s| !s.over && !s.mode.conflicts_with(session.mode))
        };
        let writers = staying().filter(|s| s.mode != Mode::ReadOnly).count();
        // Whoever may write must be known after a restart of the node.
        let no_room = session.mode != Mode::ReadOnly && writers >= self.config.max_remembered;
        if staying().count() >= self.config.max_sessions || no_room {
            return Err(RefuseReason::new(Status::TooManySessions));
        }
        self.check_way(request, now)?;
        if self.must_try_again(&session, false) {
            return Err(try_again());
        }
        Ok(Some(session))
    }

    fn refuse_over(&self, known: &Session) -> RefuseReason {
        let in_the_way = |s: &&Session| !s.over && s.mode.conflicts_with(known.mode);
        match self.sessions.iter().find(in_the_way) {
            Some(other) => {
                let mut reason = RefuseReason::new(Status::HeldByOther);
                reason.holder = Some(self.holder(other));
                reason
            }
            None => try_again(),
        }
    }

    /// Whether a new session may end those that it conflicts with.
    fn check_way(&self, request: &OpenRequest, now: Instant) -> Result<(), RefuseReason> {
        let force = request.flags().contains(OpenFlags::FORCE);
        let in_the_way = self
            .sessions
            .iter()
            .filter(|s| !s.over && s.mode.conflicts_with(request.mode()));
        for session in in_the_way {
            // A host that restarted finds its own old session, which has no kernel any more.
            let is_left_by_older_boot = session.host_id == request.host_id
                && is_other_boot(session.host_boot, request.host_boot.get());
            if force || (is_left_by_older_boot && session.empty_since.is_some()) {
                continue;
            }
            let mut reason = RefuseReason::new(Status::HeldByOther);
            reason.holder = Some(self.holder(session));
            reason.retry_after_ms = self.lingers_for_ms(session, now);
            return Err(reason);
        }
        Ok(())
    }

    /// How long a session that lost its connections still has the volume, at least 1; zero: it has
    /// connections.
    fn lingers_for_ms(&self, session: &Session, now: Instant) -> u32 {
        let Some(since) = session.empty_since else {
            return 0;
        };
        let left = since.after_ms(self.config.linger_ms).since_ms(now);
        u32::try_from(left).unwrap_or(u32::MAX).max(1)
    }

    fn join(&mut self, request: &OpenRequest) -> Result<Option<Session>, RefuseReason> {
        let index = request.connection.get();
        let unknown = Err(RefuseReason::new(Status::UnknownSession));
        let Some(session) = self
            .sessions
            .iter()
            .find(|s| s.id == request.session_id)
            .copied()
        else {
            return unknown;
        };
        if session.over {
            return Err(self.refuse_over(&session));
        }
        let generation = request.generation.get();
        if generation > session.generation {
            // From before a restart of this node: it must open again.
            return unknown;
        }
        if generation < session.generation
            || request.epoch.get() <= self.last_epoch(&session.id, index)
        {
            let mut reason = RefuseReason::new(Status::StaleGeneration);
            reason.generation = session.generation;
            return Err(reason);
        }
        let other_boot = is_other_boot(session.host_boot, request.host_boot.get());
        if session.host_id != request.host_id || session.mode != request.mode() || other_boot {
            return Err(RefuseReason::new(Status::BadOpen));
        }
        if index >= session.max_connections {
            return Err(RefuseReason::new(Status::TooManyConnections));
        }
        if self.must_try_again(&session, true) {
            return Err(try_again());
        }
        for c in self.connections.iter_mut() {
            if c.session_id == session.id && c.index == index {
                c.revoke(CloseCause::Replaced);
            }
        }
        Ok(None)
    }
}

/// Something is to be decided first, which takes a moment.
fn try_again() -> RefuseReason {
    let mut reason = RefuseReason::new(Status::Draining);
    reason.retry_after_ms = 100;
    reason
}

/// Whether two boots of one host are known to be different ones.
fn is_other_boot(one: u64, other: u64) -> bool {
    one != 0 && other != 0 && one != other
}

fn check_request(request: &OpenRequest, kind: IntroducedAs) -> Result<(), Status> {
    let named = request.session_id != [0; 16] && request.host_id != [0; 16];
    let counted = request.generation.get() != 0 && request.epoch.get() != 0;
    let indexed = match kind {
        IntroducedAs::Open => request.connection.get() == 0,
        IntroducedAs::Join => request.flags() == OpenFlags::NONE,
    };
    let known =
        !matches!(request.mode(), Mode::Unknown(_)) && OpenFlags::KNOWN.contains(request.flags());
    if named && counted && indexed && known {
        Ok(())
    } else {
        Err(Status::BadOpen)
    }
}
