//! What the manager remembers, and what follows from it: jobs, waits after failures, the lines of `certs`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Inner, now, texts};
use crate::config::model::AcmeEngine;
use crate::tls::acme::engine::{self, Choice, Engine, Facts};
use crate::tls::acme::event::{Event, What};
use crate::tls::acme::issuer::{Again, IssueError, Job, Reason};
use crate::tls::acme::queue::{self, HOLD_MAX};
use crate::tls::acme::record::{Failure, Held};
use crate::tls::acme::store::{Key, Kind};
use crate::tls::acme::{CertificateStatus, Wanted};

/// Failures in a row at a CA after which its staging twin is asked first.
const PROBE_AFTER: u32 = 2;
/// Tries in a row that are made at once because a refused nonce had no effect at the CA; the managed engine makes
/// its own, within a try.
const NONCE_TRIES: u32 = 3;

/// How long after an order for some of a site's names it is tried with all again; seconds.
const TRY_ALL_AFTER: u64 = 24 * 60 * 60;
/// After so many failures in a row for all names it is tried with those that worked before.
const PARTIAL_AFTER: u32 = 2;

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
        let now = now();
        let (attempts, next_try) = failure.map_or((0, 0), |failure| (failure.attempts, failure.due(now)));
        self.queue.put(site, lifetime, attempts, next_try, now);
        self.queue.set_guest(site, guest);
    }

    /// What is to be ordered for a site, with the challenge whose turn it is first.
    pub(super) fn job(&self, site: &Arc<str>, directory: usize) -> Option<Job> {
        let wanted = self.wanted.get(site)?;
        let index = directory;
        let directory = self.settings.directories.get(index)?.clone();
        let names = texts(&wanted.names);
        let attempts = self.attempts(site, &names);
        let probe = self
            .settings
            .staging_of(&directory)
            .filter(|_| queue::failures_at(attempts, index, self.settings.directories.len()) >= PROBE_AFTER);
        let mut challenges = match wanted.challenge.is_empty() {
            true => self.settings.challenges.clone(),
            false => wanted.challenge.clone(),
        };
        let (all, count) = (names.len(), attempts);
        let (choice, names) =
            (self.choose(site, &names, attempts), self.worth_asking_for(site, names, attempts));
        // What failed may work another way: port 443 can end at a CDN while port 80 does not, or the reverse. Orders for some
        // names are every second one, and have all ways in their turn, too.
        let turn = if names.len() < all { count / 2 } else { count };
        let turn = usize::try_from(turn).unwrap_or(0).checked_rem(challenges.len()).unwrap_or(0);
        challenges.rotate_left(turn);
        let held = self.held.get(site).filter(|held| held.record.directory == directory.url);
        Some(Job {
            site: Arc::clone(site),
            engine: choice.engine,
            names,
            challenges,
            replaces: held.and_then(Held::leaf),
            profile: self.settings.profile.clone(),
            directory,
            probe,
        })
    }

    /// Who would order for a site now, and why.
    pub(super) fn choose(&self, site: &Arc<str>, names: &[String], attempts: u32) -> Choice {
        // RFC 9773 section 5: `replaces` is for CAs that offer renewal information.
        let replaces = self.held.get(site).is_some_and(|held| {
            let known = self.engines.renewal.known(&held.record.directory).flatten().is_some();
            (known || held.record.suggested.is_some())
                && self.settings.directories.iter().any(|d| d.url == held.record.directory)
        });
        let handed_over = self.handed_over.contains(site);
        engine::choose(&self.settings, &Facts { names, attempts, replaces, handed_over })
    }

    /// Whether the managed engine takes a try of the simple one over, at once: nobody said anything against it, it just
    /// broke off. Not where a person wants the simple one.
    pub(super) fn hand_over(&mut self, site: &Arc<str>, engine: Engine, error: &IssueError) -> bool {
        let over = engine == Engine::Simple
            && self.settings.engine == AcmeEngine::Auto
            && error.again != Again::Later;
        if over {
            self.handed_over.insert(Arc::clone(site));
            self.queue.finished(site);
            self.enqueue(site);
            // Also what a person asked for before its time goes on.
            self.queue.force(site);
        }
        over
    }

    /// Takes a new certificate in; whether a failure is over with it.
    pub(super) fn issued(
        &mut self,
        site: &Arc<str>,
        names: &[String],
        directory: usize,
        engine: Engine,
        held: Held,
    ) -> bool {
        let renewed = self.held.get(site).is_some_and(|old| old.covers(&held.record.names));
        let what = if renewed { What::Renewed } else { What::Issued };
        let (ca, engine) = (Some(Arc::clone(&held.record.ca)), Some(engine.word()));
        self.events.push(Event { ca, engine, ..Event::new(now(), what, Some(site)) });
        // For some of its names: what failed for all is still to be tried again.
        let whole = held.covers(names);
        let had_failed = whole && self.failures.remove(site).is_some();
        if let Some(failure) = self.failures.get_mut(site).filter(|_| !whole) {
            failure.next_try = now().saturating_add(TRY_ALL_AFTER);
        }
        self.held.insert(Arc::clone(site), held);
        self.queue.finished(site);
        self.queue.reached(directory);
        self.enqueue(site);
        had_failed
    }

    /// What an order is for: all names. After failures, every second time, those that the certificate there is has already,
    /// if that is due: one host that cannot be proven must not let the certificate of the others run out.
    fn worth_asking_for(&self, site: &Arc<str>, all: Vec<String>, attempts: u32) -> Vec<String> {
        let due = |held: &&Held| !held.covers(&all) && held.record.renew_at <= now();
        let tried = attempts >= PARTIAL_AFTER && attempts.is_multiple_of(2);
        let Some(held) = self.held.get(site).filter(due).filter(|_| tried) else { return all };
        let some: Vec<String> = all.iter().filter(|name| held.covers_name(name)).cloned().collect();
        if some.is_empty() { all } else { some }
    }

    /// Failures in a row for these names.
    fn attempts(&self, site: &Arc<str>, names: &[String]) -> u32 {
        let failure = self.failures.get(site).filter(|failure| failure.names == names);
        failure.map_or(0, |failure| failure.attempts)
    }

    /// A line of the plan.
    pub(super) fn planned(&self, site: &Arc<str>, earliest: u64) -> serde_json::Value {
        let names = self.wanted.get(site).map(|wanted| texts(&wanted.names)).unwrap_or_default();
        let choice = self.choose(site, &names, self.attempts(site, &names));
        serde_json::json!({
            "site": site,
            "earliest": earliest,
            "engine": choice.engine.word(),
            "engine_because": choice.because,
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
        let now = now();
        let next_try = match error.retry_after.filter(|_| ours) {
            Some(after) => now.saturating_add(after.as_secs()),
            None if error.again == Again::AtOnce && attempts < NONCE_TRIES => now,
            None => queue::next_try(now, if ours { 1 } else { attempts }, error.retry_after, &mut self.dice),
        };
        // The account's limit, a CA out of order and a full disk concern every site; other limits are those of the name.
        let whole = ours
            || error.kind == Reason::Network
            || (error.kind == Reason::RateLimited && error.message.contains("new orders"));
        if let Some(after) = error.retry_after.filter(|_| whole) {
            self.queue.hold(directory, now.saturating_add(after.as_secs().min(HOLD_MAX)));
        }
        if error.no_order {
            self.queue.give_back(directory);
        }
        match error.kind {
            Reason::Network if error.no_order => self.queue.unreached(directory, now),
            // Says nothing of the CA.
            Reason::Store | Reason::Clock => {}
            _ => self.queue.reached(directory),
        }
        let failure = Failure {
            site: Arc::clone(site),
            names,
            attempts,
            next_try,
            at: now,
            reason: error.kind.word().to_owned(),
            message: error.to_string(),
        };
        self.failures.insert(Arc::clone(site), failure.clone());
        self.queue.finished(site);
        self.enqueue(site);
        failure
    }

    /// The event of a failure.
    pub(super) fn note_failure(
        &mut self,
        site: &Arc<str>,
        directory: usize,
        engine: Engine,
        error: &IssueError,
    ) {
        let ca = self.settings.directories.get(directory).map(|directory| Arc::clone(&directory.name));
        let (engine, message) = (Some(engine.word()), Some(error.to_string()));
        self.events.push(Event { ca, engine, message, ..Event::new(now(), What::Failed, Some(site)) });
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
        let choice = self.choose(&wanted.site, &names, failure.map_or(0, |failure| failure.attempts));
        let next = self.settings.directories.first().map(|d| Arc::clone(&d.name)).unwrap_or_default();
        CertificateStatus {
            site: Arc::clone(wanted.on_demand.as_ref().unwrap_or(&wanted.site)),
            on_demand: wanted.on_demand.is_some(),
            names,
            issuer: held.map_or(choice.engine, |held| Engine::of(&held.record.engine)).word(),
            next_issuer: choice.engine.word(),
            next_issuer_because: choice.because,
            explanation: held.and_then(|held| held.record.suggested.as_ref()?.explanation.clone()),
            ca: held.map_or(next, |held| Arc::clone(&held.record.ca)),
            not_after: held.map(|held| held.record.not_after),
            renew_at: held.map(|held| held.record.renew_at),
            state,
            last_error: damage.cloned().or_else(|| failure.map(|failure| failure.message.clone())),
            attempts: failure.map_or(0, |failure| failure.attempts),
            next_try: failure.map(|failure| failure.due(now)),
        }
    }
}
