//! What the streams of one HTTP/2 connection may hold together for a client that does not take it.
//!
//! h2 keeps what a stream was offered until the client's window lets it go, and each stream has a window of its own: a
//! client that opens all its streams and shuts all its windows makes the worker hold a piece for each (the second half
//! of CVE-2026-49975). Here the pieces are counted over the connection; beyond the bound no further one is read from
//! a backend until one is taken or given up.
//!
//! A stream counts what it offered last until it is asked for more, and that may be too early: h2 takes a whole piece from
//! it as soon as the client's window has room for one byte. The last piece of an answer would then be kept with nobody
//! left to watch its deadline. So what was offered is also compared with the DATA that was written. Once a connection
//! [`lags`](Backlog::lags), its streams offer the last byte of each piece by itself: h2 asks for room for that byte, and
//! has it only when everything before it is gone.

use std::cell::{Cell, RefCell};
use std::task::{Poll, Waker};

/// Bytes that the streams of one connection hold together, but for one piece more: sixteen pieces of the usual size.
/// A client that takes what it is sent never comes near, because a stream holds one piece at a time.
const BACKLOG_MAX: u64 = 1024 * 1024;

/// Bytes offered and not written with which a connection does not lag yet: sixteen pieces. So much of the last pieces of
/// answers is kept without a deadline. What is offered at one moment by many streams stays below it, if it is small.
const LAG: u64 = 256 * 1024;

/// The count, and who waits for it to fall. As many wait as there are streams at most.
#[derive(Default)]
pub struct Backlog {
    held: Cell<u64>,
    waiting: RefCell<Vec<Waker>>,
    /// Over the life of the connection. What streams offered that were then reset is never written: a client that cancels
    /// much makes its connection seem to lag, which costs it a frame more for each piece.
    offered: Cell<u64>,
    written: Cell<u64>,
    tunnels: Cell<bool>,
}

impl Backlog {
    /// Ready when there is room for a piece more.
    pub fn poll_room(&self, waker: &Waker) -> Poll<()> {
        if self.held.get() < BACKLOG_MAX {
            return Poll::Ready(());
        }
        let mut waiting = self.waiting.borrow_mut();
        if !waiting.iter().any(|known| known.will_wake(waker)) {
            waiting.push(waker.clone());
        }
        Poll::Pending
    }

    /// A piece was offered.
    pub fn add(&self, bytes: u64) {
        self.held.set(self.held.get().saturating_add(bytes));
        self.offered.set(self.offered.get().saturating_add(bytes));
    }

    /// So many bytes of DATA were written.
    pub fn wrote(&self, bytes: u64) {
        self.written.set(self.written.get().saturating_add(bytes));
    }

    /// A tunnel was opened: what it writes was offered by no answer, and hides what answers leave.
    pub fn tunnelled(&self) {
        self.tunnels.set(true);
    }

    /// Whether much of what was offered was not written.
    pub fn lags(&self) -> bool {
        self.tunnels.get() || self.offered.get().saturating_sub(self.written.get()) >= LAG
    }

    /// A piece was taken, or its stream has ended.
    pub fn sub(&self, bytes: u64) {
        self.held.set(self.held.get().saturating_sub(bytes));
        if self.held.get() < BACKLOG_MAX {
            for waker in self.waiting.take() {
                waker.wake();
            }
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

    #[test]
    fn beyond_the_bound_streams_wait_once_each_and_are_woken_when_there_is_room() {
        let (backlog, counts) =
            (Backlog::default(), [Arc::new(Count::default()), Arc::new(Count::default())]);
        let wakers = counts.clone().map(Waker::from);
        assert!(backlog.poll_room(&wakers[0]).is_ready());
        backlog.add(BACKLOG_MAX + 10);
        for _ in 0..3 {
            assert!(wakers.iter().all(|waker| backlog.poll_room(waker).is_pending()));
        }
        backlog.sub(10);
        assert_eq!(counts[0].0.load(Ordering::Relaxed), 0, "still full");
        backlog.sub(1);
        assert_eq!(counts.each_ref().map(|count| count.0.load(Ordering::Relaxed)), [1, 1]);
        assert!(backlog.poll_room(&wakers[1]).is_ready());
        // So much was offered, and nothing of it written.
        assert!(backlog.lags());
        backlog.wrote(BACKLOG_MAX + 10 - LAG + 1);
        assert!(!backlog.lags());
        backlog.tunnelled();
        assert!(backlog.lags());
        // More than was added is a mistake somewhere else, and no reason to hold for ever.
        backlog.sub(u64::MAX);
        assert!(backlog.poll_room(&wakers[0]).is_ready());
    }
}
