//! Step 8b: tunnels (WebSocket and others): bytes pass both ways until one side ends or both are silent for too long.
//!
//! Each side opens its end in its own way: `Upgrade` and `101` over HTTP/1.1 (RFC 9110 section 7.8), extended CONNECT and
//! `200` over HTTP/2 (RFC 8441). Any client's way meets any backend's. A tunnel is opened only for a protocol that the
//! site or route lists in `upgrade`, and only after the backend agreed to it.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context as Task, Poll};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Method, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::ext::Protocol;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf, copy_bidirectional_with_sizes};

use crate::base::outcome::Outcome;
use crate::net::progress::{Guarded, Phase, Progress, Sends};
use crate::net::stream::Stream;
use crate::proxy::body::ResponseBody;
use crate::proxy::context::{Connection, Context, Watch};
use crate::proxy::forward::{Carrier, Forwarded, Lease};
use crate::proxy::guard::Guard;
use crate::proxy::{Worker, serve};
use crate::telemetry::metric::{Counter, Gauge};

/// Buffer for each direction of a tunnel.
const BUFFER: usize = 16 * 1024;
/// What the answer to a WebSocket key is made with (RFC 6455 section 1.3).
const WEBSOCKET_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// An extended CONNECT, as the head of a request said it.
pub struct Extended {
    protocol: HeaderValue,
    client: OnUpgrade,
}

/// A protocol a client wants to change to, and may.
pub struct Wish {
    protocol: HeaderValue,
    /// The key that an HTTP/1.1 side of a WebSocket proves itself with.
    key: Option<HeaderValue>,
    /// Where an HTTP/2 client's end of the tunnel comes from.
    client: Option<OnUpgrade>,
}

/// Recognises an extended CONNECT (RFC 8441 section 4): from here on it is the GET that it stands for. The ordinary CONNECT,
/// which asks for a connection to anywhere, stays refused.
///
/// # Errors
/// [`Outcome::MethodRefused`].
pub fn extended(parts: &mut Parts) -> Result<Option<Extended>, Outcome> {
    let protocol = parts.extensions.remove::<Protocol>();
    let client = parts.extensions.remove::<OnUpgrade>();
    let (Some(protocol), Some(client)) = (protocol, client) else { return Err(Outcome::MethodRefused) };
    let protocol = HeaderValue::from_str(protocol.as_str()).map_err(|_| Outcome::BadRequest)?;
    parts.method = Method::GET;
    Ok(Some(Extended { protocol, client }))
}

/// Decides whether a client may change the protocol. `offered` is its `Upgrade` field; over HTTP/1.1 what may not be is
/// ignored (RFC 9110 section 7.8), over HTTP/2 it cannot be.
///
/// # Errors
/// [`Outcome::TunnelRefused`] for an extended CONNECT to a protocol that is not allowed.
pub fn wish(
    worker: &Worker,
    parts: &mut Parts,
    offered: &mut Option<HeaderValue>,
    extended: Option<Extended>,
    allowed: &[String],
) -> Result<Option<Box<Wish>>, Outcome> {
    if let Some(Extended { protocol, client }) = extended {
        let protocol = choose(&protocol, allowed).ok_or(Outcome::TunnelRefused)?;
        // What is sent to a backend over HTTP/1.1 looks as if it had come so.
        parts.version = Version::HTTP_11;
        let key = HeaderValue::from_str(&STANDARD.encode(nonce(worker))).map_err(|_| Outcome::Internal)?;
        parts.headers.insert(header::SEC_WEBSOCKET_KEY, key.clone());
        *offered = Some(protocol.clone());
        return Ok(Some(Box::new(Wish { protocol, key: Some(key), client: Some(client) })));
    }
    let chosen = offered.as_ref().and_then(|offered| choose(offered, allowed));
    *offered = chosen.clone().filter(|_| parts.version == Version::HTTP_11);
    let key = parts.headers.get(header::SEC_WEBSOCKET_KEY).cloned();
    Ok(offered.clone().map(|protocol| Box::new(Wish { protocol, key, client: None })))
}

/// The first offered protocol that is allowed.
fn choose(offered: &HeaderValue, allowed: &[String]) -> Option<HeaderValue> {
    let mut names = offered.as_bytes().split(|&b| b == b',').map(<[u8]>::trim_ascii);
    let name = names.find(|name| allowed.iter().any(|known| known.as_bytes().eq_ignore_ascii_case(name)))?;
    HeaderValue::from_bytes(name).ok()
}

/// Sixteen random bytes (RFC 6455 section 4.1).
fn nonce(worker: &Worker) -> [u8; 16] {
    (u128::from(worker.random()) << 64 | u128::from(worker.random())).to_be_bytes()
}

/// What a WebSocket key is answered with (RFC 6455 section 4.2.2).
fn accept(key: &HeaderValue) -> Option<HeaderValue> {
    let mut digest = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY);
    digest.update(key.as_bytes());
    digest.update(WEBSOCKET_GUID);
    HeaderValue::from_str(&STANDARD.encode(digest.finish())).ok()
}

/// The head of an answer to such a request has come: a tunnel, or an ordinary answer.
///
/// # Errors
/// [`Outcome::UpstreamInvalid`] when the backend agreed to something that nobody asked for, or agreed in the wrong way.
pub async fn answered(
    context: &mut Context,
    mut response: Response<Incoming>,
    first: Option<Bytes>,
    lease: Lease,
    wish: Wish,
) -> Result<Forwarded, Outcome> {
    let status = response.status();
    let (agreed, wrong) = match &lease.carrier {
        Carrier::Alone(_) => {
            let agreed = status == StatusCode::SWITCHING_PROTOCOLS;
            // To an HTTP/2 client, success would mean that the tunnel is open (RFC 8441 section 4).
            let wrong = wish.client.is_some() && status.is_success();
            (agreed, wrong || (agreed && !as_wished(response.headers(), &wish)))
        }
        Carrier::Shared(_) => {
            let agreed = status == StatusCode::OK;
            (agreed, !agreed && (status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS))
        }
    };
    if wrong {
        lease.fail(
            Outcome::UpstreamInvalid,
            "it agreed to change the protocol in a way that nobody asked for",
            false,
        );
        return Err(Outcome::UpstreamInvalid);
    }
    if !agreed {
        return Ok(Forwarded { response, first, lease: Some(lease), tunnel: None });
    }
    let (upstream, early) = match &lease.carrier {
        Carrier::Alone(connection) => {
            let (stream, early) = connection.driven.upgraded().await.ok_or(Outcome::UpstreamClosed)?;
            (Far::Alone(stream), early)
        }
        Carrier::Shared(_) => {
            let opened = response.extensions_mut().remove::<OnUpgrade>().ok_or(Outcome::UpstreamClosed)?;
            let stream = opened.await.map_err(|_| Outcome::UpstreamClosed)?;
            (Far::Shared(TokioIo::new(stream)), Bytes::new())
        }
    };
    let shared = matches!(lease.carrier, Carrier::Shared(_));
    let tunnel = Tunnel { upstream, early, lease, context: None };
    let tunnel = match wish.client {
        Some(client) => {
            *response.status_mut() = StatusCode::OK;
            response.headers_mut().remove(header::SEC_WEBSOCKET_ACCEPT);
            Some(Box::new(StreamTunnel { client, tunnel }))
        }
        None => {
            if shared {
                switch(&mut response, &wish.protocol, wish.key.as_ref());
            }
            *context.connection.tunnel.borrow_mut() = Some(tunnel);
            None
        }
    };
    Ok(Forwarded { response, first: None, lease: None, tunnel })
}

/// Whether a `101` agrees to what was offered (RFC 9110 section 7.8), and proves it where the key was ours.
fn as_wished(headers: &HeaderMap, wish: &Wish) -> bool {
    let named = headers
        .get(header::UPGRADE)
        .is_some_and(|named| named.as_bytes().trim_ascii().eq_ignore_ascii_case(wish.protocol.as_bytes()));
    let websocket = wish.protocol.as_bytes().eq_ignore_ascii_case(b"websocket");
    let proven = || headers.get(header::SEC_WEBSOCKET_ACCEPT) == wish.key.as_ref().and_then(accept).as_ref();
    named && (wish.client.is_none() || !websocket || proven())
}

/// Makes the `200` of an HTTP/2 backend a `101`.
fn switch(response: &mut Response<Incoming>, protocol: &HeaderValue, key: Option<&HeaderValue>) {
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, protocol.clone());
    if let Some(accept) = key.and_then(accept) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
}

/// The body of an answer that opens a tunnel is empty; the request goes on as the tunnel and is recorded when that ends.
pub fn begun(mut context: Box<Context>, tunnel: Option<Box<StreamTunnel>>) -> ResponseBody {
    context.expect(Outcome::Tunnelled);
    let connection = context.connection.clone();
    match tunnel {
        Some(tunnel) => {
            connection.backlog.tunnelled();
            tokio::task::spawn_local(run_stream(*tunnel, context));
        }
        None => {
            if let Some(tunnel) = connection.tunnel.borrow_mut().as_mut() {
                tunnel.context = Some(context);
            }
        }
    }
    ResponseBody::nothing()
}

/// The backend's side of a tunnel, waiting for the client's side.
pub struct Tunnel {
    upstream: Far,
    /// What the backend sent right behind its `101`.
    early: Bytes,
    /// Keeps the endpoint's in-flight count until the tunnel ends.
    lease: Lease,
    /// Recorded when the tunnel ends; set when the client's answer is made.
    context: Option<Box<Context>>,
}

/// A tunnel whose client has a stream of an HTTP/2 connection.
pub struct StreamTunnel {
    client: OnUpgrade,
    tunnel: Tunnel,
}

/// A backend's end of a tunnel.
enum Far {
    /// A whole connection.
    Alone(Stream),
    /// A stream of an HTTP/2 connection.
    Shared(TokioIo<Upgraded>),
}

/// Passes bytes both ways. `early` is what an HTTP/1.1 client sent right behind its request.
pub async fn run(
    worker: &Rc<Worker>,
    connection: &Rc<Connection>,
    client: TokioIo<Box<Guard>>,
    early: Bytes,
    tunnel: Tunnel,
) {
    let Tunnel { upstream, early: from_upstream, lease, context } = tunnel;
    let Some(mut context) = context else { return };
    let _counted = Counted::new(worker);
    connection.progress.enter(Phase::Tunnel);
    let mut client = client.into_inner();
    // The backend's side moves the same deadline: a byte either way keeps a tunnel alive.
    let mut upstream = Guarded::new(upstream, Watch(connection.clone()));
    let before = client.stream().written();
    pass(&connection.progress, &mut client, &mut upstream, &early, &from_upstream).await;
    // However it ended: most tunnels are cut, and their bytes were carried all the same.
    let (up, down) = (upstream.written(), client.stream().written() - before);
    ended(worker, &mut context, up, down);
    drop(lease);
}

/// The same for an HTTP/2 client, whose connection has other things to do: the tunnel's deadlines are its own.
async fn run_stream(tunnel: StreamTunnel, mut context: Box<Context>) {
    let StreamTunnel { client, tunnel } = tunnel;
    // A client that went away meanwhile is recorded as such when its context is dropped.
    let Ok(client) = client.await else { return };
    let worker = context.worker().clone();
    let _counted = Counted::new(&worker);
    let progress = Rc::new(Progress::new(&worker.wheel, serve::allowance(&context.snapshot.server)));
    progress.enter(Phase::Tunnel);
    let mut client = Guarded::new(TokioIo::new(client), Own(progress.clone()));
    let mut upstream = Guarded::new(tunnel.upstream, Own(progress.clone()));
    pass(&progress, &mut client, &mut upstream, &[], &tunnel.early).await;
    ended(&worker, &mut context, upstream.written(), client.written());
    drop(tunnel.lease);
}

fn ended(worker: &Worker, context: &mut Context, up: u64, down: u64) {
    worker.shard.add(Counter::TunnelBytesIn, up);
    worker.shard.add(Counter::TunnelBytesOut, down);
    context.tunnelled(up, down);
    context.complete();
}

/// Counts a tunnel as open until it is dropped.
struct Counted(Rc<Worker>);

impl Counted {
    fn new(worker: &Rc<Worker>) -> Counted {
        worker.shard.gauge_add(Gauge::TunnelsActive, 1);
        worker.shard.add(Counter::Tunnels, 1);
        Counted(worker.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.shard.gauge_add(Gauge::TunnelsActive, -1);
    }
}

struct Own(Rc<Progress>);

impl AsRef<Progress> for Own {
    fn as_ref(&self) -> &Progress {
        &self.0
    }
}

/// Passes bytes until both sides ended, one broke, or a deadline passed; which of these makes no difference.
async fn pass<C, U>(progress: &Progress, client: &mut C, upstream: &mut U, early: &[u8], from_upstream: &[u8])
where
    C: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    let pass = async {
        client.write_all(from_upstream).await?;
        client.flush().await?;
        upstream.write_all(early).await?;
        upstream.flush().await?;
        copy_bidirectional_with_sizes(client, upstream, BUFFER, BUFFER).await
    };
    tokio::pin!(pass);
    std::future::poll_fn(|cx| match pass.as_mut().poll(cx) {
        Poll::Ready(_) => Poll::Ready(()),
        Poll::Pending => progress.poll_overdue(cx).map(drop),
    })
    .await;
}

impl Sends for Far {
    fn sent(&self) -> u64 {
        match self {
            Far::Alone(io) => io.sent(),
            Far::Shared(_) => 0,
        }
    }
}

impl Sends for TokioIo<Upgraded> {}

impl AsyncRead for Far {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Task<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Far::Alone(io) => Pin::new(io).poll_read(cx, buf),
            Far::Shared(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Far {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Task<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Far::Alone(io) => Pin::new(io).poll_write(cx, buf),
            Far::Shared(io) => Pin::new(io).poll_write(cx, buf),
        }
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Task<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Far::Alone(io) => Pin::new(io).poll_flush(cx),
            Far::Shared(io) => Pin::new(io).poll_flush(cx),
        }
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Task<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Far::Alone(io) => Pin::new(io).poll_shutdown(cx),
            Far::Shared(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_to_a_key_is_the_one_of_the_rfc() {
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accept(&key).unwrap(), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn the_first_offered_protocol_that_is_listed_is_taken_and_nothing_else() {
        let of = |offered: &'static str, allowed: &[&str]| {
            let allowed: Vec<String> = allowed.iter().map(ToString::to_string).collect();
            choose(&HeaderValue::from_static(offered), &allowed).map(|name| name.to_str().unwrap().to_owned())
        };
        assert_eq!(of("WebSocket", &["websocket"]).as_deref(), Some("WebSocket"));
        assert_eq!(of("x/2 , websocket,y", &["y", "websocket"]).as_deref(), Some("websocket"));
        for (offered, allowed) in
            [("websocket", &[][..]), ("websockets", &["websocket"]), ("", &["websocket"])]
        {
            assert_eq!(of(offered, allowed), None, "{offered}");
        }
    }
}
