//! The manager: wants, holds, orders. One loop starts what the queue chooses; each order is a task of its own.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::http::Client;
use super::issuer::{IssueError, Issuer, Job, Reason};
use super::managed::{Managed, off};
use super::queue::{self, Bucket, Dice, Queue, Step};
use super::record::{self, Certificate, Failure, Held, Suggested};
use super::store::{Expect, FolderStore, Key, Kind, Lock, Store, StoreError};
use super::{CertificateStatus, Challenges, Wanted, canary};
use crate::base::clock;
use crate::config::model::{self, AcmeEngine, Directory, HostPattern};
use crate::tls::pem::Identity;

/// Longest sleep of the loop: the wall clock may be set meanwhile.
const NAP: Duration = Duration::from_secs(30);
/// How long a site's lock outlives us; longer than an order.
const LEASE: Duration = Duration::from_secs(600);
/// Renewal information is asked for at least twice a day (RFC 9773 section 4.3), and at most once a minute; seconds.
const ASK_MAX: u64 = 12 * 60 * 60;
const ASK_MIN: u64 = 60;
/// After an answer that could not be used; seconds.
const ASK_AFTER_ERROR: u64 = 60 * 60;
/// Longest pause a whole CA may ask for; seconds.
const HOLD_MAX: u64 = 3 * 60 * 60;
/// Most certificates asked about in one round.
const ASK_BATCH: usize = 32;

/// Gets certificates and keeps them.
pub struct Manager {
    store: Arc<dyn Store>,
    challenges: Arc<Challenges>,
    inner: Mutex<Inner>,
    wake: Notify,
}

struct Inner {
    settings: model::Acme,
    engine: Arc<Managed>,
    queue: Queue,
    dice: Dice,
    wanted: BTreeMap<Arc<str>, Wanted>,
    held: HashMap<Arc<str>, Held>,
    failures: HashMap<Arc<str>, Failure>,
    /// Places of certificates that could not be read, and why. Their sites are not ordered for.
    damaged: HashMap<Key, String>,
    /// Orders by how they ended: `issued`, or the word of a reason.
    ended: BTreeMap<&'static str, u64>,
}

/// How an order ended.
struct Ended {
    site: Arc<str>,
    directory: usize,
    names: Vec<String>,
    outcome: Result<Held, IssueError>,
}

impl Manager {
    /// Opens `<state>/acme` and reads it; never orders.
    ///
    /// Errors are sentences: the folder cannot be read or written, or the settings ask for what cannot be. A single
    /// damaged certificate is none: its site is reported by [`Manager::status`] and left alone.
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
        let engine = engine(settings, &store, &challenges)?;
        let now = now();
        let said = |e: StoreError| e.to_string();
        let (mut held, mut damaged) = (HashMap::new(), HashMap::new());
        for place in store.list(Kind::Certificate).map_err(said)? {
            match record::load(store.as_ref(), &place) {
                Ok(Some(found)) => drop(held.insert(Arc::clone(&found.record.site), found)),
                Ok(None) => {}
                Err(message) => {
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
        let dice = Dice::new(now ^ clock::micros() ^ u64::from(std::process::id()));
        let settings = settings.clone();
        let (wanted, ended) = (BTreeMap::new(), BTreeMap::new());
        let inner = Inner { settings, engine, queue, dice, wanted, held, failures, damaged, ended };
        Ok(Arc::new(Manager { store, challenges, inner: Mutex::new(inner), wake: Notify::new() }))
    }

    /// The full set of wanted certificates, after each reload; replaces the former.
    pub fn want(&self, wanted: Vec<Wanted>) {
        let mut inner = self.lock();
        let fresh: BTreeMap<_, _> = wanted.into_iter().map(|w| (Arc::clone(&w.site), w)).collect();
        let gone: Vec<_> = inner.wanted.keys().filter(|site| !fresh.contains_key(*site)).cloned().collect();
        for site in gone {
            inner.queue.remove(&site);
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

    /// Takes over changed settings. Errors: they ask for what cannot be; the old ones stay in force.
    pub fn reconfigure(&self, settings: &model::Acme) -> Result<(), String> {
        let mut inner = self.lock();
        if inner.settings == *settings {
            return Ok(());
        }
        inner.engine = engine(settings, &self.store, &self.challenges)?;
        let buckets = buckets(settings, self.store.as_ref(), now());
        inner.queue.reconfigure(buckets, settings.orders_per_3h, settings.concurrent);
        inner.settings = settings.clone();
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
        if !inner.queue.force(site) {
            return Err(format!("No certificate is kept for a site {site:?}. See `tidegate certs`."));
        }
        drop(inner);
        self.wake.notify_one();
        Ok(())
    }

    /// Every wanted certificate, by site.
    pub fn status(&self) -> Vec<CertificateStatus> {
        let inner = self.lock();
        let now = now();
        inner.wanted.values().map(|wanted| inner.describe(wanted, now)).collect()
    }

    /// Orders of this process by how they ended: `issued`, or the word of a reason.
    pub fn ended(&self) -> Vec<(&'static str, u64)> {
        self.lock().ended.iter().map(|(word, count)| (*word, *count)).collect()
    }

    /// The queue in its order with the earliest time of each, and the budget at each CA.
    pub fn plan(&self) -> serde_json::Value {
        let inner = self.lock();
        let now = now();
        let plan = inner.queue.plan(now).into_iter();
        let queue: Vec<_> =
            plan.map(|(site, earliest)| serde_json::json!({ "site": site, "earliest": earliest })).collect();
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
        let mut orders = JoinSet::new();
        let mut asking = Box::pin(Arc::clone(&self).ask_for_ever());
        loop {
            let nap = self.start(&mut orders);
            tokio::select! {
                Some(ended) = orders.join_next(), if !orders.is_empty() => {
                    let Ok(ended) = ended else { continue };
                    if let Some(site) = self.finish(ended).await {
                        changed(&site);
                    }
                }
                () = self.wake.notified() => {}
                () = tokio::time::sleep(nap) => {}
                () = &mut asking => {}
            }
        }
    }

    /// Starts what the queue chooses; says how long to sleep at most.
    fn start(self: &Arc<Self>, orders: &mut JoinSet<Ended>) -> Duration {
        loop {
            let mut inner = self.lock();
            let now = now();
            let (site, directory) = match inner.queue.next(now) {
                Step::Start { site, directory } => (site, directory),
                Step::Wait(until) => return NAP.min(Duration::from_secs(until.saturating_sub(now).max(1))),
                Step::Idle => return NAP,
            };
            let job = inner.job(&site, directory);
            let bucket = inner.queue.bucket(directory);
            let (engine, old) = (Arc::clone(&inner.engine), inner.held.get(&site).map(|h| h.version.clone()));
            drop(inner);
            let Some(job) = job else {
                self.lock().queue.finished(&site);
                continue;
            };
            let manager = Arc::clone(self);
            orders.spawn(async move {
                let outcome = manager.work(&job, engine, old, bucket).await;
                Ended { site, directory, names: job.names, outcome }
            });
        }
    }

    /// One order, from the site's lock to the stored certificate.
    async fn work(
        &self,
        job: &Job,
        engine: Arc<Managed>,
        old: Option<super::store::Version>,
        bucket: Option<Bucket>,
    ) -> Result<Held, IssueError> {
        if let Some(wildcard) = job.names.iter().find(|name| name.starts_with('*')) {
            let message = format!("{wildcard} needs a dns-01 challenge, which this version does not do.");
            return Err(IssueError::new(Reason::Rejected, message));
        }
        let (store, site, budget) =
            (Arc::clone(&self.store), Arc::clone(&job.site), Arc::clone(&job.directory.url));
        let place = Key::new(Kind::Certificate, &site);
        let (lock, found) = off({
            let (place, site) = (place.clone(), Arc::clone(&site));
            move || {
                let lock = store.lock(&format!("site {site}"), LEASE)?;
                // Written before every order: a store that cannot be written would lose what is ordered.
                store.save(&Key::new(Kind::Budget, &budget), &record::bytes(&bucket), &Expect::Any, None)?;
                Ok((lock, record::load(store.as_ref(), &place)))
            }
        })
        .await?;
        let Some(lock) = lock else {
            return Err(IssueError::new(
                Reason::Store,
                format!("Another process orders for {site} just now."),
            ));
        };
        let found = found.map_err(|e| IssueError::new(Reason::Store, e))?;
        let expect = match found {
            // Somebody else was faster: what lies there is taken, and nothing ordered.
            Some(found)
                if Some(&found.version) != old.as_ref()
                    && found.covers(&job.names)
                    && found.record.renew_at > now() =>
            {
                return Ok(found);
            }
            Some(found) => Expect::Is(found.version),
            None => Expect::Absent,
        };
        let issued = engine.issue(job).await?;
        let checked = canary::check(&issued.chain, &issued.key, &job.names, now())
            .map_err(|e| IssueError::new(Reason::Canary, e))?;
        let (not_before, not_after) = (checked.not_before, checked.identity.not_after);
        let record = Certificate {
            site: Arc::clone(&site),
            names: job.names.clone(),
            directory: Arc::clone(&job.directory.url),
            ca: Arc::clone(&job.directory.name),
            engine: engine.name().to_owned(),
            chain: issued.chain,
            key: issued.key.to_string(),
            issued_at: now(),
            not_before,
            not_after,
            suggested: None,
            renew_at: queue::renew_at(not_before, not_after, None, spread(&site)),
        };
        let lock: Arc<dyn Lock> = Arc::from(lock);
        let version = self.write(place, record::bytes(&record), expect, Some(lock)).await?;
        Held::new(record, version).map_err(|e| IssueError::new(Reason::Canary, e))
    }

    async fn write(
        &self,
        place: Key,
        bytes: zeroize::Zeroizing<Vec<u8>>,
        expect: Expect,
        lock: Option<Arc<dyn Lock>>,
    ) -> Result<super::store::Version, IssueError> {
        let store = Arc::clone(&self.store);
        off(move || store.save(&place, &bytes, &expect, lock.as_deref())).await
    }

    /// Takes note of how an order ended; the site, if it has a new certificate.
    async fn finish(&self, ended: Ended) -> Option<Arc<str>> {
        let Ended { site, directory, names, outcome } = ended;
        let place = Key::new(Kind::Failure, &site);
        let word = outcome.as_ref().map_or_else(|error| error.kind.word(), |_| "issued");
        *self.lock().ended.entry(word).or_default() += 1;
        match outcome {
            Ok(held) => {
                tracing::info!(%site, ca = %held.record.ca, not_after = held.record.not_after, "certificate issued");
                let had_failed = {
                    let mut inner = self.lock();
                    inner.held.insert(Arc::clone(&site), held);
                    let had_failed = inner.failures.remove(&site).is_some();
                    inner.queue.finished(&site);
                    inner.enqueue(&site);
                    had_failed
                };
                if had_failed {
                    let store = Arc::clone(&self.store);
                    if let Err(error) = off(move || store.delete(&place, &Expect::Any)).await {
                        tracing::warn!(%site, "{error}");
                    }
                }
                Some(site)
            }
            Err(error) => {
                tracing::warn!(%site, reason = error.kind.word(), "no certificate: {error}");
                let failure = self.lock().failed(&site, names, directory, &error);
                // In memory it holds in any case; a store that fails is told about by the next order.
                if let Err(error) = self.write(place, record::bytes(&failure), Expect::Any, None).await {
                    tracing::warn!(%site, "{error}");
                }
                None
            }
        }
    }

    /// Asks CAs when they want certificates renewed (RFC 9773), for ever.
    async fn ask_for_ever(self: Arc<Self>) {
        loop {
            for site in self.to_ask() {
                self.ask(&site).await;
            }
            tokio::time::sleep(NAP).await;
        }
    }

    fn to_ask(&self) -> Vec<Arc<str>> {
        let inner = self.lock();
        let now = now();
        // RFC 9773 section 4.3: not for what has expired.
        let due = |held: &&Held| held.ask_at <= now && held.record.not_after > now;
        let sites = inner.wanted.keys().filter(|site| inner.held.get(*site).as_ref().is_some_and(due));
        sites.take(ASK_BATCH).cloned().collect()
    }

    async fn ask(&self, site: &Arc<str>) {
        let (engine, directory, leaf) = {
            let mut inner = self.lock();
            let Some(held) = inner.held.get_mut(site) else { return };
            held.ask_at = now().saturating_add(ASK_MAX);
            let (url, leaf) = (Arc::clone(&held.record.directory), held.leaf());
            let directory = inner.settings.directories.iter().find(|d| d.url == url).cloned();
            (Arc::clone(&inner.engine), directory, leaf)
        };
        let (Some(directory), Some(leaf)) = (directory, leaf) else { return };
        let found = engine.suggest(&directory, &leaf).await;
        let write = {
            let mut inner = self.lock();
            let Inner { held, dice, .. } = &mut *inner;
            // A new certificate may have come meanwhile.
            let Some(held) = held.get_mut(site).filter(|held| held.leaf().as_ref() == Some(&leaf)) else {
                return;
            };
            let window = match found {
                Ok(Some(window)) => window,
                Ok(None) => return,
                Err(error) => {
                    held.ask_at = now().saturating_add(ASK_AFTER_ERROR);
                    tracing::debug!(%site, "no renewal information: {error}");
                    return;
                }
            };
            held.ask_at = now().saturating_add(window.ask_again.clamp(ASK_MIN, ASK_MAX));
            let same = held.record.suggested.is_some_and(|s| (s.start, s.end) == (window.start, window.end));
            if same {
                return;
            }
            let chosen = window.start + dice.below(window.end - window.start);
            held.record.suggested = Some(Suggested { start: window.start, end: window.end, chosen });
            let Certificate { not_before, not_after, .. } = held.record;
            held.record.renew_at = queue::renew_at(not_before, not_after, Some(chosen), spread(site));
            let write = (record::bytes(&held.record), held.version.clone());
            inner.enqueue(site);
            write
        };
        self.wake.notify_one();
        let place = Key::new(Kind::Certificate, site);
        match self.write(place, write.0, Expect::Is(write.1.clone()), None).await {
            Ok(version) => {
                if let Some(held) = self.lock().held.get_mut(site).filter(|held| held.version == write.1) {
                    held.version = version;
                }
            }
            // Asked for again after a restart; nothing is lost.
            Err(error) => tracing::debug!(%site, "{error}"),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Tells the queue what is known of a wanted site.
    fn enqueue(&mut self, site: &Arc<str>) {
        let Some(wanted) = self.wanted.get(site) else { return };
        if self.damaged.contains_key(&Key::new(Kind::Certificate, site)) {
            return;
        }
        let names = texts(&wanted.names);
        let lifetime = self.held.get(site).filter(|held| held.covers(&names)).map(Held::lifetime);
        let failure = self.failures.get(site).filter(|failure| failure.names == names);
        let (attempts, next_try) = failure.map_or((0, 0), |failure| (failure.attempts, failure.next_try));
        self.queue.put(site, lifetime, attempts, next_try, now());
    }

    fn job(&self, site: &Arc<str>, directory: usize) -> Option<Job> {
        let wanted = self.wanted.get(site)?;
        let directory = self.settings.directories.get(directory)?.clone();
        let attempts = self.failures.get(site).map_or(0, |failure| failure.attempts);
        let mut challenges = match wanted.challenge.is_empty() {
            true => self.settings.challenges.clone(),
            false => wanted.challenge.clone(),
        };
        // What failed may work another way: port 443 can end at a CDN while port 80 does not, or the reverse.
        let turn = usize::try_from(attempts).unwrap_or(0).checked_rem(challenges.len()).unwrap_or(0);
        challenges.rotate_left(turn);
        let held = self.held.get(site).filter(|held| held.record.directory == directory.url);
        Some(Job {
            site: Arc::clone(site),
            names: texts(&wanted.names),
            challenges,
            replaces: held.and_then(Held::leaf),
            profile: self.settings.profile.clone(),
            directory,
        })
    }

    fn failed(
        &mut self,
        site: &Arc<str>,
        names: Vec<String>,
        directory: usize,
        error: &IssueError,
    ) -> Failure {
        let before = self.failures.get(site).filter(|failure| failure.names == names);
        let attempts = before.map_or(0, |failure| failure.attempts).saturating_add(1);
        let next_try = queue::next_try(now(), attempts, error.retry_after, &mut self.dice);
        // The account's limit and a CA out of order concern every site; other limits are those of the name.
        let whole = error.kind == Reason::Network
            || (error.kind == Reason::RateLimited && error.message.contains("new orders"));
        if let Some(after) = error.retry_after.filter(|_| whole) {
            self.queue.hold(directory, now().saturating_add(after.as_secs().min(HOLD_MAX)));
        }
        let failure = Failure {
            site: Arc::clone(site),
            names,
            attempts,
            next_try,
            reason: error.kind.word().to_owned(),
            message: error.to_string(),
        };
        self.failures.insert(Arc::clone(site), failure.clone());
        self.queue.finished(site);
        self.enqueue(site);
        failure
    }

    fn describe(&self, wanted: &Wanted, now: u64) -> CertificateStatus {
        let names = texts(&wanted.names);
        let held = self.held.get(&wanted.site).filter(|held| held.covers(&names));
        let failure = self.failures.get(&wanted.site).filter(|failure| failure.names == names);
        let damage = self.damaged.get(&Key::new(Kind::Certificate, &wanted.site));
        let valid = held.is_some_and(|held| held.record.not_after > now);
        let due = held.is_some_and(|held| held.record.renew_at <= now);
        let state = match (self.queue.is_running(&wanted.site), damage.is_some() || failure.is_some()) {
            (true, _) => "ordering",
            (false, true) => "failed",
            (false, false) if valid && !due => "valid",
            (false, false) if valid => "due",
            (false, false) => "waiting",
        };
        let next = self.settings.directories.first().map(|d| Arc::clone(&d.name)).unwrap_or_default();
        CertificateStatus {
            site: Arc::clone(&wanted.site),
            names,
            issuer: self.engine.name(),
            ca: held.map_or(next, |held| Arc::clone(&held.record.ca)),
            not_after: held.map(|held| held.record.not_after),
            renew_at: held.map(|held| held.record.renew_at),
            state,
            last_error: damage.cloned().or_else(|| failure.map(|failure| failure.message.clone())),
            attempts: failure.map_or(0, |failure| failure.attempts),
            next_try: failure.map(|failure| failure.next_try),
        }
    }
}

fn engine(
    settings: &model::Acme,
    store: &Arc<dyn Store>,
    challenges: &Arc<Challenges>,
) -> Result<Arc<Managed>, String> {
    if settings.directories.is_empty() {
        return Err("[acme] names no directory, so there is nobody to ask for certificates.".into());
    }
    if settings.engine == AcmeEngine::Simple {
        return Err("[acme] engine = \"simple\" is not in this version. Leave the line out.".into());
    }
    if settings.dns.is_some() {
        return Err("[acme] dns: dns-01 is not in this version. Use tls-alpn-01 or http-01.".into());
    }
    let client = Client::new(settings.ca_file.as_deref())?;
    Ok(Arc::new(Managed::new(client, Arc::clone(store), Arc::clone(challenges), settings.email.clone())))
}

fn buckets(settings: &model::Acme, store: &dyn Store, now: u64) -> Vec<Bucket> {
    let of = |directory: &Directory| record::budget(store, &directory.url, settings.orders_per_3h, now);
    settings.directories.iter().map(of).collect()
}

/// Names as certificates write them.
fn texts(names: &[HostPattern]) -> Vec<String> {
    let text = |name: &HostPattern| match name {
        HostPattern::Exact(name) => name.to_string(),
        HostPattern::Wildcard(parent) => format!("*.{parent}"),
    };
    names.iter().map(text).collect()
}

/// A number that belongs to a site, the same in every process.
fn spread(site: &str) -> u64 {
    site.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

fn now() -> u64 {
    clock::wall().as_secs()
}
