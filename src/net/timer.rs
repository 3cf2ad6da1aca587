//! A coarse timer wheel for one worker: thousands of deadlines for the price of a store each.
//!
//! A connection moves its deadline several times a request (head, first byte, idle, write stall). A precise timer
//! would pay a queue operation for each move. Here a move is one `Cell` store: the wheel looks at an entry only when
//! its slot comes round, and if the deadline has moved on meanwhile puts it into a later slot. Deadlines are met
//! to within [`TICK`] and never early by more than one tick.
//!
//! Not `Send`: a wheel lives and dies with its worker. Entries of dropped timers are swept when their slot comes
//! round, at most [`SLOTS`] ticks later, which bounds what a flood of short connections can leave behind.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::base::clock::{self, Millis};

/// Granularity of every deadline.
pub const TICK: Duration = Duration::from_millis(100);
const TICK_MS: u64 = 100;
/// Slots of the wheel; deadlines further away than `SLOTS` ticks are looked at once a turn.
pub const SLOTS: usize = 64;

/// The wheel; clones share it.
#[derive(Clone)]
pub struct Wheel(Rc<Inner>);

struct Inner {
    now: Cell<Millis>,
    /// Number of the tick last processed.
    tick: Cell<u64>,
    slots: RefCell<Vec<Vec<Weak<Entry>>>>,
}

struct Entry {
    deadline: Cell<Option<Millis>>,
    /// The tick at which the wheel will look at this entry; stale places in other slots are recognised by it.
    queued: Cell<Option<u64>>,
    waker: RefCell<Option<Waker>>,
}

impl Default for Wheel {
    fn default() -> Self {
        Wheel::new(clock::now())
    }
}

impl Wheel {
    /// A wheel that stands at `now`.
    pub fn new(now: Millis) -> Wheel {
        Wheel(Rc::new(Inner {
            now: Cell::new(now),
            tick: Cell::new(now.0 / TICK_MS),
            slots: RefCell::new((0..SLOTS).map(|_| Vec::new()).collect()),
        }))
    }

    /// The time of the last tick: at most one [`TICK`] old, and free to read.
    pub fn now(&self) -> Millis {
        self.0.now.get()
    }

    /// A timer without a deadline.
    pub fn timer(&self) -> Timer {
        let entry = Entry { deadline: Cell::new(None), queued: Cell::new(None), waker: RefCell::new(None) };
        Timer { wheel: self.clone(), entry: Rc::new(entry) }
    }

    /// Moves the wheel to `now` and wakes whoever's deadline has passed. Called by the worker every [`TICK`].
    pub fn advance(&self, now: Millis) {
        self.0.now.set(now);
        let target = now.0 / TICK_MS;
        // After a long stall every slot is visited once, not once for each missed turn.
        let first = (self.0.tick.get() + 1).max(target.saturating_sub(SLOTS as u64 - 1));
        for tick in first..=target {
            self.0.tick.set(tick);
            self.sweep(tick);
        }
        self.0.tick.set(target);
    }

    fn sweep(&self, tick: u64) {
        let due = self.with_slot(tick, std::mem::take);
        for weak in due.into_iter().flatten() {
            let Some(entry) = weak.upgrade() else { continue };
            // A place left behind by an earlier, since replaced deadline.
            if entry.queued.get().is_none_or(|queued| queued > tick) {
                continue;
            }
            entry.queued.set(None);
            match entry.deadline.get() {
                Some(deadline) if deadline <= self.now() => {
                    if let Some(waker) = entry.waker.borrow_mut().take() {
                        waker.wake();
                    }
                }
                Some(deadline) => self.queue(&entry, deadline),
                None => {}
            }
        }
    }

    fn queue(&self, entry: &Rc<Entry>, deadline: Millis) {
        let current = self.0.tick.get();
        // Rounded up, so that the slot is not swept before the deadline has passed.
        let wanted = deadline.0.div_ceil(TICK_MS).clamp(current + 1, current + SLOTS as u64 - 1);
        if entry.queued.get().is_some_and(|queued| queued > current && queued <= wanted) {
            return;
        }
        entry.queued.set(Some(wanted));
        self.with_slot(wanted, |slot| slot.push(Rc::downgrade(entry)));
    }

    fn with_slot<R>(&self, tick: u64, f: impl FnOnce(&mut Vec<Weak<Entry>>) -> R) -> Option<R> {
        let index = usize::try_from(tick % SLOTS as u64).unwrap_or(0);
        self.0.slots.borrow_mut().get_mut(index).map(f)
    }
}

/// One deadline that can be moved cheaply; wakes the task that last polled it. Clones share it.
#[derive(Clone)]
pub struct Timer {
    wheel: Wheel,
    entry: Rc<Entry>,
}

impl Timer {
    /// Another one of its wheel, without a deadline.
    pub fn another(&self) -> Timer {
        self.wheel.timer()
    }

    /// The time of its wheel.
    pub fn now(&self) -> Millis {
        self.wheel.now()
    }

    /// Sets the deadline to `after` from now, replacing any other.
    pub fn set(&self, after: Duration) {
        self.set_at(self.wheel.now().after(after));
    }

    /// Sets the deadline, replacing any other.
    pub fn set_at(&self, deadline: Millis) {
        self.entry.deadline.set(Some(deadline));
        self.wheel.queue(&self.entry, deadline);
    }

    /// Removes the deadline.
    pub fn clear(&self) {
        self.entry.deadline.set(None);
    }

    /// Whether the deadline has passed.
    pub fn expired(&self) -> bool {
        self.entry.deadline.get().is_some_and(|deadline| deadline <= self.wheel.now())
    }

    /// Ready when the deadline has passed; otherwise the task is woken when it does, or by [`Timer::wake`].
    pub fn poll_expired(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.expired() {
            return Poll::Ready(());
        }
        let mut waker = self.entry.waker.borrow_mut();
        match waker.as_ref() {
            Some(known) if known.will_wake(cx.waker()) => {}
            _ => *waker = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// Wakes the task that last polled this timer, whatever the deadline.
    pub fn wake(&self) {
        if let Some(waker) = self.entry.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    #[derive(Default)]
    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    struct Bench {
        wheel: Wheel,
        count: Arc<Count>,
        at: u64,
    }

    impl Bench {
        fn new() -> Bench {
            Bench { wheel: Wheel::new(Millis(0)), count: Arc::default(), at: 0 }
        }
        fn poll(&self, timer: &Timer) -> bool {
            let waker = Waker::from(self.count.clone());
            timer.poll_expired(&mut Context::from_waker(&waker)).is_ready()
        }
        fn run_to(&mut self, ms: u64) {
            while self.at < ms {
                self.at += TICK_MS;
                self.wheel.advance(Millis(self.at));
            }
        }
        fn woken(&self) -> usize {
            self.count.0.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn a_deadline_fires_once_and_not_early() {
        let mut bench = Bench::new();
        let timer = bench.wheel.timer();
        timer.set(Duration::from_millis(950));
        assert!(!bench.poll(&timer));
        bench.run_to(900);
        assert_eq!(bench.woken(), 0);
        bench.run_to(1_000);
        assert_eq!(bench.woken(), 1);
        assert!(bench.poll(&timer));
    }

    #[test]
    fn moving_a_deadline_later_earlier_and_away_is_honoured() {
        let mut bench = Bench::new();
        let timer = bench.wheel.timer();
        timer.set(Duration::from_secs(1));
        assert!(!bench.poll(&timer));
        timer.set(Duration::from_secs(3));
        bench.run_to(2_900);
        assert_eq!(bench.woken(), 0);
        timer.set(Duration::from_millis(300));
        bench.run_to(3_200);
        assert_eq!(bench.woken(), 1);
        assert!(!bench.poll(&bench.wheel.timer()));
        timer.clear();
        assert!(!bench.poll(&timer));
        bench.run_to(20_000);
        assert_eq!(bench.woken(), 1);
    }

    #[test]
    fn deadlines_beyond_one_turn_and_long_stalls_are_kept() {
        let mut bench = Bench::new();
        let far = bench.wheel.timer();
        far.set(Duration::from_secs(60));
        assert!(!bench.poll(&far));
        bench.run_to(59_900);
        assert_eq!(bench.woken(), 0);
        bench.run_to(60_000);
        assert_eq!(bench.woken(), 1);
        // The worker stood still for an hour: what is due fires at the first tick after.
        let timers: Vec<_> = (0..200)
            .map(|i| {
                let timer = bench.wheel.timer();
                timer.set(Duration::from_millis(i * 37));
                assert!(i == 0 || !bench.poll(&timer));
                timer
            })
            .collect();
        bench.at += 3_600_000;
        bench.wheel.advance(Millis(bench.at));
        assert!(timers.iter().all(Timer::expired));
        assert_eq!(bench.woken(), 1 + 199);
    }

    #[test]
    fn dropped_timers_leave_nothing_behind_after_one_turn() {
        let mut bench = Bench::new();
        for _ in 0..1_000 {
            bench.wheel.timer().set(Duration::from_secs(75));
        }
        bench.run_to(SLOTS as u64 * TICK_MS * 2);
        assert!(bench.wheel.0.slots.borrow().iter().all(Vec::is_empty));
    }
}
