//! What is known so far about a connection and about a request: two typed structs, filled in step by step.
//!
//! A [`Context`] is recorded exactly once, when it is dropped: also when the client goes away and hyper drops the
//! whole request in the middle. Until an ending is known, its outcome is "the client went away".

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Uri, Version, header};
use hyper::body::Frame;

use crate::base::address::ClientKey;
use crate::base::clock::{self, Millis};
use crate::base::outcome::Outcome;
use crate::base::policy::Marks;
use crate::base::record::Privacy;
use crate::config::model::ProxyHeader;
use crate::net::progress::{Allowance, Guarded, Phase, Progress};
use crate::net::proxy_protocol;
use crate::net::stream::Stream;
use crate::net::timer::Timer;
use crate::policy::connection_limit::Permit;
use crate::policy::rate_limit::Round;
use crate::policy::share::{Counted, Slot};
use crate::policy::site_limit::Place;
use crate::proxy::backlog::Backlog;
use crate::proxy::client_cert::{self, ClientCert};
use crate::proxy::fair::Share;
use crate::proxy::respond::{Accept, Refusal};
use crate::proxy::throttle::Throttle;
use crate::proxy::upgrade::Tunnel;
use crate::proxy::upload::Upload;
use crate::proxy::{Worker, grpc, record};
use crate::snapshot::cell::Held;
use crate::snapshot::{Action, Route, Service, Site};
use crate::telemetry::hub::SeriesId;
use crate::tls::policy::Policy;
use crate::upstream::Affinity;
use crate::upstream::endpoint::Endpoint;

/// A client's stream with the watch on it.
pub type Watched = Guarded<Stream, Watch>;

/// Ties a stream to the connection whose progress it makes.
pub struct Watch(pub Rc<Connection>);

impl AsRef<Progress> for Watch {
    fn as_ref(&self) -> &Progress {
        &self.0.progress
    }
}

/// One client connection.
pub struct Connection {
    /// The client's address as far as the connection tells: the peer's, or what PROXY protocol said.
    pub client: SocketAddr,
    /// Whether forwarded headers are believed: the peer is a trusted proxy.
    pub trusted: bool,
    /// The address is that of a proxy that is not trusted, not of a client.
    pub of_proxy: bool,
    /// Under TLS.
    pub secure: bool,
    /// Speaks HTTP/2.
    pub http2: bool,
    /// Port of the listener, for `X-Forwarded-Port`.
    pub port: u16,
    /// What the client connected to, as far as the connection tells.
    pub local: SocketAddr,
    /// `X-Forwarded-For` as we would write it for this client.
    pub forwarded_for: HeaderValue,
    /// `X-Forwarded-Port` as we would write it.
    pub forwarded_port: HeaderValue,
    /// What the TLS handshake agreed on; `None` on plain HTTP.
    pub handshake: Option<Handshake>,
    /// The TLS policy that the connection keeps to; moves on when its files change and the client is still good.
    policy: RefCell<Option<Arc<Policy>>>,
    /// Deadlines.
    pub progress: Progress,
    /// An upgrade that waits for hyper to let go of the stream.
    pub tunnel: RefCell<Option<Tunnel>>,
    /// HTTP/2: the deadline of the stream that is being polled; its answer's body sets it, the stream's task heeds it.
    pub delivery: RefCell<Option<Timer>>,
    /// The connection is to be closed after what is in flight.
    pub closing: Cell<bool>,
    /// HTTP/2: streams given up because the client took nothing of them.
    pub stalls: Cell<u32>,
    /// HTTP/2: when the client last reset a stream that it had opened a moment before.
    pub reset_at: Cell<Option<Millis>>,
    /// HTTP/2: bytes of answers that were offered and not taken yet, over all streams.
    pub backlog: Backlog,
    /// When it was opened.
    pub opened: Millis,
    /// It is to end with a reset: a plain end would pass for the end of an answer, or wait behind what nobody reads.
    pub reset: Cell<bool>,
    /// Frames wait for others to fill a packet with, under HTTP/2.
    pub held: Rc<Cell<bool>>,
    /// What requests that are cut by the end of the connection ended in.
    pub ending: Cell<Outcome>,
    /// Whose it is: what its last request asked for, or its handshake.
    pub share: Cell<Share>,
    /// How long it waited before it ran last, in microseconds.
    pub waited: Cell<u64>,
    /// Counts it as its tenant's.
    pub counted: RefCell<Option<Counted>>,
    requests: Cell<u32>,
    /// How many there were at the last look.
    looked: Cell<u32>,
    in_flight: Cell<u32>,
    permit: Option<Permit>,
}

/// What a TLS handshake agreed on.
pub struct Handshake {
    /// The TLS version, for the access log.
    pub version: &'static str,
    /// The name the client asked for, lower case.
    pub sni: Option<Box<str>>,
    /// The policy it was made under.
    pub policy: Arc<Policy>,
    /// The certificate that the client proved to hold.
    pub client_cert: Option<Box<ClientCert>>,
    /// Counts the connection of its site until it is dropped.
    pub place: Option<Place>,
    /// Whose it is.
    pub share: Share,
    /// Counts it as its tenant's.
    pub counted: Option<Counted>,
}

/// What accept and handshake found out, before there is a [`Connection`].
pub struct Introduction {
    pub client: SocketAddr,
    pub trusted: bool,
    pub http2: bool,
    pub port: u16,
    pub local: SocketAddr,
    pub handshake: Option<Handshake>,
    pub permit: Option<Permit>,
}

impl Connection {
    /// A connection that owes its first request.
    pub fn new(worker: &Worker, allowance: Allowance, mut intro: Introduction) -> Connection {
        let client = SocketAddr::new(intro.client.ip().to_canonical(), intro.client.port());
        let text = |value: &str| HeaderValue::from_str(value).unwrap_or(HeaderValue::from_static("unknown"));
        let progress = Progress::new(&worker.wheel, allowance);
        if intro.http2 {
            progress.multiplexed();
        }
        let share = intro.handshake.as_ref().map(|handshake| handshake.share).unwrap_or_default();
        let counted = intro.handshake.as_mut().and_then(|handshake| handshake.counted.take());
        Connection {
            client,
            trusted: intro.trusted,
            of_proxy: !intro.trusted && worker.examiner.is_proxy(&worker.snapshot(), client.ip()),
            secure: intro.handshake.is_some(),
            http2: intro.http2,
            port: intro.port,
            local: SocketAddr::new(intro.local.ip().to_canonical(), intro.local.port()),
            forwarded_for: text(&client.ip().to_string()),
            forwarded_port: HeaderValue::from(intro.port),
            policy: RefCell::new(intro.handshake.as_ref().map(|handshake| handshake.policy.clone())),
            handshake: intro.handshake,
            progress,
            tunnel: RefCell::new(None),
            delivery: RefCell::new(None),
            closing: Cell::new(false),
            stalls: Cell::new(0),
            reset_at: Cell::new(None),
            backlog: Backlog::default(),
            opened: worker.wheel.now(),
            reset: Cell::new(false),
            held: Rc::default(),
            ending: Cell::new(Outcome::ClientGone),
            share: Cell::new(share),
            waited: Cell::new(0),
            counted: RefCell::new(counted),
            requests: Cell::new(0),
            looked: Cell::new(0),
            in_flight: Cell::new(0),
            permit: intro.permit,
        }
    }

    /// Counts a request; `true` when it is the last this connection may carry (`max` 0 = no cap).
    fn begin(&self, max: u32) -> bool {
        let count = self.requests.get().saturating_add(1);
        self.requests.set(count);
        self.in_flight.set(self.in_flight.get() + 1);
        if let Some(permit) = &self.permit {
            permit.began();
        }
        self.progress.enter(Phase::Serving);
        max != 0 && count >= max
    }

    /// Whether it has been open longer than a connection may be (`max` 0 = for ever).
    fn is_old(&self, now: Millis, max: Duration) -> bool {
        !max.is_zero() && now >= self.opened.after(max)
    }

    fn done(&self) {
        if let Some(permit) = &self.permit {
            permit.ended();
        }
        let left = self.in_flight.get().saturating_sub(1);
        self.in_flight.set(left);
        if left == 0 && self.progress.phase() == Phase::Serving {
            self.progress.enter(Phase::Idle);
        }
    }

    /// Whether it only waits for its client.
    pub fn may_rest(&self) -> bool {
        self.progress.may_rest()
            && self.in_flight.get() == 0
            && !self.closing.get()
            && self.tunnel.borrow().is_none()
    }

    /// HTTP/2: whether the client was told to go because of a flood.
    pub fn flooded(&self) -> bool {
        self.ending.get() == Outcome::ClientFlood
    }

    /// HTTP/2: whether the client resets streams that it has just opened.
    pub fn resets_streams(&self, now: Millis) -> bool {
        /// What it did longer ago is forgotten.
        const LATELY: Duration = Duration::from_secs(1);
        self.reset_at.get().is_some_and(|at| now < at.after(LATELY))
    }

    /// The name in the TLS handshake, lower case.
    pub fn sni(&self) -> Option<&str> {
        self.handshake.as_ref()?.sni.as_deref()
    }

    /// The TLS version; empty on plain HTTP.
    pub fn tls_version(&self) -> &'static str {
        self.handshake.as_ref().map(|handshake| handshake.version).unwrap_or_default()
    }

    /// The certificate that the client proved to hold.
    pub fn client_cert(&self) -> Option<&ClientCert> {
        self.handshake.as_ref()?.client_cert.as_deref()
    }

    /// Whether the connection may carry requests under a policy. What was decided in the handshake was decided under
    /// another one where the site's `tls` was changed since: then it may not. Where only the files behind it changed,
    /// the client's certificate is checked against the new ones, once.
    ///
    /// # Errors
    /// Why not.
    pub fn keeps_to(&self, policy: &Arc<Policy>) -> Result<(), Outcome> {
        let mut kept = self.policy.borrow_mut();
        let Some(own) = kept.as_ref() else { return Ok(()) };
        let expired = || self.client_cert().is_some_and(ClientCert::has_expired);
        if own.key != policy.key {
            let auth = policy.auth.as_ref().filter(|_| own.said == policy.said);
            let auth = auth.ok_or(Outcome::Misdirected)?;
            let chain = self.client_cert().map_or(&[][..], |cert| &cert.identity.chain);
            auth.check_again(chain).map_err(|refusal| client_cert::refused(refusal).0)?;
            *kept = Some(policy.clone());
        } else if policy.auth.is_some() && expired() {
            return Err(Outcome::ClientCertExpired);
        }
        Ok(())
    }

    /// Requests of its client being served now, on all connections; 0 where that is a proxy.
    pub fn in_flight_of_client(&self) -> u32 {
        self.permit.as_ref().map_or(0, Permit::in_flight)
    }

    /// Connections that its client has open; 0 where that is a proxy.
    pub fn held_by_client(&self) -> u32 {
        self.permit.as_ref().map_or(0, Permit::held)
    }

    /// Requests being served now.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.get()
    }

    /// Requests begun so far.
    pub fn requests(&self) -> u32 {
        self.requests.get()
    }

    /// Whether no request came since this was asked last.
    pub fn stood_still(&self) -> bool {
        self.looked.replace(self.requests.get()) == self.requests.get()
    }
}

/// One request.
pub struct Context {
    worker: Rc<Worker>,
    /// The connection it came on.
    pub connection: Rc<Connection>,
    /// The snapshot it was begun with and keeps to its end.
    pub snapshot: Held,
    /// Position of its site in the snapshot.
    pub site: Option<usize>,
    /// The tenant it is counted for.
    pub tenant: Option<Slot>,
    /// Position of its route in the site.
    pub route: Option<usize>,
    /// Where its numbers are counted.
    pub series: SeriesId,
    /// The client, after trusted proxies.
    pub client: IpAddr,
    /// It speaks TLS, with us or with a trusted proxy; the latter is looked at where a cookie depends on it.
    pub secure: bool,
    /// Where it belongs among the endpoints of its service.
    pub affinity: Affinity,
    /// Which part of a split service it goes to; `None`: the service itself.
    pub branch: Option<usize>,
    /// As received; kept for the record.
    pub method: Method,
    /// As received; kept for the record.
    pub uri: Uri,
    /// The `Host` as received; kept for the record.
    pub host: Option<HeaderValue>,
    /// HTTP version of the client.
    pub version: Version,
    /// Hexadecimal, or what a trusted proxy sent.
    pub request_id: HeaderValue,
    /// What the limits said (site's first, then route's), for the answer's fields, and what they are owed.
    pub limits: Round,
    /// Who it comes from, where the client was asked and has shown it.
    pub identity: Option<Arc<str>>,
    /// The origin whose page may read the answer, where the route says whose may.
    pub cors: Option<HeaderValue>,
    /// Fields for the backend, from whoever said who it is.
    pub copied: Vec<(HeaderName, HeaderValue)>,
    /// Cookies for the client, from whoever said who it is.
    pub cookies: Vec<HeaderValue>,
    /// What its refusal tells besides the outcome.
    pub refusal: Option<Box<Refusal>>,
    /// What holds the bodies of the answer and of the request to their bandwidth, until they take it.
    pub throttles: (Option<Box<Throttle>>, Option<Box<Throttle>>),
    /// Policies in shadow that would have refused it.
    pub would_block: Marks,
    /// The virtual patch that recognised it.
    pub patch: Option<Arc<str>>,
    /// Which shape of error the client reads best.
    pub accept: Accept,
    /// As received; kept for the record.
    pub user_agent: Option<HeaderValue>,
    /// As received; kept for the record.
    pub referer: Option<HeaderValue>,
    /// The body's state, if there is one.
    pub upload: Option<Rc<Upload>>,
    /// It has a body that nobody took yet.
    pub untouched: bool,
    /// The beginning of its body, read ahead of the backend.
    pub ahead: VecDeque<Frame<Bytes>>,
    /// The endpoint that answered, or the last one tried.
    pub endpoint: Option<Arc<Endpoint>>,
    /// From sending to the answer's head, in microseconds.
    pub upstream_micros: Option<u64>,
    /// The code with which an HTTP/2 backend reset the request before it answered.
    pub reset: Option<h2::Reason>,
    /// Endpoints tried.
    pub tries: u32,
    /// Seconds after which a request that is refused for want of room may come again.
    pub retry_after: Option<u64>,
    /// Status sent.
    pub status: u16,
    /// This answer must be the connection's last.
    pub close: bool,
    started: u64,
    outcome: Outcome,
    decided: bool,
    delivered: bool,
    bytes_in: u64,
    bytes_out: u64,
    held: u64,
}

impl Context {
    /// Begins a request.
    pub fn begin<B>(
        worker: &Rc<Worker>,
        connection: &Rc<Connection>,
        request: &http::Request<B>,
    ) -> Box<Context> {
        let snapshot = worker.snapshot();
        let headers = request.headers();
        let verbose = snapshot.server.log.privacy == Privacy::Full;
        let last = connection.begin(snapshot.server.max_requests_per_connection)
            || connection.is_old(worker.wheel.now(), snapshot.server.timeouts.age);
        if last {
            connection.closing.set(true);
        }
        Box::new(Context {
            request_id: worker.next_request_id(),
            worker: worker.clone(),
            connection: connection.clone(),
            snapshot,
            site: None,
            tenant: None,
            route: None,
            series: SeriesId::NONE,
            client: connection.client.ip(),
            secure: connection.secure,
            affinity: Affinity::None,
            branch: None,
            method: request.method().clone(),
            uri: request.uri().clone(),
            host: headers.get(header::HOST).cloned(),
            version: request.version(),
            limits: Round::default(),
            identity: None,
            cors: None,
            copied: Vec::new(),
            cookies: Vec::new(),
            refusal: None,
            throttles: (None, None),
            would_block: Marks::default(),
            patch: None,
            accept: if grpc::is_request(request) { Accept::Grpc } else { Accept::of(headers) },
            user_agent: headers.get(header::USER_AGENT).filter(|_| verbose).cloned(),
            referer: headers.get(header::REFERER).filter(|_| verbose).cloned(),
            upload: None,
            untouched: false,
            ahead: VecDeque::new(),
            endpoint: None,
            upstream_micros: None,
            reset: None,
            tries: 0,
            retry_after: None,
            status: 0,
            close: last || connection.closing.get(),
            started: worker.fair.moment(),
            outcome: Outcome::Internal,
            decided: false,
            delivered: false,
            bytes_in: 0,
            bytes_out: 0,
            held: 0,
        })
    }

    /// The worker it runs on.
    pub fn worker(&self) -> &Rc<Worker> {
        &self.worker
    }

    /// Its site, once known.
    pub fn site(&self) -> Option<&Arc<Site>> {
        self.site.and_then(|index| self.snapshot.sites.get(index))
    }

    /// Its route, once known.
    pub fn route(&self) -> Option<&Route> {
        self.site()?.routes.get(self.route?)
    }

    /// Its service, once known.
    pub fn service(&self) -> Option<&Service> {
        let Action::Proxy(service) = &self.route()?.action else { return None };
        let branch = self.branch.and_then(|at| service.split.as_ref()?.branches.get(at));
        Some(branch.map_or(service, |branch| &branch.service))
    }

    /// The PROXY protocol header that names its client to a backend. Behind trusted proxies that say it in a field, the
    /// client's port is not known: 0.
    pub fn proxy_header(&self, version: ProxyHeader) -> Vec<u8> {
        let port = if self.client == self.connection.client.ip() { self.connection.client.port() } else { 0 };
        let (source, destination) = (SocketAddr::new(self.client, port), self.connection.local);
        match version {
            ProxyHeader::V1 => proxy_protocol::write_v1(source, destination),
            ProxyHeader::V2 => proxy_protocol::write_v2(source, destination),
        }
    }

    /// What limits are kept for.
    pub fn client_key(&self) -> ClientKey {
        ClientKey::of(self.client)
    }

    /// The host as received, for logs and redirects.
    pub fn host_text(&self) -> &str {
        let field = self.host.as_ref().and_then(|host| host.to_str().ok());
        field.or_else(|| self.uri.authority().map(|authority| authority.as_str())).unwrap_or_default()
    }

    /// Counts bytes of the answer's body.
    pub fn sent(&mut self, bytes: usize) {
        self.bytes_out += bytes as u64;
    }

    /// So many bytes of its answer are held here until the client takes them.
    pub fn holds(&mut self, bytes: u64) {
        let before = std::mem::replace(&mut self.held, bytes);
        if let Some(tenant) = self.tenant
            && before != bytes
        {
            self.worker.shares.hold(tenant, before, bytes);
        }
    }

    /// Whether part of the request's body was not read.
    pub fn unread(&self) -> bool {
        self.untouched || self.upload.as_ref().is_some_and(|upload| !upload.done())
    }

    /// Counts the bytes of a tunnel.
    pub fn tunnelled(&mut self, bytes_in: u64, bytes_out: u64) {
        self.bytes_in += bytes_in;
        self.bytes_out += bytes_out;
    }

    /// Decides what a complete delivery will mean. The first decision stands.
    pub fn expect(&mut self, outcome: Outcome) {
        if !self.decided {
            self.decided = true;
            self.outcome = outcome;
        }
    }

    /// The delivery failed: this is what it ended in, whatever was expected.
    pub fn end(&mut self, outcome: Outcome) {
        self.decided = true;
        self.delivered = true;
        self.outcome = outcome;
    }

    /// The answer was delivered whole: what was expected has come true.
    pub fn complete(&mut self) {
        self.delivered = true;
    }

    /// The outcome as it stands now.
    pub fn outcome(&self) -> Outcome {
        // Dropped before the answer was complete: the client went away, or the connection was cut.
        if self.delivered { self.outcome } else { self.connection.ending.get() }
    }

    /// When it began, in microseconds of process time.
    pub fn started(&self) -> u64 {
        self.started
    }

    /// Microseconds since it began.
    pub fn elapsed(&self) -> u64 {
        clock::micros().saturating_sub(self.started)
    }

    /// Bytes of body received and sent.
    pub fn bytes(&self) -> (u64, u64) {
        (self.bytes_in + self.upload.as_ref().map_or(0, |upload| upload.received()), self.bytes_out)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        self.connection.done();
        self.holds(0);
        if let Some(tenant) = self.tenant {
            self.worker.shares.end(tenant);
        }
        record::record(self);
    }
}
