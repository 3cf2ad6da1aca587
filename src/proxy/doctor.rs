//! What a worker notes for the client-IP doctor, and whether it doubts an address. `policy::doctor` says why.

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::sync::Arc;

use http::HeaderMap;
use http::header::{self, HeaderName};

use crate::base::address::ClientKey;
use crate::base::clock::Millis;
use crate::config::model::ClientIpDoctor;
use crate::policy::doctor::{Doctor, EVERY, Sketch, proxy_at};
use crate::proxy::context::Context;
use crate::snapshot::Snapshot;

/// Fields that proxies add.
static ADDED: [HeaderName; 4] = [
    HeaderName::from_static("x-forwarded-for"),
    header::FORWARDED,
    header::VIA,
    HeaderName::from_static("cf-connecting-ip"),
];
/// Names of proxies noted between two ticks.
const NAMES_MAX: usize = 8;
/// Ticks between two reports: a second.
const REPORT_EVERY: u64 = 10;

/// A worker's part of the doctor.
pub struct Examiner {
    doctor: Arc<Doctor>,
    on: Cell<bool>,
    turn: Cell<u64>,
    sketch: RefCell<Sketch>,
    known: RefCell<Vec<Arc<str>>>,
    generation: Cell<u64>,
    doubted: RefCell<Vec<ClientKey>>,
    doubts_any: Cell<bool>,
}

impl Examiner {
    /// Reports to `doctor`.
    pub fn new(doctor: Arc<Doctor>) -> Examiner {
        Examiner {
            doctor,
            on: Cell::new(false),
            turn: Cell::new(0),
            sketch: RefCell::default(),
            known: RefCell::default(),
            generation: Cell::new(0),
            doubted: RefCell::default(),
            doubts_any: Cell::new(false),
        }
    }

    /// Whether an address belongs to a proxy that is not trusted, so that it is no client's own. Once per connection.
    pub fn is_proxy(&self, snapshot: &Snapshot, address: IpAddr) -> bool {
        let server = &snapshot.server;
        if server.client_ip_doctor == ClientIpDoctor::Off {
            return false;
        }
        let Some(name) = proxy_at(&snapshot.proxies, address) else { return false };
        let mut known = self.known.borrow_mut();
        if known.len() < NAMES_MAX && !known.contains(&name) {
            known.push(name);
        }
        server.client_ip_doctor == ClientIpDoctor::On
    }

    /// Whether an address is a proxy's, as far as is known: limits by address are then not enforced on it. Once per connection,
    /// or for what is about to be held against it.
    pub fn doubts(&self, snapshot: &Snapshot, address: IpAddr) -> bool {
        let found = || self.doubted.borrow().contains(&ClientKey::of(address));
        self.is_proxy(snapshot, address) || (self.doubts_any.get() && found())
    }

    /// Every tick: takes the setting over, hears of doubts, and reports once a second.
    pub fn tick(&self, count: u64, setting: ClientIpDoctor, now: Millis) {
        self.on.set(setting != ClientIpDoctor::Off);
        let generation = self.doctor.generation();
        if self.generation.replace(generation) != generation {
            *self.doubted.borrow_mut() = self.doctor.doubted();
        }
        self.doubts_any.set(setting == ClientIpDoctor::On && !self.doubted.borrow().is_empty());
        if count.is_multiple_of(REPORT_EVERY) {
            let (sketch, known) = (self.sketch.take(), self.known.take());
            if sketch.total() > 0 || !known.is_empty() {
                self.doctor.hear(&sketch, &known, now);
            }
        }
    }

    /// Every eighth request: whose it is, and whether a proxy seems to have had it before us.
    fn note(&self, key: ClientKey, headers: &HeaderMap) {
        let turn = self.turn.get().wrapping_add(1);
        self.turn.set(turn);
        if turn.is_multiple_of(EVERY) {
            let forwarded = ADDED.iter().any(|name| headers.contains_key(name));
            self.sketch.borrow_mut().feed(key, forwarded);
        }
    }
}

/// A request whose client is as well known as it will be.
pub fn note(context: &Context, headers: &HeaderMap) {
    let examiner = &context.worker().examiner;
    if examiner.on.get() {
        examiner.note(context.client_key(), headers);
    }
}

/// Whether the client's address is a proxy's: limits by address are then not enforced. What a trusted proxy says of its
/// client is believed, so that it is no longer the proxy's address.
pub fn doubts(context: &Context) -> bool {
    let connection = &context.connection;
    if connection.trusted {
        return false;
    }
    let examiner = &context.worker().examiner;
    connection.of_proxy
        || (examiner.doubts_any.get() && examiner.doubted.borrow().contains(&context.client_key()))
}
