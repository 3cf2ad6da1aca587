//! HTTP/2 frame by frame, with an HPACK encoder that knows literals alone: what no library would send.

use super::Wire;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// One frame (RFC 9113 section 4.1).
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short payload").to_be_bytes();
    let mut out = vec![length[1], length[2], length[3], kind, flags];
    out.extend(stream.to_be_bytes());
    out.extend_from_slice(payload);
    out
}

/// Literals without indexing, without Huffman (RFC 7541 section 6.2.2): any bytes go.
pub fn block(fields: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in fields {
        out.push(0);
        for text in [name, value] {
            length(&mut out, text.len());
            out.extend_from_slice(text);
        }
    }
    out
}

/// An integer with a prefix of seven bits (RFC 7541 section 5.1).
fn length(out: &mut Vec<u8>, mut value: usize) {
    if value < 127 {
        return out.push(value as u8);
    }
    out.push(127);
    value -= 127;
    while value >= 128 {
        out.push((value % 128 + 128) as u8);
        value /= 128;
    }
    out.push(value as u8);
}

/// How a stream ended, as its client saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// A final answer, and all of it.
    Whole { status: u16, body: Vec<u8>, trailers: bool },
    /// An answer that was reset inside.
    Cut { status: u16, body: Vec<u8>, code: u32 },
    /// No answer: the stream was reset.
    Reset(u32),
    /// The connection ended (with this code, if it said one).
    Closed(Option<u32>),
}

/// A connection on which frames are written and read one by one.
pub struct RawH2 {
    wire: Wire,
    goaway: Option<u32>,
}

impl RawH2 {
    /// Sends the preface. No dynamic table: every answer's fields can be read alone.
    pub async fn over(mut wire: Wire) -> RawH2 {
        assert_eq!(wire.tls.alpn, "h2", "the proxy did not agree on h2");
        wire.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        wire.send(frame(SETTINGS, 0, 0, &[0, 1, 0, 0, 0, 0])).await;
        RawH2 { wire, goaway: None }
    }

    /// Writes bytes; a closed connection shows when its frames are read.
    pub async fn send(&mut self, bytes: &[u8]) {
        let _ = self.wire.try_send(bytes).await;
    }

    async fn next(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        let head = self.wire.exactly(9).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some((head[3], head[4], stream, self.wire.exactly(length).await.ok()?))
    }

    /// Reads frames until this stream has ended.
    pub async fn end(&mut self, wanted: u32) -> End {
        let mut answer: Option<(u16, Vec<u8>)> = None;
        loop {
            let Some((kind, flags, stream, payload)) = self.next().await else {
                return End::Closed(self.goaway);
            };
            let code = |at: usize| payload.get(at..at + 4).map(|c| u32::from_be_bytes(c.try_into().unwrap()));
            match kind {
                SETTINGS if flags & ACK == 0 => self.send(&frame(SETTINGS, ACK, 0, &[])).await,
                PING if flags & ACK == 0 => self.send(&frame(PING, ACK, 0, &payload)).await,
                GOAWAY => self.goaway = code(4),
                RST_STREAM if stream == wanted => {
                    let code = code(0).unwrap_or_default();
                    return match answer {
                        Some((status, body)) => End::Cut { status, body, code },
                        None => End::Reset(code),
                    };
                }
                HEADERS if stream == wanted => {
                    let last = flags & END_STREAM != 0;
                    match &answer {
                        Some((status, body)) if last => {
                            return End::Whole { status: *status, body: body.clone(), trailers: true };
                        }
                        Some(_) => panic!("a second head"),
                        None => match status(&payload) {
                            100..200 => {}
                            status if last => {
                                return End::Whole { status, body: Vec::new(), trailers: false };
                            }
                            status => answer = Some((status, Vec::new())),
                        },
                    }
                }
                DATA if stream == wanted => {
                    let (status, body) = answer.as_mut().expect("data behind a head");
                    body.extend_from_slice(&payload);
                    if flags & END_STREAM != 0 {
                        return End::Whole { status: *status, body: body.clone(), trailers: false };
                    }
                }
                _ => {}
            }
        }
    }
}

/// The status at the start of a block: indexed (RFC 7541 appendix A), or a literal with that name.
fn status(block: &[u8]) -> u16 {
    // A change of the table's size may stand before everything (RFC 7541 section 6.3).
    let block = match block {
        [size, rest @ ..] if size & 0xe0 == 0x20 => rest,
        whole => whole,
    };
    const STATIC: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
    match block {
        [index @ 0x88..=0x8e, ..] => STATIC[usize::from(index - 0x88)],
        [0x08 | 0x18 | 0x48, length, value @ ..] => {
            let text = &value[..usize::from(length & 0x7f)];
            let digits = if length & 0x80 == 0 { text.to_vec() } else { huffman_digits(text) };
            String::from_utf8_lossy(&digits).parse().expect("a status")
        }
        other => panic!("a block that does not begin with a status: {other:02x?}"),
    }
}

/// Decodes digits (RFC 7541 appendix B): `0` to `2` have five bits, the others six.
fn huffman_digits(bytes: &[u8]) -> Vec<u8> {
    let bits: Vec<u8> = bytes.iter().flat_map(|b| (0..8).rev().map(move |i| b >> i & 1)).collect();
    let number = |bits: &[u8]| bits.iter().fold(0u8, |n, b| n << 1 | b);
    let (mut out, mut at) = (Vec::new(), 0);
    while out.len() < 3 {
        match number(&bits[at..at + 5]) {
            short @ 0..=2 => {
                out.push(b'0' + short);
                at += 5;
            }
            _ => {
                out.push(b'3' + number(&bits[at..at + 6]) - 0x19);
                at += 6;
            }
        }
    }
    out
}
