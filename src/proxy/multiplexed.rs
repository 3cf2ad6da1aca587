//! Step 7 for backends that speak HTTP/2: a stream of a shared connection carries the request.
//!
//! A request that the backend gives back unprocessed is sent again whatever its method: on another connection where
//! this one is going away, to another endpoint where the stream was refused.

use std::task::Poll;

use http::header::{self, HeaderValue};
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderMap, Method, Request, Uri, Version};
use hyper::ext::Protocol;

use crate::base::outcome::Outcome;
use crate::config::model::Http;
use crate::proxy::body::RequestBody;
use crate::proxy::context::Context;
use crate::proxy::exchange::{Exchange, Failure, Late};
use crate::proxy::forward::{Carrier, Forwarded, Lease};
use crate::proxy::keep::Keeper;
use crate::proxy::reset::{self, Ending};
use crate::proxy::upload::Upload;
use crate::telemetry::metric::Counter;
use crate::upstream::answer;
use crate::upstream::connect::ConnectError;
use crate::upstream::multiplex::{Allowed, Place, Stream};

/// Connections of one endpoint that may turn out to be going away under one request.
const GONE_AWAY_MAX: usize = 4;

impl Exchange<'_> {
    /// One try at one endpoint.
    pub(super) async fn send_multiplexed(
        &self,
        context: &mut Context,
        request: Box<Request<RequestBody>>,
    ) -> Result<Box<Forwarded>, Failure> {
        let mut again = Again::of(request, self.endpoint.tls);
        for _ in 0..GONE_AWAY_MAX {
            let stream = match self.place().await {
                Ok(Place::Shared(stream)) => stream,
                Ok(Place::Alone(made)) => {
                    let lost = || Failure::again(Outcome::UpstreamReset, None);
                    let request = again.unsent().ok_or_else(lost)?;
                    return Box::pin(self.send_alone(context, request, made)).await;
                }
                Err(error) => return Err(self.unreachable(&error, again.unsent())),
            };
            if !stream.fresh {
                self.worker.shard.add(Counter::UpstreamReused, 1);
            }
            if again.tunnel && !stream.takes_tunnels() {
                return Err(Failure::last(Outcome::UpstreamNoTunnel));
            }
            let Some(request) = again.request(&stream) else { break };
            let error = match self.carry(context, stream, request).await {
                Ok(answered) => {
                    again.settle();
                    return Ok(answered);
                }
                Err(Broken::Late(late)) => return Err(self.late(late, context.upload.as_deref())),
                Err(Broken::Before(error)) => error,
            };
            match reset::ending(&error) {
                Ending::GoneAway => self.worker.shard.add(Counter::UpstreamStreamsRefused, 1),
                _ if error.is_canceled() => {}
                ending => return Err(self.ended(context, ending, &error, again)),
            }
        }
        Err(Failure::again(Outcome::UpstreamReset, again.unsent()))
    }

    async fn place(&self) -> Result<Place<RequestBody>, ConnectError> {
        let snapshot = self.worker.snapshot();
        let server = &snapshot.server;
        let allowed = Allowed {
            connections: server.limits.upstream_h2_connections,
            ping_after: server.timeouts.upstream_ping,
            alone: self.service.core.http == Http::Auto,
        };
        let target = self.target(server.limits.upstream_head);
        // Boxed: a request on a connection that is there must not carry the room for a handshake.
        let opened = self.worker.multiplexed.place(self.endpoint.id, target, || self.descriptor(), allowed);
        let place = Box::pin(opened).await?;
        let fresh = match &place {
            Place::Shared(stream) => stream.fresh,
            Place::Alone(None) => false,
            Place::Alone(Some(made)) => {
                made.belongs_to(&self.endpoint, &self.worker.wheel);
                true
            }
        };
        if fresh {
            self.worker.shard.add(Counter::UpstreamOpened, 1);
            self.endpoint.connect_succeeded(self.worker.wheel.now());
        }
        Ok(place)
    }

    async fn carry(
        &self,
        context: &mut Context,
        stream: Stream<RequestBody>,
        request: Request<RequestBody>,
    ) -> Result<Box<Forwarded>, Broken> {
        let upload = context.upload.clone();
        let (started, sent_at) = (self.worker.fair.moment(), self.worker.wheel.now());
        self.arm(&stream.timer, sent_at);
        let mut sender = stream.sender();
        let mut sent = std::pin::pin!(sender.try_send_request(request));
        let result = std::future::poll_fn(|cx| {
            if let Poll::Ready(result) = sent.as_mut().poll(cx) {
                return Poll::Ready(Ok(result));
            }
            while stream.timer.poll_expired(cx).is_ready() {
                if let Some(late) = self.overdue(&stream.timer, upload.as_deref(), sent_at) {
                    return Poll::Ready(Err(late));
                }
            }
            Poll::Pending
        })
        .await;
        match result {
            Ok(Ok(response)) => {
                stream.timer.clear();
                self.observe(context, started, response.status());
                self.endpoint.answered_on_shared(self.worker.wheel.now());
                let no_slot = Broken::Late(Late::Answer);
                let slot = self.slot.take().ok_or(no_slot)?;
                let carrier = Carrier::Shared(stream);
                let lease = Lease { worker: self.worker.clone(), carrier, slot, upload, last: false };
                Ok(Forwarded::new(response, lease))
            }
            Ok(Err(error)) => {
                let error = error.into_error();
                // Refused or not, whoever comes next must not find a connection that is going away.
                if error.is_canceled() || reset::ending(&error) == Ending::GoneAway {
                    stream.retire();
                }
                Err(Broken::Before(error))
            }
            Err(late) => Err(Broken::Late(late)),
        }
    }

    fn ended(&self, context: &mut Context, ending: Ending, error: &hyper::Error, again: Again) -> Failure {
        // A body that we cut ourselves resets the stream; the cut is the reason, not the backend.
        if let Some(outcome) = context.upload.as_deref().and_then(Upload::failure) {
            return Failure::last(outcome);
        }
        self.log("backend failed a request", &answer::cause(error));
        match ending {
            Ending::Refused | Ending::GoneAway => {
                self.worker.shard.add(Counter::UpstreamStreamsRefused, 1);
                Failure::again(Outcome::UpstreamReset, again.unsent())
            }
            Ending::Reset(reason) => {
                context.reset = Some(reason);
                self.failed(context, Outcome::UpstreamReset, true)
            }
            Ending::Invalid => self.failed(context, Outcome::UpstreamInvalid, true),
            Ending::Broken => self.failed(context, Outcome::UpstreamClosed, false),
        }
    }

    fn failed(&self, context: &Context, outcome: Outcome, answered: bool) -> Failure {
        // In the middle of a conversation there is nothing to wait for that would be an excuse.
        let upload = context.upload.as_deref().filter(|upload| !upload.is_conversation());
        self.failed_request(outcome, upload);
        Failure { outcome, unsent: None, answered }
    }
}

/// Why no answer came.
enum Broken {
    /// Its time passed.
    Late(Late),
    /// An error came first.
    Before(hyper::Error),
}

/// Makes a request as often as it is needed.
struct Again {
    method: Method,
    /// In origin form, as for any endpoint.
    target: Uri,
    headers: HeaderMap,
    /// The same with scheme and authority, for this one.
    uri: Uri,
    /// Extended CONNECT (RFC 8441 section 4).
    tunnel: bool,
    /// The body of the next try.
    body: Option<RequestBody>,
    /// Makes the body of those after it; `None`: there is no body.
    keeper: Option<Keeper>,
}

impl Again {
    fn of(request: Box<Request<RequestBody>>, tls: bool) -> Again {
        let (parts, body) = request.into_parts();
        let keeper = match &body {
            RequestBody::Kept(kept) => Some(kept.keeper()),
            RequestBody::Empty | RequestBody::Streaming(_) => None,
        };
        let (target, headers) = (parts.uri, parts.headers);
        Again {
            method: parts.method,
            uri: absolute(&target, &headers, tls).unwrap_or_else(|| target.clone()),
            tunnel: headers.contains_key(header::UPGRADE),
            target,
            headers,
            body: Some(body),
            keeper,
        }
    }

    fn next_body(&mut self) -> Option<RequestBody> {
        self.body.take().or_else(|| match &self.keeper {
            None => Some(RequestBody::Empty),
            Some(keeper) => keeper.again().map(RequestBody::Kept),
        })
    }

    /// For a stream; `None` when the body cannot be sent again.
    fn request(&mut self, stream: &Stream<RequestBody>) -> Option<Request<RequestBody>> {
        let mut body = self.next_body()?;
        if let RequestBody::Kept(kept) = &mut body {
            kept.tie(stream.tie());
        }
        let mut request = Request::new(body);
        *request.uri_mut() = self.uri.clone();
        *request.method_mut() = self.method.clone();
        *request.version_mut() = Version::HTTP_2;
        let headers = request.headers_mut();
        headers.clone_from(&self.headers);
        // RFC 9113 sections 8.2.2 and 8.3.1: the authority stands in `:authority`, and nothing is of this hop alone.
        headers.remove(header::HOST);
        headers.remove(header::CONNECTION);
        if let Some(protocol) = headers.remove(header::UPGRADE) {
            // RFC 8441 section 5: the stream itself is the proof that the key and its answer give over HTTP/1.1.
            headers.remove(header::SEC_WEBSOCKET_KEY);
            *request.method_mut() = Method::CONNECT;
            request.extensions_mut().insert(Protocol::from(protocol.to_str().unwrap_or_default()));
        }
        Some(request)
    }

    /// For another endpoint.
    fn unsent(mut self) -> Option<Box<Request<RequestBody>>> {
        let mut request = Request::new(self.next_body()?);
        *request.method_mut() = self.method;
        *request.uri_mut() = self.target;
        *request.headers_mut() = self.headers;
        Some(Box::new(request))
    }

    /// An answer has come.
    fn settle(&self) {
        if let Some(keeper) = &self.keeper {
            keeper.settle();
        }
    }
}

/// The target as HTTP/2 wants it: with scheme and authority (RFC 9113 section 8.3.1).
fn absolute(uri: &Uri, headers: &HeaderMap, tls: bool) -> Option<Uri> {
    let host = headers.get(header::HOST).map(HeaderValue::as_bytes)?;
    let path = uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    let scheme = if tls { Scheme::HTTPS } else { Scheme::HTTP };
    Uri::builder().scheme(scheme).authority(host).path_and_query(path).build().ok()
}
