//! HTTP/2 connections to endpoints: one set per worker and endpoint, each connection shared by many requests.
//!
//! An endpoint belongs to one service of one site, so that a connection is never shared across sites. A request gets
//! a [`Stream`] on the first connection with room; where none has, one more connection is made while the others wait
//! for it, up to a cap; at the cap a request waits for a stream, until its deadline.
//!
//! hyper releases a connection's receive window only as bodies are read, so bodies that slow clients leave unread would
//! hold up everybody on the connection (hyper#2899). Here the connection's window is the sum of the windows of as many
//! streams as we ever open: however many are left unread, the next one still has its whole window. The price is
//! memory: [`STREAMS_MAX`] times [`STREAM_WINDOW`] (16 MiB) for a connection on which every client stalls.
//!
//! Where the endpoint may choose, the first connection shows what it chooses. A choice of HTTP/1.1 is believed for
//! [`CHOICE_TIME`]; requests then go their own way, see [`Place::Alone`].
//!
//! Not done: HTTP/2 on connections that begin with a PROXY protocol header, which name one client.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::error::Error;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Body;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ClientConfig;
use tokio::sync::Notify;

use crate::base::clock::Millis;
use crate::net;
use crate::net::descriptors::Descriptor;
use crate::net::timer::Timer;
use crate::upstream::connect::{self, ConnectError, Connection, Target, Terms};
use crate::upstream::endpoint::Endpoint;
use crate::upstream::pool::same;

/// Streams on one connection, also where the endpoint would take more.
pub const STREAMS_MAX: usize = 128;
/// What an endpoint may send on one stream before the client took it.
pub const STREAM_WINDOW: u32 = 128 * 1024;
/// Nobody waits for a window that somebody else's unread answer holds.
const CONNECTION_WINDOW: u32 = STREAMS_MAX as u32 * STREAM_WINDOW;
/// Bytes of a request's body that wait for the endpoint's window.
const SEND_BUFFER: usize = 64 * 1024;
/// Longest wait for the answer to a ping, and never longer than the silence before it.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// How long an endpoint that chose HTTP/1.1 is not asked again.
pub const CHOICE_TIME: Duration = Duration::from_secs(60);

/// A body that hyper can send.
pub trait Sendable: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Unpin + 'static {}

impl<B> Sendable for B where B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Unpin + 'static
{}

/// The HTTP/2 connections of one worker.
pub struct Multiplexed<B: Sendable> {
    groups: RefCell<HashMap<u64, Group<B>>>,
}

/// What may be opened; read anew each time, so that a reload changes it.
#[derive(Debug, Clone, Copy)]
pub struct Allowed {
    /// Connections to one endpoint.
    pub connections: usize,
    /// Silence before a ping.
    pub ping_after: Duration,
    /// The endpoint may choose HTTP/1.1 instead.
    pub alone: bool,
}

/// Where a request goes.
pub enum Place<B: Sendable> {
    /// Onto a stream of an HTTP/2 connection.
    Shared(Stream<B>),
    /// Onto a connection of its own, because the endpoint chose HTTP/1.1; the one on which it did, for whoever made it.
    Alone(Option<Box<Connection<B>>>),
}

/// A connection that was made.
enum Opened<B: Sendable> {
    Shared(Rc<Carrier<B>>),
    Alone(Box<Connection<B>>),
}

/// One request's place on a connection; free again when dropped, and what is still being sent of its body is not sent
/// any more.
pub struct Stream<B: Sendable> {
    carrier: Rc<Carrier<B>>,
    leash: Rc<Leash>,
    /// For the deadlines of the request.
    pub timer: Timer,
    /// The connection was made for this request.
    pub fresh: bool,
}

/// The connections to one endpoint.
struct Group<B: Sendable> {
    carriers: Vec<Rc<Carrier<B>>>,
    /// Somebody is making one.
    opening: bool,
    /// Until then the endpoint is taken to choose HTTP/1.1.
    alone_until: Millis,
    /// Told when a stream or a connection has become free, or opening has ended.
    news: Rc<News>,
}

#[derive(Default)]
struct News {
    notify: Notify,
    /// How opening failed last, and how often it has ended.
    failed: RefCell<Option<ConnectError>>,
    ended: Cell<u64>,
}

/// The half of hyper's connection that takes requests; `None` when it has ended. Whatever it holds of requests must
/// come back then.
type Line<B> = Rc<RefCell<Option<http2::Connection<TokioIo<net::stream::Stream>, B, Spawner>>>>;

/// One connection.
struct Carrier<B: Sendable> {
    sender: http2::SendRequest<B>,
    line: Line<B>,
    spawner: Spawner,
    tls: Option<Arc<ClientConfig>>,
    streams: Cell<usize>,
    /// It takes no new requests: the endpoint said so.
    retired: Cell<bool>,
    idle_since: Cell<Millis>,
    news: Rc<News>,
    _descriptor: Descriptor,
}

impl<B: Sendable> Default for Multiplexed<B> {
    fn default() -> Multiplexed<B> {
        Multiplexed { groups: RefCell::default() }
    }
}

/// What a request is to do.
enum Next<B: Sendable> {
    Go(Rc<Carrier<B>>),
    Open(Rc<News>),
    Wait(Rc<News>),
    Alone,
}

impl<B: Sendable> Multiplexed<B> {
    /// A place for a request at an endpoint, given by its id; `leave` is asked before a socket is opened. Waits no longer than the target's
    /// deadline, whether for a connection or for a stream.
    ///
    /// # Errors
    /// [`ConnectError`]; the request was not sent in any of these cases.
    pub async fn place(
        &self,
        endpoint: u64,
        mut target: Target<'_>,
        leave: impl Fn() -> Option<Descriptor>,
        allowed: Allowed,
    ) -> Result<Place<B>, ConnectError> {
        let tls = target.tls.map(|(config, _)| config.clone());
        let patience = target.wheel.timer();
        patience.set(target.timeout);
        let until = patience.now().after(target.timeout);
        loop {
            let news = match self.next(endpoint, tls.as_ref(), allowed, patience.now()) {
                Next::Go(carrier) => return Ok(Place::Shared(Stream::on(carrier, patience, false))),
                Next::Alone => return Ok(Place::Alone(None)),
                Next::Open(news) => {
                    let opening = Opening { group: self, endpoint, news: news.clone() };
                    target.descriptor = leave().ok_or(ConnectError::NoDescriptor)?;
                    let opened = open(target, allowed, &news).await;
                    opening.ended(&opened, patience.now());
                    return opened.map(|opened| match opened {
                        Opened::Shared(carrier) => Place::Shared(Stream::on(carrier, patience, true)),
                        Opened::Alone(connection) => Place::Alone(Some(connection)),
                    });
                }
                Next::Wait(news) => news,
            };
            let (ended, notified) = (news.ended.get(), news.notify.notified());
            let mut notified = std::pin::pin!(notified);
            let told = std::future::poll_fn(|cx| match notified.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(true),
                Poll::Pending => patience.poll_expired(cx).map(|()| false),
            })
            .await;
            if !told {
                return Err(ConnectError::Busy);
            }
            // What stopped the one that opened would stop everybody who waited, one after the other.
            let failed = news.failed.borrow();
            match failed.as_ref().filter(|_| news.ended.get() != ended) {
                // It had less time than this one has, which now opens one itself, with what is left.
                Some(ConnectError::Timeout(after)) if *after < target.timeout => {
                    target.timeout = Duration::from_millis(until.0.saturating_sub(patience.now().0));
                }
                Some(error) => return Err(ConnectError::Heard(Box::new(error.again()))),
                None => {}
            }
        }
    }

    /// Whether an endpoint that may choose chose HTTP/1.1 a while ago.
    pub fn chose_alone(&self, endpoint: &Endpoint, now: Millis) -> bool {
        self.groups.borrow().get(&endpoint.id).is_some_and(|group| group.alone_until > now)
    }

    /// It does not take HTTP/1.1 any more: it is asked again.
    pub fn forget_choice(&self, endpoint: &Endpoint) {
        if let Some(group) = self.groups.borrow_mut().get_mut(&endpoint.id) {
            group.alone_until = Millis(0);
        }
    }

    fn next(&self, endpoint: u64, tls: Option<&Arc<ClientConfig>>, allowed: Allowed, now: Millis) -> Next<B> {
        let mut groups = self.groups.borrow_mut();
        let group = groups.entry(endpoint).or_insert_with(|| Group {
            carriers: Vec::new(),
            opening: false,
            alone_until: Millis(0),
            news: Rc::default(),
        });
        group.carriers.retain(|carrier| !carrier.over());
        let fits = |carrier: &&Rc<Carrier<B>>| carrier.has_room() && same(carrier.tls.as_ref(), tls);
        // The first with room: the others fall idle and are closed.
        if let Some(carrier) = group.carriers.iter().find(fits) {
            carrier.streams.set(carrier.streams.get() + 1);
            return Next::Go(carrier.clone());
        }
        if allowed.alone && group.alone_until > now {
            return Next::Alone;
        }
        if group.opening || group.carriers.len() >= allowed.connections {
            return Next::Wait(group.news.clone());
        }
        group.opening = true;
        Next::Open(group.news.clone())
    }

    /// Closes what has carried nothing for so long, and forgets what died. Called about once a second.
    pub fn sweep(&self, now: Millis, idle: Duration) -> u64 {
        let mut evicted = 0;
        self.groups.borrow_mut().retain(|_, group| {
            group.carriers.retain(|carrier| {
                let unused = carrier.streams.get() == 0 && carrier.idle_since.get().after(idle) <= now;
                evicted += u64::from(unused && !carrier.over());
                !carrier.over() && !unused
            });
            group.opening || !group.carriers.is_empty() || group.alone_until > now
        });
        evicted
    }
}

impl<B: Sendable> Multiplexed<B> {
    /// Closes what carries nothing: descriptors are needed elsewhere. Gives how many.
    pub fn shrink(&self) -> u64 {
        let mut evicted = 0;
        for group in self.groups.borrow_mut().values_mut() {
            let before = group.carriers.len();
            group.carriers.retain(|carrier| carrier.streams.get() > 0);
            evicted += before.saturating_sub(group.carriers.len()) as u64;
        }
        evicted
    }
}

/// Marks an endpoint as being connected to; whoever waits is told however that ends.
struct Opening<'a, B: Sendable> {
    group: &'a Multiplexed<B>,
    endpoint: u64,
    news: Rc<News>,
}

impl<B: Sendable> Opening<'_, B> {
    fn ended(self, opened: &Result<Opened<B>, ConnectError>, now: Millis) {
        self.news.failed.replace(opened.as_ref().err().map(ConnectError::again));
        self.news.ended.set(self.news.ended.get() + 1);
        let mut groups = self.group.groups.borrow_mut();
        let Some(group) = groups.get_mut(&self.endpoint) else { return };
        match opened {
            Ok(Opened::Shared(carrier)) => group.carriers.push(carrier.clone()),
            Ok(Opened::Alone(_)) => group.alone_until = now.after(CHOICE_TIME),
            Err(_) => {}
        }
    }
}

impl<B: Sendable> Drop for Opening<'_, B> {
    fn drop(&mut self) {
        if let Some(group) = self.group.groups.borrow_mut().get_mut(&self.endpoint) {
            group.opening = false;
        }
        self.news.notify.notify_waiters();
    }
}

/// Makes a connection and waits for the endpoint's SETTINGS: they say that it speaks HTTP/2 (RFC 9113 section 3.4), how
/// many streams it takes, and whether it takes tunnels. The first stream is taken for whoever asked. Where the endpoint may
/// choose, it may be HTTP/1.1 that begins.
async fn open<B: Sendable>(
    mut target: Target<'_>,
    allowed: Allowed,
    news: &Rc<News>,
) -> Result<Opened<B>, ConnectError> {
    let (timeout, now) = (target.timeout, target.wheel.now());
    let terms = Terms::of(&mut target);
    let opened = async {
        let dialled = connect::dial(target).await;
        let stream = if allowed.alone { dialled? } else { dialled.map_err(alpn)? };
        if terms.tls.is_some() && !stream.speaks_h2() {
            let refused = ConnectError::NotH2("it chose no protocol in the TLS handshake (ALPN)");
            return if allowed.alone { Ok(Spoken::Alone(stream)) } else { Err(refused) };
        }
        let spawner = Spawner::default();
        let (sender, driven) = builder(&spawner, allowed, terms.head_max)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|_| ConnectError::NotH2("the connection ended at once"))?;
        let line: Line<B> = Rc::new(RefCell::new(Some(driven)));
        tokio::task::spawn_local(drive(line.clone(), spawner.clone()));
        settled(&line, &spawner).await?;
        Ok(Spoken::Shared(sender, line, spawner))
    };
    let late = ConnectError::NotH2("it sent no SETTINGS in time");
    match tokio::time::timeout(timeout, opened).await.map_err(|_| late)?? {
        Spoken::Alone(stream) => connect::begin(stream, terms).await.map(Box::new).map(Opened::Alone),
        Spoken::Shared(sender, line, spawner) => Ok(Opened::Shared(Rc::new(Carrier {
            sender,
            line,
            spawner,
            tls: terms.tls,
            streams: Cell::new(1),
            retired: Cell::new(false),
            idle_since: Cell::new(now),
            news: news.clone(),
            _descriptor: terms.descriptor,
        }))),
    }
}

/// What is spoken on a stream to an endpoint.
enum Spoken<B: Sendable> {
    Shared(http2::SendRequest<B>, Line<B>, Spawner),
    Alone(net::stream::Stream),
}

/// A backend that knows ALPN but not HTTP/2 ends the handshake with this alert (RFC 7301 section 3.2).
fn alpn(error: ConnectError) -> ConnectError {
    match &error {
        ConnectError::Tls(why)
            if why.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()).is_some_and(
                |inner| {
                    matches!(
                        inner,
                        rustls::Error::AlertReceived(rustls::AlertDescription::NoApplicationProtocol)
                    )
                },
            ) =>
        {
            ConnectError::NotH2("it refused the protocol in the TLS handshake (ALPN)")
        }
        _ => error,
    }
}

fn builder(spawner: &Spawner, allowed: Allowed, head_max: usize) -> http2::Builder<Spawner> {
    let mut builder = http2::Builder::new(spawner.clone());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        // None before the endpoint's SETTINGS: by that they are recognised.
        .initial_max_send_streams(0)
        .max_header_list_size(u32::try_from(head_max).unwrap_or(u32::MAX))
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(allowed.ping_after)
        .keep_alive_timeout(PING_TIMEOUT.min(allowed.ping_after));
    builder
}

/// Drives the half of hyper that takes requests; the other half, which reads and writes, runs on the [`Spawner`].
async fn drive<B: Sendable>(line: Line<B>, spawner: Spawner) {
    // An error reaches whoever waits for an answer; here it only means the end.
    std::future::poll_fn(|cx| match line.borrow_mut().as_mut() {
        Some(driven) => Pin::new(driven).poll(cx).map(drop),
        None => Poll::Ready(()),
    })
    .await;
    let ended = line.take();
    drop(ended);
    spawner.moved();
}

async fn settled<B: Sendable>(line: &Line<B>, spawner: &Spawner) -> Result<(), ConnectError> {
    std::future::poll_fn(|cx| match line.borrow().as_ref() {
        None => Poll::Ready(Err(ConnectError::NotH2("the connection ended before its SETTINGS"))),
        Some(driven) if driven.current_max_send_streams() > 0 => Poll::Ready(Ok(())),
        Some(_) => {
            spawner.watch(cx);
            Poll::Pending
        }
    })
    .await
}

impl<B: Sendable> Carrier<B> {
    fn over(&self) -> bool {
        self.retired.get() || self.sender.is_closed()
    }
}

impl<B: Sendable> Carrier<B> {
    /// Whether one more stream may be opened: as many as the endpoint takes now (RFC 9113 section 5.1.2), and as we do.
    fn has_room(&self) -> bool {
        let theirs = self.line.borrow().as_ref().map_or(0, |line| line.current_max_send_streams());
        !self.over() && self.streams.get() < theirs.min(STREAMS_MAX)
    }
}

impl<B: Sendable> Stream<B> {
    fn on(carrier: Rc<Carrier<B>>, timer: Timer, fresh: bool) -> Stream<B> {
        Stream { carrier, leash: Rc::default(), timer, fresh }
    }

    /// What the request's body must [`Tie::hold`] whenever it is polled.
    pub fn tie(&self) -> Tie {
        Tie { spawner: self.carrier.spawner.clone(), leash: self.leash.clone() }
    }

    /// Where the request goes in.
    pub fn sender(&self) -> http2::SendRequest<B> {
        self.carrier.sender.clone()
    }

    /// Whether the endpoint takes tunnels (RFC 8441 section 3).
    pub fn takes_tunnels(&self) -> bool {
        self.carrier.line.borrow().as_ref().is_some_and(|line| line.is_extended_connect_protocol_enabled())
    }

    /// The connection takes no further requests; those it carries go on.
    pub fn retire(&self) {
        self.carrier.retired.set(true);
    }
}

impl<B: Sendable> Drop for Stream<B> {
    fn drop(&mut self) {
        self.leash.cut();
        let carrier = &self.carrier;
        carrier.streams.set(carrier.streams.get().saturating_sub(1));
        carrier.idle_since.set(self.timer.now());
        carrier.news.notify.notify_one();
    }
}

/// Ends the task that sends a request's body. hyper gives no hold on it once the answer's head is there, and it may wait
/// for the endpoint's window for ever: the endpoint would never learn that nobody wants the answer any more.
#[derive(Default)]
struct Leash {
    cut: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Leash {
    fn cut(&self) {
        self.cut.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Ready when it was cut.
    fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        if self.cut.get() {
            return Poll::Ready(());
        }
        self.waker.replace(Some(cx.waker().clone()));
        Poll::Pending
    }
}

/// Ties a request's body to the task that sends it. hyper polls a body once before it spawns that task, and spawns
/// nothing in between: the next task after a poll is the one.
#[derive(Clone)]
pub struct Tie {
    spawner: Spawner,
    leash: Rc<Leash>,
}

impl Tie {
    /// To be called whenever the body is polled.
    pub fn hold(&self) {
        self.spawner.0.next.replace(Some(self.leash.clone()));
    }
}

/// Runs hyper's tasks on this worker, and tells who waits for something to happen on the connection.
#[derive(Clone, Default)]
struct Spawner(Rc<Spawning>);

#[derive(Default)]
struct Spawning {
    watcher: RefCell<Option<Waker>>,
    /// Of the body that was polled last.
    next: RefCell<Option<Rc<Leash>>>,
}

impl Spawner {
    fn watch(&self, cx: &Context<'_>) {
        self.0.watcher.replace(Some(cx.waker().clone()));
    }

    fn moved(&self) {
        if let Some(waker) = self.0.watcher.take() {
            waker.wake();
        }
    }
}

impl<F> hyper::rt::Executor<F> for Spawner
where
    F: Future<Output: 'static> + 'static,
{
    fn execute(&self, future: F) {
        let spawner = self.clone();
        let leash = self.0.next.take();
        tokio::task::spawn_local(async move {
            let mut future = std::pin::pin!(future);
            std::future::poll_fn(|cx| {
                let polled = future.as_mut().poll(cx).map(drop);
                // A body polled by its own task needs no other one.
                spawner.0.next.take();
                spawner.moved();
                match &leash {
                    Some(leash) if polled.is_pending() => leash.poll(cx),
                    _ => polled,
                }
            })
            .await;
        });
    }
}
