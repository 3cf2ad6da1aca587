//! Handshakes that wait for a certificate: where workers ask, and the control plane answers.
//!
//! A worker comes here only with a name that has no certificate in the snapshot and that a site takes ([`Rules`]); every
//! other handshake never sees this. It leaves with a [`Waiter`] or at once with a [`Refusal`]. The lock is held for a
//! few lookups, never over I/O. Waiters of one name share one question and one order; how many wait, for how many
//! names, how many new names are asked about and ordered is bounded here.
//!
//! What is known by `id`: a site is known by its name, a name on demand by `@` and the name; no site's name has an `@`.

pub mod ask;
pub mod memory;
pub mod pace;
pub mod rules;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use self::memory::Memory;
use self::pace::Pace;
use crate::base::clock::{self, Millis};
use crate::base::unit::Rate;
use crate::tls::pem::Identity;

pub use rules::{Owner, Rules, Terms};

/// Handshakes that wait at once, over all names.
pub const WAITERS_MAX: usize = 1_024;
/// Handshakes that wait for one name: browsers open some six connections, and several people may come at once.
pub const WAITERS_PER_NAME_MAX: usize = 64;
/// Names waited for at once.
pub const NAMES_WAITING_MAX: usize = 256;
/// Refusals remembered.
pub const REFUSALS_MAX: usize = 8_192;
/// How many new names somebody is asked about, whoever sends them.
pub const QUESTIONS: Rate = Rate { count: 100, per: Duration::from_secs(1) };
/// Longest time a refusal is kept here; the manager knows longer ones.
pub const REFUSAL_TIME_MAX: Duration = Duration::from_secs(600);

/// A certificate that was got on demand, as a snapshot holds it.
#[derive(Debug, Clone)]
pub struct Named {
    /// Position of its site in the snapshot.
    pub position: usize,
    /// The certificate of this name alone.
    pub identity: Arc<Identity>,
    /// Whether somebody has asked for the name since it was issued; shared with the manager.
    pub asked: Arc<AtomicBool>,
}

impl Named {
    /// Notes that a client asked for this name. Costs other cores nothing once it is noted.
    pub fn touch(&self) {
        if !self.asked.load(Ordering::Relaxed) {
            self.asked.store(true, Ordering::Relaxed);
        }
    }
}

/// The certificates got on demand, by name.
pub type Names = HashMap<Arc<str>, Named>;

/// The id of a name on demand.
pub fn id(name: &str) -> Arc<str> {
    format!("@{name}").into()
}

/// The name on demand behind an id; `None` for a site.
pub fn name(id: &str) -> Option<&str> {
    id.strip_prefix('@')
}

/// Why a handshake gets no certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// Whoever was asked said no.
    Disallowed,
    /// Whoever was asked gave no answer that counts.
    Unanswered,
    /// The site has had its share of new names for now.
    Limit,
    /// Too many wait already.
    Busy,
    /// The order failed, and it is not time to try again.
    Failed,
    /// Its turn is later.
    Later,
    /// It took too long.
    Late,
    /// As many names as can be kept are kept.
    Full,
}

impl Refusal {
    /// One word, for metrics.
    pub fn word(self) -> &'static str {
        match self {
            Refusal::Disallowed => "disallowed",
            Refusal::Unanswered => "unanswered",
            Refusal::Limit => "limit",
            Refusal::Busy => "busy",
            Refusal::Failed => "failed",
            Refusal::Later => "later",
            Refusal::Late => "late",
            Refusal::Full => "full",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refusal::Disallowed => "neither `allow` nor `ask` allows it",
            Refusal::Unanswered => "`ask` gave no answer",
            Refusal::Limit => "the site has had as many new names as `orders` allows for now",
            Refusal::Busy => "too many handshakes wait for a certificate already",
            Refusal::Failed => "the last order failed, and it is not time to try again",
            Refusal::Later => "its turn to be ordered is later",
            Refusal::Late => "the authority took longer than a handshake can wait; the order goes on",
            Refusal::Full => "as many names as can be kept on demand are kept",
        })
    }
}

/// How waiting ended.
type Settled = Result<(), Refusal>;

/// Where workers ask and the control plane answers.
pub struct Demand {
    inner: Mutex<Inner>,
    waiters: AtomicUsize,
    fresh: Notify,
}

struct Inner {
    waiting: HashMap<Arc<str>, Arc<Entry>>,
    /// What the control plane has not looked at yet; all of them are in `waiting`.
    fresh: VecDeque<Arc<str>>,
    refused: Memory<Refusal>,
    /// First orders of each site that takes names on demand.
    orders: HashMap<Arc<str>, Pace>,
    questions: Pace,
}

/// One name that is waited for.
struct Entry {
    settled: watch::Sender<Option<Settled>>,
    waiters: AtomicUsize,
}

impl Demand {
    /// Nobody waits.
    pub fn new() -> Arc<Demand> {
        let inner = Inner {
            waiting: HashMap::new(),
            fresh: VecDeque::new(),
            refused: Memory::new(REFUSALS_MAX),
            orders: HashMap::new(),
            questions: Pace::default(),
        };
        Arc::new(Demand { inner: Mutex::new(inner), waiters: AtomicUsize::new(0), fresh: Notify::new() })
    }

    /// Takes a place among those who wait for `id`. `owner`: whose the name is, for names on demand.
    ///
    /// # Errors
    /// Why it is of no use to wait.
    pub fn wait(self: &Arc<Self>, id: &str, owner: Option<Owner<'_>>) -> Result<Waiter, Refusal> {
        let now = clock::now();
        let mut inner = self.lock();
        if let Some(refusal) = inner.refused.find(id, now) {
            return Err(refusal);
        }
        if self.waiters.load(Ordering::Relaxed) >= WAITERS_MAX {
            return Err(Refusal::Busy);
        }
        let known = inner.waiting.get_key_value(id).map(|(id, entry)| (id.clone(), entry.clone()));
        let (id, entry) = match known {
            Some((_, entry)) if entry.waiters.load(Ordering::Relaxed) >= WAITERS_PER_NAME_MAX => {
                return Err(Refusal::Busy);
            }
            Some(known) => known,
            None => {
                inner.admit(owner, now)?;
                let entry = Entry { settled: watch::Sender::new(None), waiters: AtomicUsize::new(0) };
                let (id, entry): (Arc<str>, _) = (id.into(), Arc::new(entry));
                inner.waiting.insert(id.clone(), entry.clone());
                inner.fresh.push_back(id.clone());
                self.fresh.notify_one();
                (id, entry)
            }
        };
        entry.waiters.fetch_add(1, Ordering::Relaxed);
        self.waiters.fetch_add(1, Ordering::Relaxed);
        let settled = entry.settled.subscribe();
        Ok(Waiter { demand: self.clone(), id, entry, settled })
    }

    /// Handshakes that wait now.
    pub fn waiters(&self) -> usize {
        self.waiters.load(Ordering::Relaxed)
    }

    /// Refusals remembered now.
    pub fn refusals(&self) -> usize {
        self.lock().refused.len(clock::now())
    }

    /// Whether anybody waits for this one.
    pub fn is_waited_for(&self, id: &str) -> bool {
        self.lock().waiting.get(id).is_some_and(|entry| entry.waiters.load(Ordering::Relaxed) > 0)
    }

    /// Until there is something new for [`Demand::take`].
    pub(super) async fn fresh(&self) {
        self.fresh.notified().await;
    }

    /// The next one that nobody has looked at yet.
    pub(super) fn take(&self) -> Option<Arc<str>> {
        self.lock().fresh.pop_front()
    }

    /// Takes one of a site's orders.
    pub(super) fn take_order(&self, terms: &Terms) -> bool {
        let now = clock::now();
        self.lock().orders.entry(terms.site.clone()).or_default().take(terms.said.orders, now)
    }

    /// Forgets the pace of sites that take no names any more.
    pub(super) fn retain_sites(&self, keep: impl Fn(&str) -> bool) {
        self.lock().orders.retain(|site, _| keep(site));
    }

    /// Sends everybody away who waits for it, and refuses who comes within the time.
    pub(super) fn refuse(&self, id: &str, refusal: Refusal, time: Duration) {
        let mut inner = self.lock();
        if !time.is_zero() {
            inner.refused.put(id, refusal, clock::now().after(time.min(REFUSAL_TIME_MAX)));
        }
        if let Some(entry) = inner.waiting.remove(id) {
            entry.settled.send_replace(Some(Err(refusal)));
        }
    }

    /// Forgets a refusal.
    pub(super) fn forgive(&self, id: &str) {
        self.lock().refused.forget(id);
    }

    /// Lets those go on whose certificate is in force.
    pub fn settle(&self, in_force: impl Fn(&str) -> bool) {
        let mut inner = self.lock();
        let Inner { waiting, refused, .. } = &mut *inner;
        waiting.retain(|id, entry| {
            let waits = !in_force(id);
            if !waits {
                refused.forget(id);
                entry.settled.send_replace(Some(Ok(())));
            }
            waits
        });
    }

    /// Forgets what nobody waits for any more, unless `busy` says that it is being worked on; gives what was forgotten.
    pub(super) fn sweep(&self, busy: impl Fn(&str) -> bool) -> Vec<Arc<str>> {
        let mut inner = self.lock();
        let mut gone = Vec::new();
        inner.waiting.retain(|id, entry| {
            let keep = entry.waiters.load(Ordering::Relaxed) > 0 || busy(id);
            if !keep {
                gone.push(id.clone());
            }
            keep
        });
        let Inner { waiting, fresh, .. } = &mut *inner;
        fresh.retain(|id| waiting.contains_key(id));
        gone
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Whether one more name may be waited for.
    fn admit(&mut self, owner: Option<Owner<'_>>, now: Millis) -> Settled {
        if self.waiting.len() >= NAMES_WAITING_MAX {
            return Err(Refusal::Busy);
        }
        let Some(Owner { terms, listed }) = owner else { return Ok(()) };
        // Only looked at: taken when the order is certain, so that what is refused uses nothing up.
        let pace = self.orders.get(&terms.site).copied().unwrap_or_default();
        if pace.wait(terms.said.orders, now) > 0 {
            return Err(Refusal::Limit);
        }
        if !listed && !self.questions.take(QUESTIONS, now) {
            return Err(Refusal::Busy);
        }
        Ok(())
    }
}

/// A place among those who wait; given back when dropped.
pub struct Waiter {
    demand: Arc<Demand>,
    id: Arc<str>,
    entry: Arc<Entry>,
    settled: watch::Receiver<Option<Settled>>,
}

impl Waiter {
    /// Until the certificate is in force, it is certain that none comes, or the time is over.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn settled(mut self, time: Duration) -> Settled {
        let settled = tokio::time::timeout(time, self.settled.wait_for(Option::is_some)).await;
        match settled {
            // The sender lives as long as this does.
            Ok(settled) => settled.ok().and_then(|settled| *settled).unwrap_or(Err(Refusal::Late)),
            Err(_) => Err(Refusal::Late),
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.entry.waiters.fetch_sub(1, Ordering::Relaxed);
        self.demand.waiters.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for Waiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiter").field("id", &self.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn many_wait_for_one_name_and_the_control_plane_hears_of_it_once() {
        let demand = Demand::new();
        let waiters: Vec<_> = (0..10).map(|_| demand.wait("@a.test", None).unwrap()).collect();
        assert_eq!((demand.waiters(), demand.take().as_deref()), (10, Some("@a.test")));
        assert!(demand.take().is_none() && demand.is_waited_for("@a.test"));
        demand.settle(|id| id == "@b.test");
        demand.settle(|id| id == "@a.test");
        for waiter in waiters {
            assert_eq!(waiter.settled(LONG).await, Ok(()));
        }
        assert_eq!(demand.waiters(), 0);
        assert!(demand.sweep(|_| false).is_empty(), "what is settled is gone");
    }

    #[tokio::test]
    async fn a_refusal_reaches_all_and_is_remembered_until_it_is_forgiven() {
        let demand = Demand::new();
        let waiter = demand.wait("@a.test", None).unwrap();
        demand.refuse("@a.test", Refusal::Failed, LONG);
        assert_eq!(waiter.settled(LONG).await, Err(Refusal::Failed));
        assert_eq!(demand.wait("@a.test", None).unwrap_err(), Refusal::Failed);
        assert_eq!(demand.refusals(), 1);
        demand.forgive("@a.test");
        let again = demand.wait("@a.test", None).unwrap();
        assert_eq!(again.settled(Duration::ZERO).await, Err(Refusal::Late));
        // Not remembered: the next one asks anew.
        demand.refuse("@a.test", Refusal::Limit, Duration::ZERO);
        assert!(demand.wait("@a.test", None).is_ok());
    }

    #[test]
    fn waiters_and_names_are_bounded_and_places_are_given_back() {
        let demand = Demand::new();
        let some = |demand: &Arc<Demand>, id: &str, n: usize| -> Vec<Waiter> {
            (0..n).map(|_| demand.wait(id, None).unwrap()).collect()
        };
        let first = some(&demand, "@a.test", WAITERS_PER_NAME_MAX);
        assert_eq!(demand.wait("@a.test", None).unwrap_err(), Refusal::Busy);
        let more: Vec<_> =
            (1..NAMES_WAITING_MAX).flat_map(|n| some(&demand, &format!("@n{n}.test"), 1)).collect();
        assert_eq!(demand.wait("@one-more.test", None).unwrap_err(), Refusal::Busy);
        drop(first);
        assert_eq!(demand.waiters(), NAMES_WAITING_MAX - 1);
        assert_eq!(demand.sweep(|id| id == "@n1.test"), [Arc::from("@a.test")]);
        assert!(demand.wait("@one-more.test", None).is_ok());
        let each = WAITERS_MAX.div_ceil(NAMES_WAITING_MAX - 1);
        let mut held = more;
        'full: for n in 1..NAMES_WAITING_MAX {
            for _ in 0..each {
                match demand.wait(&format!("@n{n}.test"), None) {
                    Ok(waiter) => held.push(waiter),
                    Err(refusal) => {
                        assert_eq!(refusal, Refusal::Busy);
                        break 'full;
                    }
                }
            }
        }
        assert_eq!((held.len(), demand.waiters()), (WAITERS_MAX, WAITERS_MAX));
    }

    #[test]
    fn ids_of_names_are_no_sites() {
        assert_eq!((name(&id("a.test")), name("a.test")), (Some("a.test"), None));
    }
}
