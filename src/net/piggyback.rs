//! A socket to a server, whose short answers are acknowledged by the next request.
//!
//! Many servers write the head and the body of a short answer in two packets. Linux acknowledges two such packets at once when
//! nothing of them is left to read, by a packet of its own: a tenth of all that a small request costs a proxy. So a short
//! answer is read and yet left in the socket (`MSG_PEEK`) until the next one comes. By then the next request has carried the
//! acknowledgement, as data does (RFC 9293 section 3.8.6.3); where no request follows, the kernel sends it after its usual
//! delay. Taking what was left is a `recv` more for each answer, a fifth of what the packet costs.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::net::{RecvFlags, recv};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use crate::net::send;

/// Bytes of a short answer, fewer than that. What is left in the socket is copied twice; and an answer of more than the
/// least segment (RFC 9293 section 3.7.1: 536 bytes) is mostly acknowledged as it comes.
const SHORT: usize = 1024;

/// The socket, and what was read of it without being taken.
pub struct Piggyback {
    tcp: TcpStream,
    /// So many bytes at the head of the socket's queue have been read already.
    left: usize,
    /// Something was written and nothing read since: what comes next begins an answer.
    asked: bool,
    /// The last answer was short and had a body: the next may be so too.
    short: bool,
    /// No more requests and answers: a tunnel.
    tunnel: bool,
}

impl Piggyback {
    /// A socket that nothing was read of.
    pub fn new(tcp: TcpStream) -> Piggyback {
        Piggyback { tcp, left: 0, asked: false, short: false, tunnel: false }
    }

    /// Tells that bytes pass both ways from here, in whatever order: nothing is left any more.
    pub fn becomes_tunnel(&mut self) {
        self.tunnel = true;
    }

    /// The socket, for anything but reading and writing.
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// Takes from the socket what was read already.
    fn take_left(&mut self) -> io::Result<()> {
        let mut scratch = [const { MaybeUninit::<u8>::uninit() }; SHORT];
        while self.left > 0 {
            let Some(room) = scratch.get_mut(..self.left) else { break };
            let (_, taken) = recv(&self.tcp, room, RecvFlags::empty())?;
            if taken == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.left -= taken;
        }
        Ok(())
    }

    /// Reads the beginning of an answer without taking it.
    fn poll_look(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let size = buf.remaining().min(SHORT);
        let room = buf.initialize_unfilled_to(size);
        let seen = loop {
            ready!(self.tcp.poll_read_ready(cx))?;
            let mut seen = None;
            let looked = self.tcp.try_io(Interest::READABLE, || {
                let (_, some) = recv(&self.tcp, &mut *room, RecvFlags::PEEK)?;
                seen = Some(some);
                // Fewer than there is room for are all: what comes next wakes (epoll's edge). The socket counts as read
                // empty from here, by what was known before the look, so that no news of meanwhile are lost.
                if (1..size).contains(&some) { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
            });
            match (seen, looked) {
                (Some(seen), _) => break seen,
                (None, Err(error)) if error.kind() != io::ErrorKind::WouldBlock => {
                    return Poll::Ready(Err(error));
                }
                (None, _) => {}
            }
        };
        self.left = seen;
        self.note(room.get(..seen).unwrap_or_default(), size);
        buf.advance(seen);
        Poll::Ready(Ok(()))
    }

    /// Notes how an answer begins, read where `room` bytes would have found room.
    fn note(&mut self, beginning: &[u8], room: usize) {
        self.asked = false;
        // A head alone is one packet, which is not acknowledged at once.
        self.short = beginning.len() < room.min(SHORT) && !beginning.ends_with(b"\r\n\r\n");
    }
}

impl AsyncRead for Piggyback {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.left > 0 {
            ready!(this.tcp.poll_read_ready(cx))?;
            this.take_left()?;
        }
        if this.asked && this.short && buf.remaining() > 0 {
            return this.poll_look(cx, buf);
        }
        let (before, room) = (buf.filled().len(), buf.remaining());
        ready!(Pin::new(&mut this.tcp).poll_read(cx, buf))?;
        let read = buf.filled().get(before..).unwrap_or_default();
        if this.asked {
            this.note(read, room);
        } else if !read.is_empty() {
            // There was more of it.
            this.short = false;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Piggyback {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.asked = !this.tunnel;
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
        this.asked = !this.tunnel;
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

    /// Asks, is answered in these pieces, and reads all of it, in reads of `room` bytes.
    async fn exchange(ours: &mut Piggyback, theirs: &mut TcpStream, pieces: &[&[u8]], room: usize) {
        ours.write_all(b"?").await.unwrap();
        assert_eq!(theirs.read_u8().await.unwrap(), b'?');
        for piece in pieces {
            theirs.write_all(piece).await.unwrap();
        }
        let mut read = Vec::new();
        let mut some = vec![0; room];
        while read.len() < pieces.concat().len() {
            let size = ours.read(&mut some).await.unwrap();
            assert!(size > 0, "an end after {} bytes", read.len());
            read.extend_from_slice(&some[..size]);
        }
        assert!(read == pieces.concat(), "{} bytes of another answer", read.len());
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
    async fn short_answers_stay_in_the_socket_until_the_next() {
        let (mut ours, mut theirs) = pair().await;
        exchange(&mut ours, &mut theirs, &[b"head body"], 8192).await;
        assert_eq!(ours.left, 0, "nothing is known of a new connection");
        exchange(&mut ours, &mut theirs, &[b"head body 2"], 8192).await;
        assert!(is_silent(&mut ours).await, "it is not read again");
        let queued = |ours: &Piggyback| recv(&ours.tcp, &mut [0; 99], RecvFlags::PEEK).unwrap().1;
        assert_eq!(queued(&ours), b"head body 2".len());
        exchange(&mut ours, &mut theirs, &[b"3"], 8192).await;
        assert_eq!(queued(&ours), 1, "the second was taken when the third came");
        // After one without a body, after a long one: taken.
        exchange(&mut ours, &mut theirs, &[b"head\r\n\r\n"], 8192).await;
        exchange(&mut ours, &mut theirs, &[&[b'4'; SHORT]], 8192).await;
        assert_eq!(ours.left, 0);
        exchange(&mut ours, &mut theirs, &[&[b'5'; 20]], 8192).await;
        assert_eq!(ours.left, 0);
        exchange(&mut ours, &mut theirs, &[b"6"], 8192).await;
        assert_eq!(ours.left, 1);
        ours.becomes_tunnel();
        exchange(&mut ours, &mut theirs, &[b"7"], 8192).await;
        exchange(&mut ours, &mut theirs, &[b"8"], 8192).await;
        assert_eq!(ours.left, 0);
    }

    #[tokio::test]
    async fn an_end_and_a_reset_are_told_behind_what_is_left() {
        for reset in [false, true] {
            let (mut ours, mut theirs) = pair().await;
            exchange(&mut ours, &mut theirs, &[b"one"], 8192).await;
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
        exchange(&mut ours, &mut theirs, &[b"one"], 8192).await;
        ours.write_all(b"?").await.unwrap();
        theirs.read_u8().await.unwrap();
        theirs.write_all(b"the last").await.unwrap();
        drop(theirs);
        let mut last = Vec::new();
        ours.read_to_end(&mut last).await.unwrap();
        assert_eq!(last, b"the last");
    }

    #[tokio::test]
    async fn closing_with_an_answer_left_is_no_reset() {
        let (mut ours, mut theirs) = pair().await;
        exchange(&mut ours, &mut theirs, &[b"one"], 8192).await;
        exchange(&mut ours, &mut theirs, &[b"two"], 8192).await;
        assert_eq!(ours.left, 3);
        drop(ours);
        assert_eq!(theirs.read(&mut [0; 9]).await.unwrap(), 0, "an orderly end");
    }
}
