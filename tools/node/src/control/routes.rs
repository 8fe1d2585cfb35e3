// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Which request is answered by what.

use std::convert::Infallible;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::http::request::Parts;
use hyper::{header, Method, Request, Response, StatusCode};
use neonsan_api::{
    ApiError, EngineInfo, ErrorCode, HealthStatus, NodeInfo, NodeLimits, SnapshotCreate,
    SnapshotName, VolumeName, API_PREFIX,
};
use serde::de::DeserializeOwned;
use serde::Serialize;

use super::host::check_host;
use super::places::{Busy, Ticket};
use super::unix::Caller;
use super::{snapshots, volumes};
use crate::health::health;
use crate::shared::{hex, Shared};
use crate::{metrics, peers};

/// Longest body of a request.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// Time for a client to send it.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// The API's description, as documented.
const OPENAPI: &str = include_str!("../../../../Documentation/node-api/openapi.yaml");

type Answer = Response<Full<Bytes>>;
type Result<T> = std::result::Result<T, ApiError>;

fn with_body(status: StatusCode, content_type: &str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    if let Ok(value) = header::HeaderValue::from_str(content_type) {
        answer.headers_mut().insert(header::CONTENT_TYPE, value);
    }
    answer
}

fn json<T: Serialize>(status: StatusCode, value: &T) -> Answer {
    match serde_json::to_vec(value) {
        Ok(body) => with_body(status, "application/json", body),
        Err(error) => failure(&ApiError::new(
            ErrorCode::Internal,
            format!("the answer cannot be written: {error}"),
        )),
    }
}

fn failure(error: &ApiError) -> Answer {
    let status =
        StatusCode::from_u16(error.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    // Strings only: this cannot fail.
    let body = serde_json::to_vec(error).unwrap_or_default();
    with_body(status, "application/json", body)
}

/// Answers one request to the control API, whatever it is. `caller` is who called over a Unix socket.
pub(super) async fn answer(
    shared: Arc<Shared>,
    request: Request<Incoming>,
    caller: Option<&Caller>,
    ticket: &Ticket,
) -> std::result::Result<Answer, Infallible> {
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let answer = match admit(&shared, request, caller.is_none(), ticket).await {
        Ok((request, busy)) => {
            let answer = route(shared, request).await;
            drop(busy);
            answer
        }
        Err(error) => Err(error),
    };
    let answer = answer.unwrap_or_else(|error| failure(&error));
    let status = answer.status().as_u16();
    let (uid, pid) = (caller.map(|c| c.uid), caller.map(|c| c.pid));
    if method == Method::GET {
        tracing::debug!(%method, path, status, uid, pid, "control request");
    } else {
        tracing::info!(%method, path, status, uid, pid, "control request");
    }
    Ok(answer)
}

/// Answers one request to the metrics' own listener.
pub(super) async fn answer_metrics(
    shared: Arc<Shared>,
    request: Request<Incoming>,
    ticket: &Ticket,
) -> std::result::Result<Answer, Infallible> {
    let Some(_busy) = ticket.begin() else {
        return Ok(failure(&made_room()));
    };
    let health_path = format!("{API_PREFIX}/health");
    let answer = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => metrics_page(shared).await,
        (&Method::GET, path) if path == health_path => Ok(health_page(&shared)),
        (method, path) => Err(ApiError::new(
            ErrorCode::NotFound,
            format!("there is no {method} {path} here"),
        )
        .with_hint(format!(
            "here are /metrics and {health_path} only; the rest is at control.listen"
        ))),
    };
    Ok(answer.unwrap_or_else(|error| failure(&error)))
}

fn made_room() -> ApiError {
    ApiError::new(
        ErrorCode::Busy,
        "the connection had to make room for others before its request had arrived",
    )
    .with_hint("try again")
}

/// Looks at where a request comes from, and waits for all of it. From then on its connection is busy.
async fn admit<'a>(
    shared: &Shared,
    request: Request<Incoming>,
    is_tcp: bool,
    ticket: &'a Ticket,
) -> Result<(Request<Bytes>, Busy<'a>)> {
    let (head, body) = request.into_parts();
    if is_tcp {
        check_host(&head, &shared.live().config.control.hosts)?;
    }
    check_origin(&head)?;
    let body = Limited::new(body, MAX_BODY_BYTES).collect();
    let body = tokio::time::timeout(BODY_TIMEOUT, body)
        .await
        .map_err(|_| bad_request("the body did not arrive in time"))?
        .map_err(|e| bad_request(format!("the body cannot be read: {e}")))?
        .to_bytes();
    let busy = ticket.begin().ok_or_else(made_room)?;
    Ok((Request::from_parts(head, body), busy))
}

async fn metrics_page(shared: Arc<Shared>) -> Result<Answer> {
    let page = volumes::blocking(move || Ok(metrics::exposition(&shared))).await?;
    let content_type = "text/plain; version=0.0.4; charset=utf-8";
    Ok(with_body(StatusCode::OK, content_type, page))
}

fn health_page(shared: &Shared) -> Answer {
    let health = health(shared);
    let status = match health.status {
        HealthStatus::Ok => StatusCode::OK,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    json(status, &health)
}

fn bad_request(text: impl Into<String>) -> ApiError {
    ApiError::new(ErrorCode::BadRequest, text)
}

fn check_origin(head: &Parts) -> Result<()> {
    if head.headers.contains_key(header::ORIGIN) {
        return Err(ApiError::new(
            ErrorCode::NotPermitted,
            "requests from web pages are refused",
        ));
    }
    let is_change = !matches!(head.method, Method::GET | Method::HEAD);
    let content_type = head
        .headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    if is_change && !content_type.starts_with("application/json") {
        return Err(bad_request(
            "a change must be sent with Content-Type: application/json",
        ));
    }
    Ok(())
}

fn read_json<T: DeserializeOwned>(request: &Request<Bytes>) -> Result<T> {
    serde_json::from_slice(request.body())
        .map_err(|e| bad_request(format!("the body is wrong: {e}")))
}

fn name_of(pool: &str, volume: &str) -> Result<VolumeName> {
    VolumeName::new(pool, volume).map_err(|e| ApiError::new(ErrorCode::BadName, e.to_string()))
}

fn snapshot_of(pool: &str, volume: &str, snapshot: &str) -> Result<SnapshotName> {
    SnapshotName::new(&name_of(pool, volume)?, snapshot)
        .map_err(|e| ApiError::new(ErrorCode::BadName, e.to_string()))
}

fn no_content() -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::NO_CONTENT;
    answer
}

/// The value of `pool` in the query; names need no unescaping, since good
/// ones have no character that would be escaped.
fn pool_of(query: Option<&str>) -> Result<Option<String>> {
    let mut pool = None;
    for pair in query
        .unwrap_or_default()
        .split('&')
        .filter(|p| !p.is_empty())
    {
        match pair.split_once('=') {
            Some(("pool", value)) => {
                name_of(value, "x")?;
                pool = Some(value.to_owned());
            }
            _ => return Err(bad_request(format!("the query {pair:?} is not known"))),
        }
    }
    Ok(pool)
}

async fn route(shared: Arc<Shared>, request: Request<Bytes>) -> Result<Answer> {
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    if method == Method::GET && path == "/metrics" {
        return metrics_page(shared).await;
    }
    let not_found = || {
        ApiError::new(
            ErrorCode::NotFound,
            format!("there is no {method} {path} here"),
        )
        .with_hint(format!("{API_PREFIX}/openapi.yaml describes what there is"))
    };
    let rest = path.strip_prefix(API_PREFIX).ok_or_else(not_found)?;
    let parts: Vec<&str> = rest.split('/').skip(1).collect();
    let ok = StatusCode::OK;
    match (&method, parts.as_slice()) {
        (&Method::GET, ["openapi.yaml"]) => {
            Ok(with_body(ok, "application/yaml; charset=utf-8", OPENAPI))
        }
        (&Method::GET, ["node"]) => Ok(json(ok, &node_info(shared).await?)),
        (&Method::GET, ["health"]) => Ok(health_page(&shared)),
        (&Method::GET, ["nodes"]) => Ok(json(ok, &peers::list(&shared))),
        (&Method::GET, ["sessions"]) => Ok(json(ok, &volumes::sessions(&shared, None).await?)),
        (&Method::GET, ["volumes"]) => {
            let pool = pool_of(request.uri().query())?;
            Ok(json(ok, &volumes::list(shared, pool).await?))
        }
        (&Method::POST, ["volumes"]) => {
            let create = read_json(&request)?;
            let info = volumes::create(shared, create).await?;
            Ok(json(StatusCode::CREATED, &info))
        }
        (&Method::GET, ["volumes", pool, volume]) => {
            let name = name_of(pool, volume)?;
            Ok(json(ok, &volumes::info(shared, name).await?))
        }
        (&Method::DELETE, ["volumes", pool, volume]) => {
            let name = name_of(pool, volume)?;
            volumes::delete(shared, name).await?;
            Ok(no_content())
        }
        (&Method::POST, ["volumes", pool, volume, "resize"]) => {
            let name = name_of(pool, volume)?;
            let resize = read_json(&request)?;
            Ok(json(ok, &volumes::resize(shared, name, resize).await?))
        }
        (&Method::POST, ["volumes", pool, volume, "flatten"]) => {
            let name = name_of(pool, volume)?;
            Ok(json(ok, &snapshots::flatten(shared, name).await?))
        }
        (&Method::POST, ["volumes", pool, volume, "adopt"]) => {
            let name = name_of(pool, volume)?;
            Ok(json(ok, &volumes::adopt(shared, name).await?))
        }
        (method, ["volumes", pool, volume, "snapshots", rest @ ..]) => {
            let name = name_of(pool, volume)?;
            route_snapshots(shared, request, method, &name, rest)
                .await?
                .ok_or_else(not_found)
        }
        #[cfg(feature = "test-faults")]
        (&Method::PUT, ["test-faults"]) => {
            let faults = read_json::<super::faults::FaultsBody>(&request)?;
            shared.faults.set(faults.into_faults()?);
            Ok(json(ok, &serde_json::json!({})))
        }
        _ => Err(not_found()),
    }
}

/// What is below `snapshots` of a volume; `None`: there is no such thing.
async fn route_snapshots(
    shared: Arc<Shared>,
    request: Request<Bytes>,
    method: &Method,
    volume: &VolumeName,
    parts: &[&str],
) -> Result<Option<Answer>> {
    let named = |snapshot: &str| snapshot_of(volume.pool(), volume.volume(), snapshot);
    let ok = StatusCode::OK;
    Ok(Some(match (method, parts) {
        (&Method::GET, []) => json(ok, &snapshots::list(shared, volume.clone()).await?),
        (&Method::POST, []) => {
            let create: SnapshotCreate = read_json(&request)?;
            let name = named(&create.snapshot)?;
            json(StatusCode::CREATED, &snapshots::create(shared, name).await?)
        }
        (&Method::GET, [snapshot]) => json(ok, &snapshots::info(shared, named(snapshot)?).await?),
        (&Method::DELETE, [snapshot]) => {
            snapshots::delete(shared, named(snapshot)?).await?;
            no_content()
        }
        (&Method::POST, [snapshot, "rollback"]) => {
            json(ok, &snapshots::roll_back(shared, named(snapshot)?).await?)
        }
        (&Method::POST, [snapshot, "clone"]) => {
            let name = named(snapshot)?;
            let clone = read_json(&request)?;
            let info = snapshots::clone(shared, name, clone).await?;
            json(StatusCode::CREATED, &info)
        }
        _ => return Ok(None),
    }))
}

async fn node_info(shared: Arc<Shared>) -> Result<NodeInfo> {
    volumes::blocking(move || {
        let live = shared.live();
        let limits = &live.config.limits;
        let timeouts = &shared.config.timeouts;
        let count = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(NodeInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            boot_id: hex(&shared.boot_id),
            uptime_s: shared.clock.now().0 / 1000,
            protocol_versions: [neonsan_proto::MIN_VERSION, neonsan_proto::MAX_VERSION],
            data_addresses: shared
                .data_addresses
                .iter()
                .filter(|address| !shared.waiting.contains("data.listen", **address))
                .map(ToString::to_string)
                .collect(),
            engines: engine_infos(&shared),
            limits: NodeLimits {
                max_sessions: limits.max_sessions,
                max_connections: limits.max_connections,
                max_session_in_flight_bytes: limits.max_session_in_flight_bytes,
                max_in_flight_bytes: limits.max_in_flight_bytes,
                handshake_timeout_ms: timeouts.handshake_ms,
                idle_timeout_ms: timeouts.heartbeat_timeout_ms,
            },
            sessions: count(shared.metrics.sessions()),
            connections: count(shared.metrics.connections.load(Ordering::Relaxed)),
        })
    })
    .await
}

/// The engines, as they were when they were asked last; one that fails is listed with
/// the reason in its notes.
fn engine_infos(shared: &Shared) -> Vec<EngineInfo> {
    shared
        .engines
        .iter()
        .map(|named| {
            let mut status = named.supervised.status().unwrap_or_default();
            if !named.supervised.is_up() {
                let problems = named.supervised.health(&named.name).problems;
                status
                    .notes
                    .extend(problems.iter().map(|p| format!("failing: {p}")));
            }
            EngineInfo {
                name: named.name.clone(),
                kind: named.engine.kind().to_owned(),
                boot_id: hex(&named.engine.boot_id()),
                persistent: named.engine.is_persistent(),
                capacity_bytes: status.capacity_bytes,
                available_bytes: status.available_bytes,
                untorn_write_bytes: status.untorn_bytes,
                notes: status.notes,
            }
        })
        .collect()
}
