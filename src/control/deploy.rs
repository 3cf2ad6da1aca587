//! `tidegate deploy`: gate on health, switch, drain, report. What fails before the switch changes nothing.
//!
//! A `deploy://NAME` in `backends` is a source like any other; this is what answers it. Its endpoints stand in a file in
//! the state folder, beside those they replaced, so that a restart and a way back need nobody's memory. One deployment
//! of a source at a time; the last one of each is kept to be looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::base::address::EndpointAddress;
use crate::base::clock;
use crate::base::unit::print_duration;
use crate::config::model::Source;
use crate::config::section::host;
use crate::control::{Control, lock, probe};
use crate::discovery::{MEMBERS_MAX, Member, Sets, Update, deployed, docker};
use crate::net::timer::Wheel;
use crate::snapshot::{Service, Site, Snapshot, compile};
use crate::tls::file;
use crate::upstream::Endpoint;
use crate::upstream::capacity::Gate;

/// Time between two probes of an endpoint that is not well yet.
const PROBE_EVERY: Duration = Duration::from_millis(500);
/// The longest that requests may be held: what a request waits in the queue of a service that has none of its own.
pub const HOLD_MAX: Duration = Duration::from_secs(60);
/// The longest that new endpoints and old ones are waited for.
const WAIT_MAX: Duration = Duration::from_secs(3_600);
/// Time that a switch may take before requests that are held go on in any case.
const SWITCH_MAX: Duration = Duration::from_secs(5);
/// Time between two looks at what is still in flight.
const LOOK: Duration = Duration::from_millis(50);

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Order {
    /// Name of a site, or of a source.
    pub what: String,
    /// The new endpoints.
    pub to: Vec<String>,
    /// Back to those before the last deployment, whatever `to` says.
    pub back: bool,
    /// How long they may take to become healthy.
    pub timeout: Duration,
    /// New requests wait until the old endpoints have finished, for this long at most. `None`: both serve meanwhile.
    pub hold: Option<Duration>,
    /// How long the report waits for what is in flight at the old endpoints.
    pub drain: Duration,
}

/// Where a deployment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Gate,
    Hold,
    Drain,
    Done,
    Failed,
}

impl Phase {
    fn word(self) -> &'static str {
        match self {
            Phase::Gate => "gate",
            Phase::Hold => "hold",
            Phase::Drain => "drain",
            Phase::Done => "done",
            Phase::Failed => "failed",
        }
    }

    fn is_over(self) -> bool {
        matches!(self, Phase::Done | Phase::Failed)
    }
}

/// One new endpoint on its way.
#[derive(Debug, Clone)]
struct Gated {
    address: EndpointAddress,
    /// When it was found well, in milliseconds since the beginning.
    healthy_after: Option<u64>,
    /// What the last probe found.
    words: String,
    /// Questions that are not answered well yet: services may ask it in different ways.
    left: usize,
}

/// A deployment, running or over.
#[derive(Debug, Clone)]
pub struct Deployment {
    id: u64,
    phase: Phase,
    gated: Vec<Gated>,
    replaced: Vec<EndpointAddress>,
    /// Why it failed.
    why: Option<String>,
    /// How long requests were held, in milliseconds.
    held: Option<u64>,
    /// How long the old endpoints took to finish, in milliseconds.
    drained: Option<u64>,
    /// Requests that are still at old endpoints.
    left: u32,
}

/// The last deployment of each source.
pub type Deployments = BTreeMap<Arc<str>, Deployment>;

impl Deployment {
    fn to_json(&self, source: &str) -> Value {
        let endpoints = self.gated.iter().map(|gated| {
            json!({
                "address": gated.address.to_string(),
                "healthy_after_ms": gated.healthy_after,
                "last_probe": gated.words,
            })
        });
        json!({
            "id": self.id,
            "source": source,
            "phase": self.phase.word(),
            "over": self.phase.is_over(),
            "endpoints": endpoints.collect::<Vec<_>>(),
            "replaced": self.replaced.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "error": self.why,
            "held_ms": self.held,
            "drained_ms": self.drained,
            "left": self.left,
        })
    }
}

/// What a deployment works on.
struct Plan {
    name: Arc<str>,
    source: Source,
    members: Vec<Member>,
    /// Those that are in force.
    old: Vec<Arc<Endpoint>>,
    /// Where requests for it can be held.
    gates: Vec<Arc<Gate>>,
    /// How each new endpoint is asked, by its position; one that several services go to may be asked in several ways.
    questions: Vec<Vec<probe::Asking>>,
    order: Order,
}

impl Control {
    /// Begins a deployment; gives its number. It goes on by itself, and [`Control::deployments`] says how it goes.
    ///
    /// # Errors
    /// A sentence: what is wrong with the order. Nothing happens then.
    pub async fn deploy(self: &Arc<Self>, order: Order, wheel: Wheel) -> Result<u64, String> {
        check(&order)?;
        // Off this thread: it waits for a reload that runs, and reads a file.
        let control = self.clone();
        let plan = tokio::task::spawn_blocking(move || control.plan(order)).await;
        let plan = plan.map_err(|error| error.to_string())??;
        let id = {
            let mut all = lock(&self.deployments);
            if all.get(&plan.name).is_some_and(|last| !last.phase.is_over()) {
                return Err(format!("a deployment of `{}` is running: wait for its end", plan.name));
            }
            let id = all.values().map(|last| last.id).max().unwrap_or(0) + 1;
            let gated = plan.members.iter().enumerate().map(|(at, member)| Gated {
                address: member.address.clone(),
                healthy_after: None,
                words: "not asked yet".into(),
                left: plan.questions.get(at).map_or(0, Vec::len),
            });
            let replaced = plan.old.iter().map(|endpoint| endpoint.address.clone());
            let deployment = Deployment {
                id,
                phase: Phase::Gate,
                gated: gated.collect(),
                replaced: replaced.collect(),
                why: None,
                held: None,
                drained: None,
                left: 0,
            };
            all.insert(plan.name.clone(), deployment);
            id
        };
        let control = self.clone();
        tokio::task::spawn_local(async move {
            let name = plan.name.clone();
            match control.carry_out(plan, &wheel).await {
                Ok(()) => control.note(&name, |one| one.phase = Phase::Done),
                Err(why) => {
                    tracing::error!("{name} was not deployed, nothing changed: {why}");
                    control.note(&name, |one| (one.phase, one.why) = (Phase::Failed, Some(why)));
                }
            }
        });
        Ok(id)
    }

    /// The last deployment of each source.
    pub fn deployments(&self) -> Value {
        lock(&self.deployments).iter().map(|(name, one)| one.to_json(name)).collect()
    }

    fn note(&self, name: &str, change: impl FnOnce(&mut Deployment)) {
        if let Some(one) = lock(&self.deployments).get_mut(name) {
            change(one);
        }
    }

    /// Finds out what is meant, and compiles the services as they would be.
    fn plan(&self, order: Order) -> Result<Plan, String> {
        let snapshot = self.cell.load();
        let source = meant(&snapshot, &order.what)?;
        let Source::Deployed(name) = &source else { return Err("this is no deployment".into()) };
        let members = if order.back {
            deployed::before(&snapshot.server.state, name)?
        } else {
            self::members(&order.to)?
        };
        let trial = Sets::default();
        trial.learn(&source, members.clone());
        let members = trial.of(&source).members.to_vec();
        let (mut old, mut gates) = (Vec::new(), Vec::new());
        let mut questions: Vec<Vec<probe::Asking>> = vec![Vec::new(); members.len()];
        let known = self.residents.endpoints.list();
        for site in snapshot.sites.iter().filter(|site| site.sources.contains(&source)) {
            for other in site.sources.iter().filter(|other| **other != source) {
                trial.learn(other, self.residents.sets.of(other).members.to_vec());
            }
            for service in self.trial(site, &source, &trial)? {
                // A site with many routes to the same backends asks each of them once.
                for (member, known) in members.iter().zip(&mut questions) {
                    let asking = probe::asking(site, &service, member);
                    known.extend(asking.filter(|asking| !known.contains(asking)));
                }
                gates.push(service.core.ledger.gate.clone());
                let leaving = |endpoint: &Arc<Endpoint>| {
                    endpoint.service == service.core.name
                        && !service.core.endpoints.iter().any(|one| Arc::ptr_eq(&one.endpoint, endpoint))
                };
                old.extend(known.iter().filter(|one| leaving(one)).cloned());
            }
        }
        Ok(Plan { name: name.clone(), source: source.clone(), members, old, gates, questions, order })
    }

    /// The services of a site that go to a source, with the endpoints that they would have.
    fn trial(&self, site: &Site, source: &Source, sets: &Sets) -> Result<Vec<Service>, String> {
        let model = lock(&self.state).sites.get(&site.name).map(|known| known.model.clone());
        let model = model.ok_or_else(|| format!("the site `{}` has just gone", site.name))?;
        compile::trial(&model, source, sets, &self.residents).map_err(|problem| problem.message)
    }

    async fn carry_out(self: &Arc<Self>, plan: Plan, wheel: &Wheel) -> Result<(), String> {
        self.gate(&plan, wheel).await?;
        let held = self.hold(&plan).await;
        let state = self.server().state.clone();
        let (name, list) = (plan.name.clone(), plan.members.clone());
        // Off this thread: the disk may be slow, and compiling may wait for a reload.
        let control = self.clone();
        let update = Update::Members(plan.source.clone(), plan.members.clone());
        let switched = tokio::task::spawn_blocking(move || {
            store(&state, &name, &list)?;
            control.learn(vec![update]);
            Ok::<_, String>(())
        });
        switched.await.map_err(|error| error.to_string())??;
        drop(held);
        tracing::info!("{} is deployed: {} endpoints serve", plan.name, plan.members.len());
        self.drain(&plan).await;
        Ok(())
    }

    /// Waits until every new endpoint was found well by every service that will go there.
    async fn gate(self: &Arc<Self>, plan: &Plan, wheel: &Wheel) -> Result<(), String> {
        let started = clock::now();
        // Dropped, and with it whatever is still being asked, when the time is over.
        let mut asked = tokio::task::JoinSet::new();
        let places = Arc::new(tokio::sync::Semaphore::new(probe::UNDER_WAY_MAX));
        let each = plan.questions.iter().enumerate();
        for (position, asking) in each.flat_map(|(at, ways)| ways.iter().map(move |way| (at, way))) {
            let (control, name, wheel) = (self.clone(), plan.name.clone(), wheel.clone());
            let (asking, places) = (asking.clone(), places.clone());
            asked.spawn_local(async move {
                loop {
                    let place = places.acquire().await;
                    let (well, words) = asking.once(&wheel).await;
                    drop(place);
                    let after = clock::now().0.saturating_sub(started.0);
                    control.note(&name, |one| {
                        if let Some(gated) = one.gated.get_mut(position) {
                            gated.left = gated.left.saturating_sub(usize::from(well));
                            if !well || gated.left == 0 {
                                gated.words = words;
                            }
                            gated.healthy_after = (gated.left == 0).then_some(after);
                        }
                    });
                    if well {
                        return;
                    }
                    tokio::time::sleep(PROBE_EVERY).await;
                }
            });
        }
        if tokio::time::timeout(plan.order.timeout, asked.join_all()).await.is_ok() {
            return Ok(());
        }
        Err(self.ill(plan).await)
    }

    /// Which endpoints were not healthy in time, and why: what the last probe found, and whether the container at that
    /// address exposes another port.
    async fn ill(&self, plan: &Plan) -> String {
        let ill: Vec<(EndpointAddress, String)> = {
            let all = lock(&self.deployments);
            let gated = all.get(&plan.name).into_iter().flat_map(|one| &one.gated);
            let ill = gated.filter(|gated| gated.healthy_after.is_none());
            ill.map(|gated| (gated.address.clone(), gated.words.clone())).collect()
        };
        let addresses: Vec<EndpointAddress> = ill.iter().map(|(address, _)| address.clone()).collect();
        let ports = match &self.server().docker {
            Some(settings) => docker::wrong_ports(settings, &addresses).await,
            None => BTreeMap::new(),
        };
        let one = |(address, words): &(EndpointAddress, String)| match ports.get(address) {
            Some(port) => format!("{address} is not healthy: {words} ({port})"),
            None => format!("{address} is not healthy: {words}"),
        };
        let ill: Vec<String> = ill.iter().map(one).collect();
        format!("within {}, {}", print_duration(plan.order.timeout), ill.join("; "))
    }

    /// Holds new requests and waits for what is in flight at the old endpoints; both end with the time that was allowed.
    async fn hold(&self, plan: &Plan) -> Option<Held> {
        let allowed = plan.order.hold?;
        self.note(&plan.name, |one| one.phase = Phase::Hold);
        let started = clock::now();
        // Should this be cut, the gates open by themselves.
        plan.gates.iter().for_each(|gate| gate.hold(started.after(allowed + SWITCH_MAX)));
        let held = Held(plan.gates.clone());
        loop {
            let left: u32 = plan.old.iter().map(|endpoint| endpoint.in_flight()).sum();
            let took = clock::now().0.saturating_sub(started.0);
            self.note(&plan.name, |one| (one.left, one.held) = (left, Some(took)));
            if left == 0 || Duration::from_millis(took) >= allowed {
                return Some(held);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits for what is in flight at the endpoints that were replaced.
    async fn drain(&self, plan: &Plan) {
        self.note(&plan.name, |one| one.phase = Phase::Drain);
        let started = clock::now();
        loop {
            let left: u32 = plan.old.iter().map(|endpoint| endpoint.in_flight()).sum();
            let took = clock::now().0.saturating_sub(started.0);
            self.note(&plan.name, |one| (one.left, one.drained) = (left, (left == 0).then_some(took)));
            if left == 0 || Duration::from_millis(took) >= plan.order.drain {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Requests that are held; they go on when this is dropped.
struct Held(Vec<Arc<Gate>>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.iter().for_each(|gate| gate.release());
    }
}

/// The source that is meant: by its own name, or the only one of a site.
fn meant(snapshot: &Snapshot, what: &str) -> Result<Source, String> {
    let what = what.to_ascii_lowercase();
    let deployed = |source: &&Source| matches!(source, Source::Deployed(_));
    let all: BTreeSet<&Source> =
        snapshot.sites.iter().flat_map(|site| &site.sources).filter(deployed).collect();
    if let Some(found) = all.iter().find(|source| matches!(source, Source::Deployed(name) if **name == *what))
    {
        return Ok((*found).clone());
    }
    let Some(site) = snapshot.sites.iter().find(|site| *site.name == *what) else {
        let names: Vec<String> = all.iter().map(|source| source.to_string()).collect();
        let there = if names.is_empty() { "there is none".into() } else { names.join(", ") };
        return Err(format!("no site and no `deploy://` source is called `{what}`; sources: {there}"));
    };
    let own: Vec<&Source> = site.sources.iter().filter(deployed).collect();
    match own.as_slice() {
        [one] => Ok((*one).clone()),
        [] => Err(format!(
            "the site `{what}` has no backends that are deployed: write backends = [\"deploy://NAME\"] in it"
        )),
        several => {
            let names: Vec<String> = several.iter().map(|source| source.to_string()).collect();
            Err(format!("the site `{what}` has several: name one of {}", names.join(", ")))
        }
    }
}

fn check(order: &Order) -> Result<(), String> {
    let bounds = [
        ("timeout", order.timeout, WAIT_MAX),
        ("drain", order.drain, WAIT_MAX),
        ("hold", order.hold.unwrap_or_default(), HOLD_MAX),
    ];
    match bounds.iter().find(|(_, said, most)| said > most) {
        None => Ok(()),
        Some((name, said, most)) => {
            let (said, most) = (print_duration(*said), print_duration(*most));
            Err(format!("`{name}` is {said}: write at most {most}"))
        }
    }
}

fn members(to: &[String]) -> Result<Vec<Member>, String> {
    if to.is_empty() || to.len() > MEMBERS_MAX {
        return Err(format!("a deployment goes to 1 to {MEMBERS_MAX} addresses"));
    }
    let read = |text: &String| {
        let read = host::endpoint(text).map(Member::at);
        read.map_err(|(message, help)| format!("{message}: {help}"))
    };
    to.iter().map(read).collect()
}

/// Puts a list in place and keeps the one it replaces.
///
/// # Errors
/// A sentence: the state folder cannot be written to. The list that was there is in force then.
fn store(state: &Path, name: &str, members: &[Member]) -> Result<(), String> {
    use std::os::unix::fs::DirBuilderExt;
    let path = deployed::list(state, name);
    let failed = |error: std::io::Error| format!("{} cannot be written: {error}", path.display());
    let folder = path.parent().unwrap_or(state);
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    let text = deployed::text(members);
    match std::fs::read(&path) {
        // Deploying the same again keeps the way back.
        Ok(there) if there == text.as_bytes() => return Ok(()),
        Ok(there) => file::write_atomic(&deployed::former(state, name), &there, 0o600).map_err(failed)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    file::write_atomic(&path, text.as_bytes(), 0o600).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(ports: &[u16]) -> Vec<Member> {
        let address = |port: &u16| host::endpoint(&format!("10.0.0.1:{port}")).unwrap();
        ports.iter().map(|port| Member::at(address(port))).collect()
    }

    #[test]
    fn what_was_replaced_is_kept_and_the_same_again_keeps_it_too() {
        let state = tempfile::tempdir().unwrap();
        let state = state.path();
        assert!(deployed::before(state, "web").unwrap_err().contains("no way back"));
        store(state, "web", &members(&[1, 2])).unwrap();
        assert!(deployed::before(state, "web").is_err(), "the first replaces nothing");
        store(state, "web", &members(&[3])).unwrap();
        store(state, "web", &members(&[3])).unwrap();
        assert_eq!(deployed::before(state, "web").unwrap(), members(&[1, 2]));
        assert_eq!(deployed::current(state, "web"), Some(members(&[3])));
        assert_eq!(deployed::current(state, "other"), Some(Vec::new()), "nothing was deployed");
        let list = std::fs::read_to_string(deployed::list(state, "web")).unwrap();
        assert_eq!(crate::discovery::file::parse(&list).unwrap(), members(&[3]));
    }

    #[test]
    fn a_state_folder_that_cannot_be_written_to_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        std::fs::write(&state, "a file").unwrap();
        assert!(store(&state, "web", &members(&[1])).unwrap_err().contains("cannot be written"));
    }
}
