//! Who is banned, why and until when: what a person asks for, and what outlives the process. Bounded; only a request that
//! brings a new ban comes here, so nothing takes long while it is locked.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use ipnet::IpNet;

use super::file;
use crate::config::model::Mode;

/// What a ban is known by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Which addresses.
    pub net: IpNet,
    /// Where it holds; `None`: everywhere.
    pub site: Option<Arc<str>>,
    /// Whether it is enforced.
    pub mode: Mode,
}

/// What is known about a ban.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// When it ends, by the clock of the table.
    pub(super) until_ns: u64,
    /// When it began, in seconds since 1970.
    pub since: u64,
    /// What made it.
    pub by: By,
    /// Why.
    pub why: String,
    /// The number of its site.
    pub(super) scope: u64,
}

impl Entry {
    /// An entry that was stored; when it ends is said when it is taken in.
    pub fn stored(since: u64, by: By, why: String) -> Entry {
        Entry { until_ns: 0, since, by, why, scope: 0 }
    }
}

/// What made a ban.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// What the client did.
    Offences,
    /// `tidegate ban`
    Command,
}

impl By {
    /// The word in lists and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            By::Offences => "offences",
            By::Command => "command",
        }
    }
}

pub(super) struct Book {
    max: usize,
    entries: BTreeMap<Key, Entry>,
    /// Those by offences, the one that ends first at the front.
    ends: BTreeSet<(u64, Key)>,
    /// Those by a command, likewise.
    commanded: BTreeSet<(u64, Key)>,
    /// Those of them that are in shadow.
    shadowed: usize,
    /// The lines of the file.
    pub(super) said: Vec<file::Line>,
    /// What of them lasts, and until when.
    pub(super) file: Vec<(IpNet, u64)>,
    pub(super) file_mode: Mode,
    /// It was changed since it was last stored.
    pub(super) dirty: bool,
}

impl Book {
    pub(super) fn new(max: usize) -> Book {
        Book {
            max: max.max(1),
            entries: BTreeMap::new(),
            ends: BTreeSet::new(),
            commanded: BTreeSet::new(),
            shadowed: 0,
            said: Vec::new(),
            file: Vec::new(),
            file_mode: Mode::Enforce,
            dirty: false,
        }
    }

    pub(super) fn has_room(&self, key: &Key) -> bool {
        self.entries.len() < self.max || self.entries.contains_key(key)
    }

    /// The ban by offences that ends first.
    pub(super) fn soonest(&self) -> Option<Key> {
        self.ends.first().map(|(_, key)| key.clone())
    }

    pub(super) fn insert(&mut self, key: Key, entry: Entry) {
        self.dirty = true;
        match entry.by {
            By::Offences => {
                self.shadowed += usize::from(key.mode == Mode::Shadow);
                self.ends.insert((entry.until_ns, key.clone()));
            }
            By::Command => drop(self.commanded.insert((entry.until_ns, key.clone()))),
        }
        self.entries.insert(key, entry);
    }

    pub(super) fn remove(&mut self, key: &Key) -> Option<Entry> {
        let entry = self.entries.remove(key)?;
        self.dirty = true;
        let end = (entry.until_ns, key.clone());
        match entry.by {
            By::Offences if self.ends.remove(&end) => {
                self.shadowed -= usize::from(key.mode == Mode::Shadow);
            }
            By::Offences => {}
            By::Command => drop(self.commanded.remove(&end)),
        }
        Some(entry)
    }

    /// Those by a command, in the order of their ends.
    pub(super) fn commanded(&self) -> impl Iterator<Item = (&Key, &Entry)> {
        self.commanded.iter().filter_map(|(_, key)| self.entries.get_key_value(key))
    }

    /// Whether there is one by a command under exactly this key, and not over.
    pub(super) fn is_commanded(&self, key: &Key, now: u64) -> bool {
        self.entries.get(key).is_some_and(|entry| entry.by == By::Command && entry.until_ns > now)
    }

    /// Those behind this one, in the order of their keys.
    pub(super) fn after(&self, key: Option<&Key>) -> impl Iterator<Item = (&Key, &Entry)> {
        let from = key.map_or(Bound::Unbounded, Bound::Excluded);
        self.entries.range::<Key, _>((from, Bound::Unbounded))
    }

    /// How many there are, by what made them.
    pub(super) fn count(&self, by: By) -> usize {
        match by {
            By::Offences => self.ends.len(),
            By::Command => self.commanded.len(),
        }
    }

    pub(super) fn of(&self, net: IpNet) -> impl Iterator<Item = &Key> {
        self.entries.keys().filter(move |key| key.net == net)
    }

    /// What has ended.
    pub(super) fn over(&self, now: u64) -> Vec<Key> {
        let both = [&self.ends, &self.commanded];
        let over = both.into_iter().flat_map(|ends| ends.iter().take_while(|(until, _)| *until <= now));
        over.map(|(_, key)| key.clone()).collect()
    }

    /// Leaves out the networks of the file that have ended; whether there were any.
    pub(super) fn end_of_file(&mut self, now: u64) -> bool {
        let before = self.file.len();
        self.file.retain(|(_, until)| *until > now);
        self.file.len() < before
    }

    /// Whether any are enforced by offences, and any in shadow.
    pub(super) fn by_offences(&self) -> (bool, bool) {
        (self.ends.len() > self.shadowed, self.shadowed > 0)
    }
}
