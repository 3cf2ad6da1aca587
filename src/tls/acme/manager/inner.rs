//! What the manager remembers, and what follows from it: jobs, waits after failures, the lines of `certs`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Inner, now, texts};
use crate::tls::acme::issuer::{IssueError, Issuer, Job, Reason};
use crate::tls::acme::queue;
use crate::tls::acme::record::{Failure, Held};
use crate::tls::acme::store::{Key, Kind};
use crate::tls::acme::{CertificateStatus, Wanted};

/// Longest pause a whole CA may ask for; seconds.
const HOLD_MAX: u64 = 3 * 60 * 60;

impl Inner {
    /// Tells the queue what is known of a wanted site.
    pub(super) fn enqueue(&mut self, site: &Arc<str>) {
        let Some(wanted) = self.wanted.get(site) else { return };
        if self.damaged.contains_key(&Key::new(Kind::Certificate, site)) {
            return;
        }
        // Nobody asked for it yet: it is not renewed, and dropped when it expires.
        let unused = |held: &Held| !held.asked.load(Ordering::Relaxed);
        if wanted.on_demand.is_some() && self.held.get(site).is_some_and(unused) {
            return self.queue.remove(site);
        }
        self.put(site);
    }

    /// Puts a wanted site in the queue.
    pub(super) fn put(&mut self, site: &Arc<str>) {
        let Some(wanted) = self.wanted.get(site) else { return };
        let names = texts(&wanted.names);
        let lifetime = self.held.get(site).filter(|held| held.covers(&names)).map(Held::lifetime);
        let guest = wanted.on_demand.is_some() && lifetime.is_none();
        let failure = self.failures.get(site).filter(|failure| failure.names == names);
        let (attempts, next_try) = failure.map_or((0, 0), |failure| (failure.attempts, failure.next_try));
        self.queue.put(site, lifetime, attempts, next_try, now());
        self.queue.set_guest(site, guest);
    }

    /// What is to be ordered for a site, with the challenge whose turn it is first.
    pub(super) fn job(&self, site: &Arc<str>, directory: usize) -> Option<Job> {
        let wanted = self.wanted.get(site)?;
        let directory = self.settings.directories.get(directory)?.clone();
        let attempts = self.failures.get(site).map_or(0, |failure| failure.attempts);
        let mut challenges = match wanted.challenge.is_empty() {
            true => self.settings.challenges.clone(),
            false => wanted.challenge.clone(),
        };
        // What failed may work another way: port 443 can end at a CDN while port 80 does not, or the reverse.
        let turn = usize::try_from(attempts).unwrap_or(0).checked_rem(challenges.len()).unwrap_or(0);
        challenges.rotate_left(turn);
        let held = self.held.get(site).filter(|held| held.record.directory == directory.url);
        Some(Job {
            site: Arc::clone(site),
            names: texts(&wanted.names),
            challenges,
            replaces: held.and_then(Held::leaf),
            profile: self.settings.profile.clone(),
            directory,
        })
    }

    /// Takes note of a failure: when the next try is, and whether the whole CA is left alone.
    pub(super) fn failed(
        &mut self,
        site: &Arc<str>,
        names: Vec<String>,
        directory: usize,
        error: &IssueError,
    ) -> Failure {
        let before = self.failures.get(site).filter(|failure| failure.names == names);
        let so_far = before.map_or(0, |failure| failure.attempts);
        // Where our own store is the reason nobody was asked for anything: that is no failure to be patient about, and
        // it goes on soon after there is room on the disk again.
        let ours = error.kind == Reason::Store;
        let attempts = so_far.saturating_add(u32::from(!ours));
        let next_try = match error.retry_after.filter(|_| ours) {
            Some(after) => now().saturating_add(after.as_secs()),
            None => {
                queue::next_try(now(), if ours { 1 } else { attempts }, error.retry_after, &mut self.dice)
            }
        };
        // The account's limit, a CA out of order and a full disk concern every site; other limits are those of the name.
        let whole = ours
            || error.kind == Reason::Network
            || (error.kind == Reason::RateLimited && error.message.contains("new orders"));
        if let Some(after) = error.retry_after.filter(|_| whole) {
            self.queue.hold(directory, now().saturating_add(after.as_secs().min(HOLD_MAX)));
        }
        if error.no_order {
            self.queue.give_back(directory);
        }
        match error.kind {
            Reason::Network if error.no_order => self.queue.unreached(directory, now()),
            // Says nothing of the CA.
            Reason::Store | Reason::Clock => {}
            _ => self.queue.reached(directory),
        }
        let failure = Failure {
            site: Arc::clone(site),
            names,
            attempts,
            next_try,
            reason: error.kind.word().to_owned(),
            message: error.to_string(),
        };
        self.failures.insert(Arc::clone(site), failure.clone());
        self.queue.finished(site);
        self.enqueue(site);
        failure
    }

    /// The line of `tidegate certs`.
    pub(super) fn describe(&self, wanted: &Wanted, now: u64) -> CertificateStatus {
        let names = texts(&wanted.names);
        let held = self.held.get(&wanted.site).filter(|held| held.covers(&names));
        let failure = self.failures.get(&wanted.site).filter(|failure| failure.names == names);
        let damage = self.damaged.get(&Key::new(Kind::Certificate, &wanted.site));
        let valid = held.is_some_and(|held| held.record.not_after > now);
        let due = held.is_some_and(|held| held.record.renew_at <= now);
        let unused = wanted.on_demand.is_some() && held.is_some_and(|h| !h.asked.load(Ordering::Relaxed));
        let state = match (self.queue.is_running(&wanted.site), damage.is_some() || failure.is_some()) {
            (true, _) => "ordering",
            (false, true) => "failed",
            (false, false) if valid && due && unused => "unused",
            (false, false) if valid && !due => "valid",
            (false, false) if valid => "due",
            (false, false) => "waiting",
        };
        let next = self.settings.directories.first().map(|d| Arc::clone(&d.name)).unwrap_or_default();
        CertificateStatus {
            site: Arc::clone(wanted.on_demand.as_ref().unwrap_or(&wanted.site)),
            on_demand: wanted.on_demand.is_some(),
            names,
            issuer: self.engine.name(),
            ca: held.map_or(next, |held| Arc::clone(&held.record.ca)),
            not_after: held.map(|held| held.record.not_after),
            renew_at: held.map(|held| held.record.renew_at),
            state,
            last_error: damage.cloned().or_else(|| failure.map(|failure| failure.message.clone())),
            attempts: failure.map_or(0, |failure| failure.attempts),
            next_try: failure.map(|failure| failure.next_try),
        }
    }
}
