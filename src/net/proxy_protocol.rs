//! PROXY protocol, versions 1 and 2: who the client behind a trusted balancer is.
//!
//! The parser knows no sockets: bytes in, a decision out, the same decision however the bytes were cut. The
//! specification is HAProxy's `proxy-protocol.txt`, revision 2020/03/05; its sections are cited below. Whether a peer
//! may send a header at all is decided by the caller, before the first byte is read, as is the deadline.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::{AsyncRead, AsyncReadExt};

/// Longest version 1 header in bytes, line end included (section 2.1).
pub const V1_BYTES_MAX: usize = 107;
/// Longest version 2 header we accept in bytes, TLVs included. The format allows 65,551; balancers send under 1,000.
pub const V2_BYTES_MAX: usize = 4096;

const V1_SIGNATURE: &[u8] = b"PROXY ";
const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Bytes of a version 2 header before the addresses.
const V2_FIXED: usize = 16;
/// `PP2_TYPE_CRC32C` (section 2.2.3).
const TLV_CRC32C: u8 = 0x03;

/// A whole header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Bytes the header took; what follows is the client's.
    pub consumed: usize,
    /// The client. `None` for `LOCAL`, `UNKNOWN` and addresses that are not IP: the connection's own peer counts.
    pub source: Option<SocketAddr>,
    /// What the client connected to; `None` as above.
    pub destination: Option<SocketAddr>,
}

/// What the bytes so far are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// The beginning of a header.
    Incomplete,
    /// A header, maybe followed by other bytes.
    Complete(Header),
}

/// Why bytes are no header. Once said for some bytes, it stays the answer whatever follows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Error {
    /// Neither version's signature: the peer speaks something else.
    NotProxy,
    /// Version 1 without a line end in its first 107 bytes.
    V1TooLong,
    /// Version 1 with a line that breaks the grammar.
    V1Line,
    /// Version 2 with a version other than 2.
    Version,
    /// Version 2 with an unknown command.
    Command,
    /// Version 2 with an address family or transport that is unknown or not a stream.
    Family,
    /// Version 2 too short for its addresses.
    V2TooShort,
    /// Version 2 longer than [`V2_BYTES_MAX`].
    V2TooLong,
    /// Version 2 with a TLV that does not fit.
    Tlv,
    /// Version 2 with a checksum that is wrong.
    Checksum,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Error::NotProxy => {
                "the connection does not begin with a PROXY protocol header; let the balancer in front send one, or \
                 set proxy_protocol = false"
            }
            Error::V1TooLong => "the PROXY protocol v1 line has no end within 107 bytes",
            Error::V1Line => "the PROXY protocol v1 line is malformed",
            Error::Version => "the PROXY protocol version is neither 1 nor 2",
            Error::Command => "the PROXY protocol v2 command is neither LOCAL nor PROXY",
            Error::Family => "the PROXY protocol v2 address family is unknown or not for TCP",
            Error::V2TooShort => "the PROXY protocol v2 header is too short for its addresses",
            Error::V2TooLong => "the PROXY protocol v2 header is longer than 4096 bytes",
            Error::Tlv => "a PROXY protocol v2 extension (TLV) does not fit into the header",
            Error::Checksum => "the checksum of the PROXY protocol v2 header is wrong",
        })
    }
}

impl std::error::Error for Error {}

/// Reads one header from the start of `buf`. Looks at no more than [`V2_BYTES_MAX`] bytes.
pub fn parse(buf: &[u8]) -> Result<Parsed, Error> {
    if begins(buf, V2_SIGNATURE) {
        return if buf.len() < V2_FIXED { early_v2(buf) } else { parse_v2(buf) };
    }
    if begins(buf, V1_SIGNATURE) {
        return parse_v1(buf);
    }
    Err(Error::NotProxy)
}

/// Reads exactly one header from a stream and no byte beyond it.
///
/// Errors: those of the stream, `UnexpectedEof` if it ends inside the header, `InvalidData` with an [`Error`] inside.
/// There is no deadline here; the caller sets one around.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Header> {
    let mut buf = Vec::with_capacity(V1_BYTES_MAX);
    loop {
        match parse(&buf).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))? {
            Parsed::Complete(header) => return Ok(header),
            Parsed::Incomplete => {}
        }
        // `missing` never asks past the end of the header, so nothing of the client's is swallowed.
        let wanted = u64::try_from(missing(&buf)).unwrap_or(1);
        if (&mut *stream).take(wanted).read_buf(&mut buf).await? == 0 {
            let message = "the connection ended inside the PROXY protocol header";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
        }
    }
}

/// A version 1 header for a TCP connection. Addresses of different families are written as IPv6.
pub fn write_v1(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let (family, from, to) = match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ("TCP4", from.to_string(), to.to_string()),
        (from, to) => ("TCP6", v6(from).to_string(), v6(to).to_string()),
    };
    let (from_port, to_port) = (source.port(), destination.port());
    format!("PROXY {family} {from} {to} {from_port} {to_port}\r\n").into_bytes()
}

/// A version 1 header of a connection made in nobody's name: a health check.
pub const V1_UNKNOWN: &[u8] = b"PROXY UNKNOWN\r\n";
/// The same in version 2 (`LOCAL`).
pub const V2_LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

/// A version 2 header for a TCP connection, without TLVs. Addresses of different families are written as IPv6.
pub fn write_v2(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let mut header = V2_SIGNATURE.to_vec();
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            header.extend([0x21, 0x11, 0, 12]);
            header.extend(from.octets());
            header.extend(to.octets());
        }
        (from, to) => {
            header.extend([0x21, 0x21, 0, 36]);
            header.extend(v6(from).octets());
            header.extend(v6(to).octets());
        }
    }
    header.extend(source.port().to_be_bytes());
    header.extend(destination.port().to_be_bytes());
    header
}

fn v6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

/// Whether `buf` begins with the signature, or is itself the beginning of it.
fn begins(buf: &[u8], signature: &[u8]) -> bool {
    buf.iter().zip(signature).all(|(a, b)| a == b)
}

/// At least how many more bytes the incomplete header `buf` has: a lower bound, never zero.
fn missing(buf: &[u8]) -> usize {
    // The shortest headers: `PROXY UNKNOWN\r\n`, and the fixed part of version 2, a byte longer.
    const SHORTEST: usize = 15;
    let whole = if buf.first() == Some(&b'P') {
        let line_end = if buf.last() == Some(&b'\r') { 1 } else { 2 };
        // The shortest lines of a family: `PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n` and `PROXY TCP6 :: :: 0 0\r\n`.
        let shortest = match buf.get(V1_SIGNATURE.len()..V1_SIGNATURE.len() + 4) {
            Some(b"TCP4") => 32,
            Some(b"TCP6") => 22,
            _ => SHORTEST,
        };
        shortest.max(buf.len() + line_end)
    } else if let Some(length) = v2_length(buf) {
        length
    } else if buf.len() < SHORTEST {
        SHORTEST
    } else {
        V2_FIXED
    };
    whole.saturating_sub(buf.len()).max(1)
}

// Version 1, section 2.1: one line of text.

fn parse_v1(buf: &[u8]) -> Result<Parsed, Error> {
    let seen = buf.get(..V1_BYTES_MAX).unwrap_or(buf);
    let Some(end) = seen.iter().position(|b| *b == b'\n') else {
        return if seen.len() == V1_BYTES_MAX { Err(Error::V1TooLong) } else { Ok(Parsed::Incomplete) };
    };
    let line = seen.get(..end).and_then(|l| l.strip_suffix(b"\r")).ok_or(Error::V1Line)?;
    let line = line.strip_prefix(V1_SIGNATURE).ok_or(Error::V1Line)?;
    let line = std::str::from_utf8(line).map_err(|_| Error::V1Line)?;
    let consumed = end + 1;
    let rest = line.strip_prefix("UNKNOWN").filter(|rest| rest.is_empty() || rest.starts_with(' '));
    if let Some(rest) = rest {
        // "The receiver must ignore anything presented before the CRLF", but a line holds no stray CR.
        let clean = !rest.contains('\r');
        return if clean { Ok(complete(consumed, None)) } else { Err(Error::V1Line) };
    }
    let mut words = line.split(' ');
    let mut word = || words.next().ok_or(Error::V1Line);
    let family = word()?;
    let (from, to) = (address(family, word()?)?, address(family, word()?)?);
    let (from_port, to_port) = (port(word()?)?, port(word()?)?);
    if words.next().is_some() {
        return Err(Error::V1Line);
    }
    let pair = (SocketAddr::new(from, from_port), SocketAddr::new(to, to_port));
    Ok(complete(consumed, Some(pair)))
}

fn address(family: &str, text: &str) -> Result<IpAddr, Error> {
    // The standard library takes no leading zeros in IPv4 and no zone in IPv6, as the specification wants.
    let parsed = match family {
        "TCP4" => text.parse().map(IpAddr::V4),
        "TCP6" => text.parse().map(IpAddr::V6),
        _ => return Err(Error::V1Line),
    };
    parsed.map_err(|_| Error::V1Line)
}

fn port(text: &str) -> Result<u16, Error> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().map_err(|_| Error::V1Line) } else { Err(Error::V1Line) }
}

// Version 2, section 2.2: signature, version and command, family and transport, length; addresses; TLVs.

/// Length of the whole header in bytes, once it can be known.
fn v2_length(buf: &[u8]) -> Option<usize> {
    let length = buf.get(14..V2_FIXED)?.first_chunk::<2>()?;
    Some(V2_FIXED + usize::from(u16::from_be_bytes(*length)))
}

/// A header whose fixed part is not all there. What is wrong already is said already, so that a cut changes nothing
/// but the moment.
fn early_v2(buf: &[u8]) -> Result<Parsed, Error> {
    if let Some(version_command) = buf.get(12) {
        command(*version_command)?;
    }
    Ok(Parsed::Incomplete)
}

/// Whether the command is PROXY (and not LOCAL).
fn command(version_command: u8) -> Result<bool, Error> {
    match (version_command >> 4, version_command & 0x0f) {
        (2, 0) => Ok(false),
        (2, 1) => Ok(true),
        (2, _) => Err(Error::Command),
        _ => Err(Error::Version),
    }
}

fn parse_v2(buf: &[u8]) -> Result<Parsed, Error> {
    let (Some(&version_command), Some(&family), Some(length)) = (buf.get(12), buf.get(13), v2_length(buf))
    else {
        return Ok(Parsed::Incomplete);
    };
    let proxied = command(version_command)?;
    // For LOCAL the family is ignored (section 2.2), and UNSPEC says that the addresses are not known.
    let address_bytes = match (proxied, family) {
        (false, _) | (true, 0x00) => None,
        (true, 0x11) => Some(12),
        (true, 0x21) => Some(36),
        (true, 0x31) => Some(216),
        (true, _) => return Err(Error::Family),
    };
    if length > V2_BYTES_MAX {
        return Err(Error::V2TooLong);
    }
    if length - V2_FIXED < address_bytes.unwrap_or(0) {
        return Err(Error::V2TooShort);
    }
    let Some(header) = buf.get(..length) else { return Ok(Parsed::Incomplete) };
    let Some(address_bytes) = address_bytes else { return Ok(complete(length, None)) };
    check_tlvs(header, V2_FIXED + address_bytes)?;
    let addresses = header.get(V2_FIXED..V2_FIXED + address_bytes).unwrap_or_default();
    Ok(complete(length, v2_addresses(addresses)))
}

/// The two addresses of a block of 12 (IPv4) or 36 (IPv6) bytes; `None` for any other (a Unix path).
fn v2_addresses(block: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let (ips, ports) = block.split_last_chunk::<4>()?;
    let [a, b, c, d] = *ports;
    let (from, to): (IpAddr, IpAddr) = if let Ok(ips) = <[u8; 8]>::try_from(ips) {
        let both = u64::from_be_bytes(ips);
        (Ipv4Addr::from((both >> 32) as u32).into(), Ipv4Addr::from(both as u32).into())
    } else if ips.len() == 32 {
        let (from, to) = (ips.first_chunk::<16>()?, ips.last_chunk::<16>()?);
        (Ipv6Addr::from(*from).into(), Ipv6Addr::from(*to).into())
    } else {
        return None;
    };
    let (from_port, to_port) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    Some((SocketAddr::new(from, from_port), SocketAddr::new(to, to_port)))
}

/// Walks the TLVs from `start` to the end of the header; all are skipped but the checksum, which is verified where
/// present (section 2.2.3).
fn check_tlvs(header: &[u8], start: usize) -> Result<(), Error> {
    let mut rest = header.get(start..).unwrap_or_default();
    let mut checked = false;
    // Ends: each round takes three bytes at least.
    while !rest.is_empty() {
        let ([kind, high, low], after) = rest.split_first_chunk::<3>().ok_or(Error::Tlv)?;
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let (value, next) = after.split_at_checked(length).ok_or(Error::Tlv)?;
        if *kind == TLV_CRC32C {
            // A second one is not defined, and each would cost a walk over the whole header.
            let stated = <[u8; 4]>::try_from(value).map_err(|_| Error::Tlv)?;
            if std::mem::replace(&mut checked, true) {
                return Err(Error::Tlv);
            }
            if crc32c_without(header, header.len() - after.len()) != u32::from_be_bytes(stated) {
                return Err(Error::Checksum);
            }
        }
        rest = next;
    }
    Ok(())
}

/// CRC-32C (RFC 4960 appendix B) of the header with the four bytes from `hole` on taken as zero. Bit by bit: it runs
/// once per connection and only for balancers that send it.
fn crc32c_without(header: &[u8], hole: usize) -> u32 {
    let bytes = header.iter().enumerate();
    !bytes.fold(u32::MAX, |crc, (position, byte)| {
        let byte = if (hole..hole + 4).contains(&position) { 0 } else { *byte };
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
    })
}

fn complete(consumed: usize, pair: Option<(SocketAddr, SocketAddr)>) -> Parsed {
    let (source, destination) = pair.unzip();
    Parsed::Complete(Header { consumed, source, destination })
}

#[cfg(test)]
mod tests;
