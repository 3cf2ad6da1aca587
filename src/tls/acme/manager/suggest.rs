//! When CAs want certificates renewed (RFC 9773).

use std::sync::Arc;

use super::{Inner, Manager, NAP, now, spread};
use crate::tls::acme::queue;
use crate::tls::acme::record::{self, Certificate, Held, Suggested};
use crate::tls::acme::store::{Expect, Key, Kind};

/// Renewal information is asked for at least twice a day (RFC 9773 section 4.3), and at most once a minute; seconds.
const ASK_MAX: u64 = 12 * 60 * 60;
const ASK_MIN: u64 = 60;
/// After an answer that could not be used; seconds.
const ASK_AFTER_ERROR: u64 = 60 * 60;
/// Most certificates asked about in one round.
const ASK_BATCH: usize = 32;

impl Manager {
    /// Asks CAs when they want certificates renewed (RFC 9773), for ever.
    pub(super) async fn ask_for_ever(self: Arc<Self>) {
        loop {
            for site in self.to_ask() {
                self.ask(&site).await;
            }
            tokio::time::sleep(NAP).await;
        }
    }

    fn to_ask(&self) -> Vec<Arc<str>> {
        let inner = self.lock();
        let now = now();
        // RFC 9773 section 4.3: not for what has expired.
        let due = |held: &&Held| held.ask_at <= now && held.record.not_after > now;
        let sites = inner.wanted.keys().filter(|site| inner.held.get(*site).as_ref().is_some_and(due));
        sites.take(ASK_BATCH).cloned().collect()
    }

    async fn ask(&self, site: &Arc<str>) {
        let (engine, directory, leaf) = {
            let mut inner = self.lock();
            let Some(held) = inner.held.get_mut(site) else { return };
            held.ask_at = now().saturating_add(ASK_MAX);
            let (url, leaf) = (Arc::clone(&held.record.directory), held.leaf());
            let directory = inner.settings.directories.iter().find(|d| d.url == url).cloned();
            (Arc::clone(&inner.engine), directory, leaf)
        };
        let (Some(directory), Some(leaf)) = (directory, leaf) else { return };
        let found = engine.suggest(&directory, &leaf).await;
        let write = {
            let mut inner = self.lock();
            let Inner { held, dice, .. } = &mut *inner;
            // A new certificate may have come meanwhile.
            let Some(held) = held.get_mut(site).filter(|held| held.leaf().as_ref() == Some(&leaf)) else {
                return;
            };
            let window = match found {
                Ok(Some(window)) => window,
                Ok(None) => return,
                Err(error) => {
                    held.ask_at = now().saturating_add(ASK_AFTER_ERROR);
                    tracing::debug!(%site, "no renewal information: {error}");
                    return;
                }
            };
            held.ask_at = now().saturating_add(window.ask_again.clamp(ASK_MIN, ASK_MAX));
            let same = held.record.suggested.is_some_and(|s| (s.start, s.end) == (window.start, window.end));
            if same {
                return;
            }
            let chosen = window.start + dice.below(window.end - window.start);
            held.record.suggested = Some(Suggested { start: window.start, end: window.end, chosen });
            let Certificate { not_before, not_after, .. } = held.record;
            held.record.renew_at = queue::renew_at(not_before, not_after, Some(chosen), spread(site));
            let write = (record::bytes(&held.record), held.version.clone());
            inner.enqueue(site);
            write
        };
        self.wake.notify_one();
        let place = Key::new(Kind::Certificate, site);
        match self.write(place, write.0, Expect::Is(write.1.clone()), None).await {
            Ok(version) => {
                if let Some(held) = self.lock().held.get_mut(site).filter(|held| held.version == write.1) {
                    held.version = version;
                }
            }
            // Asked for again after a restart; nothing is lost.
            Err(error) => tracing::debug!(%site, "{error}"),
        }
    }
}
