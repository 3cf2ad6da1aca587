//! All endpoints there are, by identity. A reload that names the same service, address and scheme gets the endpoint it
//! had, with everything known about it.
//!
//! The registry holds endpoints weakly: one lives as long as a snapshot, a request or a pool refers to it. Its slot is
//! then given to another; the number of slots is bounded by the most endpoints that ever lived at once. Locked at
//! reload and by `status`, never by a request.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::balance::sticky::{KEY_BYTES, Secret};
use super::endpoint::Endpoint;
use super::health::group::Group;
use crate::base::address::EndpointAddress;
use crate::base::clock;

/// The registry sweeps out dead endpoints when it has grown to twice what was alive after the last sweep, and this many.
const SWEEP_SLACK: usize = 64;

/// All endpoints of the process.
#[derive(Debug)]
pub struct Registry {
    inner: Mutex<Inner>,
    secret: Secret,
}

/// Service, address, TLS, and what its source calls it: another container at the same address is another endpoint.
type Identity = (Arc<str>, EndpointAddress, bool, Arc<str>);

#[derive(Debug, Default)]
struct Inner {
    endpoints: HashMap<Identity, (u32, Weak<Endpoint>)>,
    /// By service; alive as long as one of its endpoints.
    groups: HashMap<Arc<str>, Weak<Group>>,
    free_slots: Vec<u32>,
    /// Slots given out so far, free or not.
    slots: u32,
    next_id: u64,
    sweep_at: usize,
    /// The first set is complete: what comes now is new among others.
    settled: bool,
}

impl Default for Registry {
    fn default() -> Registry {
        Registry::new()
    }
}

impl Registry {
    /// An empty registry, whose cookies no other process reads.
    pub fn new() -> Registry {
        let mut bytes = [0; KEY_BYTES];
        // The seeds of hash maps are the random numbers of the standard library; nobody outside gets such a cookie.
        for part in bytes.as_chunks_mut::<8>().0 {
            *part = RandomState::new().hash_one(0).to_le_bytes();
        }
        Registry::with_secret(Secret::new(&bytes))
    }

    /// An empty registry; endpoints are named in cookies under this key.
    pub fn with_secret(secret: Secret) -> Registry {
        Registry { inner: Mutex::default(), secret }
    }

    /// The key under which endpoints are named in cookies.
    pub fn secret(&self) -> &Secret {
        &self.secret
    }

    /// The endpoint of this identity; made if there is none alive.
    pub fn obtain(&self, service: &Arc<str>, address: &EndpointAddress, tls: bool) -> Arc<Endpoint> {
        self.obtain_named(service, address, tls, &Arc::from(""))
    }

    /// The same, of an endpoint that was found; `name` is what its source calls it.
    pub fn obtain_named(
        &self,
        service: &Arc<str>,
        address: &EndpointAddress,
        tls: bool,
        name: &Arc<str>,
    ) -> Arc<Endpoint> {
        let mut inner = self.lock();
        let identity = (Arc::clone(service), address.clone(), tls, Arc::clone(name));
        if let Some(endpoint) = inner.endpoints.get(&identity).and_then(|(_, weak)| weak.upgrade()) {
            drop(inner);
            // Whoever survived being told to end is back with what is known of it.
            endpoint.leave(false, clock::now());
            return endpoint;
        }
        if inner.endpoints.len() >= inner.sweep_at {
            inner.sweep();
        }
        // An endpoint of the same identity that died keeps its slot: nobody can refer to it any more.
        let slot = inner.endpoints.get(&identity).map(|(slot, _)| *slot);
        let slot = slot.or_else(|| inner.free_slots.pop()).unwrap_or_else(|| {
            inner.slots += 1;
            inner.slots - 1
        });
        let id = inner.next_id;
        inner.next_id += 1;
        let group = inner.group(service);
        let endpoint = Arc::new(Endpoint::new(id, slot, group, address.clone(), tls, name));
        if inner.settled {
            endpoint.rise();
        }
        inner.endpoints.insert(identity, (slot, Arc::downgrade(&endpoint)));
        endpoint
    }

    /// Every endpoint alive, by service and address.
    pub fn list(&self) -> Vec<Arc<Endpoint>> {
        let mut alive: Vec<_> =
            self.lock().endpoints.values().filter_map(|(_, weak)| weak.upgrade()).collect();
        alive.sort_unstable_by(|a, b| (&a.service, &a.address, a.tls).cmp(&(&b.service, &b.address, b.tls)));
        alive
    }

    /// The services that have an endpoint, in any order: sorting ten thousand names takes milliseconds.
    pub fn groups(&self) -> Vec<Arc<Group>> {
        self.lock().groups.values().filter_map(Weak::upgrade).collect()
    }

    /// How many slots were ever needed at once: per-worker tables have this length at most.
    pub fn slots(&self) -> u32 {
        self.lock().slots
    }

    /// Forgets endpoints that nobody refers to. Happens by itself; after a reload it gives memory back sooner.
    pub fn sweep(&self) {
        self.lock().sweep();
    }

    /// The first set is complete. Endpoints that come later are new among others and start slowly.
    pub fn settle(&self) {
        self.lock().settled = true;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code that can panic stands between two changes of the maps, so a poisoned one is still right.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn group(&mut self, service: &Arc<str>) -> Arc<Group> {
        let known = self.groups.get(service).and_then(Weak::upgrade);
        known.unwrap_or_else(|| {
            let group = Arc::new(Group::new(Arc::clone(service)));
            self.groups.insert(Arc::clone(service), Arc::downgrade(&group));
            group
        })
    }

    fn sweep(&mut self) {
        self.groups.retain(|_, group| group.strong_count() > 0);
        let free_slots = &mut self.free_slots;
        self.endpoints.retain(|_, (slot, weak)| {
            let alive = weak.strong_count() > 0;
            if !alive {
                free_slots.push(*slot);
            }
            alive
        });
        self.sweep_at = self.endpoints.len() * 2 + SWEEP_SLACK;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::Millis;

    fn address(port: u16) -> EndpointAddress {
        EndpointAddress::Name("backend.internal".into(), port)
    }

    #[test]
    fn the_same_identity_is_the_same_endpoint_with_what_is_known_about_it() {
        let registry = Registry::new();
        let service: Arc<str> = "a/".into();
        let before = registry.obtain(&service, &address(80), false);
        before.connect_failed(Millis(0), "refused");
        let after = registry.obtain(&"a/".into(), &address(80), false);
        assert!(Arc::ptr_eq(&before, &after) && after.failures() == 1);
        let others = [
            registry.obtain(&service, &address(80), true),
            registry.obtain(&service, &address(81), false),
            registry.obtain(&"b/".into(), &address(80), false),
        ];
        let mut ids: Vec<_> = others.iter().chain([&before]).map(|e| (e.id, e.slot)).collect();
        ids.sort_unstable();
        assert_eq!(ids, [(0, 0), (1, 1), (2, 2), (3, 3)]);
        let listed: Vec<_> =
            registry.list().iter().map(|e| format!("{} {} {}", e.service, e.address, e.tls)).collect();
        assert_eq!(
            listed,
            [
                "a/ backend.internal:80 false",
                "a/ backend.internal:80 true",
                "a/ backend.internal:81 false",
                "b/ backend.internal:80 false"
            ]
        );
    }

    #[test]
    fn slots_are_used_again_and_ids_are_not() {
        let registry = Registry::new();
        let service: Arc<str> = "a/".into();
        let old = registry.obtain(&service, &address(80), false);
        let guard = old.begin();
        drop(old);
        registry.sweep();
        assert_eq!(registry.list().len(), 1, "a request in flight keeps it");
        drop(guard);
        let again = registry.obtain(&service, &address(80), false);
        assert_eq!((again.id, again.slot, again.in_flight()), (1, 0, 0), "same identity, known nothing of");
        drop(again);
        registry.sweep();
        let other = registry.obtain(&service, &address(81), false);
        assert_eq!((other.id, other.slot, registry.slots()), (2, 0, 1));
    }

    #[test]
    fn a_thousand_reloads_with_new_addresses_need_no_more_slots_than_lived_at_once() {
        let registry = Registry::new();
        let service: Arc<str> = "a/".into();
        let mut alive = Vec::new();
        for reload in 0..1000u16 {
            alive = (0..4)
                .map(|i| registry.obtain(&service, &address(reload * 4 + i), false))
                .collect::<Vec<_>>();
        }
        assert_eq!(registry.list().len(), alive.len());
        assert!(registry.slots() as usize <= 2 * 8 + SWEEP_SLACK + 4, "{}", registry.slots());
    }
}
