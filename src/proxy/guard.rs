//! Step 3, in front of hyper: the raw bytes of HTTP/1 requests, checked before anybody parses them.
//!
//! hyper is laxer than RFC 9112 in places (bare LF as line end, Content-Length silently dropped beside
//! Transfer-Encoding, repeated transfer codings): what it lets through, somebody behind us may read in another way.
//! [`Framer`] follows the framing of a connection byte by byte and refuses whatever has more than one reading. Only
//! bytes that passed are handed on, so both parsers agree by construction. [`Guard`] puts it between socket and hyper.
//!
//! Heads and lines of chunk framing are held until they are whole; body data passes as it comes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::base::outcome::Outcome;
pub use crate::net::http1::Step;
use crate::net::http1::{
    Chunks, Framing, Held, Length, Lines, READ, Scan, field_of_text, is_text_in_lines, is_token, mentions,
};
use crate::net::low_water::{LEAST, LowWater};
use crate::net::progress::Phase;
use crate::proxy::context::Watched;

/// Where in a connection the next byte stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In a head, or before one.
    Head,
    /// In a body with so many bytes left.
    Body(u64),
    /// In a body of chunks.
    Chunked(Chunks),
    /// Behind a request to switch protocols: what follows is another protocol's, or the next request.
    Switching,
    /// Behind a request that was the last: what follows is nobody's.
    Over,
}

/// Limits on heads.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of a head.
    pub head: usize,
    /// Bytes of a target.
    pub uri: usize,
    /// Fields of a head.
    pub fields: usize,
}

/// Follows the framing of one connection. Pure: bytes in, how many may pass or why not.
pub struct Framer {
    state: State,
    limits: Limits,
    scan: Scan,
    /// The request being read said that it is the last one.
    last: bool,
}

impl Framer {
    /// A framer at the beginning of a connection.
    pub fn new(limits: Limits) -> Framer {
        Framer { state: State::Head, limits, scan: Scan::default(), last: false }
    }

    /// The request to switch protocols was refused: what follows is the next request.
    pub fn not_switched(&mut self) {
        if self.state == State::Switching {
            self.ended();
        }
    }

    /// Whether the last request was read (RFC 9112 section 9.6: what follows it must not be looked at).
    pub fn over(&self) -> bool {
        self.state == State::Over
    }

    /// A request was read to its end.
    fn ended(&mut self) {
        self.state = if self.last { State::Over } else { State::Head };
    }

    /// Whether a request to switch protocols is pending.
    pub fn switching(&self) -> bool {
        self.state == State::Switching
    }

    /// Whether the next byte does not belong to a request that has begun.
    pub fn between(&self) -> bool {
        matches!(self.state, State::Head | State::Over)
    }

    /// Looks at the bytes that come next. Call again with what follows the bytes that passed.
    ///
    /// # Errors
    /// Why the connection must end here; nothing of `bytes` may pass.
    pub fn step(&mut self, bytes: &[u8]) -> Result<Step, Outcome> {
        match &mut self.state {
            State::Head => self.head(bytes),
            State::Body(left) => {
                let take = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= take as u64;
                if *left == 0 {
                    self.ended();
                }
                Ok(Step::Pass(take))
            }
            State::Chunked(chunks) => {
                let step = chunks.step(bytes)?;
                if chunks.done() {
                    self.ended();
                }
                Ok(step)
            }
            State::Switching | State::Over => Ok(Step::Wait),
        }
    }

    fn head(&mut self, bytes: &[u8]) -> Result<Step, Outcome> {
        // It may be the half of an empty line, which does not count as a line of the head.
        if bytes == b"\r" {
            return Ok(Step::More);
        }
        // RFC 9112 section 2.2: an empty line before a request line is ignored; one, not a stream of them.
        let skip = if bytes.starts_with(b"\r\n") { 2 } else { 0 };
        let rest = bytes.get(skip..).unwrap_or_default();
        // Looked at no further than a head may be long, so that a cut changes nothing.
        let near = rest.get(..rest.len().min(self.limits.head)).unwrap_or_default();
        let Some(end) = self.scan.end(near)? else {
            let over = rest.len() > self.limits.head;
            return if over { Err(too_large(near, &self.limits)) } else { Ok(Step::More) };
        };
        let head = near.get(..end).unwrap_or_default();
        let (state, last) = framing(head, &self.limits)?;
        (self.state, self.last, self.scan) = (state, last, Scan::default());
        if self.state == State::Head {
            self.ended();
        }
        Ok(Step::Pass(skip + end))
    }
}

/// A target alone can be longer than a whole head may be: then that is what is wrong.
fn too_large(bytes: &[u8], limits: &Limits) -> Outcome {
    let target = bytes.split(|&b| b == b' ' || b == b'\r').nth(1).map_or(0, <[u8]>::len);
    if target > limits.uri { Outcome::UriTooLong } else { Outcome::HeadTooLarge }
}

/// Reads a whole head, from the request line to the empty line, for what decides about framing. Tells what follows,
/// and whether the request is the last one.
fn framing(head: &[u8], limits: &Limits) -> Result<(State, bool), Outcome> {
    if !is_text_in_lines(head) {
        return Err(Outcome::BadRequest);
    }
    let mut lines = Lines(head);
    let http11 = request_line(lines.next().unwrap_or_default(), limits)?;
    let mut framing = Framing::default();
    let mut hosts = 0u32;
    let (mut upgrade, mut nominated) = (false, false);
    let (mut close, mut keep) = (false, false);
    let mut count = 0usize;
    for line in lines.take_while(|line| !line.is_empty()) {
        count += 1;
        let (name, value) = field_of_text(line)?;
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => hosts += 1,
            7 if name.eq_ignore_ascii_case(b"upgrade") => upgrade = true,
            10 if name.eq_ignore_ascii_case(b"connection") => {
                nominated |= mentions(value, b"upgrade");
                close |= mentions(value, b"close");
                keep |= mentions(value, b"keep-alive");
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => framing.content_length(value)?,
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                framing.transfer_encoding(value, http11)?;
            }
            _ => {}
        }
    }
    if hosts > 1 || (hosts == 0 && http11) {
        return Err(Outcome::BadHost);
    }
    if count > limits.fields {
        return Err(Outcome::HeadTooLarge);
    }
    let state = match framing.length()? {
        Length::Chunked => State::Chunked(Chunks::default()),
        Length::Bytes(length) if length > 0 => State::Body(length),
        _ if upgrade && nominated && http11 => State::Switching,
        _ => State::Head,
    };
    // RFC 9112 section 9.3.
    Ok((state, close || !(http11 || keep)))
}

/// `METHOD SP target SP HTTP/1.x` (RFC 9112 section 3): single spaces, nothing else. Tells whether it is HTTP/1.1.
fn request_line(line: &[u8], limits: &Limits) -> Result<bool, Outcome> {
    let mut parts = line.split(|&b| b == b' ');
    let (method, target, version) = (parts.next(), parts.next(), parts.next());
    let (Some(method), Some(target), Some(version), None) = (method, target, version, parts.next()) else {
        return Err(Outcome::BadRequest);
    };
    if method.is_empty() || !method.iter().all(|&b| is_token(b)) {
        return Err(Outcome::BadRequest);
    }
    if target.len() > limits.uri {
        return Err(Outcome::UriTooLong);
    }
    // `#` never belongs into a target (RFC 9112 section 3.2); a lenient reader would cut there.
    if target.is_empty() || target.iter().any(|&b| b <= b' ' || b == 0x7f || b == b'#') {
        return Err(Outcome::BadRequest);
    }
    match version {
        b"HTTP/1.1" => Ok(true),
        b"HTTP/1.0" => Ok(false),
        _ => Err(Outcome::BadRequest),
    }
}

/// A client's stream that hands on only bytes that passed the [`Framer`].
pub struct Guard {
    io: Watched,
    framer: Framer,
    held: Held,
    refused: Option<Outcome>,
    /// What was refused is the body of the request in flight: the request itself fails, and is answered for it.
    broken: bool,
    /// Bytes behind the last request were thrown away.
    wasted: bool,
    /// The client closed its side.
    ended: bool,
    /// The last read left room: nothing that was read is on its way.
    drained: bool,
    /// When bodies are read that come quickly; of whoever sent a long one.
    water: Option<Box<LowWater>>,
}

impl Guard {
    /// Guards a stream.
    pub fn new(io: Watched, limits: Limits) -> Guard {
        Guard {
            io,
            framer: Framer::new(limits),
            held: Held::default(),
            refused: None,
            broken: false,
            wasted: false,
            ended: false,
            drained: false,
            water: None,
        }
    }

    /// Why bytes that never became a request were refused, if they were.
    pub fn refused(&self) -> Option<Outcome> {
        self.refused.filter(|_| !self.broken)
    }

    /// Whether the connection stands inside a message: the client may still be sending.
    pub fn mid_message(&self) -> bool {
        !self.framer.between() || !self.held.is_empty() || self.wasted
    }

    /// Whether the guard knows nothing of the connection but its limits: no byte of a message was seen that was not
    /// handed on with all of it.
    pub fn is_blank(&self) -> bool {
        self.framer.state == State::Head && self.held.is_empty() && self.refused.is_none() && !self.ended
    }

    /// Ready when something of the client may be there to read.
    pub fn poll_arrived(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.io.stream().poll_arrived(cx)
    }

    /// The limits it keeps to.
    pub fn limits(&self) -> Limits {
        self.framer.limits
    }

    /// The stream without the guard, for bytes that nobody will parse.
    pub fn stream(&mut self) -> &mut Watched {
        &mut self.io
    }

    /// The client is waited for: what is held back for an answer goes out, unless an answer is what comes next.
    fn release(&mut self, cx: &mut Context<'_>) {
        if self.progress().phase() != Phase::Serving || !self.framer.between() {
            self.io.stream_mut().release(cx);
        }
    }

    /// Makes the end of the connection a reset.
    pub fn reset_on_close(&self) {
        self.io.stream().reset_on_close();
    }

    fn progress(&self) -> &crate::net::progress::Progress {
        self.io.progress()
    }

    fn judge(&mut self) {
        if let Err(outcome) = self.held.judge(|bytes| self.framer.step(bytes)) {
            self.refuse(outcome);
        }
    }

    /// Nothing more is read; what passed before is still handed on, because it is good.
    fn refuse(&mut self, outcome: Outcome) {
        self.refused = Some(outcome);
        self.broken = !matches!(self.framer.state, State::Head | State::Switching);
        if self.broken {
            self.io.owner().0.ending.set(outcome);
        }
        self.held.refuse();
    }

    /// Behind the last request everything is thrown away, so that the end of the connection is noticed and a reset does
    /// not take the answer with it. Ready when the client closed its side.
    fn poll_waste(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.wasted |= !self.held.is_empty();
        self.held.take();
        while ready!(self.held.poll_more(cx, &mut self.io))? > 0 {
            self.wasted = true;
            self.held.take();
        }
        Poll::Ready(Ok(()))
    }

    /// The error that ends the connection; not before the requests in flight are answered and the answers are out, or
    /// the refusal would stand in the middle of one.
    fn refusal(&self) -> Poll<io::Result<()>> {
        if !self.broken && self.progress().answering() {
            self.progress().park();
            return Poll::Pending;
        }
        Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "refused")))
    }

    /// The client closed its side. Behind a whole request that says nothing about the answer, which it may be waiting for:
    /// hyper, which would drop the request, does not hear of it before the answer is out. Inside a request it is a cut.
    fn end(&mut self) -> Poll<io::Result<()>> {
        self.ended = true;
        if self.framer.between() && self.progress().answering() {
            self.progress().half_closed();
            self.progress().park();
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }

    /// Reads what the client sent; within a long body that comes quickly not before there is much of it.
    fn poll_io(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let body = match self.framer.state {
            State::Body(due) if due >= LEAST => Some(due),
            _ => None,
        };
        if let (Some(due), true, Some(water)) = (body, self.drained, &mut self.water)
            && water.poll(cx, self.io.stream().tcp(), due).is_pending()
        {
            self.io.stream_mut().unheard();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        if read.is_ready() {
            self.drained = buf.remaining() > 0;
        }
        let count = buf.filled().len() - before;
        if body.is_some() && count > 0 {
            let progress = self.io.progress();
            self.water.get_or_insert_with(|| Box::new(LowWater::new(progress.timer()))).read(count);
        }
        read
    }

    /// While it is open whether the protocol will be switched, bytes are only kept, few of them. That the client closed its
    /// side is told afterwards, as in [`Guard::end`].
    fn poll_switching(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.progress().park();
        while self.held.len() < READ {
            if ready!(self.held.poll_more(cx, &mut self.io))? == 0 {
                self.ended = true;
                self.progress().half_closed();
                break;
            }
        }
        Poll::Pending
    }
}

impl AsyncRead for Guard {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.progress().phase() == Phase::Tunnel {
            this.held.pass_all();
            if this.held.ready() {
                this.held.hand_on(buf);
                return Poll::Ready(Ok(()));
            }
            return Pin::new(&mut this.io).poll_read(cx, buf);
        }
        loop {
            if this.held.ready() {
                this.held.hand_on(buf);
                return Poll::Ready(Ok(()));
            }
            if this.refused.is_some() {
                return this.refusal();
            }
            if this.framer.switching() {
                if this.progress().phase() == Phase::Serving {
                    return this.poll_switching(cx);
                }
                this.framer.not_switched();
                this.judge();
                continue;
            }
            if this.ended {
                return this.end();
            }
            if this.framer.over() {
                ready!(this.poll_waste(cx))?;
                return this.end();
            }
            let before = buf.filled().len();
            if this.held.is_empty() {
                let read = this.poll_io(cx, buf);
                this.progress().quiet(read.is_pending() && this.framer.state == State::Head);
                if read.is_pending() {
                    this.release(cx);
                }
                ready!(read)?;
                if buf.filled().len() == before {
                    return this.end();
                }
                let judged = this.held.judge_in_place(buf, before, |bytes| this.framer.step(bytes));
                if let Err(outcome) = judged {
                    this.refuse(outcome);
                }
                if buf.filled().len() > before {
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            // The rest of a head: gathered until it is whole. Bounded by the framer's limit on heads.
            this.drained = false;
            let more = this.held.poll_more(cx, &mut this.io);
            if more.is_pending() {
                this.release(cx);
            }
            if ready!(more)? == 0 {
                return this.end();
            }
            this.judge();
        }
    }
}

impl AsyncWrite for Guard {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
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
mod tests;
