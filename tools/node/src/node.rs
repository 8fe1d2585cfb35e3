// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Start and end of a node.

use std::future::Future as _;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, RwLock};
use std::task::Poll;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use neonsan_engine::file::{FileEngine, FileOptions, Identities};
use neonsan_engine::mem::{MemEngine, MemOptions};
use neonsan_engine::rbd::{RbdEngine, RbdOptions};
use neonsan_engine::{Engine, Error, ErrorKind};
use rustix::rand::{getrandom, GetRandomFlags};
use tokio::signal::unix::{signal, Signal, SignalKind};
use tracing_appender::non_blocking::ErrorCounter;

use crate::access::Admission;
use crate::config::{Config, EngineConfig, TimeoutsConfig};
use crate::control;
use crate::data::{Mailbox, ToWorker, Worker};
use crate::ending::End;
use crate::engines;
use crate::hub::{Hub, Observations, ToHub};
use crate::listen::{listen_later, listen_or_wait, Waiting};
use crate::log_limit::LogLimits;
use crate::metrics::Metrics;
use crate::peers::{self, Peers};
use crate::reload::Reloader;
use crate::remembered::Remembered;
use crate::service;
use crate::shared::{hex, Budget, Clock, Live, Shared};

/// Why a node could not start, or not stop in order.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The configuration.
    #[error("{0}")]
    Config(String),
    /// An address.
    #[error("cannot listen on {address}: {source}{hint}")]
    Listen {
        /// Which.
        address: String,
        /// What the system says.
        source: io::Error,
        /// What to do.
        hint: String,
    },
    /// Storage did not end requests in time when the node had to stop.
    #[error(
        "requests were still in the engines when timeouts.shutdown_drain_ms was up: see why the \
         storage does not end them; their volumes stay locked until it does"
    )]
    NotDrained,
    /// An engine could not put on stable storage what it had answered.
    #[error(
        "what was answered may not be on stable storage: hosts that had written without flushing \
         are told by a failing flush when a node serves them again; the log says what failed"
    )]
    NotSynced,
    /// Threads, random numbers, signals.
    #[error("the system refuses what a node needs: {0}")]
    System(#[from] io::Error),
}

impl NodeError {
    /// What to do about an address of `setting` on which the node cannot listen.
    pub(crate) fn listen_hint(error: &io::Error, setting: &str) -> String {
        let why = match error.kind() {
            io::ErrorKind::AddrInUse => {
                "another program has it (`ss -ltnp` shows which; another neonsan-node?): stop that"
            }
            io::ErrorKind::AddrNotAvailable => "no interface of this machine has it: give it one",
            io::ErrorKind::PermissionDenied => {
                "the node's user may not: ports below 1024 need CAP_NET_BIND_SERVICE"
            }
            _ => return String::new(),
        };
        format!(": {why}, or change {setting}")
    }
}

fn open_engine(
    state_path: &Path,
    timeouts: &TimeoutsConfig,
    identities: &Arc<Identities>,
    engine: &EngineConfig,
) -> Result<Arc<dyn Engine>, Error> {
    Ok(match engine {
        EngineConfig::File {
            path,
            buffered,
            min_block_bytes,
            #[cfg(feature = "test-faults")]
            test_volatile_cache,
        } => {
            let remembered = Remembered::new(state_path);
            let refused = |why: String| Error::new(ErrorKind::Conflict, why);
            let engine = Arc::new(FileEngine::open(FileOptions {
                root: path.clone(),
                identity: remembered.identity(path).map_err(refused)?,
                identities: Arc::clone(identities),
                buffered: *buffered,
                min_block_bytes: *min_block_bytes,
                lock_wait: Duration::from_millis(u64::from(timeouts.lock_wait_ms)),
            })?);
            remembered
                .remember(path, engine.identity())
                .map_err(refused)?;
            #[cfg(feature = "test-faults")]
            if *test_volatile_cache {
                let cached = neonsan_engine::volatile::VolatileEngine::new(engine)?;
                return Ok(Arc::new(cached));
            }
            engine
        }
        EngineConfig::Mem {
            capacity_bytes,
            volatile_cache,
        } => Arc::new(MemEngine::new(MemOptions {
            capacity_bytes: *capacity_bytes,
            volatile_cache: *volatile_cache,
        })?),
        EngineConfig::Rbd {
            pool,
            user,
            conf,
            keyring,
            object_bytes,
            connect_timeout_ms,
            max_pause_ms,
            max_operation_ms,
            #[cfg(feature = "test-faults")]
            test_without_operation_limit,
            #[cfg(feature = "test-faults")]
            test_without_blocklist,
        } => {
            let mut options = RbdOptions::new(conf.clone(), user, pool);
            options.keyring.clone_from(keyring);
            options.object_bytes = *object_bytes;
            options.connect_timeout = Duration::from_millis(u64::from(*connect_timeout_ms));
            options.max_pause = Duration::from_millis(u64::from(*max_pause_ms));
            options.max_operation = Duration::from_millis(u64::from(*max_operation_ms));
            options.close_wait = Duration::from_millis(u64::from(timeouts.lock_wait_ms));
            #[cfg(feature = "test-faults")]
            {
                options.fence = !test_without_blocklist;
                if *test_without_operation_limit {
                    options.max_operation = Duration::ZERO;
                }
            }
            Arc::new(RbdEngine::open(options)?)
        }
    })
}

/// The name of the setting for the data port's addresses.
const DATA_LISTEN: &str = "data.listen";

/// Says that the data port is open, and what that means.
fn announce(listener: &TcpListener) -> io::Result<SocketAddr> {
    let local = listener.local_addr()?;
    tracing::info!(address = %local, "data port open");
    if !local.ip().is_loopback() {
        tracing::warn!(
            address = %local,
            "the data port is not on loopback: nothing authenticates clients yet, so every host \
             that reaches it can read and write every volume"
        );
    }
    Ok(local)
}

/// Listens on the addresses of the data port, on one of them at least: until there is one the node
/// serves nobody. Gives the listeners, and all addresses.
async fn listen(
    config: &Config,
    waiting: &Waiting,
) -> Result<(Vec<TcpListener>, Vec<SocketAddr>), NodeError> {
    let wanted = &config.data.listen;
    let mut listeners = listen_or_wait(config, DATA_LISTEN, wanted, waiting)?;
    if listeners.is_empty() {
        service::status("waiting for an address of data.listen to be there");
        let mut first = wanted
            .iter()
            .map(|address| Box::pin(listen_later(config, DATA_LISTEN, *address, waiting)))
            .collect::<Vec<_>>();
        // Polled in turn: the first that is there is enough, the others are waited for later.
        let listener = std::future::poll_fn(|context| {
            for later in &mut first {
                if let Poll::Ready(listener) = later.as_mut().poll(context) {
                    return Poll::Ready(listener);
                }
            }
            Poll::Pending
        });
        listeners.push(listener.await);
    }
    let mut addresses = Vec::new();
    for listener in &listeners {
        addresses.push(announce(listener)?);
    }
    let late = wanted.iter().filter(|a| waiting.contains(DATA_LISTEN, **a));
    addresses.extend(late.copied());
    Ok((listeners, addresses))
}

/// Opens the data port on addresses that come later.
fn listen_to_the_rest(shared: &Arc<Shared>) {
    for &address in &shared.config.data.listen {
        if !shared.waiting.contains(DATA_LISTEN, address) {
            continue;
        }
        let shared = Arc::clone(shared);
        tokio::spawn(async move {
            let waiting = &shared.waiting;
            let listener = listen_later(&shared.config, DATA_LISTEN, address, waiting).await;
            if let Err(error) = announce(&listener) {
                tracing::warn!(%error, "cannot tell where the data port is open");
            }
            shared.mailboxes[0].post(ToWorker::Listen(listener));
        });
    }
}

/// What the node is asked by signals. They are taken from the start: a reload that comes early must
/// not end the node.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// Within a runtime.
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits until the node is asked to stop.
    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Reloads whenever it is asked to, until the node is asked to stop.
    async fn serve(&mut self, shared: &Arc<Shared>, reloader: Option<Arc<Reloader>>) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hangup.recv() => {
                    let Some(reloader) = &reloader else {
                        tracing::warn!("there is no configuration file to be read again");
                        continue;
                    };
                    service::reloading();
                    // It looks at files and users, which may take long: the node stops meanwhile if it
                    // is asked to.
                    let (reloader, shared) = (Arc::clone(reloader), Arc::clone(shared));
                    let reload = tokio::task::spawn_blocking(move || reloader.reload(&shared));
                    tokio::select! {
                        status = reload => {
                            service::ready(&status.unwrap_or_else(|error| error.to_string()));
                        }
                        () = self.stop() => return,
                    }
                }
            }
        }
    }
}

fn random_boot_id() -> io::Result<[u8; 16]> {
    let mut id = [0; 16];
    let len = getrandom(&mut id, GetRandomFlags::empty())?;
    if len == id.len() {
        Ok(id)
    } else {
        Err(io::Error::other("too few random bytes"))
    }
}

/// The threads of the data path.
struct Threads {
    workers: Vec<JoinHandle<()>>,
    hub: JoinHandle<()>,
}

fn start_threads(
    shared: &Arc<Shared>,
    listeners: Vec<TcpListener>,
    hub_messages: Receiver<ToHub>,
) -> io::Result<Threads> {
    let hub = Hub::new(Arc::clone(shared));
    let hub = thread::Builder::new()
        .name("hub".to_owned())
        .spawn(move || hub.run(&hub_messages))?;
    let mut listeners = Some(listeners);
    let mut workers = Vec::new();
    for index in 0..shared.mailboxes.len() {
        let worker = Worker::new(
            index,
            Arc::clone(shared),
            listeners.take().unwrap_or_default(),
        )?;
        let thread = thread::Builder::new()
            .name(format!("data-{index}"))
            .spawn(move || {
                if let Err(error) = worker.run() {
                    end_at_once(&format!("a worker cannot go on: {error}"));
                }
            })?;
        workers.push(thread);
    }
    Ok(Threads { workers, hub })
}

/// Ends the process, which cannot serve as it should. A node without one of its threads would look
/// healthy and serve some of its clients only; they lose nothing by a restart, and the service manager
/// makes one.
fn end_at_once(why: &str) -> ! {
    tracing::error!("{why}: the node ends at once");
    // Whoever takes the log gets this line, if it can be taken at all.
    thread::sleep(Duration::from_millis(200));
    std::process::abort()
}

/// Lets the process have as many files as it may: a connection has two or
/// three, and the usual soft limit is 1024.
pub(crate) fn raise_file_limit(config: &Config) {
    use rustix::process::{getrlimit, setrlimit, Resource, Rlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    let needed = 3 * u64::from(config.limits.max_connections) + 256;
    if limit.maximum.is_some_and(|maximum| maximum < needed) {
        tracing::warn!(
            limit = limit.maximum,
            needed,
            "the limit of open files is too low for limits.max_connections: raise LimitNOFILE, or \
             lower max_connections"
        );
    }
}

/// Runs a node until it is told to stop by SIGTERM or SIGINT. It has no file to read again on SIGHUP.
pub fn run(config: Config, lost_log_lines: ErrorCounter) -> Result<(), NodeError> {
    run_reloading(config, lost_log_lines, None)
}

/// Runs a node until it is told to stop by SIGTERM or SIGINT; SIGHUP lets `reloader` read the
/// configuration again.
pub(crate) fn run_reloading(
    config: Config,
    lost_log_lines: ErrorCounter,
    reloader: Option<Reloader>,
) -> Result<(), NodeError> {
    raise_file_limit(&config);
    if rustix::process::geteuid().is_root() {
        tracing::info!("running as root, which a node does not need");
    }
    if config.memory.serves_own_host {
        crate::own_host::shield().map_err(NodeError::Config)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("control")
        .enable_all()
        .build()?;
    let mut signals = runtime.block_on(async { Signals::new() })?;
    #[cfg(feature = "test-faults")]
    let faults = fault_plan();
    let default = config.default_engine_name().map_err(NodeError::Config)?;
    let identities = Arc::default();
    let (engines, supervisors) = engines::start(&config, default, |engine| {
        let (engine, timeouts) = (engine.clone(), config.timeouts.clone());
        let state_path = config.state_path.clone();
        let identities = Arc::clone(&identities);
        #[cfg(feature = "test-faults")]
        let faults = Arc::clone(&faults);
        Box::new(move || {
            let engine = open_engine(&state_path, &timeouts, &identities, &engine)?;
            #[cfg(feature = "test-faults")]
            let engine = Arc::new(neonsan_engine::fault::FaultEngine::new(
                engine,
                Arc::clone(&faults),
            ));
            Ok(engine)
        })
    })?;
    let mut end = End::new(&engines, &config);
    let waiting = Waiting::default();
    let listening = runtime.block_on(async {
        tokio::select! {
            listening = listen(&config, &waiting) => listening.map(Some),
            () = signals.stop() => Ok(None),
        }
    })?;
    let Some((listeners, data_addresses)) = listening else {
        supervisors.stop();
        return end.stop_engines();
    };
    let workers = match config.data.workers {
        0 => thread::available_parallelism().map_or(1, usize::from),
        n => n,
    };
    let mailboxes = (0..workers)
        .map(|_| Mailbox::new().map(Arc::new))
        .collect::<io::Result<Vec<_>>>()?;
    let (hub, hub_messages) = mpsc::channel();
    let shared = Arc::new(Shared {
        boot_id: random_boot_id()?,
        clock: Clock::start(),
        in_flight: Budget::new(config.limits.max_in_flight_bytes),
        metrics: Metrics::new(workers, lost_log_lines),
        going_away: AtomicBool::new(false),
        log_limits: LogLimits::default(),
        peers: Peers::new(
            match config.data.advertise.as_slice() {
                [] => data_addresses.as_slice(),
                advertise => advertise,
            },
            &config.data.nodes,
        ),
        observations: Observations::default(),
        resizing: Mutex::default(),
        mailboxes,
        engines,
        hub,
        data_addresses,
        live: RwLock::new(Arc::new(Live::new(config.clone()))),
        admission: Admission::default(),
        waiting,
        config,
        #[cfg(feature = "test-faults")]
        faults,
    });
    let control = runtime.block_on(async { control::bind(&shared) })?;
    end.begin_to_serve();
    let threads = start_threads(&shared, listeners, hub_messages)?;
    let listening = peers::start(&shared)?;
    let drained = runtime.block_on(async {
        control::serve(control, &shared);
        listen_to_the_rest(&shared);
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            boot_id = %hex(&shared.boot_id),
            workers,
            "node ready"
        );
        service::ready("serving");
        let watched = Arc::clone(&shared);
        tokio::spawn(async move { service::watch(&watched).await });
        signals.serve(&shared, reloader.map(Arc::new)).await;
        service::stopping();
        shut_down(&shared).await
    });
    if let Some(listening) = listening {
        listening.stop();
    }
    supervisors.stop();
    if !drained {
        // The threads wait for storage that may never answer; the end of the
        // process does not, and the locks of the volumes last until the last
        // request has ended.
        runtime.shutdown_background();
        return Err(NodeError::NotDrained);
    }
    shared.tell_hub(ToHub::Stop);
    for mailbox in &shared.mailboxes {
        mailbox.post(ToWorker::Stop);
    }
    for thread in threads.workers.into_iter().chain([threads.hub]) {
        if thread.join().is_err() {
            tracing::error!("a thread had panicked");
        }
    }
    // Calls of the control API that still block do not hold up the end.
    runtime.shutdown_timeout(Duration::from_secs(1));
    end.stop_engines()?;
    tracing::info!("node stopped");
    Ok(())
}

/// Tells clients to go, waits for them, then ends their sessions in order:
/// everything that was begun is answered. `false` if that took too long.
async fn shut_down(shared: &Shared) -> bool {
    let timeouts = &shared.config.timeouts;
    tracing::info!(
        grace_ms = timeouts.shutdown_grace_ms,
        "stopping: telling clients to use another node"
    );
    shared.tell_hub(ToHub::GoingAway(timeouts.shutdown_grace_ms));
    if wait_for_connections(shared, timeouts.shutdown_grace_ms).await {
        return true;
    }
    shared.tell_hub(ToHub::RevokeAll);
    let drained = wait_for_connections(shared, timeouts.shutdown_drain_ms).await;
    if !drained {
        tracing::error!(
            connections = shared.metrics.connections.load(Ordering::Relaxed),
            "requests did not end in time; their volumes stay locked until they do"
        );
    }
    drained
}

/// Waits until no data connection is left; `false` after `ms` milliseconds.
async fn wait_for_connections(shared: &Shared, ms: u32) -> bool {
    let deadline = shared.clock.now().after_ms(u64::from(ms));
    loop {
        if shared.metrics.connections.load(Ordering::Relaxed) == 0 {
            return true;
        }
        if shared.clock.now() >= deadline {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The faults that are put in front of all engines.
#[cfg(feature = "test-faults")]
fn fault_plan() -> Arc<neonsan_engine::fault::FaultPlan> {
    tracing::warn!("this build can inject faults: not for data that matters");
    Arc::default()
}
