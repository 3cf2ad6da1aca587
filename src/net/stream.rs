//! The byte stream under HTTP: a TCP connection, in the clear or under TLS.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use crate::net::ahead::Ahead;
use crate::net::piggyback::Piggyback;
use crate::net::unheard::Unheard;
use crate::net::{records, send};

/// A TCP connection, in the clear or under TLS.
pub enum Stream {
    /// In the clear.
    Plain(TcpStream, Unheard),
    /// In the clear, to a server.
    Asking(Piggyback),
    /// Under TLS, either side.
    Tls(Box<TlsStream<Ahead>>),
}

impl Stream {
    /// Makes dropping the stream a reset (RST) in place of an orderly end (FIN).
    pub fn reset_on_close(&self) {
        reset_on_close(self.tcp());
    }

    /// The socket.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Stream::Plain(tcp, _) => tcp,
            Stream::Asking(io) => io.tcp(),
            Stream::Tls(tls) => tls.get_ref().0.tcp(),
        }
    }

    /// Bytes that TLS has sent so far; 0 where each write tells.
    pub fn sent(&self) -> u64 {
        match self {
            Stream::Plain(..) | Stream::Asking(_) => 0,
            Stream::Tls(tls) => tls.get_ref().0.sent(),
        }
    }

    /// Ready when bytes or an end have arrived, or may have. What TLS has read already does not count: only for a stream
    /// whose last read found nothing.
    pub fn poll_arrived(&self, cx: &mut Context<'_>) -> Poll<()> {
        // An error is for whoever reads.
        self.tcp().poll_read_ready(cx).map(drop)
    }

    /// The next read asks the kernel, also where the runtime knows of nothing.
    pub fn unheard(&mut self) {
        match self {
            Stream::Plain(_, unheard) => unheard.set(),
            Stream::Asking(_) => {}
            Stream::Tls(_) => {
                if let Some(ahead) = self.ahead() {
                    ahead.unheard();
                }
            }
        }
    }

    /// Settles what was read from a server: whether that ends an answer ([`Piggyback::settle`]).
    ///
    /// # Errors
    /// The socket's.
    pub fn settle(&mut self, whole: bool) -> io::Result<()> {
        if let Stream::Asking(io) = self { io.settle(whole) } else { Ok(()) }
    }

    /// Tells that no answers follow, but a tunnel.
    pub fn becomes_tunnel(&mut self) {
        if let Stream::Asking(io) = self {
            io.becomes_tunnel();
        }
    }

    /// Sends what was held back for whatever is written next ([`Ahead`]): nothing is, for now. An error is for whoever
    /// writes.
    pub fn release(&mut self, cx: &mut Context<'_>) {
        if let Some(ahead) = self.ahead() {
            let _ = ahead.poll_release(cx);
        }
    }

    fn ahead(&mut self) -> Option<&mut Ahead> {
        match self {
            Stream::Plain(..) | Stream::Asking(_) => None,
            Stream::Tls(tls) => Some(match tls.as_mut() {
                TlsStream::Client(tls) => tls.get_mut().0,
                TlsStream::Server(tls) => tls.get_mut().0,
            }),
        }
    }

    /// Has `bufs` wait for what is written next or flushed, where that is under TLS ([`records::queue`]).
    ///
    /// # Errors
    /// What TLS has to say against it.
    pub fn queue(&mut self, bufs: &[io::IoSlice<'_>], alone: bool) -> io::Result<Option<usize>> {
        if let Stream::Tls(tls) = self { records::queue(tls, bufs, alone) } else { Ok(None) }
    }

    /// Whether HTTP/2 was agreed on in the TLS handshake (ALPN).
    pub fn speaks_h2(&self) -> bool {
        match self {
            Stream::Plain(..) | Stream::Asking(_) => false,
            Stream::Tls(io) => io.get_ref().1.alpn_protocol() == Some(b"h2"),
        }
    }
}

/// Makes dropping a socket a reset (RST) in place of an orderly end (FIN).
pub fn reset_on_close(tcp: &TcpStream) {
    // Best effort: a socket that cannot be told is closed anyway.
    let _ = socket2::SockRef::from(tcp).set_linger(Some(Duration::ZERO));
}

macro_rules! delegate {
    ($self:ident, $method:ident, $($arg:expr),*) => {
        match $self.get_mut() {
            Stream::Plain(io, _) => Pin::new(io).$method($($arg),*),
            Stream::Asking(io) => Pin::new(io).$method($($arg),*),
            Stream::Tls(io) => Pin::new(io.as_mut()).$method($($arg),*),
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let tls = match self.get_mut() {
            Stream::Plain(tcp, unheard) => return unheard.poll_read(tcp, cx, buf),
            Stream::Asking(io) => return Pin::new(io).poll_read(cx, buf),
            Stream::Tls(io) => io.as_mut(),
        };
        ready!(Pin::new(&mut *tls).poll_read(cx, buf))?;
        // One record came. What is in memory behind it goes on in the same piece, as far as there is room.
        while tls.get_ref().0.has_left() && buf.remaining() > 0 {
            let before = buf.filled().len();
            // An error is told by the next read again.
            let read = Pin::new(&mut *tls).poll_read(cx, buf);
            if !matches!(read, Poll::Ready(Ok(()))) || buf.filled().len() == before {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(io, _) => Pin::new(io).poll_write(cx, buf),
            Stream::Asking(io) => Pin::new(io).poll_write(cx, buf),
            Stream::Tls(io) => records::poll_write(io, cx, &[io::IoSlice::new(buf)]),
        }
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, poll_flush, cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(ahead) = self.ahead() {
            ahead.ends();
        }
        delegate!(self, poll_shutdown, cx)
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(io, _) => send::poll_send(Pin::new(io), cx, bufs),
            Stream::Asking(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Stream::Tls(io) => records::poll_write(io, cx, bufs),
        }
    }
    fn is_write_vectored(&self) -> bool {
        match self {
            Stream::Plain(io, _) => io.is_write_vectored(),
            Stream::Asking(io) => io.is_write_vectored(),
            Stream::Tls(io) => io.is_write_vectored(),
        }
    }
}
