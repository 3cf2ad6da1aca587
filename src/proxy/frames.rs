//! Step 3, in front of h2: the frames of an HTTP/2 client, counted before anybody works for them.
//!
//! h2 bounds what a single frame or stream may cost, and not how many there may be: pings, settings, empty data,
//! priorities, window updates of one byte and resets are legal one by one and a flood together (CVE-2019-9511 to -9518,
//! CVE-2023-44487, CVE-2025-8671). [`Frames`] reads the nine bytes before each frame's payload and keeps a budget for
//! each kind; nothing else is parsed here. [`Watch`] puts it between socket and hyper. Whoever exceeds a budget is told
//! so with GOAWAY (RFC 9113 section 6.8, `ENHANCE_YOUR_CALM`) and not listened to any more; what is in flight ends with
//! the connection, and the client's next ones [wait](crate::proxy::penalty).

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::base::address::ClientKey;
use crate::base::clock::Millis;
use crate::base::outcome::Outcome;
use crate::net::timer::Timer;
use crate::proxy::context::{self, Connection, Watched};
use crate::proxy::packets::Packets;
use crate::proxy::{Worker, enforce, reset};
use crate::telemetry::metric::Counter;

/// What a client sends before its first frame (RFC 9113 section 3.4).
const PREFACE: usize = 24;
/// Length of a frame's header (RFC 9113 section 4.1).
const HEADER: usize = 9;
/// Bytes that we sent for which a client may send one more window update: none needs one that often.
const BYTES_PER_UPDATE: u64 = 256;
/// What is still read, and thrown away, of a client that was told to go, and for how long: closing on unread bytes
/// would reset the connection, and take the GOAWAY with it.
const WASTE_MAX: usize = 1024 * 1024;
const WASTE_TIME: Duration = Duration::from_secs(1);
/// Streams of one connection that may be given up because the client took nothing of them.
const STALLS_MAX: u32 = 8;

/// What there was too much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flood {
    /// RST_STREAM.
    Resets,
    /// PING.
    Pings,
    /// SETTINGS.
    Settings,
    /// DATA without a byte and without an end.
    EmptyData,
    /// WINDOW_UPDATE.
    WindowUpdates,
    /// PRIORITY.
    Priorities,
    /// CONTINUATION.
    Continuations,
    /// Frames of kinds nobody knows.
    Unknown,
    /// Streams of which the client took nothing until they were given up.
    Stalls,
    /// What h2 itself has too much of.
    Excess,
}

impl Flood {
    /// Where it is counted.
    pub fn counter(self) -> Counter {
        match self {
            Flood::Resets => Counter::FloodResets,
            Flood::Pings => Counter::FloodPings,
            Flood::Settings => Counter::FloodSettings,
            Flood::EmptyData => Counter::FloodEmptyData,
            Flood::WindowUpdates => Counter::FloodWindowUpdates,
            Flood::Priorities => Counter::FloodPriorities,
            Flood::Continuations => Counter::FloodContinuations,
            Flood::Unknown => Counter::FloodUnknown,
            Flood::Stalls => Counter::FloodStalls,
            Flood::Excess => Counter::FloodExcess,
        }
    }

    /// What GOAWAY says to whoever debugs the client.
    fn words(self) -> &'static [u8] {
        match self {
            Flood::Resets => b"too many streams were reset",
            Flood::Pings => b"too many PING frames",
            Flood::Settings => b"too many SETTINGS frames",
            Flood::EmptyData => b"too many empty DATA frames",
            Flood::WindowUpdates => b"too many WINDOW_UPDATE frames",
            Flood::Priorities => b"too many PRIORITY frames",
            Flood::Continuations => b"too many CONTINUATION frames",
            Flood::Unknown => b"too many frames of unknown kinds",
            Flood::Stalls => b"too many streams were left unread",
            Flood::Excess => b"too much",
        }
    }
}

/// A budget: so many at once, and so many more with each second.
#[derive(Debug, Clone, Copy)]
struct Budget {
    flood: Flood,
    burst: u64,
    per_second: u64,
}

/// Budgets of the kinds whose number nobody configures. An honest client stays far below: Firefox opens with six
/// PRIORITY frames, gRPC pings a few times a second to measure the bandwidth, and no client changes its settings often.
const BUDGETS: [Budget; KINDS] = [
    Budget { flood: Flood::Resets, burst: 0, per_second: 0 },
    Budget { flood: Flood::Pings, burst: 200, per_second: 20 },
    Budget { flood: Flood::Settings, burst: 50, per_second: 2 },
    Budget { flood: Flood::EmptyData, burst: 200, per_second: 20 },
    Budget { flood: Flood::WindowUpdates, burst: 2_000, per_second: 200 },
    Budget { flood: Flood::Priorities, burst: 1_000, per_second: 100 },
    Budget { flood: Flood::Continuations, burst: 200, per_second: 20 },
    Budget { flood: Flood::Unknown, burst: 200, per_second: 20 },
];
const KINDS: usize = 8;

/// A stream that was open this long was no rapid reset, whatever ends it: its request was asked for in earnest, and
/// a client whose deadline passes cancels all that it has.
const YOUNG: u64 = 1_000;

/// What a client may reset.
#[derive(Debug, Clone, Copy)]
pub struct Resets {
    /// Young streams in a second, in the long run.
    pub per_second: u32,
    /// Streams that it may have open: so many may be cancelled at one moment, and a second's worth more.
    pub open: u32,
}

impl Resets {
    fn burst(self) -> u64 {
        u64::from(self.per_second).saturating_add(u64::from(self.open))
    }
}

/// Tells young streams from old ones without keeping a time for each.
struct Ages {
    /// Streams up to this one were opened more than [`YOUNG`] ago.
    old: u32,
    /// Streams up to this one were opened before `at`.
    seen: u32,
    at: Millis,
}

impl Ages {
    /// Called before a stream is opened or judged. `last`: the last one opened so far.
    fn turn(&mut self, last: u32, now: Millis) {
        let passed = now.0.saturating_sub(self.at.0);
        if passed >= YOUNG {
            // Had a stream been opened after the first `YOUNG`, this would have been called then.
            self.old = if passed >= 2 * YOUNG { last } else { self.seen };
            (self.seen, self.at) = (last, now);
        }
    }
}

/// What is left of a budget, in thousandths of a frame.
#[derive(Debug, Clone, Copy)]
struct Left {
    thousandths: u64,
    at: Millis,
}

/// Where in a sequence of frames the next byte stands.
#[derive(Default)]
struct Place {
    header: [u8; HEADER],
    /// Bytes of the header that are here.
    filled: usize,
    /// Bytes of preface or payload still to come.
    skip: u64,
}

impl Place {
    /// Takes bytes up to the end of a header, or all of them; tells whether a header is whole, and what is left.
    fn advance<'a>(&mut self, bytes: &'a [u8]) -> (bool, &'a [u8]) {
        let over = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
        self.skip -= over as u64;
        let bytes = bytes.get(over..).unwrap_or_default();
        let take = if self.skip > 0 { 0 } else { (HEADER - self.filled).min(bytes.len()) };
        let (part, rest) = bytes.split_at_checked(take).unwrap_or((bytes, &[]));
        if let Some(place) = self.header.get_mut(self.filled..self.filled + take) {
            place.copy_from_slice(part);
        }
        self.filled += take;
        if self.filled < HEADER {
            return (false, rest);
        }
        self.filled = 0;
        let [l0, l1, l2, ..] = self.header;
        self.skip = u64::from(u32::from_be_bytes([0, l0, l1, l2]));
        (true, rest)
    }

    /// Takes all of the bytes; gives the lengths of the DATA frames that begin in them.
    fn pass(&mut self, mut bytes: &[u8]) -> u64 {
        let mut data = 0;
        while !bytes.is_empty() {
            let whole;
            (whole, bytes) = self.advance(bytes);
            if whole && self.header.get(3) == Some(&0x0) {
                data += self.skip;
            }
        }
        data
    }

    /// Whether a frame may begin here.
    fn is_border(&self) -> bool {
        self.skip == 0 && self.filled == 0
    }
}

/// Counts the frames of one client. Pure: bytes and time in, a flood out.
pub struct Frames {
    place: Place,
    /// The highest stream the client opened (RFC 9113 section 5.1.1).
    last_stream: u32,
    ages: Ages,
    resets: Resets,
    /// When a young stream was last reset.
    reset_at: Option<Millis>,
    left: [Left; KINDS],
    /// Bytes sent when window updates last earned something.
    sent: u64,
}

impl Frames {
    /// At the beginning of a connection.
    pub fn new(now: Millis, resets: Resets) -> Frames {
        let mut frames = Frames {
            place: Place { skip: PREFACE as u64, ..Place::default() },
            last_stream: 0,
            ages: Ages { old: 0, seen: 0, at: now },
            resets,
            reset_at: None,
            left: [Left { thousandths: 0, at: now }; KINDS],
            sent: 0,
        };
        for (index, budget) in BUDGETS.iter().enumerate() {
            let burst = frames.resolved(budget).burst;
            if let Some(left) = frames.left.get_mut(index) {
                left.thousandths = burst.saturating_mul(1_000);
            }
        }
        frames
    }

    /// The highest stream the client opened.
    pub fn last_stream(&self) -> u32 {
        self.last_stream
    }

    /// Looks at the bytes that came next. `sent`: bytes written to the client so far.
    ///
    /// # Errors
    /// The budget that is used up.
    pub fn read(&mut self, mut bytes: &[u8], now: Millis, sent: u64) -> Result<(), Flood> {
        while !bytes.is_empty() {
            let whole;
            (whole, bytes) = self.place.advance(bytes);
            if whole {
                self.frame(now, sent)?;
            }
        }
        Ok(())
    }

    /// A header is whole (RFC 9113 section 4.1): length, kind, flags, stream.
    fn frame(&mut self, now: Millis, sent: u64) -> Result<(), Flood> {
        let [_, _, _, kind, flags, s0, s1, s2, s3] = self.place.header;
        let length = self.place.skip;
        let stream = u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]);
        const END_STREAM: u8 = 0x1;
        const ACK: u8 = 0x1;
        // RFC 9113 section 6; an acknowledgement answers a frame of ours.
        let counted = match kind {
            0x0 if length == 0 && flags & END_STREAM == 0 => Flood::EmptyData,
            0x1 => {
                self.ages.turn(self.last_stream, now);
                self.last_stream = self.last_stream.max(stream);
                return Ok(());
            }
            0x2 => Flood::Priorities,
            0x3 => {
                self.ages.turn(self.last_stream, now);
                if stream <= self.ages.old {
                    return Ok(());
                }
                self.reset_at = Some(now);
                Flood::Resets
            }
            0x4 if flags & ACK == 0 => Flood::Settings,
            0x6 if flags & ACK == 0 => Flood::Pings,
            0x8 => {
                self.earn_updates(sent);
                Flood::WindowUpdates
            }
            0x9 => Flood::Continuations,
            // PUSH_PROMISE and GOAWAY end the connection or begin its end: h2 sees to them.
            0x0 | 0x4 | 0x5 | 0x6 | 0x7 => return Ok(()),
            _ => Flood::Unknown,
        };
        self.spend(counted, now)
    }

    /// A client that takes much may widen its windows as often as that needs.
    fn earn_updates(&mut self, sent: u64) {
        let earned = sent.saturating_sub(self.sent) / BYTES_PER_UPDATE;
        if earned == 0 {
            return;
        }
        self.sent = sent;
        self.refund(Flood::WindowUpdates, earned.saturating_mul(1_000));
    }

    fn refund(&mut self, flood: Flood, thousandths: u64) {
        for (budget, left) in BUDGETS.iter().zip(&mut self.left) {
            if budget.flood == flood {
                // What is earned by taking bytes is kept beyond the burst, and no further than one more of it.
                let most = budget.burst.saturating_mul(2_000);
                left.thousandths =
                    left.thousandths.saturating_add(thousandths).min(most.max(left.thousandths));
            }
        }
    }

    fn spend(&mut self, flood: Flood, now: Millis) -> Result<(), Flood> {
        for index in 0..KINDS {
            let Some(budget) = BUDGETS.get(index).filter(|budget| budget.flood == flood) else { continue };
            let Budget { burst, per_second, .. } = self.resolved(budget);
            let Some(left) = self.left.get_mut(index) else { continue };
            // A thousandth of a frame for each millisecond and frame per second.
            let earned = now.0.saturating_sub(left.at.0).saturating_mul(per_second);
            let most = burst.saturating_mul(1_000).max(left.thousandths);
            left.thousandths = left.thousandths.saturating_add(earned).min(most);
            left.at = now;
            left.thousandths = left.thousandths.checked_sub(1_000).ok_or(flood)?;
        }
        Ok(())
    }

    fn resolved(&self, budget: &Budget) -> Budget {
        match budget.flood {
            Flood::Resets => Budget {
                burst: self.resets.burst(),
                per_second: u64::from(self.resets.per_second),
                ..*budget
            },
            _ => *budget,
        }
    }
}

/// A client's stream under HTTP/2, with its frames counted.
pub struct Watch {
    io: Packets<context::Watch>,
    worker: Rc<Worker>,
    connection: Rc<Connection>,
    frames: Frames,
    /// Follows what is written, to know whether a frame of our own may begin.
    written: Place,
    /// Set once the client was told to go: what it may still send is thrown away.
    ending: Option<Ending>,
}

impl Drop for Watch {
    /// hyper does not give the stream of an HTTP/2 connection back.
    fn drop(&mut self) {
        if self.connection.reset.get() {
            self.io.stream().reset_on_close();
        }
    }
}

struct Ending {
    /// GOAWAY, as far as it is not written.
    goodbye: Vec<u8>,
    waste: usize,
    patience: Timer,
}

impl Watch {
    /// Watches a stream.
    pub fn new(io: Watched, worker: &Rc<Worker>, connection: &Rc<Connection>, resets: Resets) -> Watch {
        Watch {
            io: Packets::new(io, connection.held.clone()),
            frames: Frames::new(worker.wheel.now(), resets),
            written: Place::default(),
            ending: None,
            worker: worker.clone(),
            connection: connection.clone(),
        }
    }

    /// The client is told to go and not listened to any more.
    fn refuse(&mut self, flood: Flood) {
        account(&self.worker, &self.connection, flood);
        let patience = self.worker.wheel.timer();
        patience.set(WASTE_TIME);
        let goodbye = goaway(self.frames.last_stream(), flood.words());
        self.ending = Some(Ending { goodbye, waste: 0, patience });
    }

    /// Writes GOAWAY where a frame may begin, and reads on for a moment so that it arrives; then the connection ends.
    fn poll_ending(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let Some(ending) = &mut self.ending else { return Poll::Pending };
        let over = || Poll::Ready(io::Error::new(io::ErrorKind::InvalidData, "flood"));
        while self.written.is_border() && !ending.goodbye.is_empty() {
            match Pin::new(&mut self.io).poll_write(cx, &ending.goodbye) {
                Poll::Ready(Ok(count)) if count > 0 => drop(ending.goodbye.drain(..count)),
                Poll::Ready(_) => return over(),
                Poll::Pending => break,
            }
        }
        // Not waited for: a client that floods may not read either.
        let _ = Pin::new(&mut self.io).poll_flush(cx);
        let mut waste = [0u8; 4096];
        while ending.waste < WASTE_MAX {
            let mut buf = ReadBuf::new(&mut waste);
            match Pin::new(&mut self.io).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => ending.waste += buf.filled().len(),
                Poll::Ready(_) => return over(),
                Poll::Pending if ending.patience.poll_expired(cx).is_ready() => return over(),
                Poll::Pending => return Poll::Pending,
            }
        }
        over()
    }
}

/// A connection ends because of a flood: it is counted, and the next ones of its client wait.
fn account(worker: &Worker, connection: &Connection, flood: Flood) {
    worker.shard.add(flood.counter(), 1);
    worker.shard.outcome_only(Outcome::ClientFlood);
    connection.ending.set(Outcome::ClientFlood);
    let ip = connection.client.ip();
    tracing::debug!(client = %ip, "HTTP/2 connection closed: {flood:?}");
    // A trusted proxy brings many clients.
    if connection.trusted {
        return;
    }
    let snapshot = worker.snapshot();
    enforce::note(worker, &snapshot, None, ip, Outcome::ClientFlood);
    // Streams are left unread by whoever loses its network, too, and slowly.
    if flood != Flood::Stalls {
        worker.penalties.flooded(ClientKey::of(ip), worker.wheel.now(), snapshot.server.limits.flood_delay);
    }
}

/// h2 may have closed the connection because of a flood that is none for the budgets here: fields or CONTINUATION frames
/// without end, DATA of a few bytes each, streams that it had to reset itself (CVE-2025-8671).
pub fn ended(worker: &Worker, connection: &Connection, error: &hyper::Error) {
    if !connection.flooded() && reset::is_calmed(error) {
        account(worker, connection, Flood::Excess);
    }
}

/// RFC 9113 section 6.8.
fn goaway(last_stream: u32, words: &[u8]) -> Vec<u8> {
    const GOAWAY: u8 = 0x7;
    /// RFC 9113 section 7.
    const ENHANCE_YOUR_CALM: u32 = 0xb;
    let length = u32::try_from(8 + words.len()).unwrap_or(8).to_be_bytes();
    let mut frame = length.get(1..).unwrap_or_default().to_vec();
    frame.extend([GOAWAY, 0, 0, 0, 0, 0]);
    frame.extend(last_stream.to_be_bytes());
    frame.extend(ENHANCE_YOUR_CALM.to_be_bytes());
    frame.extend(words);
    frame
}

impl AsyncRead for Watch {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.ending.is_none() {
            if this.connection.stalls.get() > STALLS_MAX {
                this.refuse(Flood::Stalls);
            } else {
                let before = buf.filled().len();
                ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
                let fresh = buf.filled().get(before..).unwrap_or_default();
                let sent = this.connection.progress.bytes_out();
                let read = this.frames.read(fresh, this.worker.wheel.now(), sent);
                this.connection.reset_at.set(this.frames.reset_at);
                match read {
                    Ok(()) => return Poll::Ready(Ok(())),
                    Err(flood) => this.refuse(flood),
                }
                // Nothing of what came with the flood is worked on.
                buf.set_filled(before);
            }
        }
        this.poll_ending(cx).map(Err)
    }
}

impl AsyncWrite for Watch {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let count = ready!(Pin::new(&mut this.io).poll_write(cx, buf))?;
        let data = this.written.pass(buf.get(..count).unwrap_or_default());
        this.connection.backlog.wrote(data);
        Poll::Ready(Ok(count))
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let count = ready!(Pin::new(&mut this.io).poll_write_vectored(cx, bufs))?;
        let mut left = count;
        for buf in bufs {
            let part = buf.get(..buf.len().min(left)).unwrap_or_default();
            let data = this.written.pass(part);
            this.connection.backlog.wrote(data);
            left -= part.len();
        }
        Poll::Ready(Ok(count))
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
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
    use proptest::prelude::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut out = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        out.extend([kind, flags]);
        out.extend(stream.to_be_bytes());
        out.extend(payload);
        out
    }

    const RESETS: Resets = Resets { per_second: 100, open: 128 };

    fn fresh() -> Frames {
        let mut frames = Frames::new(Millis(0), RESETS);
        frames.read(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Millis(0), 0).unwrap();
        frames
    }

    /// Frames of this kind until the flood is noticed.
    fn until(frames: &mut Frames, bytes: &[u8], now: u64) -> (u64, Option<Flood>) {
        for count in 0..100_000 {
            if let Err(flood) = frames.read(bytes, Millis(now), 0) {
                // Nobody reads on behind a flood but this test: the payload was not.
                frames.place.skip = 0;
                return (count, Some(flood));
            }
        }
        (100_000, None)
    }

    #[test]
    fn each_kind_has_its_budget_and_time_gives_it_back() {
        for (bytes, flood, burst, per_second) in [
            (frame(3, 0, 1, &[0; 4]), Flood::Resets, 228, 100),
            (frame(6, 0, 0, &[0; 8]), Flood::Pings, 200, 20),
            (frame(4, 0, 0, &[]), Flood::Settings, 50, 2),
            (frame(0, 0, 1, &[]), Flood::EmptyData, 200, 20),
            (frame(8, 0, 0, &[0, 0, 0, 1]), Flood::WindowUpdates, 2_000, 200),
            (frame(2, 0, 1, &[0; 5]), Flood::Priorities, 1_000, 100),
            (frame(9, 0, 1, &[]), Flood::Continuations, 200, 20),
            (frame(0xbe, 0, 0, b"grease"), Flood::Unknown, 200, 20),
        ] {
            let mut frames = fresh();
            assert_eq!(until(&mut frames, &bytes, 0), (burst, Some(flood)));
            assert_eq!(until(&mut frames, &bytes, 1_000), (per_second, Some(flood)));
            // A month of quiet earns no more than the burst.
            assert_eq!(until(&mut frames, &bytes, 3_000_000_000), (burst, Some(flood)));
            assert!(frames.read(&frame(1, 5, 7, &[0x82]), Millis(0), 0).is_ok(), "requests are not counted");
            assert_eq!(frames.last_stream(), 7);
        }
    }

    #[test]
    fn streams_that_were_open_for_long_are_cancelled_for_free() {
        let mut frames = fresh();
        let reset = |stream| frame(3, 0, stream, &[0; 4]);
        // A client whose every request meets its deadline of 1.5 s, and then asks again: 128 at once.
        let mut next = 1;
        for round in 0..20u64 {
            for stream in (next..next + 256).step_by(2) {
                frames.read(&frame(1, 5, stream, &[0x82]), Millis(round * 1_500), 0).unwrap();
            }
            for stream in (next..next + 256).step_by(2) {
                frames.read(&reset(stream), Millis(round * 1_500 + 1_500), 0).unwrap();
            }
            next += 256;
        }
        // The same at once, or within the second, is a flood; so are streams that were never opened.
        for late in [0, 900] {
            let mut frames = fresh();
            let floods = (0..600u32).find_map(|n| {
                frames.read(&frame(1, 5, 2 * n + 1, &[0x82]), Millis(0), 0).unwrap();
                frames.read(&reset(2 * n + 1), Millis(if n == 0 { 0 } else { late }), 0).err().map(|_| n)
            });
            assert!(floods.is_some_and(|n| (228..320).contains(&n)), "{late}: {floods:?}");
        }
        assert!(until(&mut fresh(), &reset(7), 5_000).1.is_some());
    }

    #[test]
    fn what_answers_us_or_carries_something_is_free() {
        for bytes in [
            frame(6, 1, 0, &[0; 8]),
            frame(4, 1, 0, &[]),
            frame(0, 0, 1, b"data"),
            frame(0, 1, 1, &[]),
            frame(1, 5, 1, &[0x82]),
        ] {
            assert_eq!(until(&mut fresh(), &bytes, 0).1, None, "{bytes:?}");
        }
    }

    #[test]
    fn a_client_that_downloads_may_widen_its_window_as_often_as_that_needs() {
        let (mut frames, update) = (fresh(), frame(8, 0, 0, &[0, 0, 16, 0]));
        // Every 4 KiB, on the stream and on the connection, ten thousand times in no time at all.
        for turn in 1..=10_000u64 {
            frames.read(&update, Millis(0), turn * 4_096).unwrap();
            frames.read(&update, Millis(0), turn * 4_096).unwrap();
        }
        // One byte at a time is another matter.
        let mut frames = fresh();
        let mut turn = 0;
        while frames.read(&update, Millis(0), turn * 10).is_ok() {
            turn += 1;
        }
        assert!(turn < 2_200, "{turn}");
    }

    #[test]
    fn goaway_says_which_stream_was_the_last_and_why() {
        let frame = goaway(9, b"why");
        assert_eq!(frame, [&[0, 0, 11, 7, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 11][..], b"why"].concat());
    }

    proptest! {
        #[test]
        fn pieces_of_any_size_are_read_alike(cuts in prop::collection::vec(1usize..40, 1..60)) {
            let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
            for stream in 0..40 {
                bytes.extend(frame(1, 4, 2 * stream + 1, &[0x82; 30]));
                bytes.extend(frame(0, 0, 2 * stream + 1, &[7; 50]));
            }
            bytes.extend(frame(6, 0, 0, &[0; 8]).repeat(250));
            let mut whole = Frames::new(Millis(0), RESETS);
            prop_assert_eq!(whole.read(&bytes, Millis(0), 0), Err(Flood::Pings));
            let (mut pieces, mut border, mut rest, mut found) =
                (Frames::new(Millis(0), RESETS), Place::default(), &bytes[..], Ok(()));
            for cut in cuts.iter().cycle() {
                if rest.is_empty() || found.is_err() {
                    break;
                }
                let (piece, after) = rest.split_at((*cut).min(rest.len()));
                found = pieces.read(piece, Millis(0), 0);
                rest = after;
            }
            prop_assert_eq!(found, Err(Flood::Pings));
            prop_assert_eq!(pieces.last_stream(), whole.last_stream());
            let data: u64 = bytes[PREFACE..].chunks(cuts[0]).map(|piece| border.pass(piece)).sum();
            prop_assert_eq!(data, 40 * 50);
            prop_assert!(border.is_border());
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), now in any::<u64>(), sent in any::<u64>()) {
            let resets = Resets { per_second: u32::MAX, open: u32::MAX };
            let _ = Frames::new(Millis(0), resets).read(&bytes, Millis(now), sent);
        }
    }
}
