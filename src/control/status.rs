//! How everything is, as JSON for the admin socket and as readings for `/metrics`.

mod endpoint;

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::base::clock;
use crate::config::model::{Origin, Source};
use crate::config::section::host;
use crate::control::{Control, load, traffic};
use crate::discovery::Set;
use crate::snapshot::Site;
use crate::telemetry::hub::Reading;
use crate::telemetry::metric::Metric;

impl Control {
    /// The answer to `GET /status`.
    pub fn status(&self) -> Value {
        let snapshot = self.cell.load();
        let view = self.view.load_full();
        let hub = &self.residents.hub;
        let workers: Vec<Value> =
            (0..self.workers).map(|id| json!({"id": id, "connections": hub.connections(id)})).collect();
        let mut names = vec![0usize; snapshot.sites.len()];
        for named in snapshot.names.values() {
            if let Some(count) = names.get_mut(named.position) {
                *count += 1;
            }
        }
        let mut sites: Vec<Value> = snapshot
            .sites
            .iter()
            .zip(names)
            .map(|(site, names)| site_status(site, names, view.quarantined.get(&site.name)))
            .collect();
        let serving: HashSet<&str> = snapshot.sites.iter().map(|site| &*site.name).collect();
        let down = view.quarantined.iter().filter(|(name, _)| !serving.contains(&***name));
        sites.extend(down.map(|(name, reason)| {
            json!({
                "name": name, "hosts": [], "state": "quarantined", "serving": false, "generation": null,
                "reason": reason, "routes": 0, "certificate": null,
            })
        }));
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "uptime_ms": clock::now().0,
            "generation": snapshot.generation,
            "listeners": self.listeners.iter()
                .map(|l| json!({"kind": l.kind, "address": l.address})).collect::<Vec<_>>(),
            "workers": workers,
            "connections": self.connections.open(),
            "sites": sites,
            "endpoints": self.residents.endpoints.list().iter().map(|e| endpoint::status(e)).collect::<Vec<_>>(),
            "sources": self.residents.sets.list().iter().map(source_status).collect::<Vec<_>>(),
            "panics": endpoint::panics(self),
            "engine": self.residents.sets.engine().map(|engine| json!({
                "socket": engine.socket,
                "answered": engine.known,
                "containers": engine.containers,
                "problems": engine.problems,
                "trouble": engine.trouble,
            })),
            "services": traffic::status(&snapshot),
            "doctor": self.doctor_status(),
            "overload": load::overload(self),
            "tenants": load::status(self),
            "clock": self.clock_status(),
            "ca_certificate": self.residents.ca.ca_path(),
        })
    }

    /// The answer to `GET /config`.
    pub fn effective(&self) -> Value {
        let view = self.view.load_full();
        let all = view.loaded.as_ref().map(crate::config::Loaded::effective).unwrap_or_default();
        let row =
            |e: crate::config::Effective| json!({"key": e.key, "value": e.value, "origin": told(&e.origin)});
        Value::Array(all.into_iter().map(row).collect())
    }

    /// What is read at each scrape.
    pub fn readings(&self, readings: &mut Vec<Reading>) {
        let snapshot = self.cell.load();
        let view = self.view.load_full();
        let quarantined = view.quarantined.len();
        let serving = snapshot.sites.iter().filter(|site| !view.quarantined.contains_key(&site.name)).count();
        readings.push(Reading::new(Metric::Sites, &["active"], serving as f64));
        readings.push(Reading::new(Metric::Sites, &["quarantined"], quarantined as f64));
        for name in view.quarantined.keys() {
            readings.push(Reading::new(Metric::SiteQuarantined, &[name], 1.0));
        }
        for site in &snapshot.sites {
            if let Some(identity) = &site.identity {
                let expiry = identity.not_after as f64;
                readings.push(Reading::new(Metric::CertificateExpiry, &[&site.name], expiry));
            }
            for (kind, count) in site.would_block.all() {
                let labels = [&*site.name, kind.as_str()];
                readings.push(Reading::new(Metric::WouldBlock, &labels, count as f64));
            }
        }
        self.ban_readings(readings);
        for (source, set) in self.residents.sets.list() {
            let source = source.to_string();
            let members = set.members.len() as f64;
            readings.push(Reading::new(Metric::DiscoveredEndpoints, &[&source], members));
            let failing = f64::from(u8::from(set.trouble.is_some()));
            readings.push(Reading::new(Metric::DiscoveryFailing, &[&source], failing));
        }
        if let Some(engine) = self.residents.sets.engine() {
            let up = f64::from(u8::from(engine.known && engine.trouble.is_none()));
            readings.push(Reading::new(Metric::EngineUp, &[], up));
            readings.push(Reading::new(Metric::EngineContainers, &[], engine.containers as f64));
            readings.push(Reading::new(Metric::EngineProblems, &[], engine.problems.len() as f64));
        }
        self.certificate_readings(readings);
        self.front_readings(&snapshot.sites, readings);
        self.clock_readings(readings);
        self.doctor_readings(readings);
        self.endpoint_readings(readings);
        self.patch_readings(&snapshot, readings);
        traffic::readings(&snapshot, readings);
        load::readings(self, readings);
    }
}

fn told(origin: &Origin) -> String {
    match origin {
        Origin::Default => "default".to_owned(),
        Origin::File(place) => format!("{}:{}", place.path().display(), place.line()),
    }
}

/// `names`: how many it serves on demand; `certs` lists them.
fn site_status(site: &Site, names: usize, reason: Option<&String>) -> Value {
    let hosts: Vec<String> = site.hosts.iter().map(host::written).collect();
    json!({
        "name": site.name,
        "hosts": hosts,
        "on_demand": site.on_demand.as_ref().map(|_| json!({ "names": names })),
        "state": if reason.is_some() { "quarantined" } else { "active" },
        "serving": true,
        "generation": site.generation,
        "reason": reason,
        "routes": site.routes.len(),
        "connections": site.places.open(),
        // Without hosts there is none: each name on demand has its own.
        "certificate": (!site.hosts.is_empty()).then(|| json!({
            "source": site.source.as_str(),
            "not_after": site.identity.as_ref().map(|identity| identity.not_after),
        })),
    })
}

fn source_status((source, set): &(Source, Set)) -> Value {
    json!({
        "source": source.to_string(),
        "endpoints": set.members.len(),
        "answered": set.known,
        "trouble": set.trouble,
    })
}
