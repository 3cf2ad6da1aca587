//! Step 4: THE life of a request. [`handle`] never fails: it always yields an answer. `answer` is the order of
//! things, one line a step; each step may end the request with an [`Outcome`].

use std::borrow::Cow;
use std::convert::Infallible;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::header;
use http::request::Parts;
use http::{Method, Request, Response, Version};
use hyper::body::{Body, Incoming};

use crate::base::escape;
use crate::base::outcome::Outcome;
use crate::config::model::{Forward, Http};
use crate::policy::via::Circle;
use crate::proxy::body::{RequestBody, ResponseBody};
use crate::proxy::buffered::Buffered;
use crate::proxy::context::{Connection, Context};
use crate::proxy::fields::{self, Found};
use crate::proxy::gather::Gather;
use crate::proxy::keep::Kept;
use crate::proxy::respond::Accept;
use crate::proxy::upgrade::Extended;
use crate::proxy::upload::{Streaming, Upload};
use crate::proxy::{Worker, affinity, enforce, forward, normalize, respond, share, upgrade};
use crate::route::RequestHead;
use crate::snapshot::{Action, Route, Service, Site, Snapshot};

/// Bytes of an unwanted body that are read to keep a connection, and how long an answer waits for that.
const DISCARD_MAX: u64 = 16 * 1024;
const DISCARD_TIME: Duration = Duration::from_secs(1);

/// A request in, an answer out; recorded when the answer's body ends.
///
/// It begins with the call, not with the first poll: the guard must know it before hyper asks for more bytes.
pub fn handle(
    worker: &Rc<Worker>,
    connection: &Rc<Connection>,
    request: Request<Incoming>,
) -> impl Future<Output = Result<Response<ResponseBody>, Infallible>> + use<> {
    let mut context = Context::begin(worker, connection, &request);
    let (parts, body) = request.into_parts();
    context.untouched = !body.is_end_stream();
    // A client that waits to be told to go on has not sent it, and need not.
    let discardable = context.untouched && !parts.headers.contains_key(header::EXPECT);
    // Boxed: a future holds what it is given at every level below it, and moves it at each.
    let parts = Box::new(parts);
    async move {
        let mut body = Some(body);
        let answered = answer(&mut context, parts, &mut body).await;
        if let (Some(body), true) = (body, discardable) {
            discard(&mut context, body).await;
        }
        Ok(match answered {
            Ok(answer) => answer.into_response(context),
            Err(outcome) => respond::failure(context, outcome),
        })
    }
}

/// What a request is answered with, before its context moves into the body.
pub enum Answer {
    /// From a backend.
    Forwarded(Box<forward::Forwarded>),
    /// Our own.
    Local(Box<respond::Local>),
}

impl Answer {
    fn into_response(self, context: Box<Context>) -> Response<ResponseBody> {
        match self {
            Answer::Forwarded(forwarded) => forwarded.into_response(context),
            Answer::Local(local) => local.into_response(context),
        }
    }
}

/// The steps, in order.
async fn answer(
    context: &mut Context,
    mut parts: Box<Parts>,
    body: &mut Option<Incoming>,
) -> Result<Answer, Outcome> {
    // An extended CONNECT is from here on the GET that it stands for.
    let extended = if parts.method == Method::CONNECT { upgrade::extended(&mut parts)? } else { None };
    if let Some(answer) = respond::challenge(context, &parts) {
        return Ok(answer);
    }
    within_limits(context, &parts)?;
    if parts.method == Method::OPTIONS && parts.uri.path() == "*" {
        return Ok(respond::options());
    }
    let snapshot = context.snapshot.clone();
    let normalize::Reading { host, path } = normalize::read(&parts)?;
    let known = snapshot.find(&host).or_else(|| on_demand(context, &snapshot, &parts, &host));
    let site_index = known.ok_or_else(|| unknown_host(context, &host))?;
    let site = snapshot.sites.get(site_index).ok_or(Outcome::Internal)?;
    context.site = Some(site_index);
    authorised(context, &snapshot, &host, site_index)?;
    drop(host);
    share::enter(context, site)?;

    if context.connection.trusted {
        context.client =
            fields::client_address(&parts.headers, context.client, &snapshot.server.trusted_proxies);
    }
    if !fields::came_secure(&context.connection, &parts.headers) && !site.plain_http {
        return respond::to_https(context, &parts, &path.text);
    }
    proven(context, site)?;
    let find = |path: &str| {
        site.table.find(&RequestHead {
            method: &parts.method,
            path,
            query: parts.uri.query(),
            headers: &parts.headers,
        })
    };
    let route_index = find(&path.text).ok_or(Outcome::NoRoute)?;
    let route = site.routes.get(route_index).ok_or(Outcome::Internal)?;
    unambiguous(route, &path, |other| find(other) == Some(route_index))?;
    context.route = Some(route_index);
    context.series = route.series;
    enforce::all(context, site, route, &parts, &path.text, body).await?;
    nothing_follows(context, body).await?;
    if let Some(answer) = respond::preflight(context, &parts) {
        return Ok(answer);
    }
    // Owned only where normalising changed it.
    let path = if let Cow::Owned(path) = path.text { Some(path) } else { None };
    match &route.action {
        Action::Redirect(redirect) => Ok(respond::redirect(redirect, &parts, path.as_deref())),
        Action::Respond(fixed) => Ok(respond::fixed(fixed)),
        Action::Proxy(service) => {
            // A TRACE, of which the same holds, never comes that far.
            if parts.method == Method::OPTIONS && fields::is_last_hop(&mut parts.headers)? {
                return Ok(respond::options());
            }
            let service = affinity::settle(context, site, service, &mut parts, path.as_deref());
            let found = prepare(context, &mut parts, path.as_deref(), site.forward)?;
            let outgoing = outgoing(context, parts, found, body.take(), route, service, extended)?;
            forward::run(context, route, service, outgoing).await
        }
    }
}

/// Whatever way a backend reads a path, it must have passed this route and its policies.
fn unambiguous(
    route: &Route,
    path: &normalize::Path<'_>,
    leads_here: impl Fn(&str) -> bool,
) -> Result<(), Outcome> {
    if !path.others.iter().all(|other| leads_here(other)) {
        return Err(Outcome::BadPath);
    }
    // A service that is asked who may come in judges one reading, and the backend might serve another.
    let judged = route.auth.as_ref().is_some_and(|guard| guard.service.is_some());
    match judged && !path.others.is_empty() && escape::is_odd(&path.text) {
        true => Err(Outcome::BadPath),
        false => Ok(()),
    }
}

/// A request as a backend gets it, its head ours already.
fn outgoing(
    context: &mut Context,
    mut parts: Box<Parts>,
    mut found: Found,
    body: Option<Incoming>,
    route: &Route,
    service: &Service,
    extended: Option<Extended>,
) -> Result<forward::Outgoing, Outcome> {
    // What follows the head would be body and tunnel at once: an upgrade may be ignored (RFC 9110 section 7.8).
    if context.untouched || context.upload.is_some() {
        found.upgrade = None;
    }
    let mut wish = None;
    if found.upgrade.is_some() || extended.is_some() {
        let (worker, allowed) = (context.worker(), &service.core.upgrade);
        wish = upgrade::wish(worker, &mut parts, &mut found.upgrade, extended, allowed)?;
    }
    let multiplexed = service.core.http != Http::H1;
    // Who was asked for the beginning of the body was told to go on.
    let asked = context.upload.is_some();
    let body = match body {
        Some(body) => upload(context, route.max_body, body, body_rate(context)),
        None => RequestBody::Empty,
    };
    let body = match body {
        // A backend that speaks HTTP/2 may give a request back after its body was begun.
        RequestBody::Streaming(body) if multiplexed => RequestBody::Kept(Kept::new(*body)),
        body => body,
    };
    // RFC 9110 section 10.1.1: from an HTTP/1.0 client it means nothing.
    let expects = found.expects && parts.version > Version::HTTP_10;
    let expects = expects && !asked && !multiplexed && matches!(body, RequestBody::Streaming(_));
    Ok(forward::Outgoing { parts, body, found, wish, expects })
}

/// Sizes that hyper does not bound as we want them.
fn within_limits(context: &Context, parts: &Parts) -> Result<(), Outcome> {
    let limits = &context.snapshot.server.limits;
    let target = parts.uri.path_and_query().map_or(0, |target| target.as_str().len());
    if target > limits.uri {
        return Err(Outcome::UriTooLong);
    }
    if parts.headers.len() > limits.fields {
        return Err(Outcome::HeadTooLarge);
    }
    Ok(())
}

/// The site that takes a host on demand, for plain requests: most often the redirect to the handshake that orders its
/// certificate. What nobody has allowed yet gets that redirect and nothing else.
fn on_demand(context: &Context, snapshot: &Snapshot, parts: &Parts, host: &str) -> Option<usize> {
    if context.connection.sni().is_some() || context.connection.secure {
        return None;
    }
    let owner = snapshot.rules.owner(host)?;
    let site = snapshot.sites.get(owner.terms.position)?;
    let redirected = !site.plain_http && !fields::came_secure(&context.connection, &parts.headers);
    (owner.listed || redirected).then_some(owner.terms.position)
}

fn unknown_host(context: &Context, host: &str) -> Outcome {
    if context.snapshot.unavailable.contains(host) {
        return Outcome::SiteUnavailable;
    }
    // Under TLS the certificate that was shown belongs to some site: the client may try a connection of its own.
    if context.connection.sni().is_some() { Outcome::Misdirected } else { Outcome::UnknownHost }
}

/// A connection opened for one site may carry requests for another only where both show the same certificate and have
/// the same TLS policy (RFC 9110 section 7.4, RFC 9113 section 9.1.1): otherwise what the handshake decided was decided
/// for somebody else.
fn authorised(context: &mut Context, snapshot: &Snapshot, host: &str, site: usize) -> Result<(), Outcome> {
    let wanted = snapshot.sites.get(site).ok_or(Outcome::Internal)?;
    let kept = context.connection.keeps_to(&wanted.policy);
    if let Err(outcome) = kept
        && outcome != Outcome::Misdirected
    {
        // The client was good once and is no more: nothing that follows on this connection will be.
        context.close = true;
        context.connection.closing.set(true);
        context.connection.progress.wake();
    }
    let Some(sni) = context.connection.sni().filter(|sni| *sni != host) else { return kept };
    // Each name on demand has a certificate of its own.
    if snapshot.names.contains_key(sni) || snapshot.names.contains_key(host) {
        return Err(Outcome::Misdirected);
    }
    let shown = snapshot.hosts.find(sni).and_then(|&index| snapshot.sites.get(index));
    let print = |site: &Site| site.identity.as_ref().map(|identity| identity.fingerprint);
    match shown {
        Some(shown) if Arc::ptr_eq(shown, wanted) => kept,
        Some(shown) if print(shown).is_some() && print(shown) == print(wanted) => kept,
        _ => Err(Outcome::Misdirected),
    }
}

/// A site that asks for client certificates is served over TLS to us alone: a trusted proxy that ended TLS has not
/// seen the proof.
fn proven(context: &Context, site: &Site) -> Result<(), Outcome> {
    if site.policy.auth.is_none() || context.connection.secure {
        Ok(())
    } else {
        Err(Outcome::ClientCertMissing)
    }
}

/// Makes the head of a request ours to send.
fn prepare(
    context: &mut Context,
    parts: &mut Parts,
    path: Option<&str>,
    forward: Forward,
) -> Result<Found, Outcome> {
    let connection = context.connection.clone();
    if connection.trusted
        && let Some(id) = fields::request_id(&parts.headers)
    {
        context.request_id = id;
    }
    let sender = fields::Sender {
        peer: &connection.forwarded_for,
        port: &connection.forwarded_port,
        trusted: connection.trusted,
        secure: connection.secure,
    };
    let auth = context.route().and_then(|route| route.auth.clone());
    // What a client says about who it is under a name of ours, whoever the client is.
    if let Some(strip) = context.site.and_then(|site| context.snapshot.strips.get(site)) {
        strip.apply(&mut parts.headers);
    }
    let found = normalize::write(parts, path, &sender, context.request_id.clone())?;
    if let Some(via) = &context.snapshot.via {
        via.add(&mut parts.headers, parts.version).map_err(|Circle| Outcome::Loop)?;
    }
    if let Some(cert) = connection.client_cert() {
        cert.tell(&mut parts.headers, forward);
    }
    if let Some(auth) = auth {
        auth.auth.tell(context.identity.as_deref(), &mut parts.headers);
        for (name, value) in std::mem::take(&mut context.copied) {
            let _ = parts.headers.try_append(name, value); // a map that is full takes no more
        }
    }
    Ok(found)
}

/// A head that announces no bytes is a whole request to an HTTP/1.1 backend as soon as it is sent. Over HTTP/2 it may still
/// turn out malformed, by data that follow (RFC 9113 section 8.1.1): so the end of its stream is waited for.
async fn nothing_follows(context: &mut Context, body: &mut Option<Incoming>) -> Result<(), Outcome> {
    let open = |body: &&mut Incoming| !body.is_end_stream() && body.size_hint().exact() == Some(0);
    if context.version < Version::HTTP_2 || body.as_mut().filter(open).is_none() {
        return Ok(());
    }
    let Some(incoming) = body.take() else { return Ok(()) };
    let mut rest = upload(context, Some(0), incoming, 0);
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut rest).poll_frame(cx)).await {
        if frame.is_err() {
            let failure = context.upload.as_ref().and_then(|upload| upload.failure());
            return Err(failure.unwrap_or(Outcome::ClientGone));
        }
    }
    // It is a request without a body from here on.
    context.upload = None;
    Ok(())
}

/// A short body that nobody wants is read all the same, so that the connection can carry the next request; a long or
/// a slow one costs the connection. HTTP/2 needs neither.
async fn discard(context: &mut Context, body: Incoming) {
    let short = body.size_hint().upper().is_some_and(|size| size <= DISCARD_MAX);
    if !short || context.version >= Version::HTTP_2 {
        return;
    }
    let patience = context.worker().wheel.timer();
    patience.set(DISCARD_TIME);
    let mut body = upload(context, Some(DISCARD_MAX), body, 0);
    std::future::poll_fn(|cx| {
        while let Poll::Ready(frame) = Pin::new(&mut body).poll_frame(cx) {
            if !matches!(frame, Some(Ok(_))) {
                return Poll::Ready(());
            }
        }
        patience.poll_expired(cx)
    })
    .await;
}

/// Whether a request is a stream of messages: what calls itself gRPC, to a backend that can speak it. A client's word alone would
/// be an excuse from all that is held against bodies.
pub fn converses(context: &Context) -> bool {
    let over_h2 = |route: &Route| matches!(&route.action, Action::Proxy(s) if s.core.http == Http::H2);
    context.accept == Accept::Grpc && context.route().is_some_and(over_h2)
}

/// Bytes of a body that must arrive in a second. A stream of messages may say little for long.
pub fn body_rate(context: &Context) -> u64 {
    if converses(context) { 0 } else { context.snapshot.server.limits.body_rate }
}

/// The limits of a body that is about to be read; the same ones where its beginning was read already.
pub fn limits_of_body(context: &mut Context, max: Option<u64>, rate: u64) -> Rc<Upload> {
    if let Some(upload) = &context.upload {
        return upload.clone();
    }
    let (wheel, client) = (&context.worker().wheel, context.connection.clone());
    let timeouts = &context.snapshot.server.timeouts;
    // A stream of messages may be silent as long as a tunnel.
    let conversation = converses(context);
    let stall = if conversation { timeouts.tunnel } else { timeouts.body };
    let strip = context.site.and_then(|site| context.snapshot.strips.get(site)).cloned();
    let buffered = Buffered::new(context.worker(), context.tenant.unwrap_or_default());
    let upload = Upload::new(wheel, client, max, stall, rate, buffered);
    let upload = Rc::new(upload.stripping(strip).conversing(conversation));
    upload.hold(context.throttles.1.take());
    context.untouched = false;
    context.upload = Some(upload.clone());
    upload
}

/// Puts a body under its limits; nothing at all for requests without one.
fn upload(context: &mut Context, max: Option<u64>, body: Incoming, rate: u64) -> RequestBody {
    if body.is_end_stream() && context.ahead.is_empty() {
        return RequestBody::Empty;
    }
    let upload = limits_of_body(context, max, rate);
    let ahead = std::mem::take(&mut context.ahead);
    let gather = Gather::new(&context.worker().wheel, ahead);
    RequestBody::Streaming(Box::new(Streaming { gather, incoming: body, upload }))
}
