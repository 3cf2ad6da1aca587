//! Finds endpoints: follows the sources that the sites in force name, and puts their answers in force.
//!
//! An answer changes the endpoints of some services and nothing else: those sites are compiled anew from the text they
//! have, without a look at any file, and a snapshot that differs in them takes over. What comes within `GATHER` is one
//! swap, so that a deployment of a thousand containers is not a thousand.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use crate::base::clock;
use crate::config;
use crate::config::model::{Resolution, Source};
use crate::control::containers::{self, Containers};
use crate::control::{Control, lock};
use crate::discovery::{self, Member, Update, deployed};
use crate::snapshot::Source as CertificateSource;
use crate::snapshot::compile::{self, Input};

/// How often the sources asked are compared with the snapshot.
const FOLLOW: Duration = Duration::from_millis(500);
/// Answers that come within this time are put in force together.
const GATHER: Duration = Duration::from_millis(20);
/// Answers that are put in force together at most.
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
}

impl Discovery {
    /// Nothing is followed yet.
    pub fn new(control: Arc<Control>) -> Discovery {
        let (updates, heard) = mpsc::channel(WAITING_MAX);
        let resolution = control.server().resolution.clone();
        let containers = Containers::new(updates.clone());
        let (watching, relabelled, moved) = Default::default();
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
            let batch = self.gather(first).await;
            for update in &batch {
                update.source().map(|source| silent.remove(source));
                engine_silent &= update.source().is_some();
            }
            self.learn(batch).await;
        }
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
        let mut look = tokio::time::interval(FOLLOW);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(first) = self.heard.recv() => {
                    let batch = self.gather(first).await;
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

    /// What follows closely behind a first answer.
    async fn gather(&mut self, first: Update) -> Vec<Update> {
        let mut batch = vec![first];
        let end = tokio::time::Instant::now() + GATHER;
        while batch.len() < GATHER_MAX {
            match tokio::time::timeout_at(end, self.heard.recv()).await {
                Ok(Some(update)) => batch.push(update),
                _ => break,
            }
        }
        batch
    }

    /// Compiling may wait for a reload that runs: not on this thread.
    async fn learn(&self, batch: Vec<Update>) {
        let control = self.control.clone();
        let labels = |update: &Update| matches!(update, Update::Engine(news) if news.fragments.is_some());
        let of_engine = |update: &Update| matches!(update, Update::Engine(news) if !news.sets.is_empty());
        if batch.iter().any(of_engine) {
            self.moved.notify_one();
        }
        let relabelled = batch.iter().any(labels);
        if let Err(error) = tokio::task::spawn_blocking(move || control.learn(batch)).await {
            tracing::error!("found endpoints are not in force: {error}");
        }
        if relabelled {
            self.relabelled.notify_one();
        }
    }
}

async fn tell(source: Source, resolution: Resolution, state: PathBuf, updates: mpsc::Sender<Update>) {
    let Some(mut watch) = discovery::watch(&source, &resolution, &state) else { return };
    while let Some(update) = watch.next().await {
        if updates.send(update).await.is_err() {
            return;
        }
    }
    tracing::error!("{source} is not followed any more: its last endpoints stay");
}

impl Control {
    /// Takes answers in: keeps them, and compiles the sites that go to other endpoints now.
    pub fn learn(&self, batch: Vec<Update>) {
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
                Update::Engine(news) => changed.extend(self.hear(*news)),
                Update::EngineLost(why) => self.deaf(&why),
                Update::Trouble(source, why) => {
                    if sets.fail(&source, &why) {
                        tracing::warn!("{source}: {why}; its last endpoints stay");
                    }
                }
            }
        }
        if !changed.is_empty() {
            self.put_in_force(&changed);
        }
    }

    /// What was deployed is told by the command and by who watches its file. Whoever read it before the last deployment
    /// and comes after it would undo it, so it is read where nobody else can come between.
    fn newest(&self, source: &Source, members: Vec<Member>) -> Vec<Member> {
        let Source::Deployed(name) = source else { return members };
        deployed::current(&self.cell.load().server.state, name).unwrap_or(members)
    }

    fn put_in_force(&self, changed: &BTreeSet<Source>) {
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
            let (model, _) = config::parse_site(&site.name, &known.file, &known.text, &old.server);
            let Some(model) = model else { continue };
            let input = Input {
                site: &model,
                text: &known.text,
                current: Some(&known.site),
                // Its files are a matter of reloads.
                kept: site.identity.clone().filter(|_| site.source == CertificateSource::Files),
                server: &old.server,
                generation,
            };
            match compile::site(&input, &self.residents) {
                Ok(compiled) if Arc::ptr_eq(&compiled, &known.site) => {}
                Ok(compiled) => {
                    known.site = compiled.clone();
                    others.push((position, compiled));
                }
                Err(problems) => {
                    let why = problems.first().map(|problem| problem.message.clone()).unwrap_or_default();
                    tracing::error!(site = &*site.name, "its new endpoints are not in force: {why}");
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
