//! The last answer to each question. Outlives reloads; written by discovery, read when a site is compiled.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{MEMBERS_MAX, Member};
use crate::config::model::Source;

/// What is known of one source.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Set {
    /// Its endpoints, sorted by address, each address once.
    pub members: Arc<[Member]>,
    /// Whether it ever answered.
    pub known: bool,
    /// Why it does not answer now, if it does not.
    pub trouble: Option<String>,
}

/// What is known of the container engine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Engine {
    /// Where it listens.
    pub socket: String,
    /// Containers that concern us.
    pub containers: usize,
    /// What is wrong with their labels.
    pub problems: Vec<String>,
    /// Whether it ever answered.
    pub known: bool,
    /// Why it does not answer now, if it does not.
    pub trouble: Option<String>,
}

/// The last answers.
#[derive(Debug, Default)]
pub struct Sets {
    known: Mutex<HashMap<Source, Set>>,
    engine: Mutex<Option<Engine>>,
}

impl Sets {
    /// What is known of a source; nothing for one that never answered.
    pub fn of(&self, source: &Source) -> Set {
        self.lock().get(source).cloned().unwrap_or_default()
    }

    /// A number that differs where the endpoints of a source differ.
    pub fn print(&self, source: &Source) -> u64 {
        let mut hash = DefaultHasher::new();
        self.lock().get(source).map(|set| (&set.members, set.known)).hash(&mut hash);
        hash.finish()
    }

    /// Says what is missing in an answer that was given.
    pub fn note(&self, source: &Source, why: Option<String>) {
        if let (Some(set), Some(why)) = (self.lock().get_mut(source), why) {
            set.trouble = Some(why);
        }
    }

    /// What is known of the container engine; `None`: none is asked.
    pub fn engine(&self) -> Option<Engine> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Keeps what is known of the container engine. While it does not answer, none of its sets is fresh. Gives what was
    /// known before.
    pub fn set_engine(&self, engine: Option<Engine>) -> Option<Engine> {
        if let Some(why) = engine.as_ref().and_then(|engine| engine.trouble.as_ref()) {
            let mut known = self.lock();
            for (_, set) in known.iter_mut().filter(|(source, _)| source.is_of_engine()) {
                set.trouble = Some(why.clone());
            }
        }
        std::mem::replace(&mut *self.engine.lock().unwrap_or_else(PoisonError::into_inner), engine)
    }

    /// Keeps an answer. `true` when the endpoints are others than before, or these are the first.
    pub fn learn(&self, source: &Source, mut members: Vec<Member>) -> bool {
        members.sort_unstable();
        members.dedup_by(|a, b| a.address == b.address);
        let over = members.len().saturating_sub(MEMBERS_MAX);
        members.truncate(MEMBERS_MAX);
        let trouble = (over > 0).then(|| format!("{over} more endpoints than {MEMBERS_MAX} are left out"));
        let mut known = self.lock();
        let set = known.entry(source.clone()).or_default();
        let changed = !set.known || *set.members != *members;
        *set = Set { members: members.into(), known: true, trouble };
        changed
    }

    /// Keeps why a source does not answer. `true` when it answered until now, or for another reason.
    pub fn fail(&self, source: &Source, why: &str) -> bool {
        let mut known = self.lock();
        let set = known.entry(source.clone()).or_default();
        let changed = set.trouble.as_deref() != Some(why);
        set.trouble = Some(why.to_owned());
        changed
    }

    /// Every source that answered or failed, in order.
    pub fn list(&self) -> Vec<(Source, Set)> {
        let mut all: Vec<_> = self.lock().iter().map(|(source, set)| (source.clone(), set.clone())).collect();
        all.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        all
    }

    /// Forgets sources that nobody asks any more. What an engine found is kept even so: the site that asks may be on its
    /// way.
    pub fn retain(&self, asked: impl Fn(&Source) -> bool) {
        self.lock().retain(|source, set| asked(source) || (source.is_of_engine() && !set.members.is_empty()));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Source, Set>> {
        // No code that can panic stands between two changes of the map, so a poisoned one is still right.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::address::EndpointAddress;

    fn source() -> Source {
        Source::File(Arc::from("/run/web"))
    }

    fn member(port: u16) -> Member {
        Member::at(EndpointAddress::Socket(([10, 0, 0, 1], port).into()))
    }

    #[test]
    fn the_order_of_an_answer_does_not_matter_and_trouble_takes_nothing_away() {
        let sets = Sets::default();
        let empty = sets.print(&source());
        assert!(sets.learn(&source(), vec![member(2), member(1), member(2)]));
        let two = sets.print(&source());
        assert_ne!(empty, two);
        assert!(!sets.learn(&source(), vec![member(1), member(2)]), "the same");
        assert!(sets.fail(&source(), "gone") && !sets.fail(&source(), "gone"));
        let set = sets.of(&source());
        assert_eq!((set.members.len(), set.trouble.as_deref()), (2, Some("gone")));
        assert_eq!(sets.print(&source()), two);
        assert!(sets.learn(&source(), Vec::new()), "none at all is an answer");
        assert_eq!(sets.of(&source()), Set { known: true, ..Set::default() });
        assert_ne!(sets.print(&source()), empty, "which differs from no answer");
        sets.retain(|_| false);
        assert!(sets.list().is_empty());
    }

    #[test]
    fn a_source_that_names_too_many_is_cut_and_says_so() {
        let sets = Sets::default();
        sets.learn(&source(), (1..=1_100).map(member).collect());
        let set = sets.of(&source());
        assert_eq!(set.members.len(), MEMBERS_MAX);
        assert_eq!(set.trouble.unwrap(), "100 more endpoints than 1000 are left out");
    }
}
