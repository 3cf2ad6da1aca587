//! How much a service may have in flight, and who waits for a place. Pure but for the wakers it rings.
//!
//! A [`Gate`] belongs to a service, is shared by all workers and outlives reloads. While there is room, a request costs
//! two atomic operations here and no lock. What finds no room lines up in one queue for the whole service; who ends a
//! request rings the next in line, on whatever worker it waits. Nobody overtakes: while anybody waits, whoever comes
//! lines up too. Who is rung keeps its place in line until it has its slot, so a ring that is lost costs a moment, not a
//! request: workers ring again every tick.
//!
//! The order is first come, first served, as long as the queue is empty now and then. A queue that has stood for longer
//! than a request may wait would serve everybody at the very end of their patience, those included who have given up
//! without saying so. Then the newest is served first, and when the queue is full the oldest gives way: those who are
//! served are served at once, those who are not would not have been in time.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::Service;
use super::adaptive::Limit;
use super::balance::{Ask, Weighted};
use super::endpoint::{Endpoint, InFlight};
use crate::base::clock::Millis;
use crate::config::model::Capacity;

/// Endpoints that the balancer may name with room that another worker is quicker to take, before it is called full.
const LOOKS_MAX: usize = 3;
/// Time between two lines of the log about one queue, in milliseconds.
const TELL_EVERY_MS: u64 = 10_000;
/// Time over which the rate of a service is measured, in milliseconds.
const RATE_MS: u64 = 2_000;
/// The longest `Retry-After`, in seconds.
pub const RETRY_AFTER_MAX_S: u64 = 60;

/// Who is in flight at a service, and who waits.
#[derive(Debug, Default)]
pub struct Gate {
    in_flight: AtomicU32,
    /// As many as the queue has; read without its lock.
    waiting: AtomicU32,
    /// Requests that had a place and ended.
    ended: AtomicU64,
    queue: Mutex<Queue>,
    /// Until then nobody gets a slot, in milliseconds of process time; zero: nobody holds it.
    held_until: AtomicU64,
    /// The limit that follows the latency.
    pub adaptive: Limit,
}

#[derive(Debug, Default)]
struct Queue {
    /// By number, so the first came first.
    waiters: BTreeMap<u64, Waiter>,
    next: u64,
    /// Since when somebody has always waited.
    standing_since: Millis,
    newest_first: bool,
    queue_time: Duration,
    /// Two moments and what had ended by then, for the rate.
    marks: [(Millis, u64); 2],
    /// When it was last told that requests wait; whether it is to be told when none does.
    told_at: Option<Millis>,
    telling: bool,
}

#[derive(Debug, Default)]
struct Waiter {
    waker: Option<Waker>,
    rung: Option<Ring>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ring {
    /// One place was freed.
    Freed,
    /// There may be places, nobody knows how many: who gets one rings the next.
    Look,
}

/// A place in line; dropping it leaves the line.
#[derive(Debug)]
pub struct Ticket {
    gate: Arc<Gate>,
    number: u64,
    /// The ring that it tries by.
    heard: Cell<Option<Ring>>,
}

/// What one that waits hears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// There may be a slot: try.
    Try,
    /// It had to give way to a newer one.
    GaveWay,
}

/// A place at a service.
#[derive(Debug)]
struct Place {
    gate: Arc<Gate>,
    /// It was held for a look only: nothing became free that was not free before.
    looked: bool,
}

/// A request in flight at an endpoint, counted there and at its service; dropping it ends it and rings the next.
#[derive(Debug)]
#[must_use = "the request is counted only while this lives"]
pub struct Slot {
    // In this order: who is rung must find the endpoint's place free.
    in_flight: InFlight,
    _place: Option<Place>,
}

/// What a look for a slot found.
#[derive(Debug)]
pub enum Taken {
    /// A slot at the endpoint of this index.
    Slot(usize, Slot),
    /// Endpoints live, and all have as much as they may.
    Full,
    /// There is no endpoint.
    None,
}

impl Slot {
    /// The endpoint the request is at.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        self.in_flight.endpoint()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.gate.in_flight.fetch_sub(1, Ordering::Relaxed);
        if self.looked {
            return;
        }
        self.gate.ended.fetch_add(1, Ordering::Relaxed);
        // Either we see who lined up, or it sees what was freed: its fence stands between lining up and its last look.
        fence(Ordering::SeqCst);
        if self.gate.waiting() > 0 {
            self.gate.ring(Ring::Freed);
        }
    }
}

impl Service {
    /// Takes a slot. `in_line`: it is this request's turn, or nearly; others do not overtake those who wait.
    pub fn take(&self, ask: &Ask<'_>, in_line: bool) -> Taken {
        if self.ledger.gate.is_held(ask.now) {
            return Taken::Full;
        }
        let Some(rule) = &self.capacity else {
            let chosen = self.choose(ask);
            return chosen.map_or(Taken::None, |(at, endpoint)| {
                Taken::Slot(at, Slot { in_flight: endpoint.begin(), _place: None })
            });
        };
        let gate = &self.ledger.gate;
        if !in_line && gate.waiting() > 0 {
            return Taken::Full;
        }
        let Some(mut place) = gate.enter(self.limit()) else { return Taken::Full };
        let found = self.room(rule, ask);
        match found {
            Ok((at, in_flight)) => Taken::Slot(at, Slot { in_flight, _place: Some(place) }),
            Err(any) => {
                place.looked = true;
                if any { Taken::Full } else { Taken::None }
            }
        }
    }

    /// What may be in flight at the whole service.
    pub fn limit(&self) -> u32 {
        let Some(rule) = &self.capacity else { return u32::MAX };
        let adaptive = rule.adaptive.map_or(u32::MAX, |bounds| self.ledger.gate.adaptive.now(bounds));
        rule.service.unwrap_or(u32::MAX).min(adaptive)
    }

    /// The endpoint that the balancer chooses among those with room. `Err`: none; whether any lives.
    fn room(&self, rule: &Capacity, ask: &Ask<'_>) -> Result<(usize, InFlight), bool> {
        let cap = rule.per_endpoint.unwrap_or(u32::MAX);
        for _ in 0..LOOKS_MAX {
            let Some(at) = self.balancer.choose_below(&self.endpoints, ask, cap) else { break };
            let begun = self.endpoints.get(at).and_then(|one| one.endpoint.begin_below(cap));
            if let Some(in_flight) = begun {
                return Ok((at, in_flight));
            }
        }
        let is_full = |at: usize, one: &Weighted| !ask.tried.contains(at) && one.endpoint.in_flight() >= cap;
        let mut all = self.endpoints.iter().enumerate();
        Err(all.any(|(at, one)| one.endpoint.is_up(ask.now) || is_full(at, one)))
    }
}

impl Gate {
    /// Requests in flight at the service.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Requests that wait.
    pub fn waiting(&self) -> u32 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Nobody gets a slot until this time, or until [`Gate::release`]: who comes waits in the queue.
    pub fn hold(&self, until: Millis) {
        self.held_until.store(until.0, Ordering::Relaxed);
    }

    /// Ends [`Gate::hold`]; those who wait go on, one after the other.
    pub fn release(&self) {
        self.held_until.store(0, Ordering::Relaxed);
        self.ring(Ring::Look);
    }

    /// Whether it is held now.
    pub fn is_held(&self, now: Millis) -> bool {
        now.0 < self.held_until.load(Ordering::Relaxed)
    }

    fn enter(self: &Arc<Gate>, limit: u32) -> Option<Place> {
        let below = |count: u32| (count < limit).then(|| count + 1);
        self.in_flight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, below).ok()?;
        Some(Place { gate: Arc::clone(self), looked: false })
    }

    /// Lines up. Whoever does is to look for a slot once more, if it [is next](Ticket::is_next), and then to wait. The
    /// flag: it is time to tell that requests wait.
    ///
    /// # Errors
    /// [`None`]: the queue is full.
    pub fn line_up(self: &Arc<Gate>, rule: &Capacity, now: Millis) -> Option<(Ticket, bool)> {
        let mut queue = self.lock();
        let mut gave_way = None;
        if queue.waiters.is_empty() {
            queue.standing_since = now;
            queue.newest_first = false;
            queue.marks = [(now, self.ended.load(Ordering::Relaxed)); 2];
        } else {
            queue.look_at_order(now);
            self.measure(&mut queue, now);
        }
        queue.queue_time = rule.queue_time;
        if queue.waiters.len() >= usize::try_from(rule.queue).unwrap_or(usize::MAX) {
            if !queue.newest_first || rule.queue == 0 {
                return None;
            }
            gave_way = queue.waiters.pop_first().and_then(|(_, waiter)| waiter.waker);
        }
        let number = queue.next;
        queue.next += 1;
        queue.waiters.insert(number, Waiter::default());
        let due = queue.told_at.is_none_or(|told| now.0.saturating_sub(told.0) >= TELL_EVERY_MS);
        let tell = due && !queue.telling;
        if tell {
            (queue.told_at, queue.telling) = (Some(now), true);
        }
        self.count(&queue);
        drop(queue);
        fence(Ordering::SeqCst);
        if let Some(waker) = gave_way {
            waker.wake();
        }
        Some((Ticket { gate: Arc::clone(self), number, heard: Cell::new(None) }, tell))
    }

    /// Rings the next in line: there may be slots that nobody freed, because an endpoint came back or a limit grew.
    /// Called every tick of a worker on which somebody waits. `true`: it is time to tell that nobody waits any more.
    pub fn look(&self, now: Millis) -> bool {
        let mut queue = self.lock();
        if queue.waiters.is_empty() {
            return std::mem::take(&mut queue.telling);
        }
        queue.look_at_order(now);
        drop(queue);
        self.ring(Ring::Look);
        false
    }

    /// Seconds after which one that is refused now may find a place: what waits, at the rate at which requests end.
    pub fn retry_after(&self, now: Millis) -> u64 {
        let mut queue = self.lock();
        self.measure(&mut queue, now);
        let [(since, ended_then), _] = queue.marks;
        let elapsed_ms = now.0.saturating_sub(since.0);
        let ended = self.ended.load(Ordering::Relaxed).saturating_sub(ended_then);
        let ahead = queue.waiters.len() as u64 + 1;
        let seconds = match (ended, elapsed_ms) {
            // Nothing is known yet.
            (_, 0..500) => 1,
            (0, _) => RETRY_AFTER_MAX_S,
            (ended, _) => (ahead * elapsed_ms).div_ceil(ended * 1000),
        };
        seconds.clamp(1, RETRY_AFTER_MAX_S)
    }

    fn measure(&self, queue: &mut Queue, now: Millis) {
        let [_, (newer, ended)] = queue.marks;
        if now.0.saturating_sub(newer.0) >= RATE_MS {
            queue.marks = [(newer, ended), (now, self.ended.load(Ordering::Relaxed))];
        }
    }

    /// Rings the first in line that was not rung yet.
    fn ring(&self, ring: Ring) {
        let mut queue = self.lock();
        let newest_first = queue.newest_first;
        let silent = |(_, waiter): &(&u64, &mut Waiter)| waiter.rung.is_none();
        let mut line = queue.waiters.iter_mut();
        let next = if newest_first { line.rev().find(silent) } else { line.find(silent) };
        let waker = next.and_then(|(_, waiter)| {
            waiter.rung = Some(ring);
            waiter.waker.take()
        });
        drop(queue);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn count(&self, queue: &Queue) {
        self.waiting.store(u32::try_from(queue.waiters.len()).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // No code that can panic stands between two changes of the queue, so a poisoned one is still right.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn look_at_order(&mut self, now: Millis) {
        self.newest_first = now > self.standing_since.after(self.queue_time);
    }
}

impl Ticket {
    /// Whether it is first in line.
    pub fn is_next(&self) -> bool {
        let queue = self.gate.lock();
        let next =
            if queue.newest_first { queue.waiters.last_key_value() } else { queue.waiters.first_key_value() };
        next.is_some_and(|(number, _)| *number == self.number)
    }

    /// Ready when it may be its turn. A ring that comes while it tries is heard at the next poll.
    pub fn poll(&self, cx: &Context<'_>) -> Poll<Turn> {
        let mut queue = self.gate.lock();
        let Some(waiter) = queue.waiters.get_mut(&self.number) else { return Poll::Ready(Turn::GaveWay) };
        if let Some(ring) = waiter.rung.take() {
            self.heard.set(Some(ring));
            return Poll::Ready(Turn::Try);
        }
        self.heard.set(None);
        if waiter.waker.as_ref().is_none_or(|known| !known.will_wake(cx.waker())) {
            waiter.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// It has its slot and leaves the line.
    pub fn served(self) {
        // It came without a ring, or by one that knew of no number: there may be more.
        if self.heard.get() != Some(Ring::Freed) && self.gate.waiting() > 1 {
            self.leave();
            self.gate.ring(Ring::Look);
        }
    }

    /// Leaves the line; a ring that it did not hear is for the next.
    fn leave(&self) {
        let mut queue = self.gate.lock();
        let rung = queue.waiters.remove(&self.number).and_then(|waiter| waiter.rung);
        self.gate.count(&queue);
        drop(queue);
        if let Some(ring) = rung {
            self.gate.ring(ring);
        }
    }
}

impl Drop for Ticket {
    /// It was served, its client went away, or its time is over.
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests;
