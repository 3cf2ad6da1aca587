//! Where accounts, certificates and failures live: a trait, and a folder as the embedded default.
//!
//! The trait is small enough for etcd: `load` = get, its version = `mod_revision`; `save` = a transaction that compares
//! `mod_revision` (0 for absent) and the lock's create revision before the put; `list` = a prefix range; `lock` = a
//! lease with a key bound to it, whose create revision is the fencing token; a watch on the prefix replaces polling.
//!
//! [`FolderStore`] is for one machine. Its locks are the kernel's (`flock`): a holder that dies frees them at once, so
//! there is no stale lock to recover and the lease needs no clock. Every record is written atomically and durably and
//! carries a checksum: what is damaged is an error, never "absent", because "absent" leads to orders and new accounts.
//!
//! All calls block; callers on a runtime go through `spawn_blocking`.

use std::fmt::{self, Write as _};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::tls::file;

/// Most bytes of one record: a chain and a key have a few kilobytes.
const RECORD_BYTES_MAX: usize = 1 << 20;
/// Longest readable part of a file name; longer names end in a digest.
const ID_BYTES_MAX: usize = 120;
/// First words of every record.
const MAGIC: &str = "tidegate-store 1 sha256";

/// The kinds of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// An account at a CA, by the URL of its directory.
    Account,
    /// A certificate and its key, by site.
    Certificate,
    /// What failed and when to try again, by site.
    Failure,
    /// Orders left, by the URL of the directory.
    Budget,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 4] = [Kind::Account, Kind::Certificate, Kind::Failure, Kind::Budget];

    fn folder(self) -> &'static str {
        match self {
            Kind::Account => "account",
            Kind::Certificate => "certificate",
            Kind::Failure => "failure",
            Kind::Budget => "budget",
        }
    }
}

/// A record's place.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// Its kind.
    pub kind: Kind,
    /// Safe as a file name.
    id: String,
}

impl Key {
    /// The place of a name. Different names get different places.
    pub fn new(kind: Kind, name: &str) -> Key {
        let mut id = String::with_capacity(name.len());
        for (position, byte) in name.bytes().enumerate() {
            match byte {
                b'.' if position == 0 => id.push_str("%2e"),
                b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_' => id.push(char::from(byte)),
                // Writing to a String cannot fail.
                _ => drop(write!(id, "%{byte:02x}")),
            }
        }
        if id.len() > ID_BYTES_MAX {
            id.truncate(ID_BYTES_MAX);
            let _ = write!(id, "%+{}", hex(&Sha256::digest(name.as_bytes())));
        }
        Key { kind, id }
    }
}

/// Says which content was read; compared when writing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version(String);

/// What must be there for a write to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expect {
    /// Anything or nothing.
    Any,
    /// Nothing.
    Absent,
    /// Exactly this.
    Is(Version),
}

/// Content and its version.
#[derive(Debug)]
pub struct Stored {
    /// Wiped from memory when dropped.
    pub bytes: Zeroizing<Vec<u8>>,
    /// For [`Expect::Is`].
    pub version: Version,
}

/// Why the store did not do what was asked.
#[derive(Debug)]
pub enum StoreError {
    /// The system said no.
    Io { path: PathBuf, doing: &'static str, error: io::Error },
    /// A record is damaged.
    Corrupt { path: PathBuf, found: String },
    /// Somebody else wrote meanwhile, or the lock was lost.
    Conflict(String),
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreError::Io { path, doing, error } => {
                let mend = match error.kind() {
                    io::ErrorKind::PermissionDenied => "Give the folder to the user Tidegate runs as",
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "Make room on that disk",
                    io::ErrorKind::ReadOnlyFilesystem => "Mount that disk writable",
                    _ => "Check the disk and the folder",
                };
                write!(f, "The certificate store could not {doing} {}: {error}. {mend}.", path.display())
            }
            StoreError::Corrupt { path, found } => write!(
                f,
                "{} is damaged: {found}. Restore it from a backup; only if there is none, move it away, and what it \
                 held is made anew.",
                path.display()
            ),
            StoreError::Conflict(what) => {
                write!(
                    f,
                    "Another process changed {what} in the certificate store meanwhile; nothing was written."
                )
            }
        }
    }
}

impl std::error::Error for StoreError {}

/// A held lock; freed when dropped or when the process dies.
pub trait Lock: Send + Sync {
    /// Larger than any token given before for the same name: writes of former holders are refused by it.
    fn token(&self) -> u64;
    /// Whether nobody has taken the lock since.
    fn holds(&self) -> bool;
}

/// Where records live.
pub trait Store: Send + Sync {
    /// A record; `None` only if it is certainly absent.
    fn load(&self, key: &Key) -> Result<Option<Stored>, StoreError>;
    /// Writes a record, all or nothing, durable on return. With a `lock`, only while that is held.
    fn save(
        &self,
        key: &Key,
        bytes: &[u8],
        expect: &Expect,
        lock: Option<&dyn Lock>,
    ) -> Result<Version, StoreError>;
    /// The places of all records of a kind.
    fn list(&self, kind: Kind) -> Result<Vec<Key>, StoreError>;
    /// Removes a record; an absent one is no error.
    fn delete(&self, key: &Key, expect: &Expect) -> Result<(), StoreError>;
    /// Takes the lock of a name, or `None` if somebody else holds it. `lease`: how long it outlives a holder that
    /// nobody hears of any more.
    fn lock(&self, name: &str, lease: Duration) -> Result<Option<Box<dyn Lock>>, StoreError>;
}

/// Records as files of a folder, mode 0600 in folders 0700.
#[derive(Debug)]
pub struct FolderStore {
    root: PathBuf,
}

impl FolderStore {
    /// Opens `<state>/acme`, making it when absent. Errors: the folder cannot be made, read or written.
    pub fn open(state: &Path) -> Result<FolderStore, StoreError> {
        let root = state.join("acme");
        for folder in Kind::ALL.iter().map(|kind| kind.folder()).chain(["lock"]) {
            make_folder(&root.join(folder))?;
        }
        for folder in [state, &root] {
            file::sync_folder(folder).map_err(io_error(folder, "bring to the disk"))?;
        }
        Ok(FolderStore { root })
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.root.join(key.kind.folder()).join(format!("{}.rec", key.id))
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
                let folder = self.root.join(key.kind.folder());
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
        file::write_atomic(&path, &content, 0o600).map_err(io_error(&path, "write"))?;
        Ok(Version(sum))
    }

    fn list(&self, kind: Kind) -> Result<Vec<Key>, StoreError> {
        let folder = self.root.join(kind.folder());
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
        let folder = self.root.join(key.kind.folder());
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
        let write = |held: &mut File| -> io::Result<()> {
            held.seek(SeekFrom::Start(0))?;
            held.set_len(0)?;
            writeln!(held, "{token}")
        };
        write(&mut held).map_err(io_error(&path, "write"))?;
        Ok(Some(Box::new(FolderLock { _held: held, path, token })))
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
        fs::read_to_string(&self.path).is_ok_and(|text| text.trim() == self.token.to_string())
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
            fs::set_permissions(folder, fs::Permissions::from_mode(0o700))
                .map_err(io_error(folder, "close to others"))?;
        }
    }
    Ok(())
}

fn io_error(path: &Path, doing: &'static str) -> impl Fn(io::Error) -> StoreError {
    move |error| StoreError::Io { path: path.to_owned(), doing, error }
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
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
}
