//! Writing to a socket in the call that costs least.
//!
//! `writev` takes a list of pieces, which the kernel copies, checks and walks for each call; `send` takes one piece. A head and
//! a short body are sooner copied into one piece than named in a list.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::AsyncWrite;
use tokio::net::TcpStream;

/// Bytes that are copied together; more are sent as they lie.
const FEW: usize = 1024;

/// Bytes in all pieces.
pub fn size_of(bufs: &[io::IoSlice<'_>]) -> usize {
    bufs.iter().map(|buf| buf.len()).sum()
}

/// As [`AsyncWrite::poll_write_vectored`] on a socket.
///
/// # Errors
/// The socket's.
pub fn poll_send(
    tcp: Pin<&mut TcpStream>,
    cx: &mut Context<'_>,
    bufs: &[io::IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    if let [only] = bufs {
        return tcp.poll_write(cx, only);
    }
    if size_of(bufs) > FEW {
        return tcp.poll_write_vectored(cx, bufs);
    }
    let mut few = [0; FEW];
    let mut end = 0;
    for buf in bufs {
        if let Some(room) = few.get_mut(end..end + buf.len()) {
            room.copy_from_slice(buf);
            end += buf.len();
        }
    }
    tcp.poll_write(cx, few.get(..end).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;

    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn pieces_arrive_whole_and_in_order_however_many_and_large_they_are() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut ours = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut theirs = listener.accept().await.unwrap().0;
        let sets: [&[usize]; 7] =
            [&[5], &[300, 128], &[0, 7, 0], &[FEW - 1, 1], &[FEW, 1], &[3000, 2, 5000], &[FEW + 1]];
        for sizes in sets {
            let pieces: Vec<Vec<u8>> =
                sizes.iter().enumerate().map(|(at, &size)| vec![at as u8 + 1; size]).collect();
            let bufs: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
            let sent = std::future::poll_fn(|cx| poll_send(Pin::new(&mut ours), cx, &bufs)).await.unwrap();
            assert_eq!(sent, sizes.iter().sum::<usize>(), "{sizes:?}");
            let mut got = vec![0; sent];
            theirs.read_exact(&mut got).await.unwrap();
            assert_eq!(got, pieces.concat(), "{sizes:?}");
        }
    }
}
