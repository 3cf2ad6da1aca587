//! Reading what the runtime has not heard of.
//!
//! The runtime hears once of what comes, and asks the kernel for nothing it has not heard of. Whoever waits for more than is there
//! ([`low_water`](crate::net::low_water)) has it forget what is there, to hear of more. If no more comes, because the client
//! pauses or its window is full, what is there has to be read all the same.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use rustix::io::Errno;
use rustix::net::RecvFlags;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;

/// Whether a socket may have what the runtime has forgotten.
#[derive(Debug, Default)]
pub struct Unheard(bool);

impl Unheard {
    /// It was waited for more than is there.
    pub fn set(&mut self) {
        self.0 = true;
    }

    /// As [`AsyncRead::poll_read`], also of what the runtime has forgotten.
    ///
    /// # Errors
    /// The socket's.
    pub fn poll_read(
        &mut self,
        tcp: &mut TcpStream,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let heard = Pin::new(&mut *tcp).poll_read(cx, buf);
        if !self.0 || heard.is_ready() {
            self.0 = false;
            return heard;
        }
        let room = buf.initialize_unfilled();
        match rustix::io::retry_on_intr(|| rustix::net::recv(&*tcp, &mut *room, RecvFlags::DONTWAIT)) {
            // There may be more than there was room for.
            Ok((count, _)) => {
                buf.advance(count);
                Poll::Ready(Ok(()))
            }
            Err(Errno::AGAIN) => {
                self.0 = false;
                Poll::Pending
            }
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncWriteExt, Interest};
    use tokio::net::TcpListener;

    use super::*;

    /// Reads that end by themselves, or the test has failed.
    const PATIENCE: Duration = Duration::from_secs(20);

    /// Two ends; of what came the runtime has heard, and forgotten it.
    async fn forgotten(size: usize) -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut theirs = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let ours = listener.accept().await.unwrap().0;
        theirs.write_all(&vec![7; size]).await.unwrap();
        ours.readable().await.unwrap();
        while rustix::io::ioctl_fionread(&ours).unwrap() < size as u64 {
            tokio::task::yield_now().await;
        }
        forget(&ours).await;
        (ours, theirs)
    }

    async fn forget(ours: &TcpStream) {
        while poll(|cx| ours.poll_read_ready(cx)).await.is_ready() {
            let _ = ours.try_io(Interest::READABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
        }
    }

    /// Polls once.
    async fn poll<T>(mut what: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        std::future::poll_fn(|cx| Poll::Ready(what(cx))).await
    }

    #[tokio::test]
    async fn what_is_forgotten_is_read_whole_and_then_the_runtime_is_asked_again() {
        let (mut ours, mut theirs) = forgotten(1000).await;
        let mut unheard = Unheard::default();
        let (mut room, mut got) = ([0; 300], 0);
        let read = poll(|cx| unheard.poll_read(&mut ours, cx, &mut ReadBuf::new(&mut room))).await;
        assert!(read.is_pending(), "nobody said so");
        unheard.set();
        loop {
            let mut buf = ReadBuf::new(&mut room);
            let Poll::Ready(read) = poll(|cx| unheard.poll_read(&mut ours, cx, &mut buf)).await else {
                break;
            };
            read.unwrap();
            got += buf.filled().len();
        }
        assert_eq!((got, unheard.0), (1000, false));
        theirs.write_all(b"more").await.unwrap();
        let mut buf = ReadBuf::new(&mut room);
        let read = std::future::poll_fn(|cx| unheard.poll_read(&mut ours, cx, &mut buf));
        tokio::time::timeout(PATIENCE, read).await.expect("it hears of more").unwrap();
        assert_eq!(buf.filled(), b"more");
    }

    #[tokio::test]
    async fn news_makes_good_what_was_forgotten_and_an_end_is_an_end() {
        let (mut ours, mut theirs) = forgotten(100).await;
        let mut unheard = Unheard::default();
        unheard.set();
        theirs.write_all(&[7; 100]).await.unwrap();
        ours.readable().await.unwrap();
        let mut room = [0; 300];
        let mut buf = ReadBuf::new(&mut room);
        assert!(poll(|cx| unheard.poll_read(&mut ours, cx, &mut buf)).await.is_ready());
        assert_eq!((buf.filled().len(), unheard.0), (200, false));
        drop(theirs);
        ours.readable().await.unwrap();
        forget(&ours).await;
        unheard.set();
        let mut buf = ReadBuf::new(&mut room);
        assert!(poll(|cx| unheard.poll_read(&mut ours, cx, &mut buf)).await.is_ready());
        assert!(buf.filled().is_empty());
    }
}
