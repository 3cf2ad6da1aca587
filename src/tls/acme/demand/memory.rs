//! What was found about names, for a while, in memory of a fixed size: whoever floods it makes it forget, never grow.
//!
//! Names are kept as 64 bits of a hash whose key nobody outside knows, so an entry is 24 bytes whatever the name. Two
//! names that share all 64 bits would share their entry; with thousands of entries that takes more tries than there
//! are handshakes in a year.

use std::hash::{BuildHasher, RandomState};

use crate::base::clock::Millis;

/// Entries that share a place; of more, those that end soonest are forgotten.
const WAYS: usize = 8;

#[derive(Debug, Clone, Copy)]
struct Entry<V> {
    hash: u64,
    until: Millis,
    value: V,
}

/// A bounded memory.
#[derive(Debug)]
pub struct Memory<V> {
    key: RandomState,
    sets: Vec<[Option<Entry<V>>; WAYS]>,
}

impl<V: Copy> Memory<V> {
    /// Room for about so many names.
    pub fn new(names: usize) -> Memory<V> {
        Memory { key: RandomState::new(), sets: vec![[None; WAYS]; (names / WAYS).max(1)] }
    }

    /// What is known of a name now.
    pub fn find(&self, name: &str, now: Millis) -> Option<V> {
        let hash = self.key.hash_one(name);
        let set = self.sets.get(self.place(hash))?;
        set.iter().flatten().find(|entry| entry.hash == hash && entry.until > now).map(|entry| entry.value)
    }

    /// Remembers until then.
    pub fn put(&mut self, name: &str, value: V, until: Millis) {
        let hash = self.key.hash_one(name);
        let place = self.place(hash);
        let Some(set) = self.sets.get_mut(place) else { return };
        let own = set.iter().position(|slot| slot.as_ref().is_some_and(|entry| entry.hash == hash));
        let ends = |slot: &Option<Entry<V>>| slot.as_ref().map_or(Millis(0), |entry| entry.until);
        let soonest = || set.iter().enumerate().min_by_key(|(_, slot)| ends(slot)).map(|(at, _)| at);
        if let Some(slot) = own.or_else(soonest).and_then(|at| set.get_mut(at)) {
            *slot = Some(Entry { hash, until, value });
        }
    }

    /// Forgets a name.
    pub fn forget(&mut self, name: &str) {
        let hash = self.key.hash_one(name);
        let place = self.place(hash);
        for slot in self.sets.get_mut(place).into_iter().flatten() {
            if slot.as_ref().is_some_and(|entry| entry.hash == hash) {
                *slot = None;
            }
        }
    }

    /// Names remembered now.
    pub fn len(&self, now: Millis) -> usize {
        self.sets.iter().flatten().flatten().filter(|entry| entry.until > now).count()
    }

    fn place(&self, hash: u64) -> usize {
        let sets = u64::try_from(self.sets.len()).unwrap_or(1);
        usize::try_from(hash.checked_rem(sets).unwrap_or(0)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_ends_and_can_be_forgotten() {
        let mut memory = Memory::new(64);
        assert_eq!(memory.find("a.test", Millis(0)), None);
        memory.put("a.test", 1, Millis(10));
        memory.put("a.test", 2, Millis(20));
        assert_eq!((memory.find("a.test", Millis(19)), memory.len(Millis(19))), (Some(2), 1));
        assert_eq!((memory.find("a.test", Millis(20)), memory.len(Millis(20))), (None, 0));
        memory.put("b.test", 3, Millis(99));
        memory.forget("b.test");
        assert_eq!(memory.find("b.test", Millis(0)), None);
    }

    #[test]
    fn a_flood_forgets_and_never_grows() {
        let mut memory = Memory::new(1024);
        for number in 0..100_000u64 {
            memory.put(&format!("n{number}.test"), number, Millis(100 + number));
        }
        assert_eq!(memory.len(Millis(0)), 1024);
        // What ends soonest goes first, so the last one is there.
        assert_eq!(memory.find("n99999.test", Millis(0)), Some(99_999));
    }
}
