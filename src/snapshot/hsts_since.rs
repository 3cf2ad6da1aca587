//! When each site turned HSTS on: kept over restarts, so that its ramp goes on and does not begin anew.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::tls::file;

/// Bytes of the file: some hundred thousand sites.
const FILE_BYTES_MAX: usize = 32 << 20;

/// The table.
#[derive(Default)]
pub struct Since {
    /// `None`: nothing is kept.
    file: Option<PathBuf>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// In seconds since 1970, by site.
    sites: BTreeMap<String, u64>,
    changed: bool,
}

impl Since {
    /// Reads `<state>/hsts.json`; what cannot be read begins anew, which is the safe way to be wrong.
    pub fn open(state: &Path) -> Since {
        let path = state.join("hsts.json");
        let read = file::read_bounded(&path, FILE_BYTES_MAX).ok();
        let sites = read.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        Since { file: Some(path), state: Mutex::new(State { sites, changed: false }) }
    }

    /// When a site turned it on: now, if it had not yet.
    pub fn of(&self, site: &str, now: u64) -> u64 {
        let mut state = self.lock();
        if let Some(since) = state.sites.get(site) {
            return *since;
        }
        state.changed = true;
        state.sites.insert(site.to_owned(), now);
        now
    }

    /// A site turned it off: the next time begins anew.
    pub fn forget(&self, site: &str) {
        let mut state = self.lock();
        if state.sites.remove(site).is_some() {
            state.changed = true;
        }
    }

    /// Writes what changed. What cannot be written is told, and tried again with the next change.
    pub fn save(&self) {
        let Some(path) = &self.file else { return };
        let mut state = self.lock();
        if !state.changed {
            return;
        }
        let text = serde_json::to_vec(&state.sites).unwrap_or_default();
        match file::write_atomic(path, &text, 0o600) {
            Ok(()) => state.changed = false,
            Err(error) => tracing::warn!(
                "{} cannot be written: {error}; after a restart the ramps of HSTS begin anew",
                path.display()
            ),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_is_kept_over_a_restart_and_forgotten_with_the_setting() {
        let folder = tempfile::tempdir().unwrap();
        let since = Since::open(folder.path());
        assert_eq!(since.of("a.test", 100), 100);
        assert_eq!(since.of("a.test", 200), 100);
        since.save();
        let since = Since::open(folder.path());
        assert_eq!(since.of("a.test", 300), 100);
        since.forget("a.test");
        since.save();
        assert_eq!(Since::open(folder.path()).of("a.test", 400), 400);
        std::fs::write(folder.path().join("hsts.json"), "{").unwrap();
        assert_eq!(Since::open(folder.path()).of("a.test", 500), 500);
        Since::default().save();
    }
}
