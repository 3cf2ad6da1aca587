//! The grammar of HTTP/1 messages, for both directions: what a line, a field and a chunk may look like.
//!
//! Strict where RFC 9112 lets recipients be lenient: leniency is what makes two parsers disagree. Pure: bytes in, a
//! verdict out, the same verdict however the bytes were cut. What a message means is decided by whoever asks.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

use crate::base::outcome::Outcome;

/// Bytes of extensions and of the size in one chunk line (RFC 9112 section 7.1.1 lets recipients bound them).
const CHUNK_LINE_MAX: usize = 256;
/// Bytes of a trailer section.
const TRAILERS_MAX: usize = 8 * 1024;
/// Bytes read in one go behind what is held.
pub const READ: usize = 16 * 1024;

/// What may be done with bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// So many bytes from the front may pass.
    Pass(usize),
    /// A head or a line that is not whole yet: more is needed before any of it may pass.
    More,
    /// Nothing may pass before it is known how a request to switch protocols ended.
    Wait,
}

/// How far a head that is not whole was looked at: where its last line begins, and where the next look begins. A
/// dripped head is scanned once, not once per byte.
#[derive(Debug, Clone, Copy, Default)]
pub struct Scan {
    line: usize,
    from: usize,
}

impl Scan {
    /// The end of a head: behind the first empty line. Every line end must be CR LF (RFC 9112 section 2.2).
    ///
    /// # Errors
    /// [`Outcome::BadRequest`].
    pub fn end(&mut self, bytes: &[u8]) -> Result<Option<usize>, Outcome> {
        while let Some(length) = bytes.get(self.from..).and_then(|rest| memchr::memchr(b'\n', rest)) {
            let end = self.from + length;
            let line = bytes.get(self.line..end).unwrap_or_default();
            let Some(line) = line.strip_suffix(b"\r") else { return Err(Outcome::BadRequest) };
            let empty = line.is_empty();
            *self = Scan { line: end + 1, from: end + 1 };
            if empty {
                return Ok(Some(end + 1));
            }
        }
        self.from = bytes.len();
        Ok(None)
    }
}

/// The lines of a whole head without their ends.
pub struct Lines<'a>(pub &'a [u8]);

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let end = memchr::memchr(b'\n', self.0)?;
        let (line, rest) = self.0.split_at_checked(end + 1)?;
        self.0 = rest;
        line.strip_suffix(b"\r\n")
    }
}

/// `name ":" OWS value OWS` (RFC 9112 section 5): no space before the colon, no folding, no control characters.
///
/// # Errors
/// [`Outcome::BadRequest`].
fn field(line: &[u8]) -> Result<(&[u8], &[u8]), Outcome> {
    if all_text(line) { field_of_text(line) } else { Err(Outcome::BadRequest) }
}

/// The same for a line that was looked at with all of its head, by [`is_text_in_lines`].
///
/// # Errors
/// [`Outcome::BadRequest`].
pub fn field_of_text(line: &[u8]) -> Result<(&[u8], &[u8]), Outcome> {
    // A folded line begins with white space: that is no token either.
    let name = line.iter().position(|&b| !is_token(b)).unwrap_or(line.len());
    match line.split_at_checked(name) {
        Some((name, [b':', value @ ..])) if !name.is_empty() => Ok((name, trim(value))),
        _ => Err(Outcome::BadRequest),
    }
}

/// Without optional white space, which is spaces and tabs alone (RFC 9110 section 5.6.3).
pub fn trim(value: &[u8]) -> &[u8] {
    // Anything else that counts as white space elsewhere was refused as a control character.
    value.trim_ascii()
}

/// What the fields of a message say about the length of its body.
#[derive(Debug, Default)]
pub struct Framing {
    length: Option<u64>,
    chunked: bool,
}

/// How long a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// Nothing was said.
    Unsaid,
    /// So many bytes.
    Bytes(u64),
    /// By chunks.
    Chunked,
}

impl Framing {
    /// Takes note of a `Content-Length`.
    ///
    /// # Errors
    /// [`Outcome::BadFraming`]: RFC 9112 section 6.3 wants one length or none; a list or a repetition is refused even
    /// where it agrees.
    pub fn content_length(&mut self, value: &[u8]) -> Result<(), Outcome> {
        let repeated = self.length.replace(digits(value)?).is_some();
        if repeated { Err(Outcome::BadFraming) } else { Ok(()) }
    }

    /// Takes note of a `Transfer-Encoding`.
    ///
    /// # Errors
    /// [`Outcome::BadFraming`]: RFC 9112 section 6.1: HTTP/1.0 knows none, and chunked is the only coding we can frame
    /// by.
    pub fn transfer_encoding(&mut self, value: &[u8], http11: bool) -> Result<(), Outcome> {
        let repeated = std::mem::replace(&mut self.chunked, true);
        if repeated || !http11 || !value.eq_ignore_ascii_case(b"chunked") {
            return Err(Outcome::BadFraming);
        }
        Ok(())
    }

    /// What all of it comes to.
    ///
    /// # Errors
    /// [`Outcome::BadFraming`] where both were said (RFC 9112 section 6.1).
    pub fn length(&self) -> Result<Length, Outcome> {
        match (self.chunked, self.length) {
            (true, Some(_)) => Err(Outcome::BadFraming),
            (true, None) => Ok(Length::Chunked),
            (false, Some(length)) => Ok(Length::Bytes(length)),
            (false, None) => Ok(Length::Unsaid),
        }
    }
}

fn digits(value: &[u8]) -> Result<u64, Outcome> {
    // 18 digits: far beyond any body, and no overflow.
    if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
        return Err(Outcome::BadFraming);
    }
    let text = std::str::from_utf8(value).map_err(|_| Outcome::BadFraming)?;
    text.parse().map_err(|_| Outcome::BadFraming)
}

/// Whether a list has a token in it.
pub fn mentions(value: &[u8], token: &[u8]) -> bool {
    value.split(|&b| b == b',').any(|part| part.trim_ascii().eq_ignore_ascii_case(token))
}

/// RFC 9110 section 5.6.2.
pub fn is_token(byte: u8) -> bool {
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
    (byte == b'\t') | ((byte >= b' ') & (byte != 0x7f))
}

/// Without an early end, so that the compiler may look at many bytes at once.
fn all_text(bytes: &[u8]) -> bool {
    bytes.iter().fold(true, |good, &b| good & is_text(b))
}

/// The same for a whole head, in which every line feed ends a line (see [`Scan`]): nothing but text stands between line ends. One
/// look at all of it costs less than one at each line.
pub fn is_text_in_lines(head: &[u8]) -> bool {
    let next = head.get(1..).unwrap_or_default();
    head.iter().zip(next).fold(true, |good, (&byte, &next)| {
        good & (is_text(byte) | (byte == b'\n') | ((byte == b'\r') & (next == b'\n')))
    })
}

/// Follows a body that comes in chunks, with its trailers (RFC 9112 section 7.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunks {
    place: Place,
    trailers: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In a chunk line.
    Line,
    /// In chunk data with so many bytes left, the line end behind it included.
    Data(u64),
    /// In the trailer section.
    Trailers,
    /// Behind all of it.
    Done,
}

impl Default for Chunks {
    fn default() -> Chunks {
        Chunks { place: Place::Line, trailers: 0 }
    }
}

impl Chunks {
    /// Whether all of the body was seen.
    pub fn done(&self) -> bool {
        self.place == Place::Done
    }

    /// Looks at the bytes that come next.
    ///
    /// # Errors
    /// Why they cannot be framed; nothing of `bytes` may pass.
    pub fn step(&mut self, bytes: &[u8]) -> Result<Step, Outcome> {
        match self.place {
            Place::Line => self.lined(bytes, CHUNK_LINE_MAX, Chunks::line),
            Place::Data(left) => self.data(bytes, left),
            Place::Trailers => self.lined(bytes, TRAILERS_MAX, Chunks::trailer),
            Place::Done => Ok(Step::Pass(0)),
        }
    }

    /// The two bytes behind chunk data are its line end; they pass together, so that a cut changes nothing.
    fn data(&mut self, bytes: &[u8], left: u64) -> Result<Step, Outcome> {
        if left > 2 {
            let take = usize::try_from(left - 2).unwrap_or(usize::MAX).min(bytes.len());
            self.place = Place::Data(left - take as u64);
            return Ok(Step::Pass(take));
        }
        match bytes {
            [b'\r', b'\n', ..] => {
                self.place = Place::Line;
                Ok(Step::Pass(2))
            }
            [b'\r'] => Ok(Step::More),
            _ => Err(Outcome::BadFraming),
        }
    }

    /// Hands a line to `judge` without its end, once it is whole.
    fn lined(
        &mut self,
        bytes: &[u8],
        max: usize,
        judge: fn(&mut Chunks, &[u8]) -> Result<(), Outcome>,
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

    fn line(&mut self, line: &[u8]) -> Result<(), Outcome> {
        let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
        let (size, extensions) = line.split_at_checked(digits).ok_or(Outcome::BadFraming)?;
        // 15 digits: far beyond any body, and no overflow.
        if size.is_empty() || size.len() > 15 || !are_extensions(extensions) {
            return Err(Outcome::BadFraming);
        }
        let size = std::str::from_utf8(size).ok().and_then(|text| u64::from_str_radix(text, 16).ok());
        self.place = match size.ok_or(Outcome::BadFraming)? {
            0 => Place::Trailers,
            size => Place::Data(size + 2),
        };
        Ok(())
    }

    fn trailer(&mut self, line: &[u8]) -> Result<(), Outcome> {
        if line.is_empty() {
            self.place = Place::Done;
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

/// `*( BWS ";" BWS name [ BWS "=" BWS ( token / quoted-string ) ] )` (RFC 9112 section 7.1.1). By the grammar, because
/// parsers that honour quotes and parsers that do not end the line at different places.
fn are_extensions(text: &[u8]) -> bool {
    if !all_text(text) {
        return false;
    }
    let mut rest = text;
    while !rest.is_empty() {
        let Some(after) = rest.trim_ascii_start().strip_prefix(b";") else { return false };
        let (name, after) = split_token(after.trim_ascii_start());
        if name.is_empty() {
            return false;
        }
        rest = after;
        let Some(value) = after.trim_ascii_start().strip_prefix(b"=") else { continue };
        let value = value.trim_ascii_start();
        let behind = match value.strip_prefix(b"\"") {
            Some(quoted) => behind_quotes(quoted),
            None => Some(split_token(value)).filter(|(token, _)| !token.is_empty()).map(|(_, behind)| behind),
        };
        let Some(behind) = behind else { return false };
        rest = behind;
    }
    true
}

fn split_token(text: &[u8]) -> (&[u8], &[u8]) {
    let length = text.iter().take_while(|&&b| is_token(b)).count();
    text.split_at_checked(length).unwrap_or((text, &[]))
}

/// What stands behind the closing quote.
fn behind_quotes(text: &[u8]) -> Option<&[u8]> {
    let mut escaped = false;
    for (at, &byte) in text.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return text.get(at + 1..),
            _ => {}
        }
    }
    None
}

/// Bytes read but not handed on: the part of a head or a line that is not whole, or what must wait.
#[derive(Debug, Default)]
pub struct Held {
    bytes: Vec<u8>,
    /// So many from the front may pass.
    passed: usize,
}

impl Held {
    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Bytes held.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether something may be handed on.
    pub fn ready(&self) -> bool {
        self.passed > 0
    }

    /// Everything may be handed on: nobody judges it any more.
    pub fn pass_all(&mut self) {
        self.passed = self.bytes.len();
    }

    /// What is held, for whoever goes on without a judge.
    pub fn take(&mut self) -> Vec<u8> {
        self.passed = 0;
        std::mem::take(&mut self.bytes)
    }

    /// Forgets what did not pass.
    pub fn refuse(&mut self) {
        self.bytes.truncate(self.passed);
    }

    /// Hands on what passed already.
    pub fn hand_on(&mut self, buf: &mut ReadBuf<'_>) {
        let count = self.passed.min(buf.remaining());
        if let Some(bytes) = self.bytes.get(..count) {
            buf.put_slice(bytes);
        }
        self.bytes.drain(..count);
        self.passed -= count;
        if self.bytes.is_empty() && self.bytes.capacity() > READ {
            self.bytes = Vec::new();
        }
    }

    /// Lets `step` look at what is held behind what passed.
    ///
    /// # Errors
    /// Those of `step`.
    pub fn judge<E>(&mut self, mut step: impl FnMut(&[u8]) -> Result<Step, E>) -> Result<(), E> {
        loop {
            let rest = self.bytes.get(self.passed..).unwrap_or_default();
            if rest.is_empty() {
                return Ok(());
            }
            match step(rest)? {
                Step::Pass(count) => self.passed += count,
                Step::More | Step::Wait => return Ok(()),
            }
        }
    }

    /// Looks at bytes in the caller's own buffer, where they may stay if all of them pass: the usual case costs no
    /// copy. Only where nothing is held.
    ///
    /// # Errors
    /// Those of `step`; what passed before stays in the buffer.
    pub fn judge_in_place<E>(
        &mut self,
        buf: &mut ReadBuf<'_>,
        before: usize,
        mut step: impl FnMut(&[u8]) -> Result<Step, E>,
    ) -> Result<(), E> {
        let fresh = buf.filled().get(before..).unwrap_or_default();
        let mut passed = 0;
        let verdict = loop {
            let rest = fresh.get(passed..).unwrap_or_default();
            if rest.is_empty() {
                break Ok(());
            }
            match step(rest) {
                Ok(Step::Pass(count)) => passed += count,
                Ok(Step::More | Step::Wait) => break Ok(()),
                Err(outcome) => break Err(outcome),
            }
        };
        self.bytes.extend_from_slice(fresh.get(passed..).unwrap_or_default());
        buf.set_filled(before + passed);
        verdict
    }

    /// Reads behind what is held; how many bytes came.
    ///
    /// # Errors
    /// Those of the stream.
    pub fn poll_more(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut (impl AsyncRead + Unpin),
    ) -> Poll<io::Result<usize>> {
        let mut more = [0u8; READ];
        let mut more = ReadBuf::new(&mut more);
        ready!(Pin::new(io).poll_read(cx, &mut more))?;
        self.bytes.extend_from_slice(more.filled());
        Poll::Ready(Ok(more.filled().len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extensions_are_read_by_the_grammar() {
        for good in ["", ";a", "; a = b", ";a;b=c;d=\"e;\\\"f\"", " ;\ta", ";a=\"\""] {
            assert!(are_extensions(good.as_bytes()), "{good:?}");
        }
        for bad in
            [" ", "a", ";", ";;a", ";=a", ";a=", ";a=\"", ";a=\"\\\"", ";a b", ";a=b c", ";a=\"b\"c", ";a\0"]
        {
            assert!(!are_extensions(bad.as_bytes()), "{bad:?}");
        }
    }
}
