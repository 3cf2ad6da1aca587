//! What outlives a snapshot: endpoints with their state, the traffic of services, buckets of the limits, certificates already parsed, ticket
//! keys, counters. A reload builds a new snapshot around the same residents, so nothing that was learnt is lost.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use rustls::ClientConfig;
use rustls::server::ProducesTickets;

use crate::base::clock;
use crate::config::look::{self, Look, Stamp};
use crate::config::model::{self, Acme, BanRule, HostPattern, Http, Limit, LimitKey, Origin, Tls, Upstream};
use crate::discovery::Sets;
use crate::policy::auth;
use crate::policy::ban::{self, Bans};
use crate::policy::bandwidth::{Lane, Lanes};
use crate::policy::doctor::Doctor;
use crate::policy::hsts::Hsts;
use crate::policy::observe::Watch;
use crate::policy::patch::Guard;
use crate::policy::patch::counts::Counts;
use crate::policy::patch::shelf::{InForce, Shelf};
use crate::policy::rate_limit::{self, Limiter, Rule};
use crate::policy::shadow::WouldBlock;
use crate::policy::share::Tenants;
use crate::policy::site_limit::Places;
use crate::snapshot::hsts_since::Since;
use crate::snapshot::lists::Lists;
use crate::snapshot::{Site, sticky_key};
use crate::telemetry::hub::Hub;
use crate::tls;
use crate::tls::acme::{Challenges, Manager};
use crate::tls::internal_ca::InternalCa;
use crate::tls::pem::Identity;
use crate::tls::policy::{self, Policy};
use crate::upstream::Ledger;
use crate::upstream::registry::Registry;

/// Certificates of the internal CA are issued anew when less than this is left, in seconds: 30 of their 90 days.
const RENEW_BEFORE: u64 = 30 * 24 * 3600;

/// The residents of the process.
pub struct Residents {
    /// Metrics.
    pub hub: Arc<Hub>,
    /// Endpoints by service and address.
    pub endpoints: Registry,
    /// What sources of endpoints found last.
    pub sets: Sets,
    /// Networks with names, countries.
    pub lists: Lists,
    /// The CA for names that no public CA would sign.
    pub ca: InternalCa,
    /// Who owns sites.
    pub tenants: Tenants,
    /// Certificates from ACME authorities.
    pub acme: Automatic,
    /// Finds out when addresses are not those of clients.
    pub doctor: Arc<Doctor>,
    /// What is watched for `tidegate suggest`.
    pub watch: Arc<Watch>,
    /// Virtual patches: the packs that were good last, and what rules matched.
    pub patches: Patches,
    /// Who is banned.
    pub bans: Arc<Bans>,
    /// Encrypts session tickets; kept, so that a reload does not end resumption.
    pub ticketer: Arc<dyn ProducesTickets>,
    buckets: Arc<rate_limit::Table>,
    limiters: Mutex<Limiters>,
    issued: Mutex<HashMap<Vec<HostPattern>, Arc<Identity>>>,
    /// What the internal CA issued to be shown to backends.
    shown: Mutex<Option<Arc<Identity>>>,
    files: Mutex<HashMap<Pair, FromFiles>>,
    clients: Mutex<HashMap<Toward, Arc<ClientConfig>>>,
    policies: Mutex<HashMap<(Hash, Hash), Arc<Policy>>>,
    places: Mutex<HashMap<Arc<str>, Arc<Places>>>,
    ledgers: Mutex<HashMap<Arc<str>, Arc<Ledger>>>,
    would_block: Mutex<HashMap<Arc<str>, Arc<WouldBlock>>>,
    /// What was found out about users, and who computes hashes.
    pub auth: Arc<auth::Shared>,
    hsts_since: Since,
}

/// What is known about virtual patches.
#[derive(Default)]
pub struct Patches {
    /// The packs that were good last.
    pub shelf: Shelf,
    /// What rules matched.
    pub counts: Counts,
    /// What the last load put in force.
    pub in_force: ArcSwapOption<InForce>,
    /// The folder of copies of packs that were good last, once a process serves with them.
    pub copies: OnceLock<PathBuf>,
}

/// The one manager of automatic certificates, opened when `[acme]` is first seen and then kept for the life of the
/// process; the answers to challenges, which workers read, exist from the start.
pub struct Automatic {
    /// Answers to challenges.
    pub challenges: Arc<Challenges>,
    state: PathBuf,
    manager: ArcSwapOption<Manager>,
    /// Serialises opening.
    opening: Mutex<()>,
}

impl Automatic {
    fn new(state: &std::path::Path) -> Automatic {
        Automatic {
            challenges: Challenges::new(),
            state: state.to_path_buf(),
            manager: ArcSwapOption::empty(),
            opening: Mutex::default(),
        }
    }

    /// The manager, if `[acme]` was there once.
    pub fn manager(&self) -> Option<Arc<Manager>> {
        self.manager.load_full()
    }

    /// Opens the manager, or gives it the settings in force. `None` changes nothing: whose sites are gone is then
    /// wanted by none.
    ///
    /// # Errors
    /// Sentences when the store cannot be opened, or the settings ask for what cannot be. It is tried again with the
    /// next call.
    pub fn configure(&self, settings: Option<&Acme>) -> Result<(), String> {
        let Some(settings) = settings else { return Ok(()) };
        let _one = lock(&self.opening);
        match self.manager() {
            Some(manager) => manager
                .reconfigure(settings)
                .map_err(|why| format!("{why} The former settings of [acme] stay in force.")),
            None => {
                let opened = Manager::open(settings, &self.state, self.challenges.clone());
                let manager = opened.map_err(|why| {
                    format!(
                        "automatic certificates are off: {why} Sites that wait for one refuse handshakes; the next \
                         reload tries again."
                    )
                })?;
                self.manager.store(Some(manager));
                Ok(())
            }
        }
    }
}

/// Whose buckets they are (a site, or a tenant), route, text of the limit, and what one request takes.
type LimiterKey = (Whose, Arc<str>, Arc<str>, u32);

/// Whose buckets a limit has.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Whose {
    Site(Arc<str>),
    Tenant(Arc<str>),
}

/// Certificate and key files.
type Pair = (PathBuf, PathBuf);

/// What a pair of files held, and how they looked before they were read.
type FromFiles = (Arc<Identity>, Option<(Stamp, Stamp)>);

/// A CA file and the hash of its content; `None` is the system's roots.
pub type Authority = Option<(PathBuf, Hash)>;

/// What settings towards backends are made from: whom they trust, and the hash of the certificate they show.
type Toward = (Authority, Option<Hash>, Http);

type Hash = [u8; 32];

#[derive(Default)]
struct Limiters {
    /// By site or tenant, route (empty for the site's own) and text: the same limit keeps its buckets over a reload.
    known: HashMap<LimiterKey, Arc<Limiter>>,
}

impl Residents {
    /// Residents of a new process. Its `limit_entries` bounds the buckets of all limits together.
    ///
    /// # Errors
    /// A sentence when the internal CA or the ticket keys cannot be had.
    pub fn new(hub: Arc<Hub>, server: &model::Server) -> Result<Residents, String> {
        let (state, entries) = (&*server.state, (server.limit_entries, server.bans.entries));
        let ca = InternalCa::open(state)?;
        let endpoints = Registry::with_secret(sticky_key::open(state)?);
        Residents::with(hub, ca, endpoints, state, entries)
    }

    /// Residents for looking at a configuration without running it: nothing touches the disk.
    ///
    /// # Errors
    /// A sentence when keys cannot be made.
    pub fn for_check() -> Result<Residents, String> {
        // One limit entry: nothing is counted.
        Residents::with(
            Hub::new(1),
            InternalCa::ephemeral()?,
            Registry::new(),
            std::path::Path::new(""),
            (1, 1),
        )
    }

    fn with(
        hub: Arc<Hub>,
        ca: InternalCa,
        endpoints: Registry,
        state: &std::path::Path,
        (limit_entries, ban_entries): (usize, usize),
    ) -> Result<Residents, String> {
        Ok(Residents {
            hub,
            endpoints,
            sets: Sets::default(),
            lists: Lists::default(),
            tenants: Tenants::default(),
            ca,
            acme: Automatic::new(state),
            doctor: Arc::default(),
            watch: Arc::default(),
            bans: Arc::new(Bans::new(ban_entries)),
            ticketer: tls::server::ticketer()?,
            buckets: Arc::new(rate_limit::Table::new(limit_entries)),
            limiters: Mutex::default(),
            issued: Mutex::default(),
            shown: Mutex::default(),
            files: Mutex::default(),
            clients: Mutex::default(),
            policies: Mutex::default(),
            places: Mutex::default(),
            ledgers: Mutex::default(),
            would_block: Mutex::default(),
            auth: Arc::new(auth::Shared::new()?),
            hsts_since: if state.as_os_str().is_empty() { Since::default() } else { Since::open(state) },
            patches: Patches::default(),
        })
    }

    /// A limit of a site or route; its limiter is the same one as long as its text stays, whatever its mode. Limits of a
    /// tenant, and limits of a site that have a name, share their buckets with those of the same text.
    pub fn limit(&self, site: &model::Site, route: &Arc<str>, limit: &Limit) -> Rule {
        let of_tenant = limit.keys.contains(&LimitKey::Tenant);
        let whose =
            if of_tenant { Whose::Tenant(site.tenant.clone()) } else { Whose::Site(site.name.clone()) };
        let route = if of_tenant || limit.name.is_some() { Arc::from("") } else { route.clone() };
        let key = (whose, route, limit.text.clone(), limit.cost);
        let mut limiters = lock(&self.limiters);
        let limiter = limiters.known.get(&key).cloned().unwrap_or_else(|| {
            let id = self.buckets.id(&(&key.0, &key.1, &key.2));
            let limiter = Arc::new(Limiter::compile(limit, &self.buckets, id));
            limiters.known.insert(key, limiter.clone());
            limiter
        });
        Rule { limiter, mode: limit.mode, statuses: limit.statuses.clone() }
    }

    /// What bans clients from a site, or from all.
    pub fn ban_rule(&self, said: &BanRule, site: Option<&Arc<str>>) -> ban::Rule {
        ban::Rule::compile(said, site, &self.buckets)
    }

    /// Takes in a ban that was stored.
    pub fn restore_ban(&self, key: ban::Key, entry: ban::Entry, left: Duration) {
        self.bans.restore(key, entry, left, &self.buckets);
    }

    /// The bandwidth limits of a route, its site's among them. Their buckets stay as long as their text does.
    pub fn lanes(&self, site: &model::Site, route: &model::Route) -> Option<Box<Lanes>> {
        let lane = |flow: &model::Flow, mode, up: bool, route: &str| {
            let tenant = flow.keys.contains(&LimitKey::Tenant);
            let (whose, route) = if tenant { (&site.tenant, "") } else { (&site.name, route) };
            let id = self.buckets.id(&("bandwidth", tenant, whose, route, up, &flow.text));
            Arc::new(Lane::compile(flow, mode, &self.buckets, id))
        };
        let both = |up: bool, of_site: &[model::Flow], of_route: &[model::Flow]| {
            let of_site = of_site.iter().map(|flow| lane(flow, site.bandwidth.mode, up, ""));
            let of_route = of_route.iter().map(|flow| lane(flow, route.bandwidth.mode, up, &route.label));
            of_site.chain(of_route).collect::<Vec<_>>()
        };
        let down = both(false, &site.bandwidth.down, &route.bandwidth.down);
        let up = both(true, &site.bandwidth.up, &route.bandwidth.up);
        (!down.is_empty() || !up.is_empty()).then(|| Box::new(Lanes { down, up }))
    }

    /// A certificate of the internal CA for these names; issued when there is none or it grows old.
    ///
    /// # Errors
    /// A sentence from the CA.
    pub fn internal_identity(&self, names: &[HostPattern]) -> Result<Arc<Identity>, String> {
        if let Some(known) = lock(&self.issued).get(names).filter(|known| !self.due(known)) {
            return Ok(known.clone());
        }
        let identity = Arc::new(self.ca.issue(names)?);
        lock(&self.issued).insert(names.to_vec(), identity.clone());
        Ok(identity)
    }

    /// The certificate of the internal CA that is shown to backends; issued when there is none or it grows old.
    ///
    /// # Errors
    /// A sentence from the CA.
    pub fn internal_client(&self) -> Result<Arc<Identity>, String> {
        let mut shown = lock(&self.shown);
        if let Some(known) = shown.as_ref().filter(|known| !self.due(known)) {
            return Ok(known.clone());
        }
        let identity = Arc::new(self.ca.issue_client()?);
        *shown = Some(identity.clone());
        Ok(identity)
    }

    /// Whether the certificate shown to backends is to be issued anew.
    pub fn internal_client_due(&self) -> bool {
        lock(&self.shown).as_ref().is_some_and(|known| self.due(known))
    }

    /// Whether a certificate of the internal CA is to be issued anew. Not when the new one would end no later: the CA
    /// itself ends then.
    pub fn due(&self, identity: &Identity) -> bool {
        identity.not_after <= clock::wall().as_secs().saturating_add(RENEW_BEFORE)
            && identity.not_after < self.ca.not_after()
    }

    /// A certificate from PEM files; read again only when they look changed, parsed again only when their bytes did.
    ///
    /// # Errors
    /// What is wrong with which of the files.
    pub fn file_identity(
        &self,
        cert: PathBuf,
        key: PathBuf,
        seen: Option<&Look>,
    ) -> Result<Arc<Identity>, tls::pem::PemError> {
        let stamp = |file: &Path| match seen.filter(|look| look.knows(file)) {
            Some(look) => look.at_rest(file),
            None => look::at_rest(file),
        };
        let stamps = stamp(&cert).zip(stamp(&key));
        let pair = (cert, key);
        let known = lock(&self.files).get(&pair).cloned();
        if let Some((known, read)) = &known
            && let (Some(now), Some(then)) = (stamps, read)
            && now.0.same_bytes(&then.0)
            && now.1.same_bytes(&then.1)
        {
            return Ok(known.clone());
        }
        let same = |known: &Identity| tls::pem::fingerprint(&pair.0, &pair.1) == Some(known.fingerprint);
        let identity = match known {
            Some((known, _)) if same(&known) => known,
            _ => Arc::new(tls::pem::load(&pair.0, &pair.1)?),
        };
        lock(&self.files).insert(pair, (identity.clone(), stamps));
        Ok(identity)
    }

    /// Has certificates read again by the next reload, however their files look: some file systems tell no times that are
    /// worth anything, and whoever asks for a reload may know better.
    pub fn doubt_files(&self) {
        lock(&self.files).values_mut().for_each(|(_, stamps)| *stamps = None);
    }

    /// How to speak TLS to backends: one for each content of a CA file, each certificate shown and each protocol, so that
    /// pooled connections can be shared, and never by services that show different certificates.
    ///
    /// # Errors
    /// Where the setting stands and what is wrong with it.
    pub fn client_config(
        &self,
        upstream: &Upstream,
        ca: Authority,
        identity: Option<&Identity>,
    ) -> Result<Arc<ClientConfig>, (Origin, String)> {
        let key = (ca, identity.map(|identity| identity.fingerprint), upstream.http);
        if let Some(known) = lock(&self.clients).get(&key) {
            return Ok(known.clone());
        }
        let config = tls::client::client_config(upstream, identity, self.ca.certificate())?;
        lock(&self.clients).insert(key, config.clone());
        Ok(config)
    }

    /// A TLS policy: one for all sites that say the same and whose files hold the same.
    ///
    /// # Errors
    /// Where the blame lies, what is wrong, what to do.
    pub fn policy(
        &self,
        said: &Tls,
        files: Option<&policy::Files>,
    ) -> Result<Arc<Policy>, (Origin, String, String)> {
        // Both what is written and what the files hold: policies that decide alike but were said in different places
        // are two values.
        let key = (policy::key(said, None), policy::key(said, files));
        if let Some(known) = lock(&self.policies).get(&key) {
            return Ok(known.clone());
        }
        let policy = Arc::new(Policy::compile(said, files)?);
        lock(&self.policies).insert(key, policy.clone());
        Ok(policy)
    }

    /// The open connections of a site.
    pub fn places(&self, site: &Arc<str>) -> Arc<Places> {
        lock(&self.places).entry(site.clone()).or_default().clone()
    }

    /// What virtual patches look for at these sites.
    pub fn guard(&self, server: &model::Server, sites: &[Arc<Site>]) -> Option<Arc<Guard>> {
        let (settings, in_force) = (server.patches.as_ref()?, self.patches.in_force.load_full()?);
        let sites = sites.iter().map(|site| (&site.name, &site.patches));
        Some(Arc::new(Guard::new(in_force, settings, &self.patches.counts, sites)))
    }

    /// What the policies of a site would have refused.
    pub fn would_block(&self, site: &Arc<str>) -> Arc<WouldBlock> {
        lock(&self.would_block).entry(site.clone()).or_default().clone()
    }

    /// What browsers are told about HTTPS, counted from when the site began to.
    pub fn hsts(&self, site: &model::Site) -> Option<Hsts> {
        match &site.hsts {
            Some(said) => Some(Hsts::compile(said, self.hsts_since.of(&site.name, clock::wall().as_secs()))),
            None => {
                self.hsts_since.forget(&site.name);
                None
            }
        }
    }

    /// Writes down when sites turned HSTS on, where that changed.
    pub fn save_hsts(&self) {
        self.hsts_since.save();
    }

    /// What is known about the traffic of a service.
    pub fn ledger(&self, service: &Arc<str>) -> Arc<Ledger> {
        lock(&self.ledgers).entry(service.clone()).or_default().clone()
    }

    /// Forgets what nothing uses any more. Called after each swap.
    pub fn sweep(&self) {
        lock(&self.limiters).known.retain(|_, limiter| Arc::strong_count(limiter) > 1);
        lock(&self.issued).retain(|_, identity| Arc::strong_count(identity) > 1);
        lock(&self.files).retain(|_, (identity, _)| Arc::strong_count(identity) > 1);
        lock(&self.clients).retain(|_, config| Arc::strong_count(config) > 1);
        lock(&self.policies).retain(|_, policy| Arc::strong_count(policy) > 1);
        lock(&self.places).retain(|_, places| Arc::strong_count(places) > 1);
        lock(&self.ledgers).retain(|_, ledger| Arc::strong_count(ledger) > 1);
        lock(&self.would_block).retain(|_, counts| Arc::strong_count(counts) > 1);
        self.save_hsts();
        self.endpoints.sweep();
        self.tenants.sweep();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
