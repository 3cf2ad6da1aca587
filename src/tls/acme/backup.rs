//! Backups: a whole store in one file, encrypted and authenticated as a whole (AES-256-GCM, RFC 5116).
//!
//! The first line says what the file is, which version of it, and which key it needs; the rest is one message, so that a
//! file that was cut, changed or put together from two does not open at all. Inside are lines of JSON: one about the
//! backup, then one for each record, as plain as the store gives it: keys of stores and of backups have nothing to do
//! with each other.
//!
//! [`import`] never replaces what is newer or somebody else's unless told to, and writes nothing before it has seen that
//! every record can be read and what lies in the store can be, too.

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::record;
use super::store::key::SealKey;
use super::store::{Key, Kind, Store, StoreError};

mod merge;

pub use merge::{Line, Outcome, all_new, import};

/// First words of a backup; the id of the key and a line feed follow.
const MAGIC: &str = "tidegate-backup ";
const HEAD: &str = "tidegate-backup 1 aes-256-gcm ";
/// Longest first line.
const HEAD_BYTES_MAX: usize = 256;
/// Most bytes of a backup: fifty thousand certificates.
pub const BYTES_MAX: usize = 512 << 20;

/// A record outside of a store.
pub struct Record {
    /// Its place.
    pub key: Key,
    /// Its content, wiped from memory when dropped.
    pub bytes: Zeroizing<Vec<u8>>,
}

/// What a backup holds.
pub struct Backup {
    /// When it was made; seconds since 1970.
    pub created: u64,
    /// All of it.
    pub records: Vec<Record>,
}

/// The first line inside.
#[derive(Serialize, Deserialize)]
struct About {
    created: u64,
    records: usize,
}

/// One record inside.
#[derive(Serialize)]
struct Written<'a> {
    kind: &'static str,
    id: &'a str,
    content: &'a str,
}

#[derive(Deserialize)]
struct Read {
    kind: String,
    id: String,
    content: String,
}

/// Reads a whole store. Beside the records: sentences about what cannot be read. Errors: nothing can be, or a key is not
/// at hand.
pub fn gather(store: &dyn Store) -> Result<(Vec<Record>, Vec<String>), StoreError> {
    let (mut records, mut unreadable) = (Vec::new(), Vec::new());
    for kind in Kind::ALL {
        for key in store.list(kind)? {
            let stored = match store.load(&key) {
                Ok(Some(stored)) => stored,
                Ok(None) => continue,
                Err(StoreError::Key(what)) => return Err(StoreError::Key(what)),
                Err(error) => {
                    unreadable.push(error.to_string());
                    continue;
                }
            };
            let record = Record { key, bytes: stored.bytes };
            match record::check(record.key.kind, &record.bytes) {
                Ok(()) => records.push(record),
                Err(why) => {
                    unreadable.push(format!("{} is left out: {why}", store.place(&record.key).display()))
                }
            }
        }
    }
    Ok((records, unreadable))
}

/// Makes the file. Errors are sentences.
pub fn pack(records: &[Record], key: &SealKey, now: u64) -> Result<Vec<u8>, String> {
    let size: usize = records.iter().map(|record| record.bytes.len() + record.key.id().len()).sum();
    // Escapes and braces need room, too; a vector that grows would leave copies of keys behind.
    let mut plain = Zeroizing::new(Vec::with_capacity(size + size / 2 + 1024));
    let failed = |error: serde_json::Error| format!("The backup could not be written: {error}.");
    line(&mut plain, &About { created: now, records: records.len() }).map_err(failed)?;
    for record in records {
        let content = std::str::from_utf8(&record.bytes)
            .map_err(|_| format!("The record {} is no text.", record.key.id()))?;
        let written = Written { kind: record.key.kind.word(), id: record.key.id(), content };
        line(&mut plain, &written).map_err(failed)?;
    }
    let head = format!("{HEAD}{}\n", key.id());
    let sealed =
        key.seal(&plain, head.as_bytes()).map_err(|_| "The backup could not be encrypted.".to_owned())?;
    let mut file = head.into_bytes();
    file.extend_from_slice(&sealed);
    match file.len() > BYTES_MAX {
        true => {
            Err(format!("The backup would have {} bytes; at most {BYTES_MAX} are read again.", file.len()))
        }
        false => Ok(file),
    }
}

fn line(into: &mut Vec<u8>, value: &impl Serialize) -> Result<(), serde_json::Error> {
    serde_json::to_writer(&mut *into, value)?;
    into.push(b'\n');
    Ok(())
}

/// Opens the file and looks at every record in it. Errors are sentences; then nothing of it is to be believed.
pub fn unpack(file: &[u8], key: &SealKey) -> Result<Backup, String> {
    let (head, sealed) = head(file)?;
    let plain = match head.strip_prefix(HEAD).map(str::trim_end) {
        None => {
            return Err(format!(
                "This backup is of a kind that this version does not know (`{}`). Use the version of Tidegate that \
                 made it, or a newer one.",
                head.trim_end().escape_default()
            ));
        }
        Some(id) if id != key.id() => {
            return Err(format!(
                "This backup needs the key {}, and the key given is {}. Name the one it was made with.",
                id.escape_default(),
                key.id()
            ));
        }
        Some(_) => key.open(sealed, head.as_bytes()).map_err(|_| {
            "This backup is damaged: it was cut or changed, or was made with another key. Nothing of it is used."
                .to_owned()
        })?,
    };
    let mut lines = plain.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let foreign = |error: serde_json::Error| {
        format!("This backup holds what this version does not know: {error}. Was it made by a newer one?")
    };
    let about: About = serde_json::from_slice(lines.next().unwrap_or_default()).map_err(foreign)?;
    let mut records = Vec::new();
    for line in lines {
        let read: Read = serde_json::from_slice(line).map_err(foreign)?;
        let bytes = Zeroizing::new(read.content.into_bytes());
        let kind = Kind::ALL.into_iter().find(|kind| kind.word() == read.kind);
        let key = kind.and_then(|kind| Key::from_id(kind, &read.id)).ok_or_else(|| {
            let (kind, id) = (read.kind.escape_default(), read.id.escape_default());
            format!("This backup holds a record that this version does not know: {kind} {id}.")
        })?;
        record::check(key.kind, &bytes)
            .map_err(|why| format!("The {} {} in this backup cannot be used: {why}", read.kind, key.id()))?;
        records.push(Record { key, bytes });
    }
    match records.len() == about.records {
        true => Ok(Backup { created: about.created, records }),
        false => {
            Err(format!("This backup says it holds {} records, and holds {}.", about.records, records.len()))
        }
    }
}

/// The first line with its end, and the rest.
fn head(file: &[u8]) -> Result<(&str, &[u8]), String> {
    let end = file.iter().take(HEAD_BYTES_MAX).position(|byte| *byte == b'\n');
    let parts = end.and_then(|end| file.split_at_checked(end + 1));
    let head = parts.and_then(|(head, rest)| Some((std::str::from_utf8(head).ok()?, rest)));
    head.filter(|(head, _)| head.starts_with(MAGIC)).ok_or_else(|| {
        "This is no backup of Tidegate: those begin with `tidegate-backup`. Was another file meant?"
            .to_owned()
    })
}

#[cfg(test)]
mod tests;
