//! Idle connections to endpoints: one pool per worker, so that taking one costs no lock and no other core.
//!
//! The price is that idle connections multiply by the number of workers: at most `upstream_idle` (256) per endpoint
//! and worker are kept, and each for at most `upstream_idle` seconds. Pools are found by the endpoint's slot, a
//! small number given at reload, not by name or address.

use std::cell::RefCell;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;

use crate::base::clock::Millis;
use crate::upstream::connect::Connection;
use crate::upstream::endpoint::Endpoint;

/// The pools of one worker.
pub struct Pools<B> {
    slots: RefCell<Vec<Slot<B>>>,
}

/// How many idle connections are kept, and for how long; read anew each time, so that a reload changes it.
#[derive(Debug, Clone, Copy)]
pub struct Keep {
    /// Connections per endpoint.
    pub count: usize,
    /// Time without a request.
    pub time: Duration,
}

impl<B> Default for Pools<B> {
    fn default() -> Pools<B> {
        Pools { slots: RefCell::default() }
    }
}

struct Slot<B> {
    /// Which endpoint this is the pool of; slots are reused for other endpoints.
    endpoint: u64,
    /// The most recently used last: warm connections are used again, cold ones age out.
    idle: Vec<Idle<B>>,
}

struct Idle<B> {
    connection: Connection<B>,
    expires: Millis,
}

impl<B> Idle<B> {
    fn fits(&self, tls: Option<&Arc<ClientConfig>>, bound: Option<IpAddr>) -> bool {
        same(self.connection.tls.as_ref(), tls) && self.connection.bound == bound
    }
}

impl<B> Pools<B> {
    /// A connection that looked alive a moment ago, made with the same TLS settings; the warmest first. Where a PROXY
    /// protocol header named a client, `bound` is the client, and the connection was made in its name.
    pub fn take(
        &self,
        endpoint: &Endpoint,
        tls: Option<&Arc<ClientConfig>>,
        bound: Option<IpAddr>,
    ) -> Option<Connection<B>> {
        let mut slots = self.slots.borrow_mut();
        let slot = slots.get_mut(index(endpoint))?;
        if slot.endpoint != endpoint.id {
            return None;
        }
        if bound.is_some() {
            // Those of other clients stay: the pool is small, and its owners may come back.
            let fits = |idle: &Idle<B>| !idle.connection.sender.is_closed() && idle.fits(tls, bound);
            let at = slot.idle.iter().rposition(fits)?;
            return Some(slot.idle.remove(at).connection);
        }
        while let Some(idle) = slot.idle.pop() {
            if !idle.connection.sender.is_closed() && idle.fits(tls, None) {
                return Some(idle.connection);
            }
        }
        None
    }

    /// Puts a connection back after its answer was read to the end. Gives how many were closed for that; where there is no
    /// room it may be this one.
    pub fn give(&self, endpoint: &Endpoint, connection: Connection<B>, now: Millis, keep: Keep) -> u64 {
        if connection.sender.is_closed() {
            return 0;
        }
        let mut slots = self.slots.borrow_mut();
        let wanted = index(endpoint) + 1;
        if slots.len() < wanted {
            slots.resize_with(wanted, || Slot { endpoint: u64::MAX, idle: Vec::new() });
        }
        let Some(slot) = slots.get_mut(index(endpoint)) else { return 0 };
        if slot.endpoint != endpoint.id {
            *slot = Slot { endpoint: endpoint.id, idle: Vec::new() };
        }
        if connection.bound.is_some() && slot.idle.len() >= keep.count && keep.count > 0 {
            // Bound to a client that may never come back: the coldest makes room.
            slot.idle.remove(0);
            slot.idle.push(Idle { connection, expires: now.after(keep.time) });
            return 1;
        }
        if slot.idle.len() >= keep.count {
            return 1;
        }
        slot.idle.push(Idle { connection, expires: now.after(keep.time) });
        0
    }

    /// Closes what has been idle too long or died; gives how many were too old. Called about once a second.
    pub fn sweep(&self, now: Millis) -> u64 {
        let mut evicted = 0;
        for slot in self.slots.borrow_mut().iter_mut().filter(|slot| !slot.idle.is_empty()) {
            slot.idle.retain(|idle| {
                let open = !idle.connection.sender.is_closed();
                evicted += u64::from(open && idle.expires <= now);
                open && idle.expires > now
            });
            if slot.idle.is_empty() {
                slot.idle = Vec::new();
            }
        }
        evicted
    }

    /// Closes the colder half of what is idle: descriptors are needed elsewhere. Gives how many.
    pub fn shrink(&self) -> u64 {
        let mut evicted = 0;
        for slot in self.slots.borrow_mut().iter_mut().filter(|slot| !slot.idle.is_empty()) {
            let colder = slot.idle.len().div_ceil(2);
            evicted += slot.idle.drain(..colder).count() as u64;
        }
        evicted
    }

    /// Closes everything idle, at the end of a drain.
    pub fn clear(&self) {
        self.slots.borrow_mut().clear();
    }
}

fn index(endpoint: &Endpoint) -> usize {
    endpoint.slot as usize
}

/// Whether two connections speak TLS with the same settings; a reload that changes them must not reuse the old.
pub(super) fn same(a: Option<&Arc<ClientConfig>>, b: Option<&Arc<ClientConfig>>) -> bool {
    match (a, b) {
        (None, None) => true,
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        _ => false,
    }
}
