// SPDX-License-Identifier: GPL-2.0 OR MIT
//! A client of the control API, over TCP or a Unix socket.
//!
//! Each call makes one connection: control calls are rare, and a node which
//! was restarted between two calls needs no special care then.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{header, Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::{
    ApiError, ErrorCode, Health, NodeInfo, NodeList, SessionInfo, SnapshotClone, SnapshotCreate,
    SnapshotInfo, SnapshotList, SnapshotName, VolumeCreate, VolumeInfo, VolumeList, VolumeName,
    VolumeResize, API_PREFIX, DEFAULT_CONTROL_PORT, DEFAULT_CONTROL_SOCKET,
};

/// Longest answer that is read; a node with 100,000 volumes stays below it.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// Time for one call when the caller sets none.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a node may give no sign of life while it is waited for, when the caller says nothing else.
pub const DEFAULT_PATIENCE: Duration = Duration::from_secs(10);

/// Pause between two tries to get a sign of life.
const PROBE_PAUSE: Duration = Duration::from_millis(500);

/// Time for connecting, however long the answer may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Where a node's control API is.
///
/// Written `unix:/path/to/socket`, `host`, `host:port`, `[v6]:port`, or the
/// same with `http://` before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A host name or address, and a port.
    Tcp {
        /// Name or address; IPv6 without brackets.
        host: String,
        /// TCP port.
        port: u16,
    },
    /// The path of a Unix stream socket.
    Unix(PathBuf),
}

impl FromStr for Endpoint {
    type Err = ClientError;

    fn from_str(text: &str) -> Result<Self, ClientError> {
        let bad = |why: &str| ClientError::Endpoint(format!("{text:?}: {why}"));
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() {
                return Err(bad("there is no path after 'unix:'"));
            }
            return Ok(Self::Unix(PathBuf::from(path)));
        }
        if text.starts_with("https://") {
            return Err(bad("the control API has no TLS; use http:// or unix:"));
        }
        let rest = text.strip_prefix("http://").unwrap_or(text);
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let port_of = |port: &str| match port.parse::<u16>() {
            Ok(port) if port != 0 => Ok(port),
            _ => Err(bad("the port must be a number from 1 to 65535")),
        };
        let (host, port) = if let Some(rest) = rest.strip_prefix('[') {
            let (host, after) = rest.split_once(']').ok_or_else(|| bad("no closing ']'"))?;
            match after.strip_prefix(':') {
                Some(port) => (host, port_of(port)?),
                None if after.is_empty() => (host, DEFAULT_CONTROL_PORT),
                None => return Err(bad("only ':port' may follow ']'")),
            }
        } else if rest.matches(':').count() > 1 {
            (rest, DEFAULT_CONTROL_PORT)
        } else {
            match rest.split_once(':') {
                Some((host, port)) => (host, port_of(port)?),
                None => (rest, DEFAULT_CONTROL_PORT),
            }
        };
        if host.is_empty() || host.contains('/') {
            return Err(bad("expected host[:port] or unix:/path"));
        }
        Ok(Self::Tcp {
            host: host.to_owned(),
            port,
        })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "http://[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "http://{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Why a call gave no result.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The endpoint is not written as one.
    #[error("bad control address {0}")]
    Endpoint(String),
    /// No connection to the node.
    #[error("cannot reach the node's control API at {endpoint}: {source}")]
    Connect {
        /// The address that was tried.
        endpoint: Endpoint,
        /// What the system said.
        source: io::Error,
    },
    /// No connection to a node of this machine, in either way.
    #[error("no node of this machine answers: {first}: {first_source}; {second}: {second_source}")]
    Nowhere {
        /// The address that was tried first.
        first: Endpoint,
        /// What the system said.
        first_source: io::Error,
        /// The one that was tried then.
        second: Endpoint,
        /// What the system said.
        second_source: io::Error,
    },
    /// The answer did not come in time.
    #[error("the node at {endpoint} did not answer within {} s", timeout.as_secs_f32())]
    Timeout {
        /// The address that was asked.
        endpoint: Endpoint,
        /// How long it was waited for.
        timeout: Duration,
    },
    /// Neither this call nor a simple question beside it was answered: what is there accepts connections
    /// at most.
    #[error(
        "the node at {endpoint} gives no sign of life: for {} s it has answered nothing",
        patience.as_secs_f32()
    )]
    Silent {
        /// The address that was asked.
        endpoint: Endpoint,
        /// How long it was waited for.
        patience: Duration,
    },
    /// There is a peer, but it does not speak the control API.
    #[error("{endpoint} does not answer as a NeonSAN control API: {reason}")]
    Protocol {
        /// The address that was tried.
        endpoint: Endpoint,
        /// What was wrong with the answer.
        reason: String,
    },
    /// The node refused.
    #[error("{0}")]
    Refused(#[from] ApiError),
}

/// Calls one node's control API.
#[derive(Clone, Debug)]
pub struct Client {
    endpoint: Endpoint,
    /// Called where nobody listens at `endpoint`.
    otherwise: Option<Endpoint>,
    timeout: Duration,
    patience: Duration,
}

impl Client {
    /// A client of the node at `endpoint`; connects at each call only.
    pub fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            otherwise: None,
            timeout: DEFAULT_TIMEOUT,
            patience: DEFAULT_PATIENCE,
        }
    }

    /// A client of the node on this machine: at the default socket, or else, where nobody listens
    /// there, at the default port of `host`, which must be this machine.
    pub fn of_this_machine(host: &str) -> Self {
        let mut client = Self::new(Endpoint::Unix(DEFAULT_CONTROL_SOCKET.into()));
        client.otherwise = Some(Endpoint::Tcp {
            host: host.to_owned(),
            port: DEFAULT_CONTROL_PORT,
        });
        client
    }

    /// Sets the time that one call may take.
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets how long the node may give no sign of life during a call. A call that takes long is waited
    /// for as long as its time lasts if the node answers a simple question meanwhile. That time is at
    /// least as long, unless it is set after this.
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self.timeout = self.timeout.max(patience);
        self
    }

    /// The address that is called.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// What the node is.
    pub async fn node(&self) -> Result<NodeInfo, ClientError> {
        self.get("/node").await
    }

    /// How the node is, also if that is not well.
    pub async fn health(&self) -> Result<Health, ClientError> {
        let (status, body) = self.exchange(Method::GET, "/health", Bytes::new()).await?;
        // A node with problems answers 503, with what they are.
        match serde_json::from_slice(&body) {
            Ok(health) => Ok(health),
            Err(error) if status.is_success() => {
                Err(self.protocol(format!("the answer to /health is not as expected: {error}")))
            }
            Err(_) => Err(self.refusal(status, &body)),
        }
    }

    /// Sessions open on the node.
    pub async fn sessions(&self) -> Result<Vec<SessionInfo>, ClientError> {
        self.get("/sessions").await
    }

    /// All volumes, or those of one pool.
    pub async fn list_volumes(&self, pool: Option<&str>) -> Result<VolumeList, ClientError> {
        match pool {
            // The pool's name needs no escaping: a name with characters that
            // would is not a pool's name, which this finds out first.
            Some(pool) => {
                VolumeName::new(pool, "x")
                    .map_err(|e| ApiError::new(ErrorCode::BadName, e.to_string()))?;
                self.get(&format!("/volumes?pool={pool}")).await
            }
            None => self.get("/volumes").await,
        }
    }

    /// One volume with its limits and sessions.
    pub async fn volume(&self, name: &VolumeName) -> Result<VolumeInfo, ClientError> {
        self.get(&format!("/volumes/{name}")).await
    }

    /// Creates a volume.
    pub async fn create_volume(&self, create: &VolumeCreate) -> Result<VolumeInfo, ClientError> {
        self.send(Method::POST, "/volumes", Some(create)).await
    }

    /// Gives a volume another size; its sessions learn of it by an event.
    pub async fn resize_volume(
        &self,
        name: &VolumeName,
        resize: &VolumeResize,
    ) -> Result<VolumeInfo, ClientError> {
        self.send(
            Method::POST,
            &format!("/volumes/{name}/resize"),
            Some(resize),
        )
        .await
    }

    /// Deletes a volume that no session holds, with its data.
    pub async fn delete_volume(&self, name: &VolumeName) -> Result<(), ClientError> {
        let path = format!("/volumes/{name}");
        let answer = self.exchange(Method::DELETE, &path, Bytes::new()).await?;
        self.accept(answer).map(drop)
    }

    /// The snapshots of a volume, the oldest first.
    pub async fn list_snapshots(&self, name: &VolumeName) -> Result<SnapshotList, ClientError> {
        self.get(&format!("/volumes/{name}/snapshots")).await
    }

    /// One snapshot with its children and sessions.
    pub async fn snapshot(&self, name: &SnapshotName) -> Result<SnapshotInfo, ClientError> {
        self.get(&snapshot_path(name)).await
    }

    /// Keeps the content of a volume, in use or not, as it is at one moment.
    pub async fn create_snapshot(&self, name: &SnapshotName) -> Result<SnapshotInfo, ClientError> {
        let create = SnapshotCreate {
            snapshot: name.snapshot().to_owned(),
        };
        let path = format!("/volumes/{}/snapshots", name.volume());
        self.send(Method::POST, &path, Some(&create)).await
    }

    /// Deletes a snapshot that no session reads and no clone needs.
    pub async fn delete_snapshot(&self, name: &SnapshotName) -> Result<(), ClientError> {
        let path = snapshot_path(name);
        let answer = self.exchange(Method::DELETE, &path, Bytes::new()).await?;
        self.accept(answer).map(drop)
    }

    /// Gives a volume that no session holds the content and size of its
    /// snapshot.
    pub async fn roll_back(&self, name: &SnapshotName) -> Result<VolumeInfo, ClientError> {
        let path = format!("{}/rollback", snapshot_path(name));
        self.send(Method::POST, &path, None::<&()>).await
    }

    /// Makes a volume from a snapshot.
    pub async fn clone_snapshot(
        &self,
        from: &SnapshotName,
        to: &VolumeName,
    ) -> Result<VolumeInfo, ClientError> {
        let path = format!("{}/clone", snapshot_path(from));
        let clone = SnapshotClone { name: to.clone() };
        self.send(Method::POST, &path, Some(&clone)).await
    }

    /// Ends a clone's dependence on the snapshot that it was made from.
    pub async fn flatten_volume(&self, name: &VolumeName) -> Result<VolumeInfo, ClientError> {
        let path = format!("/volumes/{name}/flatten");
        self.send(Method::POST, &path, None::<&()>).await
    }

    /// Gives a volume that no session holds, and its snapshots, an identity of its
    /// own: it is a copy.
    pub async fn adopt_volume(&self, name: &VolumeName) -> Result<VolumeInfo, ClientError> {
        let path = format!("/volumes/{name}/adopt");
        self.send(Method::POST, &path, None::<&()>).await
    }

    /// The nodes which have the same volumes as this one.
    pub async fn nodes(&self) -> Result<NodeList, ClientError> {
        self.get("/nodes").await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.send(Method::GET, path, None::<&()>).await
    }

    async fn send<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<T, ClientError> {
        let body = match body {
            Some(body) => serde_json::to_vec(body)
                .map_err(|e| self.protocol(format!("the request cannot be written: {e}")))?
                .into(),
            None => Bytes::new(),
        };
        let answer = self.exchange(method, path, body).await?;
        let answer = self.accept(answer)?;
        serde_json::from_slice(&answer)
            .map_err(|e| self.protocol(format!("the answer to {path} is not as expected: {e}")))
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let asked = self.exchange_here(method.clone(), path, body.clone()).await;
        let (first, first_source, second) = match (asked, &self.otherwise) {
            // Only where nobody listens: one who may not use the socket is not to reach another node.
            (Err(ClientError::Connect { endpoint, source }), Some(second))
                if matches!(
                    source.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                (endpoint, source, second)
            }
            (answer, _) => return answer,
        };
        let other = Self {
            endpoint: second.clone(),
            otherwise: None,
            timeout: self.timeout,
            patience: self.patience,
        };
        match other.exchange_here(method, path, body).await {
            Err(ClientError::Connect { endpoint, source }) => Err(ClientError::Nowhere {
                first,
                first_source,
                second: endpoint,
                second_source: source,
            }),
            answer => answer,
        }
    }

    /// Asks at the endpoint alone.
    async fn exchange_here(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let call = async {
            let (stream, host) =
                connect_to(&self.endpoint)
                    .await
                    .map_err(|source| ClientError::Connect {
                        endpoint: self.endpoint.clone(),
                        source,
                    })?;
            self.converse(stream, host, method, path, body).await
        };
        tokio::time::timeout(self.timeout, self.while_alive(call))
            .await
            .map_err(|_| ClientError::Timeout {
                endpoint: self.endpoint.clone(),
                timeout: self.timeout,
            })?
    }

    /// The result of a call, or an error when the node gives no sign of life for too long meanwhile: the
    /// node answers a call only at its end, so it is asked something simple beside it.
    async fn while_alive<T>(
        &self,
        call: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        tokio::pin!(call);
        let mut heard = Instant::now();
        loop {
            if let Ok(result) = tokio::time::timeout(self.patience / 2, &mut call).await {
                return result;
            }
            let rest = self.patience.saturating_sub(heard.elapsed());
            let silent = tokio::select! {
                result = &mut call => return result,
                probed = tokio::time::timeout(rest, self.sign_of_life()) => probed.is_err(),
            };
            if silent {
                return Err(ClientError::Silent {
                    endpoint: self.endpoint.clone(),
                    patience: self.patience,
                });
            }
            heard = Instant::now();
        }
    }

    /// Returns when the node has answered a simple question, whatever its answer.
    async fn sign_of_life(&self) {
        loop {
            if let Ok((stream, host)) = connect_to(&self.endpoint).await {
                let asked = self.converse(stream, host, Method::GET, "/health", Bytes::new());
                if asked.await.is_ok() {
                    return;
                }
            }
            tokio::time::sleep(PROBE_PAUSE).await;
        }
    }

    /// Sends one request over `stream` and reads the whole answer.
    async fn converse(
        &self,
        stream: Box<dyn Stream>,
        host: String,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let request = Request::builder()
            .method(method)
            .uri(format!("{API_PREFIX}{path}"))
            .header(header::HOST, host)
            .header(header::ACCEPT, "application/json")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|e| self.protocol(e.to_string()))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| self.protocol(e.to_string()))?;
        let talk = async {
            let answer = sender
                .send_request(request)
                .await
                .map_err(|e| self.protocol(e.to_string()))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES)
                .collect()
                .await
                .map_err(|e| self.protocol(e.to_string()))?
                .to_bytes();
            Ok::<_, ClientError>((status, body))
        };
        // The connection must be polled for the exchange to move; when it
        // ends first, the exchange still says why.
        tokio::pin!(talk, connection);
        let (status, body) = tokio::select! {
            result = &mut talk => result?,
            _ = &mut connection => talk.await?,
        };
        Ok((status, body))
    }

    /// The body of an answer that is no refusal.
    fn accept(&self, (status, body): (StatusCode, Bytes)) -> Result<Bytes, ClientError> {
        match status.is_success() {
            true => Ok(body),
            false => Err(self.refusal(status, &body)),
        }
    }

    fn refusal(&self, status: StatusCode, body: &[u8]) -> ClientError {
        match serde_json::from_slice::<ApiError>(body) {
            Ok(error) => ClientError::Refused(error),
            Err(_) => self.protocol(describe_status(status)),
        }
    }

    fn protocol(&self, reason: String) -> ClientError {
        ClientError::Protocol {
            endpoint: self.endpoint.clone(),
            reason,
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection, and what the node is called on it: over TCP by its address, under whatever name it
/// was found, since a node does not know all the names that it has.
async fn connect_to(endpoint: &Endpoint) -> io::Result<(Box<dyn Stream>, String)> {
    match endpoint {
        Endpoint::Tcp { host, port } => {
            let stream = in_time(TcpStream::connect((host.as_str(), *port))).await?;
            let host = match stream.peer_addr()?.ip() {
                IpAddr::V4(v4) => format!("{v4}:{port}"),
                IpAddr::V6(v6) => format!("[{v6}]:{port}"),
            };
            Ok((Box::new(stream), host))
        }
        Endpoint::Unix(socket) => {
            let stream = in_time(UnixStream::connect(socket)).await?;
            Ok((Box::new(stream), "localhost".to_owned()))
        }
    }
}

/// The connection, or the error that it takes too long.
async fn in_time<T>(connecting: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(CONNECT_TIMEOUT, connecting)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn snapshot_path(name: &SnapshotName) -> String {
    format!("/volumes/{}/snapshots/{}", name.volume(), name.snapshot())
}

fn describe_status(status: StatusCode) -> String {
    format!("HTTP status {status} without an error in JSON")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_in_all_their_forms() {
        let tcp = |host: &str, port| Endpoint::Tcp {
            host: host.into(),
            port,
        };
        for (text, expected) in [
            ("node1", tcp("node1", 9667)),
            ("node1:80", tcp("node1", 80)),
            ("http://127.0.0.1:9667/", tcp("127.0.0.1", 9667)),
            ("[::1]:5", tcp("::1", 5)),
            ("::1", tcp("::1", 9667)),
            ("[fe80::1]", tcp("fe80::1", 9667)),
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap(), expected, "{text}");
        }
        assert_eq!(
            "unix:/run/x.sock".parse::<Endpoint>().unwrap(),
            Endpoint::Unix("/run/x.sock".into())
        );
        for text in ["", "unix:", "https://a", "a:0", "a:99999", "[::1", "a/b"] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn a_node_that_does_not_answer_is_left_when_the_callers_time_is_over() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let client = Client::new(address.parse().unwrap()).with_timeout(Duration::from_millis(200));
        let error = client.node().await.unwrap_err().to_string();
        assert!(
            error.contains(&address) && error.contains("within 0.2 s"),
            "{error}"
        );
    }

    /// A peer at an address of its own: it accepts what comes, and gives each connection to `serve`.
    async fn peer<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> Client
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream));
            }
        });
        Client::new(address.parse().unwrap()).with_patience(Duration::from_millis(400))
    }

    #[tokio::test]
    async fn a_peer_that_accepts_and_never_answers_is_left_soon_however_long_the_call_may_take() {
        let client = peer(|stream| async move {
            let _stream = stream;
            std::future::pending().await
        });
        let client = client.await.with_timeout(Duration::from_secs(590));
        let begun = Instant::now();
        let error = client.list_volumes(None).await.unwrap_err();
        assert!(begun.elapsed() < Duration::from_secs(60));
        let text = error.to_string();
        assert!(matches!(error, ClientError::Silent { .. }), "{text}");
        assert!(text.contains("for 0.4 s it has answered nothing"), "{text}");
    }

    #[tokio::test]
    async fn a_long_call_is_waited_for_while_the_node_answers_others() {
        let client = peer(|mut stream| async move {
            use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
            let mut head = vec![0; 4096];
            let length = stream.read(&mut head).await.unwrap();
            let is_probe = head[..length].starts_with(b"GET /v1/health ");
            let (pause, body) = match is_probe {
                true => (0, "{}"),
                false => (2_000, r#"{"volumes":[],"missing":[]}"#),
            };
            tokio::time::sleep(Duration::from_millis(pause)).await;
            let length = body.len();
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        let list = client.await.list_volumes(None).await.unwrap();
        assert!(list.volumes.is_empty());
    }

    #[tokio::test]
    async fn an_absent_node_is_named_in_the_error() {
        let client = Client::new("unix:/nonexistent/socket".parse().unwrap());
        let error = client.node().await.unwrap_err().to_string();
        assert!(error.contains("/nonexistent/socket"), "{error}");
    }
}
