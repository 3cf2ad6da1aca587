//! What is known of the containers of an engine, and what follows from it. Pure: events and answers in, questions and
//! news out; times are given by the caller.
//!
//! Only an answer about one container (an *inspection*) says how it is. Events and lists say whom to ask about; and they
//! say that a container leaves, which counts at once. An inspection that was asked for before the last event about the
//! container proves nothing and is repeated.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::api::{Event, Inspected, Listed};
use super::labels::{self, Part};
use super::place::address;
use super::text::{self, Said};
use crate::base::clock::Millis;
use crate::config::Fragment;
use crate::config::model::{Docker, Source};
use crate::discovery::Member;

/// Containers that are known at once; more are not asked about, and told.
pub const CONTAINERS_MAX: usize = 10_000;
/// A container that was told to end and still runs takes part again after this and its own time to stop: some signals
/// are not meant to end it.
pub const STILL_RUNS: Duration = Duration::from_secs(60);
/// Seconds that an engine waits between the signal and the kill, where the container says none.
const STOP_TIMEOUT: u64 = 10;
/// A site, or a route of it, stays this long after its last container is gone: it answers 503 meanwhile.
pub const LINGER: Duration = Duration::from_secs(300);
/// Problems that are told at once.
const PROBLEMS_MAX: usize = 50;
/// Problems of one set that are told.
const NOTES_MAX: usize = 3;

/// Everything that is known.
#[derive(Debug)]
pub struct World {
    settings: Docker,
    entries: HashMap<String, Entry>,
    /// Counts what happened to any container: no two runs of one have a version in common.
    happened: u64,
    /// Who claims to be part of each route of a site.
    by_route: BTreeMap<(Arc<str>, Arc<str>), BTreeSet<String>>,
    /// Who is what file sites ask for: project (none: our own label) and service.
    by_service: BTreeMap<Service, BTreeSet<String>>,
    /// The labels that count for each route of each site.
    sites: BTreeMap<Arc<str>, BTreeMap<Arc<str>, Kept>>,
    dirty_routes: BTreeSet<(Arc<str>, Arc<str>)>,
    dirty_services: HashSet<Service>,
    dirty_texts: bool,
    dirty_state: bool,
    left_out: usize,
}

type Service = (Option<Arc<str>>, Arc<str>);

/// One container, or one that is being asked about.
#[derive(Debug, Default)]
struct Entry {
    /// Number of what happened to it last.
    version: u64,
    facts: Option<Inspected>,
    parts: Vec<Part>,
    problems: Vec<String>,
    /// Why the engine's last word on it could not be read.
    unread: Option<String>,
    leaving: Option<Leaving>,
}

/// It was told to end.
#[derive(Debug, Clone)]
struct Leaving {
    since: Millis,
    /// The run that ends: another beginning is another run.
    started: String,
}

/// The labels that count for a route.
#[derive(Debug)]
struct Kept {
    said: Said,
    /// Since when nobody claims it.
    alone: Option<Millis>,
}

/// What changed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct News {
    /// Endpoints of these questions, and what keeps others from being among them.
    pub sets: Vec<(Source, Vec<Member>, Option<String>)>,
    /// What labels say now about sites; `None`: what they said before.
    pub fragments: Option<Vec<Fragment>>,
    /// Containers known, and what is wrong with labels.
    pub containers: usize,
    /// Sentences.
    pub problems: Vec<String>,
}

impl World {
    /// Nothing is known yet.
    pub fn new(settings: Docker) -> World {
        World {
            settings,
            entries: HashMap::new(),
            happened: 0,
            by_route: BTreeMap::new(),
            by_service: BTreeMap::new(),
            sites: BTreeMap::new(),
            dirty_routes: BTreeSet::new(),
            dirty_services: HashSet::new(),
            dirty_texts: false,
            dirty_state: false,
            left_out: 0,
        }
    }

    /// Takes an event in; gives the container that is to be asked about, if one is.
    pub fn event(&mut self, event: &Event, now: Millis) -> Option<String> {
        if event.kind == "network" {
            let id = event.actor.attributes.get("container")?;
            return self.entries.contains_key(id).then(|| self.happened(id));
        }
        let id = &event.actor.id;
        self.happened += 1;
        let (action, _) = event.action.split_once(':').unwrap_or((&event.action, ""));
        match action {
            "kill" => {
                let entry = self.entries.get_mut(id)?;
                entry.version = self.happened;
                let signal = event.actor.attributes.get("signal").map(String::as_str).unwrap_or_default();
                let own = entry.facts.as_ref().map(|facts| &*facts.config.stop_signal).unwrap_or_default();
                if ends(signal, own) {
                    let started = entry.facts.as_ref().map(|facts| facts.state.started_at.clone());
                    entry.leaving = Some(Leaving { since: now, started: started.unwrap_or_default() });
                    self.touch(id);
                }
                None
            }
            "die" | "died" | "stop" | "destroy" | "remove" => {
                if self.entries.contains_key(id) {
                    self.forget(id);
                }
                None
            }
            "pause" => {
                let entry = self.entries.get_mut(id)?;
                entry.version = self.happened;
                entry.facts.iter_mut().for_each(|facts| facts.state.paused = true);
                self.touch(id);
                Some(id.clone())
            }
            "start" | "restart" => {
                // Podman's events need not have the labels: who starts is asked.
                let entry = self.entries.get_mut(id);
                entry.into_iter().for_each(|entry| entry.leaving = None);
                Some(self.happened(id))
            }
            _ => self.entries.contains_key(id).then(|| self.happened(id)),
        }
    }

    /// The tasks of a Swarm service, to be asked about: its labels may be others now.
    pub fn tasks(&mut self, service: &str) -> Vec<String> {
        let of = |entry: &Entry| {
            let labels = entry.facts.as_ref().and_then(|facts| facts.config.labels.as_ref());
            labels.and_then(|labels| labels.get(labels::SWARM)).is_some_and(|id| id == service)
        };
        let all = self.entries.iter().filter(|(_, entry)| of(entry));
        let ids: Vec<String> = all.map(|(id, _)| id.clone()).collect();
        ids.iter().map(|id| self.happened(id)).collect()
    }

    /// Compares a list with what is known; gives the containers that are to be asked about.
    pub fn listed(&mut self, listed: &[Listed], now: Millis) -> Vec<String> {
        let here: HashSet<&str> = listed.iter().map(|listed| listed.id.as_str()).collect();
        let gone = self.entries.keys().filter(|id| !here.contains(id.as_str())).cloned();
        let mut ask: Vec<String> = gone.collect();
        for listed in listed {
            let Some(entry) = self.entries.get(&listed.id) else {
                if labels::concern_us(listed.labels.as_ref().unwrap_or(&BTreeMap::new())) {
                    ask.push(listed.id.clone());
                }
                continue;
            };
            let over = |leaving: &Leaving| {
                let wait = entry.facts.as_ref().and_then(|facts| facts.config.stop_timeout);
                let wait = wait.map_or(Ok(STOP_TIMEOUT), u64::try_from);
                let over = |wait| leaving.since.after(Duration::from_secs(wait).saturating_add(STILL_RUNS));
                wait.is_ok_and(|wait| now >= over(wait))
            };
            if entry.leaving.as_ref().is_some_and(over) {
                let id = listed.id.clone();
                self.entries.entry(id.clone()).or_default().leaving = None;
                self.touch(&id);
                ask.push(id);
            } else if !entry.facts.as_ref().is_some_and(|facts| agrees(facts, listed)) {
                ask.push(listed.id.clone());
            }
        }
        let room = CONTAINERS_MAX.saturating_sub(self.entries.len());
        let (known, mut unknown): (Vec<_>, Vec<_>) =
            ask.into_iter().partition(|id| self.entries.contains_key(id));
        self.left_out = unknown.len().saturating_sub(room);
        unknown.truncate(room);
        known.into_iter().chain(unknown).map(|id| self.happened(&id)).collect()
    }

    /// Which version of a container an inspection that is asked for now will tell of; `None`: nobody needs it.
    pub fn version(&self, id: &str) -> Option<u64> {
        self.entries.get(id).map(|entry| entry.version)
    }

    /// Takes an inspection in; `true`: it is out of date, ask again.
    pub fn inspected(&mut self, id: &str, version: u64, found: Option<Inspected>) -> bool {
        let Some(entry) = self.entries.get_mut(id) else { return false };
        if entry.version != version {
            return true;
        }
        self.dirty_state |= entry.unread.take().is_some();
        match found.filter(|found| found.state.running) {
            None => self.forget(id),
            Some(found) if entry.facts.as_ref() == Some(&found) => {}
            Some(found) => {
                let again = |leaving: &mut Leaving| {
                    !leaving.started.is_empty() && leaving.started != found.state.started_at
                };
                entry.leaving.take_if(again);
                self.touch(id);
                self.learn(id, found);
                self.touch(id);
            }
        }
        false
    }

    /// What the engine says of it cannot be read, which concerns nobody else. What is known of it stays; the regular look asks
    /// again.
    pub fn unread(&mut self, id: &str, why: String) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.unread = Some(why);
            self.dirty_state = true;
        }
    }

    /// Everything is to be told again.
    pub fn tell_all(&mut self) {
        let routes = self.sites.iter().flat_map(|(site, routes)| {
            routes.keys().map(|route| (site.clone(), route.clone())).collect::<Vec<_>>()
        });
        self.dirty_routes.extend(routes.chain(self.by_route.keys().cloned()));
        self.dirty_services.extend(self.by_service.keys().cloned());
        (self.dirty_state, self.dirty_texts) = (true, true);
    }

    /// What these questions find is to be told, even where it is nothing.
    pub fn tell(&mut self, asked: &BTreeSet<Source>) {
        for source in asked {
            match source {
                Source::Docker { project, service, .. } => {
                    self.dirty_services.insert((project.clone(), service.clone()));
                }
                Source::Labels { site, route } => {
                    self.dirty_routes.insert((site.clone(), route.clone()));
                }
                _ => {}
            }
        }
    }

    /// Lets routes go whose last container is gone for long.
    pub fn expire(&mut self, now: Millis) {
        for (site, routes) in &mut self.sites {
            routes.retain(|route, kept| {
                let stays = kept.alone.is_none_or(|since| now < since.after(LINGER));
                if !stays {
                    self.dirty_routes.insert((site.clone(), route.clone()));
                    self.dirty_texts = true;
                }
                stays
            });
        }
        self.sites.retain(|_, routes| !routes.is_empty());
    }

    /// Whether there is anything to tell.
    pub fn has_news(&self) -> bool {
        self.dirty_texts
            || self.dirty_state
            || !self.dirty_routes.is_empty()
            || !self.dirty_services.is_empty()
    }

    /// What changed since the last time.
    pub fn news(&mut self, asked: &BTreeSet<Source>, now: Millis) -> News {
        let mut sets = Vec::new();
        for (site, route) in std::mem::take(&mut self.dirty_routes) {
            self.choose(&site, &route, now);
            let (members, note) = self.members_of_route(&site, &route);
            sets.push((Source::Labels { site, route }, members, note));
        }
        let services = std::mem::take(&mut self.dirty_services);
        for source in asked {
            let Source::Docker { project, service, port } = source else { continue };
            let key = (project.clone(), service.clone());
            if services.contains(&key) {
                let (members, note) = self.members_of_service(&key, *port);
                sets.push((source.clone(), members, note));
            }
        }
        self.dirty_state = false;
        let fragments = std::mem::take(&mut self.dirty_texts).then(|| self.fragments());
        let mut problems: Vec<String> = Vec::new();
        if self.left_out > 0 {
            problems.push(format!("{} more containers than {CONTAINERS_MAX} are left out", self.left_out));
        }
        let told = self.entries.values().flat_map(|entry| {
            let problems = entry.problems.iter().chain(&entry.unread);
            problems.map(|problem| format!("container {}: {problem}", entry.name()))
        });
        problems.extend(told.take(PROBLEMS_MAX));
        problems.sort_unstable();
        News { sets, fragments, containers: self.entries.len(), problems }
    }

    /// Something happened to it: earlier inspections prove nothing.
    fn happened(&mut self, id: &str) -> String {
        if self.entries.len() < CONTAINERS_MAX || self.entries.contains_key(id) {
            self.happened += 1;
            self.entries.entry(id.to_owned()).or_default().version = self.happened;
        }
        id.to_owned()
    }

    fn forget(&mut self, id: &str) {
        self.touch(id);
        let Some(entry) = self.entries.remove(id) else { return };
        self.unlink(id, &entry);
    }

    /// What it is part of may look otherwise now.
    fn touch(&mut self, id: &str) {
        let Some(entry) = self.entries.get(id) else { return };
        self.dirty_routes.extend(entry.parts.iter().filter_map(|part| part.site.clone()));
        self.dirty_services.extend(services(entry));
        self.dirty_state = true;
    }

    fn unlink(&mut self, id: &str, entry: &Entry) {
        for key in entry.parts.iter().filter_map(|part| part.site.clone()) {
            if let Some(ids) = self.by_route.get_mut(&key) {
                ids.remove(id);
                if ids.is_empty() {
                    self.by_route.remove(&key);
                }
            }
        }
        for key in services(entry) {
            if let Some(ids) = self.by_service.get_mut(&key) {
                ids.remove(id);
                if ids.is_empty() {
                    self.by_service.remove(&key);
                }
            }
        }
    }

    fn learn(&mut self, id: &str, found: Inspected) {
        let Some(mut entry) = self.entries.remove(id) else { return };
        self.unlink(id, &entry);
        // Labels of a container never change while it lives, those of a Swarm service do.
        let none = BTreeMap::new();
        let labels = found.config.labels.as_ref().unwrap_or(&none);
        if labels::concern_us(labels) {
            let read = labels::read(labels);
            (entry.parts, entry.problems) = (read.parts, read.problems);
            entry.facts = Some(found);
            for key in entry.parts.iter().filter_map(|part| part.site.clone()) {
                self.by_route.entry(key).or_default().insert(id.to_owned());
            }
            for key in services(&entry) {
                self.by_service.entry(key).or_default().insert(id.to_owned());
            }
            self.entries.insert(id.to_owned(), entry);
        }
    }

    /// Whose labels count for a route: of the containers that take part, the one that was started last; while none does,
    /// whose they were, else the one started last of all. Nobody's labels go before [`LINGER`] has passed.
    fn choose(&mut self, site: &Arc<str>, route: &Arc<str>, now: Millis) {
        let ids = self.by_route.get(&(site.clone(), route.clone()));
        let claims: Vec<(&Entry, &Part)> = ids
            .into_iter()
            .flatten()
            .filter_map(|id| {
                let entry = self.entries.get(id)?;
                let mine = |part: &&Part| part.site.as_ref().is_some_and(|(s, r)| s == site && r == route);
                Some((entry, entry.parts.iter().find(mine)?))
            })
            .collect();
        let age =
            |(entry, _): &&(&Entry, &Part)| entry.facts.as_ref().map(|facts| facts.state.started_at.clone());
        let newest = claims.iter().filter(|(entry, _)| entry.takes_part()).max_by_key(age);
        let kept = self.sites.get(site).and_then(|routes| routes.get(route));
        let chosen = newest.or_else(|| claims.iter().max_by_key(age).filter(|_| kept.is_none()));
        if let Some((entry, part)) = chosen {
            let said: Said = (entry.name().into(), (*part).clone());
            let same = kept.is_some_and(|kept| {
                (&kept.said.1.settings, kept.said.1.tls) == (&said.1.settings, said.1.tls)
            });
            self.dirty_texts |= !same;
            let routes = self.sites.entry(site.clone()).or_default();
            routes.insert(route.clone(), Kept { said, alone: None });
        } else if let Some(kept) = self.sites.get_mut(site).and_then(|routes| routes.get_mut(route)) {
            kept.alone = if claims.is_empty() { kept.alone.or(Some(now)) } else { None };
        }
    }

    fn fragments(&self) -> Vec<Fragment> {
        let sites = self.sites.iter();
        sites
            .map(|(site, routes)| {
                let routes = routes.iter().map(|(route, kept)| (route.clone(), &kept.said)).collect();
                text::fragment(site, &routes)
            })
            .collect()
    }

    fn members_of_route(&self, site: &Arc<str>, route: &Arc<str>) -> (Vec<Member>, Option<String>) {
        let ids = self.by_route.get(&(site.clone(), route.clone()));
        self.members(ids, None, |part| part.site.as_ref().is_some_and(|(s, r)| s == site && r == route))
    }

    fn members_of_service(&self, key: &Service, port: Option<u16>) -> (Vec<Member>, Option<String>) {
        let by_label = key.0.is_none();
        self.members(self.by_service.get(key), port, |part| by_label && part.service.as_ref() == Some(&key.1))
    }

    fn members(
        &self,
        ids: Option<&BTreeSet<String>>,
        port: Option<u16>,
        mine: impl Fn(&Part) -> bool,
    ) -> (Vec<Member>, Option<String>) {
        let (mut members, mut notes) = (Vec::new(), Vec::new());
        for id in ids.into_iter().flatten() {
            let Some(entry) = self.entries.get(id).filter(|entry| entry.takes_part()) else { continue };
            let Some(facts) = &entry.facts else { continue };
            // By Compose's labels no part need be there: then its defaults hold.
            let none = Part::default();
            let part = entry.parts.iter().find(|part| mine(part)).unwrap_or(&none);
            let address = match &part.wrong {
                Some(wrong) => Err(wrong.clone()),
                None => address(facts, &self.settings, part, port),
            };
            match address {
                Ok(address) => {
                    let name = format!("{} {}", entry.name(), id.get(..12).unwrap_or(id));
                    members.push(Member { address, weight: part.weight, name: name.into() });
                }
                Err(why) => notes.push(format!("container {}: {why}", entry.name())),
            }
        }
        let more = notes.len().saturating_sub(NOTES_MAX);
        notes.truncate(NOTES_MAX);
        if more > 0 {
            notes.push(format!("and {more} more containers"));
        }
        (members, (!notes.is_empty()).then(|| notes.join("; ")))
    }
}

impl Entry {
    fn name(&self) -> &str {
        self.facts.as_ref().map(|facts| facts.name.trim_start_matches('/')).unwrap_or_default()
    }

    /// Whether it gets requests: it runs, nobody told it to end, and its image's health check (if any) is content.
    fn takes_part(&self) -> bool {
        let Some(facts) = &self.facts else { return false };
        let healthy = facts
            .state
            .health
            .as_ref()
            .is_none_or(|health| !matches!(health.status.as_str(), "starting" | "unhealthy"));
        self.leaving.is_none() && facts.state.running && !facts.state.paused && healthy
    }
}

/// What file sites can call a container by.
fn services(entry: &Entry) -> Vec<Service> {
    let labelled = entry.parts.iter().filter_map(|part| Some((None, part.service.clone()?)));
    let labels = entry.facts.as_ref().and_then(|facts| facts.config.labels.as_ref());
    let (project, service) = labels::COMPOSE;
    let composed = labels.and_then(|labels| {
        Some((Some(Arc::from(labels.get(project)?.as_str())), Arc::from(labels.get(service)?.as_str())))
    });
    labelled.chain(composed).collect()
}

/// Whether a signal is meant to end a container. `own` is the one that its image wants to be stopped by.
fn ends(signal: &str, own: &str) -> bool {
    let number = |text: &str| match text.trim_start_matches("SIG") {
        "HUP" => 1,
        "INT" => 2,
        "QUIT" => 3,
        "KILL" => 9,
        "USR1" => 10,
        "USR2" => 12,
        "TERM" => 15,
        "WINCH" => 28,
        // Signals of real time have their numbers only.
        other => other
            .strip_prefix("RTMIN+")
            .map_or_else(|| other.parse().unwrap_or(0), |n| 34 + n.parse().unwrap_or(0)),
    };
    let signal: u32 = number(signal);
    matches!(signal, 2 | 3 | 9 | 15) || (signal != 0 && signal == number(own))
}

/// Whether a list says the same of a container as is known of it.
fn agrees(facts: &Inspected, listed: &Listed) -> bool {
    let health = facts.state.health.as_ref().map(|health| health.status.as_str()).unwrap_or_default();
    let told = match health {
        "healthy" => listed.status.contains("(healthy)"),
        "unhealthy" => listed.status.contains("(unhealthy)"),
        "starting" => listed.status.contains("starting"),
        _ => true,
    };
    let paused = listed.state == "paused";
    told && paused == facts.state.paused
        && facts.network_settings.networks == listed.network_settings.networks
}

#[cfg(test)]
mod tests;
