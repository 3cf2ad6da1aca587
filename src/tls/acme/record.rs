//! What is written into the store: certificates, failures, budgets; JSON inside the store's checksum.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::queue::{Bucket, Lifetime};
use super::store::{Key, Kind, Store, StoreError, Version};
use crate::base::clock_guard::OFF_MAX;
use crate::tls::pem::{self, Identity};

/// Threads that read a store; more do not help a disk.
const THREADS_MAX: usize = 8;
/// Certificates that are worth a thread.
const SHARE_MIN: usize = 64;

/// A certificate with its key.
#[derive(Clone, Serialize, Deserialize)]
pub struct Certificate {
    /// Whose it is.
    pub site: Arc<str>,
    /// Names it was ordered for.
    pub names: Vec<String>,
    /// URL of the CA's directory.
    pub directory: Arc<str>,
    /// What the settings called the CA.
    pub ca: Arc<str>,
    /// Which engine got it.
    pub engine: String,
    /// PEM, leaf first.
    pub chain: String,
    /// PEM, PKCS #8.
    pub key: String,
    /// Seconds since 1970, like all times here.
    pub issued_at: u64,
    /// Beginning of validity.
    pub not_before: u64,
    /// End of validity.
    pub not_after: u64,
    /// What the CA suggested (RFC 9773), and the second chosen in it.
    pub suggested: Option<Suggested>,
    /// When it is to be renewed.
    pub renew_at: u64,
    /// It replaced one before its own time, because the CA wanted that one renewed at once.
    #[serde(default)]
    pub hurried: bool,
    /// For names on demand.
    #[serde(default)]
    pub demand: Option<Demanded>,
}

/// What is kept of a name on demand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Demanded {
    /// The site that took it.
    pub site: Arc<str>,
    /// Whether somebody asked for it since this certificate was issued.
    pub asked: bool,
}

/// A window of renewal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suggested {
    /// First second.
    pub start: u64,
    /// Last second.
    pub end: u64,
    /// Chosen at random between them, once per window.
    pub chosen: u64,
    /// Where a person can read why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub explanation: Option<String>,
}

/// What went wrong for a site, so that backoff survives restarts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Whose.
    pub site: Arc<str>,
    /// Names that were wanted; other names start afresh.
    pub names: Vec<String>,
    /// Failures in a row.
    pub attempts: u32,
    /// Seconds since 1970.
    pub next_try: u64,
    /// When it was noted, by the clock of then.
    #[serde(default)]
    pub at: u64,
    /// One word.
    pub reason: String,
    /// The CA's own words, and what to do.
    pub message: String,
}

impl Failure {
    /// When the next try may be, also if the clock was ahead when the failure was noted and is right by now.
    pub fn due(&self, now: u64) -> u64 {
        match self.at > now.saturating_add(OFF_MAX) {
            true => now.saturating_add(self.next_try.saturating_sub(self.at)),
            false => self.next_try,
        }
    }
}

/// A certificate in memory.
pub struct Held {
    /// As stored.
    pub record: Certificate,
    /// Which content of the store it is.
    pub version: Version,
    /// Ready to be served.
    pub identity: Arc<Identity>,
    /// When the CA is to be asked about renewal; seconds since 1970.
    pub ask_at: u64,
    /// Whether somebody asked for it since it was issued; workers raise it. Of use for names on demand only.
    pub asked: Arc<AtomicBool>,
    /// Questions in a row without an answer.
    pub unanswered: u32,
}

impl Held {
    /// Parses a record.
    pub fn new(record: Certificate, version: Version) -> Result<Held, String> {
        let parsed = pem::from_bytes(record.chain.as_bytes(), record.key.as_bytes());
        let identity = Arc::new(parsed.map_err(|e| e.message)?);
        let asked = record.demand.as_ref().is_some_and(|demand| demand.asked);
        let asked = Arc::new(AtomicBool::new(asked));
        Ok(Held { record, version, identity, ask_at: 0, asked, unanswered: 0 })
    }

    /// The site that took this name on demand.
    pub fn owner(&self) -> Option<&str> {
        self.record.demand.as_ref().map(|demand| &*demand.site)
    }

    /// Whether it serves all these names.
    pub fn covers(&self, names: &[String]) -> bool {
        names.iter().all(|name| self.covers_name(name))
    }

    /// Whether it serves this one.
    pub fn covers_name(&self, name: &str) -> bool {
        pem::names_cover(&self.identity, name)
    }

    /// For the queue.
    pub fn lifetime(&self) -> Lifetime {
        let Certificate { not_before, not_after, renew_at, .. } = self.record;
        Lifetime { not_before, not_after, renew_at }
    }

    /// The site's own certificate.
    pub fn leaf(&self) -> Option<CertificateDer<'static>> {
        self.identity.key.cert.first().cloned()
    }
}

/// Why a certificate cannot be read; a sentence each.
#[derive(Debug)]
pub enum Unreadable {
    /// It needs a key that is not at hand.
    Key(String),
    /// It is damaged, or the system said no.
    Other(String),
}

/// Reads the certificate of a place. The error is a sentence: what cannot be read is never taken for absent.
pub fn load(store: &dyn Store, place: &Key) -> Result<Option<Held>, String> {
    read(store, place).map_err(|(Unreadable::Key(why) | Unreadable::Other(why))| why)
}

fn read(store: &dyn Store, place: &Key) -> Result<Option<Held>, Unreadable> {
    let stored = store.load(place).map_err(|error| match error {
        StoreError::Key(why) => Unreadable::Key(why),
        other => Unreadable::Other(other.to_string()),
    })?;
    let Some(stored) = stored else { return Ok(None) };
    let shown = || store.place(place).display().to_string();
    let record = serde_json::from_slice::<Certificate>(&stored.bytes).map_err(|e| {
        let why = format!("{} holds no certificate that can be read: {e}.", shown());
        Unreadable::Other(format!("{why} Was it written by a newer version?"))
    })?;
    let held = Held::new(record, stored.version);
    held.map(Some)
        .map_err(|e| Unreadable::Other(format!("The stored certificate {} cannot be used: {e}", shown())))
}

/// The certificate of a place, as it was found.
pub type Found = (Key, Result<Option<Held>, Unreadable>);

/// Reads many at once, on as many threads as help: what costs is parsing keys and certificates.
pub fn load_all(store: &dyn Store, places: &[Key]) -> Vec<Found> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
    let share = places.len().div_ceil(threads).max(SHARE_MIN);
    let part = |part: &[Key]| -> Vec<Found> {
        part.iter().map(|place| (place.clone(), read(store, place))).collect()
    };
    std::thread::scope(|scope| {
        let mut parts = places.chunks(share);
        let own = parts.next().unwrap_or_default();
        let others: Vec<_> = parts.map(|places| (places, scope.spawn(move || part(places)))).collect();
        let mut found = part(own);
        for (places, thread) in others {
            // A thread that ended badly is made up for here.
            found.extend(thread.join().unwrap_or_else(|_| part(places)));
        }
        found
    })
}

/// Whether the content of a record of a kind can be used: for what comes from outside of the store. The error is a
/// sentence.
pub fn check(kind: Kind, bytes: &[u8]) -> Result<(), String> {
    let said = |error: serde_json::Error| format!("it is not of the right form: {error}.");
    match kind {
        Kind::Certificate => {
            let record = serde_json::from_slice::<Certificate>(bytes).map_err(said)?;
            let parsed = pem::from_bytes(record.chain.as_bytes(), record.key.as_bytes());
            parsed.map(drop).map_err(|error| error.message)
        }
        Kind::Account => serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(bytes)
            .map_err(said)
            .map(drop),
        Kind::Failure => serde_json::from_slice::<Failure>(bytes).map_err(said).map(drop),
        Kind::Budget => serde_json::from_slice::<Option<Bucket>>(bytes).map_err(said).map(drop),
    }
}

/// Reads all failures; one that cannot be read is no reason to stop, and counts as none.
pub fn failures(store: &dyn Store) -> Result<Vec<Failure>, StoreError> {
    let mut found = Vec::new();
    for place in store.list(Kind::Failure)? {
        match store.load(&place).map(|stored| stored.map(|s| serde_json::from_slice::<Failure>(&s.bytes))) {
            Ok(Some(Ok(failure))) => found.push(failure),
            Ok(None) => {}
            Ok(Some(Err(error))) => tracing::warn!("a stored failure cannot be read: {error}"),
            Err(error) => tracing::warn!("{error}"),
        }
    }
    Ok(found)
}

/// Reads the budget at a CA; one that cannot be read counts as used up, so that nothing is overspent.
pub fn budget(store: &dyn Store, directory: &str, limit: u32, now: u64) -> Bucket {
    let stored = store.load(&Key::new(Kind::Budget, directory));
    match stored.map(|stored| stored.map(|s| serde_json::from_slice::<Bucket>(&s.bytes))) {
        Ok(None) => Bucket::full(limit, now),
        Ok(Some(Ok(bucket))) => bucket,
        Ok(Some(Err(_))) | Err(_) => Bucket { left: 0.0, at: now },
    }
}

/// As bytes that are wiped when dropped.
pub fn bytes(record: &impl Serialize) -> Zeroizing<Vec<u8>> {
    // Strings and numbers always have a JSON form; an empty record would be refused when read.
    Zeroizing::new(serde_json::to_vec(record).unwrap_or_default())
}
