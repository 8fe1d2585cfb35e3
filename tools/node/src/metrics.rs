// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Counters, and how Prometheus reads them.
//!
//! Each worker writes counters of its own, so that no cache line is shared on
//! the I/O path; a reader adds them up.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use neonsan_api::HealthStatus;
use neonsan_proto::Status;
use tracing_appender::non_blocking::ErrorCounter;

use crate::shared::{hex, Shared};

/// What a request does, for counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpKind {
    /// READ.
    Read,
    /// WRITE.
    Write,
    /// FLUSH.
    Flush,
    /// DISCARD.
    Discard,
    /// WRITE_ZEROES.
    WriteZeroes,
}

impl OpKind {
    /// All of them, in the order of their numbers.
    pub const ALL: [OpKind; 5] = [
        OpKind::Read,
        OpKind::Write,
        OpKind::Flush,
        OpKind::Discard,
        OpKind::WriteZeroes,
    ];

    /// The name in labels and logs.
    pub fn name(self) -> &'static str {
        match self {
            OpKind::Read => "read",
            OpKind::Write => "write",
            OpKind::Flush => "flush",
            OpKind::Discard => "discard",
            OpKind::WriteZeroes => "write_zeroes",
        }
    }
}

/// Upper bounds of latency buckets in microseconds.
const BUCKETS_US: [u64; 12] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 50_000, 250_000, 1_000_000, 10_000_000,
];

/// Counters of one kind of request.
#[derive(Debug, Default)]
struct OpMetrics {
    done: AtomicU64,
    failed: AtomicU64,
    bytes: AtomicU64,
    time_us: AtomicU64,
    buckets: [AtomicU64; BUCKETS_US.len()],
}

/// Counters that one worker writes.
#[derive(Debug, Default)]
pub struct WorkerMetrics {
    ops: [OpMetrics; OpKind::ALL.len()],
    /// Requests with FUA.
    pub fua: AtomicU64,
    /// Requests refused before they reached the engine.
    pub rejected: AtomicU64,
    /// Times a connection had to wait for a budget.
    pub stalls: AtomicU64,
    /// Connections accepted.
    pub accepted: AtomicU64,
    /// Connections refused because there were too many.
    pub over_limit: AtomicU64,
    /// Connections from this machine that were not let in.
    pub denied: AtomicU64,
    /// Counts the worker's turns with the time.
    beats: AtomicU64,
    /// Ended connections by cause. Locked when one ends, not for I/O.
    closes: Mutex<BTreeMap<&'static str, u64>>,
}

impl WorkerMetrics {
    /// Counts a request that the engine has ended.
    pub fn completed(&self, kind: OpKind, len: u32, status: Status, took: Duration) {
        let op = &self.ops[kind as usize];
        let add = |counter: &AtomicU64, n| counter.fetch_add(n, Ordering::Relaxed);
        add(&op.done, 1);
        if status == Status::Ok {
            add(&op.bytes, u64::from(len));
        } else {
            add(&op.failed, 1);
        }
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        add(&op.time_us, us);
        if let Some(bucket) = BUCKETS_US.iter().position(|&bound| us <= bound) {
            add(&op.buckets[bucket], 1);
        }
    }

    /// The worker has looked at the time.
    pub fn beat(&self) {
        self.beats.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts the end of a connection by the name of its cause.
    pub fn closed(&self, cause: &'static str) {
        let mut closes = self.closes.lock().unwrap_or_else(PoisonError::into_inner);
        *closes.entry(cause).or_default() += 1;
    }
}

/// All counters of a node.
#[derive(Debug)]
pub struct Metrics {
    workers: Vec<Arc<WorkerMetrics>>,
    /// Data connections open now.
    pub connections: AtomicU64,
    sessions: AtomicU64,
    /// Counts the hub's turns with the time.
    hub_beats: AtomicU64,
    /// Lines of the log that were lost: the log's own count.
    lost_log_lines: ErrorCounter,
}

impl Metrics {
    /// Counters for so many workers, beside the log's count of lost lines.
    pub fn new(workers: usize, lost_log_lines: ErrorCounter) -> Self {
        Self {
            workers: (0..workers).map(|_| Arc::default()).collect(),
            connections: AtomicU64::new(0),
            sessions: AtomicU64::new(0),
            hub_beats: AtomicU64::new(0),
            lost_log_lines,
        }
    }

    /// The counters of a worker.
    pub fn worker(&self, index: usize) -> Arc<WorkerMetrics> {
        Arc::clone(&self.workers[index])
    }

    /// The hub has looked at the time.
    pub fn hub_beat(&self) {
        self.hub_beats.fetch_add(1, Ordering::Relaxed);
    }

    /// How often each thread of the data path has looked at the time: the hub, then the workers.
    pub fn beats(&self) -> Vec<u64> {
        let hub = std::iter::once(&self.hub_beats);
        hub.chain(self.workers.iter().map(|worker| &worker.beats))
            .map(|beats| beats.load(Ordering::Relaxed))
            .collect()
    }

    /// Sets the number of sessions open now.
    pub fn set_sessions(&self, sessions: usize) {
        self.sessions.store(sessions as u64, Ordering::Relaxed);
    }

    /// Sessions open now.
    pub fn sessions(&self) -> u64 {
        self.sessions.load(Ordering::Relaxed)
    }

    fn sum(&self, counter: impl Fn(&WorkerMetrics) -> &AtomicU64) -> u64 {
        self.workers
            .iter()
            .map(|worker| counter(worker).load(Ordering::Relaxed))
            .sum()
    }
}

/// Writes the text format of Prometheus, version 0.0.4.
struct Exposition(String);

impl Exposition {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "# HELP neonsan_node_{name} {help}");
        let _ = writeln!(self.0, "# TYPE neonsan_node_{name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &str, value: impl std::fmt::Display) {
        let _ = writeln!(self.0, "neonsan_node_{name}{labels} {value}");
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: u64) {
        self.family(name, kind, help);
        self.sample(name, "", value);
    }
}

/// The page that Prometheus reads, with what the engines said when they were asked
/// last.
pub fn exposition(shared: &Shared) -> String {
    let metrics = &shared.metrics;
    let mut page = Exposition(String::new());
    page.family("info", "gauge", "Version and boot id of the node.");
    let labels = format!(
        "{{version=\"{}\",boot_id=\"{}\"}}",
        env!("CARGO_PKG_VERSION"),
        hex(&shared.boot_id)
    );
    page.sample("info", &labels, 1);

    let per_op = |page: &mut Exposition, name, help, value: &dyn Fn(&OpMetrics) -> u64| {
        page.family(name, "counter", help);
        for kind in OpKind::ALL {
            let sum: u64 = metrics
                .workers
                .iter()
                .map(|w| value(&w.ops[kind as usize]))
                .sum();
            page.sample(name, &format!("{{op=\"{}\"}}", kind.name()), sum);
        }
    };
    let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    per_op(
        &mut page,
        "requests_total",
        "Requests that the engines ended.",
        &|op| get(&op.done),
    );
    per_op(
        &mut page,
        "requests_failed_total",
        "Requests that the engines failed.",
        &|op| get(&op.failed),
    );
    per_op(&mut page, "bytes_total", "Bytes read and written.", &|op| {
        get(&op.bytes)
    });

    page.family(
        "request_seconds",
        "histogram",
        "Time from the arrival of a request to the engine's completion.",
    );
    for kind in OpKind::ALL {
        let name = kind.name();
        let sum = |value: &dyn Fn(&OpMetrics) -> u64| -> u64 {
            metrics
                .workers
                .iter()
                .map(|w| value(&w.ops[kind as usize]))
                .sum()
        };
        let mut below = 0;
        for (bucket, bound) in BUCKETS_US.iter().enumerate() {
            below += sum(&|op| get(&op.buckets[bucket]));
            let labels = format!("{{op=\"{name}\",le=\"{}\"}}", *bound as f64 / 1e6);
            page.sample("request_seconds_bucket", &labels, below);
        }
        let count = sum(&|op| get(&op.done));
        let labels = format!("{{op=\"{name}\",le=\"+Inf\"}}");
        page.sample("request_seconds_bucket", &labels, count);
        let labels = format!("{{op=\"{name}\"}}");
        let seconds = sum(&|op| get(&op.time_us)) as f64 / 1e6;
        page.sample("request_seconds_sum", &labels, seconds);
        page.sample("request_seconds_count", &labels, count);
    }

    page.single(
        "fua_total",
        "counter",
        "Requests with FUA.",
        metrics.sum(|w| &w.fua),
    );
    page.single(
        "requests_rejected_total",
        "counter",
        "Requests refused before they reached the engine.",
        metrics.sum(|w| &w.rejected),
    );
    page.single(
        "stalls_total",
        "counter",
        "Times a connection waited for bytes in flight.",
        metrics.sum(|w| &w.stalls),
    );
    page.single(
        "connections_accepted_total",
        "counter",
        "Data connections accepted.",
        metrics.sum(|w| &w.accepted),
    );
    page.single(
        "connections_over_limit_total",
        "counter",
        "Data connections refused because there were too many.",
        metrics.sum(|w| &w.over_limit),
    );
    page.single(
        "connections_denied_total",
        "counter",
        "Data connections from this machine of users who may not use the data port.",
        metrics.sum(|w| &w.denied),
    );
    page.family(
        "connections_closed_total",
        "counter",
        "Data connections ended, by cause.",
    );
    let mut closes: BTreeMap<&str, u64> = BTreeMap::new();
    for worker in &metrics.workers {
        let counts = worker.closes.lock().unwrap_or_else(PoisonError::into_inner);
        for (cause, count) in counts.iter() {
            *closes.entry(cause).or_default() += count;
        }
    }
    for (cause, count) in closes {
        page.sample(
            "connections_closed_total",
            &format!("{{cause=\"{cause}\"}}"),
            count,
        );
    }
    page.single(
        "connections",
        "gauge",
        "Data connections open now.",
        get(&metrics.connections),
    );
    page.single(
        "sessions",
        "gauge",
        "Sessions open now.",
        metrics.sessions(),
    );
    page.single(
        "in_flight_bytes",
        "gauge",
        "Bytes of requests in flight.",
        shared.in_flight.used(),
    );
    page.single(
        "log_lines_lost_total",
        "counter",
        "Lines of the log that were lost because nobody took them.",
        metrics.lost_log_lines.dropped_lines() as u64,
    );
    page.single(
        "log_lines_left_out_total",
        "counter",
        "Lines of the log that were left out because there were too many alike.",
        shared.log_limits.left_out(),
    );
    page.family(
        "nodes",
        "gauge",
        "Nodes with the same volumes that this one knows of, itself included, by state.",
    );
    let mut nodes: BTreeMap<String, u64> = BTreeMap::new();
    for node in crate::peers::list(shared).nodes {
        let state = serde_json::to_value(node.state).unwrap_or_default();
        let state = state.as_str().unwrap_or("other").to_owned();
        *nodes.entry(state).or_default() += 1;
    }
    for (state, count) in nodes {
        page.sample("nodes", &format!("{{state=\"{state}\"}}"), count);
    }
    page.family(
        "engine_available_bytes",
        "gauge",
        "Bytes that an engine can still store.",
    );
    for engine in &shared.engines {
        let status = engine.supervised.status();
        if let Some(bytes) = status.and_then(|status| status.available_bytes) {
            let labels = format!("{{engine=\"{}\"}}", engine.name);
            page.sample("engine_available_bytes", &labels, bytes);
        }
    }
    page.family(
        "engine_up",
        "gauge",
        "Whether an engine's volumes can be served: 0 if it cannot be opened, fails or does not answer.",
    );
    for engine in &shared.engines {
        let labels = format!("{{engine=\"{}\"}}", engine.name);
        page.sample("engine_up", &labels, u8::from(engine.supervised.is_up()));
    }
    page.family(
        "engine_requests_failed_total",
        "counter",
        "Requests that an engine failed because of its storage.",
    );
    for engine in &shared.engines {
        for op in OpKind::ALL {
            let labels = format!("{{engine=\"{}\",op=\"{}\"}}", engine.name, op.name());
            let failures = engine.supervised.failures(op);
            page.sample("engine_requests_failed_total", &labels, failures);
        }
    }
    page.single(
        "healthy",
        "gauge",
        "Whether GET /v1/health says ok.",
        u64::from(crate::health::health(shared).status == HealthStatus::Ok),
    );
    page.family(
        "engine_losses_total",
        "counter",
        "Times that an engine may have lost answered writes, and has another boot id since.",
    );
    for engine in &shared.engines {
        let labels = format!("{{engine=\"{}\"}}", engine.name);
        page.sample("engine_losses_total", &labels, engine.engine.losses());
    }
    page.0
}
