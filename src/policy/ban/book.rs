//! Who is banned, why and until when: what a person asks for, and what outlives the process. Bounded; nothing here is
//! in a request's way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;

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
    /// Those of them that are in shadow.
    shadowed: usize,
    /// What the file says, and until when.
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
            shadowed: 0,
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
        if entry.by == By::Offences {
            self.shadowed += usize::from(key.mode == Mode::Shadow);
            self.ends.insert((entry.until_ns, key.clone()));
        }
        self.entries.insert(key, entry);
    }

    pub(super) fn remove(&mut self, key: &Key) -> Option<Entry> {
        let entry = self.entries.remove(key)?;
        self.dirty = true;
        if self.ends.remove(&(entry.until_ns, key.clone())) {
            self.shadowed -= usize::from(key.mode == Mode::Shadow);
        }
        Some(entry)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (&Key, &Entry)> {
        self.entries.iter()
    }

    pub(super) fn of(&self, net: IpNet) -> impl Iterator<Item = &Key> {
        self.entries.keys().filter(move |key| key.net == net)
    }

    /// What has ended.
    pub(super) fn over(&self, now: u64) -> Vec<Key> {
        let by_offences = self.ends.iter().take_while(|(until, _)| *until <= now).map(|(_, key)| key.clone());
        let by_command =
            self.entries.iter().filter(|(_, entry)| entry.by == By::Command && entry.until_ns <= now);
        by_offences.chain(by_command.map(|(key, _)| key.clone())).collect()
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
