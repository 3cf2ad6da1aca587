//! Step 7: choose an endpoint, send, perhaps retry.
//!
//! A request is sent again only when nothing can have happened to it: it was never sent (the connection failed, or a
//! pooled one turned out dead), or it is idempotent, has no body, and nothing of an answer was passed on. Never twice
//! to the same endpoint while another lives, never more often than `retry` says, and never beyond the budget of the
//! service. Where `retry` says so, a 502, 503 or 504 of a backend leads to another one too.
//!
//! Backends write head and body one after the other. The head of an answer to a request that may be repeated is held
//! until the body's first byte (a moment at most, see `exchange`), so that a backend that dies between the two costs nobody anything.

use std::rc::Rc;
use std::task::{Context as Task, Poll};

use bytes::Bytes;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Request, Response, StatusCode, Uri, Version};
use hyper::body::{Body, Incoming};

use crate::base::clock::Millis;
use crate::base::outcome::{Blame, Outcome};
use crate::net::timer::Timer;
use crate::proxy::Worker;
use crate::proxy::admit::Way;
use crate::proxy::body::{RequestBody, ResponseBody};
use crate::proxy::context::Context;
use crate::proxy::exchange::Exchange;
use crate::proxy::expect;
use crate::proxy::fields::{self, Found};
use crate::proxy::request::Answer;
use crate::proxy::respond;
use crate::proxy::saved::Saved;
use crate::proxy::upgrade::{self, StreamTunnel, Wish};
use crate::proxy::upload::Upload;
use crate::proxy::{affinity, enforce};
use crate::snapshot::{Route, Service};
use crate::telemetry::metric::Counter;
use crate::upstream::answer;
use crate::upstream::capacity::Slot;
use crate::upstream::connect::Connection;
use crate::upstream::multiplex::Stream;
use crate::upstream::pool::Keep;

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
    pub(super) slot: Slot,
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

    /// Whether it is a stream of an HTTP/2 connection.
    pub fn is_shared(&self) -> bool {
        matches!(self.carrier, Carrier::Shared(_))
    }

    /// Whether nothing more will happen on its connection once the answer was read whole, however long the client takes
    /// for it.
    pub fn may_go(&self) -> bool {
        matches!(self.carrier, Carrier::Alone(_)) && self.upload.as_ref().is_none_or(|upload| upload.done())
    }

    /// The head of an answer is here, and its body is yet to come: whoever takes that has the connection move on when he
    /// wants more. But whoever takes the answer slowly must not hold up what is still being sent.
    pub fn hand_over(&self) {
        if let (Carrier::Alone(connection), true) = (&self.carrier, self.may_go()) {
            connection.hand_over();
        }
    }

    /// Polls `step`, which waits for something of the answer, and moves its connection on meanwhile.
    pub fn lead<T>(&self, cx: &mut Task<'_>, mut step: impl FnMut(&mut Task<'_>) -> Poll<T>) -> Poll<T> {
        match &self.carrier {
            Carrier::Alone(connection) => connection.lead(cx, step),
            Carrier::Shared(_) => step(cx),
        }
    }

    /// Runs `step`, the first look at the body of an answer; it says whether that is over.
    pub(super) fn first_look<T>(&self, step: impl FnOnce() -> (T, bool)) -> T {
        match &self.carrier {
            Carrier::Alone(connection) => connection.first_look(step),
            Carrier::Shared(_) => step().0,
        }
    }

    /// The answer was read whole: the connection can carry another request, unless the last one is still being sent. A
    /// stream is dropped, and with it what is still being sent.
    pub fn give_back(self) {
        let Carrier::Alone(connection) = self.carrier else { return };
        connection.timer.clear();
        connection.follow();
        if !self.last && self.upload.as_ref().is_none_or(|upload| upload.done()) {
            let snapshot = self.worker.snapshot();
            let server = &snapshot.server;
            let keep = Keep { count: server.limits.upstream_idle, time: server.timeouts.upstream_idle };
            let now = self.worker.wheel.now();
            let evicted = self.worker.pools.give(self.slot.endpoint(), connection, now, keep);
            if evicted > 0 {
                self.worker.shard.add(Counter::UpstreamEvicted, evicted);
            }
        }
    }

    /// The time of its worker.
    pub fn now(&self) -> Millis {
        self.worker.wheel.now()
    }

    /// The answer broke off or cannot be passed on; the connection is closed. `why` is for the process log. `excused`: its
    /// client let it wait.
    pub fn fail(self, outcome: Outcome, why: &str, excused: bool) {
        let endpoint = self.slot.endpoint();
        endpoint.log(self.worker.wheel.now(), "backend failed a request", why);
        let row = outcome.row();
        // A client that takes its answer too slowly says nothing about who sent it.
        if row.blame == Blame::Upstream && excused {
            endpoint.note_failure(row.sentence);
        } else if row.blame == Blame::Upstream {
            endpoint.broke_off(self.worker.wheel.now(), row.sentence);
        }
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
    /// An answer whose head has come. Boxed here: it passes through all that waited for it.
    pub(super) fn new(response: Response<Incoming>, lease: Lease) -> Box<Forwarded> {
        Box::new(Forwarded { response, first: None, lease: Some(lease), tunnel: None })
    }

    /// The answer as the client gets it.
    pub fn into_response(self, mut context: Box<Context>) -> Response<ResponseBody> {
        let Forwarded { response, first, lease, tunnel } = self;
        let (mut parts, incoming) = response.into_parts();
        fields::clean_response(&mut parts.headers, parts.status);
        crate::proxy::answer::dress(&mut parts.headers, &context);
        affinity::remember(&mut parts.headers, &context);
        // The client was never told to go on: it sends no body, and nobody could tell a late one from its next request.
        context.close |= context.upload.as_ref().is_some_and(|upload| upload.unasked());
        respond::finish(&mut parts.headers, &context);
        context.status = parts.status.as_u16();
        enforce::answered(&mut context, parts.status.as_u16());
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
    let wish = outgoing.wish.take();
    let expects = outgoing.expects;
    let mut request = outgoing.into_request(route, context)?;
    if expects && let Some(upload) = &context.upload {
        expect::pass_on(&mut request, upload);
    }
    let worker = context.worker().clone();
    let mut way = Way::begin(context, &worker, service, context.upload.is_none())?;
    let result = tries(context, &mut way, request, wish).await;
    way.report(match &result {
        Ok(Answer::Forwarded(forwarded)) => Ok(forwarded.response.status().as_u16()),
        Ok(Answer::Local(_)) => Ok(0),
        Err(outcome) => Err(*outcome),
    });
    result
}

async fn tries(
    context: &mut Context,
    way: &mut Way<'_>,
    mut request: Box<Request<RequestBody>>,
    wish: Option<Box<Wish>>,
) -> Result<Answer, Outcome> {
    let saved = Saved::of(&request);
    let repeatable = saved.is_some();
    let mut last = Outcome::NoEndpoint;
    loop {
        let Some(chosen) = way.next(context).await? else { return Err(last) };
        // It waited there for a free stream already, as long as it may.
        if way.mark(chosen.index) && last == Outcome::UpstreamBusy {
            return Err(last);
        }
        let exchange = Exchange::new(way, chosen, repeatable);
        let sent = match exchange.send(context, request).await {
            Ok(forwarded) if repeatable => exchange.begun(forwarded).await,
            sent => sent,
        };
        let failure = match sent {
            Ok(forwarded) => {
                let leaves = repeatable && way.leaves(forwarded.response.status());
                let again = saved.as_ref().filter(|_| leaves).and_then(Saved::restore);
                let Some(again) = again else { return arrived(context, forwarded, wish).await };
                if forwarded.response.body().is_end_stream()
                    && let Some(lease) = forwarded.lease
                {
                    lease.give_back();
                }
                (request, last) = (again, Outcome::NoEndpoint);
                continue;
            }
            Err(failure) => failure,
        };
        last = failure.outcome;
        request = way.again(failure, || saved.as_ref().and_then(Saved::restore))?;
    }
}

/// The head of an answer has arrived.
async fn arrived(
    context: &mut Context,
    mut forwarded: Box<Forwarded>,
    wish: Option<Box<Wish>>,
) -> Result<Answer, Outcome> {
    if let Some(wish) = wish {
        let Forwarded { response, first, lease, .. } = *forwarded;
        let lease = lease.ok_or(Outcome::Internal)?;
        let forwarded = Box::pin(upgrade::answered(context, response, first, lease, *wish)).await?;
        return Ok(Answer::Forwarded(Box::new(forwarded)));
    }
    let Some(why) = invalid(&forwarded.response) else { return Ok(Answer::Forwarded(forwarded)) };
    if let Some(lease) = forwarded.lease.take() {
        lease.fail(Outcome::UpstreamInvalid, &why, false);
    }
    Err(Outcome::UpstreamInvalid)
}

/// Why an answer that nobody asked to switch protocols can not be passed on; `None`: it can.
fn invalid(response: &Response<Incoming>) -> Option<String> {
    // Bytes behind such an answer would be taken for the next one (RFC 9110 section 15.2.2).
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Some(answer::Fault::Switched.to_string());
    }
    // Over HTTP/1 its bytes were looked at; h2 lets through what HTTP/1 clients could read in two ways, and a status
    // that is none (RFC 9110 section 15).
    let sayable = response.version() != Version::HTTP_2
        || (response.status().as_u16() <= 599 && fields::well_formed(response.headers()).is_ok());
    (!sayable).then(|| "the head of the answer cannot be said in HTTP/1 (RFC 9113 section 8.2.1)".to_owned())
}

/// What an answer that broke off inside its body ended in, and why.
pub fn broke(error: &hyper::Error) -> (Outcome, String) {
    match answer::fault(error) {
        Some(fault) => (Outcome::UpstreamInvalid, fault.to_string()),
        None => (Outcome::UpstreamTruncated, format!("the answer broke off: {}", answer::cause(error))),
    }
}

impl Outgoing {
    fn into_request(self, route: &Route, context: &Context) -> Result<Box<Request<RequestBody>>, Outcome> {
        let Outgoing { mut parts, body, found, .. } = self;
        fields::set_hop(&mut parts.headers, &found, parts.version);
        if let Some(rewrite) = &route.rewrite {
            let path = rewrite.apply(parts.uri.path());
            if rewrite.leads_elsewhere(&path) {
                return Err(Outcome::BadPath);
            }
            parts.uri = rewritten(&parts.uri, &path)?;
        }
        parts.version = Version::HTTP_11;
        route.request_headers.apply(&mut parts.headers, context);
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
