//! Where accounts, certificates and failures live: a trait, and a folder as the embedded default.
//!
//! [`folder`]: the embedded default, for one machine. [`seal`]: encryption at rest, over any store. [`key`]: the keys
//! for that, and for backups.
//!
//! # For whoever puts etcd behind the trait
//!
//! Records are small, written rarely and read whole; nothing here needs more than etcd's v3 API. With `P` as the
//! prefix of all keys:
//!
//! | method | etcd |
//! |---|---|
//! | [`Store::load`] | `Range(P/kind/id)`, linearizable; the [`Version`] is its `mod_revision`. No leader or no answer is an error, never "absent" |
//! | [`Store::save`] | one `Txn`: compare `mod_revision(P/kind/id)` with [`Expect`] (0 for absent), and with a lock compare `create_revision(P/lock/name)` with [`Lock::token`]; then `Put`. A failed compare is [`StoreError::Conflict`] |
//! | [`Store::delete`] | the same `Txn` with `DeleteRange` |
//! | [`Store::list`] | `Range(P/kind/ …)`, keys only, in pages |
//! | [`Store::changes`] | without a mark: `Range` of the prefix, and the header's revision is the [`Mark`]; with one: what a `Watch(P/kind/ …, start_revision = mark + 1)` has brought since, deletions among it. A compacted revision: everything, as without a mark |
//! | [`Store::lock`] | `LeaseGrant(lease)` kept alive in the background, then `Txn`: `create_revision(P/lock/name) = 0` → `Put` bound to the lease. The fencing token is the create revision of that key: it only grows |
//! | [`Lock::holds`] | the last answer to `LeaseKeepAlive` is younger than the lease, by the monotonic clock. A hint only: what protects is the compare in `save` |
//! | [`Store::ready`] | `Status`, and `Alarm` without `NOSPACE` |
//!
//! What follows from it for callers, also with the folder: a lock is no proof, so whoever holds one passes it to `save`;
//! a version is opaque and compared for equality only; a mark may tell of a record twice, and of one's own writes.
//!
//! All calls block; callers on a runtime go through `spawn_blocking`.

pub mod folder;
pub mod key;
pub mod seal;

use std::fmt::{self, Write as _};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

pub use self::folder::FolderStore;

/// Longest readable part of a file name; longer names end in a digest.
const ID_BYTES_MAX: usize = 120;
/// Longest id: the readable part and a digest.
const ID_WHOLE_BYTES_MAX: usize = ID_BYTES_MAX + 2 + 64;

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

    /// One word: the folder, and what backups call it.
    pub fn word(self) -> &'static str {
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

    /// The place that was called so by [`Key::id`]; `None` for what no place is called.
    pub fn from_id(kind: Kind, id: &str) -> Option<Key> {
        let legal = |byte: u8| {
            byte.is_ascii_lowercase()
                || byte.is_ascii_digit()
                || matches!(byte, b'.' | b'-' | b'_' | b'%' | b'+')
        };
        let whole = id.len() <= ID_WHOLE_BYTES_MAX && !id.starts_with('.') && id.bytes().all(legal);
        whole.then(|| Key { kind, id: id.to_owned() })
    }

    /// What the place is called: safe as a file name.
    pub fn id(&self) -> &str {
        &self.id
    }
}

/// Says which content was read; compared when writing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version(String);

/// A moment in the life of a store: what was written after it can be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark(String);

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
    /// A record is encrypted with a key that is not at hand, or a key cannot be had.
    Key(String),
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
                "{} is damaged: {found}. Restore it from a backup (`tidegate certs import`); only if there is none, \
                 move it away, and what it held is made anew.",
                path.display()
            ),
            StoreError::Key(what) => f.write_str(what),
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
    /// Records of a kind that may have been written since a mark (all without one), and the mark to ask with next.
    /// Does not wait. Too many is no error: one written just before the mark may be told again, one's own too.
    fn changes(&self, kind: Kind, since: Option<&Mark>) -> Result<(Vec<Key>, Mark), StoreError>;
    /// Whether a record could be written now. Asked before something is ordered that would be lost otherwise.
    fn ready(&self) -> Result<(), StoreError>;
    /// Where a record lies, for messages.
    fn place(&self, key: &Key) -> PathBuf;
}

/// Lower case.
pub(super) fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}
