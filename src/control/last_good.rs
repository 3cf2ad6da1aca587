//! The last good version of every site, on disk: what a site falls back to when the process starts with a bad file.
//!
//! One JSON file in the state folder, replaced whole; copies of certificates and keys beside it, named by their
//! fingerprint, mode 0600. A store that cannot be read or written is told in the log and costs nothing else: it is
//! only needed when two things fail at once.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::{BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize, Serializer};

use crate::base::gentle;
use crate::tls::file;
use crate::tls::pem::{self, Identity};

/// Largest store read: 100,000 sites at 2 KiB.
const BYTES_MAX: usize = 256 << 20;

/// Bytes written in one go.
const WRITE_BYTES: usize = 32 << 10;

/// What the file holds.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Stored {
    version: u32,
    /// By name.
    #[serde(serialize_with = "one_by_one")]
    pub sites: BTreeMap<String, Site>,
}

fn one_by_one<S: Serializer>(sites: &BTreeMap<String, Site>, to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(gentle::each(sites))
}

/// One site as it last served.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Site {
    /// The file it came from.
    pub file: PathBuf,
    /// Its canonical text.
    pub text: String,
    /// Decides clashes of hosts.
    pub age: u64,
    /// Fingerprint of its certificate, where that came from files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
}

/// The store in a state folder.
pub struct Store {
    folder: PathBuf,
}

impl Store {
    /// The store; nothing is read or made yet.
    pub fn new(state: &Path) -> Store {
        Store { folder: state.join("last-good") }
    }

    fn index(&self) -> PathBuf {
        self.folder.join("sites.json")
    }

    /// What was stored; empty on a first start. Trouble is told in the log.
    pub fn load(&self) -> Stored {
        let path = self.index();
        if !path.exists() {
            return Stored::default();
        }
        let read = file::read_bounded(&path, BYTES_MAX).map_err(|error| error.to_string());
        let stored = read.and_then(|bytes| {
            serde_json::from_slice::<Stored>(&bytes).map_err(|error| format!("it is damaged: {error}"))
        });
        stored.unwrap_or_else(|why| {
            tracing::error!(
                "{}: the last good sites cannot be read ({why}); sites with errors stay down until their files are \
                 mended. Delete the file to silence this; it is written again after the next reload",
                path.display()
            );
            Stored::default()
        })
    }

    /// A copy of a certificate, if it is there and whole.
    pub fn identity(&self, fingerprint: &str) -> Option<Arc<Identity>> {
        let (cert, key) = self.copies(fingerprint);
        let identity = pem::load(&cert, &key).ok()?;
        (hex(&identity.fingerprint) == fingerprint).then(|| Arc::new(identity))
    }

    fn copies(&self, fingerprint: &str) -> (PathBuf, PathBuf) {
        (self.folder.join(format!("{fingerprint}.crt")), self.folder.join(format!("{fingerprint}.key")))
    }

    /// Replaces what is stored. `pairs` are the certificate and key files behind each fingerprint; those that are `copied`
    /// already, by this process, are not looked at. What lies here whole afterwards is `copied` then.
    ///
    /// # Errors
    /// A sentence that names the path.
    pub fn save(
        &self,
        sites: BTreeMap<String, Site>,
        pairs: &BTreeMap<String, (PathBuf, PathBuf)>,
        copied: &mut HashSet<String>,
    ) -> Result<(), String> {
        let wrong = |error: std::io::Error| {
            format!("the last good sites cannot be kept in {}: {error}", self.folder.display())
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder).map_err(wrong)?;
        if !self.index().exists() {
            copied.clear(); // somebody removed what was here
        }
        let before = copied.len();
        // One certificate that cannot be copied keeps nothing else from being stored.
        let mut result = Ok(());
        for (fingerprint, (cert, key)) in gentle::each(pairs) {
            if copied.contains(fingerprint) {
                continue;
            }
            match self.copy(fingerprint, cert, key) {
                Ok(true) => drop(copied.insert(fingerprint.clone())),
                Ok(false) => {}
                Err(error) => result = Err(error),
            }
        }
        let mut used: HashSet<String> = HashSet::with_capacity(sites.len());
        used.extend(gentle::each(sites.values()).filter_map(|site| site.certificate.clone()));
        let stored = Stored { version: 1, sites };
        // As it is made: writing megabytes at once keeps the core for milliseconds.
        let write = |file: &mut fs::File| {
            let mut to = BufWriter::with_capacity(WRITE_BYTES, file);
            serde_json::to_writer(&mut to, &stored)?;
            to.flush()
        };
        file::write_atomic_by(&self.index(), 0o600, write).map_err(wrong)?;
        // Also what a process before this one left.
        if before == 0 || before != copied.len() || *copied != used {
            self.forget(&used).map_err(wrong)?;
            copied.retain(|fingerprint| used.contains(fingerprint));
        }
        gentle::drop_each(stored.sites);
        result.map_err(wrong)
    }

    /// Copies a pair if it is not here yet, or was torn. Each file appears whole, by renaming, but is not brought to
    /// the disk one by one: that would take seconds for thousands, and what a power cut tears has another length.
    /// `false`: the files are not what was compiled any more.
    fn copy(&self, fingerprint: &str, cert: &Path, key: &Path) -> std::io::Result<bool> {
        let (cert_copy, key_copy) = self.copies(fingerprint);
        let length = |path: &Path| fs::metadata(path).ok().map(|metadata| metadata.len());
        let whole = |from: &Path, to: &Path| length(to).is_some_and(|there| Some(there) == length(from));
        if whole(cert, &cert_copy) && whole(key, &key_copy) {
            return Ok(true);
        }
        // Only if the files are still what was compiled: they may have changed since.
        if pem::fingerprint(cert, key).is_none_or(|now| hex(&now) != fingerprint) {
            return Ok(false);
        }
        for (from, to) in [(cert, cert_copy), (key, key_copy)] {
            let bytes = file::read_bounded(from, pem::FILE_BYTES_MAX)?;
            let temporary = file::temporary_beside(&to)?;
            let mut options = fs::OpenOptions::new();
            let written = options.write(true).create_new(true).mode(0o600).open(&temporary);
            let written = written.and_then(|mut file| file.write_all(&bytes));
            written.and_then(|()| fs::rename(&temporary, &to)).inspect_err(|_| {
                let _ = fs::remove_file(&temporary);
            })?;
        }
        Ok(true)
    }

    /// Removes copies that no site uses any more, and what a crash left half-written: keys should not lie about.
    fn forget(&self, used: &HashSet<String>) -> std::io::Result<()> {
        for entry in gentle::each(fs::read_dir(&self.folder)?) {
            let path = entry?.path();
            let is_copy = path.extension().is_some_and(|kind| kind == "crt" || kind == "key");
            let is_litter = path.extension().is_some_and(|kind| kind == "tmp");
            let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
            if is_litter || (is_copy && !used.contains(name)) {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(nibble.into(), 16).unwrap_or_default();
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(text: &str) -> BTreeMap<String, Site> {
        let site = Site { file: "/a.toml".into(), text: text.into(), age: 3, certificate: None };
        BTreeMap::from([("a.example".to_owned(), site)])
    }

    #[test]
    fn a_damaged_store_is_taken_for_an_empty_one() {
        let state = tempfile::tempdir().unwrap();
        let store = Store::new(state.path());
        store.save(site("x"), &BTreeMap::new(), &mut HashSet::new()).unwrap();
        fs::write(store.index(), b"{\"version\":1,\"sites\":").unwrap();
        assert!(store.load().sites.is_empty());
    }

    #[test]
    fn what_is_saved_is_loaded_and_only_we_can_read_it() {
        use std::os::unix::fs::PermissionsExt;
        let state = tempfile::tempdir().unwrap();
        let store = Store::new(state.path());
        assert!(store.load().sites.is_empty());
        store.save(site("one"), &BTreeMap::new(), &mut HashSet::new()).unwrap();
        store.save(site("two"), &BTreeMap::new(), &mut HashSet::new()).unwrap();
        assert_eq!(store.load().sites, site("two"));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&store.index()), mode(&store.folder)), (0o600, 0o700));
    }

    #[test]
    fn copies_are_kept_while_used_and_checked_by_fingerprint() {
        let state = tempfile::tempdir().unwrap();
        let pair = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
        let (cert, key) = (state.path().join("c.pem"), state.path().join("k.pem"));
        fs::write(&cert, pair.cert.pem()).unwrap();
        fs::write(&key, pair.signing_key.serialize_pem()).unwrap();
        let print = hex(&pem::fingerprint(&cert, &key).unwrap());
        let store = Store::new(state.path());
        let mut sites = site("x");
        sites.get_mut("a.example").unwrap().certificate = Some(print.clone());
        let pairs = BTreeMap::from([(print.clone(), (cert.clone(), key.clone()))]);
        store.save(sites, &pairs, &mut HashSet::new()).unwrap();
        fs::remove_file(&cert).unwrap();
        assert!(store.identity(&print).is_some());
        fs::write(store.copies(&print).0, "torn").unwrap();
        assert!(store.identity(&print).is_none());
        // A torn copy is made again, litter of a crash goes, and a site whose files are gone keeps nobody back.
        fs::write(&cert, pair.cert.pem()).unwrap();
        let litter = store.folder.join(".x.key.0.tmp");
        fs::write(&litter, "half a key").unwrap();
        let mut sites = site("x");
        sites.get_mut("a.example").unwrap().certificate = Some(print.clone());
        let pairs = BTreeMap::from([
            ("00".to_owned(), (state.path().join("gone.pem"), state.path().join("gone.key"))),
            (print.clone(), (cert.clone(), key.clone())),
        ]);
        let mut copied = HashSet::new();
        store.save(sites.clone(), &pairs, &mut copied).unwrap();
        assert!(store.identity(&print).is_some() && !litter.exists());
        assert_eq!(copied, HashSet::from([print.clone()]), "a pair that could not be read is tried again");
        // What this process copied is not looked at again, and goes when nobody uses it.
        store.save(sites.clone(), &BTreeMap::new(), &mut copied).unwrap();
        assert!(store.identity(&print).is_some());
        fs::remove_dir_all(&store.folder).unwrap();
        store.save(sites.clone(), &pairs, &mut copied).unwrap();
        assert!(store.identity(&print).is_some(), "what somebody removed is copied again");
        store.save(site("x"), &BTreeMap::new(), &mut copied).unwrap();
        assert!(copied.is_empty());
        assert!(!store.copies(&print).1.exists(), "a key that no site uses must go");
    }
}
