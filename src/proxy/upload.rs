//! Step 8: the body of a request as it comes from the client, under its limits.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context as Task, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use crate::base::clock::{self, Millis};
use crate::base::outcome::Outcome;
use crate::net::pace::Pace;
use crate::net::timer::{Timer, Wheel};
use crate::policy::auth::strip::Strip;
use crate::proxy::buffered::Buffered;
use crate::proxy::context::Connection;
use crate::proxy::cut::Cut;
use crate::proxy::expect::GoOn;
use crate::proxy::fields;
use crate::proxy::gather::Gather;
use crate::proxy::throttle::Throttle;

/// What is known about a body that streams from the client; outlives the body itself.
pub struct Upload {
    max: Option<u64>,
    stall_after: Duration,
    stall: Timer,
    stalled: Cell<bool>,
    pace: Pace,
    received: Cell<u64>,
    moved: Cell<Millis>,
    /// The same in microseconds of process time.
    moved_micros: Cell<u64>,
    /// It waits for the client, or for its bandwidth.
    waits: Cell<bool>,
    conversation: bool,
    done: Cell<bool>,
    failure: Cell<Option<Outcome>>,
    expecting: RefCell<Option<Rc<GoOn>>>,
    throttle: RefCell<Option<Box<Throttle>>>,
    wheel: Wheel,
    client: Rc<Connection>,
    strip: Option<Arc<Strip>>,
    /// What it holds, counted for its tenant.
    pub buffered: Buffered,
}

impl Upload {
    /// At most `max` bytes from this client, with at most `stall_after` between two of them, and `rate` of them in a
    /// second (0 = any) while it is waited for.
    pub fn new(
        wheel: &Wheel,
        client: Rc<Connection>,
        max: Option<u64>,
        stall_after: Duration,
        rate: u64,
        buffered: Buffered,
    ) -> Upload {
        Upload {
            max,
            stall_after,
            stall: wheel.timer(),
            stalled: Cell::new(false),
            pace: Pace::new(rate, stall_after),
            received: Cell::new(0),
            moved: Cell::new(wheel.now()),
            moved_micros: Cell::new(0),
            waits: Cell::new(false),
            conversation: false,
            done: Cell::new(false),
            failure: Cell::new(None),
            expecting: RefCell::new(None),
            throttle: RefCell::new(None),
            wheel: wheel.clone(),
            client,
            strip: None,
            buffered,
        }
    }

    /// Takes fields out of its trailers that clients may not write.
    pub fn stripping(self, strip: Option<Arc<Strip>>) -> Upload {
        Upload { strip, ..self }
    }

    /// It is a stream of messages: an answer may be due although more may come.
    pub fn conversing(self, conversation: bool) -> Upload {
        Upload { conversation, ..self }
    }

    /// Whether it is one.
    pub fn is_conversation(&self) -> bool {
        self.conversation
    }

    /// How long the client may send nothing.
    pub fn stall_after(&self) -> Duration {
        self.stall_after
    }

    /// Whether the backend cannot have all of it yet, because more of it was not here when that was looked for. How
    /// long the backend takes then, and whether it gives up, says nothing about the backend.
    pub fn owes(&self) -> bool {
        self.waits.get() && !self.done.get()
    }

    /// Bytes received so far.
    pub fn received(&self) -> u64 {
        self.received.get()
    }

    /// When the body last made progress.
    pub fn moved(&self) -> Millis {
        self.moved.get()
    }

    /// The same in microseconds of process time; 0: never.
    pub fn moved_micros(&self) -> u64 {
        self.moved_micros.get()
    }

    /// Whether all of it was read.
    pub fn done(&self) -> bool {
        self.done.get()
    }

    /// All of it was read, though nobody asked for what follows its last byte.
    pub fn finish(&self) {
        self.done.set(true);
    }

    /// Why it was cut, if it was.
    pub fn failure(&self) -> Option<Outcome> {
        self.failure.get()
    }

    /// The next piece of a body, under these limits.
    pub fn poll(
        &self,
        incoming: &mut Incoming,
        cx: &mut Task<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if let Some(go_on) = self.expecting.borrow().as_ref()
            && go_on.poll(cx, &self.stall).is_pending()
        {
            return Poll::Pending;
        }
        if let Some(throttle) = self.throttle.borrow_mut().as_mut() {
            self.waits.set(true);
            ready!(throttle.poll(cx));
        }
        self.waits.set(false);
        match Pin::new(&mut *incoming).poll_frame(cx) {
            Poll::Pending => self.pending(cx),
            Poll::Ready(Some(Ok(frame))) => self.frame(frame),
            // The client went away, or what it sent could not be framed.
            Poll::Ready(Some(Err(error))) => {
                let outcome = self.client.ending.get();
                self.failure.set(Some(outcome));
                Poll::Ready(Some(Err(Cut::by(outcome, &error))))
            }
            Poll::Ready(None) if self.client.http2 && !incoming.is_end_stream() => {
                let outcome = self.client.ending.get();
                self.failure.set(Some(outcome));
                Poll::Ready(Some(Err(Cut::given_up(outcome))))
            }
            Poll::Ready(None) => {
                self.moved.set(self.wheel.now());
                self.done.set(true);
                Poll::Ready(None)
            }
        }
    }

    /// It moves no faster than this lets it.
    pub fn hold(&self, throttle: Option<Box<Throttle>>) {
        self.throttle.replace(throttle);
    }

    /// It would have waited for its bandwidth, if that were not in shadow.
    pub fn would_wait(&self) -> bool {
        self.throttle.borrow().as_ref().is_some_and(|throttle| throttle.would_wait())
    }

    /// Nothing is read before the backend says so.
    pub fn expect(&self, go_on: Rc<GoOn>) {
        self.expecting.replace(Some(go_on));
    }

    /// The client waits to be told to go on, and was not.
    pub fn unasked(&self) -> bool {
        self.expecting.borrow().as_ref().is_some_and(|go_on| !go_on.said())
    }

    fn cut(&self, outcome: Outcome) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        self.failure.set(Some(outcome));
        Poll::Ready(Some(Err(Cut::new(outcome))))
    }

    fn pending(&self, cx: &mut Task<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        self.waits.set(true);
        if !self.stalled.replace(true) {
            self.stall.set(self.stall_after);
            self.pace.wait(self.wheel.now());
        }
        if self.stall.poll_expired(cx).is_ready() { self.cut(Outcome::BodyTimeout) } else { Poll::Pending }
    }

    fn frame(&self, frame: Frame<Bytes>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        self.stalled.set(false);
        self.moved.set(self.wheel.now());
        self.moved_micros.set(clock::micros());
        let size = size_of(&frame);
        let received = self.received.get() + size;
        self.received.set(received);
        if let Some(throttle) = self.throttle.borrow_mut().as_mut() {
            throttle.moved(usize::try_from(size).unwrap_or(usize::MAX));
        }
        if self.max.is_some_and(|max| received > max) {
            return self.cut(Outcome::BodyTooLarge);
        }
        if self.pace.moved(self.wheel.now(), size) {
            return self.cut(Outcome::BodyTimeout);
        }
        Poll::Ready(Some(Ok(cleaned(frame, self.strip.as_deref()))))
    }
}

/// Trailers without what has no place there.
pub fn cleaned(frame: Frame<Bytes>, strip: Option<&Strip>) -> Frame<Bytes> {
    if frame.is_data() {
        return frame;
    }
    match frame.into_trailers() {
        Ok(mut trailers) => {
            fields::clean_trailers(&mut trailers);
            if let Some(strip) = strip {
                strip.apply(&mut trailers);
            }
            Frame::trailers(trailers)
        }
        Err(frame) => frame,
    }
}

/// A body that streams from the client.
pub struct Streaming {
    /// What was read of it and not handed on yet.
    pub gather: Gather,
    /// What hyper reads from the client.
    pub incoming: Incoming,
    /// Its limits.
    pub upload: Rc<Upload>,
}

impl Streaming {
    /// The next piece of the body, under its limits.
    pub fn poll(&mut self, cx: &mut Task<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let buffered = &self.upload.buffered;
        // Asked for more: what was handed over before was taken.
        buffered.hand(0);
        let polled = loop {
            if let Some(frame) = self.gather.take() {
                self.upload.waits.set(false);
                buffered.release(size_of(&frame));
                break Poll::Ready(Some(Ok(frame)));
            }
            match self.upload.poll(&mut self.incoming, cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    let size = size_of(&frame);
                    match self.gather.add(frame, self.incoming.size_hint().exact()) {
                        Some(frame) => break Poll::Ready(Some(Ok(frame))),
                        None => buffered.keep(size),
                    }
                }
                Poll::Pending if self.gather.is_late(cx) => {}
                other => break other,
            }
        };
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            buffered.hand(size_of(frame));
        }
        polled
    }

    /// See [`Body::is_end_stream`].
    pub fn is_end_stream(&self) -> bool {
        self.gather.is_empty() && self.incoming.is_end_stream()
    }

    /// See [`Body::size_hint`].
    pub fn size_hint(&self) -> SizeHint {
        let ahead = self.gather.size();
        match self.incoming.size_hint().exact() {
            Some(rest) => SizeHint::with_exact(rest + ahead),
            None => SizeHint::default(),
        }
    }

    /// Nobody will read on. hyper learns that only when it looks, and must not wait for the client to send more.
    pub fn dropped(&self) {
        // A body with a known length ends with its last byte: nobody asks for the frame after it.
        if self.incoming.is_end_stream() {
            self.upload.done.set(true);
        }
        self.upload.buffered.hand(0);
        if !self.upload.done.get() {
            self.upload.client.progress.wake();
        }
    }
}

/// Bytes of a piece of a body.
pub fn size_of(frame: &Frame<Bytes>) -> u64 {
    frame.data_ref().map_or(0, |data| data.len() as u64)
}

impl Drop for Streaming {
    fn drop(&mut self) {
        self.dropped();
    }
}
