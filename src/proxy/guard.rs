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
use crate::net::stream::Phase;
use crate::proxy::context::Watched;

/// Bytes of extensions and of the size in one chunk line (RFC 9112 section 7.1.1 lets recipients bound them).
const CHUNK_LINE_MAX: usize = 256;
/// Bytes of a trailer section.
const TRAILERS_MAX: usize = 8 * 1024;
/// Bytes of bodies and pipelined heads read in one go.
const READ: usize = 16 * 1024;

/// Where in a connection the next byte stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In a head, or before one.
    Head,
    /// In a body with so many bytes left.
    Body(u64),
    /// In a chunk line.
    ChunkLine,
    /// In chunk data with so many bytes left, the line end behind it included.
    ChunkData(u64),
    /// In the trailer section.
    Trailers,
    /// Behind a request to switch protocols: what follows is another protocol's, or the next request.
    Switching,
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
    trailers: usize,
    /// In a head that is not whole: where its last line begins, and how far it was looked at. A dripped head is
    /// scanned once, not once per byte.
    scanned: (usize, usize),
}

/// What may be done with bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// So many bytes from the front may pass.
    Pass(usize),
    /// A head or a line that is not whole yet: more is needed before any of it may pass.
    More,
    /// Nothing may pass before it is known how a request to switch protocols ended.
    Wait,
}

impl Framer {
    /// A framer at the beginning of a connection.
    pub fn new(limits: Limits) -> Framer {
        Framer { state: State::Head, limits, trailers: 0, scanned: (0, 0) }
    }

    /// The request to switch protocols was refused: what follows is the next request.
    pub fn not_switched(&mut self) {
        if self.state == State::Switching {
            self.state = State::Head;
        }
    }

    /// Whether a request to switch protocols is pending.
    pub fn switching(&self) -> bool {
        self.state == State::Switching
    }

    /// Looks at the bytes that come next. Call again with what follows the bytes that passed.
    ///
    /// # Errors
    /// Why the connection must end here; nothing of `bytes` may pass.
    pub fn step(&mut self, bytes: &[u8]) -> Result<Step, Outcome> {
        match self.state {
            State::Head => self.head(bytes),
            State::Body(left) => Ok(self.counted(bytes, left, State::Head, State::Body)),
            State::ChunkData(left) => self.chunk_data(bytes, left),
            State::ChunkLine => self.lined(bytes, CHUNK_LINE_MAX, Framer::chunk_line),
            State::Trailers => self.lined(bytes, TRAILERS_MAX, Framer::trailer),
            State::Switching => Ok(Step::Wait),
        }
    }

    fn counted(&mut self, bytes: &[u8], left: u64, done: State, more: fn(u64) -> State) -> Step {
        let take = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        let left = left - take as u64;
        self.state = if left == 0 { done } else { more(left) };
        Step::Pass(take)
    }

    fn head(&mut self, bytes: &[u8]) -> Result<Step, Outcome> {
        // RFC 9112 section 2.2: an empty line before a request line is ignored; one, not a stream of them.
        let skip = if bytes.starts_with(b"\r\n") { 2 } else { 0 };
        let rest = bytes.get(skip..).unwrap_or_default();
        let Some(end) = find_end(rest, &mut self.scanned)? else {
            if rest.len() > self.limits.head {
                return Err(too_large(rest, &self.limits));
            }
            return Ok(Step::More);
        };
        let head = rest.get(..end).unwrap_or_default();
        if end > self.limits.head {
            return Err(too_large(head, &self.limits));
        }
        self.state = framing(head, &self.limits)?;
        self.trailers = 0;
        self.scanned = (0, 0);
        Ok(Step::Pass(skip + end))
    }

    /// The two bytes behind chunk data are its line end (RFC 9112 section 7.1).
    fn chunk_data(&mut self, bytes: &[u8], left: u64) -> Result<Step, Outcome> {
        let take = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        let data = usize::try_from(left.saturating_sub(2)).unwrap_or(usize::MAX);
        for (offset, &byte) in bytes.iter().enumerate().take(take).skip(data) {
            // Position from the end: 2 is CR, 1 is LF.
            let expected = if left - offset as u64 == 2 { b'\r' } else { b'\n' };
            if byte != expected {
                return Err(Outcome::BadFraming);
            }
        }
        Ok(self.counted(bytes, left, State::ChunkLine, State::ChunkData))
    }

    /// Hands a line to `judge` without its end, once it is whole.
    fn lined(
        &mut self,
        bytes: &[u8],
        max: usize,
        judge: fn(&mut Framer, &[u8]) -> Result<(), Outcome>,
    ) -> Result<Step, Outcome> {
        // Looked at no further than a line may be long: what is held of it stays small.
        let near = bytes.get(..bytes.len().min(max)).unwrap_or_default();
        let Some(end) = memchr::memchr(b'\n', near) else {
            return if bytes.len() >= max { Err(Outcome::BadFraming) } else { Ok(Step::More) };
        };
        let line = near.get(..end).and_then(|line| line.strip_suffix(b"\r")).ok_or(Outcome::BadFraming)?;
        judge(self, line)?;
        Ok(Step::Pass(end + 1))
    }

    fn chunk_line(&mut self, line: &[u8]) -> Result<(), Outcome> {
        let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
        let (size, extension) = line.split_at_checked(digits).ok_or(Outcome::BadFraming)?;
        // 15 digits: far beyond any body, and no overflow.
        if size.is_empty() || size.len() > 15 {
            return Err(Outcome::BadFraming);
        }
        if !extension.is_empty() && (!extension.starts_with(b";") || !extension.iter().all(|&b| is_text(b))) {
            return Err(Outcome::BadFraming);
        }
        let size = std::str::from_utf8(size).ok().and_then(|text| u64::from_str_radix(text, 16).ok());
        self.state = match size.ok_or(Outcome::BadFraming)? {
            0 => State::Trailers,
            size => State::ChunkData(size + 2),
        };
        Ok(())
    }

    fn trailer(&mut self, line: &[u8]) -> Result<(), Outcome> {
        if line.is_empty() {
            self.state = State::Head;
            return Ok(());
        }
        self.trailers += line.len();
        if self.trailers > TRAILERS_MAX {
            return Err(Outcome::HeadTooLarge);
        }
        let (name, _) = field(line)?;
        // RFC 9110 section 6.5.1: fields that frame, route or authenticate have no place behind a body.
        let forbidden: [&[u8]; 5] =
            [b"content-length", b"transfer-encoding", b"host", b"authorization", b"trailer"];
        if forbidden.iter().any(|known| name.eq_ignore_ascii_case(known)) {
            return Err(Outcome::BadFraming);
        }
        Ok(())
    }
}

/// The end of a head: behind the first empty line. Every line end must be CR LF, and no CR or NUL may stand anywhere
/// else (RFC 9112 section 2.2, RFC 9110 section 5.5).
fn find_end(bytes: &[u8], scanned: &mut (usize, usize)) -> Result<Option<usize>, Outcome> {
    let (mut start, mut from) = *scanned;
    while let Some(length) = bytes.get(from..).and_then(|rest| memchr::memchr(b'\n', rest)) {
        let end = from + length;
        let line = bytes.get(start..end).unwrap_or_default();
        let Some(line) = line.strip_suffix(b"\r") else { return Err(Outcome::BadRequest) };
        (start, from) = (end + 1, end + 1);
        if line.is_empty() {
            return Ok(Some(start));
        }
    }
    *scanned = (start, bytes.len());
    Ok(None)
}

/// A target alone can be longer than a whole head may be: then that is what is wrong.
fn too_large(bytes: &[u8], limits: &Limits) -> Outcome {
    let target = bytes.split(|&b| b == b' ' || b == b'\r').nth(1).map_or(0, <[u8]>::len);
    if target > limits.uri { Outcome::UriTooLong } else { Outcome::HeadTooLarge }
}

/// Reads a whole head, from the request line to the empty line, for what decides about framing.
fn framing(head: &[u8], limits: &Limits) -> Result<State, Outcome> {
    let mut lines = Lines(head);
    let http11 = request_line(lines.next().unwrap_or_default(), limits)?;
    let mut length: Option<u64> = None;
    let mut chunked = false;
    let mut hosts = 0u32;
    let (mut upgrade, mut nominated) = (false, false);
    let mut count = 0usize;
    for line in lines.take_while(|line| !line.is_empty()) {
        count += 1;
        let (name, value) = field(line)?;
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => hosts += 1,
            7 if name.eq_ignore_ascii_case(b"upgrade") => upgrade = true,
            10 if name.eq_ignore_ascii_case(b"connection") => nominated |= mentions(value, b"upgrade"),
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                // RFC 9112 section 6.3: one length or none; a list or a repetition is refused even where it agrees.
                let repeated = length.replace(digits(value)?).is_some();
                if repeated {
                    return Err(Outcome::BadFraming);
                }
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                // RFC 9112 section 6.1: HTTP/1.0 knows none, and chunked is the only coding we can frame by.
                if chunked || !http11 || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Outcome::BadFraming);
                }
                chunked = true;
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
    match (chunked, length) {
        (true, Some(_)) => Err(Outcome::BadFraming),
        (true, None) => Ok(State::ChunkLine),
        (false, Some(length)) if length > 0 => Ok(State::Body(length)),
        _ if upgrade && nominated && http11 => Ok(State::Switching),
        _ => Ok(State::Head),
    }
}

/// The lines of a head without their ends.
struct Lines<'a>(&'a [u8]);

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let end = memchr::memchr(b'\n', self.0)?;
        let (line, rest) = self.0.split_at_checked(end + 1)?;
        self.0 = rest;
        line.strip_suffix(b"\r\n")
    }
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

/// `name ":" OWS value OWS` (RFC 9112 section 5): no space before the colon, no folding, no control characters.
fn field(line: &[u8]) -> Result<(&[u8], &[u8]), Outcome> {
    let colon = memchr::memchr(b':', line).ok_or(Outcome::BadRequest)?;
    let (name, rest) = line.split_at_checked(colon).ok_or(Outcome::BadRequest)?;
    let value = rest.get(1..).unwrap_or_default();
    // A folded line begins with white space: that is no token either.
    if name.is_empty() || !name.iter().all(|&b| is_token(b)) || !all_text(value) {
        return Err(Outcome::BadRequest);
    }
    Ok((name, value.trim_ascii()))
}

fn digits(value: &[u8]) -> Result<u64, Outcome> {
    if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
        return Err(Outcome::BadFraming);
    }
    let text = std::str::from_utf8(value).map_err(|_| Outcome::BadFraming)?;
    text.parse().map_err(|_| Outcome::BadFraming)
}

fn mentions(value: &[u8], token: &[u8]) -> bool {
    value.split(|&b| b == b',').any(|part| part.trim_ascii().eq_ignore_ascii_case(token))
}

/// RFC 9110 section 5.6.2.
fn is_token(byte: u8) -> bool {
    #[allow(clippy::indexing_slicing, reason = "evaluated by the compiler, within bounds by the loop")]
    const TOKEN: [bool; 256] = {
        let mut table = [false; 256];
        let mut byte = 0usize;
        while byte < 256 {
            let b = byte as u8;
            table[byte] = b.is_ascii_alphanumeric()
                || matches!(b, b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.')
                || matches!(b, b'^' | b'_' | b'`' | b'|' | b'~');
            byte += 1;
        }
        table
    };
    TOKEN.get(usize::from(byte)).copied().unwrap_or(false)
}

/// Field content: visible characters, obs-text, space and tab (RFC 9110 section 5.5).
fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

/// Without an early end, so that the compiler may look at many bytes at once.
fn all_text(bytes: &[u8]) -> bool {
    bytes.iter().fold(true, |good, &b| good & is_text(b))
}

/// A client's stream that hands on only bytes that passed the [`Framer`].
pub struct Guard {
    io: Watched,
    framer: Framer,
    /// Read but not handed on: the part of a head that is not whole, or what stands behind a switch of protocols.
    held: Vec<u8>,
    /// Part of `held` that may pass.
    passed: usize,
    refused: Option<Outcome>,
    /// What was refused is the body of the request in flight: the request itself fails, and is answered for it.
    broken: bool,
}

impl Guard {
    /// Guards a stream.
    pub fn new(io: Watched, limits: Limits) -> Guard {
        Guard { io, framer: Framer::new(limits), held: Vec::new(), passed: 0, refused: None, broken: false }
    }

    /// Why bytes that never became a request were refused, if they were.
    pub fn refused(&self) -> Option<Outcome> {
        self.refused.filter(|_| !self.broken)
    }

    /// Whether the connection stands inside a message: the client may still be sending.
    pub fn mid_message(&self) -> bool {
        self.framer.state != State::Head || !self.held.is_empty()
    }

    /// The stream without the guard, for bytes that nobody will parse.
    pub fn stream(&mut self) -> &mut Watched {
        &mut self.io
    }

    fn progress(&self) -> &crate::net::stream::Progress {
        self.io.progress()
    }

    /// Hands on what passed already.
    fn hand_on(&mut self, buf: &mut ReadBuf<'_>) {
        let count = self.passed.min(buf.remaining());
        if let Some(bytes) = self.held.get(..count) {
            buf.put_slice(bytes);
        }
        self.held.drain(..count);
        self.passed -= count;
        if self.held.is_empty() && self.held.capacity() > READ {
            self.held = Vec::new();
        }
    }

    /// Lets the framer look at what is held behind what passed; tells whether it needs more.
    fn judge(&mut self) -> Result<bool, Outcome> {
        loop {
            let rest = self.held.get(self.passed..).unwrap_or_default();
            if rest.is_empty() {
                return Ok(false);
            }
            match self.framer.step(rest)? {
                Step::Pass(count) => self.passed += count,
                Step::More => return Ok(true),
                Step::Wait => return Ok(false),
            }
        }
    }

    /// Looks at bytes in the caller's own buffer, where they may stay if all of them pass: the usual case costs no copy.
    fn judge_in_place(&mut self, buf: &mut ReadBuf<'_>, before: usize) -> Result<(), Outcome> {
        let fresh = buf.filled().get(before..).unwrap_or_default();
        let mut passed = 0;
        let verdict = loop {
            let rest = fresh.get(passed..).unwrap_or_default();
            if rest.is_empty() {
                break Ok(());
            }
            match self.framer.step(rest) {
                Ok(Step::Pass(count)) => passed += count,
                Ok(Step::More | Step::Wait) => break Ok(()),
                Err(outcome) => break Err(outcome),
            }
        };
        self.held.extend_from_slice(fresh.get(passed..).unwrap_or_default());
        buf.set_filled(before + passed);
        verdict
    }

    /// Nothing more is read; what passed before is still handed on, because it is good.
    fn refuse(&mut self, outcome: Outcome) {
        self.refused = Some(outcome);
        self.broken = !matches!(self.framer.state, State::Head | State::Switching);
        if self.broken {
            self.io.owner().0.ending.set(outcome);
        }
        self.held.truncate(self.passed);
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

    /// While it is open whether the protocol will be switched, bytes are only kept, few of them. Ready when the client
    /// is gone.
    fn poll_switching(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.progress().park();
        while self.held.len() < READ {
            if ready!(self.poll_more(cx))? == 0 {
                return Poll::Ready(Ok(()));
            }
        }
        Poll::Pending
    }

    /// Reads behind what is held; how many bytes came.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut more = [0u8; READ];
        let mut more = ReadBuf::new(&mut more);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut more))?;
        self.held.extend_from_slice(more.filled());
        Poll::Ready(Ok(more.filled().len()))
    }
}

impl AsyncRead for Guard {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.progress().phase() == Phase::Tunnel {
            this.passed = this.held.len();
            if this.passed > 0 {
                this.hand_on(buf);
                return Poll::Ready(Ok(()));
            }
            return Pin::new(&mut this.io).poll_read(cx, buf);
        }
        loop {
            if this.passed > 0 {
                this.hand_on(buf);
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
                if let Err(outcome) = this.judge() {
                    this.refuse(outcome);
                }
                continue;
            }
            let before = buf.filled().len();
            if this.held.is_empty() {
                ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
                if buf.filled().len() == before {
                    return Poll::Ready(Ok(()));
                }
                if let Err(outcome) = this.judge_in_place(buf, before) {
                    this.refuse(outcome);
                }
                if buf.filled().len() > before {
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            // The rest of a head: gathered until it is whole. Bounded by the framer's limit on heads.
            if ready!(this.poll_more(cx))? == 0 {
                return Poll::Ready(Ok(()));
            }
            if let Err(outcome) = this.judge() {
                this.refuse(outcome);
            }
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
