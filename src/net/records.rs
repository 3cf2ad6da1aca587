//! How what is written is cut into TLS records: so that copying it is fast, and packets are full.
//!
//! rustls copies what it encrypts into a record of its own. Some processors copy large pieces (`rep movsb`, which the C library
//! takes from about 2 KiB on) many times slower where the destination begins a few bytes further into its page than the
//! source: each read then seems to need the write just before it. An AMD EPYC (Zen 4) takes 6.7 µs for 16 KiB, not 0.3, where these
//! are 1 to 15 bytes. That is no rare accident: buffers of many KiB begin with a page, and so do records, behind a header of
//! five bytes. So the first record of such a piece is copied in small slices, and ends where the others begin elsewhere.

use std::io::{self, IoSlice, Write};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::BufMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio_rustls::TlsStream;

use crate::net::ahead::Ahead;
use crate::net::send;

/// Bytes of a record's header (RFC 8446 section 5.1), which stands before what is copied.
const HEADER: usize = 5;
/// Bytes that a record has besides its plaintext: its header, the inner type, the tag (RFC 8446 section 5.2).
pub const ADDED: usize = HEADER + 1 + 16;
/// The most plaintext of a record (RFC 8446 section 5.1).
const RECORD: usize = 16 * 1024;
/// What offsets are within.
const PAGE: usize = 4096;
/// A destination is slow that begins fewer bytes behind the source than this, in their pages.
const NEAR: usize = 32;
/// Slices of this size are copied by other means than larger ones.
const SMALL: usize = 2048;
/// Slices that a first record has at most.
const SLICES: usize = 16;
/// Plaintext of the first record where others follow it: a quarter of a page short of a whole one, so that those begin elsewhere.
/// With three whole ones behind it that is [`PIECE`].
const FIRST: usize = RECORD - PAGE / 4;
/// Bytes of one packet: the kernel hands 64 KiB with all headers to the network card, which cuts it.
pub const PACKET: usize = 65_483;
/// Plaintext that goes into four records and, with those, into one packet.
const FOUR: usize = PACKET - 4 * ADDED;
/// Plaintext of one of them.
pub const QUARTER: usize = FOUR / 4;

/// Bytes that are best read at once to be sent on, from a sender who sends much: four records and one packet hold them, where
/// 64 KiB would begin a second packet.
pub const PIECE: usize = 63 * 1024;

/// As [`AsyncWrite::poll_write_vectored`], of one packet at most.
///
/// # Errors
/// The stream's.
pub fn poll_write(
    tls: &mut TlsStream<Ahead>,
    cx: &mut Context<'_>,
    bufs: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    let size = send::size_of(bufs);
    if size <= SMALL {
        return Pin::new(tls).poll_write_vectored(cx, bufs);
    }
    let portion = portion(bufs);
    let mut first = 0;
    if is_slow(bufs) {
        let mut slices = [IoSlice::new(&[]); SLICES];
        if portion <= RECORD {
            return Pin::new(tls).poll_write_vectored(cx, cut(bufs, portion, &mut slices));
        }
        let slices = cut(bufs, FIRST, &mut slices);
        // Encrypted and queued, not sent: it goes out with the rest.
        first = match tls {
            TlsStream::Client(tls) => tls.get_mut().1.writer().write_vectored(slices),
            TlsStream::Server(tls) => tls.get_mut().1.writer().write_vectored(slices),
        }?;
    } else if portion == size {
        return Pin::new(tls).poll_write_vectored(cx, bufs);
    }
    match Pin::new(tls).poll_write_vectored(cx, &between(bufs, first, portion)) {
        Poll::Ready(Ok(more)) => Poll::Ready(Ok(first + more)),
        Poll::Pending if first > 0 => Poll::Ready(Ok(first)),
        other => other,
    }
}

/// Encrypts `bufs`, or their beginning, and has that wait for what is written next or flushed; gives how much that is. `None`
/// where something else waits for room in the socket, although `alone` says that nothing does.
///
/// # Errors
/// rustls's.
pub fn queue(tls: &mut TlsStream<Ahead>, bufs: &[IoSlice<'_>], alone: bool) -> io::Result<Option<usize>> {
    if alone && tls.get_ref().1.wants_write() {
        return Ok(None);
    }
    let mut slices = [IoSlice::new(&[]); SLICES];
    let bufs = if is_slow(bufs) { cut(bufs, RECORD, &mut slices) } else { bufs };
    let mut writer = match tls {
        TlsStream::Client(tls) => tls.get_mut().1.writer(),
        TlsStream::Server(tls) => tls.get_mut().1.writer(),
    };
    writer.write_vectored(bufs).map(Some)
}

/// How many bytes are written at once: what fills a packet, where possible to the end of a buffer.
fn portion(bufs: &[IoSlice<'_>]) -> usize {
    let mut end = 0;
    for buf in bufs {
        if end + buf.len() > FOUR {
            return if end > PIECE / 2 { end } else { PIECE };
        }
        end += buf.len();
    }
    end
}

/// Whether the first large slice would be copied to where that is slow.
fn is_slow(bufs: &[IoSlice<'_>]) -> bool {
    let mut before = HEADER;
    for buf in bufs {
        if buf.len() > SMALL {
            return (1..NEAR).contains(&(before.wrapping_sub(buf.as_ptr().addr()) % PAGE));
        }
        before += buf.len();
    }
    false
}

/// The beginning of `bufs` in small slices: `most` bytes, or as many as there is room for.
fn cut<'a, 'b>(
    bufs: &'b [IoSlice<'a>],
    most: usize,
    slices: &'b mut [IoSlice<'b>; SLICES],
) -> &'b [IoSlice<'b>] {
    let (mut left, mut count) = (most, 0);
    for (slice, place) in bufs.iter().flat_map(|buf| buf.chunks(SMALL)).zip(slices.iter_mut()) {
        if left == 0 {
            break;
        }
        let slice = slice.get(..left).unwrap_or(slice);
        *place = IoSlice::new(slice);
        left -= slice.len();
        count += 1;
    }
    slices.get(..count).unwrap_or_default()
}

/// What of `bufs` is behind its first `begin` bytes and within its first `end`.
fn between<'a>(bufs: &'a [IoSlice<'_>], begin: usize, end: usize) -> Vec<IoSlice<'a>> {
    let mut at = 0;
    let part = |buf: &'a IoSlice<'_>| {
        let (from, to) = (begin.saturating_sub(at).min(buf.len()), end.saturating_sub(at).min(buf.len()));
        at += buf.len();
        buf.get(from..to).filter(|part| !part.is_empty()).map(IoSlice::new)
    };
    bufs.iter().filter_map(part).collect()
}

/// As [`AsyncRead::poll_read`], of [`PIECE`] at most.
///
/// # Errors
/// The stream's.
pub fn poll_read<S: AsyncRead + Unpin>(
    io: &mut S,
    cx: &mut Context<'_>,
    buf: &mut ReadBuf<'_>,
) -> Poll<io::Result<()>> {
    if buf.remaining() <= PIECE {
        return Pin::new(io).poll_read(cx, buf);
    }
    let mut piece = buf.limit(PIECE);
    pin!(io.read_buf(&mut piece)).poll(cx).map_ok(drop)
}

#[cfg(test)]
pub(crate) use tests::{pair, some};

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::Arc;
    use std::thread::JoinHandle;

    use tokio::io::AsyncWriteExt;
    use tokio_rustls::TlsAcceptor;
    use tokio_rustls::rustls::{self, ClientConfig, ClientConnection, RootCertStore, ServerConfig};

    use super::*;

    /// A socket, and what was read from it.
    struct Tap(std::net::TcpStream, Vec<u8>);
    impl Read for Tap {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let count = self.0.read(buf)?;
            self.1.extend_from_slice(&buf[..count]);
            Ok(count)
        }
    }
    impl Write for Tap {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            self.0.write(buf)
        }
        fn flush(&mut self) -> io::Result<()> {
            self.0.flush()
        }
    }

    /// A server's side, and a client who reads to the end: gives what it was told, and the plaintext in each record.
    pub(crate) async fn pair() -> (TlsStream<Ahead>, JoinHandle<(Vec<u8>, Vec<usize>)>) {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let own = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(own.cert.der().clone()).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
        let chain = vec![own.cert.der().clone()];
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        server.send_tls13_tickets = 0;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let client = std::thread::spawn(move || {
            let config = ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
            let name = "a.test".try_into().unwrap();
            let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
            let mut tap = Tap(std::net::TcpStream::connect(address).unwrap(), Vec::new());
            client.complete_io(&mut tap).unwrap();
            let (mut got, handshake) = (Vec::new(), tap.1.len());
            rustls::Stream::new(&mut client, &mut tap).read_to_end(&mut got).unwrap();
            let (mut records, mut rest) = (Vec::new(), &tap.1[handshake..]);
            while let [_, _, _, high, low, ..] = *rest {
                let length = usize::from(u16::from_be_bytes([high, low]));
                records.push(length + HEADER - ADDED);
                rest = &rest[HEADER + length..];
            }
            (got, records)
        });
        let tcp = listener.accept().await.unwrap().0;
        let server = TlsAcceptor::from(Arc::new(server)).accept(Ahead::new(tcp)).await.unwrap();
        (TlsStream::Server(server), client)
    }

    /// Bytes of which none is as the one a page before it.
    pub(crate) fn some(size: usize) -> Vec<u8> {
        (0..size).map(|n| (n / 251 + n) as u8).collect()
    }

    /// Writes all, each call as it comes; gives how much each took.
    async fn write_all(tls: &mut TlsStream<Ahead>, mut bufs: &mut [IoSlice<'_>]) -> Vec<usize> {
        let mut took = Vec::new();
        while !bufs.is_empty() {
            let count = std::future::poll_fn(|cx| poll_write(tls, cx, bufs)).await.unwrap();
            took.push(count);
            IoSlice::advance_slices(&mut bufs, count);
        }
        tls.flush().await.unwrap();
        took
    }

    #[tokio::test]
    async fn every_byte_comes_once_and_in_order_wherever_its_buffer_lies() {
        let (mut tls, client) = pair().await;
        let mut sent = Vec::new();
        for size in [1, SMALL, SMALL + 1, RECORD, RECORD + 1, PIECE, FOUR + 1, 300_000] {
            for offset in [0, 1, 5, 300, PAGE - 9] {
                let buffer = some(size + 2 * PAGE);
                let begin = buffer.as_ptr().align_offset(PAGE) + offset;
                let (head, body) = (&buffer[..9], &buffer[begin..begin + size]);
                write_all(&mut tls, &mut [IoSlice::new(body)]).await;
                write_all(&mut tls, &mut [IoSlice::new(head), IoSlice::new(body), IoSlice::new(head)]).await;
                sent.extend([body, head, body, head].concat());
            }
        }
        tls.shutdown().await.unwrap();
        let (got, _) = client.join().unwrap();
        assert!(got == sent, "{} of {} bytes", got.len(), sent.len());
    }

    #[tokio::test]
    async fn a_piece_that_begins_with_a_page_is_cut_so_that_its_other_records_do_not() {
        let (mut tls, client) = pair().await;
        let buffer = some(PIECE + 2 * PAGE);
        let page = buffer.as_ptr().align_offset(PAGE);
        let mut piece = [IoSlice::new(&buffer[page..page + PIECE])];
        assert!(is_slow(&piece));
        assert_eq!(write_all(&mut tls, &mut piece).await, [PIECE], "with one packet");
        let mut elsewhere = [IoSlice::new(&buffer[page + 300..page + 300 + PIECE])];
        assert!(!is_slow(&elsewhere));
        assert_eq!(write_all(&mut tls, &mut elsewhere).await, [PIECE]);
        let mut short = [IoSlice::new(&buffer[page..page + RECORD])];
        write_all(&mut tls, &mut short).await;
        tls.shutdown().await.unwrap();
        let (_, records) = client.join().unwrap();
        let of_piece = [FIRST, RECORD, RECORD, RECORD];
        let of_elsewhere = [RECORD, RECORD, RECORD, FIRST];
        // close_notify is two bytes.
        assert_eq!(records, [&of_piece[..], &of_elsewhere, &[RECORD], &[2]].concat());
    }

    #[test]
    fn what_is_written_at_once_fills_a_packet_and_ends_with_a_buffer_where_it_can() {
        let zeros = vec![0; 200_000];
        let portion_of = |sizes: &[usize]| {
            let bufs: Vec<_> = sizes.iter().map(|size| IoSlice::new(&zeros[..*size])).collect();
            portion(&bufs)
        };
        assert_eq!(portion_of(&[]), 0);
        assert_eq!(portion_of(&[9, 100]), 109);
        assert_eq!(portion_of(&[300, PIECE, PIECE]), 300 + PIECE, "a head before a piece");
        assert_eq!(portion_of(&[FOUR]), FOUR);
        assert_eq!(portion_of(&[FOUR + 1]), PIECE);
        assert_eq!(portion_of(&[1000, 65_536]), PIECE, "a small rest does not go alone");
        assert_eq!(portion_of(&[40_000, 40_000]), 40_000);
    }

    #[test]
    fn slow_is_where_the_copy_begins_just_behind_its_source() {
        let buffer = some(4 * PAGE);
        let page = buffer.as_ptr().align_offset(PAGE);
        let at = |offset: usize| IoSlice::new(&buffer[page + offset..page + offset + PAGE]);
        let (nine, many) = (IoSlice::new(&buffer[..9]), IoSlice::new(&buffer[..300]));
        let slow: Vec<_> = (0..2 * PAGE).filter(|offset| is_slow(&[at(*offset)])).collect();
        // Behind a header of five bytes: 1 to 31 bytes further.
        let near = |offset: &usize| {
            *offset < 5 || (PAGE - 26..PAGE + 5).contains(offset) || *offset >= 2 * PAGE - 26
        };
        assert_eq!(slow, (0..2 * PAGE).filter(near).collect::<Vec<_>>());
        assert!(is_slow(&[nine, at(0)]), "the head of an HTTP/2 frame before it");
        assert!(is_slow(&[many, at(300)]));
        assert!(!is_slow(&[many, at(0)]));
        assert!(
            !is_slow(&[IoSlice::new(&buffer[page..page + SMALL])]),
            "small ones are copied by other means"
        );
    }

    #[tokio::test]
    async fn a_read_takes_a_piece_at_most_and_finds_the_end() {
        let sent = some(100_000);
        let (mut from, mut into) = (sent.as_slice(), Vec::new());
        let mut room = vec![0; 80_000];
        loop {
            let mut buf = ReadBuf::new(&mut room);
            std::future::poll_fn(|cx| poll_read(&mut from, cx, &mut buf)).await.unwrap();
            if buf.filled().is_empty() {
                break;
            }
            into.push(buf.filled().to_vec());
        }
        assert_eq!(into.iter().map(Vec::len).collect::<Vec<_>>(), [PIECE, 100_000 - PIECE]);
        assert!(into.concat() == sent);
    }
}
