//! Where the shards meet: names of series, the list of shards, and the values the control plane sets.
//!
//! A series lives as long as the process. A reload that keeps a route keeps its id, so counters never go back; a
//! site that leaves and returns goes on where it stopped. The table is bounded by [`SERIES_MAX`].

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::metric::{Gauge, Metric};
use super::shard::{RouteCells, Shard, WorkerCells};
use crate::base::clock;

/// Routes that have metrics of their own; all beyond are counted together as `site="other"`.
pub const SERIES_MAX: usize = 200_000;

/// A route's place in every shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeriesId(u32);

impl SeriesId {
    /// Requests that matched no site; labelled `none`.
    pub const NONE: SeriesId = SeriesId(0);
    /// Routes beyond [`SERIES_MAX`]; labelled `other`.
    pub const OTHER: SeriesId = SeriesId(1);

    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

/// A value read at scrape time.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// Which metric.
    pub metric: Metric,
    /// Label values, in the order of the metric's labels.
    pub labels: Vec<String>,
    /// The value.
    pub value: f64,
}

impl Reading {
    /// A reading; `labels` in the order of the metric's labels.
    pub fn new(metric: Metric, labels: &[&str], value: f64) -> Reading {
        debug_assert_eq!(metric.row().labels.len(), labels.len(), "{metric:?}");
        Reading { metric, labels: labels.iter().map(ToString::to_string).collect(), value }
    }
}

/// How a reload ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReloadResult {
    /// Everything new is in force.
    Applied,
    /// Nothing had changed.
    Unchanged,
    /// At least one site was quarantined; the rest is in force.
    Partial,
    /// The server section was wrong; the old configuration stays whole.
    Refused,
}

impl ReloadResult {
    pub(super) const ALL: [(ReloadResult, &'static str); 4] = [
        (ReloadResult::Applied, "applied"),
        (ReloadResult::Unchanged, "unchanged"),
        (ReloadResult::Partial, "partial"),
        (ReloadResult::Refused, "refused"),
    ];
}

/// Appends readings at scrape time.
pub type Reader = Box<dyn Fn(&mut Vec<Reading>) + Send + Sync>;

/// All metrics of the process.
pub struct Hub {
    workers: usize,
    started: f64,
    series: Mutex<SeriesTable>,
    shards: Mutex<Vec<Arc<WorkerCells>>>,
    reader: Mutex<Option<Reader>>,
    access_dropped: Mutex<Option<Arc<AtomicU64>>>,
    pub(super) generation: AtomicU64,
    pub(super) last_reload: AtomicU64,
    pub(super) reloads: [AtomicU64; ReloadResult::ALL.len()],
    pub(super) series_refused: AtomicU64,
    /// Held during a scrape: scrapes queue up instead of multiplying their memory. Per shard, the routes known.
    pub(super) scrape: Mutex<Vec<Vec<Arc<RouteCells>>>>,
}

impl Hub {
    /// A hub for so many workers.
    pub fn new(workers: usize) -> Arc<Hub> {
        Arc::new(Hub {
            workers,
            started: clock::wall().as_secs_f64(),
            series: Mutex::new(SeriesTable::new()),
            shards: Mutex::default(),
            reader: Mutex::default(),
            access_dropped: Mutex::default(),
            generation: AtomicU64::new(0),
            last_reload: AtomicU64::new(0),
            reloads: Default::default(),
            series_refused: AtomicU64::new(0),
            scrape: Mutex::default(),
        })
    }

    /// The id of a route; the same for the same names, always. Control plane only: it locks and allocates.
    /// [`SeriesId::OTHER`] once [`SERIES_MAX`] routes have ids.
    pub fn series(&self, site: &str, route: &str) -> SeriesId {
        lock(&self.series).id(site, route).unwrap_or_else(|| {
            self.series_refused.fetch_add(1, Relaxed);
            SeriesId::OTHER
        })
    }

    /// Fresh cells for a worker's thread to write.
    pub fn shard(&self, worker: usize) -> Shard {
        let cells = Arc::new(WorkerCells::new(worker));
        lock(&self.shards).push(cells.clone());
        Shard::new(cells)
    }

    /// Client connections a worker has open.
    pub fn connections(&self, worker: usize) -> u64 {
        let shards = lock(&self.shards);
        let open = |cells: &Arc<WorkerCells>| -> i64 {
            let gauge = |gauge: Gauge| cells.gauges.get(gauge as usize).map_or(0, |cell| cell.load(Relaxed));
            gauge(Gauge::ActiveHttp) + gauge(Gauge::ActiveHttps)
        };
        shards.iter().filter(|cells| cells.worker == worker).map(open).sum::<i64>().try_into().unwrap_or(0)
    }

    /// Sets who is asked for more readings at each scrape (sites, endpoints, certificates). It must not call the
    /// hub back.
    pub fn set_gauges(&self, reader: Reader) {
        *lock(&self.reader) = Some(reader);
    }

    /// Sets where the number of dropped access records is read.
    pub fn set_access_dropped(&self, dropped: Arc<AtomicU64>) {
        *lock(&self.access_dropped) = Some(dropped);
    }

    /// Sets the generation in force.
    pub fn set_generation(&self, generation: u64) {
        self.generation.store(generation, Relaxed);
    }

    /// Counts a reload; one that put something new in force also sets the time of the last.
    pub fn reloaded(&self, result: ReloadResult) {
        if let Some(cell) = self.reloads.get(result as usize) {
            cell.fetch_add(1, Relaxed);
        }
        if matches!(result, ReloadResult::Applied | ReloadResult::Partial) {
            self.last_reload.store(clock::wall().as_secs(), Relaxed);
        }
    }

    /// Every metric in the Prometheus text format 0.0.4. Locks no worker's cells and waits for no worker.
    pub fn render(&self) -> String {
        super::render::render(self)
    }

    pub(super) fn shards(&self) -> Vec<Arc<WorkerCells>> {
        lock(&self.shards).clone()
    }

    /// Site and route of every id given out.
    pub(super) fn names(&self) -> Vec<(Arc<str>, Arc<str>)> {
        lock(&self.series).names.clone()
    }

    /// The values that are not counted by workers.
    pub(super) fn readings(&self) -> Vec<Reading> {
        let mut readings = vec![
            Reading::new(Metric::ConfigGeneration, &[], self.generation.load(Relaxed) as f64),
            Reading::new(Metric::LastReload, &[], self.last_reload.load(Relaxed) as f64),
            Reading::new(Metric::SeriesRefused, &[], self.series_refused.load(Relaxed) as f64),
            Reading::new(Metric::Workers, &[], self.workers as f64),
            Reading::new(Metric::BuildInfo, &[env!("CARGO_PKG_VERSION")], 1.0),
            Reading::new(Metric::ProcessStart, &[], self.started),
        ];
        for ((_, word), cell) in ReloadResult::ALL.iter().zip(&self.reloads) {
            readings.push(Reading::new(Metric::Reloads, &[word], cell.load(Relaxed) as f64));
        }
        let dropped = lock(&self.access_dropped).as_ref().map_or(0, |cell| cell.load(Relaxed));
        readings.push(Reading::new(Metric::AccessDropped, &[], dropped as f64));
        super::process::read(&mut readings);
        if let Some(reader) = lock(&self.reader).as_ref() {
            reader(&mut readings);
        }
        readings
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").field("workers", &self.workers).finish_non_exhaustive()
    }
}

/// Numbers stay usable when a thread died while it held the lock: every critical section leaves them whole.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
struct SeriesTable {
    ids: HashMap<Arc<str>, HashMap<Arc<str>, SeriesId>>,
    names: Vec<(Arc<str>, Arc<str>)>,
}

impl SeriesTable {
    fn new() -> SeriesTable {
        // A site could be called `none` or `other`: the reserved ids are found by those names, so they share a
        // line instead of standing in the exposition twice.
        let mut table = SeriesTable { ids: HashMap::new(), names: Vec::new() };
        table.id("none", "none");
        table.id("other", "other");
        table
    }

    fn id(&mut self, site: &str, route: &str) -> Option<SeriesId> {
        if let Some(id) = self.ids.get(site).and_then(|routes| routes.get(route)) {
            return Some(*id);
        }
        if self.names.len() >= SERIES_MAX {
            return None;
        }
        let id = SeriesId(u32::try_from(self.names.len()).ok()?);
        let site: Arc<str> = match self.ids.get_key_value(site) {
            Some((known, _)) => known.clone(),
            None => site.into(),
        };
        let route: Arc<str> = route.into();
        self.names.push((site.clone(), route.clone()));
        self.ids.entry(site).or_default().insert(route, id);
        Some(id)
    }
}
