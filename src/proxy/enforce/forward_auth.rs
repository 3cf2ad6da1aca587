//! Asks another service who a client is, over the worker's own connections. The body of the request stays here.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Incoming};

use crate::base::outcome::Outcome;
use crate::policy::auth::forward::{Answer, BODY_BYTES_MAX, Facts, Forward};
use crate::proxy::Worker;
use crate::proxy::body::RequestBody;
use crate::proxy::context::Context;
use crate::proxy::fields;
use crate::proxy::respond::Refusal;
use crate::snapshot::AuthService;
use crate::telemetry::metric::Counter;
use crate::upstream::connect::{self, Connection, Target};
use crate::upstream::pool::Keep;

/// Asks. `path` is the one the backend would get.
///
/// # Errors
/// What the request ends in, where the client may not come in.
pub(super) async fn ask(
    context: &mut Context,
    service: &AuthService,
    forward: &Forward,
    parts: &Parts,
    path: &str,
) -> Result<Option<Arc<str>>, Outcome> {
    let asked_for = match parts.uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let worker = context.worker().clone();
    let key = forward.key(&Facts {
        headers: &parts.headers,
        host: context.host_text(),
        client: context.client,
        method: &parts.method,
        target: &asked_for,
    });
    if let Some(granted) = key.and_then(|key| forward.find(&key, worker.wheel.now())) {
        worker.shard.add(Counter::AuthForwardRemembered, 1);
        context.copied.clone_from(&granted.copied);
        return Ok(granted.user.clone());
    }
    let _place = forward.place().ok_or(Outcome::AuthBusy)?;
    // Made again only where it was sent and nothing came of it: its fields are not copied for that.
    let request = || question(context, forward, parts, &asked_for);
    let first = request()?;
    let exchange = exchange(&worker, service, forward, first, request);
    let asked = tokio::time::timeout(forward.timeout, exchange).await;
    let answered = asked.unwrap_or_else(|_| Err(format!("no answer within {:?}", forward.timeout)));
    let (head, body) = match answered {
        Ok(response) => response.into_parts(),
        Err(why) => return Err(unavailable(&worker, service, &why)),
    };
    match forward.read(head.status, &head.headers) {
        Answer::Pass(granted, cookies) => {
            if let Some(key) = key {
                forward.note(key, &granted, &head.headers, worker.wheel.now());
            }
            context.copied = granted.copied;
            context.cookies = cookies;
            Ok(granted.user)
        }
        Answer::Client => {
            let (outcome, refusal) = refusal(head.status, head.headers, body);
            context.refusal = Some(Box::new(refusal));
            Err(outcome)
        }
        Answer::Nonsense => {
            let why = format!("its answer {} means neither yes nor no, or names no user", head.status);
            Err(unavailable(&worker, service, &why))
        }
    }
}

fn unavailable(worker: &Rc<Worker>, service: &AuthService, why: &str) -> Outcome {
    service.endpoint.log(worker.wheel.now(), "nobody says who may come in", why);
    Outcome::AuthUnavailable
}

/// The question about a request.
fn question(
    context: &Context,
    forward: &Forward,
    parts: &Parts,
    asked_for: &str,
) -> Result<Request<RequestBody>, Outcome> {
    let connection = &context.connection;
    let mut headers: HeaderMap = parts.headers.clone();
    fields::clean_request(&mut headers, connection.trusted)?;
    if parts.version >= Version::HTTP_2 {
        fields::join_cookies(&mut headers);
    }
    if let Some(strip) = context.site.and_then(|site| context.snapshot.strips.get(site)) {
        strip.apply(&mut headers);
    }
    let sender = fields::Sender {
        peer: &connection.forwarded_for,
        port: &connection.forwarded_port,
        trusted: connection.trusted,
        secure: connection.secure,
    };
    let host = http::HeaderValue::from_str(context.host_text()).map_err(|_| Outcome::BadHost)?;
    fields::set_forwarded(&mut headers, &sender, host.clone(), context.request_id.clone());
    // What was routed by is what is asked about, whatever a proxy passed on of its client's words.
    let (port, secure) = (connection.forwarded_port.clone(), fields::came_secure(connection, &parts.headers));
    fields::set_place(&mut headers, host, port, secure);
    forward.question(&mut headers, &parts.method, asked_for);
    let mut request = Request::new(RequestBody::Empty);
    *request.method_mut() = Method::GET;
    *request.uri_mut() = forward.target.clone();
    *request.headers_mut() = headers;
    Ok(request)
}

/// One exchange; a pooled connection that turns out dead is replaced once, with the question as it came back, or made again.
async fn exchange(
    worker: &Rc<Worker>,
    service: &AuthService,
    forward: &Forward,
    mut request: Request<RequestBody>,
    again: impl Fn() -> Result<Request<RequestBody>, Outcome>,
) -> Result<Response<Bytes>, String> {
    if let Some(pooled) = worker.pools.take(&service.endpoint, service.tls(), None) {
        request = match send(worker, service, pooled, request).await {
            Ok(answer) => return Ok(answer),
            Err((_, Some(unsent))) => unsent,
            Err((why, None)) => again().map_err(|_| why)?,
        };
    }
    let budget = worker.connections.descriptors();
    let descriptor = budget.take().or_else(|| {
        worker.shard.add(Counter::UpstreamEvicted, worker.pools.shrink());
        budget.take()
    });
    let mut connection = connect::connect(Target {
        address: &service.endpoint.address,
        tls: service.tls().zip(service.name.as_ref()),
        timeout: forward.timeout,
        head_max: worker.snapshot().server.limits.upstream_head,
        bound: None,
        header: Vec::new(),
        wheel: &worker.wheel,
        descriptor: descriptor.ok_or("no file descriptor is left for it")?,
    })
    .await
    .map_err(|error| error.to_string())?;
    connection.tls = service.tls().cloned();
    send(worker, service, connection, request).await.map_err(|(why, _)| why)
}

/// Sends; why it failed, and the question where it was certainly never sent.
async fn send(
    worker: &Rc<Worker>,
    service: &AuthService,
    mut connection: Connection<RequestBody>,
    request: Request<RequestBody>,
) -> Result<Response<Bytes>, (String, Option<Request<RequestBody>>)> {
    connection.ask(&Method::GET, false);
    let answer = connection.sender.try_send_request(request).await;
    let answer = answer.map_err(|mut error| {
        let unsent = error.take_message();
        (format!("the connection broke: {}", error.into_error()), unsent)
    })?;
    let (head, body) = answer.into_parts();
    let whole = collected(body).await;
    // What was not read to its end cannot carry another question.
    if let Some(body) = whole {
        let server = &worker.snapshot().server;
        let keep = Keep { count: server.limits.upstream_idle, time: server.timeouts.upstream_idle };
        let evicted = worker.pools.give(&service.endpoint, connection, worker.wheel.now(), keep);
        worker.shard.add(Counter::UpstreamEvicted, evicted);
        return Ok(Response::from_parts(head, body));
    }
    Ok(Response::from_parts(head, Bytes::new()))
}

/// The body, if it is no longer than what is passed on.
async fn collected(body: Incoming) -> Option<Bytes> {
    if body.is_end_stream() {
        return Some(Bytes::new());
    }
    let body = Limited::new(body, BODY_BYTES_MAX).collect().await.ok()?;
    Some(body.to_bytes())
}

/// Fields of a refusal that say something about a body or a connection that it does not have here.
const NOT_PASSED: &[HeaderName] = &[
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::CONNECTION,
    header::TRAILER,
    header::UPGRADE,
];

/// The service's answer as the client gets it.
fn refusal(status: StatusCode, mut headers: HeaderMap, body: Bytes) -> (Outcome, Refusal) {
    fields::clean_response(&mut headers, status);
    for name in NOT_PASSED {
        headers.remove(name);
    }
    if body.is_empty() {
        headers.remove(header::CONTENT_TYPE);
        headers.remove(header::CONTENT_ENCODING);
    }
    let outcome = match status.as_u16() {
        401 => Outcome::AuthRequired,
        403 => Outcome::AuthDenied,
        _ => Outcome::AuthRedirected,
    };
    (outcome, Refusal { headers, whole: Some((status, body)) })
}
