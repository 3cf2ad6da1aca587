//! Handshakes in flight on one worker: how many there may be, and when each may use the processor.
//!
//! A handshake waits either for its client (its hello, its answer to our certificate) or for its turn to compute. Both
//! are bounded by `[server.limits] handshakes`:
//!
//! * **Waiting for the client**: the oldest gives way, once it has had time for a round trip. A client that means it is
//!   through within one; whoever has waited longest is most likely one that never will, and refusing the newest would let
//!   a few thousand silent connections keep everybody out. Were there no such time, a flood of quick clients would push
//!   each other out before any was through, and none ever would be: within it, the newest is refused.
//! * **Waiting for a turn**: the newest is refused, at accept and before a byte is read. Those inside have been promised
//!   a turn, and the queue is short enough that they get it in time.
//!
//! Signing takes a few hundred microseconds in which nothing else happens on the worker. So turns are given a few at a
//! time, and between them whatever else is ready runs once. How many depends on how long that took: handshakes get as
//! much of the processor as everything else together when both want all of it, and what is left over otherwise.
//!
//! Whose handshakes get the turns: tenants take them in turn, by weight ([`Lanes`]); one that uses more than its share of the
//! processor gets one at a time. When many wait, a tenant may have its share of the queue and no more.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use tokio::sync::Notify;

use crate::base::clock;
use crate::policy::share::{self, lanes::Lanes};
use crate::proxy::fair::{Fair, Share};

/// Turns given at once at most: what keeps requests waiting is at most this many signatures.
const TURNS_MAX: u64 = 32;
/// Time in which a client has nothing to fear from newer ones, in microseconds: a round trip round the world and its
/// computing, or nearly.
const PATIENCE: u64 = 100_000;
/// What a signature is taken to cost before one was measured, in microseconds.
const COST_FIRST: u64 = 300;

/// The handshakes of one worker.
#[derive(Default)]
pub struct Turnstile {
    /// Those that wait for their client, oldest first, and some that do not any more.
    clients: RefCell<VecDeque<Rc<Slot>>>,
    waiting: Cell<usize>,
    /// Those that wait for a turn, by tenant, and some that gave up.
    queue: RefCell<Lanes<Rc<Slot>>>,
    queued: Cell<usize>,
    max: Cell<usize>,
    /// Microseconds for which nobody gives way; zero in tests.
    patience: u64,
    /// Rings when the queue is empty no more.
    ring: Notify,
    /// Microseconds that handshakes took since this was last looked at, with all that belongs to them.
    spent: Cell<u64>,
    /// Microseconds of that which turns took, and how many turns that was.
    computed: Cell<u64>,
    turns: Cell<u64>,
    /// Knows what else tenants use; none in tests.
    fair: Option<Rc<Fair>>,
}

/// A handshake's place; dropping it gives it back.
pub struct Ticket {
    turnstile: Rc<Turnstile>,
    slot: Rc<Slot>,
}

struct Slot {
    state: Cell<State>,
    /// Since when it waits for its client, in microseconds.
    since: Cell<u64>,
    waker: RefCell<Option<Waker>>,
    share: Cell<Share>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Waits for the client.
    Client,
    /// Waits for a turn.
    Queued,
    /// Has its turn.
    Turn,
    /// Had to give way.
    Evicted,
    /// Is over.
    Done,
}

/// The handshake had to give way to a newer one.
#[derive(Debug, PartialEq, Eq)]
pub struct Evicted;

/// There are as many handshakes waiting for a turn as there may be, or for clients that came a moment ago.
#[derive(Debug, PartialEq, Eq)]
pub struct Full;

/// Why a handshake has no turn.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    /// There are as many waiting as there may be.
    Full,
    /// Many wait, and as many of this tenant as it has a share.
    Share,
}

impl Slot {
    fn wake(&self) {
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

impl Turnstile {
    /// One for a worker.
    pub fn new(fair: Rc<Fair>) -> Turnstile {
        Turnstile { patience: PATIENCE, fair: Some(fair), ..Turnstile::default() }
    }

    /// A new handshake, which waits for its client. `max` is what the configuration says now.
    ///
    /// # Errors
    /// [`Full`]: it could not have its turn in time.
    pub fn enter(self: &Rc<Turnstile>, max: usize) -> Result<Ticket, Full> {
        self.max.set(max);
        if self.queued.get() >= max || (self.waiting.get() >= max && !self.may_evict(clock::micros())) {
            return Err(Full);
        }
        let slot = Rc::new(Slot {
            state: Cell::new(State::Client),
            since: Cell::new(0),
            waker: RefCell::new(None),
            share: Cell::default(),
        });
        self.await_client(&slot);
        Ok(Ticket { turnstile: self.clone(), slot })
    }

    /// Handshakes that wait for their client, and that wait for a turn.
    pub fn in_flight(&self) -> (usize, usize) {
        (self.waiting.get(), self.queued.get())
    }

    /// Whether the oldest that waits for its client has had its time.
    fn may_evict(&self, now: u64) -> bool {
        let mut clients = self.clients.borrow_mut();
        while clients.pop_front_if(|slot| slot.state.get() != State::Client).is_some() {}
        clients.front().is_none_or(|slot| now.saturating_sub(slot.since.get()) >= self.patience)
    }

    /// One that comes from its turn is never refused: what waits is then more than it may be, by those inside.
    fn await_client(&self, slot: &Rc<Slot>) {
        let now = clock::micros();
        let evicts = self.waiting.get() >= self.max.get() && self.may_evict(now);
        let mut clients = self.clients.borrow_mut();
        // Swept when those that are over could outnumber the others: amortised, and bounded by twice the waiting.
        if clients.len() >= 2 * self.max.get().max(self.waiting.get()) {
            clients.retain(|slot| slot.state.get() == State::Client);
        }
        while evicts && self.waiting.get() >= self.max.get() {
            let Some(oldest) = clients.pop_front() else { break };
            if oldest.state.get() == State::Client {
                oldest.state.set(State::Evicted);
                self.waiting.set(self.waiting.get().saturating_sub(1));
                oldest.wake();
            }
        }
        slot.state.set(State::Client);
        slot.since.set(now);
        self.waiting.set(self.waiting.get() + 1);
        clients.push_back(slot.clone());
    }

    /// Gives turns for ever.
    pub async fn run(self: Rc<Turnstile>) {
        let (mut cost, mut allowed) = (COST_FIRST, 1);
        loop {
            if self.queued.get() == 0 {
                self.ring.notified().await;
                continue;
            }
            let began = clock::micros();
            self.give(allowed);
            // To the end of the line: whatever is ready runs before the next turns, and the kernel is asked for more.
            tokio::task::yield_now().await;
            let lap = clock::micros().saturating_sub(began);
            let spent = self.spent.take();
            if let Some(measured) = self.computed.take().checked_div(self.turns.take()) {
                cost = ((cost * 7 + measured) / 8).max(1);
            }
            allowed = (lap.saturating_sub(spent) / cost).clamp(1, TURNS_MAX);
        }
    }

    /// Whether as many wait of a tenant as is its part of `max`, with `kept` among the weights for whoever comes next.
    fn has_its_part(&self, share: Share, max: usize, kept: u32) -> bool {
        let queue = self.queue.borrow();
        queue.waiting(share.slot) >= queue.part(share.slot, share.weight, max, kept)
    }

    fn is_over(&self, tenant: share::Slot) -> bool {
        self.fair.as_ref().is_some_and(|fair| fair.is_over(Share { slot: tenant, weight: 1 }))
    }

    fn give(&self, turns: u64) {
        let mut queue = self.queue.borrow_mut();
        let mut left = turns;
        while left > 0
            && let Some((lane, slot)) = queue.turn()
        {
            if slot.state.get() == State::Queued {
                slot.state.set(State::Turn);
                self.queued.set(self.queued.get().saturating_sub(1));
                slot.wake();
                // One that has more than its share takes nobody's time but what is left over.
                left = if self.is_over(lane) { 0 } else { left - 1 };
            }
        }
    }

    fn enqueue(&self, slot: &Rc<Slot>) {
        slot.state.set(State::Queued);
        self.waiting.set(self.waiting.get().saturating_sub(1));
        self.queued.set(self.queued.get() + 1);
        let mut queue = self.queue.borrow_mut();
        if queue.len() >= 2 * self.max.get().max(self.queued.get()) {
            queue.retain(|slot| slot.state.get() == State::Queued);
        }
        let share = slot.share.get();
        queue.push(share.slot, share.weight, slot.clone(), false);
        self.ring.notify_one();
    }
}

impl Ticket {
    /// Drives a handshake until it ends, or has to give way.
    ///
    /// # Errors
    /// [`Evicted`].
    pub async fn drive<T>(&self, handshake: impl Future<Output = T>) -> Result<T, Evicted> {
        let mut handshake = std::pin::pin!(handshake);
        poll_fn(|cx| {
            if self.slot.state.get() == State::Evicted {
                return Poll::Ready(Err(Evicted));
            }
            self.slot.remember(cx);
            let began = clock::micros();
            let polled = handshake.as_mut().poll(cx).map(Ok);
            let spent = clock::micros().saturating_sub(began);
            self.turnstile.spent.set(self.turnstile.spent.get().saturating_add(spent));
            if let Some(fair) = &self.turnstile.fair {
                fair.charge(self.slot.share.get(), spent);
            }
            polled
        })
        .await
    }

    /// Waits for a turn. To be called by what [`Ticket::drive`] drives: it wakes the handshake as a whole.
    ///
    /// `share`: whose it is. Of more than `lent` percent of what may wait, its tenant may have its share, beside a tenant of
    /// the weight `kept` of which nobody waits yet: a queue that is full is full for everybody, at accept.
    ///
    /// # Errors
    /// Why it has none.
    pub async fn turn(&self, share: Share, lent: u32, kept: u32) -> Result<(), Refused> {
        let turnstile = &self.turnstile;
        let (queued, max) = (turnstile.queued.get(), turnstile.max.get());
        if queued >= max {
            return Err(Refused::Full);
        }
        if queued.saturating_mul(100) >= max.saturating_mul(lent as usize)
            && turnstile.has_its_part(share, max, kept)
        {
            return Err(Refused::Share);
        }
        self.slot.share.set(share);
        turnstile.enqueue(&self.slot);
        poll_fn(|_| if self.slot.state.get() == State::Turn { Poll::Ready(()) } else { Poll::Pending }).await;
        Ok(())
    }

    /// Runs what needs the processor in a turn, and then waits for the client. What the turn took is measured.
    pub async fn compute<T>(&self, work: impl Future<Output = T>) -> T {
        let turnstile = &self.turnstile;
        let mut work = std::pin::pin!(work);
        poll_fn(|cx| {
            let began = clock::micros();
            let polled = work.as_mut().poll(cx);
            if self.slot.state.get() == State::Turn {
                let spent = clock::micros().saturating_sub(began);
                turnstile.computed.set(turnstile.computed.get().saturating_add(spent));
                turnstile.queue.borrow_mut().charge(self.slot.share.get().slot, spent);
                turnstile.turns.set(turnstile.turns.get() + 1);
                turnstile.await_client(&self.slot);
            }
            polled
        })
        .await
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let count = match self.slot.state.replace(State::Done) {
            State::Client => &self.turnstile.waiting,
            State::Queued => &self.turnstile.queued,
            State::Turn | State::Evicted | State::Done => return,
        };
        count.set(count.get().saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use tokio::task::LocalSet;

    use super::*;

    fn local<T>(test: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        LocalSet::new().block_on(&runtime, test)
    }

    #[test]
    fn the_oldest_that_waits_for_its_client_gives_way() {
        local(async {
            let turnstile = Rc::new(Turnstile::default());
            let first = turnstile.enter(2).unwrap();
            let second = turnstile.enter(2).unwrap();
            let third = turnstile.enter(2).unwrap();
            assert_eq!(turnstile.in_flight(), (2, 0));
            assert_eq!(first.drive(pending::<()>()).await, Err(Evicted));
            assert_eq!(second.drive(ready(7)).await, Ok(7));
            drop((first, second));
            assert_eq!(turnstile.in_flight(), (1, 0));
            drop(third);
            assert_eq!(turnstile.in_flight(), (0, 0));
        });
    }

    #[test]
    fn a_flood_of_quick_clients_does_not_push_each_other_out() {
        local(async {
            let turnstile = Rc::new(Turnstile { patience: PATIENCE, ..Turnstile::default() });
            let first = turnstile.enter(2).unwrap();
            let _second = turnstile.enter(2).unwrap();
            assert_eq!(turnstile.enter(2).err(), Some(Full), "both have just come");
            assert_eq!(first.drive(ready(7)).await, Ok(7));
            drop(first);
            assert!(turnstile.enter(2).is_ok());
        });
    }

    #[test]
    fn one_that_is_evicted_hears_of_it_while_it_waits() {
        local(async {
            let turnstile = Rc::new(Turnstile::default());
            let first = turnstile.enter(1).unwrap();
            let waiting = tokio::task::spawn_local(async move { first.drive(pending::<()>()).await });
            tokio::task::yield_now().await;
            let _second = turnstile.enter(1).unwrap();
            assert_eq!(waiting.await.unwrap(), Err(Evicted));
        });
    }

    #[test]
    fn beyond_the_queue_the_newest_is_refused_and_nobody_inside_is_evicted() {
        local(async {
            let turnstile = Rc::new(Turnstile::default());
            let mut tasks = Vec::new();
            for _ in 0..3 {
                let ticket = turnstile.enter(3).unwrap();
                tasks.push(tokio::task::spawn_local(async move {
                    ticket.drive(ticket.turn(Share::default(), 100, 0)).await
                }));
                tokio::task::yield_now().await;
            }
            assert_eq!(turnstile.in_flight(), (0, 3));
            assert_eq!(turnstile.enter(3).err(), Some(Full));
            tokio::task::spawn_local(turnstile.clone().run());
            for task in tasks {
                assert_eq!(task.await.unwrap(), Ok(Ok(())));
            }
            assert_eq!(turnstile.in_flight(), (0, 0));
            assert!(turnstile.enter(3).is_ok());
        });
    }

    #[test]
    fn one_that_goes_away_in_the_queue_leaves_its_turn_to_the_next() {
        local(async {
            let turnstile = Rc::new(Turnstile::default());
            let gone = turnstile.enter(8).unwrap();
            let task =
                tokio::task::spawn_local(
                    async move { gone.drive(gone.turn(Share::default(), 100, 0)).await },
                );
            tokio::task::yield_now().await;
            task.abort();
            let _ = task.await;
            assert_eq!(turnstile.in_flight(), (0, 0));
            tokio::task::spawn_local(turnstile.clone().run());
            let next = turnstile.enter(8).unwrap();
            assert_eq!(next.drive(next.turn(Share::default(), 100, 0)).await, Ok(Ok(())));
        });
    }

    #[test]
    fn one_tenant_alone_leaves_room_in_the_queue_for_the_first_of_another() {
        local(async {
            let turnstile = Rc::new(Turnstile::default());
            let wait = |slot| {
                let (ticket, share) =
                    (turnstile.enter(8).unwrap(), Share { slot: share::Slot(slot), weight: 1 });
                tokio::task::spawn_local(async move { ticket.drive(ticket.turn(share, 50, 1)).await })
            };
            let crowd: Vec<_> = (0..4).map(|_| wait(1)).collect();
            tokio::task::yield_now().await;
            for _ in 0..9 {
                assert_eq!(wait(1).await.unwrap(), Ok(Err(Refused::Share)), "it has its half");
            }
            let other = wait(2);
            tokio::task::yield_now().await;
            assert_eq!(turnstile.in_flight(), (0, 5));
            tokio::task::spawn_local(turnstile.clone().run());
            for task in crowd.into_iter().chain([other]) {
                assert_eq!(task.await.unwrap(), Ok(Ok(())));
            }
        });
    }

    #[test]
    fn between_turns_whatever_is_ready_runs() {
        local(async {
            let turnstile = Rc::new(Turnstile::default());
            let log = Rc::new(RefCell::new(String::new()));
            let mut tasks = Vec::new();
            for _ in 0..4 {
                let (ticket, log) = (turnstile.enter(8).unwrap(), log.clone());
                tasks.push(tokio::task::spawn_local(async move {
                    let _ = ticket.drive(ticket.turn(Share::default(), 100, 0)).await;
                    ticket.compute(async { log.borrow_mut().push('h') }).await;
                }));
            }
            let other = log.clone();
            let busy = tokio::task::spawn_local(async move {
                loop {
                    other.borrow_mut().push('.');
                    tokio::task::yield_now().await;
                }
            });
            tokio::task::spawn_local(turnstile.clone().run());
            for task in tasks {
                task.await.unwrap();
            }
            busy.abort();
            // With nothing else that takes time, turns are given one by one.
            assert!(!log.borrow().contains("hh"), "{}", log.borrow());
            assert_eq!(turnstile.in_flight(), (0, 0));
        });
    }

    #[test]
    fn a_handshake_that_had_its_turn_waits_for_its_client_again() {
        local(async {
            let turnstile = Rc::new(Turnstile::default());
            tokio::task::spawn_local(turnstile.clone().run());
            let ticket = turnstile.enter(1).unwrap();
            let task = tokio::task::spawn_local(async move {
                let handshake = async {
                    ticket.turn(Share::default(), 100, 0).await.unwrap();
                    ticket.compute(pending::<()>()).await;
                };
                ticket.drive(handshake).await
            });
            // Entered a second time in the list: once for its hello, once for what comes after the turn.
            while turnstile.clients.borrow().len() < 2 {
                tokio::task::yield_now().await;
            }
            let _newer = turnstile.enter(1).unwrap();
            assert_eq!(task.await.unwrap(), Err(Evicted));
        });
    }
}
