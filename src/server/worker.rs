//! One core: a thread with its own runtime, listeners, upstream pools and metric shard. Nothing of the data plane
//! leaves it.

use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::{LocalOptions, LocalRuntime};
use tokio::sync::Notify;

use crate::base::clock;
use crate::config::model::Server;
use crate::control::Listener;
use crate::net::{bind, timer};
use crate::policy::connection_limit::Connections;
use crate::proxy::accept::{self, Kind};
use crate::proxy::fair::Sleep;
use crate::proxy::{Parts, Worker};
use crate::server::LOOK;
use crate::snapshot::Cell;
use crate::snapshot::cell::Reader;
use crate::snapshot::resident::Residents;
use crate::telemetry::access::Sink;

/// Threads a worker may use for what the system only offers blocking: resolving names.
const BLOCKING_MAX: usize = 4;

/// The listeners of all workers: each address bound once per worker (SO_REUSEPORT).
pub struct Sockets {
    /// One entry per configured address.
    groups: Vec<(Kind, Vec<TcpListener>)>,
}

impl Sockets {
    /// Binds everything, or nothing.
    ///
    /// # Errors
    /// A sentence that names the address and the mend.
    pub fn bind(server: &Server, workers: usize) -> Result<Sockets, String> {
        let kinds = [(Kind::Https, &server.https), (Kind::Http, &server.http)];
        let mut groups = Vec::new();
        for (kind, addresses) in kinds {
            for address in addresses {
                let group = bind::bind_group(*address, workers).map_err(|error| error.to_string())?;
                groups.push((kind, group));
            }
        }
        Ok(Sockets { groups })
    }

    /// The port of the first HTTPS listener.
    pub fn https_port(&self) -> Option<u16> {
        let (_, group) = self.groups.iter().find(|(kind, _)| *kind == Kind::Https)?;
        Some(group.first()?.local_addr().ok()?.port())
    }

    /// What listens where.
    pub fn listeners(&self) -> Vec<Listener> {
        let address = |group: &[TcpListener]| {
            group
                .first()
                .and_then(|socket| socket.local_addr().ok())
                .map(|a| a.to_string())
                .unwrap_or_default()
        };
        let kind = |kind: Kind| if kind == Kind::Https { "https" } else { "http" };
        self.groups.iter().map(|(k, group)| Listener { kind: kind(*k), address: address(group) }).collect()
    }

    /// The listeners of one worker: the last of each group.
    fn take(&mut self) -> Vec<(Kind, TcpListener)> {
        self.groups.iter_mut().filter_map(|(kind, group)| Some((*kind, group.pop()?))).collect()
    }
}

/// All workers.
pub struct Fleet {
    threads: Vec<JoinHandle<()>>,
    signals: Vec<Arc<Signals>>,
}

/// What the control plane says to a worker, and hears from it.
#[derive(Default)]
struct Signals {
    drain: Notify,
    empty: AtomicBool,
    stop: Notify,
}

impl Fleet {
    /// Starts one thread per worker.
    ///
    /// # Errors
    /// A sentence when a thread or its runtime cannot be made.
    pub fn start(
        mut sockets: Sockets,
        sinks: Vec<Sink>,
        cell: &Arc<Cell>,
        residents: &Residents,
        connections: &Connections,
    ) -> Result<Fleet, String> {
        let mut fleet = Fleet { threads: Vec::new(), signals: Vec::new() };
        let workers = sinks.len();
        for (id, sink) in sinks.into_iter().enumerate() {
            let listeners = sockets.take();
            let signals = Arc::new(Signals::default());
            let (cell, hub) = (cell.clone(), residents.hub.clone());
            let (connections, watch) = (connections.clone(), residents.watch.clone());
            let (challenges, doctor) = (residents.acme.challenges.clone(), residents.doctor.clone());
            let (sleep, levels) = (Sleep::default(), residents.tenants.levels.clone());
            let heard = signals.clone();
            let (tell, told) = sync_channel(1);
            let body = move || {
                let Some(runtime) = runtime(&sleep, &tell) else { return };
                let reader = Reader::new(cell);
                let (shard, seed) = (hub.shard(id), seed(id));
                let parts = Parts {
                    id,
                    shard,
                    sink,
                    connections,
                    challenges,
                    doctor,
                    watch,
                    sleep,
                    levels,
                    workers,
                    reader,
                    seed,
                };
                let worker = Rc::new(Worker::new(parts));
                runtime.block_on(run(worker, listeners, heard));
                // The resolver of the system may think about a name for half a minute: nobody waits for that any more.
                runtime.shutdown_background();
            };
            let thread = std::thread::Builder::new().name(format!("worker-{id}")).spawn(body);
            fleet.threads.push(thread.map_err(|error| format!("worker {id} cannot start: {error}"))?);
            fleet.signals.push(signals);
            // Nothing is said by a thread that is gone.
            let made = told.recv().unwrap_or_else(|_| Err("its thread ended".to_owned()));
            made.map_err(|error| format!("worker {id} cannot start: {error}"))?;
        }
        Ok(fleet)
    }

    /// Lets the workers finish what they have, for at most `deadline`.
    pub async fn drain(&self, deadline: Duration) {
        for signals in &self.signals {
            signals.drain.notify_one();
        }
        let end = clock::now().after(deadline);
        while clock::now() < end && !self.signals.iter().all(|signals| signals.empty.load(Ordering::Acquire))
        {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Ends the workers, whatever they still have.
    pub fn stop(self) {
        for signals in &self.signals {
            signals.drain.notify_one();
        }
        for signals in &self.signals {
            signals.stop.notify_one();
        }
        for thread in self.threads {
            // A worker that panicked has said so; the others are still to be waited for.
            let _ = thread.join();
        }
    }
}

/// A worker's runtime, made on its own thread because it stays there; `tell` hears whether it could be made.
fn runtime(sleep: &Sleep, tell: &SyncSender<Result<(), String>>) -> Option<LocalRuntime> {
    let (falls_asleep, wakes_up) = (sleep.clone(), sleep.clone());
    let made = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_MAX)
        .on_thread_park(move || falls_asleep.begins())
        .on_thread_unpark(move || wakes_up.ends())
        .build_local(LocalOptions::default());
    let (runtime, said) = match made {
        Ok(runtime) => (Some(runtime), Ok(())),
        Err(error) => (None, Err(error.to_string())),
    };
    // Whoever starts the fleet waits for it.
    let _ = tell.send(said);
    runtime
}

/// Random bits from the standard library's hash seed, which comes from the system.
fn seed(id: usize) -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one((id, clock::wall()))
}

/// Sizes in bytes of the buffers that bodies under TLS go through one after the other: rustls's for what it reads, as it grows; the
/// text of a record; a record as it is written. What rustls's grows to in the end (18,437) is of the last one's class to mimalloc.
///
/// Most often one of each is in use, and mimalloc does more when the last block of a class is freed (it looks whether to give
/// memory back): a fortieth of what an upload costs. So each worker keeps one that nobody uses.
const KEPT: [usize; 5] = [4 << 10, 8 << 10, 12 << 10, 16 << 10, 16_406];

async fn run(worker: Rc<Worker>, listeners: Vec<(Kind, TcpListener)>, signals: Arc<Signals>) {
    let _kept = KEPT.map(Vec::<u8>::with_capacity);
    let mut accepting = Vec::new();
    for (kind, listener) in listeners {
        match tokio::net::TcpListener::from_std(listener) {
            Ok(listener) => {
                accepting.push(tokio::task::spawn_local(accept::run(worker.clone(), listener, kind)))
            }
            Err(error) => tracing::error!("worker {}: a listener cannot be used: {error}", worker.id),
        }
    }
    tokio::task::spawn_local(tick(worker.clone()));
    tokio::task::spawn_local(worker.turnstile.clone().run());
    tokio::task::spawn_local(worker.fair.clone().run());
    signals.drain.notified().await;
    // Closed before the drain: what waits in their queues is refused at once instead of being let down later.
    for task in accepting {
        task.abort();
    }
    worker.drain();
    while worker.open() > 0 {
        tokio::select! {
            () = signals.stop.notified() => break,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
    worker.sink.flush();
    signals.empty.store(true, Ordering::Release);
}

async fn tick(worker: Rc<Worker>) {
    let mut interval = tokio::time::interval(timer::TICK);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut count = 0u64;
    loop {
        interval.tick().await;
        count += 1;
        worker.tick(count);
    }
}
