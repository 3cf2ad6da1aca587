//! One try at one endpoint: connect or take a pooled connection, send, wait for the head of an answer.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::Duration;

use http::header::{self, HeaderValue};
use http::{Method, Request, StatusCode, Version};
use hyper::body::Body;

use crate::base::clock::Millis;
use crate::base::outcome::Outcome;
use crate::config::model::{Http, Mode};
use crate::net::descriptors::Descriptor;
use crate::net::timer::Timer;
use crate::proxy::Worker;
use crate::proxy::admit::{Chosen, Way};
use crate::proxy::body::RequestBody;
use crate::proxy::context::Context;
use crate::proxy::forward::{Carrier, Forwarded, Lease, broke};
use crate::proxy::shed::Shed;
use crate::proxy::upload::Upload;
use crate::snapshot::Service;
use crate::telemetry::metric::Counter;
use crate::upstream::answer;
use crate::upstream::capacity::Slot;
use crate::upstream::connect::{self, ConnectError, Connection, Target};
use crate::upstream::endpoint::Endpoint;

/// Longest that a head waits for the first byte of a body whose length it announced.
const HEAD_HOLD: Duration = Duration::from_millis(200);

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
    pub(super) way: &'a Way<'a>,
    pub(super) worker: &'a Rc<Worker>,
    pub(super) service: &'a Service,
    pub(super) index: usize,
    pub(super) endpoint: Arc<Endpoint>,
    /// Until a lease takes it.
    pub(super) slot: Cell<Option<Slot>>,
    /// How long this try may wait while somebody else could be asked.
    per_try: Cell<Option<Duration>>,
}

/// How much later than the client's own deadline for a body it is given up here, where nobody looks at that one.
const STALL_GRACE: Duration = Duration::from_secs(1);

/// Which time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Late {
    /// That of this try: another endpoint is asked.
    Try,
    /// That of an answer.
    Answer,
    /// That of all tries together.
    Total,
}

impl<'a> Exchange<'a> {
    /// A try at the endpoint chosen. `repeatable`: another may follow, though the request was sent.
    pub(super) fn new(way: &'a Way<'a>, chosen: Chosen, repeatable: bool) -> Exchange<'a> {
        let service = way.service();
        let per_try = Cell::new(service.core.retry.per_try.filter(|_| repeatable));
        let Chosen { index, endpoint, slot } = chosen;
        Exchange { way, worker: way.worker(), service, index, endpoint, slot: Cell::new(Some(slot)), per_try }
    }

    pub(super) async fn send(
        &self,
        context: &mut Context,
        request: Box<Request<RequestBody>>,
    ) -> Result<Box<Forwarded>, Failure> {
        if self.shares(&request) {
            return Box::pin(self.send_multiplexed(context, request)).await;
        }
        self.send_alone(context, request, None).await
    }

    /// Whether a connection over HTTP/2 is looked for.
    fn shares(&self, request: &Request<RequestBody>) -> bool {
        match self.service.core.http {
            Http::H1 => false,
            Http::H2 => true,
            // Most backends that choose HTTP/2 open no tunnels there; a browser asks for them over HTTP/1.1 too.
            Http::Auto => {
                let now = self.worker.wheel.now();
                let tunnel = request.headers().contains_key(header::UPGRADE);
                self.endpoint.tls && !tunnel && !self.worker.multiplexed.chose_alone(&self.endpoint, now)
            }
        }
    }

    /// One try over HTTP/1.1. `made` is a connection that was made for this request.
    pub(super) async fn send_alone(
        &self,
        context: &mut Context,
        mut request: Box<Request<RequestBody>>,
        mut made: Option<Box<Connection<RequestBody>>>,
    ) -> Result<Box<Forwarded>, Failure> {
        let tls = self.tls();
        let bound = self.service.core.proxy_protocol.map(|_| context.client);
        // One that is down gets this request as its trial: only a new connection can show that it is back.
        let up = self.endpoint.is_up(self.worker.wheel.now());
        loop {
            let pooled = || up.then(|| self.worker.pools.take(&self.endpoint, tls, bound)).flatten();
            let pooled = if made.is_none() { pooled() } else { None };
            let fresh = pooled.is_none();
            let connection = match pooled.or_else(|| made.take().map(|made| *made)) {
                Some(connection) => connection,
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
            timeout: self.connect_time(),
            head_max,
            bound: None,
            header: Vec::new(),
            wheel: &self.worker.wheel,
            descriptor: Descriptor::of_reserve(),
        }
    }

    /// What is left for connecting.
    fn connect_time(&self) -> Duration {
        let left = |until: Millis| Duration::from_millis(until.0.saturating_sub(self.worker.wheel.now().0));
        let all = self.service.core.connect_timeout;
        self.way.until().map_or(all, |until| all.min(left(until)))
    }

    async fn connect(&self, context: &Context) -> Result<Connection<RequestBody>, ConnectError> {
        let snapshot = self.worker.snapshot();
        let mut target = self.target(snapshot.server.limits.upstream_head);
        target.descriptor = self.descriptor().ok_or(ConnectError::NoDescriptor)?;
        if let Some(version) = self.service.core.proxy_protocol {
            target.bound = Some(context.client);
            target.header = context.proxy_header(version);
        }
        // Whoever comes here under `auto` wants HTTP/1.1.
        if let (Some((config, _)), Some(alone)) = (&mut target.tls, &self.service.tls_alone) {
            *config = alone;
        }
        let connected = connect::connect(target).await;
        if let Err(ConnectError::Tls(_)) = &connected {
            self.worker.multiplexed.forget_choice(&self.endpoint);
        }
        let mut connection = connected?;
        // It may carry whatever one may on which the endpoint chose the same.
        connection.tls = self.tls().cloned();
        connection.belongs_to(&self.endpoint, &self.worker.wheel);
        self.worker.shard.add(Counter::UpstreamOpened, 1);
        self.endpoint.connect_succeeded(self.worker.wheel.now());
        Ok(connection)
    }

    /// Leave for one more socket; idle connections of this worker give way to it.
    pub(super) fn descriptor(&self) -> Option<Descriptor> {
        let budget = self.worker.connections.descriptors();
        let shrink = || {
            let evicted = self.worker.pools.shrink() + self.worker.multiplexed.shrink();
            self.worker.shard.add(Counter::UpstreamEvicted, evicted);
        };
        if !self.may_ask() {
            // Its own unused connections count as its own.
            shrink();
            if !self.may_ask() {
                return None;
            }
        }
        let taken = budget.take().or_else(|| {
            shrink();
            budget.take()
        });
        taken.map(|descriptor| descriptor.owned(&self.service.owner.upstream))
    }

    /// Whether the tenant may have one more connection to its backends.
    fn may_ask(&self) -> bool {
        let shares = &self.worker.snapshot().server.shares;
        shares.mode == Mode::Shadow || self.worker.may_ask(&self.service.owner, shares)
    }

    pub(super) fn unreachable(
        &self,
        error: &ConnectError,
        unsent: Option<Box<Request<RequestBody>>>,
    ) -> Failure {
        // One connection that cannot be opened is one failure, however many requests wait for it.
        let (error, heard) = match error {
            ConnectError::Heard(inner) => (&**inner, true),
            error => (error, false),
        };
        // Not the endpoint's fault, and no other one could be reached either.
        if matches!(error, ConnectError::NoDescriptor) {
            if !self.may_ask() {
                let tenant = &self.service.owner;
                tenant.shed.fetch_add(1, Relaxed);
                self.worker.shed(Shed::ShareBackends, Some(&tenant.name));
                return Failure::last(Outcome::OverShare);
            }
            self.worker.shed(Shed::Backend, None);
            return Failure::last(Outcome::NoDescriptor);
        }
        // Not its fault either: the tries before it took the time.
        if matches!(error, ConnectError::Timeout(after) if *after < self.service.core.connect_timeout) {
            return Failure::last(Outcome::TotalTimeout);
        }
        let message = error.to_string();
        self.log("backend unreachable", &message);
        match error {
            _ if heard => self.endpoint.note_failure(&message),
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
            ConnectError::Busy | ConnectError::Heard(_) => (Outcome::UpstreamBusy, Counter::UpstreamBusy),
        };
        if !heard {
            self.worker.shard.add(counter, 1);
        }
        Failure::again(outcome, unsent)
    }

    pub(super) fn log(&self, what: &str, why: &str) {
        self.endpoint.log(self.worker.wheel.now(), what, why);
    }

    async fn exchange(
        &self,
        context: &mut Context,
        mut connection: Connection<RequestBody>,
        mut request: Box<Request<RequestBody>>,
    ) -> Result<Box<Forwarded>, Failure> {
        // hyper sends no body at all with these, unless it is told how to frame one.
        if matches!(*request.method(), Method::GET | Method::HEAD)
            && !matches!(request.body(), RequestBody::Empty)
            && request.body().size_hint().exact().is_none()
        {
            request.headers_mut().insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        let upload = context.upload.clone();
        let last = upload.is_some() && (request.method().is_safe() || request.method() == Method::DELETE);
        let (started, sent_at) = (self.worker.fair.moment(), self.worker.wheel.now());
        self.arm(&connection.timer, sent_at);
        connection.ask(request.method(), request.headers().contains_key(header::UPGRADE));
        if upload.is_some() {
            // What was just read of a body is sent before the next connection has its turn: it is in the core's caches still.
            connection.hand_over();
        }
        let mut sent = std::pin::pin!(connection.sender.try_send_request(*request));
        let result = std::future::poll_fn(|cx| {
            if let Poll::Ready(result) = connection.lead(cx, |cx| sent.as_mut().poll(cx)) {
                return Poll::Ready(Ok(result));
            }
            while connection.timer.poll_expired(cx).is_ready() {
                if let Some(late) = self.overdue(&connection.timer, upload.as_deref(), sent_at) {
                    return Poll::Ready(Err(late));
                }
            }
            Poll::Pending
        })
        .await;
        match result {
            Ok(Ok(response)) => {
                connection.follow();
                connection.timer.clear();
                // Whatever keeps this connection open: hyper has it speak HTTP/1.0 from now on, where a body without a
                // length would be dropped in silence.
                let last = last || response.version() < Version::HTTP_11;
                self.observe(context, started, response.status());
                let Some(slot) = self.slot.take() else { return Err(Failure::last(Outcome::Internal)) };
                let carrier = Carrier::Alone(connection);
                Ok(Forwarded::new(
                    response,
                    Lease { worker: self.worker.clone(), carrier, slot, upload, last },
                ))
            }
            Ok(Err(mut error)) => {
                let unsent = error.take_message().map(Box::new);
                Err(self.broken(&error.into_error(), unsent, upload.as_deref()))
            }
            Err(late) => Err(self.late(late, upload.as_deref())),
        }
    }

    /// The head of an answer came.
    pub(super) fn observe(&self, context: &mut Context, started: u64, status: StatusCode) {
        let ended = self.worker.fair.moment();
        context.upstream_micros = Some(ended.saturating_sub(started));
        // How long the client took to send is not the backend's doing: it is measured from the last that came.
        let begun = context.upload.as_ref().map_or(started, |upload| upload.moved_micros().max(started));
        let micros = ended.saturating_sub(begun);
        let now = self.worker.wheel.now();
        self.endpoint.answered(micros, status.as_u16(), now);
        let core = &self.service.core;
        if let Some(bounds) = core.capacity.as_ref().and_then(|capacity| capacity.adaptive) {
            let gate = &core.ledger.gate;
            gate.adaptive.observe(bounds, micros, gate.in_flight(), now);
        }
    }

    /// No valid answer came. Where the client still owed a part of `upload`, that is told and not held against the
    /// backend: whoever sends slowly enough could have any backend taken out.
    pub(super) fn failed_request(&self, outcome: Outcome, upload: Option<&Upload>) {
        let sentence = outcome.row().sentence;
        if upload.is_some_and(Upload::owes) {
            self.way.excuse();
            return self.endpoint.note_failure(sentence);
        }
        self.endpoint.request_failed(self.worker.wheel.now(), sentence);
    }

    /// Waits for the first byte of a body with a known length: until then the request can go to another endpoint.
    pub(super) async fn begun(&self, mut forwarded: Box<Forwarded>) -> Result<Box<Forwarded>, Failure> {
        let Forwarded { response, first, lease, .. } = &mut *forwarded;
        let body = response.body_mut();
        let Some(open) = lease.as_ref().filter(|_| body.size_hint().exact().is_some_and(|length| length > 0))
        else {
            return Ok(forwarded);
        };
        open.timer().set(HEAD_HOLD);
        let came = std::future::poll_fn(|cx| {
            let look = || {
                let polled = Pin::new(&mut *body).poll_frame(cx);
                let over = polled.is_ready() && body.is_end_stream();
                (polled, over)
            };
            match open.first_look(look) {
                Poll::Pending if open.timer().poll_expired(cx).is_ready() => Poll::Ready(None),
                polled => polled,
            }
        })
        .await;
        open.timer().clear();
        match came {
            Some(Ok(frame)) => *first = frame.into_data().ok(),
            None => {}
            Some(Err(error)) => {
                let (outcome, why) = broke(&error);
                if let Some(lease) = lease.take() {
                    lease.fail(outcome, &why, false);
                }
                let answered = outcome == Outcome::UpstreamInvalid;
                return Err(Failure { outcome, unsent: None, answered });
            }
        }
        Ok(forwarded)
    }

    /// Sets the timer to the first of the times that may be over.
    pub(super) fn arm(&self, timer: &Timer, sent: Millis) {
        let now = self.worker.wheel.now();
        let due = sent.after(self.service.core.timeout);
        let due = self.per_try.get().map_or(due, |per_try| due.min(sent.after(per_try)));
        let due = self.way.until().map_or(due, |until| due.min(until));
        timer.set(Duration::from_millis(due.0.saturating_sub(now.0)));
    }

    /// The timer has gone off: which time is over. `None`: none is, and the timer is set anew.
    pub(super) fn overdue(&self, timer: &Timer, upload: Option<&Upload>, sent: Millis) -> Option<Late> {
        let now = self.worker.wheel.now();
        if self.way.until().is_some_and(|until| until <= now) {
            return Some(Late::Total);
        }
        if self.per_try.get().is_some_and(|per_try| sent.after(per_try) <= now) {
            if self.way.may_leave(now) {
                return Some(Late::Try);
            }
            // There is nobody else to ask, or no budget: it has the time of an answer.
            self.per_try.set(None);
        }
        if self.still_uploading(timer, upload) {
            return None;
        }
        if sent.after(self.service.core.timeout) <= now {
            return Some(Late::Answer);
        }
        self.arm(timer, sent);
        None
    }

    /// No answer began in time.
    pub(super) fn late(&self, late: Late, upload: Option<&Upload>) -> Failure {
        let outcome = if late == Late::Total { Outcome::TotalTimeout } else { Outcome::UpstreamTimeout };
        let why = match (late, self.per_try.get()) {
            (Late::Try, Some(per_try)) => {
                format!("no answer began within {per_try:?}; another backend is asked")
            }
            (Late::Total, _) => "no answer began within the time for all tries".to_owned(),
            _ => format!("no answer began within {:?}", self.service.core.timeout),
        };
        self.log("backend failed a request", &why);
        match late {
            // What was left for this one may have been little: that says nothing about it.
            Late::Total => self.endpoint.note_failure(outcome.row().sentence),
            Late::Try | Late::Answer => self.failed_request(outcome, upload),
        }
        match late {
            Late::Try => Failure::again(outcome, None),
            Late::Answer | Late::Total => Failure::last(outcome),
        }
    }

    /// The deadline for the first byte counts from the end of the request: while its body moves, it waits.
    fn still_uploading(&self, timer: &Timer, upload: Option<&Upload>) -> bool {
        let Some(upload) = upload else { return false };
        // The client's own deadline ends it, if it comes to that; and if nobody looks at that, this does.
        let patience = match upload.owes() && !upload.is_conversation() {
            true => self.service.core.timeout.max(upload.stall_after() + STALL_GRACE),
            false => self.service.core.timeout,
        };
        let due = upload.moved().after(patience);
        let now = self.worker.wheel.now();
        if due <= now {
            return false;
        }
        timer.set(Duration::from_millis(due.0 - now.0));
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
        self.log("backend failed a request", &answer::cause(error));
        self.failed_request(outcome, upload.filter(|upload| !upload.is_conversation()));
        Failure { outcome, unsent: None, answered: invalid }
    }
}
