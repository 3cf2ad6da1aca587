//! Who drives an HTTP/1.1 connection to an endpoint: a task of its own, or whoever waits for the answer.
//!
//! A connection of hyper does nothing unless it is polled, and a task of its own does that for the head of an answer, between
//! requests (the endpoint closes), while a request's body is still being sent after its answer began, and where a tunnel's
//! stream is taken out. But that task would read a long body ahead of whoever takes it: into memory while the client is
//! slow, and out of the core's caches before it is encrypted. So whoever takes a body polls the connection where he waits for
//! more (`Driven::lead`), and nothing is read that nobody asked for. In the same way whoever sends a body polls the
//! connection while he waits for the head of its answer: each piece goes out in the turn in which it was read, and not
//! behind the pieces of all others. Heads without a body stay with the task: requests that come together are then read
//! together, sent together, and answered together, which the core's caches like better.
//!
//! Everything that the connection waits for knows one waker, which is passed on to whoever leads: nothing must be
//! registered anew when the leader changes.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use hyper::body::Body;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::task::AbortHandle;

use crate::net::stream::Stream;
use crate::net::timer::Wheel;
use crate::upstream::answer::{self, Checked, Fault};
use crate::upstream::connect::Patient;
use crate::upstream::endpoint::Endpoint;

/// How often a leader polls in a row what woke itself; then others have their turn.
const ROUNDS: usize = 8;

/// Passes wakes on to whoever leads.
///
/// Only one thread comes here, but a waker must be one for all (`Wake` wants `Sync`): hence the lock, which is never waited for,
/// and the atomics.
#[derive(Default)]
struct Relay {
    leader: Mutex<Option<Waker>>,
    /// The leader is polling, or about to: a wake is only noted.
    held: AtomicBool,
    woken: AtomicBool,
}

impl Relay {
    fn leader(&self) -> MutexGuard<'_, Option<Waker>> {
        self.leader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lead(&self, waker: &Waker) {
        let mut leader = self.leader();
        if leader.as_ref().is_none_or(|known| !known.will_wake(waker)) {
            *leader = Some(waker.clone());
        }
    }

    fn hold(&self) {
        self.held.store(true, Relaxed);
    }

    fn begin(&self) {
        self.woken.store(false, Relaxed);
    }

    fn was_woken(&self) -> bool {
        self.woken.load(Relaxed)
    }

    /// Nobody polls any more; what was noted meanwhile reaches the leader.
    fn let_go(&self) {
        self.held.store(false, Relaxed);
        if self.was_woken() {
            self.pass_on();
        }
    }

    fn pass_on(&self) {
        if let Some(leader) = &*self.leader() {
            leader.wake_by_ref();
        }
    }
}

impl Wake for Relay {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Relaxed);
        if !self.held.load(Relaxed) {
            self.pass_on();
        }
    }
}

/// A relay, and the same as a waker.
struct Relayed(Arc<Relay>, Waker);

impl Default for Relayed {
    fn default() -> Relayed {
        let relay = Arc::<Relay>::default();
        Relayed(relay.clone(), Waker::from(relay))
    }
}

/// hyper's connection, whatever the bodies of requests are.
trait Link {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>>;
    /// The bare stream, and what was read beyond the last answer.
    fn into_stream(self: Box<Self>) -> (Stream, Bytes);
}

impl<B> Link for http1::Connection<TokioIo<Checked<Patient>>, B>
where
    B: Body<Data = Bytes> + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.poll_without_shutdown(cx)
    }

    fn into_stream(self: Box<Self>) -> (Stream, Bytes) {
        let parts = (*self).into_parts();
        let (mut stream, held) = parts.io.into_inner().into_parts();
        stream.io.becomes_tunnel();
        let early =
            if held.is_empty() { parts.read_buf } else { [&parts.read_buf, &held[..]].concat().into() };
        (stream.io, early)
    }
}

/// A connection, who drives it, and how it ended.
pub struct Driven {
    /// `None` once it is over.
    link: RefCell<Option<Box<dyn Link>>>,
    /// What the connection waits for.
    line: Relayed,
    /// What whoever leads waits for.
    cargo: Relayed,
    /// The task has the lead.
    followed: Cell<bool>,
    task: RefCell<Option<Waker>>,
    abort: RefCell<Option<AbortHandle>>,
    /// The bare stream and what was read beyond the head, when the endpoint switched protocols.
    upgraded: RefCell<Option<(Stream, Bytes)>>,
    /// Weak: an idle connection must not keep an endpoint known that is gone from the configuration.
    owner: RefCell<Option<(Weak<Endpoint>, Wheel)>>,
    over: Cell<bool>,
    notify: tokio::sync::Notify,
}

impl Driven {
    /// Has a task of this worker drive a connection until somebody leads it.
    pub(super) fn spawn<B>(connection: http1::Connection<TokioIo<Checked<Patient>>, B>) -> Rc<Driven>
    where
        B: Body<Data = Bytes> + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let driven = Rc::new(Driven::of(Some(Box::new(connection))));
        let own = driven.clone();
        let task = tokio::task::spawn_local(std::future::poll_fn(move |cx| own.poll_task(cx)));
        driven.abort.replace(Some(task.abort_handle()));
        driven
    }

    fn of(link: Option<Box<dyn Link>>) -> Driven {
        Driven {
            link: RefCell::new(link),
            line: Relayed::default(),
            cargo: Relayed::default(),
            followed: Cell::new(true),
            task: RefCell::default(),
            abort: RefCell::default(),
            upgraded: RefCell::default(),
            owner: RefCell::default(),
            over: Cell::new(false),
            notify: tokio::sync::Notify::new(),
        }
    }

    fn poll_task(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.task.replace(Some(cx.waker().clone()));
        if self.followed.get() {
            self.line.0.lead(cx.waker());
        }
        self.line.0.begin();
        self.poll()
    }

    /// Moves the connection on. Ready: it is over.
    fn poll(&self) -> Poll<()> {
        // Only a body that waited for itself could lead here from its own poll.
        let Ok(mut link) = self.link.try_borrow_mut() else { return Poll::Pending };
        let Some(open) = link.as_mut() else { return Poll::Ready(()) };
        let Poll::Ready(result) = open.poll(&mut Context::from_waker(&self.line.1)) else {
            return Poll::Pending;
        };
        let closed = link.take();
        drop(link);
        match result {
            Err(error) => self.tell(&error),
            // Kept for an upgrade; if nobody asks, it is closed when the last holder goes.
            Ok(()) => drop(self.upgraded.replace(closed.map(Link::into_stream))),
        }
        self.over.set(true);
        self.notify.notify_waiters();
        if let Some(task) = &*self.task.borrow() {
            task.wake_by_ref();
        }
        Poll::Ready(())
    }

    /// The error of a broken connection reaches whoever waits for the answer; here it is most often only the end. But
    /// where nobody waits for an answer, nobody else tells what the endpoint said.
    fn tell(&self, error: &hyper::Error) {
        let Some(fault) = answer::fault(error).filter(|fault| *fault == Fault::Unasked) else { return };
        if let Some((endpoint, wheel)) = self.owner.take()
            && let Some(endpoint) = endpoint.upgrade()
        {
            endpoint.log(wheel.now(), "backend said more than it was asked", &fault.to_string());
            endpoint.note_failure(&fault.to_string());
        }
    }

    /// From here on whoever waits for the answer has the lead, in [`Driven::lead`].
    pub(super) fn hand_over(&self) {
        self.followed.set(false);
        self.line.0.hold();
    }

    /// Polls `step`, which waits for something that comes over the connection, and the connection too, as often as one moves the
    /// other on. While the task has the lead, only `step`.
    pub(super) fn lead<T>(
        &self,
        cx: &mut Context<'_>,
        mut step: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        if self.followed.get() {
            return step(cx);
        }
        let (line, cargo) = (&*self.line.0, &*self.cargo.0);
        for relay in [line, cargo] {
            relay.lead(cx.waker());
            relay.hold();
        }
        let own = &mut Context::from_waker(&self.cargo.1);
        cargo.begin();
        let mut polled = step(own);
        for _ in 0..ROUNDS {
            if polled.is_ready() {
                break;
            }
            line.begin();
            let over = self.poll().is_ready();
            cargo.begin();
            polled = step(own);
            if over || !(line.was_woken() || cargo.was_woken()) {
                break;
            }
        }
        if polled.is_pending() {
            line.let_go();
            cargo.let_go();
        }
        polled
    }

    /// Runs `step`, the first look at a body, while the task has the lead; it says whether the body is over. Whoever looks
    /// tells the sender of the body that it is wanted, which wakes the connection: for nothing where all of it was there.
    pub(super) fn first_look<T>(&self, step: impl FnOnce() -> (T, bool)) -> T {
        let line = &*self.line.0;
        line.hold();
        line.begin();
        let (looked, over) = step();
        if over {
            line.begin();
        }
        line.let_go();
        looked
    }

    /// From here on the task has the lead. What it missed it hears of.
    pub(super) fn follow(&self) {
        if self.followed.replace(true) {
            return;
        }
        // An idle connection must not keep what is left of the task of a client that is gone.
        drop(self.cargo.0.leader().take());
        match &*self.task.borrow() {
            Some(task) => self.line.0.lead(task),
            // It is still to be polled for the first time.
            None => drop(self.line.0.leader().take()),
        }
        self.line.0.let_go();
    }

    /// See [`super::connect::Connection::belongs_to`].
    pub(super) fn belongs_to(&self, endpoint: &Arc<Endpoint>, wheel: &Wheel) {
        self.owner.replace(Some((Arc::downgrade(endpoint), wheel.clone())));
    }

    /// Waits for the stream of a connection that switched protocols. `None` if it ended in another way.
    pub async fn upgraded(&self) -> Option<(Stream, Bytes)> {
        self.follow();
        // Registered before the check, so that an ending between the two is not missed.
        let notified = self.notify.notified();
        if !self.over.get() {
            notified.await;
        }
        self.upgraded.borrow_mut().take()
    }

    /// Ends the task, and with it the connection.
    pub(super) fn abort(&self) {
        if let Some(task) = self.abort.take() {
            task.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_look_wakes_the_task_only_where_more_of_the_body_is_to_come() {
        let driven = Driven::of(None);
        // Another relay, that leads nothing, notes the wakes of the task.
        let (task, line) = (Relayed::default(), driven.line.1.clone());
        driven.line.0.lead(&task.1);
        let woken = |over| {
            task.0.begin();
            driven.first_look(|| (line.wake_by_ref(), over));
            task.0.was_woken()
        };
        assert_eq!([woken(true), woken(false), woken(true)], [false, true, false]);
        // Nothing is held back afterwards.
        line.wake_by_ref();
        assert!(task.0.was_woken());
    }
}
