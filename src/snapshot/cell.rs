//! The one place where a new snapshot becomes the current one.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;

use crate::base::clock;
use crate::snapshot::Snapshot;

/// Holds the current snapshot; the control plane swaps it, workers read it through a [`Reader`].
pub struct Cell {
    current: ArcSwap<Snapshot>,
    generation: AtomicU64,
    /// Those before it that may still be in use. Freeing the tables of thousands of sites takes milliseconds, which no
    /// worker should find itself doing because it was the last to let go.
    former: Mutex<Vec<Arc<Snapshot>>>,
}

impl Cell {
    /// A cell that holds a first snapshot.
    pub fn new(snapshot: Snapshot) -> Cell {
        let generation = AtomicU64::new(snapshot.generation);
        snapshot.adopt(None, clock::now());
        Cell { current: ArcSwap::from_pointee(snapshot), generation, former: Mutex::default() }
    }

    /// The current snapshot. For the control plane: it costs two atomic operations on a shared line.
    pub fn load(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Makes a snapshot the current one. Requests that hold the old one keep it to their end.
    pub fn swap(&self, snapshot: Snapshot) {
        self.sweep();
        let generation = snapshot.generation;
        // Before the swap: an endpoint that joins others gets no request before it has answered a health check.
        snapshot.adopt(Some(&self.current.load()), clock::now());
        let former = self.current.swap(Arc::new(snapshot));
        // After the store: who sees the new number finds the new snapshot.
        self.generation.store(generation, Ordering::Release);
        self.former().push(former);
    }

    /// Frees the snapshots that nobody uses any more.
    pub fn sweep(&self) {
        // Freed only when the lock is free again.
        let unused: Vec<_> = self.former().extract_if(.., |former| Arc::strong_count(former) == 1).collect();
        drop(unused);
    }

    fn former(&self) -> MutexGuard<'_, Vec<Arc<Snapshot>>> {
        self.former.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A snapshot as a worker holds it. The outer count is the worker's own: a request that takes and drops one touches
/// no cache line of another core.
#[allow(clippy::redundant_allocation, reason = "the two counts belong to different threads")]
pub type Held = Rc<Arc<Snapshot>>;

/// A worker's view of the cell: one relaxed read per request, no reference count that other cores touch.
pub struct Reader {
    cell: Arc<Cell>,
    held: RefCell<(u64, Held)>,
}

impl Reader {
    /// A reader of a cell.
    pub fn new(cell: Arc<Cell>) -> Reader {
        let snapshot = cell.load();
        let held = RefCell::new((snapshot.generation, Rc::new(snapshot)));
        Reader { cell, held }
    }

    /// The current snapshot.
    pub fn load(&self) -> Held {
        let generation = self.cell.generation.load(Ordering::Acquire);
        let mut held = self.held.borrow_mut();
        if held.0 != generation {
            let snapshot = self.cell.load();
            *held = (snapshot.generation, Rc::new(snapshot));
        }
        held.1.clone()
    }
}
