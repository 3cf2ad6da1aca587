//! Containers of Docker or Podman: found by their labels, followed by the engine's events.
//!
//! One task follows one engine. It opens the stream of events, then asks for the list, then about each container that
//! concerns us; every [`LOOK`] the list is asked for again, because events can be lost. What all this means is decided in
//! [`state`], without any I/O; what labels say is read in [`labels`] and written as a site's text in [`mod@text`].
//!
//! An engine that cannot be reached takes nothing away: the last endpoints and sites stay until it answers again.

pub mod api;
pub mod labels;
pub mod place;
pub mod state;
pub mod text;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::Update;
use crate::base::address::EndpointAddress;
use crate::base::clock;
use crate::config::model::{Docker, Source};
use api::{Engine, Events, Inspected, Listed};
pub use state::News;
use state::World;

/// What stands before a site's name where a file would have its path.
pub const PLACE: &str = "docker:";
/// How often everything is looked at without an event.
pub const LOOK: Duration = Duration::from_secs(30);
/// Questions about containers that wait for their answers at once.
const ASKING_MAX: usize = 16;
/// How often a container is asked about that cannot be read, before that is told.
const TRIES: u32 = 3;
/// Between two tries to reach an engine that is gone: from, to.
const AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// Containers that are asked for the ports they expose, and how long all of that may take.
const WRONG_PORTS_MAX: usize = 8;
const WRONG_PORTS_TIME: Duration = Duration::from_secs(3);

/// Questions that sites ask the engine.
pub type Asked = Arc<BTreeSet<Source>>;

/// Follows an engine for ever.
pub async fn follow(settings: Docker, mut asked: watch::Receiver<Asked>, updates: mpsc::Sender<Update>) {
    let mut world = World::new(settings.clone());
    let mut pause = AGAIN.0;
    loop {
        let mut session = Session::new(&mut world, &mut asked, &updates);
        let why = match session.run(&settings).await {
            Ok(()) => return,
            Err(why) => why,
        };
        if session.answered {
            pause = AGAIN.0;
        }
        if updates.send(Update::EngineLost(why)).await.is_err() {
            return;
        }
        tokio::time::sleep(jittered(pause)).await;
        pause = (pause * 2).min(AGAIN.1);
    }
}

/// For addresses where nobody answered: what the container there exposes, where that is another port. Best effort: an
/// engine that does not answer has nothing to say.
pub async fn wrong_ports(settings: &Docker, silent: &[EndpointAddress]) -> BTreeMap<EndpointAddress, String> {
    let mut told = BTreeMap::new();
    let asking = async {
        let engine = Engine::find(&settings.socket).await?;
        let list = engine.list().await?;
        for address in silent.iter().take(WRONG_PORTS_MAX) {
            let Some(listed) = list.iter().find(|listed| place::is_at(listed, address)) else { continue };
            let found = engine.inspect(&listed.id).await?;
            let words = found.and_then(|found| place::wrong_port(&found, address));
            told.extend(words.map(|words| (address.clone(), words)));
        }
        Ok::<_, String>(())
    };
    if !matches!(tokio::time::timeout(WRONG_PORTS_TIME, asking).await, Ok(Ok(()))) {
        tracing::debug!("the container engine was asked for the ports of containers and did not answer");
    }
    told
}

/// Half to all of it: many nodes do not come back at once.
fn jittered(pause: Duration) -> Duration {
    let random = u32::try_from(RandomState::new().hash_one(0) & 0xff).unwrap_or_default();
    pause / 2 + pause / 512 * random
}

/// What a question brought.
enum Answer {
    List(Result<Vec<Listed>, String>),
    Container(String, u64, Result<Option<Box<Inspected>>, String>),
}

/// Containers that are to be asked about, each once: one that begins and ends many times a second is asked about as often
/// as there is room for it, and never longer in line than there are containers.
#[derive(Default)]
struct Line {
    order: VecDeque<String>,
    waiting: HashSet<String>,
}

impl Line {
    fn extend(&mut self, ids: impl IntoIterator<Item = String>) {
        for id in ids {
            if self.waiting.insert(id.clone()) {
                self.order.push_back(id);
            }
        }
    }

    fn pop(&mut self) -> Option<String> {
        let id = self.order.pop_front()?;
        self.waiting.remove(&id);
        Some(id)
    }

    fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}

/// One connection to an engine, as long as its events last.
struct Session<'a> {
    world: &'a mut World,
    asked: &'a mut watch::Receiver<Asked>,
    updates: &'a mpsc::Sender<Update>,
    waiting: Line,
    asking: JoinSet<Answer>,
    /// How often in a row a question about a container failed.
    tries: HashMap<String, u32>,
    listing: bool,
    /// The whole list was asked about once.
    answered: bool,
}

impl<'a> Session<'a> {
    fn new(
        world: &'a mut World,
        asked: &'a mut watch::Receiver<Asked>,
        updates: &'a mpsc::Sender<Update>,
    ) -> Session<'a> {
        let (waiting, asking, tries) = Default::default();
        Session { world, asked, updates, waiting, asking, tries, listing: false, answered: false }
    }

    /// Ends well when nobody listens any more, and with a sentence when the engine is gone.
    async fn run(&mut self, settings: &Docker) -> Result<(), String> {
        let engine = Engine::find(&settings.socket).await?;
        // Events first: what happens while the list is made is not lost.
        let mut events = engine.events().await?;
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.ask(&engine);
            tokio::select! {
                event = Events::next(&mut events) => {
                    let event = event?;
                    let ask = self.world.event(&event, clock::now());
                    self.waiting.extend(ask);
                    if event.kind == "service" {
                        self.waiting.extend(self.world.tasks(&event.actor.id));
                    }
                }
                Some(answer) = self.asking.join_next(), if !self.asking.is_empty() => {
                    self.take(answer.map_err(|error| error.to_string())?)?;
                }
                _ = look.tick() => {
                    self.world.expire(clock::now());
                    if !self.listing {
                        self.listing = true;
                        let engine = engine.clone();
                        self.asking.spawn(async move { Answer::List(engine.list().await) });
                    }
                }
                changed = self.asked.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    let asked = self.asked.borrow_and_update().clone();
                    self.world.tell(&asked);
                }
                // While control is busy, what changes is gathered here.
                permit = self.updates.reserve(), if self.answered && self.world.has_news() => {
                    let Ok(permit) = permit else { return Ok(()) };
                    let asked = self.asked.borrow().clone();
                    permit.send(Update::Engine(Box::new(self.world.news(&asked, clock::now()))));
                }
            }
        }
    }

    /// Asks about those that wait, some at once.
    fn ask(&mut self, engine: &Engine) {
        while self.asking.len() < ASKING_MAX {
            let Some(id) = self.waiting.pop() else { return };
            let Some(version) = self.world.version(&id) else {
                self.tries.remove(&id);
                continue;
            };
            let engine = engine.clone();
            self.asking.spawn(async move {
                let found = engine.inspect_task(&id).await;
                Answer::Container(id, version, found.map(|found| found.map(Box::new)))
            });
        }
    }

    fn take(&mut self, answer: Answer) -> Result<(), String> {
        match answer {
            Answer::List(list) => {
                self.listing = false;
                let ask = self.world.listed(&list?, clock::now());
                self.waiting.extend(ask);
                self.finished();
            }
            Answer::Container(id, version, Ok(found)) => {
                self.tries.remove(&id);
                if self.world.inspected(&id, version, found.map(|found| *found)) {
                    self.waiting.extend([id]);
                }
                self.finished();
            }
            // An engine that is gone ends the list and the events too.
            Answer::Container(id, _, Err(why)) => {
                let tries = self.tries.entry(id.clone()).or_default();
                *tries += 1;
                if *tries < TRIES {
                    self.waiting.extend([id]);
                } else {
                    self.tries.remove(&id);
                    self.world.unread(&id, why);
                }
                self.finished();
            }
        }
        Ok(())
    }

    /// After the first list and all that it led to, everything is known and told at once.
    fn finished(&mut self) {
        if !self.answered && !self.listing && self.waiting.is_empty() && self.asking.is_empty() {
            self.answered = true;
            self.world.tell_all();
            let asked = self.asked.borrow_and_update().clone();
            self.world.tell(&asked);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regression_a_container_of_which_much_is_told_stands_in_line_once() {
        let mut line = Line::default();
        for _ in 0..10_000 {
            line.extend(["a".to_owned(), "b".to_owned()]);
        }
        assert_eq!(line.order.len(), 2);
        assert_eq!(line.pop().as_deref(), Some("a"));
        line.extend(["a".to_owned()]);
        let rest: Vec<String> = std::iter::from_fn(|| line.pop()).collect();
        assert!(
            rest == ["b", "a"] && line.is_empty(),
            "what happens after it was asked about is asked about too"
        );
    }
}
