//! One order, from the site's lock to the stored certificate, and what is noted of its end.

use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::CertificateDer;

use super::{Engines, Manager, now, spread, suggest};
use crate::config::model::AcmeEngine;
use crate::tls::acme::account::off;
use crate::tls::acme::canary;
use crate::tls::acme::demand::Refusal;
use crate::tls::acme::engine::Engine;
use crate::tls::acme::issuer::{IssueError, Issued, Job, Reason};
use crate::tls::acme::queue::{self, Bucket};
use crate::tls::acme::record::{self, Certificate, Failure, Held};
use crate::tls::acme::store::{Expect, Key, Kind, Lock};

/// How long a site's lock outlives us; longer than an order, TXT records included.
const LEASE: Duration = Duration::from_secs(1_200);

/// How long handshakes are refused after an order that the clock kept back; seconds.
const PUT_OFF: u64 = 60;

/// How an order ended.
pub(super) struct Ended {
    pub(super) site: Arc<str>,
    pub(super) directory: usize,
    pub(super) engine: Engine,
    pub(super) names: Vec<String>,
    pub(super) outcome: Result<Held, IssueError>,
}

impl Manager {
    /// One order, and the engine that carried it out.
    pub(super) async fn carry_out(
        &self,
        mut job: Job,
        engines: Arc<Engines>,
        old: Option<CertificateDer<'static>>,
        bucket: Option<Bucket>,
    ) -> (Engine, Result<Held, IssueError>) {
        job.engine = self.engine_for(&job, &engines).await;
        let outcome = match self.still_allowed(&job.site).await {
            Ok(()) => self.work(&job, engines, old, bucket).await,
            // Nobody was asked for an order.
            Err(why) => Err(IssueError { no_order: true, ..IssueError::new(Reason::Rejected, why) }),
        };
        (job.engine, outcome)
    }

    /// One order, from the site's lock to the stored certificate.
    async fn work(
        &self,
        job: &Job,
        engines: Arc<Engines>,
        old: Option<CertificateDer<'static>>,
        bucket: Option<Bucket>,
    ) -> Result<Held, IssueError> {
        let (store, site, budget) =
            (Arc::clone(&self.store), Arc::clone(&job.site), Arc::clone(&job.directory.url));
        let place = Key::new(Kind::Certificate, &site);
        let nothing = |error: IssueError| IssueError { no_order: true, ..error };
        self.room().await.map_err(nothing)?;
        let (lock, found) = off({
            let (place, site) = (place.clone(), Arc::clone(&site));
            move || {
                let lock = store.lock(&format!("site {site}"), LEASE)?;
                store.save(&Key::new(Kind::Budget, &budget), &record::bytes(&bucket), &Expect::Any, None)?;
                Ok((lock, record::load(store.as_ref(), &place)))
            }
        })
        .await
        .map_err(nothing)?;
        let ours = |why: String| nothing(IssueError::new(Reason::Store, why));
        let lock = lock.ok_or_else(|| ours(format!("Another process orders for {site} just now.")))?;
        let found = found.map_err(ours)?;
        let hurried = found.as_ref().is_some_and(|found| suggest::hurried(&found.record));
        // Somebody else was faster: what lies there is taken, and nothing ordered.
        if let Some(found) = found
            && found.leaf() != old
            && found.covers(&job.names)
            && found.record.renew_at > now()
        {
            return Ok(found);
        }
        let issued = self.issue(job, &engines).await?;
        let checked = canary::check(&issued.chain, &issued.key, &job.names, now())
            .map_err(|e| IssueError::new(Reason::Canary, e))?;
        let (not_before, not_after) = (checked.not_before, checked.identity.not_after);
        let record = Certificate {
            site: Arc::clone(&site),
            names: job.names.clone(),
            directory: Arc::clone(&job.directory.url),
            ca: Arc::clone(&job.directory.name),
            engine: job.engine.word().to_owned(),
            chain: issued.chain,
            key: issued.key.to_string(),
            issued_at: now(),
            not_before,
            not_after,
            suggested: None,
            renew_at: queue::renew_at(not_before, not_after, None, spread(&site)),
            hurried,
            demand: self.lock().demanded(&site),
        };
        let lock: Arc<dyn Lock> = Arc::from(lock);
        // The lock fences off other orders, and nothing else may keep a certificate that was issued from being stored:
        // what was read before may have been written again since, with the CA's newest window in it.
        let version = self.write_patiently(&site, place, record::bytes(&record), Expect::Any, lock).await?;
        Held::new(record, version).map_err(|e| IssueError::new(Reason::Canary, e))
    }

    /// The engine that was chosen, or a better one for what only the CA can say: whether it takes note of what is
    /// replaced (RFC 9773 section 5).
    async fn engine_for(&self, job: &Job, engines: &Engines) -> Engine {
        let may_change = job.engine == Engine::Simple && job.replaces.is_some();
        if !may_change || self.lock().settings.engine != AcmeEngine::Auto {
            return job.engine;
        }
        match engines.renewal.place(&job.directory.url).await {
            Ok(Some(_)) => Engine::Managed,
            // Nothing is known, or nobody answers: that is told by the order.
            Ok(None) | Err(_) => job.engine,
        }
    }

    /// One order between two looks at the clock; after failures, only if a staging CA issues.
    async fn issue(&self, job: &Job, engines: &Engines) -> Result<Issued, IssueError> {
        self.confirm(&engines.client, &job.directory).await?;
        let issuer = engines.issuer(job.engine);
        if let Some(probe) = &job.probe {
            let rehearsal = Job { directory: probe.clone(), replaces: None, probe: None, ..job.clone() };
            // What it signs nobody trusts: it is thrown away.
            if let Err(mut error) = issuer.issue(&rehearsal).await {
                // How the staging CA is says nothing of the real one, which was asked for nothing.
                if matches!(error.kind, Reason::Network | Reason::RateLimited) {
                    error.kind = Reason::Other;
                }
                error.no_order = true;
                error.message =
                    format!("At {}, which is tried first after failures: {}", probe.name, error.message);
                return Err(error);
            }
            tracing::info!(site = %job.site, ca = %probe.name, "issued there: the real CA is asked again");
        }
        let issued = issuer.issue(job).await?;
        self.settle(&engines.client).await?;
        Ok(issued)
    }

    /// The clock was wrong: that is no failure of the site, and no wait could be counted with it.
    fn put_off(
        &self,
        site: &Arc<str>,
        names: Vec<String>,
        directory: usize,
        error: &IssueError,
    ) -> Option<Arc<str>> {
        let now = now();
        {
            let mut inner = self.lock();
            inner.queue.give_back(directory);
            inner.queue.finished(site);
            inner.enqueue(site);
        }
        let (reason, message) = (error.kind.word().to_owned(), error.to_string());
        let next_try = now.saturating_add(PUT_OFF);
        let failure =
            Failure { site: Arc::clone(site), names, attempts: 0, next_try, at: now, reason, message };
        self.let_go(site, &failure);
        None
    }

    /// Takes note of how an order ended; the site, if it has a new certificate.
    pub(super) async fn finish(&self, ended: Ended) -> Option<Arc<str>> {
        let Ended { site, directory, engine, names, outcome } = ended;
        let place = Key::new(Kind::Failure, &site);
        let word = outcome.as_ref().map_or_else(|error| error.kind.word(), |_| "issued");
        {
            let mut inner = self.lock();
            *inner.ended.entry(word).or_default() += 1;
            inner.handed_over.remove(&site);
        }
        match outcome {
            Ok(held) => {
                tracing::info!(
                    %site, ca = %held.record.ca, engine = engine.word(), not_after = held.record.not_after,
                    "certificate issued"
                );
                let had_failed = self.lock().issued(&site, &names, directory, engine, held);
                if had_failed {
                    let store = Arc::clone(&self.store);
                    if let Err(error) = off(move || store.delete(&place, &Expect::Any)).await {
                        tracing::warn!(%site, "{error}");
                    }
                }
                Some(site)
            }
            Err(error) if self.stopping() => {
                // We closed our listeners, so the CA saw no proof: the next process owes it no wait for that.
                tracing::info!(%site, "an order ended because the process does: {error}");
                self.lock().queue.finished(&site);
                self.demand.refuse(&site, Refusal::Later, Duration::ZERO);
                None
            }
            Err(error) if self.lock().hand_over(&site, engine, &error) => {
                tracing::info!(%site, "the managed engine takes over: {error}");
                None
            }
            Err(error) => {
                tracing::warn!(
                    %site, engine = engine.word(), reason = error.kind.word(), "no certificate: {error}"
                );
                let failure = {
                    let mut inner = self.lock();
                    inner.note_failure(&site, directory, engine, &error);
                    if error.kind == Reason::Clock {
                        drop(inner);
                        return self.put_off(&site, names, directory, &error);
                    }
                    inner.failed(&site, names, directory, &error)
                };
                self.let_go(&site, &failure);
                // In memory it holds in any case; a store that fails is told about by the next order.
                if let Err(error) = self.write(place, record::bytes(&failure), Expect::Any, None).await {
                    tracing::warn!(%site, "{error}");
                }
                None
            }
        }
    }
}
