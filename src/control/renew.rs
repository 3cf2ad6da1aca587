//! Drives the manager of automatic certificates: tells it what sites want, lets it run, and puts what it got in force.
//!
//! The decisions (what to order, when, at whom) are the manager's. A new certificate is put in force by a reload:
//! the site's fingerprint covers its certificate, so that exactly the sites concerned are compiled anew.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::config::model::{ChallengeKind, HostPattern, Server};
use crate::config::section::host;
use crate::control::Control;
use crate::snapshot::resident::Residents;
use crate::snapshot::{Site, Snapshot, Source};
use crate::telemetry::hub::Reading;
use crate::telemetry::metric::Metric;
use crate::tls::acme::event::EVENTS_MAX;
use crate::tls::acme::{CertificateStatus, Reread, Wanted, demand};

/// Certificates that come within this time of the first are put in force by one reload.
const BATCH: Duration = Duration::from_secs(1);
/// How often it is looked whether a reload has brought `[acme]`.
const FOLLOW: Duration = Duration::from_millis(500);

/// How long the end of the process waits for TXT records to be removed.
const FAREWELL: Duration = Duration::from_secs(5);

/// States of a certificate, in the order of the metric.
const STATES: [&str; 6] = ["valid", "due", "unused", "ordering", "failed", "waiting"];

/// Opens the manager, or gives it the settings of a configuration about to be in force.
pub fn configure(residents: &Residents, server: &Server) {
    if let Err(why) = residents.acme.configure(server.acme.as_ref()) {
        tracing::error!("{why}");
    }
}

/// Tells the manager which certificates are wanted: all of the automatic ones, also of sites that serve their last good
/// version.
pub fn want(residents: &Residents, snapshot: &Snapshot) {
    let Some(manager) = residents.acme.manager() else { return };
    let challenge = snapshot.server.acme.as_ref().map(|acme| possible(&acme.challenges, &snapshot.server));
    let Some(challenge) = challenge else {
        manager.allow(Arc::default(), Vec::new());
        return manager.want(Vec::new());
    };
    manager.allow(snapshot.rules.clone(), challenge.clone());
    let automatic = snapshot.sites.iter().filter(|site| site.source.is_automatic() && !site.hosts.is_empty());
    let sites = automatic.map(|site| Wanted {
        site: site.name.clone(),
        names: site.hosts.clone(),
        challenge: challenge.clone(),
        tenant: site.tenant.clone(),
        on_demand: None,
    });
    let names = snapshot.names.iter().filter_map(|(name, named)| {
        let site = snapshot.sites.get(named.position)?;
        Some(Wanted {
            site: demand::id(name),
            names: vec![HostPattern::Exact(name.clone())],
            challenge: challenge.clone(),
            tenant: site.tenant.clone(),
            on_demand: Some(site.name.clone()),
        })
    });
    manager.want(sites.chain(names).collect());
}

/// The challenges for which there is a listener: an authority asks nobody who does not listen.
fn possible(kinds: &[ChallengeKind], server: &Server) -> Vec<ChallengeKind> {
    let can = |kind: &ChallengeKind| match kind {
        ChallengeKind::TlsAlpn01 => !server.https.is_empty(),
        ChallengeKind::Http01 => !server.http.is_empty(),
        ChallengeKind::Dns01 => true,
    };
    kinds.iter().copied().filter(can).collect()
}

/// Runs for ever: the manager, once there is one, and a reload for what it got.
pub async fn run(control: Arc<Control>, reload: impl AsyncFn(&'static str)) {
    let manager = loop {
        match control.residents.acme.manager() {
            Some(manager) => break manager,
            None => tokio::time::sleep(FOLLOW).await,
        }
    };
    let guarding = crate::control::clock_guard::run(manager.clone());
    let told = Rc::new(Told::default());
    let (tell, demand) = (told.clone(), manager.demand());
    let running = manager.run(move |id| match demand::name(id) {
        Some(_) => tell.names.notify_one(),
        None => {
            if demand.is_waited_for(id) {
                tell.urgent.notify_one();
            }
            tell.sites.notify_one();
        }
    });
    let applying = async {
        loop {
            told.sites.notified().await;
            tokio::select! {
                () = tokio::time::sleep(BATCH) => {}
                () = told.urgent.notified() => {}
            }
            reload("new certificates").await;
            // Also where nothing changed: what is waited for may have been in force already.
            control.settle();
        }
    };
    let naming = async {
        loop {
            told.names.notified().await;
            let control = control.clone();
            // What came meanwhile is put in force by the same swap, or by the next. A reload may be under way.
            let done = tokio::task::spawn_blocking(move || {
                control.rename();
                control.settle();
            });
            if let Err(error) = done.await {
                tracing::error!("certificates got on demand are not in force: {error}");
            }
        }
    };
    tokio::join!(running, applying, naming, guarding);
}

/// What the manager told.
#[derive(Default)]
struct Told {
    /// A site has a new certificate.
    sites: Notify,
    /// And a handshake waits for it.
    urgent: Notify,
    /// Certificates got on demand have come or gone.
    names: Notify,
}

impl Control {
    /// Orders nothing any more, and waits for what is in flight: a certificate that was issued and not stored would be
    /// lost.
    pub async fn finish_orders(&self, deadline: Duration) {
        let Some(manager) = self.residents.acme.manager() else { return };
        manager.stop();
        // What takes longer is ordered again by the next process.
        let _ = tokio::time::timeout(deadline, manager.idle()).await;
    }

    /// The answer to `GET /certs`: the certificate of every site.
    pub fn certificates(&self) -> Value {
        let snapshot = self.cell.load();
        let (automatic, named) = self.automatic();
        let fixed = snapshot.sites.iter().filter(|site| !site.hosts.is_empty());
        let rows =
            fixed.map(|site| row(site, automatic.get(&*site.name).filter(|_| site.source.is_automatic())));
        let rows: Vec<Value> = rows.chain(named.iter().filter_map(named_row)).collect();
        let manager = self.residents.acme.manager();
        let (key, whole) = manager.as_ref().map(|manager| manager.sealing()).unwrap_or_default();
        json!({
            "automatic": snapshot.server.acme.is_some(),
            "open": manager.is_some(),
            "store": { "key": key, "encrypted": key.is_some() && whole },
            "clock": self.clock_status(),
            "certificates": rows,
        })
    }

    /// Reads the store again. Blocks.
    pub fn reread(&self) -> Reread {
        let found = self.residents.acme.manager().map(|manager| manager.reread()).unwrap_or_default();
        for why in &found.refused {
            tracing::warn!("{why}");
        }
        found
    }

    /// The answer to `POST /certs/reread`, after the reload that followed.
    pub fn reread_report(&self, found: &Reread) -> Value {
        json!({
            "open": self.residents.acme.manager().is_some(),
            "taken": found.taken,
            "refused": found.refused,
        })
    }

    /// The answer to `GET /certs/plan`.
    pub async fn certificate_plan(&self) -> Value {
        match self.residents.acme.manager() {
            Some(manager) => manager.forecast().await,
            None => Value::Null,
        }
    }

    /// The last thing: waits a little until what orders have left outside is taken away.
    pub async fn farewell(&self) {
        if let Some(manager) = self.residents.acme.manager()
            && tokio::time::timeout(FAREWELL, manager.cleaned()).await.is_err()
        {
            tracing::warn!(
                "TXT records of orders that were cut are left behind: there was no time to remove them"
            );
        }
    }

    /// The answer to `GET /certs/events`: what happened to automatic certificates, the oldest first.
    pub fn certificate_events(&self) -> Value {
        let manager = self.residents.acme.manager();
        let events = manager.map(|manager| manager.events()).unwrap_or_default();
        json!({ "events": events, "most": EVENTS_MAX })
    }

    /// Orders a site's certificate now.
    ///
    /// # Errors
    /// A sentence: no such site, or none whose certificate is automatic.
    pub fn renew(&self, site: &str) -> Result<(), String> {
        let site = site.to_ascii_lowercase();
        let snapshot = self.cell.load();
        let Some(found) = snapshot.sites.iter().find(|known| *known.name == *site) else {
            if !snapshot.rules.is_empty()
                && let Some(manager) = self.residents.acme.manager()
            {
                return manager.renew(&demand::id(&site));
            }
            return Err(format!("there is no site `{site}`: `tidegate certs` lists them"));
        };
        if !found.source.is_automatic() {
            let source =
                if found.source == Source::Files { "comes from files" } else { "is of the internal CA" };
            return Err(format!("the certificate of `{site}` {source}: only automatic ones are ordered"));
        }
        let manager = self.residents.acme.manager();
        manager.ok_or("automatic certificates are off: the process log says why")?.renew(&site)
    }

    /// The automatic certificates of sites, by site, and those of names on demand.
    fn automatic(&self) -> (HashMap<Arc<str>, CertificateStatus>, Vec<CertificateStatus>) {
        let manager = self.residents.acme.manager();
        let all = manager.map(|manager| manager.status()).unwrap_or_default();
        let (named, sites): (Vec<_>, Vec<_>) = all.into_iter().partition(|status| status.on_demand);
        (sites.into_iter().map(|status| (status.site.clone(), status)).collect(), named)
    }

    /// Automatic certificates by state, for each scrape.
    pub(super) fn certificate_readings(&self, readings: &mut Vec<Reading>) {
        let Some(manager) = self.residents.acme.manager() else { return };
        let mut all = manager.status();
        // Names that strangers make up fail; that is counted with the decisions, and no reason for an alert.
        all.retain(|status| !status.on_demand || status.not_after.is_some() || status.state != "failed");
        for state in STATES {
            let count = all.iter().filter(|status| status.state == state).count();
            readings.push(Reading::new(Metric::CertificateState, &[state], count as f64));
        }
        for (result, count) in manager.ended() {
            readings.push(Reading::new(Metric::AcmeOrders, &[result], count as f64));
        }
        for (answer, count) in manager.questions() {
            readings.push(Reading::new(Metric::OnDemandQuestions, &[answer], count as f64));
        }
        let demand = manager.demand();
        readings.push(Reading::new(Metric::CertificateWaiters, &[], demand.waiters() as f64));
        readings.push(Reading::new(Metric::CertificateRefusals, &[], demand.refusals() as f64));
    }
}

/// One line of `tidegate certs`, for a name on demand.
fn named_row(kept: &CertificateStatus) -> Option<Value> {
    let mut row = serde_json::to_value(kept).ok()?;
    row.as_object_mut()?.insert("source".into(), Source::Acme.as_str().into());
    Some(row)
}

/// One line of `tidegate certs`, for a site.
fn row(site: &Site, kept: Option<&CertificateStatus>) -> Value {
    let not_after = site.identity.as_ref().map(|identity| identity.not_after);
    let mut row = match kept.map(serde_json::to_value) {
        Some(Ok(row)) => row,
        _ => json!({
            "site": site.name,
            "on_demand": false,
            "names": site.hosts.iter().map(host::written).collect::<Vec<_>>(),
            "issuer": null, "next_issuer": null, "next_issuer_because": null, "ca": null, "renew_at": null,
            "explanation": null, "last_error": null, "attempts": 0, "next_try": null,
            "state": if not_after.is_some() { "valid" } else { "waiting" },
        }),
    };
    if let Some(row) = row.as_object_mut() {
        row.insert("source".into(), site.source.as_str().into());
        // What is served now, which may be older than what is stored.
        row.insert("not_after".into(), not_after.into());
    }
    row
}
