//! The manager: wants, holds, orders. One loop starts what the queue chooses; each order is a task of its own.
//!
//! `order`: one order, and how it ended. `suggest`: when CAs want certificates renewed. `clock`: nothing of this
//! while the clock is wrong. `inner`: what is remembered, and what follows from it. `demand`: names that come with a
//! handshake. `forecast`: the plan, and what it would fail of. `persist`: writing, with patience. `reread`: what
//! others wrote.

mod clock;
mod demand;
mod forecast;
mod inner;
mod order;
mod persist;
mod reread;
mod suggest;

pub use clock::{Change, ClockStatus};

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use self::order::Ended;
pub use self::reread::Reread;
use super::account::Accounts;
use super::demand::memory::Memory;
use super::demand::{Demand, Rules, ask};
use super::dns::{Dns, Ledger};
use super::engine::Engine;
use super::event::{Event, Events, What};
use super::http::Client;
use super::issuer::{IssueError, Issuer, Reason};
use super::managed::Managed;
use super::queue::{Bucket, Dice, Queue, Step};
use super::record::{self, Failure, Held, Unreadable};
use super::renewal_info::RenewalInfo;
use super::simple::Simple;
use super::store::seal::{Ring, Sealed};
use super::store::{FolderStore, Key, Kind, Mark, Store, StoreError};
use super::{CertificateStatus, Challenges, Wanted};
use crate::config::model::{self, AcmeEngine, ChallengeKind, Directory, HostPattern};
use crate::config::section::host;
use crate::tls::pem::{self, Identity};

/// Longest sleep of the loop: the wall clock may be set meanwhile.
const NAP: Duration = Duration::from_secs(30);
/// How long [`Manager::idle`] waits between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// Gets certificates and keeps them.
pub struct Manager {
    /// The same as `seal`.
    store: Arc<dyn Store>,
    seal: Arc<Sealed>,
    /// What was read of the store.
    read: Mutex<Read>,
    challenges: Arc<Challenges>,
    demand: Arc<Demand>,
    records: Arc<Ledger>,
    inner: Mutex<Inner>,
    wake: Notify,
    stopping: AtomicBool,
}

struct Read {
    mark: Mark,
    /// Whether records may lie there that are not encrypted as the settings say.
    to_seal: bool,
}

struct Inner {
    settings: model::Acme,
    /// What `ca_file` held when the engines were made.
    authority: Option<Vec<u8>>,
    engines: Arc<Engines>,
    queue: Queue,
    dice: Dice,
    wanted: BTreeMap<Arc<str>, Wanted>,
    held: HashMap<Arc<str>, Held>,
    failures: HashMap<Arc<str>, Failure>,
    /// Places of certificates that could not be read, and why. Their sites are not ordered for.
    damaged: HashMap<Key, String>,
    /// Orders by how they ended: `issued`, or the word of a reason.
    ended: BTreeMap<&'static str, u64>,
    /// Which sites take names on demand, and how control over those may be proven.
    rules: Arc<Rules>,
    possible: Vec<ChallengeKind>,
    /// What was said about names lately, and how often what.
    answers: Memory<ask::Answer>,
    questions: BTreeMap<&'static str, u64>,
    /// When it was last told that a question had no answer; seconds since 1970.
    told_unanswered: u64,
    asking: Option<Arc<rustls::ClientConfig>>,
    events: Events,
    /// Sites whose next try is the managed engine's, because the simple one's broke off.
    handed_over: HashSet<Arc<str>>,
    /// Whether it was last said that the clock is wrong.
    clock_held: bool,
}

/// Who talks to CAs, all through one client: what one hears of the clock, all know.
pub(super) struct Engines {
    client: Client,
    simple: Simple,
    managed: Managed,
    renewal: RenewalInfo,
}

impl Engines {
    fn issuer(&self, engine: Engine) -> &dyn Issuer {
        match engine {
            Engine::Simple => &self.simple,
            Engine::Managed => &self.managed,
        }
    }
}

impl Manager {
    /// Opens `<state>/acme` and reads it; never orders.
    ///
    /// Errors are sentences: the folder cannot be read, a key is not at hand, or the settings ask for what cannot be. A
    /// single damaged certificate is none: its site is reported by [`Manager::status`] and left alone.
    pub fn open(
        settings: &model::Acme,
        state: &Path,
        challenges: Arc<Challenges>,
    ) -> Result<Arc<Manager>, String> {
        let store = FolderStore::open(state).map_err(|e| e.to_string())?;
        Manager::with_store(settings, Arc::new(store), challenges)
    }

    /// The same over any store.
    pub fn with_store(
        settings: &model::Acme,
        store: Arc<dyn Store>,
        challenges: Arc<Challenges>,
    ) -> Result<Arc<Manager>, String> {
        let seal = Arc::new(Sealed::new(store, Ring::read(settings.store_key.as_ref())?));
        let store: Arc<dyn Store> = Arc::clone(&seal) as Arc<dyn Store>;
        let records = Arc::<Ledger>::default();
        let engines = engines(settings, &store, &challenges, &records)?;
        let now = now();
        let said = |e: StoreError| e.to_string();
        // Of certificates the same is found out below.
        let others: Vec<_> = Kind::ALL.into_iter().filter(|kind| *kind != Kind::Certificate).collect();
        seal.check_keys(&others).map_err(said)?;
        let (mut held, mut damaged) = (HashMap::new(), HashMap::new());
        let (places, mark) = store.changes(Kind::Certificate, None).map_err(said)?;
        for (place, found) in record::load_all(store.as_ref(), &places) {
            match found {
                Ok(Some(found)) => drop(held.insert(Arc::clone(&found.record.site), found)),
                Ok(None) => {}
                Err(Unreadable::Key(message)) => return Err(message),
                Err(Unreadable::Other(message)) => {
                    tracing::error!("{message}");
                    damaged.insert(place, message);
                }
            }
        }
        let failures = record::failures(store.as_ref()).map_err(said)?;
        let failures = failures.into_iter().map(|failure| (Arc::clone(&failure.site), failure)).collect();
        let queue =
            Queue::new(buckets(settings, store.as_ref(), now), settings.orders_per_3h, settings.concurrent);
        // Only spreads load; the time at hand is random enough for that.
        let dice = Dice::new(now ^ crate::base::clock::micros() ^ u64::from(std::process::id()));
        let (settings, authority) = (settings.clone(), authority(settings));
        let inner = Inner {
            settings,
            authority,
            engines,
            queue,
            dice,
            wanted: BTreeMap::new(),
            held,
            failures,
            damaged,
            ended: BTreeMap::new(),
            rules: Arc::default(),
            possible: Vec::new(),
            answers: Memory::new(demand::ANSWERS_MAX),
            questions: BTreeMap::new(),
            told_unanswered: 0,
            asking: None,
            events: Events::default(),
            handed_over: HashSet::new(),
            clock_held: false,
        };
        let (inner, demand) = (Mutex::new(inner), Demand::new());
        let (wake, stopping) = (Notify::new(), AtomicBool::new(false));
        let read = Mutex::new(Read { mark, to_seal: true });
        Ok(Arc::new(Manager { store, seal, read, challenges, demand, records, inner, wake, stopping }))
    }

    /// The full set of wanted certificates, after each reload; replaces the former.
    pub fn want(&self, wanted: Vec<Wanted>) {
        let mut inner = self.lock();
        let mut fresh: BTreeMap<_, _> = wanted.into_iter().map(|w| (Arc::clone(&w.site), w)).collect();
        let coming = inner.wanted.values().filter(|wanted| inner.is_coming(wanted));
        fresh.extend(coming.map(|wanted| (Arc::clone(&wanted.site), wanted.clone())));
        let gone: Vec<_> = inner.wanted.keys().filter(|site| !fresh.contains_key(*site)).cloned().collect();
        for site in gone {
            inner.queue.remove(&site);
            inner.events.push(Event::new(now(), What::Dropped, Some(&site)));
        }
        inner.wanted = fresh;
        let sites: Vec<_> = inner.wanted.keys().cloned().collect();
        for site in sites {
            inner.enqueue(&site);
        }
        drop(inner);
        self.wake.notify_one();
    }

    /// The stored certificate that covers the names, even when due or expired: the old one serves until the new one
    /// is there.
    pub fn identity(&self, site: &str, names: &[HostPattern]) -> Option<Arc<Identity>> {
        let inner = self.lock();
        let held = inner.held.get(site)?;
        held.covers(&texts(names)).then(|| Arc::clone(&held.identity))
    }

    /// The stored certificate that covers some of the names: it serves those until the one for all is there, which may
    /// be never, if one of them cannot be validated.
    pub fn partial_identity(&self, site: &str, names: &[HostPattern]) -> Option<Arc<Identity>> {
        let inner = self.lock();
        let held = inner.held.get(site)?;
        texts(names).iter().any(|name| held.covers_name(name)).then(|| Arc::clone(&held.identity))
    }

    /// Starts no order any more; those in flight go on. A failure is not noted from now on, because it says more about
    /// our end than about the site.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Waits until no order is in flight.
    pub async fn idle(&self) {
        while self.lock().queue.in_flight() > 0 {
            tokio::time::sleep(LOOK).await;
        }
    }

    fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Takes over changed settings. Errors: they ask for what cannot be; the old ones stay in force.
    pub fn reconfigure(&self, settings: &model::Acme) -> Result<(), String> {
        // Read every time: a key file has another content under the same name.
        self.rekey(settings)?;
        // So has that of an authority; one that cannot be read leaves the old one in force.
        let authority = authority(settings);
        let mut inner = self.lock();
        if inner.settings == *settings && (authority.is_none() || authority == inner.authority) {
            return Ok(());
        }
        inner.engines = engines(settings, &self.store, &self.challenges, &self.records)?;
        let buckets = buckets(settings, self.store.as_ref(), now());
        let before = |new: &Directory| inner.settings.directories.iter().position(|old| old.url == new.url);
        let before: Vec<_> = settings.directories.iter().map(before).collect();
        inner.queue.reconfigure(buckets, &before, settings.orders_per_3h, settings.concurrent);
        (inner.settings, inner.authority) = (settings.clone(), authority);
        inner.asking = None;
        drop(inner);
        self.wake.notify_one();
        Ok(())
    }

    /// Orders a site's certificate at the next opportunity, whatever its age or backoff. Errors: no such site, or
    /// its stored certificate is damaged.
    pub fn renew(&self, site: &str) -> Result<(), String> {
        let mut inner = self.lock();
        if let Some(message) = inner.damaged.get(&Key::new(Kind::Certificate, site)) {
            return Err(message.clone());
        }
        if let Some(name) = super::demand::name(site) {
            drop(inner);
            return self.renew_name(site, name);
        }
        if !inner.queue.force(site) {
            return Err(format!("No certificate is kept for a site {site:?}. See `tidegate certs`."));
        }
        drop(inner);
        self.demand.forgive(site);
        self.wake.notify_one();
        Ok(())
    }

    /// Every wanted certificate, by site; also those of names on demand whose last order failed.
    pub fn status(&self) -> Vec<CertificateStatus> {
        let inner = self.lock();
        let now = now();
        let wanted = inner.wanted.values().map(|wanted| inner.describe(wanted, now));
        wanted.chain(inner.describe_failed()).collect()
    }

    /// Orders of this process by how they ended: `issued`, or the word of a reason.
    pub fn ended(&self) -> Vec<(&'static str, u64)> {
        self.lock().ended.iter().map(|(word, count)| (*word, *count)).collect()
    }

    /// What happened last, the oldest first.
    pub fn events(&self) -> Vec<Event> {
        self.lock().events.all()
    }

    /// The queue in its order with the earliest time of each, and the budget at each CA.
    pub fn plan(&self) -> serde_json::Value {
        let inner = self.lock();
        let now = now();
        let plan = inner.queue.plan(now).into_iter();
        let queue: Vec<_> = plan.map(|(site, earliest)| inner.planned(&site, earliest)).collect();
        let budget = inner.settings.directories.iter().enumerate().map(|(index, directory)| {
            serde_json::json!({
                "ca": directory.name,
                "orders_left": inner.queue.left(index, now),
                "held_until": Some(inner.queue.held_until(index)).filter(|until| *until > now),
            })
        });
        serde_json::json!({ "queue": queue, "budget": budget.collect::<Vec<_>>() })
    }

    /// For ever. Calls `changed(site)` after a new certificate passed the canary and was stored.
    pub async fn run(self: Arc<Self>, changed: impl Fn(&str) + 'static) {
        let (mut orders, mut admitting, mut looks) = (JoinSet::new(), JoinSet::new(), JoinSet::new());
        let mut tending = tokio::time::interval(demand::TEND);
        tending.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut asking = Box::pin(Arc::clone(&self).ask_for_ever());
        loop {
            let nap = self.start(&mut orders);
            self.take_up(&mut admitting);
            if looks.is_empty() {
                looks.spawn(Arc::clone(&self).look());
            }
            tokio::select! {
                Some(taken) = looks.join_next() => taken.iter().flatten().for_each(|site| changed(site)),
                Some(ended) = orders.join_next(), if !orders.is_empty() => {
                    let Ok(ended) = ended else { continue };
                    if let Some(site) = self.finish(ended).await {
                        changed(&site);
                    }
                }
                Some(admitted) = admitting.join_next(), if !admitting.is_empty() => {
                    if let Ok(Some(id)) = admitted {
                        changed(&id);
                    }
                }
                () = self.demand.fresh() => {}
                _ = tending.tick() => if let Some(id) = self.tend().await {
                    changed(&id);
                },
                () = self.wake.notified() => {}
                () = tokio::time::sleep(nap) => {}
                () = &mut asking => {}
            }
        }
    }

    /// Starts what the queue chooses; says how long to sleep at most.
    fn start(self: &Arc<Self>, orders: &mut JoinSet<Ended>) -> Duration {
        if !self.may_order() {
            return NAP;
        }
        while !self.stopping() {
            let mut inner = self.lock();
            let now = now();
            let (site, directory) = match inner.queue.next(now) {
                Step::Start { site, directory } => (site, directory),
                Step::Wait(until) => return NAP.min(Duration::from_secs(until.saturating_sub(now).max(1))),
                Step::Idle => return NAP,
            };
            let job = inner.job(&site, directory);
            // Failures are noted for all names, also where the order is for some.
            let names = inner.wanted.get(&site).map(Wanted::texts).unwrap_or_default();
            let bucket = inner.queue.bucket(directory);
            let (engines, old) = (Arc::clone(&inner.engines), inner.held.get(&site).and_then(Held::leaf));
            drop(inner);
            let Some(job) = job else {
                self.lock().queue.finished(&site);
                continue;
            };
            let (engine, manager) = (job.engine, Arc::clone(self));
            orders.spawn(async move {
                // Dropped with this task, and the order with it.
                let mut alone = JoinSet::new();
                alone.spawn(async move { manager.carry_out(job, engines, old, bucket).await });
                // A panic is the end of this order and of nothing else: its place in the queue is free again.
                let broke = || IssueError::new(Reason::Other, "The order ended by a fault of Tidegate: see what it wrote to standard error, and report it.");
                let ended = alone.join_next().await.and_then(Result::ok);
                let (engine, outcome) = ended.unwrap_or_else(|| (engine, Err(broke())));
                Ended { site, directory, engine, names, outcome }
            });
        }
        NAP
    }

    /// Starts looking at what handshakes wait for since the last time.
    fn take_up(self: &Arc<Self>, admitting: &mut JoinSet<Option<Arc<str>>>) {
        while admitting.len() < demand::ADMITTING_MAX
            && let Some(id) = self.demand.take()
        {
            admitting.spawn(Arc::clone(self).admit(id));
        }
    }

    /// Ends when no TXT record of an order stands any more: for the end of the process, after [`Manager::run`] was
    /// dropped.
    pub async fn cleaned(&self) {
        self.records.empty().await;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn engines(
    settings: &model::Acme,
    store: &Arc<dyn Store>,
    challenges: &Arc<Challenges>,
    records: &Arc<Ledger>,
) -> Result<Arc<Engines>, String> {
    if settings.directories.is_empty() {
        return Err("[acme] names no directory, so there is nobody to ask for certificates.".into());
    }
    if let (AcmeEngine::Simple, Some((setting, because))) = (settings.engine, settings.needs_managed()) {
        return Err(format!("[acme] engine = \"simple\" cannot do what `{setting}` asks for: {because}."));
    }
    let client = Client::new(settings.ca_file.as_deref())?;
    let dns = settings.dns.as_ref().map(|dns| Dns::new(dns, &client, records));
    let accounts = Arc::new(Accounts::new(client.clone(), Arc::clone(store), settings.email.clone()));
    Ok(Arc::new(Engines {
        simple: Simple::new(Arc::clone(&accounts), Arc::clone(challenges)),
        managed: Managed::new(accounts, Arc::clone(challenges), dns),
        renewal: RenewalInfo::new(client.clone()),
        client,
    }))
}

/// What the file of the authority holds that the CA's listener is trusted by.
fn authority(settings: &model::Acme) -> Option<Vec<u8>> {
    settings.ca_file.as_deref().and_then(|file| pem::read_text(file).ok()).map(|text| text.to_vec())
}

fn buckets(settings: &model::Acme, store: &dyn Store, now: u64) -> Vec<Bucket> {
    let of = |directory: &Directory| record::budget(store, &directory.url, settings.orders_per_3h, now);
    settings.directories.iter().map(of).collect()
}

/// Names as certificates write them.
fn texts(names: &[HostPattern]) -> Vec<String> {
    names.iter().map(host::written).collect()
}

/// A number that belongs to a site, the same in every process.
fn spread(site: &str) -> u64 {
    site.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

fn now() -> u64 {
    crate::base::clock::wall().as_secs()
}
