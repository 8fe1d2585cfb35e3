// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The control API's server: HTTP/1.1 with JSON on a Unix socket, or on TCP where the configuration
//! says so; and the metrics, which have a listener of their own.
//!
//! It has no authentication of its own but for the users that a Unix socket lets in, so it does not
//! trust where a request comes from either: one with an `Origin` (a page in somebody's browser) is
//! refused, and so are one that calls the node by a foreign name, and a change that is not declared as
//! JSON, which a page cannot send without being asked first.
//!
//! * [`unix`]: the Unix socket; [`host`]: names; [`places`]: how many connections.
//! * [`routes`]: which request is answered by what.

mod claim;
#[cfg(feature = "test-faults")]
mod faults;
mod host;
mod places;
mod routes;
mod snapshots;
mod unix;
mod volumes;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};

use crate::config::ControlAddress;
use crate::listen::{listen_later, listen_or_wait};
use crate::node::NodeError;
use crate::shared::Shared;
use places::{Places, Ticket};
use unix::{Caller, UnixSocket};

/// Time for a client to send the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Time for a connection with all its requests.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(600);

/// What the log says of a user who is not let in at the control socket.
const NO_CALLER: &str = "a user who may not use the control API connected to it";

/// Connections to the metrics at a time.
const MAX_METRICS_CONNECTIONS: usize = 16;

/// What a listener serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    /// The control API.
    Control,
    /// Metrics and health, and nothing that changes anything.
    Metrics,
}

impl Door {
    fn setting(self) -> &'static str {
        match self {
            Self::Control => "control.listen",
            Self::Metrics => "metrics.listen",
        }
    }
}

/// A bound address.
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, Arc<UnixSocket>),
}

/// All that are bound, and those TCP addresses that may come later.
pub(crate) struct Listeners {
    bound: Vec<(Door, Listener)>,
    later: Vec<(Door, SocketAddr)>,
}

/// Binds all configured addresses. To be called within the runtime.
pub(crate) fn bind(shared: &Shared) -> Result<Listeners, NodeError> {
    let config = &shared.config;
    let mut listeners = Listeners {
        bound: Vec::new(),
        later: Vec::new(),
    };
    let control: Vec<SocketAddr> = config.control.tcp().collect();
    for (door, addresses) in [
        (Door::Control, &control),
        (Door::Metrics, &config.metrics.listen),
    ] {
        for &address in addresses {
            let waiting = &shared.waiting;
            for tcp in listen_or_wait(config, door.setting(), &[address], waiting)? {
                let tcp = TcpListener::from_std(tcp)?;
                announce(door, &tcp)?;
                listeners.bound.push((door, Listener::Tcp(tcp)));
            }
            if waiting.contains(door.setting(), address) {
                listeners.later.push((door, address));
            }
        }
    }
    for text in &config.control.listen {
        // `Config::check` has seen that it is an address, and that there is a mode.
        let Ok(ControlAddress::Unix(path)) = ControlAddress::parse(text) else {
            continue;
        };
        let mode = config.control.mode().unwrap_or(0o600);
        let (listener, socket) =
            UnixSocket::listen(&path, mode).map_err(|source| NodeError::Listen {
                address: text.clone(),
                hint: String::new(),
                source,
            })?;
        let listener = UnixListener::from_std(listener)?;
        tracing::info!(address = %text, "control API open");
        let listener = Listener::Unix(listener, Arc::new(socket));
        listeners.bound.push((Door::Control, listener));
    }
    Ok(listeners)
}

/// Says that a port is open, and what that means.
fn announce(door: Door, listener: &TcpListener) -> io::Result<()> {
    let local = listener.local_addr()?;
    match door {
        Door::Metrics => tracing::info!(address = %local, "metrics open"),
        Door::Control => {
            tracing::info!(address = %local, "control API open");
            let reachable_by = match local.ip().is_loopback() {
                true => "every user of this machine",
                false => "every host that reaches it",
            };
            tracing::warn!(
                address = %local,
                "the control API listens on TCP, where nothing authenticates who calls it: \
                 {reachable_by} can delete every volume; a Unix socket lets in root and a group"
            );
        }
    }
    Ok(())
}

/// Serves all listeners for as long as the runtime lives, within which it is called.
pub(crate) fn serve(listeners: Listeners, shared: &Arc<Shared>) {
    let control = Places::default();
    let metrics = Places::default();
    let places = |door| match door {
        Door::Control => control.clone(),
        Door::Metrics => metrics.clone(),
    };
    for (door, listener) in listeners.bound {
        tokio::spawn(accept(door, listener, places(door), Arc::clone(shared)));
    }
    for (door, address) in listeners.later {
        let (places, shared) = (places(door), Arc::clone(shared));
        tokio::spawn(async move {
            let (config, waiting) = (&shared.config, &shared.waiting);
            let tcp = listen_later(config, door.setting(), address, waiting).await;
            let opened = TcpListener::from_std(tcp).and_then(|tcp| {
                announce(door, &tcp)?;
                Ok(tcp)
            });
            match opened {
                Ok(tcp) => accept(door, Listener::Tcp(tcp), places, Arc::clone(&shared)).await,
                Err(error) => tracing::error!(%address, %error, "cannot serve the control API"),
            }
        });
    }
}

async fn accept(door: Door, listener: Listener, places: Places, shared: Arc<Shared>) {
    loop {
        let accepted: io::Result<(Box<dyn Stream>, Option<Caller>)> = match &listener {
            Listener::Tcp(tcp) => tcp.accept().await.map(|(s, _)| (Box::new(s) as _, None)),
            Listener::Unix(unix, socket) => match unix.accept().await {
                Ok((stream, _)) => match Caller::of(&stream) {
                    Ok(caller) if socket.allows(&caller) => {
                        Ok((Box::new(stream) as _, Some(caller)))
                    }
                    Ok(caller) => {
                        let kind = (NO_CALLER, "");
                        if shared.log_limits.admits(kind, shared.clock.now()) {
                            tracing::warn!(uid = caller.uid, pid = caller.pid, "{NO_CALLER}");
                        }
                        continue;
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot tell who calls the control API");
                        continue;
                    }
                },
                Err(error) => Err(error),
            },
        };
        let (stream, caller) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept control connections for a moment");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let max = match door {
            Door::Control => shared.live().config.limits.max_control_connections as usize,
            Door::Metrics => MAX_METRICS_CONNECTIONS,
        };
        let Some(ticket) = places.enter(max) else {
            let kind = ("refused a control connection", "");
            if shared.log_limits.admits(kind, shared.clock.now()) {
                tracing::warn!(
                    "refused a control connection: all that may be are busy \
                     (limits.max_control_connections)"
                );
            }
            continue;
        };
        let shared = Arc::clone(&shared);
        tokio::spawn(converse(door, stream, caller, ticket, shared));
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn converse(
    door: Door,
    stream: Box<dyn Stream>,
    caller: Option<Caller>,
    ticket: Ticket,
    shared: Arc<Shared>,
) {
    let (caller, ticket) = (caller.as_ref(), &ticket);
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move {
            match door {
                Door::Control => routes::answer(shared, request, caller, ticket).await,
                Door::Metrics => routes::answer_metrics(shared, request, ticket).await,
            }
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        ended = tokio::time::timeout(CONNECTION_TIMEOUT, connection) => {
            if let Ok(Err(error)) = ended {
                tracing::debug!(%error, "a control connection ended");
            }
        }
        () = ticket.must_leave() => {
            tracing::debug!("an idle control connection made room for another");
        }
    }
}
