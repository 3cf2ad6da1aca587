//! Slow work that leaves the core to the workers.
//!
//! A reload of thousands of sites takes a second or more, on cores on which workers answer in microseconds. A scheduler
//! gives whoever computes a slice of milliseconds, and a worker that wakes may wait for its end: that wait is what clients
//! would notice of a reload. So such work runs inside [`work`], and calls [`breathe`] between small steps: it computes
//! for 50 µs, sleeps for as long, and so on. It takes about twice its time.
//!
//! What nobody waits for runs on threads that [`step_back`] as well: a worker's step goes before theirs, and a step of slow work
//! that came out too long is cut short. On a core that is full they still have their share, which the lowest priority would not
//! give them. What must look in time just when the machine is full, as the overload's controller, stays beside the workers.

use std::cell::Cell;
use std::cmp::Ordering;
use std::num::NonZeroU64;
use std::time::Duration;

use crate::base::clock;

/// How long is computed in one go, in microseconds: what a reload can add to the latency of a request, more or less.
const WORK_MICROS: u64 = 50;
/// How long is slept then.
const REST: Duration = Duration::from_micros(50);
/// How much later than asked for the kernel may wake a thread, in nanoseconds; 50,000 elsewhere.
const SLACK: Option<NonZeroU64> = NonZeroU64::new(1_000);

/// How much nicer than the workers [`step_back`] makes a thread: on a core that they fill it has about a tenth. Tried with a
/// reload of 10,000 sites: p99 across it was 2.4, 2.3 and 1.6 ms at 5, 10 and 19, before 3.9; on a full core it took up to 2.6,
/// 4.1 and 5.0 s.
pub const BEHIND: i32 = 10;

/// So many quick steps between two looks at the clock: some microseconds, even where each waits for memory.
const OFTEN: usize = 32;

thread_local! {
    /// Since when this thread computes, in microseconds, while it is inside [`work`].
    static SINCE: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Runs slow work, which rests where it says [`breathe`]. Outside of this that does nothing: a start is not slowed down.
pub fn work<T>(slow: impl FnOnce() -> T) -> T {
    /// Threads are used again for other work.
    struct Gentle(Option<u64>);
    impl Drop for Gentle {
        fn drop(&mut self) {
            SINCE.set(self.0);
            if self.0.is_none() {
                let _ = rustix::thread::set_current_timer_slack(None);
            }
        }
    }
    let _gentle = Gentle(SINCE.replace(Some(clock::micros())));
    // Where that is refused, rests are longer.
    let _ = rustix::thread::set_current_timer_slack(SLACK);
    slow()
}

/// Lowers the priority of this thread, for good. Where that is refused, it works as before.
pub fn step_back() {
    // Linux has a priority for each thread, although POSIX has one for the process.
    let _ = rustix::process::nice(BEHIND);
}

/// Rests if that is due. To be called between steps of some microseconds.
pub fn breathe() {
    let Some(since) = SINCE.get() else { return };
    if clock::micros().saturating_sub(since) >= WORK_MICROS {
        std::thread::sleep(REST);
        SINCE.set(Some(clock::micros()));
    }
}

/// Whether this thread is inside [`work`].
#[cfg(test)]
pub fn rests() -> bool {
    SINCE.get().is_some()
}

/// The same items, with a breath before each.
pub fn each<I: IntoIterator>(items: I) -> impl Iterator<Item = I::Item> {
    items.into_iter().inspect(|_| breathe())
}

/// The same items, with a breath before some: for steps that take less than looking at the clock does.
pub fn often<I: IntoIterator>(items: I) -> impl Iterator<Item = I::Item> {
    items.into_iter().enumerate().map(|(count, item)| {
        if count.is_multiple_of(OFTEN) {
            breathe();
        }
        item
    })
}

/// Sorts, with a breath now and then.
pub fn sort_by<T>(items: &mut [T], mut compare: impl FnMut(&T, &T) -> Ordering) {
    let mut count = 0usize;
    items.sort_by(|a, b| {
        count = count.wrapping_add(1);
        if count.is_multiple_of(OFTEN) {
            breathe();
        }
        compare(a, b)
    });
}

/// Drops many values one by one: freeing thousands takes milliseconds.
pub fn drop_each<I: IntoIterator>(values: I) {
    each(values).for_each(drop);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computes for a while, in steps; gives how often it rested.
    fn compute() -> usize {
        let mut rests = 0;
        for _ in 0..200 {
            let began = clock::micros();
            while clock::micros() - began < 10 {}
            let before = SINCE.get();
            breathe();
            rests += usize::from(before != SINCE.get());
        }
        rests
    }

    #[test]
    fn work_rests_inside_and_nowhere_else() {
        assert_eq!(compute(), 0);
        assert!(!rests() && work(rests));
        // 2 ms are 40 times what is computed in one go; steps that end past their 10 µs make it more.
        assert!(work(compute) >= 20);
        assert!(work(|| work(compute) + compute()) >= 40, "work inside of work");
        let _ = std::panic::catch_unwind(|| work(|| panic!("the thread is used again")));
        assert_eq!(compute(), 0);
    }

    #[test]
    fn all_items_come_in_their_order() {
        let all: Vec<u32> = (0..1000).collect();
        assert_eq!(each(all.clone()).collect::<Vec<_>>(), all);
        assert_eq!(work(|| each(all.clone()).collect::<Vec<_>>()), all);
        assert_eq!(work(|| often(all.clone()).collect::<Vec<_>>()), all);
        let mut sorted: Vec<u32> = (0..1000).rev().collect();
        work(|| sort_by(&mut sorted, Ord::cmp));
        assert_eq!(sorted, all);
        let shared = std::sync::Arc::new(());
        work(|| drop_each(vec![shared.clone(); 1000]));
        assert_eq!(std::sync::Arc::strong_count(&shared), 1);
    }
}
