//! Step 7: choose an endpoint, send, perhaps retry.
//!
//! A request is sent again only when nothing can have happened to it: it was never sent (the connection failed, or a
//! pooled one turned out dead), or it is idempotent, has no body, and nothing of an answer was passed on. Never twice
//! to the same endpoint while another lives, and never more than `TRIES_MAX` times.
//!
//! Backends write head and body one after the other. The head of an answer to a request that may be repeated is held
//! until the body's first byte (at most `HEAD_HOLD`), so that a backend that dies between the two costs nobody anything.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::{Body, Incoming};

use crate::base::clock;
use crate::base::outcome::Outcome;
use crate::config::model::Http;
use crate::net::descriptors::Descriptor;
use crate::net::timer::Timer;
use crate::proxy::Worker;
use crate::proxy::body::{RequestBody, ResponseBody, Upload};
use crate::proxy::context::Context;
use crate::proxy::expect;
use crate::proxy::fields::{self, Found};
use crate::proxy::request::Answer;
use crate::proxy::respond;
use crate::proxy::shed::Shed;
use crate::proxy::upgrade::{self, StreamTunnel, Wish};
use crate::snapshot::{Route, Service};
use crate::telemetry::metric::Counter;
use crate::upstream::answer;
use crate::upstream::balance::Tried;
use crate::upstream::connect::{self, ConnectError, Connection, Target};
use crate::upstream::endpoint::{Endpoint, InFlight};
use crate::upstream::multiplex::Stream;
use crate::upstream::pool::Keep;

/// Endpoints tried for one request.
const TRIES_MAX: u32 = 3;
/// Longest that a head waits for the first byte of a body whose length it announced.
const HEAD_HOLD: Duration = Duration::from_millis(200);

/// A request ready to be sent.
pub struct Outgoing {
    /// Its head, as normalised.
    pub parts: Box<Parts>,
    /// Its body.
    pub body: RequestBody,
    /// What its hop-by-hop fields said.
    pub found: Found,
    /// The protocol it is to be changed to, if it may.
    pub wish: Option<Box<Wish>>,
    /// The backend is to say when it wants the body.
    pub expects: bool,
}

/// A connection to an endpoint, lent to one request.
pub struct Lease {
    pub(super) worker: Rc<Worker>,
    pub(super) carrier: Carrier,
    pub(super) in_flight: InFlight,
    pub(super) upload: Option<Rc<Upload>>,
    /// A body went with a method that has none by habit: a backend that ignored it would take it for the next request
    /// (RFC 9110 section 9.3.1), so the connection carries no other.
    pub(super) last: bool,
}

/// What carries a request to its endpoint.
pub enum Carrier {
    /// An HTTP/1.1 connection, for this request alone.
    Alone(Connection<RequestBody>),
    /// A stream of an HTTP/2 connection.
    Shared(Stream<RequestBody>),
}

impl Lease {
    /// For the deadlines of the request.
    pub fn timer(&self) -> &Timer {
        match &self.carrier {
            Carrier::Alone(connection) => &connection.timer,
            Carrier::Shared(stream) => &stream.timer,
        }
    }

    /// The answer was read whole: the connection can carry another request, unless the last one is still being sent. A
    /// stream is dropped, and with it what is still being sent.
    pub fn give_back(self) {
        let Carrier::Alone(connection) = self.carrier else { return };
        connection.timer.clear();
        if !self.last && self.upload.as_ref().is_none_or(|upload| upload.done()) {
            let snapshot = self.worker.snapshot();
            let server = &snapshot.server;
            let keep = Keep { count: server.limits.upstream_idle, time: server.timeouts.upstream_idle };
            self.worker.pools.give(self.in_flight.endpoint(), connection, self.worker.wheel.now(), keep);
        }
    }

    /// The answer broke off; the connection is closed.
    pub fn fail(self, outcome: Outcome) {
        self.in_flight.endpoint().note_failure(outcome.row().sentence);
    }
}

/// An answer from a backend on its way out.
pub struct Forwarded {
    pub(super) response: Response<Incoming>,
    /// The first piece of the body, where it was waited for.
    pub(super) first: Option<Bytes>,
    /// `None` when the connection went into a tunnel.
    pub(super) lease: Option<Lease>,
    /// The tunnel of an HTTP/2 client.
    pub(super) tunnel: Option<Box<StreamTunnel>>,
}

impl Forwarded {
    /// The answer as the client gets it.
    pub fn into_response(self, mut context: Box<Context>) -> Response<ResponseBody> {
        let Forwarded { response, first, lease, tunnel } = self;
        let (mut parts, incoming) = response.into_parts();
        fields::clean_response(&mut parts.headers, parts.status);
        if let Some(route) = context.route() {
            route.response_headers.apply(&mut parts.headers);
        }
        // The client was never told to go on: it sends no body, and nobody could tell a late one from its next request.
        context.close |= context.upload.as_ref().is_some_and(|upload| upload.unasked());
        respond::finish(&mut parts.headers, &context);
        context.status = parts.status.as_u16();
        parts.version = Version::HTTP_11;
        let body = match lease {
            Some(lease) => {
                context.expect(Outcome::Served);
                let stall = context.snapshot.server.timeouts.tunnel;
                ResponseBody::upstream(first, incoming, lease, stall, context)
            }
            None => upgrade::begun(context, tunnel),
        };
        Response::from_parts(parts, body)
    }
}

/// Sends a request to one endpoint of a service, to another if that one fails.
///
/// # Errors
/// The outcome of the last try.
pub async fn run(
    context: &mut Context,
    route: &Route,
    service: &Service,
    mut outgoing: Outgoing,
) -> Result<Answer, Outcome> {
    let mut wish = outgoing.wish.take();
    let expects = outgoing.expects;
    let mut request = outgoing.into_request(route)?;
    if expects && let Some(upload) = &context.upload {
        expect::pass_on(&mut request, upload);
    }
    let saved = Saved::of(&request);
    let worker = context.worker().clone();
    let mut tried = Tried::default();
    let mut last = Outcome::NoEndpoint;
    for attempt in 0..TRIES_MAX {
        let now = worker.wheel.now();
        let Some(index) = service.core.balancer.choose(&service.core.endpoints, now, worker.random(), &tried)
        else {
            break;
        };
        let Some(chosen) = service.core.endpoints.get(index) else { break };
        // It waited there already as long as it may.
        if last == Outcome::UpstreamBusy && tried.contains(index) {
            break;
        }
        tried.insert(index);
        context.tries = attempt + 1;
        context.endpoint = Some(chosen.endpoint.clone());
        if attempt > 0 {
            worker.shard.add(Counter::Retries, 1);
        }
        let exchange = Exchange { worker: &worker, service, index, endpoint: &chosen.endpoint };
        let sent = match exchange.send(context, request).await {
            Ok((response, lease)) if saved.0.is_some() => exchange.begun(response, lease).await,
            Ok((response, lease)) => Ok((response, None, lease)),
            Err(failure) => Err(failure),
        };
        match sent {
            Ok((response, first, lease)) => {
                return arrived(context, response, first, lease, wish.take()).await;
            }
            Err(failure) => {
                last = failure.outcome;
                let again = failure.unsent.or_else(|| if failure.answered { None } else { saved.restore() });
                match again {
                    Some(again) => request = again,
                    None => break,
                }
            }
        }
    }
    Err(last)
}

/// The head of an answer has arrived.
async fn arrived(
    context: &mut Context,
    response: Response<Incoming>,
    first: Option<Bytes>,
    lease: Lease,
    wish: Option<Box<Wish>>,
) -> Result<Answer, Outcome> {
    let forwarded = match wish {
        Some(wish) => Box::pin(upgrade::answered(context, response, first, lease, *wish)).await?,
        // Nobody asked: bytes behind such an answer would be taken for the next one (RFC 9110 section 15.2.2).
        None if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
            lease.fail(Outcome::UpstreamInvalid);
            return Err(Outcome::UpstreamInvalid);
        }
        // Over HTTP/1 its bytes were looked at; h2 lets through what HTTP/1 clients could read in two ways, and a status
        // that is none (RFC 9110 section 15).
        None if response.version() == Version::HTTP_2
            && (response.status().as_u16() > 599 || fields::well_formed(response.headers()).is_err()) =>
        {
            lease.fail(Outcome::UpstreamInvalid);
            return Err(Outcome::UpstreamInvalid);
        }
        None => Forwarded { response, first, lease: Some(lease), tunnel: None },
    };
    Ok(Answer::Forwarded(Box::new(forwarded)))
}

/// A try that failed.
pub(super) struct Failure {
    pub(super) outcome: Outcome,
    /// The request, where it was certainly never sent.
    pub(super) unsent: Option<Box<Request<RequestBody>>>,
    /// The endpoint had its chance to answer: sending again would only make things worse.
    pub(super) answered: bool,
}

impl Failure {
    /// Nothing is sent again.
    pub(super) fn last(outcome: Outcome) -> Failure {
        Failure { outcome, unsent: None, answered: true }
    }

    /// The request was not processed; `unsent` is it, where it can be sent again.
    pub(super) fn again(outcome: Outcome, unsent: Option<Box<Request<RequestBody>>>) -> Failure {
        Failure { outcome, unsent, answered: false }
    }
}

/// One try at one endpoint.
pub(super) struct Exchange<'a> {
    pub(super) worker: &'a Rc<Worker>,
    pub(super) service: &'a Service,
    pub(super) index: usize,
    pub(super) endpoint: &'a Arc<Endpoint>,
}

impl Exchange<'_> {
    async fn send(
        &self,
        context: &mut Context,
        mut request: Box<Request<RequestBody>>,
    ) -> Result<(Response<Incoming>, Lease), Failure> {
        if self.service.core.http == Http::H2 {
            return Box::pin(self.send_multiplexed(context, request)).await;
        }
        let tls = self.tls();
        let bound = self.service.core.proxy_protocol.map(|_| context.client);
        // One that is down gets this request as its trial: only a new connection can show that it is back.
        let up = self.endpoint.is_up(self.worker.wheel.now());
        loop {
            let pooled = up.then(|| self.worker.pools.take(self.endpoint, tls, bound)).flatten();
            let fresh = pooled.is_none();
            let connection = match pooled {
                Some(pooled) => pooled,
                // Boxed: a request on a pooled connection must not carry the room for a handshake.
                None => match Box::pin(self.connect(context)).await {
                    Ok(connection) => connection,
                    Err(error) => return Err(self.unreachable(&error, Some(request))),
                },
            };
            if !fresh {
                self.worker.shard.add(Counter::UpstreamReused, 1);
            }
            match self.exchange(context, connection, request).await {
                // A pooled connection may have been closed by the endpoint a moment ago: the request comes back unsent
                // and the next one is tried; each costs one connection of the pool, so this ends.
                Err(Failure { unsent: Some(unsent), .. }) if !fresh => {
                    self.worker.shard.add(Counter::UpstreamStale, 1);
                    request = unsent;
                }
                done => return done,
            }
        }
    }

    fn tls(&self) -> Option<&Arc<rustls::ClientConfig>> {
        if self.endpoint.tls { self.service.tls.as_ref() } else { None }
    }

    /// How the endpoint is reached; in nobody's name.
    pub(super) fn target(&self, head_max: usize) -> Target<'_> {
        let name = self.service.server_names.get(self.index).and_then(Option::as_ref);
        Target {
            address: &self.endpoint.address,
            tls: self.tls().zip(name),
            timeout: self.service.core.connect_timeout,
            head_max,
            bound: None,
            header: Vec::new(),
            wheel: &self.worker.wheel,
            descriptor: Descriptor::of_reserve(),
        }
    }

    async fn connect(&self, context: &Context) -> Result<Connection<RequestBody>, ConnectError> {
        let snapshot = self.worker.snapshot();
        let mut target = self.target(snapshot.server.limits.upstream_head);
        target.descriptor = self.descriptor().ok_or(ConnectError::NoDescriptor)?;
        if let Some(version) = self.service.core.proxy_protocol {
            target.bound = Some(context.client);
            target.header = context.proxy_header(version);
        }
        let connection = connect::connect(target).await?;
        self.worker.shard.add(Counter::UpstreamOpened, 1);
        self.endpoint.connect_succeeded();
        Ok(connection)
    }

    /// Leave for one more socket; idle connections of this worker give way to it.
    pub(super) fn descriptor(&self) -> Option<Descriptor> {
        let budget = self.worker.connections.descriptors();
        budget.take().or_else(|| {
            self.worker.pools.shrink();
            self.worker.multiplexed.shrink();
            budget.take()
        })
    }

    pub(super) fn unreachable(
        &self,
        error: &ConnectError,
        unsent: Option<Box<Request<RequestBody>>>,
    ) -> Failure {
        // Not the endpoint's fault, and no other one could be reached either.
        if matches!(error, ConnectError::NoDescriptor) {
            self.worker.shed(Shed::Backend, None);
            return Failure::last(Outcome::NoDescriptor);
        }
        let message = error.to_string();
        self.log("backend unreachable", &message);
        match error {
            // It answers, it has only too much to do: no reason to take it out.
            ConnectError::Busy => self.endpoint.note_failure(&message),
            _ => self.endpoint.connect_failed(self.worker.wheel.now(), &message),
        }
        let (outcome, counter) = match error {
            ConnectError::Refused => (Outcome::ConnectRefused, Counter::UpstreamRefused),
            ConnectError::Name(_) => (Outcome::UpstreamName, Counter::UpstreamName),
            ConnectError::Network(_) => (Outcome::ConnectFailed, Counter::UpstreamIo),
            ConnectError::Tls(_) => (Outcome::UpstreamTls, Counter::UpstreamTls),
            ConnectError::Timeout(_) => (Outcome::ConnectTimeout, Counter::UpstreamTimeout),
            ConnectError::NoDescriptor => (Outcome::NoDescriptor, Counter::UpstreamDescriptors),
            ConnectError::NotH2(_) => (Outcome::UpstreamNotH2, Counter::UpstreamNotH2),
            ConnectError::Busy => (Outcome::UpstreamBusy, Counter::UpstreamBusy),
        };
        self.worker.shard.add(counter, 1);
        Failure::again(outcome, unsent)
    }

    pub(super) fn log(&self, what: &str, why: &str) {
        let Some(more) = self.endpoint.may_log(self.worker.wheel.now()) else { return };
        let service = &*self.service.core.name;
        match more {
            0 => tracing::warn!(service, endpoint = self.endpoint.label, "{what}: {why}"),
            more => {
                tracing::warn!(
                    service,
                    endpoint = self.endpoint.label,
                    "{what}: {why} (and {more} failures before)"
                );
            }
        }
    }

    async fn exchange(
        &self,
        context: &mut Context,
        mut connection: Connection<RequestBody>,
        request: Box<Request<RequestBody>>,
    ) -> Result<(Response<Incoming>, Lease), Failure> {
        let upload = context.upload.clone();
        let in_flight = self.endpoint.begin();
        let last = upload.is_some() && (request.method().is_safe() || request.method() == Method::DELETE);
        let started = clock::micros();
        connection.timer.set(self.service.core.timeout);
        connection.ask(request.method(), request.headers().contains_key(header::UPGRADE));
        let mut sent = std::pin::pin!(connection.sender.try_send_request(*request));
        let result = std::future::poll_fn(|cx| {
            if let Poll::Ready(result) = sent.as_mut().poll(cx) {
                return Poll::Ready(Some(result));
            }
            while connection.timer.poll_expired(cx).is_ready() {
                if !self.still_uploading(&connection.timer, upload.as_deref()) {
                    return Poll::Ready(None);
                }
            }
            Poll::Pending
        })
        .await;
        match result {
            Some(Ok(response)) => {
                connection.timer.clear();
                self.observe(context, started);
                let carrier = Carrier::Alone(connection);
                Ok((response, Lease { worker: self.worker.clone(), carrier, in_flight, upload, last }))
            }
            Some(Err(mut error)) => {
                let unsent = error.take_message().map(Box::new);
                Err(self.broken(&error.into_error(), unsent, upload.as_deref()))
            }
            None => {
                self.endpoint.note_failure(Outcome::UpstreamTimeout.row().sentence);
                Err(Failure::last(Outcome::UpstreamTimeout))
            }
        }
    }

    /// The head of an answer came.
    pub(super) fn observe(&self, context: &mut Context, started: u64) {
        let micros = clock::micros().saturating_sub(started);
        context.upstream_micros = Some(micros);
        self.endpoint.observe(micros, self.worker.wheel.now());
    }

    /// Waits for the first byte of a body with a known length: until then the request can go to another endpoint.
    async fn begun(
        &self,
        mut response: Response<Incoming>,
        lease: Lease,
    ) -> Result<(Response<Incoming>, Option<Bytes>, Lease), Failure> {
        if response.body().size_hint().exact().is_none_or(|length| length == 0) {
            return Ok((response, None, lease));
        }
        lease.timer().set(HEAD_HOLD);
        let first = std::future::poll_fn(|cx| match Pin::new(response.body_mut()).poll_frame(cx) {
            Poll::Pending if lease.timer().poll_expired(cx).is_ready() => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
            Poll::Ready(frame) => Poll::Ready(frame),
        })
        .await;
        lease.timer().clear();
        match first {
            Some(Ok(frame)) => Ok((response, frame.into_data().ok(), lease)),
            None => Ok((response, None, lease)),
            Some(Err(error)) => {
                let (outcome, why) = broke(&error);
                self.log("backend failed a request", &why);
                lease.fail(outcome);
                let answered = outcome == Outcome::UpstreamInvalid;
                Err(Failure { outcome, unsent: None, answered })
            }
        }
    }

    /// The deadline for the first byte counts from the end of the request: while its body moves, it waits.
    pub(super) fn still_uploading(&self, timer: &Timer, upload: Option<&Upload>) -> bool {
        let Some(upload) = upload else { return false };
        let due = upload.moved().after(self.service.core.timeout);
        let now = self.worker.wheel.now();
        if due <= now {
            return false;
        }
        timer.set(std::time::Duration::from_millis(due.0 - now.0));
        true
    }

    fn broken(
        &self,
        error: &hyper::Error,
        unsent: Option<Box<Request<RequestBody>>>,
        upload: Option<&Upload>,
    ) -> Failure {
        if unsent.is_some() {
            return Failure::again(Outcome::UpstreamClosed, unsent);
        }
        // A body that we cut ourselves breaks the connection; the cut is the reason, not the backend.
        if let Some(outcome) = upload.and_then(Upload::failure) {
            return Failure::last(outcome);
        }
        let fault = answer::fault(error);
        let invalid = fault.is_some() || error.is_parse() || error.is_parse_too_large();
        let outcome = match invalid {
            true => Outcome::UpstreamInvalid,
            // TLS 1.3: a backend refuses our certificate only after the handshake is over for us.
            false if connect::is_tls(error) => Outcome::UpstreamTls,
            false => Outcome::UpstreamClosed,
        };
        self.log("backend failed a request", &fault.map_or_else(|| error.to_string(), |f| f.to_string()));
        self.endpoint.note_failure(outcome.row().sentence);
        Failure { outcome, unsent: None, answered: invalid }
    }
}

/// What an answer that broke off inside its body ended in, and why.
pub fn broke(error: &hyper::Error) -> (Outcome, String) {
    match answer::fault(error) {
        Some(fault) => (Outcome::UpstreamInvalid, fault.to_string()),
        None => (Outcome::UpstreamTruncated, error.to_string()),
    }
}

/// What is needed to send a request again, kept only for those that may be.
struct Saved(Option<(Method, Uri, HeaderMap)>);

impl Saved {
    /// RFC 9110 section 9.2.2: idempotent methods may be repeated; a body would have been consumed.
    fn of(request: &Request<RequestBody>) -> Saved {
        let repeatable = matches!(request.body(), RequestBody::Empty) && request.method().is_idempotent();
        Saved(
            repeatable.then(|| (request.method().clone(), request.uri().clone(), request.headers().clone())),
        )
    }

    fn restore(&self) -> Option<Box<Request<RequestBody>>> {
        let (method, uri, headers) = self.0.as_ref()?;
        let mut request = Request::new(RequestBody::Empty);
        *request.method_mut() = method.clone();
        *request.uri_mut() = uri.clone();
        *request.headers_mut() = headers.clone();
        Some(Box::new(request))
    }
}

impl Outgoing {
    fn into_request(self, route: &Route) -> Result<Box<Request<RequestBody>>, Outcome> {
        let Outgoing { mut parts, body, found, .. } = self;
        fields::set_hop(&mut parts.headers, &found, parts.version);
        // hyper sends no body at all with these, unless it is told how to frame one.
        if matches!(parts.method, Method::GET | Method::HEAD)
            && matches!(body, RequestBody::Streaming(..))
            && body.size_hint().exact().is_none()
        {
            parts.headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        if let Some(rewrite) = &route.rewrite {
            parts.uri = rewritten(&parts.uri, &rewrite.apply(parts.uri.path()))?;
        }
        parts.version = Version::HTTP_11;
        route.request_headers.apply(&mut parts.headers);
        Ok(Box::new(Request::from_parts(*parts, body)))
    }
}

/// The target with another path.
fn rewritten(uri: &Uri, path: &str) -> Result<Uri, Outcome> {
    let text = match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    PathAndQuery::try_from(text).map(Uri::from).map_err(|_| Outcome::BadPath)
}
