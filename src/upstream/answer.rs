//! Answers of endpoints, checked as strictly as requests: raw bytes, before anybody parses them.
//!
//! hyper is laxer than RFC 9112 in places (bare LF as line end, a length beside chunks, codings it does not know, interim
//! answers without end), and a pooled connection on which an endpoint says more than it was asked would answer the next
//! client with it. [`Framer`] follows the framing of a connection; [`Checked`] puts it between socket and hyper.
//!
//! Only answers of HTTP/1; whoever switched protocols is not looked at any more.

use std::cell::Cell;
use std::error::Error as _;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use http::Method;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::base::outcome::Outcome;
use crate::net::http1::{Chunks, Framing, Held, Length, Lines, Scan, Step, field_of_text, is_text_in_lines};
use crate::net::records;
use crate::net::stream::Stream;

/// Interim answers (RFC 9110 section 15.2) before a final one. Real backends send one or two; each costs a parse.
const INTERIM_MAX: u32 = 16;

/// What is wrong with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The status line or a field breaks the grammar.
    Grammar,
    /// Its length cannot be told for certain.
    Framing,
    /// Its head or its trailers are too large.
    TooLarge,
    /// Interim answers without end.
    Interim,
    /// Bytes without a request.
    Unasked,
    /// It switched protocols, which nobody had asked for.
    Switched,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fault::Grammar => {
                "the answer's head breaks the grammar of HTTP/1 (RFC 9112 sections 2.2, 4 and 5)"
            }
            Fault::Framing => {
                "the length of the answer is ambiguous or its chunks are malformed (RFC 9112 section 6)"
            }
            Fault::TooLarge => {
                "the head or the trailers of the answer are larger than limits.upstream_head allows"
            }
            Fault::Interim => "more than 16 interim answers came before a final one",
            Fault::Unasked => "bytes came that answer no request",
            Fault::Switched => "the backend switched protocols without being asked to",
        })
    }
}

impl std::error::Error for Fault {}

/// The fault that broke a connection, if that is what did.
pub fn fault(error: &hyper::Error) -> Option<Fault> {
    // hyper wraps the error of the stream once.
    let io = error.source()?.downcast_ref::<io::Error>()?;
    io.get_ref()?.downcast_ref::<Fault>().copied()
}

/// What broke a connection, in words for the process log: hyper says that something did, and keeps what it was below.
pub fn cause(error: &hyper::Error) -> String {
    if let Some(fault) = fault(error) {
        return fault.to_string();
    }
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        // Some errors repeat what they wrap.
        if !text.ends_with(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        source = inner.source();
    }
    text
}

/// What an answer is expected to; shared by whoever sends requests and whoever reads their answers.
#[derive(Debug, Default)]
pub struct Asked(Cell<Option<Question>>);

#[derive(Debug, Clone, Copy)]
struct Question {
    /// The answer has no body whatever its fields say (RFC 9112 section 6.3 rule 1).
    bodiless: bool,
    /// It may switch protocols.
    upgrade: bool,
}

impl Asked {
    /// A request is about to be sent.
    pub fn ask(&self, method: &Method, upgrade: bool) {
        self.0.set(Some(Question { bodiless: method == Method::HEAD, upgrade }));
    }
}

/// Where in a connection the next byte stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Behind the last answer, or before the first.
    Idle,
    /// In a head.
    Head,
    /// In a body with so many bytes left.
    Body(u64),
    /// In a body of chunks.
    Chunked(Chunks),
    /// In a body that ends with the connection.
    Rest,
    /// In another protocol.
    Tunnel,
}

/// Follows the answers on one connection. Pure: bytes in, how many may pass or what is wrong.
pub struct Framer {
    state: State,
    asked: Rc<Asked>,
    question: Option<Question>,
    head_max: usize,
    scan: Scan,
    interim: u32,
}

impl Framer {
    /// A framer at the beginning of a connection.
    pub fn new(asked: Rc<Asked>, head_max: usize) -> Framer {
        Framer { state: State::Idle, asked, question: None, head_max, scan: Scan::default(), interim: 0 }
    }

    /// Whether the next byte belongs to no answer.
    pub fn between(&self) -> bool {
        self.state == State::Idle
    }

    /// Looks at the bytes that come next. Call again with what follows the bytes that passed.
    ///
    /// # Errors
    /// What is wrong; nothing of `bytes` may pass.
    pub fn step(&mut self, bytes: &[u8]) -> Result<Step, Fault> {
        match &mut self.state {
            State::Idle => {
                // An answer nobody asked for would be taken for the next one.
                self.question = Some(self.asked.0.take().ok_or(Fault::Unasked)?);
                self.interim = 0;
                self.state = State::Head;
                self.head(bytes)
            }
            State::Head => self.head(bytes),
            State::Body(left) => {
                let take = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= take as u64;
                if *left == 0 {
                    self.state = State::Idle;
                }
                Ok(Step::Pass(take))
            }
            State::Chunked(chunks) => {
                let step = chunks.step(bytes).map_err(|outcome| match outcome {
                    Outcome::HeadTooLarge => Fault::TooLarge,
                    _ => Fault::Framing,
                })?;
                if chunks.done() {
                    self.state = State::Idle;
                }
                Ok(step)
            }
            State::Rest | State::Tunnel => Ok(Step::Pass(bytes.len())),
        }
    }

    fn head(&mut self, bytes: &[u8]) -> Result<Step, Fault> {
        // Looked at no further than a head may be long, so that a cut changes nothing.
        let near = bytes.get(..bytes.len().min(self.head_max)).unwrap_or_default();
        let Some(end) = self.scan.end(near).map_err(|_| Fault::Grammar)? else {
            return if bytes.len() > self.head_max { Err(Fault::TooLarge) } else { Ok(Step::More) };
        };
        let question = self.question.unwrap_or(Question { bodiless: false, upgrade: false });
        self.state = framing(bytes.get(..end).unwrap_or_default(), question)?;
        self.scan = Scan::default();
        if self.state == State::Head {
            self.interim += 1;
            if self.interim > INTERIM_MAX {
                return Err(Fault::Interim);
            }
        }
        Ok(Step::Pass(end))
    }
}

/// Reads a whole head, from the status line to the empty line.
fn framing(head: &[u8], question: Question) -> Result<State, Fault> {
    if !is_text_in_lines(head) {
        return Err(Fault::Grammar);
    }
    let mut lines = Lines(head);
    let (http11, status) = status_line(lines.next().unwrap_or_default())?;
    let mut framing = Framing::default();
    for line in lines.take_while(|line| !line.is_empty()) {
        // RFC 9112 section 5.2: folded lines in an answer are replaced, or the answer is: with a 502.
        let (name, value) = field_of_text(line).map_err(|_| Fault::Grammar)?;
        match name.len() {
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                framing.content_length(value).map_err(|_| Fault::Framing)?;
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                framing.transfer_encoding(value, http11).map_err(|_| Fault::Framing)?;
            }
            _ => {}
        }
    }
    // RFC 9112 section 6.3: "ought to be handled as an error", also where the answer has no body.
    let length = framing.length().map_err(|_| Fault::Framing)?;
    match (status, length) {
        (101, _) if question.upgrade => Ok(State::Tunnel),
        (101, _) => Err(Fault::Switched),
        (..200, _) => Ok(State::Head),
        // RFC 9112 section 6.3 rule 1.
        (204 | 304, _) => Ok(State::Idle),
        _ if question.bodiless => Ok(State::Idle),
        (_, Length::Chunked) => Ok(State::Chunked(Chunks::default())),
        (_, Length::Bytes(0)) => Ok(State::Idle),
        (_, Length::Bytes(length)) => Ok(State::Body(length)),
        // RFC 9112 section 6.3 rule 8.
        (_, Length::Unsaid) => Ok(State::Rest),
    }
}

/// `HTTP/1.x SP 3DIGIT SP [ reason ]` (RFC 9112 section 4). The second space is missing from some servers that give no
/// reason; nothing is ambiguous about that. Tells whether it is HTTP/1.1, and the status.
fn status_line(line: &[u8]) -> Result<(bool, u16), Fault> {
    let (http11, rest) = match line.split_at_checked(9) {
        Some((b"HTTP/1.1 ", rest)) => (true, rest),
        Some((b"HTTP/1.0 ", rest)) => (false, rest),
        _ => return Err(Fault::Grammar),
    };
    let (digits, reason) = rest.split_at_checked(3).ok_or(Fault::Grammar)?;
    let status = std::str::from_utf8(digits).ok().and_then(|text| text.parse::<u16>().ok());
    // RFC 9110 section 15: anything outside of 100 to 599 is invalid.
    let status = status.filter(|status| (100..600).contains(status)).ok_or(Fault::Grammar)?;
    if !(reason.is_empty() || reason.starts_with(b" ")) {
        return Err(Fault::Grammar);
    }
    Ok((http11, status))
}

/// A stream from an endpoint that hands on only bytes that passed the [`Framer`].
pub struct Checked<S> {
    io: S,
    framer: Framer,
    held: Held,
    fault: Option<Fault>,
    /// The last read took a piece or more: it will not be the last.
    much: bool,
}

impl<S> Checked<S> {
    /// Checks a stream.
    pub fn new(io: S, asked: Rc<Asked>, head_max: usize) -> Checked<S> {
        Checked { io, framer: Framer::new(asked, head_max), held: Held::default(), fault: None, much: false }
    }

    /// The stream without the check, for another protocol, and what was read of that already.
    pub fn into_parts(mut self) -> (S, Vec<u8>) {
        (self.io, self.held.take())
    }
}

impl<S: AsyncRead + AsMut<Stream> + Unpin> AsyncRead for Checked<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if this.held.ready() {
                this.held.hand_on(buf);
                return Poll::Ready(Ok(()));
            }
            if let Some(fault) = this.fault {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, fault)));
            }
            let before = buf.filled().len();
            let judged = if this.held.is_empty() {
                ready!(if this.much {
                    records::poll_read(&mut this.io, cx, buf)
                } else {
                    Pin::new(&mut this.io).poll_read(cx, buf)
                })?;
                let read = buf.filled().len() - before;
                this.much = read >= records::PIECE;
                if read == 0 {
                    return Poll::Ready(Ok(()));
                }
                this.held.judge_in_place(buf, before, |bytes| this.framer.step(bytes))
            } else {
                if ready!(this.held.poll_more(cx, &mut this.io))? == 0 {
                    return Poll::Ready(Ok(()));
                }
                this.held.judge(|bytes| this.framer.step(bytes))
            };
            if let Err(fault) = judged {
                this.fault = Some(fault);
                this.held.refuse();
            } else {
                this.io.as_mut().settle(this.framer.between())?;
            }
            if buf.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Checked<S> {
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
