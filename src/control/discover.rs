//! Finds endpoints: follows the sources that the sites in force name, and puts their answers in force.
//!
//! An answer changes the endpoints of some services and nothing else: those sites are compiled anew from the text they
//! have, without a look at any file, and a snapshot that differs in them takes over. What comes within `GATHER` of such a
//! swap is one swap, so that a deployment of a thousand containers is not a thousand.
//!
//! A swap waits for a reload that runs. Who is told to end does not: endpoints that a source called by a name and does
//! not name any more get no request from the moment that is heard.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use crate::base::clock;
use crate::config::model::{Resolution, Source};
use crate::control::containers::{self, Containers};
use crate::control::{Control, lock};
use crate::discovery::{self, Member, Update, deployed};
use crate::snapshot::{amend, compile};

/// How often the sources asked are compared with the snapshot.
const FOLLOW: Duration = Duration::from_millis(500);
/// Time between two swaps for endpoints.
const GATHER: Duration = Duration::from_millis(20);
/// Answers that are taken in together at most.
const GATHER_MAX: usize = 1_024;
/// Answers that wait; who has more to tell waits.
const WAITING_MAX: usize = 1_024;
/// How long a start waits for the first answer of each source.
pub const FIRST: Duration = Duration::from_secs(2);
/// Endpoints that one line of the log names.
const NAMED_MAX: usize = 10;

/// The sources that are followed.
pub struct Discovery {
    control: Arc<Control>,
    watching: HashMap<Source, JoinHandle<()>>,
    generation: u64,
    /// What the watchers were started with.
    resolution: Resolution,
    updates: mpsc::Sender<Update>,
    heard: mpsc::Receiver<Update>,
    containers: Containers,
    /// Labels may have changed.
    relabelled: Arc<Notify>,
    /// Endpoints of containers may have changed.
    moved: Arc<Notify>,
    changes: Arc<Changes>,
}

/// Sources whose new endpoints are not in force yet.
#[derive(Default)]
struct Changes {
    sources: Mutex<BTreeSet<Source>>,
    told: Notify,
}

impl Discovery {
    /// Nothing is followed yet.
    pub fn new(control: Arc<Control>) -> Discovery {
        let (updates, heard) = mpsc::channel(WAITING_MAX);
        let resolution = control.server().resolution.clone();
        let containers = Containers::new(updates.clone());
        let (watching, relabelled, moved, changes) = Default::default();
        Discovery {
            control,
            watching,
            generation: 0,
            resolution,
            updates,
            heard,
            containers,
            relabelled,
            moved,
            changes,
        }
    }

    /// Asks every source once, for [`FIRST`] at most: who starts with no endpoint answers 503. Runs before the first
    /// connection is taken.
    pub async fn prime(&mut self) {
        let mut engine_silent = self.follow();
        let mut silent: HashSet<Source> = self.watching.keys().cloned().collect();
        let deadline = tokio::time::Instant::now() + FIRST;
        while engine_silent || !silent.is_empty() {
            let Ok(Some(first)) = tokio::time::timeout_at(deadline, self.heard.recv()).await else { break };
            let batch = self.gather(first);
            for update in &batch {
                update.source().map(|source| silent.remove(source));
                engine_silent &= update.source().is_some();
            }
            self.learn(batch).await;
        }
        // Also the endpoints, as far as they are known.
        let (control, changed) = (self.control.clone(), std::mem::take(&mut *lock(&self.changes.sources)));
        let _ = tokio::task::spawn_blocking(move || control.put_in_force(&changed)).await;
        if engine_silent {
            tracing::warn!("the container engine did not answer within {FIRST:?}: what it said last stays");
        }
        // The sites of labels are there before the first connection is taken.
        let control = self.control.clone();
        let _ = tokio::task::spawn_blocking(move || control.relabel()).await;
        self.follow();
        for source in silent {
            tracing::warn!("{source} did not answer within {FIRST:?}: its services have no endpoints yet");
        }
    }

    /// Follows the sources for ever.
    pub async fn run(mut self) {
        tokio::task::spawn_local(containers::relabel(self.control.clone(), self.relabelled.clone()));
        tokio::task::spawn_local(containers::remember(self.control.clone(), self.moved.clone()));
        tokio::task::spawn_local(enforce(self.control.clone(), self.changes.clone()));
        let mut look = tokio::time::interval(FOLLOW);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(first) = self.heard.recv() => {
                    let batch = self.gather(first);
                    self.learn(batch).await;
                }
                _ = look.tick() => {
                    self.follow();
                }
            }
        }
    }

    /// Asks what the snapshot names, and nothing else. Gives whether a container engine is asked.
    fn follow(&mut self) -> bool {
        let snapshot = self.control.cell.load();
        if snapshot.generation == self.generation {
            return snapshot.server.docker.is_some();
        }
        self.generation = snapshot.generation;
        if snapshot.server.resolution != self.resolution {
            // All are asked anew, in the new way; what they said last stays until then.
            self.resolution = snapshot.server.resolution.clone();
            self.watching.drain().for_each(|(_, task)| task.abort());
        }
        let all = snapshot.sites.iter().flat_map(|site| &site.sources);
        let (of_engine, wanted): (HashSet<&Source>, HashSet<&Source>) =
            all.partition(|source| source.is_of_engine());
        self.watching.retain(|source, task| {
            let asked = wanted.contains(source);
            if !asked {
                task.abort();
            }
            asked
        });
        for source in wanted {
            if !self.watching.contains_key(source) {
                let task = tokio::task::spawn_local(tell(
                    source.clone(),
                    self.resolution.clone(),
                    snapshot.server.state.clone(),
                    self.control.residents.sets.of(source).members,
                    self.updates.clone(),
                ));
                self.watching.insert(source.clone(), task);
            }
        }
        let sets = &self.control.residents.sets;
        sets.retain(|source| self.watching.contains_key(source) || of_engine.contains(source));
        let asked = of_engine.into_iter().cloned().collect();
        self.containers.follow(&self.control, snapshot.server.docker.as_ref(), asked)
    }

    /// A first answer, and those that are there already.
    fn gather(&mut self, first: Update) -> Vec<Update> {
        let mut batch = vec![first];
        while batch.len() < GATHER_MAX {
            match self.heard.try_recv() {
                Ok(update) => batch.push(update),
                Err(_) => break,
            }
        }
        batch
    }

    /// Takes answers in; [`enforce`] puts them in force. Reads a file: not on this thread.
    async fn learn(&self, batch: Vec<Update>) {
        let control = self.control.clone();
        let labels = |update: &Update| matches!(update, Update::Engine(news) if news.fragments.is_some());
        let of_engine = |update: &Update| matches!(update, Update::Engine(news) if !news.sets.is_empty());
        if batch.iter().any(of_engine) {
            self.moved.notify_one();
        }
        let relabelled = batch.iter().any(labels);
        match tokio::task::spawn_blocking(move || control.absorb(batch)).await {
            Ok(changed) if changed.is_empty() => {}
            Ok(mut changed) => {
                lock(&self.changes.sources).append(&mut changed);
                self.changes.told.notify_one();
            }
            Err(error) => tracing::error!("found endpoints are not in force: {error}"),
        }
        if relabelled {
            self.relabelled.notify_one();
        }
    }
}

async fn tell(
    source: Source,
    resolution: Resolution,
    state: PathBuf,
    known: Arc<[Member]>,
    updates: mpsc::Sender<Update>,
) {
    let Some(mut watch) = discovery::watch(&source, &resolution, &state, &known) else { return };
    while let Some(update) = watch.next().await {
        if updates.send(update).await.is_err() {
            return;
        }
    }
    tracing::error!("{source} is not followed any more: its last endpoints stay");
}

/// Puts found endpoints in force for ever, as often as told. Compiling may wait for a reload that runs: not on this thread.
async fn enforce(control: Arc<Control>, changes: Arc<Changes>) {
    loop {
        changes.told.notified().await;
        let (working, changed) = (control.clone(), std::mem::take(&mut *lock(&changes.sources)));
        if let Err(error) = tokio::task::spawn_blocking(move || working.put_in_force(&changed)).await {
            tracing::error!("found endpoints are not in force: {error}");
        }
        tokio::time::sleep(GATHER).await;
    }
}

impl Control {
    /// Takes answers in: keeps them, and compiles the sites that go to other endpoints now.
    pub fn learn(&self, batch: Vec<Update>) {
        let changed = self.absorb(batch);
        self.put_in_force(&changed);
    }

    /// Keeps answers; gives the sources whose endpoints are others now. Those that are told to end get no more requests.
    /// Waits for no reload.
    fn absorb(&self, batch: Vec<Update>) -> BTreeSet<Source> {
        let sets = &self.residents.sets;
        let mut changed = BTreeSet::new();
        for update in batch {
            match update {
                Update::Members(source, members) => {
                    let _one = lock(&self.learning);
                    let members = self.newest(&source, members);
                    let before = sets.of(&source);
                    if sets.learn(&source, members) {
                        let after = sets.of(&source);
                        tracing::info!("{source}: {}", difference(&before.members, &after.members));
                        changed.insert(source);
                    } else if before.trouble.is_some() {
                        tracing::info!("{source} answers again");
                    }
                }
                Update::Partly(source, members, why) => {
                    let before = sets.of(&source);
                    if sets.learn(&source, members) {
                        let after = sets.of(&source);
                        tracing::info!("{source}: {}", difference(&before.members, &after.members));
                        changed.insert(source.clone());
                    }
                    if before.trouble.as_ref() != Some(&why) {
                        tracing::warn!("{source}: {why}; its last endpoints of that stay");
                    }
                    sets.note(&source, Some(why));
                }
                Update::Engine(news) => changed.extend(self.hear(*news)),
                Update::EngineLost(why) => self.deaf(&why),
                Update::Trouble(source, why) => {
                    if sets.fail(&source, &why) {
                        tracing::warn!("{source}: {why}; its last endpoints stay");
                    }
                }
            }
        }
        self.dismiss(&changed);
        changed
    }

    /// No request begins any more at an endpoint that was found by a name (a container) and is not found any more. Those
    /// without a name may be written beside, or found by others: they wait for the swap.
    fn dismiss(&self, changed: &BTreeSet<Source>) {
        let snapshot = self.cell.load();
        let now = clock::now();
        for site in &snapshot.sites {
            if changed.is_empty() || !site.sources.iter().any(|source| changed.contains(source)) {
                continue;
            }
            let sets: Vec<_> = site.sources.iter().map(|source| self.residents.sets.of(source)).collect();
            let found = sets.iter().flat_map(|set| set.members.iter());
            let found: HashSet<_> = found.map(|member| (&member.address, &*member.name)).collect();
            for weighted in site.services().flat_map(|service| service.core.endpoints.iter()) {
                let endpoint = &weighted.endpoint;
                if !endpoint.name.is_empty() {
                    endpoint.leave(!found.contains(&(&endpoint.address, &*endpoint.name)), now);
                }
            }
        }
    }

    /// What was deployed is told by the command and by who watches its file. Whoever read it before the last deployment
    /// and comes after it would undo it, so it is read where nobody else can come between.
    fn newest(&self, source: &Source, members: Vec<Member>) -> Vec<Member> {
        let Source::Deployed(name) = source else { return members };
        deployed::current(&self.cell.load().server.state, name).unwrap_or(members)
    }

    fn put_in_force(&self, changed: &BTreeSet<Source>) {
        if changed.is_empty() {
            return;
        }
        let mut state = lock(&self.state);
        let started = clock::micros();
        let old = self.cell.load();
        let generation = old.generation + 1;
        let mut others = Vec::new();
        for (position, site) in old.sites.iter().enumerate() {
            if !site.sources.iter().any(|source| changed.contains(source)) {
                continue;
            }
            let Some(known) = state.sites.get_mut(&site.name) else { continue };
            match amend::with_endpoints(&known.site, &known.model, generation, &self.residents) {
                Ok(None) => {}
                Ok(Some(amended)) => {
                    known.site = amended.clone();
                    others.push((position, amended));
                }
                Err(problem) => {
                    tracing::error!(
                        site = &*site.name,
                        "its new endpoints are not in force: {}",
                        problem.message
                    );
                }
            }
        }
        if others.is_empty() {
            return;
        }
        let sites = others.len();
        self.cell.swap(compile::with_sites(&old, generation, others));
        self.residents.hub.set_generation(generation);
        drop(old);
        self.residents.endpoints.sweep();
        tracing::debug!("endpoints of {sites} sites in force after {} µs", clock::micros() - started);
    }
}

/// What came and what went, in one line.
pub(super) fn difference(before: &[Member], after: &[Member]) -> String {
    let one = |sign: &str, member: &Member| match &*member.name {
        "" => format!("{sign}{}", member.address),
        name => format!("{sign}{} ({name})", member.address),
    };
    let came = after.iter().filter(|member| before.binary_search(member).is_err());
    let gone = before.iter().filter(|member| after.binary_search(member).is_err());
    let all: Vec<String> = came.map(|m| one("+", m)).chain(gone.map(|m| one("-", m))).collect();
    let named = all.get(..NAMED_MAX.min(all.len())).unwrap_or_default().join(" ");
    let more = match all.len().saturating_sub(NAMED_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let endpoints = if after.len() == 1 { "endpoint" } else { "endpoints" };
    format!("{} {endpoints} now ({named}{more})", after.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::control::{Parts, reload};
    use crate::discovery::docker::News;
    use crate::net::descriptors::Budget;
    use crate::policy::connection_limit::Connections;
    use crate::snapshot::Cell;
    use crate::snapshot::resident::Residents;
    use crate::telemetry::access;
    use crate::telemetry::hub::Hub;

    /// Writes a configuration with one site whose backends are containers.
    fn write(folder: &std::path::Path, of_server: &str, of_site: &str) -> std::path::PathBuf {
        let path = folder.join("tidegate.toml");
        let text = format!(
            "[server]\nstate = {:?}\n{of_server}\n[docker]\n[log]\naccess = \"off\"\n[site.\"a.test\"]\n\
             backends = [\"docker://web:80\"]\n{of_site}\n",
            folder.join("state")
        );
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Control as the process has it, with one site whose backends these containers are.
    fn control(path: std::path::PathBuf, source: &Source, found: &[Member]) -> Arc<Control> {
        crate::tls::install_provider();
        let loaded = config::load(&path);
        let server = loaded.server.clone().expect("a good server part");
        std::fs::create_dir_all(&server.state).unwrap();
        let residents = Arc::new(Residents::new(Hub::new(1), &server).unwrap());
        residents.sets.learn(source, found.to_vec());
        let mut first = reload::first(&path, loaded, server.clone(), None, &residents).unwrap();
        let cell = Arc::new(Cell::new(first.snapshot.take().unwrap()));
        let log = &server.log;
        let (_, access) = access::start(&log.access, log.format, log.privacy, 1).unwrap();
        let connections = Connections::new(10, 0, Budget::within(1_000, 10, 1));
        Control::new(Parts {
            path,
            cell,
            residents,
            connections,
            access,
            listeners: Vec::new(),
            workers: 1,
            first,
        })
    }

    fn leaving(control: &Control) -> Vec<(String, bool)> {
        let snapshot = control.cell.load();
        let services = snapshot.sites.iter().flat_map(|site| site.services());
        let all = services.flat_map(|service| service.core.endpoints.iter());
        all.map(|one| (one.endpoint.name.to_string(), one.endpoint.is_leaving())).collect()
    }

    /// A service's containers.
    fn three() -> (Source, [Member; 3]) {
        let source = Source::Docker { project: None, service: "web".into(), port: Some(80) };
        let member = |name: &str, ip: u8| {
            let address = crate::base::address::EndpointAddress::Socket(([10, 0, 0, ip], 80).into());
            Member { name: name.into(), ..Member::at(address) }
        };
        (source, [member("a", 1), member("b", 2), member("c", 3)])
    }

    fn told(source: &Source, found: &[&Member]) -> Vec<Update> {
        let members = found.iter().map(|member| (*member).clone()).collect();
        let news = News { sets: vec![(source.clone(), members, None)], ..News::default() };
        vec![Update::Engine(Box::new(news))]
    }

    #[test]
    fn who_is_told_to_end_gets_no_more_requests_although_a_reload_runs() {
        let folder = tempfile::tempdir().unwrap();
        let (source, [a, b, c]) = three();
        let control = control(write(folder.path(), "", ""), &source, &[a.clone(), b.clone()]);
        let state = |names: &[(&str, bool)]| -> Vec<(String, bool)> {
            names.iter().map(|(name, leaves)| ((*name).to_owned(), *leaves)).collect()
        };
        assert_eq!(leaving(&control), state(&[("a", false), ("b", false)]));
        let reload = lock(&control.state);
        let changed = control.absorb(told(&source, &[&b, &c]));
        assert_eq!(leaving(&control), state(&[("a", true), ("b", false)]), "c waits, a does not");
        // The signal was none to end it.
        control.absorb(told(&source, &[&a, &b, &c]));
        assert_eq!(leaving(&control), state(&[("a", false), ("b", false)]));
        control.absorb(told(&source, &[&b, &c]));
        drop(reload);
        control.put_in_force(&changed);
        assert_eq!(leaving(&control), state(&[("b", false), ("c", false)]));
        let kept = control.residents.endpoints.list();
        control.learn(told(&source, &[&a, &b]));
        assert_eq!(leaving(&control), state(&[("a", false), ("b", false)]), "back, and as good as before");
        drop(kept);
    }

    #[test]
    fn regression_a_container_that_comes_brings_no_other_settings_of_handshakes() {
        let folder = tempfile::tempdir().unwrap();
        let (source, [a, b, c]) = three();
        let authority = || {
            let ca = rcgen::generate_simple_self_signed(["ca.test".to_owned()]).unwrap().cert.pem();
            std::fs::write(folder.path().join("ca.pem"), ca).unwrap();
        };
        authority();
        let path = write(folder.path(), "", "tls = { client_auth = { ca_file = \"ca.pem\" } }");
        let control = control(path, &source, &[a, b.clone()]);
        let seen = || {
            let snapshot = control.cell.load();
            (Arc::as_ptr(&snapshot.handshakes[0]), snapshot.sites[0].policy.key)
        };
        let before = seen();
        authority();
        control.learn(told(&source, &[&b, &c]));
        assert_eq!(leaving(&control), [("b".to_owned(), false), ("c".to_owned(), false)]);
        assert_eq!(
            seen(),
            before,
            "a connection is never taken for one that was checked by what no handshake knows"
        );
        let report = control.reload("test", None);
        assert!(report.changed && seen().0 != before.0 && seen().1 != before.1);
        assert!(!control.reload("test", None).changed);
    }

    #[test]
    fn regression_a_site_in_quarantine_follows_its_containers() {
        let folder = tempfile::tempdir().unwrap();
        let (source, [a, b, c]) = three();
        let control = control(write(folder.path(), "", ""), &source, &[a.clone(), b.clone()]);
        // The server's settings refuse what serves.
        write(folder.path(), "require_encrypted_backends = true", "");
        assert_eq!(control.reload("test", None).quarantined, ["a.test".into()]);
        control.learn(told(&source, &[&b, &c]));
        assert_eq!(leaving(&control), [("b".to_owned(), false), ("c".to_owned(), false)]);
        // And over one more reload.
        control.reload("test", None);
        control.learn(told(&source, &[&a]));
        assert_eq!(leaving(&control), [("a".to_owned(), false)]);
    }
}
