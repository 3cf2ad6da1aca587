//! Large reads and few packets under TLS.
//!
//! rustls asks the socket for 4 KiB at a time, whatever there is: 256 calls for each megabyte of an upload. [`Ahead`] stands
//! between them. While reads come back full it takes as much as one call gives, and hands it on from memory. Who sends
//! little never has such a buffer, and who sends much has one only while something is left in it: not while he is waited for.
//!
//! A server ends a handshake of TLS 1.3 with session tickets, which nobody waits for. Some clients have sent their first request
//! by then, so the tickets wait for what is written next, and go in its packet; where a read finds no request, they are
//! released. In the same way the end of TLS (close_notify)
//! goes in one packet with the end of TCP.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::net::SendFlags;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use crate::net::send;
use crate::net::unheard::Unheard;

/// Bytes of one read ahead: four TLS records.
pub const SIZE: usize = 64 * 1024;
/// A read that was given less room than this says nothing by being full.
const TELLING: usize = 2048;
/// Buffers that a worker keeps for the next one who needs one.
const SPARE_MAX: usize = 4;
/// Bytes that are read before a handshake has begun: what rustls takes in one read, so that nobody who waits for a turn or a
/// certificate has a buffer meanwhile.
const FIRST: usize = 4096;
/// Bytes of tickets that wait; more are sent at once.
const TICKETS_MAX: usize = 4096;
/// Content type of an encrypted record under TLS 1.3 (RFC 8446 section 5.2). What a server of TLS 1.2 says at the end of a
/// handshake begins with another one.
const ENCRYPTED: u8 = 23;

thread_local! {
    static SPARE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A TCP connection under TLS.
pub struct Ahead {
    tcp: TcpStream,
    unheard: Unheard,
    /// What was read and not yet handed on.
    left: Option<Left>,
    /// The last read took all it had room for, or much: there is more, or will be.
    full: bool,
    /// Of a server, until its handshake is over.
    greeting: Option<Greeting>,
    /// Said to have been written: it goes out in front of what is written next.
    held: Vec<u8>,
    /// Nothing is written any more but the end.
    ends: bool,
    sent: u64,
}

/// How far a server's handshake is, as far as the bytes tell.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Greeting {
    /// The last thing was a write.
    Said,
    /// The last write did not write all that there was: the next one begins somewhere within.
    Within,
    /// The last thing was a read: the next write begins with a record.
    Heard,
}

struct Left {
    bytes: Box<[u8]>,
    at: usize,
    end: usize,
}

impl Ahead {
    /// Nothing is read ahead before a read comes back full.
    pub fn new(tcp: TcpStream) -> Ahead {
        let unheard = Unheard::default();
        Ahead {
            tcp,
            unheard,
            left: None,
            full: false,
            greeting: None,
            held: Vec::new(),
            ends: false,
            sent: 0,
        }
    }

    /// For the server's side: until [`Ahead::greeted`], session tickets are held back.
    pub fn greeting(tcp: TcpStream) -> Ahead {
        let mut ahead = Ahead::new(tcp);
        ahead.greeting = Some(Greeting::Said);
        ahead
    }

    /// The handshake is over.
    pub fn greeted(&mut self) {
        self.greeting = None;
    }

    /// Waits for the first bytes, and gives the first one without taking it; `None` at the end.
    ///
    /// # Errors
    /// The socket's.
    pub async fn first(&mut self) -> io::Result<Option<u8>> {
        if self.left.is_none() {
            std::future::poll_fn(|cx| self.poll_ahead(cx, FIRST)).await?;
        }
        Ok(self.left.as_ref().and_then(|left| left.bytes.get(left.at).copied()))
    }

    /// Sends what is held back; ready when nothing is.
    ///
    /// # Errors
    /// The socket's.
    pub fn poll_release(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            let sent = ready!(Pin::new(&mut self.tcp).poll_write(cx, &self.held))?;
            self.held.drain(..sent);
        }
        self.held = Vec::new();
        Poll::Ready(Ok(()))
    }

    /// Holds `bufs` back, if they are tickets: in TLS 1.3 a server says nothing else that begins with an encrypted record
    /// between the client's last word and the end of the handshake, but for an alert, behind which it ends.
    fn holds(&mut self, bufs: &[io::IoSlice<'_>]) -> bool {
        let holds = self.greeting == Some(Greeting::Heard)
            && bufs.iter().find_map(|buf| buf.first()) == Some(&ENCRYPTED)
            && self.held.len() + send::size_of(bufs) <= TICKETS_MAX;
        if holds {
            bufs.iter().for_each(|buf| self.held.extend_from_slice(buf));
        }
        holds
    }

    /// Sends what is held back in one packet with `bufs`; gives how much of `bufs` that was.
    fn poll_with_held(&mut self, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let mut all = Vec::with_capacity(bufs.len() + 1);
        all.push(io::IoSlice::new(&self.held));
        all.extend_from_slice(bufs);
        let sent = ready!(send::poll_send(Pin::new(&mut self.tcp), cx, &all))?;
        match sent.checked_sub(self.held.len()) {
            Some(more) if more > 0 => {
                self.held = Vec::new();
                Poll::Ready(Ok(more))
            }
            _ => {
                self.held.drain(..sent);
                ready!(self.poll_release(cx))?;
                send::poll_send(Pin::new(&mut self.tcp), cx, bufs)
            }
        }
    }

    /// Writes the end: the kernel keeps it for the packet that says so in TCP, which follows.
    fn poll_end(&mut self, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if let [only] = bufs {
            let flags = SendFlags::MORE | SendFlags::NOSIGNAL;
            let sent = self
                .tcp
                .try_io(Interest::WRITABLE, || rustix::net::send(&self.tcp, only, flags).map_err(Into::into));
            match sent {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return Poll::Ready(other),
            }
        }
        send::poll_send(Pin::new(&mut self.tcp), cx, bufs)
    }

    /// [`AsyncWrite::poll_shutdown`] is next, and writes what TLS has to say about it: nothing else is written any more.
    pub fn ends(&mut self) {
        self.ends = true;
    }

    /// See [`Unheard::set`].
    pub fn unheard(&mut self) {
        self.unheard.set();
    }

    /// The socket.
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// Bytes sent so far, but for the session tickets and what went with them.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Whether the next read is from memory.
    pub fn has_left(&self) -> bool {
        self.left.is_some()
    }

    fn give(&mut self, buf: &mut ReadBuf<'_>) {
        let Some(left) = &mut self.left else { return };
        let count = buf.remaining().min(left.end - left.at);
        if let Some(bytes) = left.bytes.get(left.at..left.at + count) {
            buf.put_slice(bytes);
        }
        left.at += count;
        if left.at == left.end
            && let Some(left) = self.left.take()
        {
            give_back(left.bytes);
        }
    }

    /// Reads at most `most` bytes.
    fn poll_ahead(&mut self, cx: &mut Context<'_>, most: usize) -> Poll<io::Result<()>> {
        let mut bytes = SPARE.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; SIZE].into_boxed_slice());
        let mut into = ReadBuf::new(bytes.get_mut(..most).unwrap_or_default());
        let read = self.unheard.poll_read(&mut self.tcp, cx, &mut into);
        let end = into.filled().len();
        if read.is_ready() {
            self.full = end > TELLING;
        }
        if end == 0 {
            give_back(bytes);
        } else {
            self.left = Some(Left { bytes, at: 0, end });
        }
        read
    }

    /// Reads, from memory or from the socket.
    fn poll_take(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.left.is_none() && self.full && self.greeting.is_none() {
            ready!(self.poll_ahead(cx, SIZE))?;
        } else if self.left.is_none() {
            let room = buf.remaining();
            ready!(self.unheard.poll_read(&mut self.tcp, cx, buf))?;
            self.full = room >= TELLING && buf.remaining() == 0;
            return Poll::Ready(Ok(()));
        }
        self.give(buf);
        Poll::Ready(Ok(()))
    }
}

fn give_back(bytes: Box<[u8]>) {
    SPARE.with_borrow_mut(|spare| {
        if spare.len() < SPARE_MAX {
            spare.push(bytes);
        }
    });
}

impl Drop for Ahead {
    fn drop(&mut self) {
        if let Some(left) = self.left.take() {
            give_back(left.bytes);
        }
        if !self.held.is_empty() {
            // An alert, most often; whoever is gone misses nothing.
            let _ = self.tcp.try_write(&self.held);
        }
    }
}

impl AsyncRead for Ahead {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        ready!(this.poll_take(cx, buf))?;
        if this.greeting == Some(Greeting::Said) && buf.filled().len() > before {
            this.greeting = Some(Greeting::Heard);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Ahead {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.as_mut().poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_release(cx))?;
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.holds(bufs) {
            return Poll::Ready(Ok(send::size_of(bufs)));
        }
        if !this.held.is_empty() {
            return this.poll_with_held(cx, bufs);
        }
        if this.ends {
            return this.poll_end(cx, bufs);
        }
        let sent = send::poll_send(Pin::new(&mut this.tcp), cx, bufs);
        if let Poll::Ready(Ok(count)) = &sent {
            this.sent += *count as u64;
        }
        if this.greeting.is_some() {
            let whole = matches!(sent, Poll::Ready(Ok(count)) if count == send::size_of(bufs));
            this.greeting = Some(if whole { Greeting::Said } else { Greeting::Within });
        }
        sent
    }
    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (Ahead, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (Ahead::new(listener.accept().await.unwrap().0), client)
    }

    #[tokio::test]
    async fn every_byte_comes_once_and_in_order_however_it_is_read() {
        let (mut ahead, mut client) = pair().await;
        let sent: Vec<u8> = (0..1_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let all = sent.clone();
        let sending = tokio::spawn(async move {
            for piece in all.chunks(70_001) {
                client.write_all(piece).await.unwrap();
            }
        });
        let (mut got, mut was_ahead) = (Vec::new(), false);
        for room in [4096, 1, 4096, 100_000, 17, 3000].into_iter().cycle() {
            let mut piece = vec![0; room];
            let count = ahead.read(&mut piece).await.unwrap();
            if count == 0 {
                break;
            }
            got.extend_from_slice(&piece[..count]);
            was_ahead |= ahead.has_left();
        }
        sending.await.unwrap();
        assert!(got == sent, "{} of {} bytes", got.len(), sent.len());
        assert!(was_ahead && !ahead.has_left(), "it read ahead, and nothing is left at the end");
    }

    #[tokio::test]
    async fn who_sends_much_in_bursts_is_read_in_one_call_each_and_costs_no_buffer_in_between() {
        let (mut ahead, mut client) = pair().await;
        client.write_all(&[7; 20_000]).await.unwrap();
        ahead.read_exact(&mut [0; 20_000]).await.unwrap();
        for _ in 0..3 {
            let mut room = [0; 4096];
            let mut next = std::pin::pin!(ahead.read(&mut room));
            assert!(std::future::poll_fn(|cx| Poll::Ready(next.as_mut().poll(cx).is_pending())).await);
            client.write_all(&[7; 20_000]).await.unwrap();
            assert_eq!(next.await.unwrap(), 4096);
            assert!(ahead.has_left(), "what is behind the room was read too");
            ahead.read_exact(&mut [0; 20_000 - 4096]).await.unwrap();
            assert!(!ahead.has_left());
        }
        // A small piece ends it.
        client.write_all(&[7; 100]).await.unwrap();
        ahead.read_exact(&mut [0; 100]).await.unwrap();
        assert!(!ahead.full && !ahead.has_left());
    }

    /// A server that has said its part and heard the client's.
    async fn heard() -> (Ahead, TcpStream) {
        let (mut ahead, mut client) = pair().await;
        ahead.greeting = Some(Greeting::Said);
        ahead.write_all(b"\x16flight").await.unwrap();
        client.write_all(b"\x14finished").await.unwrap();
        ahead.read_exact(&mut [0; 9]).await.unwrap();
        client.read_exact(&mut [0; 7]).await.unwrap();
        (ahead, client)
    }

    async fn comes(client: &mut TcpStream, expected: &[u8]) {
        let mut got = vec![0; expected.len()];
        client.read_exact(&mut got).await.unwrap();
        assert_eq!(got, expected);
    }

    /// Nothing has come so far: what is sent past the rest comes first.
    async fn nothing_before(ahead: &mut Ahead, client: &mut TcpStream, mark: &[u8]) {
        ahead.tcp.write_all(mark).await.unwrap();
        comes(client, mark).await;
    }

    #[tokio::test]
    async fn tickets_wait_for_what_is_written_next() {
        for size in [3, 900, 20_000, 3_000_000] {
            let (mut ahead, mut client) = heard().await;
            ahead.write_all(b"\x17ticket").await.unwrap();
            ahead.write_all(b"\x17and one more").await.unwrap();
            ahead.greeted();
            ahead.flush().await.unwrap();
            nothing_before(&mut ahead, &mut client, b"mark").await;
            let answer = vec![7; size];
            let all = [b"\x17ticket\x17and one more".as_slice(), &answer].concat();
            let reading = tokio::spawn(async move {
                comes(&mut client, &all).await;
                client
            });
            ahead.write_all(&answer).await.unwrap();
            let mut client = reading.await.unwrap();
            // Once.
            ahead.write_all(b"next").await.unwrap();
            comes(&mut client, b"next").await;
        }
    }

    #[tokio::test]
    async fn what_is_held_goes_out_when_it_is_released_at_the_end_and_with_the_connection() {
        for how in 0..3 {
            let (mut ahead, mut client) = heard().await;
            ahead.write_all(b"\x17ticket").await.unwrap();
            match how {
                0 => {
                    std::future::poll_fn(|cx| ahead.poll_release(cx)).await.unwrap();
                    comes(&mut client, b"\x17ticket").await;
                    std::future::poll_fn(|cx| ahead.poll_release(cx)).await.unwrap();
                }
                1 => ahead.shutdown().await.unwrap(),
                _ => {}
            }
            drop(ahead);
            let mut rest = Vec::new();
            client.read_to_end(&mut rest).await.unwrap();
            assert_eq!(rest, if how == 0 { b"".as_slice() } else { b"\x17ticket" }, "{how}");
        }
    }

    #[tokio::test]
    async fn nothing_that_a_client_waits_for_is_held_back() {
        // TLS 1.2 ends with other records.
        let (mut ahead, mut client) = heard().await;
        for last in [b"\x16ticket".as_slice(), b"\x14change"] {
            ahead.write_all(last).await.unwrap();
            comes(&mut client, last).await;
        }
        // Nothing was heard since: it belongs to what was said.
        ahead.write_all(b"\x17extensions").await.unwrap();
        comes(&mut client, b"\x17extensions").await;
        // Too much, and what comes after the handshake.
        let (mut ahead, mut client) = heard().await;
        let large = vec![ENCRYPTED; TICKETS_MAX + 1];
        ahead.write_all(&large).await.unwrap();
        comes(&mut client, &large).await;
        let (mut ahead, mut client) = heard().await;
        ahead.greeted();
        ahead.write_all(b"\x17data").await.unwrap();
        comes(&mut client, b"\x17data").await;
        // The middle of a record is no ticket, whatever it begins with.
        let (mut ahead, mut client) = heard().await;
        ahead.greeting = Some(Greeting::Within);
        client.write_all(b"alert").await.unwrap();
        ahead.read_exact(&mut [0; 5]).await.unwrap();
        ahead.write_all(b"\x17middle").await.unwrap();
        comes(&mut client, b"\x17middle").await;
    }

    #[tokio::test]
    async fn the_first_byte_is_told_and_stays() {
        let (mut ahead, mut client) = pair().await;
        client.write_all(b"hello").await.unwrap();
        assert_eq!(ahead.first().await.unwrap(), Some(b'h'));
        assert_eq!(ahead.first().await.unwrap(), Some(b'h'));
        ahead.read_exact(&mut [0; 5]).await.unwrap();
        assert!(!ahead.has_left());
        drop(client);
        assert_eq!(ahead.first().await.unwrap(), None);
    }

    #[tokio::test]
    async fn the_end_is_written_whole() {
        let (mut ahead, mut client) = pair().await;
        ahead.write_all(b"answer").await.unwrap();
        ahead.ends();
        ahead.write_all(b"close_notify").await.unwrap();
        ahead.shutdown().await.unwrap();
        let mut all = Vec::new();
        client.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"answerclose_notify");
    }

    #[tokio::test]
    async fn who_sends_little_costs_no_buffer() {
        let (mut ahead, mut client) = pair().await;
        for _ in 0..3 {
            client.write_all(&[7; 4095]).await.unwrap();
            assert!(ahead.read(&mut [0; 4096]).await.unwrap() < 4096);
            assert!(!ahead.full && !ahead.has_left());
        }
        // A piece as large as the room: a look ahead finds nothing, and keeps nothing.
        client.write_all(&[7; 4096]).await.unwrap();
        ahead.read_exact(&mut [0; 4096]).await.unwrap();
        let mut room = [0; 4096];
        let mut next = std::pin::pin!(ahead.read(&mut room));
        assert!(std::future::poll_fn(|cx| Poll::Ready(next.as_mut().poll(cx).is_pending())).await);
        drop(client);
        assert_eq!(next.await.unwrap(), 0);
        assert!(!ahead.full && !ahead.has_left());
    }
}
