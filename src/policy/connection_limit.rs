//! Connection limits: open connections of the whole process and of each client, and the requests that a client has in
//! flight on all of its connections together.
//!
//! Asked once per connection, never per request, so that a short lock is fine. Counts are kept in shards, and an entry
//! lives only while its client has a connection: memory is bounded by the number of open connections. Clients are
//! counted even while they have no cap, so that a cap set by a reload is right from the first moment. Each connection
//! holds the count of its client's requests: a request costs an addition, and no look-up.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::base::address::ClientKey;
use crate::net::descriptors::{Budget, Descriptor};

/// Shards of the counts per client.
const SHARDS: usize = 64;

/// A shard that once held more clients than this gives its memory back when it is empty again.
const SHARD_KEPT_MAX: usize = 64;

/// The open connections of the process. Cheap to clone; all clones count together.
#[derive(Debug, Clone)]
pub struct Connections {
    counts: Arc<Counts>,
}

/// Leave to keep one connection open; dropping it gives the place back.
#[derive(Debug)]
#[must_use = "the connection is counted only while its permit lives"]
pub struct Permit {
    counts: Arc<Counts>,
    /// `None` for a trusted proxy.
    client: Option<(ClientKey, Arc<Held>)>,
    nth: u32,
    _descriptor: Descriptor,
}

/// Why a connection was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The process has as many connections as it may.
    Total,
    /// This client has as many connections as it may.
    Client,
    /// Connections of clients and to backends have taken all descriptors they may.
    Descriptors,
}

#[derive(Debug)]
struct Counts {
    total_max: AtomicU32,
    per_client_max: AtomicU32,
    open: AtomicU32,
    /// Clients that have any.
    clients: AtomicU32,
    descriptors: Budget,
    seed: RandomState,
    shards: Box<[Shard]>,
}

type Shard = Mutex<Clients>;
type Clients = HashMap<ClientKey, Arc<Held>>;

/// What one client has.
#[derive(Debug, Default)]
struct Held {
    /// Open connections; changes only under the lock of its shard.
    connections: AtomicU32,
    /// Requests in flight, over all of them.
    requests: AtomicU32,
}

impl Connections {
    /// At most `total` connections, at most `per_client` from one client (0 = no cap), each with a descriptor.
    pub fn new(total: u32, per_client: u32, descriptors: Budget) -> Connections {
        let counts = Counts {
            total_max: AtomicU32::new(total),
            per_client_max: AtomicU32::new(per_client),
            open: AtomicU32::new(0),
            clients: AtomicU32::new(0),
            descriptors,
            seed: RandomState::new(),
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
        };
        Connections { counts: Arc::new(counts) }
    }

    /// New limits, from now on. Connections that are open stay open, even above the limit.
    pub fn set_limits(&self, total: u32, per_client: u32) {
        self.counts.total_max.store(total, Ordering::Relaxed);
        self.counts.per_client_max.store(per_client, Ordering::Relaxed);
    }

    /// The descriptors that connections live from.
    pub fn descriptors(&self) -> &Budget {
        &self.counts.descriptors
    }

    /// How many connections each client has open, in no order.
    pub fn held(&self) -> Vec<u32> {
        let shards = self.counts.shards.iter();
        let held = shards.map(|shard| {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.values().map(|held| held.connections.load(Ordering::Relaxed)).collect::<Vec<_>>()
        });
        held.flatten().collect()
    }

    /// Whether any client has more connections than so many. Looks at each: not for the path of a connection.
    pub fn exceeded(&self, max: u32) -> bool {
        let over = |held: &Arc<Held>| held.connections.load(Ordering::Relaxed) > max;
        let shards = &self.counts.shards;
        shards.iter().any(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner).values().any(over))
    }

    /// How many clients have connections; trusted proxies are none.
    pub fn clients(&self) -> u32 {
        self.counts.clients.load(Ordering::Relaxed)
    }

    /// How many connections are open.
    pub fn open(&self) -> u32 {
        self.counts.open.load(Ordering::Relaxed)
    }

    /// How many there may be.
    pub fn max(&self) -> u32 {
        self.counts.total_max.load(Ordering::Relaxed)
    }

    /// Asks for one more connection.
    ///
    /// # Errors
    /// Which limit stands against it. A client above its own cap hears of that one, also when the process is full.
    pub fn try_acquire(&self, client: ClientKey) -> Result<Permit, Refusal> {
        let counts = &self.counts;
        let mut shard = counts.shard(client).ok_or(Refusal::Total)?;
        let held = shard.get(&client).map_or(0, |held| held.connections.load(Ordering::Relaxed));
        let per_client_max = counts.per_client_max.load(Ordering::Relaxed);
        if per_client_max != 0 && held >= per_client_max {
            return Err(Refusal::Client);
        }
        let descriptor = counts.open_one()?;
        let nth = held.saturating_add(1);
        if nth == 1 {
            counts.clients.fetch_add(1, Ordering::Relaxed);
        }
        let held = shard.entry(client).or_default();
        held.connections.store(nth, Ordering::Relaxed);
        let client = Some((client, held.clone()));
        Ok(Permit { counts: Arc::clone(counts), client, nth, _descriptor: descriptor })
    }

    /// Asks for one more connection of a trusted proxy: it brings many clients, so that no client's cap is its own.
    ///
    /// # Errors
    /// [`Refusal::Total`] or [`Refusal::Descriptors`].
    pub fn try_acquire_trusted(&self) -> Result<Permit, Refusal> {
        let descriptor = self.counts.open_one()?;
        Ok(Permit { counts: Arc::clone(&self.counts), client: None, nth: 0, _descriptor: descriptor })
    }

    #[cfg(test)]
    fn entries(&self) -> usize {
        let entries = self.counts.shards.iter().map(|shard| shard.lock().unwrap().len()).sum();
        assert_eq!(usize::try_from(self.clients()), Ok(entries));
        entries
    }
}

impl Permit {
    /// Which it was of the connections that its client had open; 0 for a trusted proxy.
    pub fn nth(&self) -> u32 {
        self.nth
    }

    /// Connections that its client has open now; 0 for a trusted proxy, which brings many clients.
    pub fn held(&self) -> u32 {
        self.client.as_ref().map_or(0, |(_, held)| held.connections.load(Ordering::Relaxed))
    }

    /// A request begins; every one that does [ends](Permit::ended).
    pub fn began(&self) {
        if let Some((_, held)) = &self.client {
            held.requests.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A request has ended.
    pub fn ended(&self) {
        if let Some((_, held)) = &self.client {
            held.requests.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Requests that the client has in flight, on all of its connections; 0 for a trusted proxy, which brings many
    /// clients.
    pub fn in_flight(&self) -> u32 {
        self.client.as_ref().map_or(0, |(_, held)| held.requests.load(Ordering::Relaxed))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.counts.open.fetch_sub(1, Ordering::Relaxed);
        let Some((client, held)) = &self.client else { return };
        let Some(mut shard) = self.counts.shard(*client) else { return };
        if held.connections.fetch_sub(1, Ordering::Relaxed) <= 1 {
            shard.remove(client);
            self.counts.clients.fetch_sub(1, Ordering::Relaxed);
        }
        if shard.is_empty() && shard.capacity() > SHARD_KEPT_MAX {
            shard.shrink_to(SHARD_KEPT_MAX / 2);
        }
    }
}

impl Counts {
    fn open_one(&self) -> Result<Descriptor, Refusal> {
        let descriptor = self.descriptors.take().ok_or(Refusal::Descriptors)?;
        let max = self.total_max.load(Ordering::Relaxed);
        let more = |open| (open < max).then_some(open + 1);
        self.open
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .map(|_| descriptor)
            .map_err(|_| Refusal::Total)
    }

    fn shard(&self, client: ClientKey) -> Option<MutexGuard<'_, Clients>> {
        let at = self.seed.hash_one(client) % (SHARDS as u64);
        let shard = self.shards.get(usize::try_from(at).ok()?)?;
        // No code that can panic runs under the lock, so a poisoned map is still right.
        Some(shard.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(total: u32, per_client: u32) -> Connections {
        Connections::new(total, per_client, Budget::new(u32::MAX))
    }

    #[test]
    fn a_client_is_refused_at_its_cap_and_let_in_again_after_a_drop() {
        let connections = new(100, 2);
        let first = connections.try_acquire(ClientKey(1)).unwrap();
        let _second = connections.try_acquire(ClientKey(1)).unwrap();
        assert_eq!(connections.try_acquire(ClientKey(1)).unwrap_err(), Refusal::Client);
        let _other = connections.try_acquire(ClientKey(2)).unwrap();
        assert_eq!(connections.open(), 3, "a refusal counts nothing");
        drop(first);
        let _again = connections.try_acquire(ClientKey(1)).unwrap();
        assert_eq!(connections.open(), 3);
    }

    #[test]
    fn requests_in_flight_are_those_of_all_connections_of_the_client() {
        let connections = new(10, 0);
        let (one, two) =
            (connections.try_acquire(ClientKey(1)).unwrap(), connections.try_acquire(ClientKey(1)).unwrap());
        let other = connections.try_acquire(ClientKey(2)).unwrap();
        let proxy = connections.try_acquire_trusted().unwrap();
        [&one, &one, &two, &proxy].into_iter().for_each(Permit::began);
        assert_eq!([&one, &two, &other, &proxy].map(Permit::in_flight), [3, 3, 0, 0]);
        one.ended();
        drop(two);
        let three = connections.try_acquire(ClientKey(1)).unwrap();
        assert_eq!(three.in_flight(), 2);
    }

    #[test]
    fn what_a_client_holds_is_told_by_each_of_its_connections() {
        let connections = new(10, 0);
        let [one, two] = [1, 1].map(|client| connections.try_acquire(ClientKey(client)).unwrap());
        let other = connections.try_acquire(ClientKey(2)).unwrap();
        let proxy = connections.try_acquire_trusted().unwrap();
        assert_eq!([&one, &two, &other, &proxy].map(Permit::held), [2, 2, 1, 0]);
        assert_eq!(
            (connections.clients(), connections.exceeded(1), connections.exceeded(2)),
            (2, true, false)
        );
        drop(two);
        assert_eq!((one.held(), connections.exceeded(1)), (1, false));
        drop(one);
        assert_eq!(connections.clients(), 1);
    }

    #[test]
    fn a_trusted_proxy_is_capped_by_the_process_alone() {
        let connections = new(3, 1);
        let mut held: Vec<_> = (0..3).map(|_| connections.try_acquire_trusted().unwrap()).collect();
        assert_eq!(connections.try_acquire_trusted().unwrap_err(), Refusal::Total);
        held.pop();
        assert_eq!((connections.open(), connections.entries()), (2, 0));
    }

    #[test]
    fn the_newest_is_refused_when_the_process_is_full() {
        let connections = new(2, 1);
        let _held = [1, 2].map(|client| connections.try_acquire(ClientKey(client)).unwrap());
        assert_eq!(connections.try_acquire(ClientKey(3)).unwrap_err(), Refusal::Total);
        assert_eq!(connections.try_acquire(ClientKey(1)).unwrap_err(), Refusal::Client);
        assert_eq!(new(0, 0).try_acquire(ClientKey(1)).unwrap_err(), Refusal::Total);
    }

    #[test]
    fn without_a_descriptor_nobody_is_let_in_and_nothing_is_counted() {
        let budget = Budget::new(1);
        let connections = Connections::new(10, 10, budget.clone());
        let backend = budget.take().unwrap();
        assert_eq!(connections.try_acquire(ClientKey(1)).unwrap_err(), Refusal::Descriptors);
        assert_eq!(connections.try_acquire_trusted().unwrap_err(), Refusal::Descriptors);
        assert_eq!((connections.open(), connections.entries()), (0, 0));
        drop(backend);
        let held = connections.try_acquire(ClientKey(1)).unwrap();
        assert!(budget.take().is_none());
        drop(held);
        assert_eq!(connections.descriptors().used(), 0);
    }

    #[test]
    fn no_cap_is_no_cap_until_a_reload_sets_one() {
        let connections = new(1000, 0);
        let held: Vec<_> = (0..500).map(|_| connections.try_acquire(ClientKey(1)).unwrap()).collect();
        connections.set_limits(1000, 10);
        assert_eq!(connections.try_acquire(ClientKey(1)).unwrap_err(), Refusal::Client);
        connections.set_limits(400, 0);
        assert_eq!(connections.try_acquire(ClientKey(2)).unwrap_err(), Refusal::Total);
        drop(held);
        assert_eq!((connections.open(), connections.entries()), (0, 0));
        assert!(connections.try_acquire(ClientKey(2)).is_ok());
    }

    #[test]
    fn memory_goes_with_the_connections() {
        let connections = new(u32::MAX, 1);
        let held: Vec<_> =
            (0..50_000).map(|client| connections.try_acquire(ClientKey(client)).unwrap()).collect();
        assert_eq!(connections.entries(), 50_000);
        drop(held);
        assert_eq!((connections.open(), connections.entries()), (0, 0));
        let kept: usize =
            connections.counts.shards.iter().map(|shard| shard.lock().unwrap().capacity()).sum();
        assert!(kept <= SHARDS * SHARD_KEPT_MAX * 2, "{kept} places kept");
    }

    #[test]
    fn threads_never_get_more_than_the_limits_and_leave_nothing_behind() {
        let connections = new(8, 3);
        std::thread::scope(|scope| {
            for thread in 0..4u128 {
                let connections = connections.clone();
                scope.spawn(move || {
                    for round in 0..5_000u128 {
                        let permit = connections.try_acquire(ClientKey((thread + round) % 3));
                        assert!(connections.open() <= 8);
                        drop(permit);
                    }
                });
            }
        });
        assert_eq!((connections.open(), connections.entries()), (0, 0));
    }
}
