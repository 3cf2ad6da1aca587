//! Step 8: bodies in both directions, streamed frame by frame; nothing is held whole.
//!
//! Back-pressure is the absence of code: hyper asks for the next frame only when the other side took the last one.
//! What is added here are limits, deadlines, byte counts, and the moment of truth: when a response body ends, is
//! cut, or is dropped, the request's outcome is known and the connection to the backend goes home or is closed.

use std::cell::RefCell;
use std::pin::Pin;
use std::task::{Context as Task, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::Version;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use crate::base::clock::Millis;
use crate::base::outcome::{Blame, Outcome};
use crate::proxy::context::Context;
pub use crate::proxy::cut::Cut;
use crate::proxy::delivery::{self, Delivery, compact, in_pieces};
use crate::proxy::enforce;
use crate::proxy::forward::{Lease, broke};
use crate::proxy::keep::Kept;
use crate::proxy::throttle::Throttle;
use crate::proxy::upload::{Streaming, cleaned};

/// The body of a request on its way to a backend.
pub enum RequestBody {
    /// There is none.
    Empty,
    /// It streams from the client. Boxed: every request is moved many times, and few have a body.
    Streaming(Box<Streaming>),
    /// It streams from the client, and its beginning is kept for another try.
    Kept(Kept),
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Task<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match self.get_mut() {
            RequestBody::Empty => Poll::Ready(None),
            RequestBody::Streaming(body) => body.poll(cx),
            RequestBody::Kept(kept) => kept.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            RequestBody::Empty => true,
            RequestBody::Streaming(body) => body.is_end_stream(),
            RequestBody::Kept(kept) => kept.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            RequestBody::Empty => SizeHint::with_exact(0),
            RequestBody::Streaming(body) => body.size_hint(),
            RequestBody::Kept(kept) => kept.size_hint(),
        }
    }
}

/// The body of an answer on its way to the client. Carries the request's [`Context`], whose drop records it.
pub struct ResponseBody {
    source: Source,
    context: Option<Box<Context>>,
    delivery: Option<Delivery>,
    throttle: Option<Box<Throttle>>,
}

enum Source {
    /// One piece: we made it, or a backend's whole answer came at once.
    Piece(Option<Bytes>),
    /// From a backend. Boxed: an answer is moved many times, and most are of one piece.
    Upstream(Box<Flow>),
}

/// What streams from a backend.
struct Flow {
    /// Read before the head was passed on, or what was more than a piece.
    first: Option<Bytes>,
    incoming: Incoming,
    lease: RefCell<Option<Lease>>,
    stall_after: Duration,
    stalled: bool,
    /// It broke off; told only after what came before was sent on.
    failed: Option<hyper::Error>,
    /// It has none by its nature (HEAD, 204, 304), whatever its length says.
    bare: bool,
    /// A stream of an HTTP/2 connection.
    shared: bool,
    /// When more of it was last asked for.
    asked: Millis,
    /// Its client once let it wait so long that a backend may have given up because of that.
    neglected: bool,
}

/// How long a backend's answer may stand still because of its client before its end is not held against the backend.
const NEGLECT: Duration = Duration::from_secs(5);

impl Source {
    /// Bytes that were read and not offered yet.
    fn left(&self) -> u64 {
        let piece = match self {
            Source::Piece(piece) => piece,
            Source::Upstream(flow) => &flow.first,
        };
        piece.as_ref().map_or(0, |piece| piece.len() as u64)
    }
}

impl Flow {
    /// The next piece, while the connection that it comes from is moved on.
    fn poll(&mut self, cx: &mut Task<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Flow { first, incoming, lease, failed, .. } = self;
        if let Some(lease) = lease.get_mut() {
            let now = lease.now();
            self.neglected |= self.asked.after(NEGLECT) < now && !self.stalled;
            self.asked = now;
        }
        delivery::next_of(first, failed, cx, |cx| match lease.get_mut() {
            Some(lease) => lease.lead(cx, |cx| Pin::new(&mut *incoming).poll_frame(cx)),
            None => Pin::new(&mut *incoming).poll_frame(cx),
        })
    }
}

type Polled = Poll<Option<Result<Frame<Bytes>, Cut>>>;

impl ResponseBody {
    /// No body, and nothing to record when it ends.
    pub fn nothing() -> ResponseBody {
        ResponseBody { source: Source::Piece(None), context: None, delivery: None, throttle: None }
    }

    /// A body that we made ourselves.
    pub fn piece(bytes: Bytes, mut context: Box<Context>) -> ResponseBody {
        let piece = if bytes.is_empty() { None } else { Some(bytes) };
        let delivery = Delivery::of(&context);
        let throttle = context.throttles.0.take();
        ResponseBody { source: Source::Piece(piece), context: Some(context), delivery, throttle }
    }

    /// A body that streams from a backend, `first` ahead of it; `stall_after` bounds its silences.
    pub fn upstream(
        first: Option<Bytes>,
        incoming: Incoming,
        lease: Lease,
        stall_after: Duration,
        mut context: Box<Context>,
    ) -> ResponseBody {
        let delivery = Delivery::of(&context);
        // RFC 9110 sections 9.3.2, 15.3.5 and 15.4.5.
        let bare = matches!(context.status, 204 | 304) || context.method == http::Method::HEAD;
        let source = if incoming.is_end_stream() && lease.may_go() {
            // However long the client takes for it, no connection to the backend is held for that.
            lease.give_back();
            let first = if bare { None } else { first };
            Source::Piece(first.map(|piece| if delivery.is_some() { compact(piece) } else { piece }))
        } else {
            lease.hand_over();
            let (shared, asked) = (lease.is_shared(), lease.now());
            let lease = RefCell::new(Some(lease));
            Source::Upstream(Box::new(Flow {
                first,
                incoming,
                lease,
                stall_after,
                stalled: false,
                failed: None,
                bare,
                shared,
                asked,
                neglected: false,
            }))
        };
        let throttle = context.throttles.0.take();
        ResponseBody { source, context: Some(context), delivery, throttle }
    }

    /// The answer is complete: the backend's connection goes home and the request is recorded.
    fn finish(&mut self) {
        if let Source::Upstream(flow) = &mut self.source
            && let Some(lease) = flow.lease.get_mut().take()
        {
            lease.give_back();
        }
        if let Some(mut context) = self.context.take() {
            context.complete();
        }
    }

    /// Ends it in the middle. `why` is for the process log: what the backend did. A client that does not read is not the
    /// backend's fault.
    fn cut(&mut self, outcome: Outcome, why: &str, cut: Cut) -> Polled {
        if let Source::Upstream(flow) = &mut self.source
            && let Some(lease) = flow.lease.get_mut().take()
            && outcome.row().blame == Blame::Upstream
        {
            lease.fail(outcome, why, flow.neglected);
        }
        if let Some(mut context) = self.context.take() {
            // HTTP/1.0 knows no chunks: there the end of the connection is the end of the body, and must not look clean.
            if context.version < Version::HTTP_11 {
                context.connection.reset.set(true);
            }
            context.end(outcome);
        }
        Poll::Ready(Some(Err(cut)))
    }

    /// Ready when there is room for more of it: what is not read from the backend need not be kept for the client.
    fn poll_room(&mut self, cx: &mut Task<'_>) -> Poll<()> {
        if let Some(delivery) = &self.delivery {
            ready!(delivery.connection.backlog.poll_room(cx.waker()));
        } else if let (Source::Upstream(_), Some(context)) = (&self.source, &self.context) {
            ready!(context.connection.progress.poll_taken(cx));
        }
        match &mut self.throttle {
            Some(throttle) => throttle.poll(cx),
            None => Poll::Ready(()),
        }
    }

    /// So many bytes are on their way to the client.
    fn moves(&mut self, bytes: usize) {
        let left = self.source.left();
        if let Some(context) = self.context.as_mut() {
            context.sent(bytes);
            context.holds(left + bytes as u64);
        }
        if let Some(delivery) = &mut self.delivery {
            delivery.offer(bytes);
        }
        if let Some(throttle) = &mut self.throttle {
            throttle.moved(bytes);
            if throttle.would_wait()
                && let Some(context) = self.context.as_mut()
            {
                enforce::would_wait(context);
            }
        }
    }

    /// The backend reset its HTTP/2 stream without an error, in the middle of the answer; see [`Cut::given_up`].
    fn is_given_up(&self) -> bool {
        let Source::Upstream(flow) = &self.source else { return false };
        flow.shared && !flow.bare && !flow.incoming.is_end_stream()
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Task<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let this = self.get_mut();
        // Asked for more: the client took what there was.
        if this.delivery.as_mut().is_some_and(Delivery::taken) {
            return this.cut(Outcome::ClientStalled, "", Cut::new(Outcome::ClientStalled));
        }
        ready!(this.poll_room(cx));
        let left = this.source.left();
        if let Some(context) = &mut this.context {
            context.holds(left);
        }
        let throttle = this.throttle.as_deref();
        let polled = match &mut this.source {
            Source::Piece(piece) => {
                let Some(bytes) = piece.take() else {
                    this.finish();
                    return Poll::Ready(None);
                };
                let whole = Some(Ok(Frame::data(bytes)));
                Poll::Ready(in_pieces(&mut this.delivery, throttle, whole, piece))
            }
            Source::Upstream(flow) if flow.bare => Poll::Ready(None),
            Source::Upstream(flow) => {
                let polled = flow.poll(cx);
                let polled =
                    polled.map(|next| in_pieces(&mut this.delivery, throttle, next, &mut flow.first));
                let Flow { lease, stall_after, stalled, .. } = &mut **flow;
                if let (Poll::Pending, Some(lease)) = (&polled, lease.get_mut().as_ref()) {
                    if !std::mem::replace(stalled, true) {
                        lease.timer().set(*stall_after);
                    }
                    if lease.timer().poll_expired(cx).is_ready() {
                        let why = format!("nothing more of the answer came within {stall_after:?}");
                        return this.cut(Outcome::UpstreamStalled, &why, Cut::new(Outcome::UpstreamStalled));
                    }
                    return Poll::Pending;
                }
                *stalled = false;
                polled
            }
        };
        match polled {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(Ok(frame))) => {
                this.moves(frame.data_ref().map_or(0, Bytes::len));
                Poll::Ready(Some(Ok(cleaned(frame, None))))
            }
            Poll::Ready(Some(Err(error))) => {
                let (outcome, why) = broke(&error);
                this.cut(outcome, &why, Cut::by(outcome, &error))
            }
            Poll::Ready(None) if this.is_given_up() => {
                let why = "it reset the stream in the middle of the answer, without an error";
                this.cut(Outcome::UpstreamTruncated, why, Cut::given_up(Outcome::UpstreamTruncated))
            }
            Poll::Ready(None) => {
                this.finish();
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Piece(piece) => piece.is_none(),
            Source::Upstream(flow) => flow.bare || (flow.first.is_none() && flow.incoming.is_end_stream()),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Piece(piece) => SizeHint::with_exact(piece.as_ref().map_or(0, |b| b.len() as u64)),
            Source::Upstream(flow) if flow.bare => SizeHint::with_exact(0),
            Source::Upstream(flow) => {
                let mut hint = flow.incoming.size_hint();
                let Some(first) = flow.first.as_ref().map(|first| first.len() as u64) else { return hint };
                if let Some(upper) = hint.upper() {
                    hint.set_upper(upper.saturating_add(first));
                }
                hint.set_lower(hint.lower().saturating_add(first));
                hint
            }
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        // The client went in the moment between a break and its telling: the backend broke off all the same.
        if let Source::Upstream(flow) = &mut self.source
            && let Some(error) = flow.failed.take()
            && let Some(lease) = flow.lease.get_mut().take()
        {
            let (outcome, why) = broke(&error);
            lease.fail(outcome, &why, flow.neglected);
        }
        // Also where nothing more would have come: what was offered last, the client did not take.
        if self.delivery.as_ref().is_some_and(|delivery| delivery.timer.expired())
            && let Some(context) = self.context.as_mut()
        {
            context.end(Outcome::ClientStalled);
            let connection = &context.connection;
            connection.stalls.set(connection.stalls.get().saturating_add(1));
            // Whoever reads from the client looks whether that is one too many.
            connection.progress.wake();
        }
        // hyper drops a body without asking for its end when the length says that it is complete, and when the
        // answer has none (HEAD, 204, 304).
        if self.is_end_stream() {
            self.finish();
        }
        // The task of the stream may live on to send what it holds.
        if let Some(delivery) = &mut self.delivery {
            let _ = delivery.taken();
        }
    }
}
