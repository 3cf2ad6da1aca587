//! What was found right lately, so that it is not checked again with each request.
//!
//! Passwords and tokens are nowhere in it: an entry stands under a hash with a key that only this process knows, over
//! everything that the finding depended on. A changed hash or key is therefore another entry, and the old one is never
//! found again. Bounded: when a shard is full, what is over goes, and if nothing is, somebody's entry does, which costs
//! that client one more check.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::{hmac, rand};

use crate::base::clock::Millis;

/// Entries; together about 2 MiB.
pub const ENTRIES_MAX: usize = 16_384;
/// Parts with a lock of their own.
const SHARDS: usize = 16;

/// Names what was shown.
pub type Key = [u8; 16];

/// The table; of users by default.
pub struct Remembered<T = Arc<str>> {
    secret: hmac::Key,
    shards: [Mutex<HashMap<Key, Entry<T>>>; SHARDS],
    /// Of each shard.
    entries_max: usize,
}

struct Entry<T> {
    found: T,
    until: Millis,
}

impl<T: Clone> Remembered<T> {
    /// An empty table of so many entries, with a new key.
    ///
    /// # Errors
    /// A sentence when the system gives no random numbers.
    pub fn new(entries_max: usize) -> Result<Remembered<T>, String> {
        let secret = hmac::Key::generate(hmac::HMAC_SHA256, &rand::SystemRandom::new());
        let secret = secret.map_err(|_| "the system gives no random numbers".to_owned())?;
        Ok(Remembered { secret, shards: Default::default(), entries_max: entries_max / SHARDS })
    }

    /// Names what was shown, and what it was compared with.
    pub fn key(&self, parts: &[&[u8]]) -> Key {
        let mut context = hmac::Context::with_key(&self.secret);
        for part in parts {
            // The lengths keep two lists apart whose parts join to the same bytes.
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part);
        }
        let tag = context.sign();
        std::array::from_fn(|at| tag.as_ref().get(at).copied().unwrap_or(0))
    }

    /// Who was found behind this.
    pub fn find(&self, key: &Key, now: Millis) -> Option<T> {
        let shard = self.shard(key)?.lock().unwrap_or_else(PoisonError::into_inner);
        shard.get(key).filter(|entry| entry.until > now).map(|entry| entry.found.clone())
    }

    /// Remembers who was found; for no time: nothing.
    pub fn note(&self, key: Key, found: &T, now: Millis, time: Duration) {
        let Some(shard) = self.shard(&key).filter(|_| !time.is_zero()) else { return };
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        if shard.len() >= self.entries_max && !shard.contains_key(&key) {
            shard.retain(|_, entry| entry.until > now);
            if shard.len() >= self.entries_max
                && let Some(other) = shard.keys().next().copied()
            {
                shard.remove(&other);
            }
        }
        shard.insert(key, Entry { found: found.clone(), until: now.after(time) });
    }

    /// Entries, those that are over included.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner).len()).sum()
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn shard(&self, key: &Key) -> Option<&Mutex<HashMap<Key, Entry<T>>>> {
        self.shards.get(usize::from(key.first().copied().unwrap_or(0)) % SHARDS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn an_entry_is_found_until_its_time_is_over_and_only_under_all_its_parts() {
        let table = Remembered::new(ENTRIES_MAX).unwrap();
        let ann: Arc<str> = "ann".into();
        let key = table.key(&[b"hash", b"ann", b"secret"]);
        table.note(key, &ann, Millis(0), MINUTE);
        assert_eq!(table.find(&key, Millis(59_999)).as_deref(), Some("ann"));
        assert_eq!(table.find(&key, Millis(60_000)), None);
        for other in [
            &[&b"hash"[..], b"ann", b"secre"][..],
            &[b"hash", b"annsecret", b""],
            &[b"other", b"ann", b"secret"],
        ] {
            assert_eq!(table.find(&table.key(other), Millis(1)), None);
        }
        assert_ne!(table.key(&[b"ab", b"c"]), table.key(&[b"a", b"bc"]));
        assert_ne!(
            Remembered::<Arc<str>>::new(ENTRIES_MAX).unwrap().key(&[b"a"]),
            table.key(&[b"a"]),
            "each process has a key of its own"
        );
        table.note(table.key(&[b"x"]), &ann, Millis(0), Duration::ZERO);
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn it_never_grows_beyond_its_bound() {
        let table = Remembered::new(ENTRIES_MAX).unwrap();
        let ann: Arc<str> = "ann".into();
        for number in 0..3 * ENTRIES_MAX as u64 {
            table.note(table.key(&[&number.to_le_bytes()]), &ann, Millis(number / 1_000), MINUTE);
        }
        assert!(table.len() <= ENTRIES_MAX && table.len() > ENTRIES_MAX / 2, "{}", table.len());
    }
}
