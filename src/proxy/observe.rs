//! What a worker notes of requests and connections while somebody watches (`tidegate suggest`); otherwise a look at
//! one flag of its own.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use crate::base::clock::Millis;
use crate::base::outcome::Outcome;
use crate::policy::observe::{Tally, Watch};
use crate::proxy::Worker;
use crate::proxy::context::Context;
use crate::snapshot::Site;

/// A worker's part in what is watched.
pub struct Observed {
    watch: Arc<Watch>,
    on: Cell<bool>,
    tally: RefCell<Option<Box<Tally>>>,
}

impl Observed {
    /// Watches when `watch` says so.
    pub fn new(watch: Arc<Watch>) -> Observed {
        Observed { watch, on: Cell::new(false), tally: RefCell::default() }
    }

    /// Every tick: begins, hands over, ends.
    pub fn tick(&self, now: Millis) {
        let mut tally = self.tally.borrow_mut();
        self.watch.tick(&mut tally, now);
        self.on.set(tally.is_some());
    }

    fn note(&self, note: impl FnOnce(&mut Tally)) {
        if let Some(tally) = self.tally.borrow_mut().as_deref_mut() {
            note(tally);
        }
    }
}

/// A request has come as far as the limits.
pub fn arrived(context: &Context, site: &Site) {
    let observed = &context.worker().observed;
    if observed.on.get() {
        observed.note(|tally| tally.request(&site.name, context.client_key()));
    }
}

/// A request has ended.
pub fn ended(context: &Context, outcome: Outcome) {
    let observed = &context.worker().observed;
    if observed.on.get()
        && let Some(site) = context.site()
    {
        let bytes = context.upload.as_ref().map_or(0, |upload| upload.received());
        observed.note(|tally| tally.body(&site.name, bytes, outcome == Outcome::BodyTooLarge));
    }
}

/// A connection was let in, as the `nth` of those its client has open; 0: its client is not counted.
pub fn connected(worker: &Worker, nth: u32) {
    if worker.observed.on.get() && nth > 0 {
        worker.observed.note(|tally| tally.connection(nth));
    }
}
