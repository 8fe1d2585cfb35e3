// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The control API's server: HTTP/1.1 with JSON on loopback or a Unix socket.
//!
//! It has no authentication of its own, so it does not trust where a request
//! comes from either: one with an `Origin` (a page in somebody's browser) is
//! refused, and so is a change that is not declared as JSON, which a page
//! cannot send without being asked first.

mod claim;
#[cfg(feature = "test-faults")]
mod faults;
mod routes;
mod snapshots;
mod volumes;

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::Semaphore;

use crate::config::{ControlAddress, ControlConfig};
use crate::node::NodeError;
use crate::shared::Shared;

/// Time for a client to send the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Time for a connection with all its requests.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(600);

/// A bound address.
pub(crate) enum Listener {
    Tcp(TcpListener),
    /// With the path to remove at the end.
    Unix(UnixListener, PathBuf),
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            // Another node may have replaced it meanwhile; then that one
            // makes a new socket when it is restarted.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Binds all configured addresses.
pub(crate) async fn bind(config: &ControlConfig) -> Result<Vec<Listener>, NodeError> {
    let mut listeners = Vec::new();
    for address in &config.listen {
        let listener = bind_one(config, address)
            .await
            .map_err(|source| NodeError::Listen {
                address: address.clone(),
                hint: NodeError::listen_hint(&source, "control.listen"),
                source,
            })?;
        listeners.push(listener);
    }
    Ok(listeners)
}

async fn bind_one(config: &ControlConfig, address: &str) -> io::Result<Listener> {
    // `Config::check` has seen that it is one.
    let parsed = ControlAddress::parse(address)
        .map_err(|reason| io::Error::new(io::ErrorKind::InvalidInput, reason))?;
    let socket = match parsed {
        ControlAddress::Tcp(socket) => socket,
        ControlAddress::Unix(path) => {
            // A socket to which nobody listens is left over from a node that died.
            if path.exists() && UnixStream::connect(&path).await.is_err() {
                std::fs::remove_file(&path)?;
            }
            let listener = UnixListener::bind(&path)?;
            // `Config::check` has seen that there is a mode.
            let mode = config.mode().unwrap_or(0o600);
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
            tracing::info!(address, "control API open");
            return Ok(Listener::Unix(listener, path));
        }
    };
    let listener = TcpListener::bind(socket).await?;
    let local = listener.local_addr()?;
    tracing::info!(address = %local, "control API open");
    if !local.ip().is_loopback() {
        tracing::warn!(
            address = %local,
            "the control API is not on loopback: every host that reaches it can delete every volume"
        );
    }
    Ok(Listener::Tcp(listener))
}

/// Serves all listeners for as long as the runtime lives.
pub(crate) async fn serve(listeners: Vec<Listener>, shared: Arc<Shared>) {
    let places = Arc::new(Semaphore::new(
        shared.config.limits.max_control_connections as usize,
    ));
    for listener in listeners {
        let shared = Arc::clone(&shared);
        let places = Arc::clone(&places);
        tokio::spawn(async move {
            loop {
                let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                    return;
                };
                let accepted: io::Result<Box<dyn Stream>> = match &listener {
                    Listener::Tcp(tcp) => tcp.accept().await.map(|(s, _)| Box::new(s) as _),
                    Listener::Unix(unix, _) => unix.accept().await.map(|(s, _)| Box::new(s) as _),
                };
                match accepted {
                    Ok(stream) => {
                        let shared = Arc::clone(&shared);
                        tokio::spawn(async move {
                            converse(stream, shared).await;
                            drop(place);
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept control connections for a moment");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        });
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn converse(stream: Box<dyn Stream>, shared: Arc<Shared>) {
    let service = service_fn(move |request| routes::answer(Arc::clone(&shared), request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION_TIMEOUT, connection).await {
        Ok(Ok(())) | Err(_) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a control connection ended"),
    }
}
