//! How the data plane counts: each worker writes cells of its own and nobody else's.
//!
//! A cell is an `AtomicU64` with a single writer, so counting is a plain load, add and store: no locked instruction
//! and no cache line shared between workers. That there is one writer follows from the types: a [`Shard`] cannot
//! leave its thread, and [`Hub::shard`](super::Hub::shard) hands out fresh cells each time it is called.
//!
//! Cells of a route come into being with the first request a worker sees for it: ten thousand idle sites cost
//! nothing. That first request pays an allocation and a short lock; no later one does.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use super::hub::SeriesId;
use super::metric::{Counter, Gauge, METHODS, STATUSES, method_index, status_index};
use crate::base::outcome::Outcome;
use crate::telemetry::histogram::Histogram;

/// Adds to a cell that only this thread writes.
pub(super) fn bump(cell: &AtomicU64, n: u64) {
    cell.store(cell.load(Relaxed).wrapping_add(n), Relaxed);
}

/// What is known when a request has ended.
#[derive(Debug, Clone, Copy)]
pub struct Ending<'a> {
    /// The route, or [`SeriesId::NONE`] where none was found.
    pub series: SeriesId,
    /// Request method.
    pub method: &'a http::Method,
    /// Status sent; 0 where none was.
    pub status: u16,
    /// How it ended.
    pub outcome: Outcome,
    /// Bytes of the request body received.
    pub bytes_in: u64,
    /// Bytes of the response body sent.
    pub bytes_out: u64,
    /// Microseconds from the request head to the end.
    pub micros: u64,
    /// Microseconds until the backend's first byte, where a backend answered.
    pub upstream_micros: Option<u64>,
}

/// A worker's handle. Cloning copies a pointer.
#[derive(Debug, Clone)]
pub struct Shard(Rc<Local>);

#[derive(Debug)]
struct Local {
    cells: Arc<WorkerCells>,
    routes: RefCell<Vec<Option<Arc<RouteCells>>>>,
}

impl Shard {
    pub(super) fn new(cells: Arc<WorkerCells>) -> Shard {
        Shard(Rc::new(Local { cells, routes: RefCell::new(Vec::new()) }))
    }

    /// Counts a request. Call exactly once for each request.
    pub fn request(&self, ending: &Ending<'_>) {
        self.outcome_only(ending.outcome);
        self.with_route(ending.series, |route| {
            let row = route.requests.get(method_index(ending.method));
            if let Some(cell) = row.and_then(|row| row.get(status_index(ending.status))) {
                bump(cell, 1);
            }
            bump(&route.bytes_in, ending.bytes_in);
            bump(&route.bytes_out, ending.bytes_out);
            route.duration.observe(ending.micros);
            if let Some(micros) = ending.upstream_micros {
                route.upstream.observe(micros);
            }
        });
    }

    /// Counts a rate limit's decision.
    pub fn limit(&self, series: SeriesId, allowed: bool) {
        self.with_route(series, |route| bump(if allowed { &route.allowed } else { &route.limited }, 1));
    }

    /// Counts the ending of a connection that never became a request.
    pub fn outcome_only(&self, outcome: Outcome) {
        if let Some(cell) = self.0.cells.outcomes.get(outcome.index()) {
            bump(cell, 1);
        }
    }

    /// Adds to a fixed counter.
    pub fn add(&self, counter: Counter, n: u64) {
        if let Some(cell) = self.0.cells.counters.get(counter as usize) {
            bump(cell, n);
        }
    }

    /// Moves a gauge up or down.
    pub fn gauge_add(&self, gauge: Gauge, n: i64) {
        if let Some(cell) = self.0.cells.gauges.get(gauge as usize) {
            cell.store(cell.load(Relaxed).wrapping_add(n), Relaxed);
        }
    }

    fn with_route(&self, series: SeriesId, count: impl FnOnce(&RouteCells)) {
        if let Some(Some(route)) = self.0.routes.borrow().get(series.index()) {
            return count(route);
        }
        count(&self.first_hit(series));
    }

    #[cold]
    fn first_hit(&self, series: SeriesId) -> Arc<RouteCells> {
        let route = Arc::new(RouteCells::new(series));
        let mut routes = self.0.routes.borrow_mut();
        // Ids are dense and bounded (hub::SERIES_MAX), so this table is too.
        if routes.len() <= series.index() {
            routes.resize(series.index() + 1, None);
        }
        if let Some(slot) = routes.get_mut(series.index()) {
            *slot = Some(route.clone());
        }
        self.0.cells.routes.lock().unwrap_or_else(PoisonError::into_inner).push(route.clone());
        route
    }
}

/// The cells of one shard. Aligned so that two workers never write one cache line (128: adjacent-line prefetch).
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct WorkerCells {
    pub(super) worker: usize,
    pub(super) counters: [AtomicU64; Counter::ALL.len()],
    pub(super) gauges: [AtomicI64; Gauge::ALL.len()],
    pub(super) outcomes: [AtomicU64; Outcome::ALL.len()],
    /// Grows only; each series once.
    pub(super) routes: Mutex<Vec<Arc<RouteCells>>>,
}

impl WorkerCells {
    pub(super) fn new(worker: usize) -> WorkerCells {
        WorkerCells {
            worker,
            counters: std::array::from_fn(|_| AtomicU64::new(0)),
            gauges: std::array::from_fn(|_| AtomicI64::new(0)),
            outcomes: std::array::from_fn(|_| AtomicU64::new(0)),
            routes: Mutex::new(Vec::new()),
        }
    }
}

/// The cells of one route in one shard: about 750 bytes.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct RouteCells {
    pub(super) series: SeriesId,
    pub(super) requests: [[AtomicU64; STATUSES.len()]; METHODS.len()],
    pub(super) bytes_in: AtomicU64,
    pub(super) bytes_out: AtomicU64,
    pub(super) allowed: AtomicU64,
    pub(super) limited: AtomicU64,
    pub(super) duration: Histogram,
    pub(super) upstream: Histogram,
}

impl RouteCells {
    fn new(series: SeriesId) -> RouteCells {
        RouteCells {
            series,
            requests: Default::default(),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            allowed: AtomicU64::new(0),
            limited: AtomicU64::new(0),
            duration: Histogram::default(),
            upstream: Histogram::default(),
        }
    }
}
