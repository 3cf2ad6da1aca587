//! A backup into a store: what is taken, what is left, and why.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::{Backup, Record};
use crate::tls::acme::record::Certificate;
use crate::tls::acme::store::{Expect, Kind, Lock, Store, StoreError};

/// How long the lock of a record outlives us.
const LEASE: Duration = Duration::from_secs(60);

/// What became of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// There was none: it is there now.
    Added,
    /// It is there now instead of an older, a damaged, or (by force) any other one.
    Replaced,
    /// The same lay there.
    Same,
    /// The one that lies there is newer.
    NewerHere,
    /// What lies there is kept: counts of a running store are truer than those of a backup.
    KeptHere,
    /// Another account lies there.
    OtherAccount,
    /// An order or a registration is under way.
    Busy,
}

impl Outcome {
    /// Whether a person should look at it.
    pub fn is_trouble(self) -> bool {
        matches!(self, Outcome::OtherAccount | Outcome::Busy)
    }

    /// Whether it was (or would be) written.
    pub fn is_taken(self) -> bool {
        matches!(self, Outcome::Added | Outcome::Replaced)
    }
}

/// One record of a backup and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// `account`, `certificate`, `failure`, `budget`.
    pub kind: &'static str,
    /// The site, the directory, or what the place is called.
    pub name: String,
    /// What became of it.
    pub outcome: Outcome,
    /// A sentence.
    pub why: String,
}

/// Brings a backup into a store. With `force`, what is newer or somebody else's is replaced, too; `dry`: nothing is
/// written, and the lines say what would be. Errors: what lies in the store cannot be read, so that nothing was written;
/// or it could not be written, and the lines before say what was.
pub fn import(
    store: &dyn Store,
    backup: &Backup,
    force: bool,
    dry: bool,
) -> Result<Vec<Line>, (Vec<Line>, StoreError)> {
    let mut decided = Vec::with_capacity(backup.records.len());
    for record in &backup.records {
        decided.push((record, decide(store, record, force).map_err(|error| (Vec::new(), error))?));
    }
    let mut lines = Vec::with_capacity(decided.len());
    for (record, decision) in decided {
        let decision = match decision.expect {
            Some(expect) if !dry => match write(store, record, &expect) {
                Ok(true) => Decision { expect: None, ..decision },
                Ok(false) => Decision::keep(Outcome::Busy, "somebody else works on it just now: try again"),
                Err(error) => return Err((lines, error)),
            },
            _ => decision,
        };
        let (kind, name) = (record.key.kind.word(), name(record));
        lines.push(Line { kind, name, outcome: decision.outcome, why: decision.why.to_owned() });
    }
    Ok(lines)
}

/// What an import into an empty store would do.
pub fn all_new(backup: &Backup) -> Vec<Line> {
    let line = |record: &Record| Line {
        kind: record.key.kind.word(),
        name: name(record),
        outcome: Outcome::Added,
        why: "there was none".to_owned(),
    };
    backup.records.iter().map(line).collect()
}

/// What is to be done with a record.
struct Decision {
    outcome: Outcome,
    why: &'static str,
    /// What must lie there for it to be written; `None`: it is not written.
    expect: Option<Expect>,
}

impl Decision {
    fn keep(outcome: Outcome, why: &'static str) -> Decision {
        Decision { outcome, why, expect: None }
    }

    fn replace(why: &'static str, expect: Expect) -> Decision {
        Decision { outcome: Outcome::Replaced, why, expect: Some(expect) }
    }
}

fn decide(store: &dyn Store, record: &Record, force: bool) -> Result<Decision, StoreError> {
    let there = match store.load(&record.key) {
        Ok(Some(there)) => there,
        Ok(None) => {
            let (outcome, expect) = (Outcome::Added, Some(Expect::Absent));
            return Ok(Decision { outcome, why: "there was none", expect });
        }
        // That is what backups are for. What a key is missing for is not damaged, and stays.
        Err(StoreError::Corrupt { .. }) => {
            return Ok(Decision::replace("what lay there was damaged", Expect::Any));
        }
        Err(error) => return Err(error),
    };
    if there.bytes == record.bytes {
        return Ok(Decision::keep(Outcome::Same, "the same lies there"));
    }
    let over = Expect::Is(there.version);
    Ok(match record.key.kind {
        Kind::Certificate => match (age(&there.bytes), age(&record.bytes)) {
            (Some(here), Some(ours)) if here > ours && force => {
                Decision::replace("by force: it is older", over)
            }
            (Some(here), Some(ours)) if here > ours => {
                Decision::keep(Outcome::NewerHere, "the one that lies there is newer")
            }
            (None, _) => Decision::replace("what lay there could not be used", over),
            _ => Decision::replace("it is newer", over),
        },
        Kind::Account => match (field(&there.bytes, "key"), field(&record.bytes, "key")) {
            (None, _) => Decision::replace("what lay there could not be used", over),
            (here, ours) if here == ours && registered(&there.bytes) => {
                Decision::keep(Outcome::Same, "the same account lies there")
            }
            (here, ours) if here == ours => Decision::replace("it is the same account, and registered", over),
            _ if force => Decision::replace("by force: another account lay there", over),
            _ => Decision::keep(Outcome::OtherAccount, "another account lies there: --force replaces it"),
        },
        _ if force => Decision::replace("by force", over),
        _ => Decision::keep(Outcome::KeptHere, "what lies there is kept"),
    })
}

/// When a certificate was issued and how long it lasts: the later, the newer.
fn age(bytes: &[u8]) -> Option<(u64, u64)> {
    serde_json::from_slice::<Certificate>(bytes).ok().map(|found| (found.issued_at, found.not_after))
}

fn field(bytes: &[u8], name: &str) -> Option<String> {
    let value: Value = serde_json::from_slice(bytes).ok()?;
    value.get(name)?.as_str().map(str::to_owned)
}

/// Whether the CA has heard of an account.
fn registered(bytes: &[u8]) -> bool {
    let value: Option<Value> = serde_json::from_slice(bytes).ok();
    value.and_then(|value| value.get("credentials").map(|found| !found.is_null())).unwrap_or(false)
}

/// `false`: somebody else holds the record, or wrote it meanwhile.
fn write(store: &dyn Store, record: &Record, expect: &Expect) -> Result<bool, StoreError> {
    let lock: Option<Box<dyn Lock>> = match lock_name(record) {
        None => None,
        Some(name) => match store.lock(&name, LEASE)? {
            Some(lock) => Some(lock),
            None => return Ok(false),
        },
    };
    match store.save(&record.key, &record.bytes, expect, lock.as_deref()) {
        Ok(_) => Ok(true),
        Err(StoreError::Conflict(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The lock that those take who order or register.
fn lock_name(record: &Record) -> Option<String> {
    match record.key.kind {
        Kind::Certificate => field(&record.bytes, "site").map(|site| format!("site {site}")),
        Kind::Account => field(&record.bytes, "directory"),
        Kind::Failure | Kind::Budget => None,
    }
}

fn name(record: &Record) -> String {
    let field_name = match record.key.kind {
        Kind::Certificate | Kind::Failure => "site",
        Kind::Account | Kind::Budget => "directory",
    };
    field(&record.bytes, field_name).unwrap_or_else(|| record.key.id().to_owned())
}
