//! The byte stream of a client, watched: what phase a connection is in, how long it may stay there, what it moved.
//!
//! hyper has no deadline for a slow request head, a client that stops reading, or an idle HTTP/2 connection. One
//! wrapper adds them all: [`Guarded`] notes every read and write in a [`Progress`], which keeps one coarse timer.
//! Whoever drives the connection polls [`Progress::poll_overdue`] beside it and decides what an overdue phase means.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::base::clock::Millis;
use crate::net::pace::Pace;
use crate::net::stream::Stream;
use crate::net::timer::{Timer, Wheel};

/// What a connection is doing; each phase has its own deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Waiting for a request; nothing of it has arrived.
    Idle,
    /// A request head is arriving.
    Head,
    /// One or more requests are being served.
    Serving,
    /// Upgraded: bytes pass both ways.
    Tunnel,
}

/// How long each phase may last.
#[derive(Debug, Clone, Copy)]
pub struct Allowance {
    /// [`Phase::Idle`].
    pub idle: Duration,
    /// [`Phase::Head`], from its first byte.
    pub head: Duration,
    /// The peer accepts no byte while we have some for it.
    pub write: Duration,
    /// [`Phase::Tunnel`] without a byte either way.
    pub tunnel: Duration,
    /// Bytes that the peer must take in a second while it is waited for; 0 = any.
    pub write_rate: u64,
}

/// How long a client that will say nothing more is still answered, counted from the last byte it was sent.
///
/// Who closes a connection has no more to say and may still listen (RFC 9293 section 3.6), but most who do are gone, and
/// a backend should not work for long for nobody.
const LISTENING: Duration = Duration::from_secs(5);

/// How long a connection waits for a request before it is put to rest: long enough that one in use never is.
const REST: Duration = Duration::from_millis(500);

/// What came due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overdue {
    /// No request came for a moment: time to put the connection to rest, where that is possible.
    Rest,
    /// No request came.
    Idle,
    /// A request head did not arrive whole.
    Head,
    /// The peer stopped reading.
    Write,
    /// A tunnel fell silent.
    Tunnel,
    /// The peer has said its last, and there was nothing for it to hear for a while.
    Gone,
}

/// The watch over one connection.
pub struct Progress {
    phase: Cell<Phase>,
    /// The last write found the peer's window full.
    blocked: Cell<bool>,
    allowance: Cell<Allowance>,
    /// How fast the peer reads while writes wait for it.
    pace: Pace,
    /// It read too slowly.
    slow: Cell<bool>,
    timer: Timer,
    bytes_in: Cell<u64>,
    bytes_out: Cell<u64>,
    /// Whether a read in [`Phase::Idle`] begins a head. Not so under HTTP/2, where any frame may arrive.
    heads: Cell<bool>,
    /// Bytes were written and not yet flushed: part of an answer may still be on its way.
    unsent: Cell<bool>,
    /// A write met the peer's full window, and what it was to write is not out yet.
    behind: Cell<bool>,
    /// Who has more to write, and waits for that.
    writer: Cell<Option<Waker>>,
    /// Somebody put reading off until the answer is out.
    parked: Cell<bool>,
    /// The peer closed its side while it is being answered.
    half_closed: Cell<bool>,
    /// Whoever drives the connection puts it to rest where it only waits.
    rests: Cell<bool>,
    /// Where it may rest: when the phase has lasted too long. The timer stands at an earlier time until it rests.
    until: Cell<Millis>,
    /// The last read, between two requests, found nothing.
    quiet: Cell<bool>,
}

impl Progress {
    /// Begins in [`Phase::Head`]: a fresh connection owes its first request at once.
    pub fn new(wheel: &Wheel, allowance: Allowance) -> Progress {
        let progress = Progress {
            phase: Cell::new(Phase::Head),
            blocked: Cell::new(false),
            allowance: Cell::new(allowance),
            pace: Pace::new(allowance.write_rate, allowance.write),
            slow: Cell::new(false),
            timer: wheel.timer(),
            bytes_in: Cell::new(0),
            bytes_out: Cell::new(0),
            heads: Cell::new(true),
            unsent: Cell::new(false),
            behind: Cell::new(false),
            writer: Cell::new(None),
            parked: Cell::new(false),
            half_closed: Cell::new(false),
            rests: Cell::new(false),
            until: Cell::new(wheel.now()),
            quiet: Cell::new(false),
        };
        progress.arm();
        progress
    }

    /// A timer for something else about this connection.
    pub fn timer(&self) -> Timer {
        self.timer.another()
    }

    /// Enters a phase and starts its deadline.
    pub fn enter(&self, phase: Phase) {
        self.phase.set(phase);
        self.arm();
    }

    /// Tells that this connection speaks HTTP/2: bytes while idle do not begin a request head.
    pub fn multiplexed(&self) {
        self.heads.set(false);
    }

    /// Tells that whoever drives this connection wants to hear of [`Overdue::Rest`].
    pub fn rests(&self) {
        self.rests.set(true);
        self.arm();
    }

    /// Notes whether a read between two requests found nothing.
    pub fn quiet(&self, quiet: bool) {
        self.quiet.set(quiet);
    }

    /// Whether nothing of a request is anywhere on its way, nor of an answer.
    pub fn may_rest(&self) -> bool {
        self.waits() && self.quiet.get() && !self.unsent.get()
    }

    /// Whether the connection only waits for a request; one that is new may be put off for as long as it said nothing.
    fn waits(&self) -> bool {
        let waits = match self.phase.get() {
            Phase::Idle => true,
            Phase::Head => self.bytes_in.get() == 0,
            Phase::Serving | Phase::Tunnel => false,
        };
        self.rests.get() && waits && !self.blocked.get() && !self.slow.get() && !self.half_closed.get()
    }

    /// A connection that rested does so no more; if it was nothing, it will again.
    pub fn stir(&self) {
        if self.waits() {
            self.timer.set_at(self.until.get().min(self.timer.now().after(REST)));
        }
    }

    /// The current phase.
    pub fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// Whether a request is being served, or its answer is not out yet.
    pub fn answering(&self) -> bool {
        self.phase.get() == Phase::Serving || self.unsent.get()
    }

    /// Notes that a read was put off, without a waker, for as long as [`Progress::answering`].
    pub fn park(&self) {
        self.parked.set(true);
    }

    /// Whether a read that was put off is due now: whoever drives the connection polls it once more.
    pub fn resume(&self) -> bool {
        self.parked.get() && !self.answering() && self.parked.replace(false)
    }

    /// Ready when the peer has taken what it was sent, as far as its window tells: whoever writes before that only fills
    /// buffers.
    pub fn poll_taken(&self, cx: &Context<'_>) -> Poll<()> {
        if !self.behind.get() {
            return Poll::Ready(());
        }
        self.writer.set(Some(cx.waker().clone()));
        Poll::Pending
    }

    /// Notes that the peer closed its side of the connection behind a whole request: it is answered for as long as
    /// something comes for it.
    pub fn half_closed(&self) {
        if !self.half_closed.replace(true) {
            self.arm();
        }
    }

    /// Bytes read from the peer so far.
    pub fn bytes_in(&self) -> u64 {
        self.bytes_in.get()
    }

    /// Bytes written to the peer so far.
    pub fn bytes_out(&self) -> u64 {
        self.bytes_out.get()
    }

    /// Wakes the task that drives the connection, for example to begin a graceful close.
    pub fn wake(&self) {
        self.timer.wake();
    }

    /// Ready when the current phase has lasted too long.
    pub fn poll_overdue(&self, cx: &mut Context<'_>) -> Poll<Overdue> {
        std::task::ready!(self.timer.poll_expired(cx));
        if self.waits() && self.timer.now() < self.until.get() {
            self.timer.set_at(self.until.get());
            return Poll::Ready(Overdue::Rest);
        }
        Poll::Ready({
            match (self.blocked.get() || self.slow.get(), self.phase.get()) {
                (true, _) => Overdue::Write,
                (false, Phase::Serving) if self.half_closed.get() => Overdue::Gone,
                (false, Phase::Idle) => Overdue::Idle,
                (false, Phase::Head | Phase::Serving) => Overdue::Head,
                (false, Phase::Tunnel) => Overdue::Tunnel,
            }
        })
    }

    fn arm(&self) {
        let allowance = self.allowance.get();
        match self.phase.get() {
            _ if self.slow.get() => self.timer.set(Duration::ZERO),
            _ if self.blocked.get() => self.timer.set(allowance.write),
            phase if self.waits() => {
                let longest = if phase == Phase::Idle { allowance.idle } else { allowance.head };
                self.until.set(self.timer.now().after(longest));
                self.stir();
            }
            Phase::Idle => self.timer.set(allowance.idle),
            Phase::Head => self.timer.set(allowance.head),
            Phase::Tunnel => self.timer.set(allowance.tunnel),
            Phase::Serving if self.half_closed.get() => self.timer.set(LISTENING),
            // While a request is served, the upstream's and the body's own deadlines rule.
            Phase::Serving => self.timer.clear(),
        }
    }

    fn read(&self, count: usize) {
        let before = self.bytes_in.replace(self.bytes_in.get() + count as u64);
        match self.phase.get() {
            Phase::Head if before == 0 && self.rests.get() => self.timer.set_at(self.until.get()),
            Phase::Idle if self.heads.get() => self.enter(Phase::Head),
            Phase::Tunnel => self.arm(),
            _ => {}
        }
    }

    fn flushed(&self) {
        self.unsent.set(false);
        if self.behind.replace(false)
            && let Some(writer) = self.writer.take()
        {
            writer.wake();
        }
        self.wrote(0);
    }

    fn wrote(&self, count: usize) {
        self.bytes_out.set(self.bytes_out.get() + count as u64);
        if self.pace.moved(self.timer.now(), count as u64) {
            self.slow.set(true);
            self.arm();
        }
        let counts = self.phase.get() == Phase::Tunnel || (count > 0 && self.half_closed.get());
        if self.blocked.replace(false) || counts {
            self.arm();
        }
    }

    /// A write waits for the peer. `moves`: it took something meanwhile.
    fn write_blocked(&self, moves: bool) {
        self.behind.set(true);
        let begins = !self.blocked.replace(true);
        if begins {
            self.pace.wait(self.timer.now());
        }
        if begins || moves {
            self.arm();
        }
    }
}

/// A stream under a watch.
pub trait Sends {
    /// Bytes that were sent, where the stream takes more in than it can send at once, as TLS does: what is written then says
    /// nothing of what the peer takes. Otherwise a number that stays.
    fn sent(&self) -> u64 {
        0
    }
}

impl Sends for Stream {
    fn sent(&self) -> u64 {
        Stream::sent(self)
    }
}

/// A stream whose reads and writes are noted in a [`Progress`].
pub struct Guarded<S, P> {
    io: S,
    progress: P,
    written: u64,
    /// See [`Sends`], as it was when a write last waited.
    sent: u64,
}

impl<S, P> Guarded<S, P> {
    /// Puts the watch on a stream.
    pub fn new(io: S, progress: P) -> Guarded<S, P> {
        Guarded { io, progress, written: 0, sent: 0 }
    }

    /// The stream below.
    pub fn stream(&self) -> &S {
        &self.io
    }

    /// Whose progress it is.
    pub fn owner(&self) -> &P {
        &self.progress
    }

    /// The same, to change it.
    pub fn stream_mut(&mut self) -> &mut S {
        &mut self.io
    }

    /// Bytes written to this stream so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// The watch.
    pub fn progress(&self) -> &Progress
    where
        P: AsRef<Progress>,
    {
        self.progress.as_ref()
    }
}

impl<S: AsyncRead + Unpin, P: AsRef<Progress> + Unpin> AsyncRead for Guarded<S, P> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let result = Pin::new(&mut this.io).poll_read(cx, buf);
        let count = buf.filled().len().saturating_sub(before);
        if count > 0 {
            this.progress.as_ref().read(count);
        }
        result
    }
}

impl<S: Sends, P: AsRef<Progress>> Guarded<S, P> {
    fn blocked(&mut self) {
        let sent = self.io.sent();
        let moves = std::mem::replace(&mut self.sent, sent) != sent;
        self.progress.as_ref().write_blocked(moves);
    }

    fn noted(&mut self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.progress.as_ref().unsent.set(true);
        match &result {
            Poll::Ready(Ok(count)) => {
                self.written += *count as u64;
                self.progress.as_ref().wrote(*count);
            }
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.blocked(),
        }
        result
    }
}

impl<P: AsRef<Progress>> Guarded<Stream, P> {
    /// As [`AsyncWrite::poll_write_vectored`], where it may wait until more is written or all is flushed: `None` where it may not.
    /// `alone`: nothing else waits.
    ///
    /// # Errors
    /// The stream's.
    pub fn queue(&mut self, bufs: &[io::IoSlice<'_>], alone: bool) -> io::Result<Option<usize>> {
        let Some(count) = self.io.queue(bufs, alone)? else { return Ok(None) };
        let _ = self.noted(Poll::Ready(Ok(count)));
        Ok(Some(count))
    }
}

impl<S: AsyncWrite + Sends + Unpin, P: AsRef<Progress> + Unpin> AsyncWrite for Guarded<S, P> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.io).poll_write(cx, buf);
        this.noted(result)
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.io).poll_write_vectored(cx, bufs);
        this.noted(result)
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.io).poll_flush(cx);
        match &result {
            // Under TLS the records wait inside the stream: a pending flush is a blocked write.
            Poll::Pending => this.blocked(),
            Poll::Ready(Ok(())) => this.progress.as_ref().flushed(),
            Poll::Ready(Err(_)) => {}
        }
        result
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;
    use std::task::Waker;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    struct Shared(Rc<Progress>);
    impl AsRef<Progress> for Shared {
        fn as_ref(&self) -> &Progress {
            &self.0
        }
    }

    impl Sends for DuplexStream {}

    /// Takes in whatever is written, as TLS does, and sends what there is room for.
    struct Piling {
        io: DuplexStream,
        piled: Vec<u8>,
        sent: u64,
    }
    impl Sends for Piling {
        fn sent(&self) -> u64 {
            self.sent
        }
    }
    impl AsyncWrite for Piling {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            self.piled.extend_from_slice(buf);
            Poll::Ready(Ok(buf.len()))
        }
        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            let this = &mut *self;
            while !this.piled.is_empty() {
                let sent = std::task::ready!(Pin::new(&mut this.io).poll_write(cx, &this.piled))?;
                this.piled.drain(..sent);
                this.sent += sent as u64;
            }
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.io).poll_shutdown(cx)
        }
    }

    fn setup(buffer: usize) -> (Wheel, Rc<Progress>, Guarded<DuplexStream, Shared>, DuplexStream) {
        let wheel = Wheel::new(Millis(0));
        let second = Duration::from_secs;
        let allowance = Allowance {
            idle: second(75),
            head: second(10),
            write: second(30),
            tunnel: second(60),
            write_rate: 100,
        };
        let progress = Rc::new(Progress::new(&wheel, allowance));
        let (ours, theirs) = tokio::io::duplex(buffer);
        (wheel, progress.clone(), Guarded::new(ours, Shared(progress)), theirs)
    }

    fn overdue(progress: &Progress) -> Option<Overdue> {
        match progress.poll_overdue(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(what) => Some(what),
            Poll::Pending => None,
        }
    }

    #[tokio::test]
    async fn regression_a_client_that_takes_a_little_at_a_time_of_what_is_encrypted_already_is_not_overdue() {
        let (wheel, progress, io, mut peer) = setup(8);
        progress.enter(Phase::Serving);
        let io = Piling { io: io.io, piled: Vec::new(), sent: 0 };
        let mut io = Guarded::new(io, Shared(progress.clone()));
        let mut cx = Context::from_waker(Waker::noop());
        io.write_all(&[0; 64]).await.unwrap();
        assert!(Pin::new(&mut io).poll_flush(&mut cx).is_pending());
        for turn in 1..7 {
            wheel.advance(Millis(turn * 25_000));
            assert_eq!(overdue(&progress), None);
            peer.read_exact(&mut [0; 8]).await.unwrap();
            assert!(Pin::new(&mut io).poll_flush(&mut cx).is_pending());
        }
        wheel.advance(Millis(7 * 25_000));
        assert_eq!(overdue(&progress), None);
        assert!(Pin::new(&mut io).poll_flush(&mut cx).is_pending(), "nobody took anything");
        wheel.advance(Millis(6 * 25_000 + 30_000));
        assert_eq!(overdue(&progress), Some(Overdue::Write));
    }

    #[tokio::test]
    async fn who_waits_for_a_request_rests_after_a_moment_and_keeps_its_deadlines() {
        let (wheel, progress, mut io, mut peer) = setup(64);
        progress.rests();
        progress.quiet(true);
        wheel.advance(Millis(400));
        assert_eq!(overdue(&progress), None);
        wheel.advance(Millis(600));
        assert_eq!(overdue(&progress), Some(Overdue::Rest));
        assert!(progress.may_rest());
        assert_eq!(overdue(&progress), None);
        // It came to nothing: it rests again, and owes its head no later.
        wheel.advance(Millis(9_000));
        progress.stir();
        wheel.advance(Millis(9_600));
        assert_eq!(overdue(&progress), Some(Overdue::Rest));
        wheel.advance(Millis(10_000));
        assert_eq!(overdue(&progress), Some(Overdue::Head));
        // Idle: the same with its own deadline.
        progress.enter(Phase::Idle);
        wheel.advance(Millis(11_000));
        assert_eq!(overdue(&progress), Some(Overdue::Rest));
        wheel.advance(Millis(84_900));
        assert_eq!(overdue(&progress), None);
        wheel.advance(Millis(85_000));
        assert_eq!(overdue(&progress), Some(Overdue::Idle));
        // What is begun does not rest.
        progress.enter(Phase::Idle);
        peer.write_all(b"G").await.unwrap();
        io.read_exact(&mut [0]).await.unwrap();
        wheel.advance(Millis(94_900));
        assert_eq!(overdue(&progress), None);
        wheel.advance(Millis(95_000));
        assert_eq!(overdue(&progress), Some(Overdue::Head));
    }

    #[tokio::test]
    async fn the_first_byte_of_a_connection_ends_its_rest_and_not_its_deadline() {
        let (wheel, progress, mut io, mut peer) = setup(64);
        progress.rests();
        wheel.advance(Millis(300));
        peer.write_all(b"G").await.unwrap();
        io.read_exact(&mut [0]).await.unwrap();
        wheel.advance(Millis(9_900));
        assert_eq!(overdue(&progress), None);
        wheel.advance(Millis(10_000));
        assert_eq!(overdue(&progress), Some(Overdue::Head));
    }

    #[tokio::test]
    async fn an_answer_that_is_not_out_keeps_a_connection_from_rest() {
        let (wheel, progress, mut io, _peer) = setup(4);
        progress.rests();
        progress.enter(Phase::Idle);
        let write = Pin::new(&mut io).poll_write(&mut Context::from_waker(Waker::noop()), b"abcd");
        assert!(write.is_ready());
        progress.quiet(true);
        wheel.advance(Millis(600));
        assert_eq!(overdue(&progress), Some(Overdue::Rest));
        assert!(!progress.may_rest());
        io.flush().await.unwrap();
        assert!(progress.may_rest());
        progress.quiet(false);
        assert!(!progress.may_rest());
    }

    #[tokio::test]
    async fn a_dripped_head_does_not_move_its_deadline() {
        let (wheel, progress, mut io, mut peer) = setup(64);
        progress.enter(Phase::Idle);
        let mut byte = [0u8; 1];
        for at in 0..11u64 {
            wheel.advance(Millis(at * 1_000));
            peer.write_all(b"G").await.unwrap();
            io.read_exact(&mut byte).await.unwrap();
        }
        assert_eq!(overdue(&progress), Some(Overdue::Head));
        assert_eq!(progress.bytes_in(), 11);
    }

    #[tokio::test]
    async fn a_peer_that_stops_reading_is_overdue_and_progress_restarts_the_deadline() {
        let (wheel, progress, mut io, mut peer) = setup(4);
        progress.enter(Phase::Serving);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut io).poll_write(&mut cx, b"abcd").is_ready());
        assert!(Pin::new(&mut io).poll_write(&mut cx, b"e").is_pending());
        wheel.advance(Millis(29_000));
        assert_eq!(overdue(&progress), None);
        peer.read_exact(&mut [0u8; 4]).await.unwrap();
        assert!(Pin::new(&mut io).poll_write(&mut cx, b"efgh").is_ready());
        wheel.advance(Millis(90_000));
        assert_eq!(overdue(&progress), None, "nothing is being written");
        assert!(Pin::new(&mut io).poll_write(&mut cx, b"i").is_pending());
        wheel.advance(Millis(120_100));
        assert_eq!(overdue(&progress), Some(Overdue::Write));
    }

    #[tokio::test]
    async fn whoever_has_more_to_write_waits_until_the_peer_took_what_there_was() {
        let (_wheel, progress, mut io, mut peer) = setup(4);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(progress.poll_taken(&cx).is_ready());
        assert!(Pin::new(&mut io).poll_write(&mut cx, b"abcd").is_ready());
        assert!(progress.poll_taken(&cx).is_ready(), "nothing waits for the peer yet");
        assert!(Pin::new(&mut io).poll_write(&mut cx, b"efgh").is_pending());
        assert!(progress.poll_taken(&cx).is_pending());
        peer.read_exact(&mut [0u8; 4]).await.unwrap();
        assert!(Pin::new(&mut io).poll_write(&mut cx, b"ef").is_ready());
        assert!(progress.poll_taken(&cx).is_pending(), "there may be more of it");
        assert!(Pin::new(&mut io).poll_flush(&mut cx).is_ready());
        assert!(progress.poll_taken(&cx).is_ready());
    }

    #[tokio::test]
    async fn a_peer_that_takes_a_byte_now_and_then_is_overdue_too() {
        let (wheel, progress, mut io, mut peer) = setup(1);
        progress.enter(Phase::Serving);
        let mut cx = Context::from_waker(Waker::noop());
        let mut at = 0;
        assert!(Pin::new(&mut io).poll_write(&mut cx, b"a").is_ready());
        while overdue(&progress).is_none() {
            assert!(at <= 60_000, "still not overdue");
            assert!(Pin::new(&mut io).poll_write(&mut cx, b"a").is_pending());
            at += 10_000;
            wheel.advance(Millis(at));
            peer.read_exact(&mut [0u8; 1]).await.unwrap();
            assert!(Pin::new(&mut io).poll_write(&mut cx, b"a").is_ready());
        }
        assert_eq!(overdue(&progress), Some(Overdue::Write));
    }

    #[tokio::test]
    async fn a_peer_that_has_said_its_last_is_answered_as_long_as_something_comes_for_it() {
        let (wheel, progress, mut io, _peer) = setup(64);
        progress.enter(Phase::Serving);
        progress.half_closed();
        let mut cx = Context::from_waker(Waker::noop());
        wheel.advance(Millis(4_000));
        assert!(Pin::new(&mut io).poll_write(&mut cx, b"a").is_ready());
        // Reading no further is no news of the peer.
        progress.half_closed();
        wheel.advance(Millis(8_000));
        assert_eq!(overdue(&progress), None);
        wheel.advance(Millis(9_100));
        assert_eq!(overdue(&progress), Some(Overdue::Gone));
    }

    #[tokio::test]
    async fn an_idle_http2_connection_stays_idle_whatever_frames_arrive() {
        let (wheel, progress, mut io, mut peer) = setup(64);
        progress.multiplexed();
        progress.enter(Phase::Idle);
        peer.write_all(b"PING").await.unwrap();
        io.read_exact(&mut [0u8; 4]).await.unwrap();
        assert_eq!(progress.phase(), Phase::Idle);
        wheel.advance(Millis(75_100));
        assert_eq!(overdue(&progress), Some(Overdue::Idle));
    }
}
