//! A socket to a server, whose short answers are acknowledged by the next request.
//!
//! Many servers write the head and the body of a short answer in two packets. Linux acknowledges two such packets at once when
//! nothing of them is left to read, by a packet of its own: a tenth of all that a small request costs a proxy. So a short
//! answer is read and yet left in the socket (`MSG_PEEK`) until the next one comes. By then the next request has carried the
//! acknowledgement, as data does (RFC 9293 section 3.8.6.3); where no request follows, the kernel sends it after its usual
//! delay.
//!
//! Leaving costs a system call for each answer, so it goes on only for servers that do write in two packets. That shows by
//! times: the head is read alone, or news come of what was read already.
//!
//! An acknowledgement that the server may wait for is not held back: a server without `TCP_NODELAY` sends the next small piece
//! only when the last one is acknowledged. So the beginning of an answer stays only where the kernel puts acknowledgements off in
//! any case; and where requests do not follow closely, nothing stays, for the kernel's timer would have to acknowledge it, which
//! makes the kernel put off the next ones too.

use std::future::Future;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::net::sockopt::{set_tcp_quickack, tcp_quickack};
use rustix::net::{RecvFlags, recv};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use crate::base::clock;
use crate::net::send;

/// Bytes of a short answer, fewer than that. What is left in the socket is copied twice; and an answer of more than the
/// least segment (RFC 9293 section 3.7.1: 536 bytes) is mostly acknowledged as it comes.
const SHORT: usize = 1024;

/// Answers that are left before it shows that they come in two packets, or after it did: about one in 200 shows it where a
/// worker has so much to do that it finds both packets there.
const PIECES: u16 = 1024;

/// Microseconds between an answer and the next request that acknowledges it; the kernel's timer waits for 40 ms at least, and
/// the clock may be 10 ms late.
const SOON: u64 = 25_000;

/// The socket, and what was read of it without being taken.
pub struct Piggyback {
    tcp: TcpStream,
    /// So many bytes at the head of the socket's queue have been read already.
    left: usize,
    /// Something was written and nothing read since: what comes next is behind the acknowledgement of what is left.
    asked: bool,
    /// What is read is left in the socket.
    leaves: bool,
    /// Bytes read of this answer.
    answer: usize,
    /// In so many reads.
    reads: usize,
    /// Answers that may still be left.
    pieces: u16,
    /// Until when a request acknowledges the last one soon enough, by the coarse clock.
    until: u64,
    /// The kernel's timer acknowledged what is left.
    overdue: bool,
}

impl Piggyback {
    /// A socket that nothing was read of. As long as nobody says [`Piggyback::settle`], all is taken as it is read.
    pub fn new(tcp: TcpStream) -> Piggyback {
        Piggyback {
            tcp,
            left: 0,
            asked: false,
            leaves: false,
            answer: 0,
            reads: 0,
            pieces: PIECES,
            until: 0,
            overdue: false,
        }
    }

    /// The socket, for anything but reading and writing.
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// Settles what was read so far: whether it ends an answer, or more of it is to come; and so whether it may stay.
    ///
    /// # Errors
    /// The socket's.
    pub fn settle(&mut self, whole: bool) -> io::Result<()> {
        if !whole {
            if self.left > 0 && !matches!(tcp_quickack(&self.tcp), Ok(false)) {
                self.take_left()?;
                self.leaves = false;
            }
            return Ok(());
        }
        let short = self.answer < SHORT;
        self.pieces = if short && self.reads > 1 { PIECES } else { self.pieces.saturating_sub(1) };
        // The next one may be like it.
        self.leaves = short && self.pieces > 0;
        if self.leaves {
            self.until = clock::coarse_micros() + SOON;
        }
        (self.answer, self.reads) = (0, 0);
        Ok(())
    }

    /// Something is written.
    fn asks(&mut self) {
        if !std::mem::replace(&mut self.asked, true) && self.leaves && clock::coarse_micros() >= self.until {
            self.leaves = false;
            self.overdue = self.left > 0;
        }
    }

    /// Tells that no answers follow, but a tunnel: bytes both ways, in whatever order.
    pub fn becomes_tunnel(&mut self) {
        self.leaves = false;
    }

    /// So many were read.
    fn note(&mut self, bytes: usize) {
        self.asked = false;
        self.answer = self.answer.saturating_add(bytes);
        self.reads = self.reads.saturating_add(1);
        self.leaves &= self.answer < SHORT;
    }

    /// Takes from the socket what was read already.
    fn take_left(&mut self) -> io::Result<()> {
        let mut scratch = [const { MaybeUninit::<u8>::uninit() }; SHORT];
        while self.left > 0 {
            let Some(room) = scratch.get_mut(..self.left) else { break };
            let (_, taken) = recv(&self.tcp, room, RecvFlags::empty())?;
            if taken == 0 {
                let gone = format!("{} bytes that were read and left in the socket are gone", self.left);
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, gone));
            }
            self.left -= taken;
        }
        Ok(())
    }

    /// Reads without taking, behind what is left; returns how many bytes. The socket is ready.
    ///
    /// # Errors
    /// The socket's; `WouldBlock` where there is nothing new, or nothing but an end, which a look does not see behind bytes.
    fn look(&mut self, buf: &mut ReadBuf<'_>) -> io::Result<usize> {
        let (left, mut read) = (self.left, 0);
        // What does not fill its room is all there is, and what comes next wakes (epoll's edge). So the socket counts as
        // read empty then: by what was known before the look, for no news of meanwhile may be lost.
        let looked = self.tcp.try_io(Interest::READABLE, || {
            let mut scratch = [const { MaybeUninit::<u8>::uninit() }; SHORT];
            let ((seen, _), size) = recv(&self.tcp, &mut scratch[..], RecvFlags::PEEK)?;
            let new = seen.get(left..).unwrap_or_default();
            let given = new.get(..buf.remaining()).unwrap_or(new);
            buf.put_slice(given);
            read = given.len();
            if size == SHORT || given.len() < new.len() {
                Ok(())
            } else {
                Err(io::ErrorKind::WouldBlock.into())
            }
        });
        self.left += read;
        match looked {
            Err(error) if read == 0 => Err(error),
            _ => Ok(read),
        }
    }

    /// Whether the other side has ended: only asked where the socket was ready and yet held nothing new.
    fn is_at_end(&self, cx: &mut Context<'_>) -> bool {
        let ready = std::pin::pin!(self.tcp.ready(Interest::READABLE)).poll(cx);
        matches!(ready, Poll::Ready(Ok(ready)) if ready.is_read_closed())
    }
}

impl AsyncRead for Piggyback {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        while (this.left > 0 || this.leaves) && buf.remaining() > 0 {
            ready!(this.tcp.poll_read_ready(cx))?;
            if this.asked || !this.leaves {
                this.take_left()?;
                if std::mem::take(&mut this.overdue) {
                    // As if nothing had been left. Where that fails, what comes now is acknowledged by the timer.
                    let _ = set_tcp_quickack(&this.tcp, true);
                }
            }
            if !this.leaves {
                break;
            }
            match this.look(buf) {
                Ok(read) if read > 0 => {
                    this.note(read);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Poll::Ready(Err(error)),
                // News of what was read already: it came in two packets.
                Err(_) if !this.is_at_end(cx) => this.reads = this.reads.saturating_add(1),
                // As much is left as may be, or the connection is at its end.
                _ => this.leaves = false,
            }
        }
        ready!(Pin::new(&mut this.tcp).poll_read(cx, buf))?;
        this.note(buf.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Piggyback {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.asks();
        Pin::new(&mut this.tcp).poll_write(cx, buf)
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_flush(cx)
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_shutdown(cx)
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.asks();
        send::poll_send(Pin::new(&mut this.tcp), cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }
}

impl Drop for Piggyback {
    fn drop(&mut self) {
        // Closed with bytes in it, a socket resets its connection (RFC 2525 section 2.17). Where this fails, it is over.
        let _ = self.take_left();
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (Piggyback, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let theirs = listener.accept().await.unwrap().0;
        theirs.set_nodelay(true).unwrap();
        (Piggyback::new(ours), theirs)
    }

    async fn ask(ours: &mut Piggyback, theirs: &mut TcpStream) {
        ours.write_all(b"?").await.unwrap();
        // As where requests follow answers closely: the kernel puts acknowledgements off.
        set_tcp_quickack(&ours.tcp, false).unwrap();
        assert_eq!(theirs.read_u8().await.unwrap(), b'?');
    }

    /// Asks, is answered in these pieces, and reads all of it, in reads of `room` bytes.
    async fn exchange(ours: &mut Piggyback, theirs: &mut TcpStream, pieces: &[&[u8]], room: usize) {
        ask(ours, theirs).await;
        for piece in pieces {
            theirs.write_all(piece).await.unwrap();
        }
        let (answer, mut read, mut some) = (pieces.concat(), Vec::new(), vec![0; room]);
        while read.len() < answer.len() {
            let size = ours.read(&mut some).await.unwrap();
            assert!(size > 0, "an end after {} bytes", read.len());
            read.extend_from_slice(&some[..size]);
            ours.settle(read.len() == answer.len()).unwrap();
        }
        assert!(read == answer, "{} bytes of another answer", read.len());
    }

    /// Asks, and is answered in two packets, each of which is read alone.
    async fn in_two_reads(ours: &mut Piggyback, theirs: &mut TcpStream) {
        ask(ours, theirs).await;
        for (piece, whole) in [(b"the head", false), (b"the body", true)] {
            theirs.write_all(piece).await.unwrap();
            let mut read = [0; 99];
            let size = ours.read(&mut read).await.unwrap();
            assert_eq!(read[..size], piece[..]);
            ours.settle(whole).unwrap();
        }
    }

    /// Bytes in the socket.
    fn queued(ours: &Piggyback) -> usize {
        match recv(&ours.tcp, &mut [0; 99], RecvFlags::PEEK) {
            Ok((_, size)) => size,
            Err(error) => {
                assert_eq!(error, rustix::io::Errno::WOULDBLOCK);
                0
            }
        }
    }

    /// Whether the next read finds nothing yet.
    async fn is_silent(ours: &mut Piggyback) -> bool {
        let mut byte = [0];
        let mut buf = ReadBuf::new(&mut byte);
        poll_fn(|cx| Poll::Ready(Pin::new(&mut *ours).poll_read(cx, &mut buf).is_pending())).await
    }

    #[tokio::test]
    async fn answers_arrive_whole_and_in_order_whatever_their_sizes() {
        let (mut ours, mut theirs) = pair().await;
        let sizes = [5, 300, 1, SHORT - 1, 7, SHORT, 8, SHORT + 1, 9, 100_000, 10, 11, 0, 12];
        for (at, &size) in sizes.iter().enumerate() {
            let (head, body) = (vec![at as u8; 30], vec![b'a' + at as u8; size]);
            for room in [8192, SHORT, 100, 31] {
                exchange(&mut ours, &mut theirs, &[&head, &body], room).await;
                exchange(&mut ours, &mut theirs, &[&body, &head], room).await;
            }
        }
        assert!(is_silent(&mut ours).await);
    }

    #[tokio::test]
    async fn short_answers_in_two_packets_stay_in_the_socket_until_the_next() {
        let (mut ours, mut theirs) = pair().await;
        exchange(&mut ours, &mut theirs, &[b"head body"], 8192).await;
        assert_eq!(queued(&ours), 0, "nothing is known of a new connection");
        exchange(&mut ours, &mut theirs, &[b"head body 2"], 8192).await;
        assert!(is_silent(&mut ours).await, "it is not read again");
        assert_eq!(queued(&ours), b"head body 2".len());
        exchange(&mut ours, &mut theirs, &[b"3"], 8192).await;
        assert_eq!(queued(&ours), 1, "the second was taken when the third came");
        // A long one is taken, and what follows it.
        exchange(&mut ours, &mut theirs, &[&[b'4'; SHORT]], 8192).await;
        exchange(&mut ours, &mut theirs, &[&[b'5'; 20]], 8192).await;
        assert_eq!(queued(&ours), 0);
        exchange(&mut ours, &mut theirs, &[b"6"], 8192).await;
        assert_eq!(queued(&ours), 1);
        // As is what follows many that came in one read.
        for _ in 0..PIECES {
            exchange(&mut ours, &mut theirs, &[b"one"], 8192).await;
        }
        assert_eq!(queued(&ours), 0);
        in_two_reads(&mut ours, &mut theirs).await;
        ours.becomes_tunnel();
        exchange(&mut ours, &mut theirs, &[b"7"], 8192).await;
        assert_eq!(queued(&ours), 0);
    }

    #[tokio::test]
    async fn nothing_stays_whose_acknowledgement_may_be_waited_for() {
        for at_once in [false, true] {
            let (mut ours, mut theirs) = pair().await;
            in_two_reads(&mut ours, &mut theirs).await;
            ask(&mut ours, &mut theirs).await;
            // Whether the kernel would acknowledge at once what is read now.
            set_tcp_quickack(&ours.tcp, at_once).unwrap();
            let mut read = [0; 99];
            theirs.write_all(b"head\r\n\r\n").await.unwrap();
            assert_eq!(ours.read(&mut read).await.unwrap(), 8);
            ours.settle(false).unwrap();
            assert_eq!(queued(&ours), if at_once { 0 } else { 8 });
            theirs.write_all(b"the body").await.unwrap();
            assert_eq!(ours.read(&mut read).await.unwrap(), 8);
            assert_eq!(read[..8], *b"the body");
            ours.settle(true).unwrap();
            assert!(is_silent(&mut ours).await);
            assert_eq!(queued(&ours), if at_once { 0 } else { 16 }, "head and body in a read each");
            exchange(&mut ours, &mut theirs, &[b"the next"], 8192).await;
            assert_eq!(queued(&ours), 8);
            // Long after the last answer.
            ours.until = 0;
            ask(&mut ours, &mut theirs).await;
            theirs.write_all(b"all of it").await.unwrap();
            assert_eq!(ours.read(&mut read).await.unwrap(), 9);
            ours.settle(true).unwrap();
            assert_eq!(queued(&ours), 0);
            assert!(tcp_quickack(&ours.tcp).unwrap(), "the kernel does not put off what comes now");
        }
    }

    #[tokio::test]
    async fn an_end_and_a_reset_are_told_behind_what_is_left() {
        for reset in [false, true] {
            let (mut ours, mut theirs) = pair().await;
            in_two_reads(&mut ours, &mut theirs).await;
            exchange(&mut ours, &mut theirs, &[b"two"], 8192).await;
            assert_eq!(ours.left, 3);
            if reset {
                socket2::SockRef::from(&theirs).set_linger(Some(std::time::Duration::ZERO)).unwrap();
            }
            drop(theirs);
            let told = ours.read(&mut [0; 9]).await.map_err(|error| error.kind());
            assert_eq!(told, if reset { Err(io::ErrorKind::ConnectionReset) } else { Ok(0) });
        }
    }

    #[tokio::test]
    async fn an_end_that_comes_with_the_answer_is_told() {
        let (mut ours, mut theirs) = pair().await;
        in_two_reads(&mut ours, &mut theirs).await;
        ask(&mut ours, &mut theirs).await;
        theirs.write_all(b"the last").await.unwrap();
        drop(theirs);
        let mut last = Vec::new();
        ours.read_to_end(&mut last).await.unwrap();
        assert_eq!(last, b"the last");
    }

    #[tokio::test]
    async fn closing_with_an_answer_left_is_no_reset() {
        let (mut ours, mut theirs) = pair().await;
        in_two_reads(&mut ours, &mut theirs).await;
        exchange(&mut ours, &mut theirs, &[b"two"], 8192).await;
        assert_eq!(ours.left, 3);
        drop(ours);
        assert_eq!(theirs.read(&mut [0; 9]).await.unwrap(), 0, "an orderly end");
    }
}
