//! A tenant's share of what is counted: requests in flight on this worker and what their bodies hold, and connections.
//!
//! Requests are counted by each worker for itself, and the node's number is split evenly among workers: the kernel
//! spreads connections evenly. So a request costs no line of memory that other cores write. Ten times a second each worker
//! tells what it counted, for [`crate::control`] and metrics.

use std::cell::{Cell, RefCell};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};

use crate::base::clock;
use crate::base::outcome::Outcome;
use crate::base::policy::PolicyKind;
use crate::config::model::{self, Mode, Priority};
use crate::net::progress::Phase;
use crate::net::timer::TICK;
use crate::policy::overload::{Pulse, Stage};
use crate::policy::share::{Counted, Levels, Slot, Tenant, Thing, may_take};
use crate::proxy::context::Context;
use crate::proxy::enforce::settle;
use crate::proxy::fair::Share;
use crate::proxy::{Worker, fair};
use crate::snapshot::Site;
use crate::telemetry::metric::Counter;

/// What tenants have on one worker.
pub struct Shares {
    rows: RefCell<Vec<Row>>,
    in_flight: Cell<u32>,
    /// Weights of the tenants that have something, over all workers.
    pub levels: Arc<Levels>,
    workers: u32,
    pulse: Arc<Pulse>,
    /// Processor time of the thread when that was last told, in milliseconds.
    cpu: Cell<u64>,
}

#[derive(Default, Clone)]
struct Row {
    tenant: Weak<Tenant>,
    in_flight: u32,
    told: u32,
    /// Bytes that its bodies hold here.
    buffered: u64,
    buffered_told: u64,
}

impl Shares {
    /// Of one of so many workers.
    pub fn new(levels: Arc<Levels>, workers: usize) -> Shares {
        let workers = u32::try_from(workers).unwrap_or(u32::MAX).max(1);
        let pulse = levels.load.join();
        Shares {
            rows: RefCell::default(),
            in_flight: Cell::new(0),
            levels,
            workers,
            pulse,
            cpu: Cell::new(0),
        }
    }

    /// Requests in flight on this worker.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.get()
    }

    /// One request more; tells how many of this tenant's there were, and of all.
    fn begin(&self, tenant: &Arc<Tenant>) -> (u32, u32) {
        let mut rows = self.rows.borrow_mut();
        let at = tenant.slot.index();
        if rows.len() <= at {
            rows.resize(at + 1, Row::default());
        }
        let all = self.in_flight.get();
        self.in_flight.set(all.saturating_add(1));
        let Some(row) = rows.get_mut(at) else { return (0, all) };
        if !std::ptr::eq(row.tenant.as_ptr(), Arc::as_ptr(tenant)) {
            row.tenant = Arc::downgrade(tenant);
            // The one before it in this place is gone, and so is what it had.
            (row.buffered, row.buffered_told) = (0, 0);
        }
        let own = row.in_flight;
        row.in_flight = own.saturating_add(1);
        (own, all)
    }

    /// A request has ended.
    pub fn end(&self, slot: Slot) {
        self.in_flight.set(self.in_flight.get().saturating_sub(1));
        if let Some(row) = self.rows.borrow_mut().get_mut(slot.index()) {
            row.in_flight = row.in_flight.saturating_sub(1);
        }
    }

    /// What a body holds was so many bytes, and is so many now.
    pub fn hold(&self, slot: Slot, before: u64, now: u64) {
        if let Some(row) = self.rows.borrow_mut().get_mut(slot.index()) {
            row.buffered = row.buffered.saturating_add(now).saturating_sub(before);
        }
    }

    /// Whether a tenant has more than its share, by its place.
    fn is_over(&self, slot: Slot) -> bool {
        let rows = self.rows.borrow();
        let tenant = rows.get(slot.index()).and_then(|row| row.tenant.upgrade());
        tenant.is_some_and(|tenant| tenant.over.load(Relaxed))
    }

    /// A tenant used so many microseconds since this was last told, and so much of its share.
    fn used(&self, slot: Slot, micros: u64, percent: u64) {
        let tenant = self.rows.borrow().get(slot.index()).and_then(|row| row.tenant.upgrade());
        if let Some(tenant) = tenant {
            tenant.micros.fetch_add(micros, Relaxed);
            tenant.peak.fetch_max(u32::try_from(percent).unwrap_or(u32::MAX), Relaxed);
        }
    }

    /// Tells what changed since it was last told, and how late that is.
    fn tell(&self) {
        let (now, pulse) = (clock::now().0, &self.pulse);
        let (before, tick) = (pulse.beat.swap(now, Relaxed), TICK.as_millis().try_into().unwrap_or(u64::MAX));
        // The worst is remembered for a while: who looks does not look each time.
        let late = if before == 0 { 0 } else { now.saturating_sub(before).saturating_sub(tick) };
        // Late by its own work: what others take of the machine is not mended by giving up something here.
        let cpu = clock::thread_micros() / 1000;
        let late = late.min(cpu.saturating_sub(self.cpu.replace(cpu)));
        pulse.late.store(late.max(pulse.late.load(Relaxed) * 3 / 4), Relaxed);
        pulse.in_flight.store(self.in_flight.get(), Relaxed);
        let changed = |row: &&mut Row| row.in_flight != row.told || row.buffered != row.buffered_told;
        for row in self.rows.borrow_mut().iter_mut().filter(changed) {
            if let Some(tenant) = row.tenant.upgrade() {
                tenant.in_flight.fetch_add(row.in_flight.wrapping_sub(row.told), Relaxed);
                tenant.buffered.fetch_add(row.buffered.wrapping_sub(row.buffered_told), Relaxed);
            }
            (row.told, row.buffered_told) = (row.in_flight, row.buffered);
        }
    }
}

/// Ticks between two looks at who uses a connection: a second.
const STOOD: u64 = 10;

impl Worker {
    /// Ends a window of time; `count`: of how many so far.
    pub(super) fn tick_shares(&self, count: u64) {
        let mode = self.snapshot().server.shares.mode;
        let fair = &self.fair;
        fair.tick(mode == Mode::Enforce, |slot, micros, percent| self.shares.used(slot, micros, percent));
        self.shares.tell();
        self.end_idle(count.is_multiple_of(STOOD));
        self.shard.add(Counter::ShareWaits, fair.waits());
    }

    /// In an overload: connections that wait for a request end, where they are not kept. Of those who keep to their share
    /// only what `stood` still since the look before: one in use would be back at once, at the cost of a handshake.
    fn end_idle(&self, stood: bool) {
        let (server, load) = (self.snapshot().server.clone(), &self.shares.levels.load);
        if load.stage() == Stage::Calm || server.overload.mode == Mode::Shadow {
            return;
        }
        for connection in self.open.borrow().iter().filter_map(std::rc::Weak::upgrade) {
            let over = self.shares.is_over(connection.share.get().slot)
                || load.client_is_over(connection.held_by_client());
            let unused = stood && connection.stood_still();
            if connection.progress.phase() == Phase::Idle
                && (over || unused)
                && load.gives_up(Stage::NoKeepAlive, over, Priority::Normal)
            {
                connection.closing.set(true);
                connection.progress.wake();
            }
        }
    }

    /// Whether a new connection for a site is let in in an overload.
    pub(super) fn takes_new(&self, site: &Site, settings: &model::Overload) -> bool {
        let over = site.owner.over.load(Relaxed);
        if !self.shares.levels.load.gives_up(Stage::NoConnections, over, site.priority) {
            return true;
        }
        if settings.mode == Mode::Shadow {
            site.would_block.count(PolicyKind::Overload);
        }
        settings.mode == Mode::Shadow
    }

    /// Whether a client that has so many connections, the new one with them, may have that in an overload. What it is for
    /// is not known yet; nothing is given up of a site whose clients keep to their shares.
    pub(super) fn takes_client(&self, connections: u32) -> bool {
        let load = &self.shares.levels.load;
        load.stage() < Stage::NoConnections
            || !load.client_is_over(connections)
            || self.snapshot().server.overload.mode == Mode::Shadow
    }

    /// Whether a tenant may have one more connection.
    pub fn may_connect(&self, tenant: &Tenant, settings: &model::Shares) -> bool {
        let all = self.connections.open();
        let weights = self.shares.levels.weights(Thing::Connections, tenant);
        may_take(tenant.connections.load(Relaxed), all, self.connections.max(), settings.lend, weights)
    }

    /// Whether a tenant may have one more connection to its backends.
    pub fn may_ask(&self, tenant: &Tenant, settings: &model::Shares) -> bool {
        let budget = self.connections.descriptors();
        let weights = self.shares.levels.weights(Thing::Upstream, tenant);
        may_take(tenant.upstream.load(Relaxed), budget.used(), budget.max(), settings.lend, weights)
    }
}

/// A request has found its site: from here on it is its tenant's.
///
/// # Errors
/// [`Outcome::OverShare`].
pub fn enter(context: &mut Context, site: &Site) -> Result<(), Outcome> {
    let (worker, snapshot) = (context.worker().clone(), context.snapshot.clone());
    let (tenant, settings) = (&site.owner, &snapshot.server.shares);
    let share = Share::of(tenant);
    context.connection.share.set(share);
    let crowded = !context.connection.secure && !connected(context, &worker, tenant, settings);
    let (own, all) = worker.shares.begin(tenant);
    context.tenant = Some(tenant.slot);
    let whole = settings.in_flight.unwrap_or_else(|| worker.connections.max()) / worker.shares.workers;
    let weights = worker.shares.levels.weights(Thing::InFlight, tenant);
    let over = crowded
        || !may_take(own, all, whole.max(1), settings.lend, weights)
        || waited_long(context, &worker.fair, share, settings);
    if !over {
        return overload(context, &worker, site, &snapshot.server.overload);
    }
    if settings.mode == Mode::Enforce {
        tenant.shed.fetch_add(1, Relaxed);
        worker.shard.add(Counter::ShedShare, 1);
    }
    settle(context, site, PolicyKind::Share, settings.mode, Outcome::OverShare)
}

/// In an overload connections are not kept, and requests are given up by priority.
fn overload(
    context: &mut Context,
    worker: &Worker,
    site: &Site,
    settings: &model::Overload,
) -> Result<(), Outcome> {
    let load = &worker.shares.levels.load;
    if load.stage() == Stage::Calm {
        return Ok(());
    }
    let (over, enforced) = (site.owner.over.load(Relaxed), settings.mode == Mode::Enforce);
    let kept_by_few = over || load.client_is_over(context.connection.held_by_client());
    if enforced && kept_by_few && load.gives_up(Stage::NoKeepAlive, true, site.priority) {
        context.close = true;
        context.connection.closing.set(true);
        context.connection.progress.wake();
    }
    // On plain HTTP nobody could refuse the connection.
    let fresh = !context.connection.secure
        && context.connection.requests() <= 1
        && load.gives_up(Stage::NoConnections, over, site.priority);
    if !fresh && !load.gives_up(Stage::Shedding, over, site.priority) {
        return Ok(());
    }
    if enforced {
        site.owner.shed.fetch_add(1, Relaxed);
        worker.shard.add(Counter::ShedOverload, 1);
    }
    settle(context, site, PolicyKind::Overload, settings.mode, Outcome::Overloaded)
}

/// Counts a connection over plain HTTP, of which nobody knew before its first request whose it is. `false`: its tenant
/// has more than its share of them.
fn connected(context: &mut Context, worker: &Worker, tenant: &Arc<Tenant>, settings: &model::Shares) -> bool {
    let mut counted = context.connection.counted.borrow_mut();
    if counted.is_some() {
        return true;
    }
    let may = worker.may_connect(tenant, settings);
    *counted = Some(Counted::one(&tenant.connections));
    drop(counted);
    context.close |= !may && settings.mode == Mode::Enforce;
    may
}

/// Whether a request waited longer than it may for the processor; in shadow, where nobody waits, whether it would have
/// waited at all.
fn waited_long(context: &Context, fair: &fair::Fair, share: Share, settings: &model::Shares) -> bool {
    match settings.mode {
        Mode::Enforce => u128::from(context.connection.waited.get()) > settings.wait.as_micros(),
        Mode::Shadow => fair.is_over(share),
    }
}
