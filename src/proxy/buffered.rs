//! What the body of a request holds of this process's memory, counted for its tenant.
//!
//! Counted is what is ours to hold: what was read of it ahead of the backend, what is kept for another try, and the piece
//! that was handed over last, until the next one is asked for. What hyper and h2 queue behind that is theirs; both bound it
//! for each connection. What an answer holds is counted by its [`Context`](crate::proxy::context::Context).

use std::cell::Cell;
use std::rc::Rc;

use crate::policy::share::Slot;
use crate::proxy::Worker;

/// The count of one body; dropping it gives back what is left.
pub struct Buffered {
    worker: Rc<Worker>,
    slot: Slot,
    /// What is kept for later.
    kept: Cell<u64>,
    /// The piece handed over last.
    handed: Cell<u64>,
}

impl Buffered {
    /// Nothing yet, of this tenant.
    pub fn new(worker: &Rc<Worker>, slot: Slot) -> Buffered {
        Buffered { worker: worker.clone(), slot, kept: Cell::new(0), handed: Cell::new(0) }
    }

    /// So many bytes more are kept.
    pub fn keep(&self, bytes: u64) {
        self.set(self.kept.get().saturating_add(bytes), self.handed.get());
    }

    /// So many bytes are kept no more.
    pub fn release(&self, bytes: u64) {
        self.set(self.kept.get().saturating_sub(bytes), self.handed.get());
    }

    /// A piece of so many bytes was handed over; the one before is gone.
    pub fn hand(&self, bytes: u64) {
        self.set(self.kept.get(), bytes);
    }

    fn set(&self, kept: u64, handed: u64) {
        let before = self.kept.replace(kept).saturating_add(self.handed.replace(handed));
        let now = kept.saturating_add(handed);
        if now != before {
            self.worker.shares.hold(self.slot, before, now);
        }
    }
}

impl Drop for Buffered {
    fn drop(&mut self) {
        self.set(0, 0);
    }
}
