//! Making a connection to an endpoint: name, TCP, PROXY protocol header, TLS, all under one deadline, and the HTTP/1.1
//! handshake. HTTP/2 goes on in [`super::multiplex`].

use std::cell::Cell;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use hyper::body::Body;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, TlsStream};

use crate::base::address::EndpointAddress;
use crate::net::ahead::Ahead;
use crate::net::descriptors::Descriptor;
use crate::net::dial;
use crate::net::piggyback::Piggyback;
use crate::net::stream::Stream;
use crate::net::timer::{Timer, Wheel};
use crate::upstream::answer::{Asked, Checked};
use crate::upstream::drive::Driven;
use crate::upstream::endpoint::Endpoint;

/// Everything needed to reach an endpoint; borrowed from the snapshot.
pub struct Target<'a> {
    /// Where.
    pub address: &'a EndpointAddress,
    /// With TLS, and the name expected in the certificate.
    pub tls: Option<(&'a Arc<ClientConfig>, &'a ServerName<'static>)>,
    /// Deadline for all of it.
    pub timeout: Duration,
    /// Bytes a response head may have.
    pub head_max: usize,
    /// The client in whose name the connection is made: only its requests may use it. `None`: everybody's.
    pub bound: Option<IpAddr>,
    /// The PROXY protocol header the connection begins with; empty for none.
    pub header: Vec<u8>,
    /// The worker's timers.
    pub wheel: &'a Wheel,
    /// Leave for the socket.
    pub descriptor: Descriptor,
}

/// Why a connection could not be made.
#[derive(Debug)]
pub enum ConnectError {
    /// Nobody listens there.
    Refused,
    /// The name has no address.
    Name(String),
    /// Any other failure of the network.
    Network(io::Error),
    /// TLS failed; the certificate is wrong, most often.
    Tls(io::Error),
    /// The deadline passed.
    Timeout(Duration),
    /// There is no leave to open one more socket.
    NoDescriptor,
    /// Something answers there, but not HTTP/2.
    NotH2(&'static str),
    /// No connection had a free stream, and there may be no more connections.
    Busy,
    /// Another request was to open it, for this one too, and this is what became of that.
    Heard(Box<ConnectError>),
}

impl ConnectError {
    /// The same failure for another request that waited for the same connection.
    pub(super) fn again(&self) -> ConnectError {
        let copy = |error: &io::Error| io::Error::new(error.kind(), error.to_string());
        match self {
            ConnectError::Refused => ConnectError::Refused,
            ConnectError::Name(why) => ConnectError::Name(why.clone()),
            ConnectError::Network(error) => ConnectError::Network(copy(error)),
            ConnectError::Tls(error) => ConnectError::Tls(copy(error)),
            ConnectError::Timeout(after) => ConnectError::Timeout(*after),
            ConnectError::NoDescriptor => ConnectError::NoDescriptor,
            ConnectError::NotH2(why) => ConnectError::NotH2(why),
            ConnectError::Busy => ConnectError::Busy,
            ConnectError::Heard(inner) => inner.again(),
        }
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnectError::Refused => f.write_str("connection refused: nothing listens on that port"),
            ConnectError::Name(why) => write!(f, "the name could not be resolved: {why}"),
            ConnectError::Network(why) => write!(f, "connecting failed: {why}"),
            ConnectError::Tls(why) => write!(f, "TLS handshake failed: {why}"),
            ConnectError::Timeout(after) => write!(f, "no connection within {after:?}"),
            ConnectError::NoDescriptor => f.write_str("no file descriptor is left for it"),
            ConnectError::NotH2(why) => write!(
                f,
                "the backend does not speak HTTP/2: {why}; say upstream = {{ http = \"h1\" }}, or let the backend speak HTTP/2 \
                 (over TLS by ALPN, without TLS with prior knowledge)"
            ),
            ConnectError::Heard(inner) => inner.fmt(f),
            ConnectError::Busy => f.write_str(
                "all streams of all HTTP/2 connections to the backend are taken; see upstream_h2_connections in \
                 [server.limits], and the limit on concurrent streams of the backend",
            ),
        }
    }
}

/// Whether an error on a connection came from TLS: an alert, most often.
pub fn is_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    if inner.is_some_and(|inner| inner.is::<rustls::Error>()) {
        return true;
    }
    error.source().is_some_and(is_tls)
}

/// A live HTTP/1.1 connection to an endpoint.
pub struct Connection<B> {
    /// Where requests go in.
    pub sender: http1::SendRequest<B>,
    /// What drives it, and tells how it ended.
    pub driven: Rc<Driven>,
    /// The settings it was made with: a reload that changes them must not reuse it.
    pub tls: Option<Arc<ClientConfig>>,
    /// The only client whose requests it may carry, where its PROXY protocol header named one.
    pub bound: Option<IpAddr>,
    /// For the deadlines of whatever request it carries.
    pub timer: Timer,
    asked: Rc<Asked>,
    _descriptor: Descriptor,
}

impl<B> Connection<B> {
    /// A request with this method is about to be sent; `upgrade` tells that it asks to switch protocols. Whatever comes
    /// without this is no answer.
    pub fn ask(&self, method: &Method, upgrade: bool) {
        self.asked.ask(method, upgrade);
    }

    /// From here on the connection moves on only where somebody waits for it, in [`Connection::lead`].
    pub fn hand_over(&self) {
        self.driven.hand_over();
    }

    /// Polls `step`, which waits for something that comes over the connection, and moves the connection on meanwhile.
    pub fn lead<T>(&self, cx: &mut Context<'_>, step: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        self.driven.lead(cx, step)
    }

    /// Runs `step`, the first look at the body of an answer; it says whether that is over.
    pub fn first_look<T>(&self, step: impl FnOnce() -> (T, bool)) -> T {
        self.driven.first_look(step)
    }

    /// From here on the connection moves on by itself.
    pub fn follow(&self) {
        self.driven.follow();
    }

    /// Whose connection it is: what goes wrong while it carries no request is said of this endpoint.
    pub fn belongs_to(&self, endpoint: &Arc<Endpoint>, wheel: &Wheel) {
        self.driven.belongs_to(endpoint, wheel);
    }
}

impl<B> Drop for Connection<B> {
    /// hyper would go on sending a request's body after its answer, to an endpoint that may never read it.
    fn drop(&mut self) {
        self.driven.abort();
    }
}

/// Connects to an endpoint.
///
/// # Errors
/// [`ConnectError`] says which step failed. The request was not sent in any of these cases.
pub async fn connect<B>(mut target: Target<'_>) -> Result<Connection<B>, ConnectError>
where
    B: Body<Data = Bytes> + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let terms = Terms::of(&mut target);
    let stream = dial(target).await?;
    begin(stream, terms).await
}

/// What a connection keeps of the target it was made for.
pub(super) struct Terms {
    pub(super) tls: Option<Arc<ClientConfig>>,
    pub(super) head_max: usize,
    pub(super) descriptor: Descriptor,
    bound: Option<IpAddr>,
    timer: Timer,
}

impl Terms {
    pub(super) fn of(target: &mut Target<'_>) -> Terms {
        Terms {
            tls: target.tls.map(|(config, _)| config.clone()),
            head_max: target.head_max,
            descriptor: std::mem::replace(&mut target.descriptor, Descriptor::of_reserve()),
            bound: target.bound,
            timer: target.wheel.timer(),
        }
    }
}

/// Begins HTTP/1.1 on a bare stream.
pub(super) async fn begin<B>(stream: Stream, terms: Terms) -> Result<Connection<B>, ConnectError>
where
    B: Body<Data = Bytes> + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let Terms { tls, head_max, descriptor, bound, timer } = terms;
    let asked = Rc::new(Asked::default());
    let io = Checked::new(Patient { io: stream, deaf: false }, asked.clone(), head_max);
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(head_max.max(MIN_BUFFER))
        .max_header_size(head_max)
        .handshake(TokioIo::new(io))
        .await
        .map_err(|error| ConnectError::Network(io::Error::other(error)))?;
    let driven = Driven::spawn(connection);
    Ok(Connection { sender, driven, tls, bound, timer, asked, _descriptor: descriptor })
}

/// Makes the bare stream, under the target's deadline.
pub async fn dial(target: Target<'_>) -> Result<Stream, ConnectError> {
    let timeout = target.timeout;
    let connected = Cell::new(false);
    tokio::time::timeout(timeout, open(target, &connected)).await.map_err(|_| {
        // Something answers there, but not TLS.
        let silent = || io::Error::new(io::ErrorKind::TimedOut, "no answer to the TLS handshake");
        if connected.get() { ConnectError::Tls(silent()) } else { ConnectError::Timeout(timeout) }
    })?
}

/// hyper refuses smaller buffers.
const MIN_BUFFER: usize = 8192;

/// A stream to an endpoint that may stop listening before it has answered: many refuse a large body, say why, and close
/// (RFC 9112 section 9.5). Failing at the first write that meets the closed door would lose their answer, so writes
/// then go nowhere, and reading tells how it ended.
pub(super) struct Patient {
    pub(super) io: Stream,
    deaf: bool,
}

impl Patient {
    fn heard<T>(&mut self, result: Poll<io::Result<T>>, all: T) -> Poll<io::Result<T>> {
        match result {
            Poll::Ready(Err(error))
                if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) =>
            {
                self.deaf = true;
                Poll::Ready(Ok(all))
            }
            other => other,
        }
    }
}

impl AsMut<Stream> for Patient {
    fn as_mut(&mut self) -> &mut Stream {
        &mut self.io
    }
}

impl AsyncRead for Patient {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.deaf {
            return Poll::Ready(Ok(buf.len()));
        }
        let result = Pin::new(&mut this.io).poll_write(cx, buf);
        this.heard(result, buf.len())
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let all = bufs.iter().map(|buf| buf.len()).sum();
        if this.deaf {
            return Poll::Ready(Ok(all));
        }
        let result = Pin::new(&mut this.io).poll_write_vectored(cx, bufs);
        this.heard(result, all)
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.deaf {
            return Poll::Ready(Ok(()));
        }
        let result = Pin::new(&mut this.io).poll_flush(cx);
        this.heard(result, ())
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

async fn open(target: Target<'_>, connected: &Cell<bool>) -> Result<Stream, ConnectError> {
    let mut tcp = match target.address {
        EndpointAddress::Socket(address) => tcp_connect(*address).await?,
        EndpointAddress::Name(name, port) => tcp_connect_by_name(name, *port).await?,
    };
    if !target.header.is_empty() {
        // Before anything else, TLS too (proxy-protocol.txt, section 2).
        tcp.write_all(&target.header).await.map_err(ConnectError::Network)?;
    }
    connected.set(true);
    // Small requests must not wait for an acknowledgement of the previous one.
    let _ = tcp.set_nodelay(true);
    let Some((config, name)) = target.tls else { return Ok(Stream::Asking(Piggyback::new(tcp))) };
    let connector = TlsConnector::from(config.clone());
    let tls = connector.connect(name.clone(), Ahead::new(tcp)).await.map_err(ConnectError::Tls)?;
    Ok(Stream::Tls(Box::new(TlsStream::Client(tls))))
}

async fn tcp_connect(address: std::net::SocketAddr) -> Result<TcpStream, ConnectError> {
    TcpStream::connect(address).await.map_err(refused_or_else)
}

fn refused_or_else(error: io::Error) -> ConnectError {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => ConnectError::Refused,
        _ => ConnectError::Network(error),
    }
}

async fn tcp_connect_by_name(name: &str, port: u16) -> Result<TcpStream, ConnectError> {
    let addresses =
        tokio::net::lookup_host((name, port)).await.map_err(|e| ConnectError::Name(e.to_string()))?;
    let mut addresses = addresses.peekable();
    if addresses.peek().is_none() {
        return Err(ConnectError::Name("it has no address".to_owned()));
    }
    dial::first(addresses).await.map_err(refused_or_else)
}
