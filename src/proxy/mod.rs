//! Layer 4, the data plane: what happens to a request. Read the files in this order.
//!
//! 1. [`accept`]: a socket comes in; limits on connections, PROXY protocol. [`shed`] tells of what is turned away.
//! 2. [`handshake`]: TLS, SNI, ALPN, certificates of clients; each takes its turn in the [`turnstile`]; [`demand`] for
//!    names that have no certificate.
//! 3. [`serve`]: one connection, many requests; its deadlines, its rest, its end. [`guard`] checks raw HTTP/1 bytes first,
//!    [`frames`] counts the frames of HTTP/2.
//!    Who runs while there is too much to do says [`fair`].
//! 4. [`request`]: THE life of a request, on one screen.
//! 5. [`normalize`] and [`fields`]: one reading of host and path; hop-by-hop and forwarded fields; [`client_cert`]: what
//!    is told of a client's certificate.
//! 6. [`share`]: what its tenant may have in flight; [`enforce`]: the policies, in their fixed order.
//! 7. [`affinity`]: where a request belongs, by its key or cookie; [`forward`]: [`admit`] chooses an endpoint or lets the
//!    request wait, [`exchange`] is one try, perhaps there is another; [`multiplexed`] where the backend speaks HTTP/2.
//! 8. [`body`], [`delivery`], [`throttle`], [`backlog`], [`buffered`] and [`upgrade`]: streaming, limits, tunnels. [`expect`], [`keep`], [`cut`] and
//!    [`reset`] are what bodies need for `100-continue`, another try, an end before their end, and the codes of HTTP/2.
//! 9. [`respond`]: the only place where an outcome becomes an answer; [`grpc`] is its form for gRPC; [`answer`]: what every
//!    answer of a route gets, whoever made it.
//! 10. [`record`]: numbers and the access record, exactly once; [`observe`] what `tidegate suggest` wants to know,
//!     [`doctor`] whether addresses are those of clients.
//!
//! Everything here lives on one worker's thread and is not `Send`: `Rc` and `Cell`, no locks. The control plane is
//! met only in the snapshot.

pub mod accept;
pub mod admit;
pub mod affinity;
pub mod answer;
pub mod backlog;
pub mod body;
pub mod buffered;
pub mod client_cert;
pub mod context;
pub mod cut;
pub mod delivery;
pub mod demand;
pub mod doctor;
pub mod enforce;
pub mod exchange;
pub mod expect;
pub mod fair;
pub mod fields;
pub mod forward;
pub mod frames;
pub mod gather;
pub mod grpc;
pub mod guard;
pub mod handshake;
pub mod keep;
pub mod multiplexed;
pub mod normalize;
pub mod observe;
pub mod packets;
pub mod penalty;
pub mod record;
pub mod request;
pub mod reset;
pub mod respond;
pub mod saved;
pub mod serve;
pub mod share;
pub mod shed;
pub mod throttle;
pub mod turnstile;
pub mod upgrade;
pub mod upload;

use std::cell::{Cell, RefCell};
use std::hash::{BuildHasher, RandomState};
use std::rc::{Rc, Weak};
use std::sync::Arc;

use http::HeaderValue;

use crate::base::clock;
use crate::net::timer::Wheel;
use crate::policy::connection_limit::Connections;
use crate::policy::doctor::Doctor;
use crate::policy::observe::Watch;
use crate::policy::patch::Scratch;
use crate::policy::share::Levels;
use crate::proxy::body::RequestBody;
use crate::proxy::context::Connection;
use crate::proxy::fair::{Fair, Sleep};
use crate::proxy::penalty::Penalties;
use crate::proxy::share::Shares;
use crate::proxy::turnstile::Turnstile;
use crate::snapshot::cell::{Held, Reader};
use crate::telemetry::access::Sink;
use crate::telemetry::metric::{Counter, Gauge};
use crate::telemetry::shard::Shard;
use crate::tls::acme::Challenges;
use crate::upstream::Ledger;
use crate::upstream::multiplex::Multiplexed;
use crate::upstream::pool::Pools;

/// What a worker owns; everything its connections and requests share.
pub struct Worker {
    /// Number of the worker, from 0.
    pub id: usize,
    /// Its timers.
    pub wheel: Wheel,
    /// Its counters.
    pub shard: Shard,
    /// Its end of the access log.
    pub sink: Sink,
    /// Its idle connections to endpoints.
    pub pools: Pools<RequestBody>,
    /// Its HTTP/2 connections to endpoints.
    pub multiplexed: Multiplexed<RequestBody>,
    /// The caps on client connections, shared by all workers.
    pub connections: Connections,
    /// Answers to challenges of ACME authorities, shared by all workers.
    pub challenges: Arc<Challenges>,
    /// What is watched for `tidegate suggest`.
    pub observed: observe::Observed,
    /// Whether addresses are those of clients.
    pub examiner: doctor::Examiner,
    /// TLS handshakes in flight.
    pub turnstile: Rc<Turnstile>,
    /// Clients that flooded lately.
    pub penalties: Penalties,
    /// Who runs while there is too much to do.
    pub fair: Rc<Fair>,
    /// What tenants have here.
    pub shares: Shares,
    /// What virtual patches use again for each request.
    patch_scratch: RefCell<Scratch>,
    told: shed::Told,
    /// Services at which somebody on this worker waits.
    lines: RefCell<Vec<(Arc<str>, Arc<Ledger>)>>,
    handshakes_shown: Cell<(usize, usize)>,
    reader: Reader,
    open: RefCell<Vec<Weak<Connection>>>,
    draining: Cell<bool>,
    /// First half of request ids: random, so that ids of different nodes and starts differ.
    id_prefix: u64,
    /// Makes the second half from a count, so that ids do not tell how many requests there were.
    id_hash: RandomState,
    id_next: Cell<u64>,
    /// What wall time is ahead of process time, in microseconds; measured every tick, so that a record's time costs no
    /// look at the clock.
    wall_ahead: Cell<u64>,
    random: Cell<u64>,
}

/// What a worker is made of; handed over by the assembler.
pub struct Parts {
    /// Number of the worker.
    pub id: usize,
    /// Its counters.
    pub shard: Shard,
    /// Its end of the access log.
    pub sink: Sink,
    /// The caps on client connections.
    pub connections: Connections,
    /// Answers to challenges of ACME authorities.
    pub challenges: Arc<Challenges>,
    /// The client-IP doctor.
    pub doctor: Arc<Doctor>,
    /// Whether and what is watched.
    pub watch: Arc<Watch>,
    /// Tells when the thread sleeps.
    pub sleep: Sleep,
    /// Weights of the tenants that have something, and how many workers there are.
    pub levels: Arc<Levels>,
    /// See `levels`.
    pub workers: usize,
    /// Its view of the snapshot.
    pub reader: Reader,
    /// Random bits, different for each worker and start.
    pub seed: u64,
}

impl Worker {
    /// A worker with nothing open.
    pub fn new(parts: Parts) -> Worker {
        let fair = Rc::new(Fair::new(parts.sleep));
        Worker {
            id: parts.id,
            wheel: Wheel::default(),
            shard: parts.shard,
            sink: parts.sink,
            pools: Pools::default(),
            multiplexed: Multiplexed::default(),
            connections: parts.connections,
            challenges: parts.challenges,
            examiner: doctor::Examiner::new(parts.doctor),
            observed: observe::Observed::new(parts.watch),
            penalties: Penalties::default(),
            turnstile: Rc::new(Turnstile::new(fair.clone())),
            fair,
            shares: Shares::new(parts.levels, parts.workers),
            patch_scratch: RefCell::default(),
            told: shed::Told::default(),
            lines: RefCell::default(),
            handshakes_shown: Cell::default(),
            reader: parts.reader,
            open: RefCell::default(),
            draining: Cell::new(false),
            id_prefix: splitmix(parts.seed),
            id_hash: RandomState::new(),
            id_next: Cell::new(0),
            wall_ahead: Cell::new(wall_ahead()),
            random: Cell::new(parts.seed | 1),
        }
    }

    /// The current snapshot.
    pub fn snapshot(&self) -> Held {
        self.reader.load()
    }

    /// Random bits for balancing; not for secrets.
    pub fn random(&self) -> u64 {
        let next = self.random.get().wrapping_add(0x9E37_79B9_7F4A_7C15);
        self.random.set(next);
        splitmix(next)
    }

    /// A new request id: 32 hexadecimal digits, unique over nodes and restarts.
    pub fn next_request_id(&self) -> HeaderValue {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let digit = |half: u8| HEX.get(usize::from(half)).copied().unwrap_or(b'0');
        let count = self.id_next.get();
        self.id_next.set(count.wrapping_add(1));
        let id = u128::from(self.id_prefix) << 64 | u128::from(self.id_hash.hash_one(count));
        let mut text = [b'0'; 32];
        for (digits, byte) in text.as_chunks_mut::<2>().0.iter_mut().zip(id.to_be_bytes()) {
            *digits = [digit(byte >> 4), digit(byte & 15)];
        }
        HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static("0"))
    }

    /// Wall time in milliseconds since 1970 of a moment given in microseconds of process time.
    pub fn wall_ms(&self, micros: u64) -> u64 {
        self.wall_ahead.get().saturating_add(micros) / 1000
    }

    /// Whether the worker is finishing what it has and takes nothing new.
    pub fn draining(&self) -> bool {
        self.draining.get()
    }

    /// Client connections open now.
    pub fn open(&self) -> usize {
        self.open.borrow().iter().filter(|connection| connection.strong_count() > 0).count()
    }

    /// Begins the end: every connection closes after what it has in flight.
    pub fn drain(&self) {
        self.draining.set(true);
        for connection in self.open.borrow().iter().filter_map(Weak::upgrade) {
            connection.closing.set(true);
            connection.progress.wake();
        }
    }

    /// Called every tick of the worker: moves the timers on and hands the access log over.
    pub fn tick(&self, count: u64) {
        self.wheel.advance(clock::now());
        self.wall_ahead.set(wall_ahead());
        // An idle worker too must let go of an old snapshot and of the endpoints in it.
        let setting = self.reader.load().server.client_ip_doctor;
        self.examiner.tick(count, setting, self.wheel.now());
        self.sink.flush();
        self.observed.tick(self.wheel.now());
        self.show_handshakes();
        self.look_at_lines();
        self.tick_shares(count);
        // Idle connections to backends live for a minute; a look a second is exact enough.
        if count.is_multiple_of(10) {
            let idle = self.snapshot().server.timeouts.upstream_idle;
            let now = self.wheel.now();
            let evicted = self.pools.sweep(now) + self.multiplexed.sweep(now, idle);
            self.shard.add(Counter::UpstreamEvicted, evicted);
        }
    }

    /// Brings the gauges of handshakes up to date; once a tick is exact enough.
    fn show_handshakes(&self) {
        let now = self.turnstile.in_flight();
        let shown = self.handshakes_shown.replace(now);
        for (gauge, now, shown) in
            [(Gauge::HandshakesClient, now.0, shown.0), (Gauge::HandshakesTurn, now.1, shown.1)]
        {
            let change = now.cast_signed() as i64 - shown.cast_signed() as i64;
            if change != 0 {
                self.shard.gauge_add(gauge, change);
            }
        }
    }

    /// Remembers a connection, so that a drain reaches it.
    fn opened(&self, connection: &Rc<Connection>) {
        let mut open = self.open.borrow_mut();
        // Swept when the dead could outnumber the living: amortised, and bounded by twice the open connections.
        if open.len() == open.capacity() {
            open.retain(|weak| weak.strong_count() > 0);
        }
        open.push(Rc::downgrade(connection));
    }
}

fn wall_ahead() -> u64 {
    u64::try_from(clock::wall().as_micros()).unwrap_or(u64::MAX).saturating_sub(clock::micros())
}

/// The finaliser of SplitMix64 (public domain): spreads a counter over 64 bits.
fn splitmix(seed: u64) -> u64 {
    let z = (seed ^ (seed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
