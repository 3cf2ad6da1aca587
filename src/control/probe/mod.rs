//! Asks endpoints how they are: what is asked is `health` of their service, how in `ask`.
//!
//! There is one set of probes for the process, so that all workers go by one verdict. Endpoints of several services that
//! have the same address, are reached in the same way and are asked the same question are asked once, and all hear the
//! answer: a site with twenty routes to its backends asks each of them once. The probes follow the snapshot, and one
//! whose question is the same over a reload goes on counting where it was, at the time it was due anyway.
//!
//! When is decided by [`Schedule`], what an answer means by [`Streak`].

mod ask;
mod judge;

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::task::JoinSet;

use crate::base::address::EndpointAddress;
use crate::base::clock::{self, Millis};
use crate::base::gentle;
use crate::config::model::{self, Check, Http, ProxyHeader};
use crate::control::Control;
use crate::discovery::Member;
use crate::net::timer::Wheel;
use crate::snapshot::{Service, Site, Snapshot};
use crate::upstream::endpoint::Checked;
use crate::upstream::health::active::{Found, Streak, phase};
use crate::upstream::health::schedule::Schedule;
use crate::upstream::{Endpoint, Health, Weighted};
use judge::Pattern;

/// How often the probes are compared with the snapshot.
const FOLLOW: Duration = Duration::from_millis(100);

/// Probes under way at once. Half of the descriptors that are kept for the control plane: a third of a thousand endpoints
/// may be silent until the default deadline of 2 s and all are still asked every 5 s.
pub const UNDER_WAY_MAX: usize = 128;

/// What was probed, for the metrics.
#[derive(Debug, Default)]
pub struct Counts {
    /// Good answers.
    pub well: AtomicU64,
    /// All others.
    pub ill: AtomicU64,
    /// Probes under way.
    pub under_way: AtomicU64,
}

/// Whom to ask what, and how. Two that are equal are one.
#[derive(Clone)]
pub struct Question {
    /// Who is asked.
    address: EndpointAddress,
    /// What its source calls it: another container with the same address is another one.
    name: Box<str>,
    /// It is where requests go, too: that it cannot be connected to means that they could not either.
    direct: bool,
    health: Arc<model::Health>,
    host: String,
    http: Http,
    proxy_protocol: Option<ProxyHeader>,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

impl Question {
    fn of(site: &Site, service: &Service, index: usize, health: &Arc<model::Health>) -> Option<Question> {
        let endpoint = &service.core.endpoints.get(index)?.endpoint;
        let address = endpoint.address.moved(health.address.as_deref(), health.port);
        let host = match &health.check {
            Check::Http(check) => check.host.clone(),
            Check::Tcp | Check::Grpc { .. } => None,
        };
        let name = service.server_names.get(index).and_then(Option::as_ref);
        Some(Question {
            direct: address == endpoint.address,
            address,
            name: endpoint.name.clone(),
            health: health.clone(),
            host: host.unwrap_or_else(|| site.name.to_string()),
            http: service.core.http,
            proxy_protocol: service.core.proxy_protocol,
            tls: service.tls.clone().zip(name.cloned()),
        })
    }

    /// The settings towards backends are shared by whoever has the same; that they are the same value says enough.
    fn tls(&self) -> Option<(*const ClientConfig, &ServerName<'static>)> {
        self.tls.as_ref().map(|(config, name)| (Arc::as_ptr(config), name))
    }

    /// As in `GET /up` and `GET /up at 10.0.0.1:9000`.
    fn asked(&self) -> String {
        let what = match &self.health.check {
            Check::Http(check) => format!("{} {}", if check.head { "HEAD" } else { "GET" }, check.path),
            Check::Tcp => "connecting".to_owned(),
            Check::Grpc { service } if service.is_empty() => "gRPC Health/Check".to_owned(),
            Check::Grpc { service } => format!("gRPC Health/Check of {service}"),
        };
        if self.direct { what } else { format!("{what} at {}", self.address) }
    }
}

/// How one endpoint is asked outside of the rounds: for who wants to know whether it could serve.
#[derive(Clone)]
pub struct Asking {
    question: Arc<Question>,
    pattern: Option<Arc<Pattern>>,
}

impl PartialEq for Asking {
    fn eq(&self, other: &Asking) -> bool {
        self.question == other.question
    }
}

impl Eq for Asking {}

/// How an endpoint of a service is asked: as its `health` says, or by connecting where it says nothing.
pub fn asking(site: &Site, service: &Service, member: &Member) -> Option<Asking> {
    let is_it = |one: &Weighted| one.endpoint.address == member.address;
    let index = service.core.endpoints.iter().position(is_it)?;
    let health = service.core.health.clone().unwrap_or_else(|| Arc::new(model::Health::connecting()));
    let question = Question::of(site, service, index, &health)?;
    Some(Asking { pattern: Pattern::of(&health.check).map(Arc::new), question: Arc::new(question) })
}

impl Asking {
    /// Asks once; whether it is well, and what came of it in words.
    pub async fn once(&self, wheel: &Wheel) -> (bool, String) {
        let (found, words) = ask::ask(&self.question, self.pattern.as_deref(), wheel).await;
        (found == Found::Well, format!("{}: {words}", self.question.asked()))
    }
}

impl PartialEq for Question {
    fn eq(&self, other: &Question) -> bool {
        self.address == other.address
            && self.name == other.name
            && self.direct == other.direct
            && self.health == other.health
            && self.host == other.host
            && (self.http, self.proxy_protocol) == (other.http, other.proxy_protocol)
            && self.tls() == other.tls()
    }
}

impl Eq for Question {}

impl Hash for Question {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (&self.address, &self.health, &self.host).hash(state);
    }
}

/// A question that is asked again and again.
struct Probe {
    question: Arc<Question>,
    asked: Arc<str>,
    pattern: Option<Arc<Pattern>>,
    /// Who hears the answer.
    endpoints: Vec<Arc<Endpoint>>,
    state: Health,
    streak: Streak,
}

/// How a probe ended.
struct Ended {
    id: u64,
    begun: Millis,
    found: Found,
    words: String,
}

/// All probes.
struct Prober {
    wheel: Wheel,
    known: HashMap<Arc<Question>, u64>,
    probes: HashMap<u64, Probe>,
    schedule: Schedule,
    next_id: u64,
    random: u64,
}

/// Follows the snapshot for ever.
pub async fn run(control: Arc<Control>, wheel: Wheel) {
    let mut prober = Prober::new(wheel);
    let mut tasks: JoinSet<Ended> = JoinSet::new();
    let mut ids = HashMap::new();
    let (mut generation, mut followed) = (0, Millis(0));
    loop {
        let now = clock::now();
        if now >= followed.after(FOLLOW) || generation == 0 {
            let snapshot = control.cell.load();
            if snapshot.generation != generation {
                generation = snapshot.generation;
                if let Some(wanted) = wanted(snapshot).await {
                    prober.follow(wanted, clock::now());
                }
            }
            followed = now;
        }
        while let Some((id, probe)) = prober.begin(now) {
            let task = tasks.spawn_local(probe);
            ids.insert(task.id(), id);
        }
        control.probes.under_way.store(prober.schedule.under_way() as u64, Ordering::Relaxed);
        let due = prober.schedule.next().map_or(u64::MAX, |due| due.0).min(followed.after(FOLLOW).0);
        let pause = Duration::from_millis(due.saturating_sub(clock::now().0));
        tokio::select! {
            Some(ended) = tasks.join_next_with_id() => match ended {
                Ok((task, ended)) => {
                    ids.remove(&task);
                    let cell = if ended.found == Found::Well { &control.probes.well } else { &control.probes.ill };
                    cell.fetch_add(1, Ordering::Relaxed);
                    prober.heard(ended, clock::now());
                }
                // A defect of ours says nothing about the endpoint; it is asked again.
                Err(error) => if let Some(id) = ids.remove(&error.id()) {
                    tracing::error!("a health check broke off: {error}");
                    prober.schedule.ended(id, clock::now().after(FOLLOW));
                },
            },
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// What is to be asked, and whom the answers concern.
type Wanted = HashMap<Question, Vec<Arc<Endpoint>>>;

/// What a snapshot wants to be asked. There may be ten thousand services: not on the thread that answers the admin socket, nor
/// in one go. `None`: that failed.
async fn wanted(snapshot: Arc<Snapshot>) -> Option<Wanted> {
    #[allow(clippy::mutable_key_type, reason = "settings towards backends are compared by their place")]
    let gather = move || {
        let mut wanted = Wanted::new();
        let services =
            gentle::each(&snapshot.sites).flat_map(|site| site.services().map(move |one| (site, one)));
        for (site, service) in services {
            let Some(health) = &service.core.health else { continue };
            for (index, weighted) in service.core.endpoints.iter().enumerate() {
                if let Some(question) = Question::of(site, service, index, health) {
                    wanted.entry(question).or_default().push(weighted.endpoint.clone());
                }
            }
        }
        wanted
    };
    tokio::task::spawn_blocking(|| gentle::work(gather)).await.ok()
}

impl Prober {
    fn new(wheel: Wheel) -> Prober {
        Prober {
            wheel,
            known: HashMap::new(),
            probes: HashMap::new(),
            schedule: Schedule::new(UNDER_WAY_MAX),
            next_id: 0,
            random: RandomState::new().hash_one(clock::wall()),
        }
    }

    /// Takes over what a snapshot wants to be asked.
    #[allow(clippy::mutable_key_type, reason = "settings towards backends are compared by their place")]
    fn follow(&mut self, wanted: Wanted, now: Millis) {
        let gone: Vec<Arc<Question>> =
            self.known.keys().filter(|known| !wanted.contains_key(&***known)).cloned().collect();
        for question in gone {
            if let Some(id) = self.known.remove(&question) {
                self.probes.remove(&id);
                self.schedule.remove(id);
            }
        }
        for (question, endpoints) in wanted {
            match self.known.get(&question).and_then(|id| self.probes.get_mut(id)) {
                Some(probe) => probe.endpoints = endpoints,
                None => self.insert(question, endpoints, now),
            }
        }
        for probe in self.probes.values() {
            let new = probe.endpoints.iter().filter(|endpoint| is_new(endpoint.health()));
            if !is_new(probe.state) {
                new.for_each(|endpoint| endpoint.set_health(probe.state, now));
            }
        }
    }

    fn insert(&mut self, question: Question, endpoints: Vec<Arc<Endpoint>>, now: Millis) {
        let id = self.next_id;
        self.next_id += 1;
        // What was found by another question stands until this one is answered.
        let state = endpoints.iter().map(|endpoint| endpoint.health()).find(|health| !is_new(*health));
        let due = match state {
            None => now,
            Some(_) => now.after(phase(question.health.interval, self.random())),
        };
        let question = Arc::new(question);
        let probe = Probe {
            asked: question.asked().into(),
            pattern: Pattern::of(&question.health.check).map(Arc::new),
            question: question.clone(),
            endpoints,
            state: state.unwrap_or(Health::Unknown),
            streak: Streak::default(),
        };
        self.known.insert(question, id);
        self.probes.insert(id, probe);
        self.schedule.insert(id, due);
    }

    /// The next probe that is due, to be run.
    fn begin(&mut self, now: Millis) -> Option<(u64, impl Future<Output = Ended> + use<>)> {
        let id = self.schedule.begin(now)?;
        let probe = self.probes.get(&id)?;
        let (question, pattern, wheel) = (probe.question.clone(), probe.pattern.clone(), self.wheel.clone());
        let run = async move {
            let (found, words) = ask::ask(&question, pattern.as_deref(), &wheel).await;
            Ended { id, begun: now, found, words }
        };
        Some((id, run))
    }

    fn heard(&mut self, ended: Ended, now: Millis) {
        let random = self.random();
        let Ended { id, begun, found, words } = ended;
        let Some(probe) = self.probes.get_mut(&id) else {
            return self.schedule.ended(id, now);
        };
        let health = &probe.question.health;
        let before = probe.state;
        probe.state = probe.streak.heard(before, found, health);
        // Those that were asked together at a start part here.
        let pause = match is_new(before) && probe.state == Health::Healthy {
            true => phase(health.interval, random),
            false => probe.streak.pause(probe.state, health, random),
        };
        for endpoint in &probe.endpoints {
            tell(endpoint, probe, found, &words, now);
        }
        self.schedule.ended(id, begun.after(pause).max(now));
    }

    fn random(&mut self) -> u64 {
        // SplitMix64: its high bits are as good as any for spreading probes.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.random;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }
}

/// Nothing is known about it yet.
fn is_new(health: Health) -> bool {
    matches!(health, Health::Unknown | Health::Joining)
}

/// Tells an endpoint what was found, and the log where that changes something.
fn tell(endpoint: &Endpoint, probe: &Probe, found: Found, words: &str, now: Millis) {
    let well = found == Found::Well;
    endpoint.note_check(Checked { asked: probe.asked.clone(), well, answer: words.to_owned(), at: now });
    if !well {
        endpoint.note_failure(&format!("health check {}: {words}", probe.asked));
    }
    let (before, since) = (endpoint.health(), endpoint.health_since());
    if before == probe.state {
        return;
    }
    let (service, label) = (&*endpoint.service, &*endpoint.label);
    let was = match is_new(before) {
        true => String::new(),
        false => format!(" (it was {} for {} s)", before.as_str(), now.0.saturating_sub(since.0) / 1000),
    };
    let asked = &probe.asked;
    match probe.state {
        Health::Healthy => {
            tracing::info!(service, endpoint = label, "backend is healthy: {asked}: {words}{was}");
        }
        state => {
            let state = state.as_str();
            tracing::warn!(service, endpoint = label, "backend is {state}: {asked}: {words}{was}");
        }
    }
    endpoint.set_health(probe.state, now);
}
