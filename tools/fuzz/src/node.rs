// SPDX-License-Identifier: GPL-2.0 OR MIT

//! A storage node with one volume in memory that serves it right, until it misbehaves once.
//!
//! A thread per connection, blocking sockets, one request after the other: slow and easy to see
//! through, which is what a peer in a test should be.

use crate::conversation::{crc32c, message, open_reply, Disk};
use crate::hostile::{Exchange, Misbehaviour, Moment, Step};
use neonsan_proto::{Features, Geometry, Header, Kind, OpenReply, Refusal, Status, HELLO_BYTES};
use neonsan_session::server::{
    Command, ConnectionId, Gate, GateAction, GateConfig, Handshake, Introduced, IntroducedAs,
    Limits, Opening, Received, Receiver, RefuseReason, Want,
};
use neonsan_session::Instant;
use std::collections::HashMap;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use zerocopy::IntoBytes as _;

/// How the node is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// The name of the volume; any other is refused.
    pub volume: String,
    /// Its size and limits.
    pub geometry: Geometry,
    /// The features that the node has.
    pub features: Features,
    /// What to do wrong; `None`: nothing.
    pub misbehaviour: Option<&'static Misbehaviour>,
    /// How many requests are answered right before that.
    pub after: u64,
    /// How often to do it, each time after so many requests more.
    pub times: u64,
}

/// What the threads share.
struct Shared {
    config: Config,
    state: Mutex<State>,
    /// Signalled when the gate has decided something.
    decided: Condvar,
    begun: std::time::Instant,
}

/// Guarded by one lock: nothing here is in a hurry.
struct State {
    disk: Disk,
    gate: Gate,
    next_id: u64,
    sockets: HashMap<ConnectionId, TcpStream>,
    outcomes: HashMap<ConnectionId, Result<(), RefuseReason>>,
    /// Requests answered right since the last misbehaviour.
    answered: u64,
    /// How often the node misbehaved.
    misbehaved: u64,
    /// JOINs are refused and OPENs are a promotion until the next OPEN.
    forgot: bool,
}

/// A running node.
pub struct Node {
    shared: Arc<Shared>,
}

impl Node {
    /// A node that serves nobody yet.
    pub fn new(config: Config) -> Self {
        let size = usize::try_from(config.geometry.size_bytes.get()).unwrap_or(0);
        Node {
            shared: Arc::new(Shared {
                state: Mutex::new(State {
                    disk: Disk::new(size),
                    gate: Gate::new(gate_config()),
                    next_id: 1,
                    sockets: HashMap::new(),
                    outcomes: HashMap::new(),
                    answered: 0,
                    misbehaved: 0,
                    forgot: false,
                }),
                config,
                decided: Condvar::new(),
                begun: std::time::Instant::now(),
            }),
        }
    }

    /// How often the node misbehaved so far.
    pub fn misbehaved(&self) -> u64 {
        self.shared.lock().misbehaved
    }

    /// Serves every connection until accepting fails.
    pub fn serve(&self, listener: &TcpListener) -> io::Result<()> {
        loop {
            let (socket, _) = listener.accept()?;
            let shared = self.shared.clone();
            std::thread::spawn(move || {
                // A connection that ends is no event here.
                let _ = shared.serve(socket);
            });
        }
    }
}

fn gate_config() -> GateConfig {
    GateConfig {
        max_sessions: 8,
        max_connections: 64,
        drain_timeout_ms: 5_000,
        linger_ms: 60_000,
        max_remembered: 64,
        without_fencing: false,
    }
}

fn cut() -> io::Error {
    io::ErrorKind::ConnectionAborted.into()
}

/// The OPEN_REPLY and whether the session had been forgotten, or why not.
type LetIn = Result<(OpenReply, bool), RefuseReason>;

/// How a connection goes on after a misbehaviour.
enum Then {
    /// It goes on.
    On,
    /// It is over.
    Over,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Instant {
        Instant(self.begun.elapsed().as_millis() as u64)
    }

    /// Whether the misbehaviour has its turn now; if so, it counts as done.
    fn take_turn(&self, moments: &[Moment], features: Features) -> Option<&'static Misbehaviour> {
        let what = self.config.misbehaviour?;
        let mut state = self.lock();
        let due = state.misbehaved < self.config.times && state.answered >= self.config.after;
        if !due || !moments.contains(&what.moment) || !features.contains(what.needs) {
            return None;
        }
        state.misbehaved += 1;
        state.answered = 0;
        println!("misbehaved: {}", what.name);
        Some(what)
    }

    /// Whether connections must be cut so that a misbehaviour of the handshake gets its turn.
    fn wants_reconnect(&self, state: &State, features: Features) -> bool {
        let Some(what) = self.config.misbehaviour else {
            return false;
        };
        match what.moment {
            Moment::Hello | Moment::Open | Moment::Promote => {
                features.contains(what.needs)
                    && state.misbehaved < self.config.times
                    && state.answered > 0
                    && state.answered >= self.config.after
            }
            Moment::Request | Moment::Read | Moment::Write => false,
        }
    }

    fn perform(&self, socket: &TcpStream, steps: Vec<Step>) -> io::Result<Then> {
        let mut out = socket;
        for step in steps {
            match step {
                Step::Send(bytes) => out.write_all(&bytes)?,
                Step::Dribble(bytes) => {
                    socket.set_nodelay(true)?;
                    for byte in bytes {
                        out.write_all(&[byte])?;
                    }
                }
                Step::Close => {
                    socket.shutdown(Shutdown::Both)?;
                    return Ok(Then::Over);
                }
                Step::Reset => {
                    let now = Some(Duration::ZERO);
                    rustix::net::sockopt::set_socket_linger(socket, now)?;
                    return Ok(Then::Over);
                }
                Step::Silence => {
                    // Read on, so that nothing but the missing answers can be noticed.
                    let mut sink = [0; 4096];
                    while out.read(&mut sink)? > 0 {}
                    return Ok(Then::Over);
                }
                Step::Ignore => return Ok(Then::On),
                Step::Forget => {
                    self.forget();
                    return Ok(Then::Over);
                }
            }
        }
        Ok(Then::On)
    }

    /// Loses every session, as a restart does.
    fn forget(&self) {
        let mut state = self.lock();
        state.forgot = true;
        for socket in state.sockets.values() {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    fn serve(&self, socket: TcpStream) -> io::Result<()> {
        socket.set_nodelay(true)?;
        let mut handshake = Handshake::new(self.config.features, "neonsan-hostile-node", crc32c);
        let Some(introduced) = self.shake_hands(&socket, &mut handshake)? else {
            return Ok(());
        };
        let id = {
            let mut state = self.lock();
            let id = ConnectionId(state.next_id);
            state.next_id += 1;
            id
        };
        let result = self.admitted(&socket, &handshake, &introduced, id);
        let now = self.now();
        let mut state = self.lock();
        state.sockets.remove(&id);
        state.outcomes.remove(&id);
        state.gate.on_drained(id, now);
        self.pump(&mut state);
        drop(state);
        let _ = socket.shutdown(Shutdown::Both);
        result
    }

    fn shake_hands(
        &self,
        mut socket: &TcpStream,
        handshake: &mut Handshake,
    ) -> io::Result<Option<Introduced>> {
        let mut hello = Vec::with_capacity(HELLO_BYTES);
        loop {
            let out = handshake.poll_transmit().to_vec();
            if !out.is_empty() {
                // Nothing is agreed yet: no misbehaviour of a hello needs a feature.
                if let Some(what) = self.take_turn(&[Moment::Hello], self.config.features) {
                    let steps = (what.steps)(&Exchange {
                        features: Features::NONE,
                        asked: &hello,
                        answer: &out,
                    });
                    if let Then::Over = self.perform(socket, steps)? {
                        return Ok(None);
                    }
                } else {
                    socket.write_all(&out)?;
                }
                handshake.transmitted(out.len()).map_err(|_| cut())?;
            }
            if let Some(introduced) = handshake.introduced() {
                return Ok(Some(introduced));
            }
            let want = handshake.want();
            let n = socket.read(want)?;
            if n == 0 {
                return Ok(None);
            }
            if hello.len() < HELLO_BYTES {
                hello.extend_from_slice(&want[..n]);
            }
            handshake.received(n).map_err(|_| cut())?;
        }
    }

    fn admitted(
        &self,
        mut socket: &TcpStream,
        handshake: &Handshake,
        introduced: &Introduced,
        id: ConnectionId,
    ) -> io::Result<()> {
        let mut out = Vec::new();
        let (reply, promoted) = match self.ask_gate(socket, introduced, id)? {
            Ok(let_in) => let_in,
            Err(reason) => {
                let refusal = Refusal {
                    holder: reason.holder.map_or([0; 16], |h| h.host_id),
                    generation: reason.generation.into(),
                    retry_after_ms: reason.retry_after_ms.into(),
                    ..Refusal::default()
                };
                handshake.encode_refusal(reason.status, refusal, reason.status.name(), &mut out);
                return socket.write_all(&out);
            }
        };
        handshake.encode_accept(reply, &[], &mut out);
        let moments: &[Moment] = if promoted {
            &[Moment::Open, Moment::Promote]
        } else {
            &[Moment::Open]
        };
        if let Some(what) = self.take_turn(moments, introduced.features) {
            let steps = (what.steps)(&Exchange {
                features: introduced.features,
                asked: introduced.request.as_bytes(),
                answer: &out,
            });
            if let Then::Over = self.perform(socket, steps)? {
                return Ok(());
            }
        } else {
            socket.write_all(&out)?;
        }
        let limits = Limits {
            max_depth: reply.max_depth.get(),
            max_inflight_bytes: reply.max_inflight_bytes.get(),
            read_only: false,
        };
        let receiver = Receiver::new(reply.geometry, limits, introduced.features, crc32c);
        self.answer_requests(socket, receiver, introduced.features, id)
    }

    /// Waits until the gate has let the connection in or turned it away. The answer says whether
    /// the session was promoted after it had been forgotten.
    fn ask_gate(
        &self,
        socket: &TcpStream,
        introduced: &Introduced,
        id: ConnectionId,
    ) -> io::Result<LetIn> {
        let refuse = |status| {
            Ok(Err(RefuseReason {
                status,
                holder: None,
                generation: 0,
                retry_after_ms: 0,
            }))
        };
        let mut state = self.lock();
        if introduced.request.volume().map(|v| v.as_str()) != Ok(self.config.volume.as_str()) {
            return refuse(Status::NoSuchVolume);
        }
        let promoted = state.forgot;
        match introduced.kind {
            IntroducedAs::Join if promoted => return refuse(Status::UnknownSession),
            IntroducedAs::Open if promoted => {
                state.forgot = false;
                // What the gate knew went with the memory of the node.
                state.gate = Gate::new(gate_config());
            }
            IntroducedAs::Open | IntroducedAs::Join => {}
        }
        state.sockets.insert(id, socket.try_clone()?);
        match state
            .gate
            .introduce(id, introduced.kind, &introduced.request, self.now())
        {
            Opening::Refused(reason) => return Ok(Err(reason)),
            Opening::Waiting => {}
        }
        loop {
            self.pump(&mut state);
            match state.outcomes.remove(&id) {
                Some(Ok(())) => break,
                Some(Err(reason)) => return Ok(Err(reason)),
                None => {
                    let moment = Duration::from_millis(50);
                    state = self
                        .decided
                        .wait_timeout(state, moment)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0;
                }
            }
        }
        let reply = open_reply(self.config.geometry, introduced.request.generation.get());
        Ok(Ok((reply, promoted)))
    }

    /// Does what the gate says.
    fn pump(&self, state: &mut State) {
        let now = self.now();
        state.gate.handle_timeout(now);
        // Its memory is all that it has.
        let version = state.gate.memory_version();
        state.gate.on_saved(version, now);
        while let Some(action) = state.gate.poll_action(now) {
            match action {
                GateAction::Admit(id) => {
                    state.outcomes.insert(id, Ok(()));
                }
                GateAction::Refuse(id, reason) => {
                    state.outcomes.insert(id, Err(reason));
                }
                // Its thread ends with its socket, and reports that it is drained.
                GateAction::Revoke(id, _) => {
                    if let Some(socket) = state.sockets.get(&id) {
                        let _ = socket.shutdown(Shutdown::Both);
                    }
                }
            }
        }
        self.decided.notify_all();
    }

    fn answer_requests(
        &self,
        mut socket: &TcpStream,
        mut receiver: Receiver,
        features: Features,
        id: ConnectionId,
    ) -> io::Result<()> {
        let mut write: Option<Command> = None;
        let mut payload = Vec::new();
        loop {
            let received = match receiver.want() {
                Want::Bytes(buffer) => {
                    let n = socket.read(buffer)?;
                    if n == 0 {
                        return Ok(());
                    }
                    receiver.received(n).map_err(|_| cut())?
                }
                Want::Payload { at, remaining } => {
                    payload.resize((at + remaining) as usize, 0);
                    socket.read_exact(&mut payload[at as usize..])?;
                    receiver.payload_received(remaining, crc32c(&payload))
                }
                Want::Skip { remaining } => {
                    let mut sink = vec![0; remaining as usize];
                    socket.read_exact(&mut sink)?;
                    receiver.payload_received(remaining, 0)
                }
            };
            let (command, data) = match received {
                None => continue,
                Some(Received::WriteBegins(command)) => {
                    write = Some(command);
                    payload.clear();
                    continue;
                }
                Some(Received::WriteComplete) => match write.take() {
                    Some(command) => (command, payload.as_slice()),
                    None => continue,
                },
                Some(Received::Command(command)) => (command, [].as_slice()),
                Some(Received::WriteDamaged) => {
                    receiver.answered(payload.len() as u32);
                    let cookie = write.take().map_or(0, |w| w.cookie);
                    let header = Header::reply(Status::ChecksumMismatch, cookie, 0);
                    socket.write_all(&message(header, &[], features))?;
                    continue;
                }
                Some(Received::Rejected { cookie, status }) => {
                    receiver.answered(0);
                    let header = Header::reply(status, cookie, 0);
                    socket.write_all(&message(header, &[], features))?;
                    continue;
                }
                Some(Received::Ping { cookie }) => {
                    let none = neonsan_proto::RequestFlags::NONE;
                    let pong = Header::request(Kind::Pong, none, cookie, 0, 0);
                    socket.write_all(&message(pong, &[], features))?;
                    continue;
                }
                Some(Received::Pong { .. }) => continue,
                Some(Received::Close { release }) => {
                    if release {
                        self.lock().gate.on_release(id);
                    }
                    return Ok(());
                }
            };
            receiver.answered(data.len() as u32);
            if let Then::Over = self.answer(socket, &command, data, features)? {
                return Ok(());
            }
        }
    }

    /// Carries out a request and answers it, right or wrong.
    fn answer(
        &self,
        mut socket: &TcpStream,
        command: &Command,
        data: &[u8],
        features: Features,
    ) -> io::Result<Then> {
        let (status, payload) = match self.lock().disk.apply(command, data) {
            Ok(payload) => (Status::Ok, payload),
            Err(status) => (status, Vec::new()),
        };
        let header = Header::reply(status, command.cookie, payload.len() as u32);
        let answer = message(header, &payload, features);
        let moments: &[Moment] = match command.kind {
            Kind::Read => &[Moment::Request, Moment::Read],
            Kind::Write => &[Moment::Request, Moment::Write],
            _ => &[Moment::Request],
        };
        if let Some(what) = self.take_turn(moments, features) {
            let asked = Header::request(
                command.kind,
                command.flags,
                command.cookie,
                command.offset,
                command.length,
            );
            return self.perform(
                socket,
                (what.steps)(&Exchange {
                    features,
                    asked: asked.as_bytes(),
                    answer: &answer,
                }),
            );
        }
        socket.write_all(&answer)?;
        let mut state = self.lock();
        state.answered += 1;
        if self.wants_reconnect(&state, features) {
            let forgets = self
                .config
                .misbehaviour
                .is_some_and(|m| m.moment == Moment::Promote);
            drop(state);
            if forgets {
                self.forget();
            }
            return Ok(Then::Over);
        }
        Ok(Then::On)
    }
}
