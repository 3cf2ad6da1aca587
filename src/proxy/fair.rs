//! Whose connections run: while a worker is behind, those of tenants that use more than their share wait for turns.
//!
//! All connections of a worker share one thread. What costs is not what waits but what runs, so that is what is shared:
//! every time a connection (or a stream of one) is to run, [`Fair::poll`] looks whether its tenant used more than its
//! share lately, and whether the worker is behind. If both hold it waits in its tenant's lane; nothing of it is read, parsed
//! or sent meanwhile, and so its client sends no more than its window takes. One is called at a time, each after whatever
//! else is ready has run: connections of other tenants wait for one such step at most.
//!
//! While the worker is not behind, nobody waits, whatever share he uses. It is behind when it has not slept for a moment:
//! a worker that sleeps has done all that there was to do.
//!
//! Costs two looks at the clock each time something runs.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};

use tokio::sync::Notify;

use crate::base::clock;
use crate::policy::share::lanes::Lanes;
use crate::policy::share::usage::Usage;
use crate::policy::share::{Slot, Tenant};
use crate::proxy::context::Connection;

/// Microseconds without sleep after which a worker is behind: a handful of requests that came at once are none.
const BEHIND: u64 = 200;

/// Microseconds that a step is taken to last at most: where it lasted longer, the machine had other things to do.
const STEP_MAX: u64 = 5_000;

/// Whose something is, as far as the processor is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Share {
    /// The tenant's place.
    pub slot: Slot,
    /// Its weight.
    pub weight: u32,
}

impl Share {
    /// A tenant's.
    pub fn of(tenant: &Tenant) -> Share {
        Share { slot: tenant.slot, weight: tenant.weight() }
    }
}

/// When a worker's thread last slept. Its runtime tells.
#[derive(Debug, Clone, Default)]
pub struct Sleep(Arc<Times>);

#[derive(Debug, Default)]
struct Times {
    /// When it woke up last, in microseconds.
    woke: AtomicU64,
    /// When it began to sleep.
    began: AtomicU64,
    /// How long it has slept, over all.
    slept: AtomicU64,
}

impl Sleep {
    /// The thread has nothing left to do.
    pub fn begins(&self) {
        self.0.began.store(clock::micros(), Relaxed);
    }

    /// Something came.
    pub fn ends(&self) {
        let now = clock::micros();
        let slept = now.saturating_sub(self.0.began.load(Relaxed));
        self.0.slept.store(self.0.slept.load(Relaxed).saturating_add(slept), Relaxed);
        self.0.woke.store(now, Relaxed);
    }

    /// Microseconds since it last slept.
    pub fn awake(&self, now: u64) -> u64 {
        now.saturating_sub(self.0.woke.load(Relaxed))
    }

    /// Microseconds that it slept so far.
    pub fn slept(&self) -> u64 {
        self.0.slept.load(Relaxed)
    }
}

/// A place in a lane; made when somebody waits for the first time.
#[derive(Debug, Default)]
pub struct Seat {
    state: Cell<State>,
    since: Cell<u64>,
    waker: RefCell<Option<Waker>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    Free,
    Waiting,
    Called,
}

/// Who runs on one worker.
pub struct Fair {
    usage: RefCell<Usage>,
    lanes: RefCell<Lanes<Rc<Seat>>>,
    bell: Notify,
    sleep: Sleep,
    /// Nobody waits where shares are in shadow.
    enforced: Cell<bool>,
    waited: Cell<u64>,
    moment: Cell<u64>,
}

impl Fair {
    /// One for a worker whose thread tells when it sleeps.
    pub fn new(sleep: Sleep) -> Fair {
        Fair {
            usage: RefCell::default(),
            lanes: RefCell::default(),
            bell: Notify::new(),
            sleep,
            enforced: Cell::new(true),
            waited: Cell::new(0),
            moment: Cell::new(clock::micros()),
        }
    }

    /// When the step that runs began, in microseconds of process time: the time of whatever happens in a step, where that
    /// need not be told from the step's own few microseconds. Free to read; means nothing outside of [`Fair::poll`].
    pub fn moment(&self) -> u64 {
        self.moment.get()
    }

    /// Whether a tenant has used more than its share while there is not enough for all.
    pub fn is_over(&self, share: Share) -> bool {
        self.sleep.awake(clock::micros()) > BEHIND && self.usage.borrow().is_over(share.slot)
    }

    /// What a tenant used lately, in hundredths of its share.
    pub fn percent(&self, slot: Slot) -> u64 {
        self.usage.borrow().percent(slot)
    }

    /// How often anybody waited since this was last asked.
    pub fn waits(&self) -> u64 {
        self.waited.take()
    }

    /// Adds to what a tenant used.
    pub fn charge(&self, share: Share, micros: u64) {
        self.usage.borrow_mut().charge(share.slot, share.weight, micros);
    }

    /// Runs a connection to its end; it waits for turns as its tenant must.
    pub async fn drive<F: Future + Unpin>(&self, connection: &Connection, mut future: F) -> F::Output {
        let mut seat = None;
        std::future::poll_fn(|cx| {
            self.poll(connection, &mut seat, cx, |cx| std::pin::Pin::new(&mut future).poll(cx))
        })
        .await
    }

    /// Runs one step of a connection, or of a stream of one, unless it has to wait.
    pub fn poll<T>(
        &self,
        connection: &Connection,
        seat: &mut Option<Rc<Seat>>,
        cx: &mut Context<'_>,
        step: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let (share, began) = (connection.share.get(), clock::micros());
        let mut waited = None;
        if let Some(seat) = seat {
            match seat.state.get() {
                State::Waiting => {
                    seat.remember(cx);
                    return Poll::Pending;
                }
                State::Called => {
                    seat.state.set(State::Free);
                    waited = Some(began.saturating_sub(seat.since.get()));
                }
                State::Free => {}
            }
        }
        if waited.is_none() && self.must_wait(share, began) {
            let seat = seat.get_or_insert_default();
            self.wait(share, seat, connection.in_flight() > 0, began);
            seat.remember(cx);
            return Poll::Pending;
        }
        connection.waited.set(waited.unwrap_or(0));
        self.moment.set(began);
        let polled = step(cx);
        let spent = clock::micros().saturating_sub(began).min(STEP_MAX);
        // It may have found out only now whose it is.
        self.charge(connection.share.get(), spent);
        if waited.is_some() {
            self.lanes.borrow_mut().charge(share.slot, spent);
        }
        polled
    }

    fn must_wait(&self, share: Share, now: u64) -> bool {
        self.enforced.get() && self.sleep.awake(now) > BEHIND && self.usage.borrow().is_over(share.slot)
    }

    fn wait(&self, share: Share, seat: &Rc<Seat>, begun: bool, now: u64) {
        seat.state.set(State::Waiting);
        seat.since.set(now);
        self.waited.set(self.waited.get() + 1);
        let mut lanes = self.lanes.borrow_mut();
        if lanes.is_empty() {
            self.bell.notify_one();
        }
        lanes.push(share.slot, share.weight, seat.clone(), begun);
    }

    /// Calls those that wait, for ever.
    pub async fn run(self: Rc<Self>) {
        loop {
            let next = self.lanes.borrow_mut().turn();
            match next {
                None => self.bell.notified().await,
                // Whoever drove it is gone.
                Some((_, seat)) if Rc::strong_count(&seat) == 1 => {}
                Some((_, seat)) => {
                    seat.call();
                    // To the end of the line: whatever is ready runs before the next one, and the kernel is asked for more.
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    /// Ends a window of time; gives what each tenant used in it, and that in hundredths of its share. `enforced`: what
    /// the configuration says now.
    pub fn tick(&self, enforced: bool, used: impl FnMut(Slot, u64, u64)) {
        self.enforced.set(enforced);
        self.usage.borrow_mut().roll(clock::micros(), used);
    }
}

impl Seat {
    fn call(&self) {
        self.state.set(State::Called);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    fn remember(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if waker.as_ref().is_none_or(|known| !known.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
    }
}
