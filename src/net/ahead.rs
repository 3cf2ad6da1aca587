//! Large reads under TLS.
//!
//! rustls asks the socket for 4 KiB at a time, whatever there is: 256 calls for each megabyte of an upload. [`Ahead`] stands
//! between them. While reads come back full it takes as much as one call gives, and hands it on from memory. Who sends
//! little never has such a buffer, and who sends much has one only while something is left in it: not while he is waited for.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::net::send;

/// Bytes of one read ahead: four TLS records.
const SIZE: usize = 64 * 1024;
/// A read that was given less room than this says nothing by being full.
const TELLING: usize = 2048;
/// Buffers that a worker keeps for the next one who needs one.
const SPARE_MAX: usize = 4;

thread_local! {
    static SPARE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A TCP connection under TLS.
pub struct Ahead {
    tcp: TcpStream,
    /// What was read and not yet handed on.
    left: Option<Left>,
    /// The last read took all it had room for, or much: there is more, or will be.
    full: bool,
}

struct Left {
    bytes: Box<[u8]>,
    at: usize,
    end: usize,
}

impl Ahead {
    /// Nothing is read ahead before a read comes back full.
    pub fn new(tcp: TcpStream) -> Ahead {
        Ahead { tcp, left: None, full: false }
    }

    /// The socket.
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
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

    fn poll_ahead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut bytes = SPARE.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; SIZE].into_boxed_slice());
        let mut into = ReadBuf::new(&mut bytes);
        let read = Pin::new(&mut self.tcp).poll_read(cx, &mut into);
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
    }
}

impl AsyncRead for Ahead {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.left.is_none() && this.full {
            ready!(this.poll_ahead(cx))?;
        } else if this.left.is_none() {
            let room = buf.remaining();
            ready!(Pin::new(&mut this.tcp).poll_read(cx, buf))?;
            this.full = room >= TELLING && buf.remaining() == 0;
            return Poll::Ready(Ok(()));
        }
        this.give(buf);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Ahead {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        send::poll_send(Pin::new(&mut self.tcp), cx, bufs)
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
