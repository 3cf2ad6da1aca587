//! When CAs are asked about renewal (RFC 9773 section 4.3), and what an answer changes.

use std::sync::Arc;
use std::time::Duration;

use super::{Inner, Manager, NAP, now, spread};
use crate::tls::acme::queue;
use crate::tls::acme::record::{self, Certificate, Held, Suggested};
use crate::tls::acme::renewal_info::{Answer, NoAnswer};
use crate::tls::acme::store::{Expect, Key, Kind};

/// Bounds of what a CA may ask for (RFC 9773 section 4.3.2); seconds.
const ASK_MIN: u64 = 60;
const ASK_MAX: u64 = 24 * 60 * 60;
/// After an answer that is none, and when a CA does not say when to ask again (RFC 9773 section 4.3.3); seconds.
const ASK_AFTER_ERROR: u64 = 6 * 60 * 60;
/// After the first temporary error, doubled each time, so many times; seconds.
const ASK_SOON: u64 = 60;
const SOON_MAX: u32 = 5;
/// How old a certificate gets that was ordered in a hurry, before it is replaced in a hurry again: a CA whose windows are
/// always over is asked twice a day and not for ever. Well within the day that a CA has to revoke; seconds.
const HURRY_PAUSE: u64 = 12 * 60 * 60;
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
        // RFC 9773 section 4.3: not for what has expired; what was replaced is not held any more. A moment further off
        // than any that is set was set by a clock that was ahead.
        let due = |held: &&Held| {
            let due = held.ask_at <= now || held.ask_at > now.saturating_add(ASK_MAX * 2);
            due && held.record.not_after > now
        };
        let sites = inner.wanted.keys().filter(|site| inner.held.get(*site).as_ref().is_some_and(due));
        sites.take(ASK_BATCH).cloned().collect()
    }

    async fn ask(&self, site: &Arc<str>) {
        let (engines, directory, leaf) = {
            let mut inner = self.lock();
            let Some(held) = inner.held.get_mut(site) else { return };
            held.ask_at = now().saturating_add(ASK_MAX);
            let (directory, leaf) = (Arc::clone(&held.record.directory), held.leaf());
            (Arc::clone(&inner.engines), directory, leaf)
        };
        let Some(leaf) = leaf else { return };
        let found = engines.renewal.ask(&directory, &leaf).await;
        let write = {
            let mut inner = self.lock();
            let Inner { held, dice, .. } = &mut *inner;
            // A new certificate may have come meanwhile.
            let Some(held) = held.get_mut(site).filter(|held| held.leaf().as_ref() == Some(&leaf)) else {
                return;
            };
            let wait = match &found {
                Ok(answer) => wait(answer.as_ref()),
                Err(error) => wait_after(error, held.unanswered),
            };
            held.ask_at = now().saturating_add(wait);
            held.unanswered = if found.is_ok() { 0 } else { held.unanswered.saturating_add(1) };
            let answer = match found {
                Ok(Some(answer)) => answer,
                Ok(None) => return,
                Err(error) => {
                    tracing::debug!(%site, "no renewal information: {}", error.message);
                    return;
                }
            };
            let known = held.record.suggested.as_ref();
            let same = known.is_some_and(|s| {
                (s.start, s.end, &s.explanation) == (answer.start, answer.end, &answer.explanation)
            });
            if same {
                return;
            }
            // Chosen once for each window (RFC 9773 section 4.2, step 2).
            let kept = known.filter(|s| (s.start, s.end) == (answer.start, answer.end)).map(|s| s.chosen);
            let chosen = kept.unwrap_or_else(|| answer.start + dice.below(answer.end - answer.start));
            let Answer { start, end, explanation, .. } = answer;
            if let Some(url) = &explanation {
                tracing::info!(%site, "the CA explains when it wants this certificate renewed: {url}");
            }
            held.record.suggested = Some(Suggested { start, end, chosen, explanation });
            let Certificate { not_before, not_after, .. } = held.record;
            let at = followed(&held.record, chosen);
            held.record.renew_at = queue::renew_at(not_before, not_after, Some(at), spread(site));
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

/// Whether a certificate that is replaced now goes before its own time because its CA wanted that.
pub(super) fn hurried(record: &Certificate) -> bool {
    let own = queue::renew_at(record.not_before, record.not_after, None, spread(&record.site));
    record.suggested.as_ref().is_some_and(|suggested| suggested.chosen <= now()) && now() < own
}

/// When a suggestion is followed.
fn followed(record: &Certificate, chosen: u64) -> u64 {
    match record.hurried {
        true => chosen.max(record.issued_at.saturating_add(HURRY_PAUSE)),
        false => chosen,
    }
}

/// Seconds until the next question, after an answer; `None`: the CA suggests nothing to anybody.
fn wait(answer: Option<&Answer>) -> u64 {
    match answer {
        None => ASK_MAX,
        Some(answer) => answer.ask_again.map_or(ASK_AFTER_ERROR, bounded),
    }
}

/// Seconds until the next question, after so many without an answer and this one.
fn wait_after(error: &NoAnswer, before: u32) -> u64 {
    let own = match error.temporary && before < SOON_MAX {
        true => ASK_SOON << before,
        false => ASK_AFTER_ERROR,
    };
    error.retry_after.map_or(own, |asked| own.max(bounded(asked)))
}

fn bounded(asked: Duration) -> u64 {
    asked.as_secs().clamp(ASK_MIN, ASK_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ca_whose_windows_are_always_over_is_followed_at_once_and_then_twice_a_day() {
        let now = now();
        let mut record = Certificate {
            site: "shop.test".into(),
            names: vec!["shop.test".into()],
            directory: "https://ca.test/dir".into(),
            ca: "ca.test".into(),
            engine: "managed".into(),
            chain: String::new(),
            key: String::new(),
            issued_at: now,
            not_before: now - 3600,
            not_after: now + 90 * ASK_MAX,
            suggested: None,
            renew_at: now + 60 * ASK_MAX,
            hurried: false,
            demand: None,
        };
        assert!(!hurried(&record), "replaced by hand, or for more names");
        let (start, end, chosen) = (now - 300, now - 100, now - 200);
        assert_eq!(followed(&record, chosen), chosen);
        record.suggested = Some(Suggested { start, end, chosen, explanation: None });
        assert!(hurried(&record));
        record.hurried = true;
        assert_eq!(followed(&record, chosen), now + 12 * 3600);
        assert_eq!(followed(&record, now + 50 * ASK_MAX), now + 50 * ASK_MAX);
        // In its own time, a third before its end, whatever was suggested.
        (record.not_before, record.not_after) = (now - 80 * ASK_MAX, now + 10 * ASK_MAX);
        assert!(!hurried(&record));
    }

    #[test]
    fn questions_are_as_far_apart_as_the_standard_says() {
        let answer = |seconds: Option<u64>| Answer {
            start: 1,
            end: 2,
            explanation: None,
            ask_again: seconds.map(Duration::from_secs),
        };
        for (asked, waited) in
            [(Some(0), 60), (Some(59), 60), (Some(21_600), 21_600), (Some(u64::MAX), 86_400), (None, 21_600)]
        {
            assert_eq!(wait(Some(&answer(asked))), waited, "{asked:?}");
        }
        assert_eq!(wait(None), 86_400);
        let error = |temporary, seconds: Option<u64>| NoAnswer {
            temporary,
            retry_after: seconds.map(Duration::from_secs),
            message: String::new(),
        };
        let soon: Vec<u64> = (0..7).map(|before| wait_after(&error(true, None), before)).collect();
        assert_eq!(soon, [60, 120, 240, 480, 960, 21_600, 21_600]);
        assert_eq!(wait_after(&error(false, None), 0), 21_600);
        assert_eq!(wait_after(&error(true, Some(3_600)), 0), 3_600);
        assert_eq!(wait_after(&error(true, Some(u64::MAX)), u32::MAX), 86_400);
    }
}
