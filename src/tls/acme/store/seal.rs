//! Encryption at rest, over any store: records are encrypted before they are written (AES-256-GCM, RFC 5116).
//!
//! A sealed record says which key it needs, so that a wrong key is told apart from damage; kind and name of the place
//! are authenticated with it, so that records cannot change places. Plain records stay readable until
//! [`Sealed::sweep`] has written them anew. It protects from who reads the disk or a copy of it, not from who may write
//! there: such a person can put back an older record, or a plain one.
//!
//! A key that is not at hand is an error of its own ([`StoreError::Key`]), never "absent" and never "damaged".

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use zeroize::Zeroizing;

use super::key::{Purpose, SealKey};
use super::{Expect, Key, Kind, Lock, Mark, Store, StoreError, Stored, Version};
use crate::config::model::StoreKey;

/// First words of a sealed record; the id of the key and a line feed follow.
const MAGIC: &str = "tidegate-sealed 1 aes-256-gcm ";

/// The keys at hand. Without a current one, records are written plain.
#[derive(Debug, Default)]
pub struct Ring {
    current: Option<SealKey>,
    previous: Vec<SealKey>,
}

impl Ring {
    /// Reads the keys of the settings. The error is a sentence; nothing is half read.
    pub fn read(settings: Option<&StoreKey>) -> Result<Ring, String> {
        let Some(settings) = settings else { return Ok(Ring::default()) };
        let read = |source| SealKey::read(source, Purpose::Records).map_err(|error| format!("{error}."));
        let current = Some(read(&settings.current)?);
        let previous = settings.previous.iter().map(read).collect::<Result<_, _>>()?;
        Ok(Ring { current, previous })
    }

    fn find(&self, id: &str) -> Option<&SealKey> {
        self.current.iter().chain(&self.previous).find(|key| key.id() == id)
    }

    fn ids(&self) -> impl Iterator<Item = &str> {
        // Without a current one there is no other either.
        self.current.iter().chain(&self.previous).map(SealKey::id)
    }

    fn known(&self) -> String {
        let ids: Vec<_> = self.ids().collect();
        match ids.as_slice() {
            [] => "no key is said (`store_key` in [acme])".to_owned(),
            [one] => format!("the key at hand is {one}"),
            many => format!("the keys at hand are {}", many.join(", ")),
        }
    }
}

/// How records lie there.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Swept {
    /// Written anew with the key in force.
    pub sealed: usize,
    /// Still plain or under a former key: they could not be written (or read).
    pub left: usize,
}

/// A store whose records are encrypted when there is a key.
pub struct Sealed {
    inner: Arc<dyn Store>,
    ring: RwLock<Arc<Ring>>,
}

impl Sealed {
    /// Over another store.
    pub fn new(inner: Arc<dyn Store>, ring: Ring) -> Sealed {
        Sealed { inner, ring: RwLock::new(Arc::new(ring)) }
    }

    /// Puts other keys in force, if every record can be read with them; else the former stay.
    pub fn rekey(&self, ring: Ring) -> Result<(), StoreError> {
        self.check(&ring, &Kind::ALL)?;
        *self.ring.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(ring);
        Ok(())
    }

    /// Whether these are the keys in force.
    pub fn has(&self, ring: &Ring) -> bool {
        self.ring().ids().eq(ring.ids())
    }

    /// The id of the key in force.
    pub fn key_id(&self) -> Option<String> {
        self.ring().current.as_ref().map(|key| key.id().to_owned())
    }

    /// Whether no record of these kinds needs a key that is not at hand. Damaged records are for whoever reads them.
    pub fn check_keys(&self, kinds: &[Kind]) -> Result<(), StoreError> {
        self.check(&self.ring(), kinds)
    }

    fn check(&self, ring: &Ring, kinds: &[Kind]) -> Result<(), StoreError> {
        let (mut locked, mut first) = (0usize, None);
        for key in self.all(kinds)? {
            let Ok(Some(stored)) = self.inner.load(&key) else { continue };
            let Some((id, _)) = header(&stored.bytes) else { continue };
            if ring.find(id).is_none() {
                locked += 1;
                first = first.or_else(|| Some(self.locked(&key, id, ring)));
            }
        }
        match first {
            None => Ok(()),
            Some(StoreError::Key(text)) if locked > 1 => {
                Err(StoreError::Key(format!("{text} {} more records need a key, too.", locked - 1)))
            }
            Some(error) => Err(error),
        }
    }

    /// Writes anew what is plain or under a former key. What cannot be written stays and is counted.
    pub fn sweep(&self) -> Result<Swept, StoreError> {
        let ring = self.ring();
        let Some(current) = &ring.current else { return Ok(Swept::default()) };
        let mut swept = Swept::default();
        let mut told = false;
        for key in self.all(&Kind::ALL)? {
            let done = self.inner.load(&key).and_then(|stored| match stored {
                Some(stored) if header(&stored.bytes).is_none_or(|(id, _)| id != current.id()) => {
                    let plain = self.open(&ring, &key, stored.bytes)?;
                    self.save(&key, &plain, &Expect::Is(stored.version), None).map(|_| true)
                }
                _ => Ok(false),
            });
            match done {
                Ok(written) => swept.sealed += usize::from(written),
                // Somebody wrote it meanwhile, and so with a key.
                Err(StoreError::Conflict(_)) => {}
                Err(error) => {
                    swept.left += 1;
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!("a record could not be encrypted anew: {error}");
                    }
                }
            }
        }
        Ok(swept)
    }

    fn all(&self, kinds: &[Kind]) -> Result<Vec<Key>, StoreError> {
        let mut keys = Vec::new();
        for kind in kinds {
            keys.append(&mut self.inner.list(*kind)?);
        }
        Ok(keys)
    }

    fn ring(&self) -> Arc<Ring> {
        Arc::clone(&self.ring.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn open(
        &self,
        ring: &Ring,
        key: &Key,
        bytes: Zeroizing<Vec<u8>>,
    ) -> Result<Zeroizing<Vec<u8>>, StoreError> {
        let Some((id, sealed)) = header(&bytes) else { return Ok(bytes) };
        let with = ring.find(id).ok_or_else(|| self.locked(key, id, ring))?;
        with.open(sealed, &context(id, key)).map_err(|_| StoreError::Corrupt {
            path: self.inner.place(key),
            found: format!("it does not open with its key {id}: it was changed, or belongs to another place"),
        })
    }

    fn locked(&self, key: &Key, id: &str, ring: &Ring) -> StoreError {
        StoreError::Key(format!(
            "{} is encrypted with the key {id}, but {}. Say that key in `store_key` of [acme], or among its \
             `previous`; to store without encryption, move the records with `tidegate certs export` and `import`. \
             Nothing is ordered, replaced or removed until then.",
            self.inner.place(key).display(),
            ring.known()
        ))
    }
}

impl Store for Sealed {
    fn load(&self, key: &Key) -> Result<Option<Stored>, StoreError> {
        let Some(stored) = self.inner.load(key)? else { return Ok(None) };
        let bytes = self.open(&self.ring(), key, stored.bytes)?;
        Ok(Some(Stored { bytes, version: stored.version }))
    }

    fn save(
        &self,
        key: &Key,
        bytes: &[u8],
        expect: &Expect,
        lock: Option<&dyn Lock>,
    ) -> Result<Version, StoreError> {
        let ring = self.ring();
        let Some(current) = &ring.current else { return self.inner.save(key, bytes, expect, lock) };
        let sealed = current
            .seal(bytes, &context(current.id(), key))
            .map_err(|_| StoreError::Key(format!("{} could not be encrypted.", self.place(key).display())))?;
        let mut whole = format!("{MAGIC}{}\n", current.id()).into_bytes();
        whole.extend_from_slice(&sealed);
        self.inner.save(key, &whole, expect, lock)
    }

    fn list(&self, kind: Kind) -> Result<Vec<Key>, StoreError> {
        self.inner.list(kind)
    }

    fn delete(&self, key: &Key, expect: &Expect) -> Result<(), StoreError> {
        self.inner.delete(key, expect)
    }

    fn lock(&self, name: &str, lease: Duration) -> Result<Option<Box<dyn Lock>>, StoreError> {
        self.inner.lock(name, lease)
    }

    fn changes(&self, kind: Kind, since: Option<&Mark>) -> Result<(Vec<Key>, Mark), StoreError> {
        self.inner.changes(kind, since)
    }

    fn ready(&self) -> Result<(), StoreError> {
        self.inner.ready()
    }

    fn place(&self, key: &Key) -> PathBuf {
        self.inner.place(key)
    }
}

/// The id of the key and what it sealed; `None` for a plain record (which begins with `{`).
fn header(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let rest = bytes.strip_prefix(MAGIC.as_bytes())?;
    let end = rest.iter().position(|byte| *byte == b'\n')?;
    let (id, sealed) = rest.split_at_checked(end)?;
    Some((std::str::from_utf8(id).ok()?, sealed.get(1..)?))
}

/// What is authenticated beside the content. The parts cannot run into each other: an id has no line feed.
fn context(key_id: &str, key: &Key) -> Vec<u8> {
    format!("{MAGIC}{key_id}\n{}\n{}", key.kind.word(), key.id()).into_bytes()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::FolderStore;
    use super::*;

    fn ring(current: Option<u8>, previous: &[u8]) -> Ring {
        let of = |number: u8| SealKey::numbered(number, Purpose::Records);
        Ring { current: current.map(of), previous: previous.iter().copied().map(of).collect() }
    }

    fn house(keys: Ring) -> (tempfile::TempDir, Sealed) {
        let state = tempfile::tempdir().unwrap();
        let store = FolderStore::open(state.path()).unwrap();
        (state, Sealed::new(Arc::new(store), keys))
    }

    fn again(state: &tempfile::TempDir, keys: Ring) -> Sealed {
        Sealed::new(Arc::new(FolderStore::open(state.path()).unwrap()), keys)
    }

    fn place(name: &str) -> Key {
        Key::new(Kind::Certificate, name)
    }

    /// Whether any file of the folder holds the text.
    fn lies_plain(state: &tempfile::TempDir, text: &[u8]) -> bool {
        let mut todo = vec![state.path().to_path_buf()];
        while let Some(path) = todo.pop() {
            match fs::metadata(&path).unwrap().is_dir() {
                true => todo.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path())),
                false if fs::read(&path).unwrap().windows(text.len()).any(|part| part == text) => {
                    return true;
                }
                false => {}
            }
        }
        false
    }

    #[test]
    fn turning_it_on_leaves_nothing_plain_and_turning_it_off_is_refused() {
        let (state, plain) = house(Ring::default());
        for kind in Kind::ALL {
            plain.save(&Key::new(kind, "shop"), b"{\"secret\":1}", &Expect::Any, None).unwrap();
        }
        assert_eq!(plain.sweep().unwrap(), Swept::default());
        assert!(lies_plain(&state, b"secret"));
        let sealed = again(&state, ring(Some(1), &[]));
        sealed.check_keys(&Kind::ALL).unwrap();
        assert_eq!(sealed.load(&place("shop")).unwrap().unwrap().bytes.as_slice(), b"{\"secret\":1}");
        assert_eq!(sealed.sweep().unwrap(), Swept { sealed: 4, left: 0 });
        assert_eq!(sealed.sweep().unwrap(), Swept::default(), "once is enough");
        assert!(!lies_plain(&state, b"secret"));
        for kind in Kind::ALL {
            let read = sealed.load(&Key::new(kind, "shop")).unwrap().unwrap();
            assert_eq!(read.bytes.as_slice(), b"{\"secret\":1}");
        }
        for keys in [ring(None, &[]), ring(Some(2), &[])] {
            let off = again(&state, keys);
            let error = off.check_keys(&Kind::ALL).unwrap_err().to_string();
            let id = SealKey::numbered(1, Purpose::Records).id().to_owned();
            assert!(
                error.contains(&id) && error.contains("certs export") && error.contains("3 more"),
                "{error}"
            );
            assert!(matches!(off.load(&place("shop")), Err(StoreError::Key(_))));
            assert!(off.save(&place("shop"), b"x", &Expect::Absent, None).is_err());
        }
    }

    #[test]
    fn keys_rotate_and_a_ring_that_reads_not_everything_is_refused() {
        let (state, sealed) = house(ring(Some(1), &[]));
        sealed.save(&place("a"), b"{a}", &Expect::Absent, None).unwrap();
        assert!(matches!(sealed.rekey(ring(Some(2), &[])), Err(StoreError::Key(_))));
        let version = sealed.load(&place("a")).unwrap().unwrap().version;
        sealed.save(&place("a"), b"{b}", &Expect::Is(version), None).unwrap();
        sealed.rekey(ring(Some(2), &[3, 1])).unwrap();
        assert_eq!(sealed.sweep().unwrap(), Swept { sealed: 1, left: 0 });
        let later = again(&state, ring(Some(2), &[]));
        later.check_keys(&Kind::ALL).unwrap();
        assert_eq!(later.load(&place("a")).unwrap().unwrap().bytes.as_slice(), b"{b}");
    }

    #[test]
    fn damage_and_records_that_changed_places_are_told_apart_from_a_wrong_key() {
        let (state, sealed) = house(ring(Some(1), &[]));
        let (a, b) = (place("a"), place("b"));
        let account = Key::new(Kind::Account, "a");
        sealed.save(&a, b"{a}", &Expect::Absent, None).unwrap();
        for other in [&b, &account] {
            fs::copy(sealed.place(&a), sealed.place(other)).unwrap();
            let error = sealed.load(other).unwrap_err();
            assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
            assert!(error.to_string().contains(sealed.place(other).to_str().unwrap()));
        }
        // What is sealed is bent, and the checksum made right again: only the tag can tell.
        let folder = FolderStore::open(state.path()).unwrap();
        let stored = folder.load(&a).unwrap().unwrap();
        for position in MAGIC.len() + 17..stored.bytes.len() {
            let mut bent = stored.bytes.to_vec();
            bent[position] ^= 1;
            folder.save(&a, &bent, &Expect::Any, None).unwrap();
            assert!(matches!(sealed.load(&a), Err(StoreError::Corrupt { .. })), "{position}");
            let cut = &stored.bytes[..position];
            folder.save(&a, cut, &Expect::Any, None).unwrap();
            assert!(matches!(sealed.load(&a), Err(StoreError::Corrupt { .. })), "{position}");
        }
        sealed.check_keys(&Kind::ALL).unwrap();
        assert_eq!(sealed.sweep().unwrap().left, 0, "what is sealed with the key in force is left as it is");
    }
}
