// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Every way in which a node may break the protocol, by name.
//!
//! A [`Misbehaviour`] is given an exchange that went right so far (what the client asked and what
//! a correct node would answer) and says what to do instead. With it stands what the client must
//! make of it: the name of the `CloseCause`, and whether its device lives on.
//!
//! The list is played twice: to the client machines in memory (`tests/hostile.rs`), and by
//! `neonsan-hostile-node` to the kernel driver.

mod handshake;
mod requests;

use neonsan_proto::{Features, Header};
use zerocopy::FromBytes as _;

/// What a node does instead of answering right, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send these bytes.
    Send(Vec<u8>),
    /// Send these bytes one at a time.
    Dribble(Vec<u8>),
    /// Close the connection in order.
    Close,
    /// Close the connection so that the client's socket fails.
    Reset,
    /// Send nothing more on this connection, whatever comes, and keep it open.
    Silence,
    /// Forget this one request and go on; signs of life included.
    Ignore,
    /// Forget the session: close, refuse its JOINs, and wait for its OPEN.
    Forget,
}

/// When the misbehaviour has its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Instead of the node's hello.
    Hello,
    /// Instead of the OPEN_REPLY that lets a connection in.
    Open,
    /// The node forgets the session; then instead of the OPEN_REPLY that lets it in again.
    Promote,
    /// Instead of the reply to any request.
    Request,
    /// Instead of the reply to a READ.
    Read,
    /// Instead of the reply to a WRITE.
    Write,
}

/// What becomes of the client's device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The connection is closed with the named cause, made anew, and every request succeeds. An
    /// attach fails with the cause instead, if it was its first connection.
    Recovers,
    /// It is odd but allowed: nothing is closed, every request succeeds.
    Allowed,
    /// The device ends: its requests fail.
    Fails,
}

/// One exchange that went right so far.
#[derive(Clone, Copy, Debug)]
pub struct Exchange<'a> {
    /// Features in force (none yet at [`Moment::Hello`]).
    pub features: Features,
    /// What the client sent: a hello, the payload of OPEN or JOIN, or a request with its payload.
    pub asked: &'a [u8],
    /// What a correct node would answer.
    pub answer: &'a [u8],
}

impl Exchange<'_> {
    /// The header of the request.
    fn request(&self) -> Header {
        Header::read_from_prefix(self.asked).map_or(
            Header::new(neonsan_proto::Kind::Unknown(0)),
            |(header, _)| header,
        )
    }
}

/// One way to break the protocol.
#[derive(Clone, Copy, Debug)]
pub struct Misbehaviour {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it does, for people.
    pub about: &'static str,
    /// When it has its turn.
    pub moment: Moment,
    /// What becomes of the client's device.
    pub outcome: Outcome,
    /// Features without which it is no misbehaviour at all.
    pub needs: Features,
    /// Names of the causes that a client may report; empty if none.
    pub causes: &'static [&'static str],
    /// The same for a connection without header checksums, if they differ.
    pub causes_unchecked: Option<&'static [&'static str]>,
    /// What to do.
    pub steps: fn(&Exchange<'_>) -> Vec<Step>,
}

impl Misbehaviour {
    /// The one with this name.
    pub fn find(name: &str) -> Option<&'static Misbehaviour> {
        all().find(|m| m.name == name)
    }

    /// Names of the causes that a client may report with these features in force.
    pub fn causes(&self, features: Features) -> &'static [&'static str] {
        match self.causes_unchecked {
            Some(causes) if !features.contains(Features::HEADER_CRC) => causes,
            _ => self.causes,
        }
    }
}

/// All of them.
pub fn all() -> impl Iterator<Item = &'static Misbehaviour> {
    handshake::LIST.iter().chain(requests::LIST)
}

type Steps = fn(&Exchange<'_>) -> Vec<Step>;

const fn recovers(
    moment: Moment,
    name: &'static str,
    causes: &'static [&'static str],
    about: &'static str,
    steps: Steps,
) -> Misbehaviour {
    Misbehaviour {
        name,
        about,
        moment,
        outcome: Outcome::Recovers,
        needs: Features::NONE,
        causes,
        causes_unchecked: None,
        steps,
    }
}

const fn allowed(
    moment: Moment,
    name: &'static str,
    about: &'static str,
    steps: Steps,
) -> Misbehaviour {
    Misbehaviour {
        outcome: Outcome::Allowed,
        ..recovers(moment, name, &[], about, steps)
    }
}

const fn fails(
    moment: Moment,
    name: &'static str,
    causes: &'static [&'static str],
    about: &'static str,
    steps: Steps,
) -> Misbehaviour {
    Misbehaviour {
        outcome: Outcome::Fails,
        ..recovers(moment, name, causes, about, steps)
    }
}

const fn needing(needs: Features, misbehaviour: Misbehaviour) -> Misbehaviour {
    Misbehaviour {
        needs,
        ..misbehaviour
    }
}

const fn unchecked(
    causes_unchecked: &'static [&'static str],
    misbehaviour: Misbehaviour,
) -> Misbehaviour {
    Misbehaviour {
        causes_unchecked: Some(causes_unchecked),
        ..misbehaviour
    }
}

/// A connection that was cut: which of the two is seen depends on what was under way.
const CUT: &[&str] = &["peer-closed", "socket-error"];

fn send(bytes: Vec<u8>) -> Vec<Step> {
    vec![Step::Send(bytes)]
}

/// The first `n` bytes of the right answer, then the end.
fn cut_after(answer: &[u8], n: usize) -> Vec<Step> {
    vec![
        Step::Send(answer[..n.min(answer.len())].to_vec()),
        Step::Close,
    ]
}

/// Bytes that are no message at all.
fn garbage(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    crate::random::Random::new(0xbad).fill(&mut bytes);
    // Not by chance the first byte of something.
    if let Some(first) = bytes.first_mut() {
        *first = 0xee;
    }
    bytes
}
