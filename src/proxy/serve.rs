//! Step 3: one connection, many requests. hyper speaks the protocol; what it has no deadline for is watched here.

use std::convert::Infallible;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context as Task, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::Service;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;

use crate::base::outcome::Outcome;
use crate::config::model::Server;
use crate::net::progress::{Allowance, Guarded, Overdue, Phase};
use crate::net::stream::Stream;
use crate::net::unheard::Unheard;
use crate::proxy::accept::Accepted;
use crate::proxy::body::ResponseBody;
use crate::proxy::context::{Connection, Introduction, Watch, Watched};
use crate::proxy::frames::{self, Resets};
use crate::proxy::guard::{Guard, Limits};
use crate::proxy::{Worker, record, request, respond, upgrade};
use crate::telemetry::metric::{Counter, Gauge};

/// hyper's own default, kept on the stack; a higher limit moves it to the heap.
const FIELDS_ON_STACK: usize = 100;
/// What hyper may hold of a body on its way to a slow client, beyond the head.
const BUFFER: usize = 64 * 1024;
/// Bytes a slow HTTP/2 stream may have waiting, and what a client may send before it must be told to go on.
const H2_SEND_BUFFER: usize = 64 * 1024;
const H2_STREAM_WINDOW: u32 = 256 * 1024;
const H2_CONNECTION_WINDOW: u32 = 1024 * 1024;
/// How long a connection that was told to go may take for its goodbye.
const FAREWELL: Duration = Duration::from_secs(5);
/// Reads of unwanted bytes before a connection is closed: what is on its way when a client learns that nobody wants
/// the rest of its upload, 16 MiB.
const LINGER_READS: usize = 1024;
const LINGER_BUFFER: usize = 16 * 1024;

/// What serves one connection to its end. Boxed for each protocol: the one that a connection does not speak must not take
/// room in it.
pub type Served = Pin<Box<dyn Future<Output = ()>>>;

/// Serves a connection of a plain HTTP listener.
pub fn plain(worker: &Rc<Worker>, accepted: Accepted) -> Served {
    let Accepted { tcp, client, trusted, port, local, permit } = accepted;
    let permit = Some(permit);
    let intro = Introduction { client, trusted, http2: false, port, local, handshake: None, permit };
    run(worker, Stream::Plain(tcp, Unheard::default()), intro)
}

/// Serves a connection whose protocol is known.
pub fn run(worker: &Rc<Worker>, stream: Stream, intro: Introduction) -> Served {
    let snapshot = worker.snapshot();
    let server = &snapshot.server;
    let http2 = intro.http2;
    let connection = Rc::new(Connection::new(worker, allowance(server), intro));
    worker.opened(&connection);
    if worker.draining() {
        connection.closing.set(true);
    }
    let io = Guarded::new(stream, Watch(connection.clone()));
    let handler = Handler { worker: worker.clone(), connection: connection.clone() };
    if http2 {
        let executor = LocalExecutor { worker: worker.clone(), connection: connection.clone() };
        let builder = h2_builder(server, executor);
        let limits = &server.limits;
        let resets = Resets { per_second: limits.h2_reset_rate, open: limits.h2_streams };
        let io = frames::Watch::new(io, worker, &connection, resets);
        let http = builder.serve_connection(TokioIo::new(io), handler);
        Box::pin(h2(worker.clone(), connection, http))
    } else {
        connection.progress.rests();
        let guard = Box::new(Guard::new(io, guard_limits(server)));
        Box::pin(h1(worker.clone(), connection, guard))
    }
}

async fn h2(worker: Rc<Worker>, connection: Rc<Connection>, http: H2) {
    let driven = Box::pin(drive_h2(http, &worker, &connection));
    worker.fair.drive(&connection, driven).await;
}

/// hyper keeps buffers for as long as it has a connection. So it has one only while there is something to serve, and what
/// it needs for that lives in a box that goes with it.
async fn h1(worker: Rc<Worker>, connection: Rc<Connection>, mut guard: Box<Guard>) {
    loop {
        let driven = Box::pin(drive_h1(guard, &worker, &connection));
        guard = match worker.fair.drive(&connection, driven).await {
            Some(guard) => guard,
            None => break,
        };
        rest(&worker, &connection, &guard).await;
    }
    // A tunnel whose `101` could not be delivered holds the connection that holds it.
    drop(connection.tunnel.borrow_mut().take());
}

/// Waits until there is something to do for a connection: bytes or an end came from the client, a deadline passed, or it is
/// to close. What it is, is found out by serving it again.
async fn rest(worker: &Worker, connection: &Connection, guard: &Guard) {
    let _counted = Resting::new(worker);
    std::future::poll_fn(|cx| {
        if connection.closing.get() || guard.poll_arrived(cx).is_ready() {
            return Poll::Ready(());
        }
        connection.progress.poll_overdue(cx).map(drop)
    })
    .await;
    connection.progress.stir();
}

/// Counts a connection as resting until it is dropped.
struct Resting<'a>(&'a Worker);

impl Resting<'_> {
    fn new(worker: &Worker) -> Resting<'_> {
        worker.shard.gauge_add(Gauge::Resting, 1);
        Resting(worker)
    }
}

impl Drop for Resting<'_> {
    fn drop(&mut self) {
        self.0.shard.gauge_add(Gauge::Resting, -1);
    }
}

/// How long each phase of a connection may last.
pub fn allowance(server: &Server) -> Allowance {
    let timeouts = &server.timeouts;
    Allowance {
        idle: timeouts.idle,
        head: timeouts.head,
        write: timeouts.write,
        tunnel: timeouts.tunnel,
        write_rate: server.limits.write_rate,
    }
}

fn guard_limits(server: &Server) -> Limits {
    let head = usize::try_from(server.limits.head).unwrap_or(usize::MAX);
    Limits { head, uri: server.limits.uri, fields: server.limits.fields }
}

/// With the limits of the guard in front of it, whatever the configuration says by now.
fn h1_builder(limits: &Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .header_read_timeout(None)
        .max_header_size(limits.head)
        .max_buf_size(limits.head.saturating_add(BUFFER));
    if limits.fields > FIELDS_ON_STACK {
        builder.max_headers(limits.fields);
    }
    builder
}

fn h2_builder(server: &Server, executor: LocalExecutor) -> http2::Builder<LocalExecutor> {
    let limits = &server.limits;
    let mut builder = http2::Builder::new(executor);
    builder
        .max_concurrent_streams(limits.h2_streams)
        .max_header_list_size(u32::try_from(limits.head).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(limits.h2_resets)
        .max_local_error_reset_streams(limits.h2_resets)
        .max_send_buf_size(H2_SEND_BUFFER)
        .initial_stream_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_CONNECTION_WINDOW)
        // RFC 8441 section 3: WebSocket over HTTP/2. Whether a tunnel is opened, the route decides.
        .enable_connect_protocol();
    builder
}

/// Runs what hyper spawns for HTTP/2 streams on this worker.
///
/// A client can keep one stream's window shut while the connection is well: hyper then waits for ever, and nothing
/// it calls would hear of a deadline. So each stream's task has one, which the answer's body sets while it waits to be
/// asked for more; dropping the stream resets it and leaves the others alone.
#[derive(Clone)]
struct LocalExecutor {
    worker: Rc<Worker>,
    connection: Rc<Connection>,
}

impl<F> hyper::rt::Executor<F> for LocalExecutor
where
    F: Future<Output: 'static> + 'static,
{
    fn execute(&self, future: F) {
        let connection = self.connection.clone();
        let (delivery, fair) = (self.worker.wheel.timer(), self.worker.fair.clone());
        tokio::task::spawn_local(async move {
            let mut future = std::pin::pin!(future);
            let mut seat = None;
            let mut step = |cx: &mut Task<'_>| {
                // Nothing more is done for whoever was told to go, however much of it was read before.
                if connection.flooded() {
                    return Poll::Ready(());
                }
                connection.delivery.replace(Some(delivery.clone()));
                let polled = future.as_mut().poll(cx);
                connection.delivery.replace(None);
                if polled.is_ready() { Poll::Ready(()) } else { delivery.poll_expired(cx) }
            };
            std::future::poll_fn(|cx| fair.poll(&connection, &mut seat, cx, &mut step)).await;
        });
    }
}

/// Hands each request of a connection to [`request::handle`].
struct Handler {
    worker: Rc<Worker>,
    connection: Rc<Connection>,
}

impl Service<Request<Incoming>> for Handler {
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>>>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        if self.connection.resets_streams(self.worker.wheel.now()) {
            return Box::pin(in_turn(self.worker.clone(), self.connection.clone(), request));
        }
        Box::pin(request::handle(&self.worker, &self.connection, request))
    }
}

/// The request of a client that opens streams and resets them at once: the reset was most often read with it, and hyper
/// looks for it when this first yields. So nothing is done for the request, and nothing allocated, before its turn.
async fn in_turn(
    worker: Rc<Worker>,
    connection: Rc<Connection>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Infallible> {
    /// Counts a request that did not live to its turn.
    struct Early<'a>(&'a Worker);
    impl Drop for Early<'_> {
        fn drop(&mut self) {
            self.0.shard.add(Counter::RequestsResetEarly, 1);
        }
    }
    let early = Early(&worker);
    tokio::task::yield_now().await;
    std::mem::forget(early);
    // Boxed: until here it must not take the room of what follows.
    Box::pin(request::handle(&worker, &connection, request)).await
}

/// How driving a connection ended.
enum End {
    /// hyper is done with it.
    Done(Result<(), hyper::Error>),
    /// A deadline passed.
    Overdue(Overdue),
}

/// Serves what comes until the connection ends, or may rest: then its stream is handed back.
async fn drive_h1(guard: Box<Guard>, worker: &Rc<Worker>, connection: &Rc<Connection>) -> Option<Box<Guard>> {
    let handler = Handler { worker: worker.clone(), connection: connection.clone() };
    let builder = h1_builder(&guard.limits());
    let mut http = builder.serve_connection(TokioIo::new(guard), handler);
    let mut told = false;
    let end = std::future::poll_fn(|cx| {
        loop {
            if let Poll::Ready(result) = http.poll_without_shutdown(cx) {
                return Poll::Ready(End::Done(result));
            }
            // hyper would not wait for the rest of a first head; that request is served, and is the last.
            let begun = connection.progress.phase() == Phase::Head && connection.progress.bytes_in() > 0;
            if connection.closing.get() && !begun && !std::mem::replace(&mut told, true) {
                Pin::new(&mut http).graceful_shutdown();
            } else if !connection.progress.resume() {
                break;
            }
        }
        match connection.progress.poll_overdue(cx) {
            Poll::Ready(Overdue::Rest) if connection.may_rest() => Poll::Ready(End::Overdue(Overdue::Rest)),
            Poll::Ready(Overdue::Rest) => connection.progress.poll_overdue(cx).map(End::Overdue),
            other => other.map(End::Overdue),
        }
    })
    .await;
    if matches!(end, End::Overdue(Overdue::Write)) {
        // Before it is taken apart: what it has in flight ends with it.
        connection.ending.set(Outcome::ClientStalled);
    }
    let parts = http.into_parts();
    if matches!(end, End::Overdue(Overdue::Rest)) && parts.read_buf.is_empty() && parts.io.inner().is_blank()
    {
        return Some(parts.io.into_inner());
    }
    // Boxed: what happens once at the end must not take room in every connection.
    Box::pin(end_h1(end, parts.io, parts.read_buf, worker, connection)).await;
    None
}

async fn end_h1(
    end: End,
    io: TokioIo<Box<Guard>>,
    early: Bytes,
    worker: &Rc<Worker>,
    connection: &Rc<Connection>,
) {
    match end {
        End::Done(result) => {
            if let Some(outcome) = io.inner().refused() {
                return answer_raw(worker, connection, io, outcome).await;
            }
            if let Err(error) = result {
                if connection.reset.get() {
                    io.inner().reset_on_close();
                }
                refused(worker, &error);
                // What hyper refused it has answered; any other error must not look like an end.
                if error.is_parse() {
                    farewell(io).await;
                }
                return;
            }
            let tunnel = connection.tunnel.borrow_mut().take();
            match tunnel {
                Some(tunnel) => upgrade::run(worker, connection, io, early, tunnel).await,
                None => farewell(io).await,
            }
        }
        // Only a client that began to speak is owed an answer.
        End::Overdue(Overdue::Head) if connection.progress.bytes_in() > 0 => {
            answer_raw(worker, connection, io, Outcome::HeadTimeout).await;
        }
        // A plain end would wait behind what the client does not read, and the kernel keep all of it.
        End::Overdue(Overdue::Write) => io.inner().reset_on_close(),
        // Dropped, and with it the request, as when the client had reset the connection.
        End::Overdue(Overdue::Gone) => {}
        End::Overdue(_) => farewell(io).await,
    }
}

/// Says goodbye under TLS (close_notify) and TCP (FIN); bounded, because the peer may not be listening.
async fn farewell(mut io: TokioIo<Box<Guard>>) {
    let _ = tokio::time::timeout(FAREWELL, async {
        io.inner_mut().shutdown().await?;
        if io.inner().mid_message() { linger(io.inner_mut().stream()).await } else { Ok(()) }
    })
    .await;
}

/// What is still arriving is read and thrown away for a moment: closing on unread bytes would reset the connection, and
/// take the answer with it (RFC 9112 section 9.6).
async fn linger(stream: &mut Watched) -> std::io::Result<()> {
    let mut waste = vec![0u8; LINGER_BUFFER];
    for _ in 0..LINGER_READS {
        if tokio::io::AsyncReadExt::read(stream, &mut waste).await? == 0 {
            break;
        }
    }
    Ok(())
}

/// Answers bytes that never became a request, and ends the connection.
async fn answer_raw(
    worker: &Rc<Worker>,
    connection: &Rc<Connection>,
    mut io: TokioIo<Box<Guard>>,
    outcome: Outcome,
) {
    let id = record::unread(worker, connection, outcome);
    let answer = respond::raw(outcome, &id);
    // Best effort and bounded: whoever sent this may not be listening.
    let _ = tokio::time::timeout(FAREWELL, async {
        io.inner_mut().write_all(&answer).await?;
        io.inner_mut().shutdown().await?;
        linger(io.inner_mut().stream()).await
    })
    .await;
}

/// hyper refused bytes that the guard let through. It has answered already; here it is counted.
fn refused(worker: &Worker, error: &hyper::Error) {
    if error.is_parse_too_large() {
        worker.shard.outcome_only(Outcome::HeadTooLarge);
    } else if error.is_parse() {
        worker.shard.outcome_only(Outcome::BadRequest);
    }
}

type H2 = http2::Connection<TokioIo<frames::Watch>, Handler, LocalExecutor>;

async fn drive_h2(http: H2, worker: &Worker, connection: &Rc<Connection>) {
    let mut http = std::pin::pin!(http);
    let mut told = false;
    let end = std::future::poll_fn(|cx: &mut Task<'_>| {
        loop {
            if let Poll::Ready(result) = poll_h2(http.as_mut(), connection, cx) {
                return Poll::Ready(End::Done(result));
            }
            if !connection.closing.get() || std::mem::replace(&mut told, true) {
                break;
            }
            // GOAWAY; hyper finishes the streams that are open and then the connection.
            http.as_mut().graceful_shutdown();
        }
        connection.progress.poll_overdue(cx).map(End::Overdue)
    })
    .await;
    let overdue = match end {
        End::Overdue(overdue) => overdue,
        End::Done(Err(error)) => return frames::ended(worker, connection, &error),
        End::Done(Ok(())) => return,
    };
    if overdue == Overdue::Write {
        connection.ending.set(Outcome::ClientStalled);
        connection.reset.set(true);
        return;
    }
    connection.closing.set(true);
    connection.progress.enter(Phase::Serving);
    http.as_mut().graceful_shutdown();
    let rest = std::future::poll_fn(|cx| poll_h2(http.as_mut(), connection, cx));
    let _ = tokio::time::timeout(FAREWELL, rest).await;
}

/// One turn. What waits for a packet at its end, because h2 did not flush once more as it is expected to, has another one.
fn poll_h2(http: Pin<&mut H2>, connection: &Connection, cx: &mut Task<'_>) -> Poll<hyper::Result<()>> {
    let turn = http.poll(cx);
    if connection.held.get() {
        cx.waker().wake_by_ref();
    }
    turn
}
