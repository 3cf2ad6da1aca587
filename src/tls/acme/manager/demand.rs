//! Names whose certificate is got at their first handshake: who is let in, what is kept, what is let go.
//!
//! A name on demand is wanted like a site, under its id (`@name`), from the moment it is admitted. Without a
//! certificate it is wanted only while its order lasts: a failure leaves its record (so that the backoff holds) and
//! nothing else. With one it is renewed as long as somebody asks for it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use zeroize::Zeroizing;

use super::{Inner, Manager, now};
use crate::base::clock;
use crate::config::model::{ChallengeKind, HostPattern};
use crate::tls::acme::account::off;
use crate::tls::acme::demand::{self, Demand, Named, Names, Refusal, Rules, Terms, ask};
use crate::tls::acme::http;
use crate::tls::acme::queue::Turn;
use crate::tls::acme::record::{self, Demanded, Failure};
use crate::tls::acme::store::{Expect, Key, Kind, Version};
use crate::tls::acme::{CertificateStatus, Wanted};

/// Names looked at at once; each may be waiting for an answer.
pub(super) const ADMITTING_MAX: usize = 16;
/// Certificates kept on demand.
const KEPT_MAX: usize = 100_000;
/// How long an answer to the question is believed.
const YES_FOR: Duration = Duration::from_secs(300);
const NO_FOR: Duration = Duration::from_secs(60);
/// How long nobody is asked again after no answer, and how long a site is refused without a new look.
const SHORTLY: Duration = Duration::from_secs(10);
/// Answers remembered.
pub(super) const ANSWERS_MAX: usize = 8_192;
/// How often what is kept is looked through.
pub(super) const TEND: Duration = Duration::from_secs(5);
/// Records written in one look.
const TEND_BATCH: usize = 64;
/// How long a name that is asked for keeps a certificate that expired, and a failure is remembered after its backoff:
/// seconds.
const EXPIRED_FOR: u64 = 7 * 24 * 60 * 60;
const FAILED_FOR: u64 = 24 * 60 * 60;
/// Seconds between two lines of the log about a question without an answer.
const TELL_EVERY: u64 = 60;

impl Manager {
    /// Where handshakes wait.
    pub fn demand(&self) -> Arc<Demand> {
        Arc::clone(&self.demand)
    }

    /// Which site takes which names, after each reload; `challenges`: how control over them may be proven.
    pub fn allow(&self, rules: Arc<Rules>, challenges: Vec<ChallengeKind>) {
        self.demand.retain_sites(|site| rules.terms().any(|terms| *terms.site == *site));
        let mut inner = self.lock();
        (inner.rules, inner.possible) = (rules, challenges);
    }

    /// The certificates that may serve names on demand under these rules; `taken`: names that are some site's hosts.
    pub fn named(&self, rules: &Rules, taken: impl Fn(&str) -> bool) -> Names {
        if rules.is_empty() {
            return Names::new();
        }
        let inner = self.lock();
        let all = inner.held.iter().filter_map(|(id, held)| {
            let name = demand::name(id)?;
            let owner = rules.owner(name).filter(|_| !taken(name))?;
            // What one site's question allowed, another's did not.
            if !owner.listed && held.owner() != Some(&*owner.terms.site) {
                return None;
            }
            let (identity, asked) = (Arc::clone(&held.identity), Arc::clone(&held.asked));
            Some((Arc::from(name), Named { position: owner.terms.position, identity, asked }))
        });
        all.collect()
    }

    /// Looks at something new that a handshake waits for; gives its id if its certificate only needs to be put in
    /// force.
    pub(super) async fn admit(self: Arc<Self>, id: Arc<str>) -> Option<Arc<str>> {
        let admitted = match demand::name(&id) {
            Some(name) => self.admit_name(&id, name).await,
            None => self.admit_site(&id),
        };
        match admitted {
            Ok(true) => Some(id),
            Ok(false) => None,
            Err((refusal, time)) => {
                self.demand.refuse(&id, refusal, time);
                None
            }
        }
    }

    fn admit_site(&self, site: &Arc<str>) -> Result<bool, (Refusal, Duration)> {
        let inner = self.lock();
        if inner.wanted.get(site).zip(inner.held.get(site)).is_some_and(|(w, held)| held.covers(&w.texts())) {
            return Ok(true);
        }
        match inner.queue.turn(site, now()) {
            Turn::Now => Ok(false),
            Turn::Later(until) => Err((Refusal::Later, until_then(until).min(SHORTLY))),
            Turn::Unknown => Err((Refusal::Later, SHORTLY)),
        }
    }

    async fn admit_name(&self, id: &Arc<str>, name: &str) -> Result<bool, (Refusal, Duration)> {
        let rules = Arc::clone(&self.lock().rules);
        let Some(owner) = rules.owner(name) else { return Err((Refusal::Disallowed, Duration::ZERO)) };
        if let Some(known) = self.lock().look_up(id, &owner.terms.site, owner.listed)? {
            return Ok(known);
        }
        if !owner.listed {
            self.permit(owner.terms, name).await?;
        }
        if self.adopt(id, owner.terms).await {
            // Or nobody would renew it before the next reload.
            self.lock().take_in(id, name, owner.terms);
            return Ok(true);
        }
        if !self.demand.take_order(owner.terms) {
            return Err((Refusal::Limit, Duration::ZERO));
        }
        self.lock().take_in(id, name, owner.terms);
        self.wake.notify_one();
        Ok(false)
    }

    /// A certificate that was got for another site's question becomes this one's.
    async fn adopt(&self, id: &Arc<str>, terms: &Terms) -> bool {
        let write = {
            let mut inner = self.lock();
            let Some(held) = inner.held.get_mut(id) else { return false };
            held.record.demand = Some(Demanded { site: Arc::clone(&terms.site), asked: false });
            (record::bytes(&held.record), held.version.clone())
        };
        self.rewrite(id, write.0, write.1).await;
        true
    }

    /// Asks whether a name is allowed, or remembers the answer.
    async fn permit(&self, terms: &Terms, name: &str) -> Result<(), (Refusal, Duration)> {
        let Some(url) = &terms.said.ask else { return Err((Refusal::Disallowed, Duration::ZERO)) };
        // An answer counts for whoever gave it.
        let key = format!("{name} {}", url.value.text);
        let (known, tls) = {
            let mut inner = self.lock();
            (inner.answers.find(&key, clock::now()), inner.asking())
        };
        let answer = match (known, tls) {
            (Some(answer), _) => Ok(answer),
            (None, Ok(tls)) => {
                let answer = ask::ask(&url.value, name, &tls).await;
                let word = match answer {
                    Ok(ask::Answer::Yes) => "yes",
                    Ok(ask::Answer::No) => "no",
                    Err(_) => "none",
                };
                let mut inner = self.lock();
                *inner.questions.entry(word).or_default() += 1;
                if let Ok(answer) = answer {
                    let time = if answer == ask::Answer::Yes { YES_FOR } else { NO_FOR };
                    inner.answers.put(&key, answer, clock::now().after(time));
                }
                answer
            }
            (None, Err(why)) => Err(why),
        };
        match answer {
            Ok(ask::Answer::Yes) => Ok(()),
            Ok(ask::Answer::No) => Err((Refusal::Disallowed, NO_FOR)),
            Err(why) => {
                let now = now();
                let mut inner = self.lock();
                if inner.told_unanswered.saturating_add(TELL_EVERY) <= now {
                    inner.told_unanswered = now;
                    tracing::warn!(site = %terms.site, "{} gave no answer about {name}: {why}", url.value.text);
                }
                Err((Refusal::Unanswered, SHORTLY))
            }
        }
    }

    /// Whether a name on demand whose certificate is to be renewed is still allowed. The error is a sentence.
    pub(super) async fn still_allowed(&self, id: &str) -> Result<(), String> {
        let Some(name) = demand::name(id) else { return Ok(()) };
        let rules = {
            let inner = self.lock();
            if !inner.held.contains_key(id) {
                return Ok(());
            }
            Arc::clone(&inner.rules)
        };
        let Some(owner) = rules.owner(name) else { return Err(format!("No site takes {name} any more.")) };
        if owner.listed {
            return Ok(());
        }
        let asked = self.permit(owner.terms, name).await;
        asked.map_err(|(refusal, _)| format!("{name} is not renewed: {refusal}."))
    }

    /// What follows from a failed order for those who wait.
    pub(super) fn let_go(&self, id: &Arc<str>, failure: &Failure) {
        let is_name = demand::name(id).is_some();
        {
            let mut inner = self.lock();
            if is_name && !inner.held.contains_key(id) {
                inner.wanted.remove(id);
                inner.queue.remove(id);
            }
        }
        let time = until_then(failure.next_try);
        self.demand.refuse(id, Refusal::Failed, if is_name { time } else { time.min(SHORTLY) });
    }

    /// Orders for a name on demand at the next opportunity.
    pub(super) fn renew_name(&self, id: &str, name: &str) -> Result<(), String> {
        let unknown =
            || format!("{name} is neither a site nor a name that one takes on demand. See `tidegate certs`.");
        let mut inner = self.lock();
        let rules = Arc::clone(&inner.rules);
        let owner = rules.owner(name).ok_or_else(unknown)?;
        let id: Arc<str> = id.into();
        // A name that nobody allowed is not ordered because somebody typed it.
        if !owner.listed && !inner.held.contains_key(&id) && !inner.failures.contains_key(&id) {
            return Err(unknown());
        }
        inner.take_in(&id, name, owner.terms);
        inner.put(&id);
        inner.queue.force(&id);
        drop(inner);
        self.demand.forgive(&id);
        self.wake.notify_one();
        Ok(())
    }

    /// Looks through what is kept on demand: notes what is asked for, drops what nobody asked for. Gives one
    /// of those that were dropped.
    pub(super) async fn tend(&self) -> Option<Arc<str>> {
        for id in self.demand.sweep(|id| self.lock().queue.is_running(id)) {
            self.lock().forget(&id);
        }
        let Look { noted, dropped, over } = self.lock().look_through(now());
        for (id, bytes, version) in noted {
            self.rewrite(&id, bytes, version).await;
        }
        for (id, asked) in &dropped {
            let why = if *asked {
                "it could not be renewed for a week"
            } else {
                "nobody asked for it while it was valid"
            };
            tracing::info!(site = %id, "a certificate got on demand has expired and is dropped: {why}");
        }
        let kinds = dropped.iter().map(|(id, _)| (Kind::Certificate, id));
        for (kind, id) in kinds.chain(over.iter().map(|id| (Kind::Failure, id))) {
            let (store, place) = (Arc::clone(&self.store), Key::new(kind, id));
            if let Err(error) = off(move || store.delete(&place, &Expect::Any)).await {
                tracing::warn!(site = %id, "{error}");
            }
        }
        dropped.into_iter().next().map(|(id, _)| id)
    }

    /// Writes a certificate's record again, unless somebody else did meanwhile.
    async fn rewrite(&self, id: &Arc<str>, bytes: Zeroizing<Vec<u8>>, version: Version) {
        let place = Key::new(Kind::Certificate, id);
        match self.write(place, bytes, Expect::Is(version.clone()), None).await {
            Ok(new) => {
                if let Some(held) = self.lock().held.get_mut(id).filter(|held| held.version == version) {
                    held.version = new;
                }
            }
            // Noted again with the next handshake after a restart; nothing is lost.
            Err(error) => tracing::debug!(site = %id, "{error}"),
        }
    }

    /// Questions asked so far, by their answer: `yes`, `no` or `none`.
    pub fn questions(&self) -> Vec<(&'static str, u64)> {
        self.lock().questions.iter().map(|(word, count)| (*word, *count)).collect()
    }
}

fn until_then(second: u64) -> Duration {
    Duration::from_secs(second.saturating_sub(now()))
}

/// What one look through all that is kept found.
#[derive(Default)]
struct Look {
    /// Records to be written again.
    noted: Vec<(Arc<str>, Zeroizing<Vec<u8>>, Version)>,
    /// Certificates dropped, and whether somebody asked for them.
    dropped: Vec<(Arc<str>, bool)>,
    /// Failures dropped.
    over: Vec<Arc<str>>,
}

impl Inner {
    /// What is known of a name before anybody is asked: `true`, its certificate is there; an error, it is not its time.
    fn look_up(&self, id: &Arc<str>, site: &str, listed: bool) -> Result<Option<bool>, (Refusal, Duration)> {
        if self.held.get(id).is_some_and(|held| listed || held.owner() == Some(site)) {
            return Ok(Some(true));
        }
        if self.queue.is_running(id) {
            return Ok(Some(false));
        }
        if let Some(failure) = self.failures.get(id).filter(|failure| failure.next_try > now()) {
            return Err((Refusal::Failed, until_then(failure.next_try)));
        }
        if self.damaged.contains_key(&Key::new(Kind::Certificate, id)) {
            return Err((Refusal::Failed, demand::REFUSAL_TIME_MAX));
        }
        let kept = self.held.keys().filter(|id| demand::name(id).is_some()).count();
        if kept >= KEPT_MAX {
            return Err((Refusal::Full, SHORTLY));
        }
        Ok(None)
    }

    /// Wants a name's certificate from now on.
    pub(super) fn take_in(&mut self, id: &Arc<str>, name: &str, terms: &Terms) {
        let wanted = Wanted {
            site: Arc::clone(id),
            names: vec![HostPattern::Exact(name.into())],
            challenge: self.possible.clone(),
            tenant: Arc::clone(&terms.tenant),
            on_demand: Some(Arc::clone(&terms.site)),
        };
        self.wanted.insert(Arc::clone(id), wanted);
        self.enqueue(id);
    }

    /// What the record of a new certificate says of a name on demand.
    pub(super) fn demanded(&self, id: &str) -> Option<Demanded> {
        let site = self.wanted.get(id)?.on_demand.clone()?;
        Some(Demanded { site, asked: false })
    }

    /// Wants a name no longer that has no certificate.
    fn forget(&mut self, id: &Arc<str>) {
        if demand::name(id).is_some() && !self.held.contains_key(id) {
            self.wanted.remove(id);
            self.queue.remove(id);
        }
    }

    /// Whether a name on demand is waited for and its order may still come: kept over a reload that does not know it.
    pub(super) fn is_coming(&self, wanted: &Wanted) -> bool {
        let (Some(site), Some(name)) = (&wanted.on_demand, demand::name(&wanted.site)) else { return false };
        !self.held.contains_key(&wanted.site)
            && self.rules.owner(name).is_some_and(|owner| owner.terms.site == *site)
    }

    /// Finds what is to be written and what has had its time; the latter is forgotten.
    fn look_through(&mut self, now: u64) -> Look {
        let mut look = Look::default();
        for (id, held) in self.held.iter_mut().filter(|(id, _)| demand::name(id).is_some()) {
            let asked = held.asked.load(Ordering::Relaxed);
            let end = held.record.not_after.saturating_add(if asked { EXPIRED_FOR } else { 0 });
            if end <= now {
                look.dropped.push((Arc::clone(id), asked));
                continue;
            }
            let Some(demand) = held.record.demand.as_mut().filter(|d| asked && !d.asked) else { continue };
            if look.noted.len() < TEND_BATCH {
                demand.asked = true;
                look.noted.push((Arc::clone(id), record::bytes(&held.record), held.version.clone()));
            }
        }
        look.dropped.retain(|(id, _)| !self.queue.is_running(id));
        for (id, _) in &look.dropped {
            self.held.remove(id);
            self.wanted.remove(id);
            self.queue.remove(id);
        }
        for (id, ..) in &look.noted {
            self.enqueue(id);
        }
        let old = |failure: &Failure| failure.next_try.saturating_add(FAILED_FOR) <= now;
        let old = self.failures.iter().filter(|(id, failure)| demand::name(id).is_some() && old(failure));
        let over = old.map(|(id, _)| id).filter(|id| !self.wanted.contains_key(*id));
        look.over = over.cloned().collect();
        for id in &look.over {
            self.failures.remove(id);
        }
        look
    }

    /// The settings for encrypted questions; made when first needed.
    fn asking(&mut self) -> Result<Arc<rustls::ClientConfig>, String> {
        if let Some(made) = &self.asking {
            return Ok(Arc::clone(made));
        }
        let made = http::tls_config(self.settings.ca_file.as_deref())?;
        self.asking = Some(Arc::clone(&made));
        Ok(made)
    }

    /// Lines of `certs` for names on demand whose order failed and that are wanted no more.
    pub(super) fn describe_failed(&self) -> impl Iterator<Item = CertificateStatus> {
        let failed = self.failures.iter().filter(|(id, _)| !self.wanted.contains_key(*id));
        failed.filter_map(|(id, failure)| {
            let name = demand::name(id)?;
            let owner = self.rules.owner(name)?;
            let ca = self.settings.directories.first().map(|d| Arc::clone(&d.name)).unwrap_or_default();
            let choice = self.choose(id, &failure.names, failure.attempts);
            Some(CertificateStatus {
                site: Arc::clone(&owner.terms.site),
                on_demand: true,
                names: vec![name.to_owned()],
                issuer: choice.engine.word(),
                next_issuer: choice.engine.word(),
                next_issuer_because: choice.because,
                explanation: None,
                ca,
                not_after: None,
                renew_at: None,
                state: "failed",
                last_error: Some(failure.message.clone()),
                attempts: failure.attempts,
                next_try: Some(failure.next_try),
            })
        })
    }
}

#[cfg(test)]
mod tests;
