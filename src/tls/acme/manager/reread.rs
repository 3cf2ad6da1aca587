//! What others wrote into the store is taken over: an import, a restored file, another node. And what lies there
//! plain is encrypted once there is a key.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, MutexGuard, PoisonError};

use super::{Inner, Manager, NAP, Read, engines, now};
use crate::config::model;
use crate::tls::acme::canary;
use crate::tls::acme::demand;
use crate::tls::acme::issuer::Reason;
use crate::tls::acme::record::{self, Failure, Held, Unreadable};
use crate::tls::acme::store::seal::{Ring, Swept};
use crate::tls::acme::store::{Expect, Key, Kind};

/// What came of reading the store again.
#[derive(Debug, Default)]
pub struct Reread {
    /// Sites with a certificate that somebody else wrote, now to be put in force.
    pub taken: Vec<Arc<str>>,
    /// Sentences: what was not taken over.
    pub refused: Vec<String>,
}

impl Manager {
    /// Reads the whole store again. Blocks.
    pub fn reread(&self) -> Reread {
        let mut found = Reread::default();
        match self.store.changes(Kind::Certificate, None) {
            Ok((places, _)) => self.take_over(&places, &mut found),
            Err(error) => found.refused.push(error.to_string()),
        }
        let mut inner = self.lock();
        // An account may have been replaced: the engines' memory of it goes with them.
        match engines(&inner.settings, &self.store, &self.challenges, &self.records) {
            Ok(engines) => inner.engines = engines,
            Err(why) => found.refused.push(why),
        }
        drop(inner);
        self.wake.notify_one();
        found
    }

    /// Keys as the settings say them now. Errors: one cannot be had, or does not open what is stored.
    pub(super) fn rekey(&self, settings: &model::Acme) -> Result<(), String> {
        let ring = Ring::read(settings.store_key.as_ref())?;
        if self.seal.has(&ring) {
            return Ok(());
        }
        self.seal.rekey(ring).map_err(|error| error.to_string())?;
        self.read_state().to_seal = true;
        Ok(())
    }

    /// Whether there is a key, and whether everything is encrypted with it.
    pub fn sealing(&self) -> (Option<String>, bool) {
        (self.seal.key_id(), !self.read_state().to_seal)
    }

    /// Waits, then looks what changed; the sites to be put in force.
    pub(super) async fn look(self: Arc<Self>) -> Vec<Arc<str>> {
        if !self.read_state().to_seal {
            tokio::time::sleep(NAP).await;
        }
        let looked = Arc::clone(&self);
        let found = tokio::task::spawn_blocking(move || looked.catch_up()).await.unwrap_or_default();
        if self.read_state().to_seal {
            // What could not be encrypted now is tried again, but not at once.
            tokio::time::sleep(NAP).await;
        }
        found
    }

    fn catch_up(&self) -> Vec<Arc<str>> {
        self.sweep();
        let since = self.read_state().mark.clone();
        let mut found = Reread::default();
        let Ok((mut places, mark)) = self.store.changes(Kind::Certificate, Some(&since)) else {
            // Whoever writes next says why; what is in memory serves.
            return Vec::new();
        };
        let all = places.len();
        // What is being ordered is written by ourselves, and looked at when it is done.
        let ordering = self.lock().ordering();
        places.retain(|place| !ordering.contains(place));
        if places.len() == all {
            self.read_state().mark = mark;
        }
        // What was damaged may be mended; making a file readable does not show among the changes.
        places.extend(self.lock().damaged.keys().cloned());
        self.take_over(&places, &mut found);
        for why in &found.refused {
            tracing::warn!("{why}");
        }
        found.taken
    }

    /// Encrypts what is not encrypted with the key in force.
    fn sweep(&self) {
        if !self.read_state().to_seal || (self.seal.key_id().is_some() && self.store.ready().is_err()) {
            return;
        }
        match self.seal.sweep() {
            Ok(Swept { sealed, left }) => {
                if sealed > 0 {
                    tracing::info!(
                        sealed,
                        left,
                        "records of the certificate store were encrypted with the key in force"
                    );
                }
                self.read_state().to_seal = left > 0;
            }
            Err(error) => tracing::warn!("the certificate store could not be encrypted: {error}"),
        }
    }

    fn take_over(&self, places: &[Key], into: &mut Reread) {
        let mut places = places.to_vec();
        places.sort_by(|a, b| a.id().cmp(b.id()));
        places.dedup();
        let sites = self.lock().sites();
        for (place, found) in record::load_all(self.store.as_ref(), &places) {
            match found {
                Ok(Some(found)) => self.take(&place, found, into),
                Ok(None) => self.lock().mended(&place, sites.get(&place)),
                Err(Unreadable::Key(message) | Unreadable::Other(message)) => {
                    let site = sites.get(&place);
                    if self.lock().spoilt(place, site, &message) {
                        into.refused.push(message);
                    }
                }
            }
        }
    }

    fn take(&self, place: &Key, found: Held, into: &mut Reread) {
        let site = Arc::clone(&found.record.site);
        let serving = {
            let mut inner = self.lock();
            inner.mended(place, Some(&site));
            let known = inner.held.get_mut(&site);
            if let Some(held) = known
                && held.record.chain == found.record.chain
                && held.record.key == found.record.key
            {
                // Written anew (encrypted, or with another moment of renewal), but the same certificate.
                held.version = found.version;
                held.record = found.record;
                inner.enqueue(&site);
                drop(inner);
                return self.forget_failure(&site, |failure| failure.reason == Reason::Store.word());
            }
            inner.held.get(&site).is_some_and(|held| held.record.not_after > now())
        };
        // The old one stays until the new one is good, whoever wrote it; without an old one, any is better than none.
        let record = &found.record;
        if let Err(why) = canary::check(&record.chain, &record.key, &record.names, now())
            && serving
        {
            into.refused.push(format!("The certificate of {site} in the store is not taken over: {why}"));
            return;
        }
        tracing::info!(%site, ca = %record.ca, not_after = record.not_after, "certificate taken over from the store");
        {
            let mut inner = self.lock();
            let rules = Arc::clone(&inner.rules);
            let of = found.record.demand.as_ref().map(|demanded| Arc::clone(&demanded.site));
            inner.held.insert(Arc::clone(&site), found);
            // A name on demand is wanted from now on, not from the next reload on.
            if let Some(name) = demand::name(&site)
                && let Some(owner) = rules.owner(name).filter(|owner| Some(&owner.terms.site) == of.as_ref())
            {
                inner.take_in(&site, name, owner.terms);
            }
            inner.enqueue(&site);
        }
        self.forget_failure(&site, |_| true);
        into.taken.push(site);
    }

    /// What failed before is of no matter any more.
    fn forget_failure(&self, site: &Arc<str>, of: impl Fn(&Failure) -> bool) {
        {
            let mut inner = self.lock();
            if !inner.failures.get(site).is_some_and(of) {
                return;
            }
            inner.failures.remove(site);
            inner.enqueue(site);
        }
        if let Err(error) = self.store.delete(&Key::new(Kind::Failure, site), &Expect::Any) {
            tracing::warn!(%site, "{error}");
        }
    }

    fn read_state(&self) -> MutexGuard<'_, Read> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Where the certificates of wanted sites lie.
    fn sites(&self) -> HashMap<Key, Arc<str>> {
        let place = |site: &Arc<str>| (Key::new(Kind::Certificate, site), Arc::clone(site));
        self.wanted.keys().map(place).collect()
    }

    /// Where those lie that are being ordered.
    fn ordering(&self) -> HashSet<Key> {
        let running = self.wanted.keys().filter(|site| self.queue.is_running(site));
        running.map(|site| Key::new(Kind::Certificate, site)).collect()
    }

    /// A place is good again, or empty.
    fn mended(&mut self, place: &Key, site: Option<&Arc<str>>) {
        if self.damaged.remove(place).is_some()
            && let Some(site) = site
        {
            self.enqueue(site);
        }
    }

    /// A place cannot be read: nothing is ordered for it. Says whether that is news.
    fn spoilt(&mut self, place: Key, site: Option<&Arc<str>>, message: &str) -> bool {
        if let Some(site) = site {
            self.queue.remove(site);
        }
        self.damaged.insert(place, message.to_owned()).is_none_or(|before| before != message)
    }
}
