//! Bans: clients that are turned away for a time, whatever they ask for.
//!
//! Three things ban: offences of a client (a [`Rule`] says how many, of which kind, for how long), a command, and a file
//! of networks. Bans by offences are looked up by a keyed hash in a bounded table without locks; networks in a tree that
//! is replaced whole. A `book::Book` behind a lock knows why and until when; only those who ban or ask for the list
//! come to it. While nobody is banned a look costs one load.
//!
//! *When full* the ban by offences that would end soonest gives way, never one by command or file. *Never banned*: trusted
//! proxies (who calls must see to that), loopback unless it is named itself, and by offences the addresses of well-known
//! content delivery networks.

mod book;
pub mod file;
mod nets;

#[cfg(test)]
mod tests;

use std::hash::Hasher;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use governor::clock::{Clock, MonotonicClock};
use ipnet::IpNet;

use crate::base::address::{ClientKey, canonical};
use crate::base::clock;
use crate::base::outcome::Outcome;
use crate::base::trust;
use crate::config::model::{self, Limit, LimitKey, Mode, Offence, Origin};
use crate::policy::rate_limit::{Fingerprint, Limiter, Table};
use book::Book;
use nets::Nets;

pub use book::{By, Entry, Key};

/// Places in the table for each ban: with so few of them taken, one set is full once in a million.
const PLACES: usize = 8;
/// Bytes of a reason.
pub const WHY_MAX: usize = 200;

/// Networks are banned.
const NETS: u8 = 1;
/// Clients are banned by offences.
const CLIENTS: u8 = 2;
/// Clients would be banned, if their rule were not in shadow.
const SHADOWED: u8 = 4;

/// Bans that are listed in one go.
const LISTED_AT_ONCE: usize = 256;

/// The bans of the process.
pub struct Bans<C: Clock = MonotonicClock> {
    table: Table<C>,
    nets: ArcSwap<Nets>,
    /// What a look needs to look at.
    active: AtomicU8,
    book: Mutex<Book>,
    given_way: AtomicU64,
}

/// What a look found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hit {
    /// How long it lasts; `None`: for ever.
    pub left: Option<Duration>,
    /// Whether it is enforced.
    pub mode: Mode,
    /// It was made by what the client did, and not by a person.
    pub by_offences: bool,
}

/// When clients are banned by what they do.
pub struct Rule<C: Clock = MonotonicClock> {
    limiter: Limiter<C>,
    offences: Box<[Offence]>,
    time: Duration,
    why: Arc<str>,
    /// Whether it refuses.
    pub mode: Mode,
    /// Where it holds.
    pub scope: Scope,
}

/// The bans, and what adds to them, as a snapshot has them.
#[derive(Clone)]
pub struct Watch {
    /// Who is banned.
    pub bans: Arc<Bans>,
    /// What bans a client from all sites.
    pub rule: Option<Arc<Rule>>,
}

/// Where a ban holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    /// The site; `None`: everywhere.
    pub site: Option<Arc<str>>,
    id: u64,
}

/// Who is banned, and for how long, by command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Which addresses.
    pub net: IpNet,
    /// How long.
    pub time: Duration,
    /// Why; shown by `tidegate bans`.
    pub why: String,
}

impl<C: Clock + Clone> Rule<C> {
    /// Compiles a rule, which counts offences in `buckets`. `site`: it holds there alone.
    pub fn compile(said: &model::BanRule, site: Option<&Arc<str>>, buckets: &Arc<Table<C>>) -> Rule<C> {
        let why = format!("{} offences in {:?}", said.after.count, said.after.per);
        let limit = Limit {
            text: Arc::from(why.as_str()),
            rate: said.after,
            burst: said.after.count,
            keys: vec![LimitKey::ClientIp],
            cost: 1,
            statuses: None,
            name: None,
            mode: said.mode,
            origin: Origin::Default,
        };
        let id = buckets.id(&("ban", site, &why));
        Rule {
            limiter: Limiter::compile(&limit, buckets, id),
            offences: said.offences.clone().into(),
            time: said.time,
            why: Arc::from(why),
            mode: said.mode,
            scope: Scope::of(site, buckets),
        }
    }
}

impl Scope {
    fn of<C: Clock>(site: Option<&Arc<str>>, table: &Table<C>) -> Scope {
        Scope { site: site.cloned(), id: site.map_or(0, |site| table.id(site)) }
    }
}

/// What kind of offence an ending is, if it is one.
pub fn offence(outcome: Outcome) -> Option<Offence> {
    match outcome {
        Outcome::RateLimited => Some(Offence::RateLimit),
        Outcome::AuthWrong => Some(Offence::Auth),
        Outcome::Patched => Some(Offence::Patch),
        Outcome::ClientFlood => Some(Offence::Flood),
        Outcome::BadRequest | Outcome::BadHost | Outcome::BadPath | Outcome::BadFraming => {
            Some(Offence::BadRequest)
        }
        _ => None,
    }
}

impl Bans {
    /// No bans, and room for `entries` by offences and commands.
    pub fn new(entries: usize) -> Bans {
        Bans::with_clock(entries, MonotonicClock)
    }
}

impl<C: Clock> Bans<C> {
    /// As [`Bans::new`], with a clock of one's own.
    pub fn with_clock(entries: usize, clock: C) -> Bans<C> {
        Bans {
            table: Table::with_clock(entries.saturating_mul(PLACES), clock),
            nets: ArcSwap::default(),
            active: AtomicU8::new(0),
            book: Mutex::new(Book::new(entries)),
            given_way: AtomicU64::new(0),
        }
    }

    /// Whether a client is banned, everywhere or (where a scope is given) at one site. What is enforced counts before
    /// what is in shadow.
    pub fn look(&self, client: IpAddr, scope: Option<&Scope>) -> Option<Hit> {
        let active = self.active.load(Ordering::Relaxed);
        if active == 0 {
            return None;
        }
        let (client, now) = (canonical(client), self.table.now_ns());
        let everywhere = Scope::default();
        let scopes = || std::iter::once(&everywhere).chain(scope);
        let hit = |mode| {
            let until = scopes().map(|scope| self.until(scope.id, client, mode)).max()?;
            (until > now).then(|| Hit {
                left: Some(Duration::from_nanos(until - now)),
                mode,
                by_offences: true,
            })
        };
        let net = || if active & NETS != 0 { self.nets.load().look(client, now) } else { None };
        let enforced = if active & CLIENTS != 0 { hit(Mode::Enforce) } else { None };
        let enforced = enforced.or_else(net);
        let shadow = || if active & SHADOWED != 0 { hit(Mode::Shadow) } else { None };
        match enforced {
            Some(Hit { mode: Mode::Shadow, .. }) | None => enforced.or_else(shadow),
            enforced => enforced,
        }
    }

    /// Counts an offence. Says whether the client is banned for it from now on.
    pub fn offend(&self, rule: &Rule<C>, client: IpAddr, offence: Offence) -> bool
    where
        C: Clone,
    {
        let client = canonical(client);
        if !rule.offences.contains(&offence) || client.is_loopback() {
            return false;
        }
        let verdict = rule.limiter.check_client(ClientKey::of(client));
        if verdict.allowed && verdict.remaining > 0 {
            return false;
        }
        let now = self.table.now_ns();
        // Behind a well-known proxy there are many: who offends is not known, and all would be banned.
        if self.until(rule.scope.id, client, rule.mode) > now || trust::name_of(client).is_some() {
            return false;
        }
        let key = Key { net: net_of(client), site: rule.scope.site.clone(), mode: rule.mode };
        // A person's word is not made shorter by what is done against it.
        if self.lock().is_commanded(&key, now) {
            return false;
        }
        let entry = Entry {
            until_ns: now.saturating_add(nanos(rule.time)),
            since: clock::wall().as_secs(),
            by: By::Offences,
            why: format!("{}, the last: {}", rule.why, offence.as_str()),
            scope: rule.scope.id,
        };
        self.enter(key, entry).is_ok()
    }

    /// Bans by command. What is there for the same network is replaced.
    ///
    /// # Errors
    /// A sentence when there is no room.
    pub fn ban(&self, order: Order) -> Result<(), String> {
        let key = Key { net: order.net, site: None, mode: Mode::Enforce };
        let entry = Entry {
            until_ns: self.table.now_ns().saturating_add(nanos(order.time)),
            since: clock::wall().as_secs(),
            by: By::Command,
            why: order.why,
            scope: 0,
        };
        self.enter(key, entry)
    }

    /// Ends all bans of exactly this network that are not of the file, at whatever site; says how many there were.
    pub fn unban(&self, net: IpNet) -> usize {
        let mut book = self.lock();
        let found: Vec<Key> = book.of(net).cloned().collect();
        for key in &found {
            if let Some(entry) = book.remove(key) {
                self.forget(key, &entry);
            }
        }
        self.refresh(&book);
        found.len()
    }

    /// Takes over what a file says now.
    pub fn take_file(&self, nets: Vec<file::Line>, mode: Mode) {
        let mut book = self.lock();
        if book.said == nets && book.file_mode == mode {
            return;
        }
        let now = self.table.now_ns();
        let wall = clock::wall().as_secs();
        let lasting = nets.iter().filter_map(|line| {
            let until = match line.until {
                None => u64::MAX,
                Some(until) if until <= wall => return None,
                Some(until) => now.saturating_add(nanos(Duration::from_secs(until - wall))),
            };
            Some((line.net, until))
        });
        book.file = lasting.collect();
        (book.said, book.file_mode) = (nets, mode);
        self.refresh(&book);
    }

    /// Ends what is over. Says whether the book changed since this was last called: it is then to be stored.
    pub fn sweep(&self) -> bool {
        let mut book = self.lock();
        let now = self.table.now_ns();
        let mut of_command = false;
        for key in &book.over(now) {
            of_command |= book.remove(key).is_some_and(|entry| entry.by == By::Command);
        }
        if book.end_of_file(now) || of_command {
            self.refresh(&book);
        } else {
            self.activate(&book);
        }
        std::mem::take(&mut book.dirty)
    }

    /// Every ban of the book, with how long it lasts.
    pub fn list(&self) -> Vec<(Key, Entry, Duration)> {
        let now = self.table.now_ns();
        let left = |entry: &Entry| Duration::from_nanos(entry.until_ns.saturating_sub(now));
        let mut all: Vec<(Key, Entry)> = Vec::new();
        loop {
            // Some at a time: who offends meanwhile is banned meanwhile.
            let before = all.len();
            let book = self.lock();
            let some: Vec<_> = book.after(all.last().map(|(key, _)| key)).take(LISTED_AT_ONCE).collect();
            all.extend(some.into_iter().map(|(key, entry)| (key.clone(), entry.clone())));
            if all.len() == before {
                break;
            }
        }
        let lasting = all.into_iter().filter(|(_, entry)| entry.until_ns > now);
        let with_left = |(key, entry): (Key, Entry)| {
            let left = left(&entry);
            (key, entry, left)
        };
        lasting.map(with_left).collect()
    }

    /// Networks that the file bans.
    pub fn in_file(&self) -> usize {
        self.lock().file.len()
    }

    /// How many bans the book has.
    pub fn len(&self) -> usize {
        let book = self.lock();
        book.count(By::Offences) + book.count(By::Command)
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many bans there are, by what made them.
    pub fn count(&self, by: By) -> usize {
        self.lock().count(by)
    }

    /// How many bans gave way to others because there was no room.
    pub fn given_way(&self) -> u64 {
        self.given_way.load(Ordering::Relaxed)
    }

    /// Takes in a ban that was stored. `scope_of` gives the number of a site.
    pub fn restore(&self, key: Key, mut entry: Entry, left: Duration, buckets: &Table<C>) {
        entry.until_ns = self.table.now_ns().saturating_add(nanos(left));
        entry.scope = Scope::of(key.site.as_ref(), buckets).id;
        let _ = self.enter(key, entry);
        self.lock().dirty = false;
    }

    fn enter(&self, key: Key, entry: Entry) -> Result<(), String> {
        let mut book = self.lock();
        if !book.has_room(&key) {
            let soonest = book.soonest();
            let Some(soonest) = soonest else {
                self.given_way.fetch_add(1, Ordering::Relaxed);
                return Err("there is no room for another ban: end some, or raise `entries` in [bans]".into());
            };
            if let Some(gone) = book.remove(&soonest) {
                self.forget(&soonest, &gone);
            }
            self.given_way.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(before) = book.remove(&key) {
            self.forget(&key, &before);
        }
        if entry.by == By::Offences {
            self.set(self.fingerprint(entry.scope, key.net.addr(), key.mode), entry.until_ns);
        }
        let of_command = entry.by == By::Command;
        book.insert(key, entry);
        // The tree is rebuilt for commands alone: offences come by the thousand.
        if of_command {
            self.refresh(&book);
        } else {
            self.activate(&book);
        }
        Ok(())
    }

    fn forget(&self, key: &Key, entry: &Entry) {
        if entry.by == By::Offences {
            // A moment that has passed is no ban.
            self.set(self.fingerprint(entry.scope, key.net.addr(), key.mode), 1);
        }
    }

    fn refresh(&self, book: &Book) {
        self.nets.store(Arc::new(Nets::build(book)));
        self.activate(book);
    }

    fn activate(&self, book: &Book) {
        let flag = |on: bool, bit: u8| if on { bit } else { 0 };
        let (clients, shadowed) = book.by_offences();
        let nets = flag(!self.nets.load().is_empty(), NETS);
        self.active.store(nets | flag(clients, CLIENTS) | flag(shadowed, SHADOWED), Ordering::Relaxed);
    }

    fn fingerprint(&self, scope: u64, client: IpAddr, mode: Mode) -> Fingerprint {
        self.table.fingerprint(|hasher| {
            hasher.write_u64(scope);
            hasher.write_u8(u8::from(mode == Mode::Shadow));
            hasher.write_u128(ClientKey::of(client).0);
        })
    }

    fn until(&self, scope: u64, client: IpAddr, mode: Mode) -> u64 {
        self.table.moment(self.fingerprint(scope, client, mode))
    }

    fn set(&self, place: Fingerprint, until_ns: u64) {
        self.table.set_moment(place, until_ns);
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one client is banned as: its address, of IPv6 its /64.
pub fn net_of(client: IpAddr) -> IpNet {
    let length = if client.is_ipv4() { 32 } else { 64 };
    IpNet::new(client, length).map_or(IpNet::from(client), |net| net.trunc())
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
