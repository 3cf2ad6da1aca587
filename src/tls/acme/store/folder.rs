//! Records as files: the embedded default, for one machine.
//!
//! Locks are the kernel's (`flock`): a holder that dies frees them at once, so there is no stale lock to recover and
//! the lease needs no clock. Every record is written atomically and durably and carries a checksum: what is damaged is
//! an error, never "absent", because "absent" leads to orders and new accounts.
//!
//! A folder that can be read but not written is opened all the same: what lies there serves, and each write says why
//! it fails.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{Expect, Key, Kind, Lock, Mark, Store, StoreError, Stored, Version, hex};
use crate::base::clock;
use crate::tls::file;

/// Most bytes of one record: a chain and a key have a few kilobytes.
const RECORD_BYTES_MAX: usize = 1 << 20;
/// First words of every record.
const MAGIC: &str = "tidegate-store 1 sha256";
/// Bytes that must find room before something is ordered; a record and its header have less than ten thousand.
const ROOM_BYTES: usize = 64 << 10;
/// Two writes closer together than this may have the same time stamp; nanoseconds.
const TICK: i128 = 2_000_000_000;

/// Records as files of a folder, mode 0600 in folders 0700.
#[derive(Debug)]
pub struct FolderStore {
    root: PathBuf,
}

impl FolderStore {
    /// Opens `<state>/acme`, making it when absent, and removes what a crash left half written. Errors: the folder
    /// cannot be made or entered.
    pub fn open(state: &Path) -> Result<FolderStore, StoreError> {
        let root = state.join("acme");
        for folder in Kind::ALL.iter().map(|kind| kind.word()).chain(["lock"]) {
            make_folder(&root.join(folder))?;
        }
        for folder in [state, &root] {
            match file::sync_folder(folder) {
                Err(error) if error.kind() != io::ErrorKind::ReadOnlyFilesystem => {
                    return Err(io_error(folder, "bring to the disk")(error));
                }
                _ => {}
            }
        }
        let store = FolderStore { root };
        store.tidy();
        Ok(store)
    }

    /// Opens `<state>/acme` for reading only; `None` when there is none. Changes nothing.
    pub fn existing(state: &Path) -> Result<Option<FolderStore>, StoreError> {
        let root = state.join("acme");
        match fs::metadata(&root) {
            Ok(_) => Ok(Some(FolderStore { root })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error(&root, "read")(error)),
        }
    }

    /// Removes what a crash left half written: it may hold a key. Best effort; a writer at work is left alone.
    fn tidy(&self) {
        let Ok(file) = open_lock(&self.root.join("lock").join("%writer")) else { return };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            return;
        }
        for kind in Kind::ALL {
            let entries = fs::read_dir(self.root.join(kind.word())).into_iter().flatten().flatten();
            for path in entries.map(|entry| entry.path()) {
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                if name.starts_with('.') && name.ends_with(".tmp") {
                    let _ = fs::remove_file(&path);
                }
            }
        }
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.root.join(key.kind.word()).join(format!("{}.rec", key.id))
    }

    fn check(&self, key: &Key, expect: &Expect) -> Result<(), StoreError> {
        let wanted = match expect {
            Expect::Any => return Ok(()),
            Expect::Absent => None,
            Expect::Is(version) => Some(version),
        };
        let found = self.load(key)?;
        match found.as_ref().map(|stored| &stored.version) == wanted {
            true => Ok(()),
            false => Err(StoreError::Conflict(key.id.clone())),
        }
    }

    /// One writer at a time, whatever process: comparing and writing must be one step.
    fn writer(&self) -> Result<File, StoreError> {
        let path = self.root.join("lock").join("%writer");
        let file = open_lock(&path)?;
        flock(&file, FlockOperation::LockExclusive)
            .map_err(|e| io_error(&path, "lock")(io::Error::from(e)))?;
        Ok(file)
    }
}

impl Store for FolderStore {
    fn load(&self, key: &Key) -> Result<Option<Stored>, StoreError> {
        let path = self.path(key);
        let bytes = match file::read_bounded(&path, RECORD_BYTES_MAX) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // The record is absent only if its folder is there: an unmounted disk is no reason to order.
                let folder = self.root.join(key.kind.word());
                fs::metadata(&folder).map_err(io_error(&folder, "read"))?;
                return Ok(None);
            }
            Err(error) => return Err(io_error(&path, "read")(error)),
        };
        let corrupt = |found: &str| StoreError::Corrupt { path: path.clone(), found: found.to_owned() };
        let end = bytes.iter().position(|b| *b == b'\n').ok_or_else(|| corrupt("it has no header line"))?;
        let (header, body) = bytes.split_at_checked(end + 1).ok_or_else(|| corrupt("it is cut off"))?;
        let sum = hex(&Sha256::digest(body));
        if header != format!("{MAGIC} {sum}\n").as_bytes() {
            return Err(corrupt("its checksum does not fit its content"));
        }
        Ok(Some(Stored { bytes: Zeroizing::new(body.to_vec()), version: Version(sum) }))
    }

    fn save(
        &self,
        key: &Key,
        bytes: &[u8],
        expect: &Expect,
        lock: Option<&dyn Lock>,
    ) -> Result<Version, StoreError> {
        let _writer = self.writer()?;
        self.check(key, expect)?;
        if lock.is_some_and(|lock| !lock.holds()) {
            return Err(StoreError::Conflict(format!("the lock for {}", key.id)));
        }
        let sum = hex(&Sha256::digest(bytes));
        let header = format!("{MAGIC} {sum}\n");
        let mut content = Zeroizing::new(Vec::with_capacity(header.len() + bytes.len()));
        content.extend_from_slice(header.as_bytes());
        content.extend_from_slice(bytes);
        let path = self.path(key);
        if content.len() > RECORD_BYTES_MAX {
            return Err(io_error(&path, "write")(io::ErrorKind::FileTooLarge.into()));
        }
        file::write_atomic(&path, &content, 0o600).map_err(io_error(&path, "write"))?;
        Ok(Version(sum))
    }

    fn list(&self, kind: Kind) -> Result<Vec<Key>, StoreError> {
        let folder = self.root.join(kind.word());
        let entries = fs::read_dir(&folder).map_err(io_error(&folder, "list"))?;
        let mut found = Vec::new();
        for entry in entries {
            let name = entry.map_err(io_error(&folder, "list"))?.file_name();
            // What a crash left half written has another ending.
            if let Some(id) = name.to_str().and_then(|name| name.strip_suffix(".rec")) {
                found.push(Key { kind, id: id.to_owned() });
            }
        }
        found.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(found)
    }

    fn delete(&self, key: &Key, expect: &Expect) -> Result<(), StoreError> {
        let _writer = self.writer()?;
        self.check(key, expect)?;
        let path = self.path(key);
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(io_error(&path, "remove")(error)),
        }
        let folder = self.root.join(key.kind.word());
        file::sync_folder(&folder).map_err(io_error(&folder, "bring to the disk"))
    }

    fn lock(&self, name: &str, _lease: Duration) -> Result<Option<Box<dyn Lock>>, StoreError> {
        let path = self.root.join("lock").join(&Key::new(Kind::Account, name).id);
        let mut held = open_lock(&path)?;
        match flock(&held, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(io_error(&path, "lock")(io::Error::from(error))),
        }
        let mut text = String::new();
        // Not valid UTF-8 counts as no token, like an empty file.
        let _ = (&mut held).take(32).read_to_string(&mut text);
        let token = text.trim().parse::<u64>().unwrap_or(0).saturating_add(1);
        // Written over the old one, all tokens being equally long: emptied first, the file would begin again at 1
        // when the disk is full.
        let write = |held: &mut File| -> io::Result<()> {
            held.seek(SeekFrom::Start(0))?;
            held.write_all(format!("{token:020}\n").as_bytes())
        };
        write(&mut held).map_err(io_error(&path, "write"))?;
        Ok(Some(Box::new(FolderLock { _held: held, path, token })))
    }

    fn changes(&self, kind: Kind, since: Option<&Mark>) -> Result<(Vec<Key>, Mark), StoreError> {
        let from = since.and_then(|mark| mark.0.parse::<i128>().ok()).unwrap_or(i128::MIN);
        let now = i128::from(clock::wall().as_secs()) * 1_000_000_000;
        let (mut found, mut newest) = (Vec::new(), i128::MIN);
        for key in self.list(kind)? {
            let path = self.path(&key);
            let metadata = match fs::metadata(&path) {
                Ok(metadata) => metadata,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(io_error(&path, "read")(error)),
            };
            // The time of the inode, not of the content: a file moved here from a backup has an old content.
            let changed = i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec());
            newest = newest.max(changed);
            if changed > from {
                found.push(key);
            }
        }
        // What is as new as this second may be written again with the same stamp.
        let settled = if newest > now - TICK { newest.saturating_sub(TICK) } else { newest };
        Ok((found, Mark(settled.to_string())))
    }

    fn ready(&self) -> Result<(), StoreError> {
        let _writer = self.writer()?;
        let path = self.root.join(Kind::Certificate.word()).join("room");
        let tried = file::temporary_beside(&path).and_then(|temporary| {
            let written = file::write_new(&temporary, &[0; ROOM_BYTES], 0o600);
            let removed = fs::remove_file(&temporary);
            written.and(removed)
        });
        tried.map_err(io_error(&self.root, "write into"))
    }

    fn place(&self, key: &Key) -> PathBuf {
        self.path(key)
    }
}

struct FolderLock {
    /// The kernel's lock lives as long as this file is open.
    _held: File,
    path: PathBuf,
    token: u64,
}

impl Lock for FolderLock {
    fn token(&self) -> u64 {
        self.token
    }

    fn holds(&self) -> bool {
        // The lock file may have been removed and taken anew by somebody else.
        fs::read_to_string(&self.path).is_ok_and(|text| text.trim().parse() == Ok(self.token))
    }
}

fn open_lock(path: &Path) -> Result<File, StoreError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(io_error(path, "open"))
}

fn make_folder(folder: &Path) -> Result<(), StoreError> {
    let existed = folder.is_dir();
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(io_error(folder, "make"))?;
    if existed {
        // Keys lie here: a folder that others may enter is closed, whoever opened it.
        let mode = fs::metadata(folder).map_err(io_error(folder, "read"))?.permissions().mode();
        if mode & 0o077 != 0 {
            match fs::set_permissions(folder, fs::Permissions::from_mode(0o700)) {
                Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                    tracing::warn!(
                        "{} may be entered by others, and cannot be closed: {error}",
                        folder.display()
                    );
                }
                closed => closed.map_err(io_error(folder, "close to others"))?,
            }
        }
    }
    Ok(())
}

fn io_error(path: &Path, doing: &'static str) -> impl Fn(io::Error) -> StoreError {
    move |error| StoreError::Io { path: path.to_owned(), doing, error }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, FolderStore) {
        let state = tempfile::tempdir().unwrap();
        let store = FolderStore::open(state.path()).unwrap();
        (state, store)
    }

    #[test]
    fn damage_of_any_kind_is_an_error_and_never_absence() {
        let (_state, store) = store();
        let key = Key::new(Kind::Account, "https://ca.test/dir");
        assert!(store.load(&key).unwrap().is_none());
        store.save(&key, b"content", &Expect::Absent, None).unwrap();
        let path = store.path(&key);
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(matches!(store.load(&key), Err(StoreError::Corrupt { .. })), "{length}");
        }
        for position in 0..whole.len() {
            let mut bent = whole.clone();
            bent[position] ^= 1;
            fs::write(&path, &bent).unwrap();
            assert!(store.load(&key).is_err(), "{position}");
            assert!(store.save(&key, b"x", &Expect::Absent, None).is_err());
        }
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(matches!(store.load(&key), Err(StoreError::Io { .. })));
        fs::remove_dir_all(store.root.join("account")).unwrap();
        assert!(matches!(store.load(&key), Err(StoreError::Io { .. })), "the whole folder is gone");
        assert!(store.list(Kind::Account).is_err());
    }

    #[test]
    fn a_write_happens_only_over_what_was_read() {
        let (state, store) = store();
        let key = Key::new(Kind::Certificate, "shop");
        let first = store.save(&key, b"1", &Expect::Absent, None).unwrap();
        assert!(matches!(store.save(&key, b"2", &Expect::Absent, None), Err(StoreError::Conflict(_))));
        let second = store.save(&key, b"2", &Expect::Is(first.clone()), None).unwrap();
        assert!(matches!(
            store.save(&key, b"3", &Expect::Is(first.clone()), None),
            Err(StoreError::Conflict(_))
        ));
        assert!(matches!(store.delete(&key, &Expect::Is(first)), Err(StoreError::Conflict(_))));
        let again = FolderStore::open(state.path()).unwrap();
        assert_eq!(again.load(&key).unwrap().unwrap().bytes.as_slice(), b"2");
        assert_eq!(again.list(Kind::Certificate).unwrap(), std::slice::from_ref(&key));
        store.delete(&key, &Expect::Is(second)).unwrap();
        store.delete(&key, &Expect::Any).unwrap();
        assert!(store.load(&key).unwrap().is_none());
    }

    #[test]
    fn a_lock_is_held_once_and_fences_its_former_holder() {
        let (state, store) = store();
        let lease = Duration::from_secs(60);
        let held = store.lock("a", lease).unwrap().unwrap();
        let other = FolderStore::open(state.path()).unwrap();
        assert!(other.lock("a", lease).unwrap().is_none());
        assert!(other.lock("b", lease).unwrap().is_some());
        // Somebody tidies the folder up: the lock is lost, and its holder writes nothing any more.
        fs::remove_file(store.root.join("lock/a")).unwrap();
        let key = Key::new(Kind::Failure, "a");
        assert!(matches!(
            store.save(&key, b"x", &Expect::Any, Some(held.as_ref())),
            Err(StoreError::Conflict(_))
        ));
        drop(held);
        let second = store.lock("a", lease).unwrap().unwrap();
        store.save(&key, b"x", &Expect::Any, Some(second.as_ref())).unwrap();
        let token = second.token();
        drop(second);
        assert!(store.lock("a", lease).unwrap().unwrap().token() > token);
    }

    #[test]
    fn only_the_owner_may_read_and_names_stay_apart() {
        let state = tempfile::tempdir().unwrap();
        fs::create_dir(state.path().join("acme")).unwrap();
        fs::create_dir(state.path().join("acme/account")).unwrap();
        fs::set_permissions(state.path().join("acme/account"), fs::Permissions::from_mode(0o755)).unwrap();
        let store = FolderStore::open(state.path()).unwrap();
        let long = "x".repeat(400);
        let names = ["a", "A", ".", "..", "../a", "%2e", "", "ä", &long, &format!("{long}y")];
        for name in names {
            store.save(&Key::new(Kind::Account, name), name.as_bytes(), &Expect::Absent, None).unwrap();
        }
        for name in names {
            let found = store.load(&Key::new(Kind::Account, name)).unwrap().unwrap();
            assert_eq!(found.bytes.as_slice(), name.as_bytes());
        }
        assert_eq!(store.list(Kind::Account).unwrap().len(), names.len());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&store.root.join("account")), 0o700);
        assert_eq!(mode(&store.path(&Key::new(Kind::Account, "a"))), 0o600);
    }

    #[test]
    fn changes_tell_what_was_written_and_moved_here_since() {
        let (_state, store) = store();
        let (first, second) = (Key::new(Kind::Certificate, "a"), Key::new(Kind::Certificate, "b"));
        let (none, start) = store.changes(Kind::Certificate, None).unwrap();
        assert!(none.is_empty());
        store.save(&first, b"1", &Expect::Any, None).unwrap();
        let (found, mark) = store.changes(Kind::Certificate, Some(&start)).unwrap();
        assert_eq!(found, std::slice::from_ref(&first));
        // An old file that comes back by renaming counts as new.
        let whole = fs::read(store.path(&first)).unwrap();
        let copy = store.root.join("old");
        fs::write(&copy, whole).unwrap();
        File::open(&copy).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
        fs::rename(&copy, store.path(&second)).unwrap();
        let (found, _) = store.changes(Kind::Certificate, Some(&mark)).unwrap();
        assert!(found.contains(&second), "{found:?}");
        assert!(store.changes(Kind::Account, Some(&mark)).unwrap().0.is_empty());
        let far = Mark(i128::MAX.to_string());
        assert!(store.changes(Kind::Certificate, Some(&far)).unwrap().0.is_empty());
        assert_eq!(store.changes(Kind::Certificate, None).unwrap().0.len(), 2);
    }

    #[test]
    fn what_a_crash_left_half_written_is_removed_but_not_from_under_a_writer() {
        let (state, store) = store();
        let litter = store.root.join("certificate/.shop.rec.0123456789abcdef.tmp");
        fs::write(&litter, "half a key").unwrap();
        let writer = store.writer().unwrap();
        FolderStore::open(state.path()).unwrap();
        assert!(litter.exists());
        drop(writer);
        FolderStore::open(state.path()).unwrap();
        assert!(!litter.exists());
        store.ready().unwrap();
        assert_eq!(fs::read_dir(store.root.join("certificate")).unwrap().count(), 0);
        fs::remove_dir(store.root.join("certificate")).unwrap();
        assert!(store.ready().is_err());
    }

    #[test]
    fn a_record_that_could_not_be_read_again_is_not_written() {
        let (_state, store) = store();
        let key = Key::new(Kind::Certificate, "a");
        store.save(&key, b"small", &Expect::Any, None).unwrap();
        assert!(store.save(&key, &vec![0; RECORD_BYTES_MAX], &Expect::Any, None).is_err());
        assert_eq!(store.load(&key).unwrap().unwrap().bytes.as_slice(), b"small");
        assert!(FolderStore::existing(&_state.path().join("nowhere")).unwrap().is_none());
    }

    #[test]
    fn a_place_is_found_again_by_its_id_and_nothing_else_is_a_place() {
        for name in ["shop", "../a", "ä", &"x".repeat(400)] {
            let key = Key::new(Kind::Failure, name);
            assert_eq!(Key::from_id(Kind::Failure, key.id()), Some(key));
        }
        for bad in ["../a", ".a", "a/b", "A", "a b", &"x".repeat(300)] {
            assert_eq!(Key::from_id(Kind::Failure, bad), None, "{bad}");
        }
    }
}
