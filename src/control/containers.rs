//! What the container engine says is put in force: endpoints like those of any source, and sites made from labels.
//!
//! Endpoints change without a reload. Labels are text: when they change, everything is read again with what they say now,
//! and the reload decides as it does for files. Reloads for labels take a tenth of the time at most, however many labels
//! change.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;

use crate::base::clock;
use crate::config::model::{Docker, Source};
use crate::control::behind::behind;
use crate::control::{Control, lock, remembered};
use crate::discovery::docker::{self, Asked, News};
use crate::discovery::{Engine, Update};

/// Labels that change within this time are one reload.
const GATHER: Duration = Duration::from_millis(100);
/// Between a change of endpoints and writing them down.
const WRITE_DOWN: Duration = Duration::from_secs(2);
/// After a reload for labels, none for so many times the time it took.
const REST: u32 = 9;
/// Lines of the log that one answer of the engine writes.
const LINES_MAX: usize = 20;

/// The engine that is followed.
pub(super) struct Containers {
    updates: mpsc::Sender<Update>,
    followed: Option<(Docker, JoinHandle<()>)>,
    asked: watch::Sender<Asked>,
}

impl Containers {
    pub(super) fn new(updates: mpsc::Sender<Update>) -> Containers {
        Containers { updates, followed: None, asked: watch::channel(Asked::default()).0 }
    }

    /// Follows the engine that the settings name, and asks it what sites ask. Gives whether there is one.
    pub(super) fn follow(
        &mut self,
        control: &Control,
        settings: Option<&Docker>,
        asked: BTreeSet<Source>,
    ) -> bool {
        if self.followed.as_ref().map(|(docker, _)| docker) != settings {
            if let Some((_, task)) = self.followed.take() {
                task.abort();
            }
            let engine =
                settings.map(|docker| Engine { socket: docker.socket.to_string(), ..Engine::default() });
            control.residents.sets.set_engine(engine);
            self.followed = settings.map(|docker| {
                let following = docker::follow(docker.clone(), self.asked.subscribe(), self.updates.clone());
                (docker.clone(), tokio::task::spawn_local(following))
            });
        }
        if self.followed.is_none() {
            for source in &asked {
                let why = "nobody is asked for containers: add the section [docker]";
                if control.residents.sets.fail(source, why) {
                    tracing::warn!("{source}: {why}");
                }
            }
        }
        self.asked.send_if_modified(|former| {
            let changed = **former != asked;
            *former = Arc::new(asked);
            changed
        });
        self.followed.is_some()
    }
}

impl Control {
    /// Takes in what the engine says; gives the sources whose endpoints changed.
    pub(super) fn hear(&self, news: News) -> Vec<Source> {
        let sets = &self.residents.sets;
        let before = sets.engine().unwrap_or_default();
        let engine = Engine {
            socket: before.socket.clone(),
            containers: news.containers,
            problems: news.problems,
            known: true,
            trouble: None,
        };
        if before.trouble.is_some() {
            tracing::info!("{}: the container engine answers again", engine.socket);
        }
        let fresh = engine.problems.iter().filter(|problem| !before.problems.contains(problem));
        fresh.take(LINES_MAX).for_each(|problem| tracing::warn!("{problem}"));
        sets.set_engine(Some(engine));
        let mut changed = Vec::new();
        for (source, members, note) in news.sets {
            let former = sets.of(&source);
            if sets.learn(&source, members) {
                let now = sets.of(&source).members;
                tracing::info!("{source}: {}", super::discover::difference(&former.members, &now));
                changed.push(source.clone());
            }
            if let Some(note) = note.as_ref().filter(|note| former.trouble.as_ref() != Some(*note)) {
                tracing::warn!("{source}: {note}");
            }
            sets.note(&source, note);
        }
        if let Some(fragments) = news.fragments {
            *lock(&self.relabelled) = Some(fragments);
        }
        changed
    }

    /// The engine cannot be asked: what it said stays.
    pub(super) fn deaf(&self, why: &str) {
        let sets = &self.residents.sets;
        let Some(engine) = sets.engine() else { return };
        if engine.trouble.as_deref() != Some(why) {
            let socket = &engine.socket;
            tracing::warn!("{socket}: {why}; the last containers and sites stay until the engine answers");
        }
        sets.set_engine(Some(Engine { trouble: Some(why.to_owned()), ..engine }));
    }

    /// Puts what labels say now in force, if that is anything new.
    pub(super) fn relabel(&self) {
        let Some(fragments) = lock(&self.relabelled).take() else { return };
        let mut state = lock(&self.state);
        if *state.fragments == *fragments {
            return;
        }
        state.fragments = fragments.into();
        drop(state);
        self.reload("the labels of containers changed", None);
    }
}

/// Puts labels in force for ever, as often as told that there may be new ones.
pub(super) async fn relabel(control: Arc<Control>, told: Arc<Notify>) {
    loop {
        told.notified().await;
        tokio::time::sleep(GATHER).await;
        let started = clock::micros();
        let reloading = control.clone();
        if let Err(error) = behind(move || reloading.relabel()).await {
            tracing::error!("what labels say is not in force: {error}");
        }
        tokio::time::sleep(Duration::from_micros(clock::micros() - started) * REST).await;
    }
}

/// Writes the endpoints of containers down for ever, as often as told that they changed.
pub(super) async fn remember(control: Arc<Control>, told: Arc<Notify>) {
    loop {
        told.notified().await;
        tokio::time::sleep(WRITE_DOWN).await;
        let state = control.server().state.clone();
        let writing = control.clone();
        let write = move || {
            if let Some(_leave) = writing.keeping() {
                remembered::save(&state, &writing.residents.sets);
            }
        };
        let _ = tokio::task::spawn_blocking(write).await;
    }
}
