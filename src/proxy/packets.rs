//! Frames of HTTP/2 that go on in full packets.
//!
//! h2 writes one frame of DATA at a time, 16 KiB, and flushes each: a call, a packet and, where the client is fast, a wake of it for
//! every one. So under TLS a frame waits, encrypted, for those behind it, until they fill a packet or h2 has nothing more to
//! write. Both happen in the same turn of the connection, so that nothing is later than the turn's end: behind each frame of DATA, h2
//! comes back for the next one, and flushes once more when there is none.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::net::progress::{Guarded, Progress};
use crate::net::stream::Stream;
use crate::net::{records, send};

/// Smaller writes do not wait: h2 copies payloads of less than 256 bytes, and does not come back from those.
const LEAST: usize = 1024;

/// A client's stream under HTTP/2.
pub struct Packets<P> {
    io: Guarded<Stream, P>,
    /// Bytes of records that wait.
    held: usize,
    /// The last write waits, and was not flushed yet.
    fresh: bool,
    /// Whether anything waits, for whoever drives the connection.
    waits: Rc<Cell<bool>>,
}

impl<P> Packets<P> {
    /// Nothing waits. `waits` says from now on whether something does: not at the end of a turn, unless h2 did not flush as it
    /// is expected to; then it is to have another turn.
    pub fn new(io: Guarded<Stream, P>, waits: Rc<Cell<bool>>) -> Packets<P> {
        Packets { io, held: 0, fresh: false, waits }
    }

    /// The stream below.
    pub fn stream(&self) -> &Stream {
        self.io.stream()
    }

    /// Whether it may wait: a frame of DATA, behind which one more of its size would fit. h2 writes the payload of such a
    /// frame as it lies, in a piece of its own; what it has copied together, as the heads of answers, is one piece.
    fn may_wait(&self, bufs: &[IoSlice<'_>]) -> bool {
        let size = send::size_of(bufs);
        bufs.len() > 1 && size >= LEAST && self.held + 2 * (size + records::ADDED) <= records::PACKET
    }

    /// What waits goes on with what is written now, or is flushed.
    fn sends(&mut self) {
        (self.held, self.fresh) = (0, false);
        self.waits.set(false);
    }
}

impl<P: AsRef<Progress> + Unpin> AsyncRead for Packets<P> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<P: AsRef<Progress> + Unpin> AsyncWrite for Packets<P> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.may_wait(bufs)
            && let Some(queued) = this.io.queue(bufs, this.held == 0)?.filter(|queued| *queued > 0)
        {
            this.held += queued + records::ADDED;
            this.fresh = true;
            this.waits.set(true);
            return Poll::Ready(Ok(queued));
        }
        this.sends();
        Pin::new(&mut this.io).poll_write_vectored(cx, bufs)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if std::mem::take(&mut this.fresh) {
            return Poll::Ready(Ok(()));
        }
        this.sends();
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.sends();
        Pin::new(&mut this.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::base::clock::Millis;
    use crate::net::progress::Allowance;
    use crate::net::records::{pair, some};
    use crate::net::timer::Wheel;

    struct Shared(Rc<Progress>);
    impl AsRef<Progress> for Shared {
        fn as_ref(&self) -> &Progress {
            &self.0
        }
    }

    /// A server's stream, whether something waits in it, and what the client was sent in which records.
    async fn packets() -> (Packets<Shared>, Rc<Cell<bool>>, std::thread::JoinHandle<(Vec<u8>, Vec<usize>)>) {
        let (tls, client) = pair().await;
        let second = Duration::from_secs(1);
        let allowance =
            Allowance { idle: second, head: second, write: second, tunnel: second, write_rate: 0 };
        let progress = Rc::new(Progress::new(&Wheel::new(Millis(0)), allowance));
        let waits = Rc::new(Cell::new(false));
        let io = Guarded::new(Stream::Tls(Box::new(tls)), Shared(progress));
        (Packets::new(io, waits.clone()), waits, client)
    }

    async fn write(packets: &mut Packets<Shared>, frame: &[u8]) -> usize {
        let (head, payload) = frame.split_at(9);
        packets.write_vectored(&[IoSlice::new(head), IoSlice::new(payload)]).await.unwrap()
    }

    #[tokio::test]
    async fn frames_wait_until_four_fill_a_packet_or_nothing_follows_them() {
        let (mut packets, waits, client) = packets().await;
        let frame = some(records::QUARTER);
        let mut sent = Vec::new();
        for turn in 0..9 {
            // Three wait, each flushed once as h2 does it; the fourth takes them along.
            assert_eq!(write(&mut packets, &frame).await, frame.len());
            assert_eq!(waits.get(), turn % 4 < 3, "frame {turn}");
            packets.flush().await.unwrap();
            assert_eq!(waits.get(), turn % 4 < 3, "frame {turn}, flushed once");
            sent.extend_from_slice(&frame);
        }
        packets.flush().await.unwrap();
        assert!(!waits.get(), "there is none behind it");
        // A small one waits for nothing, and nothing for it.
        write(&mut packets, &frame).await;
        write(&mut packets, &frame[..100]).await;
        assert!(!waits.get());
        packets.flush().await.unwrap();
        write(&mut packets, &frame).await;
        packets.shutdown().await.unwrap();
        sent.extend([&frame, &frame[..100], &frame].concat());
        let (got, records) = client.join().unwrap();
        assert!(got == sent, "{} of {} bytes", got.len(), sent.len());
        let whole = [frame.len(); 10];
        // close_notify is two bytes.
        assert_eq!(records, [&whole[..], &[100, frame.len(), 2]].concat());
    }

    /// h2 comes back after each frame of DATA, and flushes once more when it has no other: what [`Packets`] stands on.
    #[tokio::test]
    async fn h2_flushes_once_more_behind_the_last_frame() {
        let (packets, waits, client) = packets().await;
        // The client's side of HTTP/2 waits for no preface of the other before it writes.
        let (mut asks, mut connection) = h2::client::handshake(packets).await.unwrap();
        let request = http::Request::post("https://a.test/").body(()).unwrap();
        let (answer, mut body) = asks.send_request(request, false).unwrap();
        for size in [30_000, 1, 300, 5_000] {
            body.send_data(Bytes::from(some(size)), false).unwrap();
            let mut connection = Pin::new(&mut connection);
            let poll = std::future::poll_fn(|cx| Poll::Ready(connection.as_mut().poll(cx))).await;
            assert!(poll.is_pending());
            assert!(!waits.get(), "behind {size} bytes");
        }
        // Heads are no frames that it comes back from, however large and many: they wait for nothing.
        let many = http::Request::get("https://a.test/").header("x", "y".repeat(3_000)).body(()).unwrap();
        let others: Vec<_> = (0..3).map(|_| asks.send_request(many.clone(), true).unwrap()).collect();
        let poll = std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut connection).poll(cx))).await;
        assert!(poll.is_pending());
        assert!(!waits.get(), "behind heads");
        drop((asks, answer, body, others));
        connection.await.unwrap();
        let (got, _) = client.join().unwrap();
        assert!(got.len() > 30_000 + 300 + 5_000);
    }
}
