//! Under HTTP/2: what is offered of an answer's body at once, and how long it may wait for its client.

use std::rc::Rc;
use std::task::{Context as Task, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Frame;

use crate::net::pace::Pace;
use crate::net::records;
use crate::net::timer::Timer;
use crate::proxy::context::{Connection, Context};
use crate::proxy::throttle::Throttle;

/// What one offer of an HTTP/2 stream holds at most: h2 keeps all of it while the client's window lets nothing go. With its
/// head of nine bytes (RFC 9113 section 4.1) one TLS record, of which four are a packet ([`packets`](crate::proxy::packets)). See
/// [`backlog`](crate::proxy::backlog) for what becomes of its last byte.
const PIECE_MAX: usize = records::QUARTER - 9;

/// Under HTTP/2: how long a client may leave a body waiting, with its window shut.
pub struct Delivery {
    /// Rings when the client has taken nothing for too long.
    pub timer: Timer,
    stall_after: Duration,
    pace: Pace,
    /// Bytes that were offered last.
    offered: u64,
    /// The last byte of a piece is still to be offered, by itself.
    held_back: bool,
    /// Whose stream it is.
    pub connection: Rc<Connection>,
}

impl Delivery {
    /// The delivery of an answer; `None` under HTTP/1.
    pub fn of(context: &Context) -> Option<Delivery> {
        let timer = context.connection.delivery.borrow().clone()?;
        let server = &context.snapshot.server;
        let stall_after = server.timeouts.write;
        let pace = Pace::new(server.limits.write_rate, stall_after);
        let connection = context.connection.clone();
        let mut delivery = Delivery { timer, stall_after, pace, offered: 0, held_back: false, connection };
        delivery.offer(0);
        Some(delivery)
    }

    /// How many of so many bytes are offered next.
    fn piece(&mut self, size: usize) -> usize {
        if std::mem::take(&mut self.held_back) {
            return size.min(1);
        }
        let piece = size.min(PIECE_MAX);
        self.held_back = piece > 1 && self.connection.backlog.lags();
        if self.held_back { piece - 1 } else { piece }
    }

    /// There is something for the client to take.
    pub fn offer(&mut self, bytes: usize) {
        self.offered = bytes as u64;
        self.connection.backlog.add(self.offered);
        self.pace.wait(self.timer.now());
        self.timer.set(self.stall_after);
    }

    /// The client took what there was; whether it takes too little.
    pub fn taken(&mut self) -> bool {
        self.timer.clear();
        let bytes = std::mem::take(&mut self.offered);
        self.connection.backlog.sub(bytes);
        self.pace.moved(self.timer.now(), bytes)
    }
}

/// What is small is kept by itself and not with the whole buffer that it was read into: under HTTP/2 it may wait long, and
/// many of its like beside it.
pub fn compact(piece: Bytes) -> Bytes {
    const SMALL: usize = 4 * 1024;
    if piece.len() <= SMALL { Bytes::copy_from_slice(&piece) } else { piece }
}

type Came = Poll<Option<Result<Frame<Bytes>, hyper::Error>>>;

/// What is next of an answer: `first`, or what comes. That it broke off is told only when asked once more: hyper throws
/// away what it holds when a body fails, and sends it on when a body has nothing yet.
pub fn next_of(
    first: &mut Option<Bytes>,
    failed: &mut Option<hyper::Error>,
    cx: &mut Task<'_>,
    next: impl FnOnce(&mut Task<'_>) -> Came,
) -> Came {
    if let Some(error) = failed.take() {
        return Poll::Ready(Some(Err(error)));
    }
    if let Some(first) = first.take() {
        return Poll::Ready(Some(Ok(Frame::data(first))));
    }
    match next(cx) {
        Poll::Ready(Some(Err(error))) => {
            *failed = Some(error);
            cx.waker().wake_by_ref();
            Poll::Pending
        }
        came => came,
    }
}

/// Keeps what is not offered yet for the next time: under HTTP/2 more than a piece, and with a bandwidth limit more than
/// may move at once.
pub fn in_pieces<E>(
    delivery: &mut Option<Delivery>,
    throttle: Option<&Throttle>,
    next: Option<Result<Frame<Bytes>, E>>,
    kept: &mut Option<Bytes>,
) -> Option<Result<Frame<Bytes>, E>> {
    let size = match &next {
        Some(Ok(frame)) => frame.data_ref().map_or(0, Bytes::len),
        _ => 0,
    };
    let moving = throttle.map_or(size, |throttle| size.min(throttle.piece()));
    let piece = match delivery {
        Some(delivery) if moving > 0 => delivery.piece(moving),
        _ => moving,
    };
    match next {
        Some(Ok(frame)) if piece < size => {
            let Ok(mut data) = frame.into_data() else { return None };
            let offered = data.split_to(piece);
            *kept = Some(data);
            Some(Ok(Frame::data(offered)))
        }
        next => next,
    }
}
