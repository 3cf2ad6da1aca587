//! Layer 6: puts the process together. [`run`] is the assembler: a list of steps, in order.

pub mod demo;
pub mod worker;

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::LocalSet;

use crate::admin;
use crate::config;
use crate::config::model::Server;
use crate::control::behind::behind;
use crate::control::discover::Discovery;
use crate::control::reload::connection_cap;
use crate::control::{self, Control, Listener};
use crate::net::bind;
use crate::net::descriptors::{self, Budget};
use crate::net::timer::{self, Wheel};
use crate::policy::connection_limit::Connections;
use crate::snapshot::Cell;
use crate::snapshot::resident::Residents;
use crate::telemetry::access;
use crate::telemetry::hub::Hub;
use crate::tls;

/// Why the process could not start; a text for a terminal.
pub type StartError = String;

/// What a started process tells on its terminal.
pub struct Started {
    /// What listens where.
    pub listeners: Vec<Listener>,
    /// The certificate of the internal CA, if any site uses it.
    pub ca: Option<PathBuf>,
    /// The first host that answers HTTPS by the internal CA.
    pub example: Option<String>,
    /// Problems of the configuration that did not keep it from starting.
    pub problems: String,
}

/// Runs until a signal ends it. `ready` is called once, when everything listens.
///
/// # Errors
/// A text that says what is wrong and how to mend it; nothing was served then.
pub fn run(path: &Path, ready: impl FnOnce(&Started)) -> Result<(), StartError> {
    tls::install_provider();
    bind::raise_fd_limit();
    let (runtime, nudges) = runtime().map_err(|e| e.to_string())?;
    let loaded = config::load(path);
    let Some(server) = loaded.server.clone() else {
        return Err(config::render_human(&loaded.diagnostics, &loaded.sources, false));
    };
    prepare_state(&server.state)?;
    let state_lock = lock_state(&server.state)?;
    let workers = server.workers.unwrap_or_else(cores);
    let sockets = worker::Sockets::bind(&server, workers)?;
    let hub = Hub::new(workers);
    let residents = Arc::new(Residents::new(hub.clone(), &server)?);
    let mut first = control::reload::first(path, loaded, server.clone(), sockets.https_port(), &residents)?;
    let snapshot = first.snapshot.take().ok_or("the first snapshot is missing")?;
    let cell = Arc::new(Cell::new(snapshot));
    let log = &server.log;
    let (sinks, access) =
        access::start(&log.access, log.format, log.privacy, workers).map_err(|e| e.to_string())?;
    hub.set_access_dropped(access.dropped_counter());
    let control_sockets = ControlSockets::bind(&server)?;
    let budget = Budget::within(bind::fd_limit(), descriptors::open_now(), workers);
    let cap = possible_cap(&server, &budget);
    let connections = Connections::new(cap, server.max_connections_per_client, budget);
    let listeners = sockets.listeners().into_iter().chain(control_sockets.listeners()).collect();
    let started = started(&first, &cell, listeners, &residents);
    let parts = control::Parts {
        path: std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf()),
        cell: cell.clone(),
        residents: residents.clone(),
        connections: connections.clone(),
        access,
        listeners: started.listeners.clone(),
        workers,
        first,
    };
    let control = Control::new(parts);
    let readings = control.clone();
    hub.set_gauges(Box::new(move |all| readings.readings(all)));
    let local = LocalSet::new();
    let mut discovery = Discovery::new(control.clone());
    runtime.block_on(local.run_until(discovery.prime()));
    let fleet = worker::Fleet::start(sockets, sinks, &cell, &residents, &connections)?;
    let ending = async {
        tokio::task::spawn_local(discovery.run());
        let mut ends = serve(control.clone(), control_sockets, nudges, || ready(&started)).await?;
        let drain = control.server().drain;
        let retiring = tokio::time::timeout(drain.max(RETIRE), retire(control.clone(), state_lock));
        let finishing = async { tokio::join!(fleet.drain(drain), control.finish_orders(drain), retiring) };
        tokio::select! {
            _ = finishing => {}
            // Who asks twice does not want to wait.
            _ = ends.come() => tracing::warn!("asked again to stop: what is in flight is cut"),
        }
        Ok(())
    };
    let ended = runtime.block_on(local.run_until(ending));
    // A reload that hangs on a slow disk keeps no process from ending.
    drop(local);
    // Orders that were cut by this take their TXT records away.
    runtime.block_on(control.farewell());
    runtime.shutdown_background();
    fleet.stop();
    control.access.close();
    ended
}

/// How long an end waits for what is not stored yet, at least.
const RETIRE: Duration = Duration::from_secs(5);

/// Whoever takes our place may begin while we finish: as soon as nothing more is written that it would lose.
async fn retire(control: Arc<Control>, state_lock: Option<std::fs::File>) {
    let done = tokio::task::spawn_blocking(move || {
        control.retire();
        drop(state_lock);
    });
    if let Err(error) = done.await {
        tracing::error!("the end was not prepared: {error}");
    }
}

/// How many connections clients may have; told where that is less than was asked for.
fn possible_cap(server: &Server, budget: &Budget) -> u32 {
    let cap = connection_cap(server, budget);
    if let Some(wanted) = server.max_connections.filter(|wanted| *wanted > cap) {
        tracing::warn!(
            "`max_connections` in [server] is {wanted}, and the limit of open files allows {cap}: that counts. Raise it \
             (LimitNOFILE=, `ulimit -n`)"
        );
    }
    cap
}

/// The control plane's runtime, and the signals that end nothing: read everything again, only open the access log again.
/// They are known from the first moment, because one that nobody waits for would end the process.
fn runtime() -> std::io::Result<(tokio::runtime::Runtime, Signals)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let nudges =
        runtime.block_on(async { Signals::new(SignalKind::hangup(), SignalKind::user_defined1()) })?;
    Ok((runtime, nudges))
}

/// Two signals that are waited for together.
struct Signals(Signal, Signal);

impl Signals {
    fn new(one: SignalKind, other: SignalKind) -> std::io::Result<Signals> {
        Ok(Signals(signal(one)?, signal(other)?))
    }

    /// Waits for either; whether it was the first.
    async fn come(&mut self) -> bool {
        tokio::select! {
            _ = self.0.recv() => true,
            _ = self.1.recv() => false,
        }
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn prepare_state(state: &Path) -> Result<(), StartError> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(state).map_err(|error| {
        format!(
            "the state folder {} cannot be made: {error}\nName another with `state` in [server], or make it and give \
             it to the user that runs tidegate.",
            state.display()
        )
    })
}

/// Two processes that store their sites in one folder would undo each other's work. The lock ends with the
/// descriptor, so a killed process leaves none. A file of its own: the folder itself may be locked for the admin socket
/// in it. `None` where there can be no lock.
fn lock_state(state: &Path) -> Result<Option<std::fs::File>, StartError> {
    use std::os::unix::fs::OpenOptionsExt;
    let taken = || {
        format!(
            "another tidegate runs with the state folder {}\nStop it first, or give this one its own `state` in [server].",
            state.display()
        )
    };
    let path = state.join("lock");
    let opened = std::fs::OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = match opened {
        Ok(file) => file,
        // What must be written there will say so itself; serving needs no lock.
        Err(error) => {
            tracing::warn!(
                "{} cannot be made: {error}; nothing keeps a second tidegate away",
                path.display()
            );
            return Ok(None);
        }
    };
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => return Err(taken()),
        // Some network file systems know no locks.
        Err(error) => tracing::warn!("the state folder {} cannot be locked: {error}", state.display()),
        Ok(()) => {}
    }
    Ok(Some(file))
}

fn started(
    first: &control::reload::First,
    cell: &Cell,
    listeners: Vec<Listener>,
    residents: &Residents,
) -> Started {
    let snapshot = cell.load();
    let internal = snapshot.sites.iter().find(|site| site.source.is_internal());
    let example = internal.and_then(|site| {
        site.hosts.iter().find_map(|host| match host {
            config::model::HostPattern::Exact(name) => Some(name.to_string()),
            config::model::HostPattern::Wildcard(_) => None,
        })
    });
    let ca = internal.map(|_| residents.ca.ca_path().to_path_buf());
    Started { listeners, ca, example, problems: first.problems.clone() }
}

/// The file of the admin socket; removed with this value, also when the start fails later.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Sockets of the control plane.
struct ControlSockets {
    admin: std::os::unix::net::UnixListener,
    metrics: Option<std::net::TcpListener>,
    demo: Vec<std::net::TcpListener>,
    admin_path: SocketFile,
}

impl ControlSockets {
    fn bind(server: &Server) -> Result<ControlSockets, StartError> {
        let tcp = |address| bind::bind_tcp(address, false, bind::BACKLOG).map_err(|error| error.to_string());
        Ok(ControlSockets {
            metrics: server.metrics.map(tcp).transpose()?,
            demo: server.demo.iter().copied().map(tcp).collect::<Result<_, _>>()?,
            admin: admin::bind(&server.admin_socket)?,
            admin_path: SocketFile(server.admin_socket.clone()),
        })
    }

    fn listeners(&self) -> Vec<Listener> {
        let tcp = |kind, socket: &std::net::TcpListener| {
            let address = socket.local_addr().map(|address| address.to_string()).unwrap_or_default();
            Listener { kind, address }
        };
        let mut all: Vec<Listener> = self.metrics.iter().map(|socket| tcp("metrics", socket)).collect();
        all.extend(self.demo.iter().map(|socket| tcp("demo", socket)));
        all.push(Listener { kind: "admin", address: self.admin_path.0.display().to_string() });
        all
    }
}

/// The control plane's tasks; ends with the signal that ends the process.
async fn serve(
    control: Arc<Control>,
    sockets: ControlSockets,
    mut nudges: Signals,
    ready: impl FnOnce(),
) -> Result<Signals, StartError> {
    let text = |error: std::io::Error| error.to_string();
    let mut ends = Signals::new(SignalKind::terminate(), SignalKind::interrupt()).map_err(text)?;
    let wheel = Wheel::default();
    let handle = Rc::new(Handle(control.clone(), wheel.clone()));
    tokio::task::spawn_local(watched("admin", admin::serve(sockets.admin, handle)));
    if let Some(metrics) = sockets.metrics {
        tokio::task::spawn_local(watched("metrics", admin::metrics(metrics, control.residents.hub.clone())));
    }
    for (number, socket) in sockets.demo.into_iter().enumerate() {
        let listener = tokio::net::TcpListener::from_std(socket).map_err(text)?;
        tokio::task::spawn_local(demo::run(listener, number + 1));
    }
    tokio::task::spawn_local(tick(wheel.clone()));
    tokio::task::spawn_local(control::probe::run(control.clone(), wheel));
    tokio::task::spawn_local(control::eject::run(control.clone()));
    tokio::task::spawn_local(control::jwks::run(control.clone()));
    tokio::task::spawn_local(control::doctor::run(control.clone()));
    tokio::task::spawn_local(control::load::run(control.clone()));
    let watching = control.clone();
    tokio::task::spawn_local(control::watch::run(control.clone(), async move |reason, look| {
        blocking(&watching, move |control| control.reload(reason, Some(&look))).await;
    }));
    let renewing = control.clone();
    tokio::task::spawn_local(control::renew::run(control.clone(), async move |reason| {
        reload(&renewing, reason).await;
    }));
    tokio::task::spawn_local(control::bans::run(control.clone()));
    tokio::task::spawn_local(upkeep(control.clone()));
    let told = control.clone();
    // A task of its own: a slow reload keeps nobody from ending the process. Signals that come meanwhile are one.
    tokio::task::spawn_local(async move {
        loop {
            let all = nudges.come().await;
            if let Err(error) = told.access.reopen() {
                tracing::error!("the access log cannot be opened again: {error}");
            }
            if all {
                told.residents.doubt_files();
                reload(&told, "SIGHUP").await;
            }
        }
    });
    ready();
    ends.come().await;
    tracing::info!("stopping: finishing what is in flight, for at most {:?}", control.server().drain);
    // The socket is removed first: whoever looks for it finds that this process is going.
    drop(sockets.admin_path);
    Ok(ends)
}

/// A listener of the control plane that ends is told: nobody would notice otherwise until they need it.
async fn watched(name: &str, task: impl Future<Output = std::io::Result<()>>) {
    if let Err(error) = task.await {
        tracing::error!("the {name} listener stopped: {error}");
    }
}

async fn tick(wheel: Wheel) {
    let mut interval = tokio::time::interval(timer::TICK);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        interval.tick().await;
        wheel.advance(crate::base::clock::now());
    }
}

/// How often [`upkeep`] looks.
const UPKEEP: Duration = Duration::from_secs(3600);
/// Every how many looks it warns of what it cannot mend: once a day.
const UPKEEP_WARN: u64 = 24;

/// Does what is due although nobody asks: a process may run for years without a reload.
async fn upkeep(control: Arc<Control>) {
    for count in 0u64.. {
        if count.is_multiple_of(UPKEEP_WARN) {
            control.warn_of_expiry();
        }
        tokio::time::sleep(UPKEEP).await;
        let asked = control.clone();
        // The look waits for a reload that runs, so it does not stand on this thread.
        if let Ok(Some(reason)) = tokio::task::spawn_blocking(move || asked.upkeep()).await {
            reload(&control, reason).await;
        }
    }
}

async fn reload(control: &Arc<Control>, reason: &'static str) -> Option<control::reload::Report> {
    blocking(control, move |control| control.reload(reason, None)).await
}

/// Reloads on a thread of its own, so that the admin socket answers meanwhile.
async fn blocking<T: Send + 'static>(
    control: &Arc<Control>,
    reload: impl FnOnce(&Control) -> T + Send + 'static,
) -> Option<T> {
    let control = control.clone();
    let done = behind(move || reload(&control)).await;
    done.map_err(|error| tracing::error!("the reload failed: {error}")).ok()
}

/// Waits for what writes a file, while the admin socket, probes and signals go on.
async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(format!("it broke off: {error}")))
}

/// What the admin socket may ask.
struct Handle(Arc<Control>, Wheel);

impl admin::Backend for Handle {
    fn status(&self) -> serde_json::Value {
        self.0.status()
    }

    fn reload(&self) -> std::pin::Pin<Box<dyn Future<Output = serde_json::Value>>> {
        let control = self.0.clone();
        Box::pin(async move {
            control.residents.doubt_files();
            let report = reload(&control, "admin command").await;
            report.unwrap_or_else(|| control.broken_reload()).to_json()
        })
    }

    fn config(&self) -> serde_json::Value {
        self.0.effective()
    }

    fn certificates(&self) -> serde_json::Value {
        self.0.certificates()
    }

    fn certificate_plan(&self) -> std::pin::Pin<Box<dyn Future<Output = serde_json::Value>>> {
        let control = self.0.clone();
        Box::pin(async move { control.certificate_plan().await })
    }

    fn patches(&self) -> serde_json::Value {
        self.0.patches()
    }

    fn certificate_events(&self) -> serde_json::Value {
        self.0.certificate_events()
    }

    fn renew(&self, site: &str) -> Result<(), String> {
        self.0.renew(site)
    }

    fn deploy(&self, order: admin::Deploy) -> std::pin::Pin<Box<dyn Future<Output = Result<u64, String>>>> {
        let admin::Deploy { what, to, back, timeout, hold, drain } = order;
        let (control, wheel) = (self.0.clone(), self.1.clone());
        let order = control::deploy::Order { what, to, back, timeout, hold, drain };
        Box::pin(async move { control.deploy(order, wheel).await })
    }

    fn deployments(&self) -> serde_json::Value {
        self.0.deployments()
    }

    fn observe(&self, site: Option<&str>, time: Duration) -> Result<serde_json::Value, String> {
        self.0.observe(site, time)
    }

    fn observation(&self) -> serde_json::Value {
        self.0.observation()
    }

    fn end_observation(&self) -> admin::Told {
        let control = self.0.clone();
        Box::pin(async move { control.end_observation().await })
    }

    fn ban(&self, net: String, time: Duration, why: String) -> admin::Told {
        let control = self.0.clone();
        Box::pin(on_disk(move || control.ban(&net, time, &why)))
    }

    fn unban(&self, net: String) -> admin::Told {
        let control = self.0.clone();
        Box::pin(on_disk(move || control.unban(&net)))
    }

    fn bans(&self) -> serde_json::Value {
        self.0.bans()
    }

    fn issue(&self, names: &str, valid: Duration) -> Result<serde_json::Value, String> {
        self.0.issue(names, valid)
    }

    fn reread(&self) -> std::pin::Pin<Box<dyn Future<Output = serde_json::Value>>> {
        let control = self.0.clone();
        Box::pin(async move {
            let asked = control.clone();
            let found = tokio::task::spawn_blocking(move || asked.reread()).await.unwrap_or_default();
            // Also where nothing was taken over: automatic certificates may be off, and a reload tries again.
            reload(&control, "the certificate store was read again").await;
            control.reread_report(&found)
        })
    }
}

/// How long the drain waits between two looks at what is left.
pub(crate) const LOOK: Duration = Duration::from_millis(50);
