//! How endpoints are: for `status` and for the metrics. Why one gets no requests is said here, in one sentence, from the
//! same facts by which they are chosen.

use serde_json::{Value, json};

use crate::base::clock::{self, Millis};
use crate::control::Control;
use crate::telemetry::hub::Reading;
use crate::telemetry::metric::Metric;
use crate::upstream::endpoint::{Endpoint, Health};
use crate::upstream::health::group::{Group, WHOLE};
use crate::upstream::health::passive::Cause;

/// One endpoint in the answer to `GET /status`.
pub(super) fn status(endpoint: &Endpoint) -> Value {
    let now = clock::now();
    let ago = |at: Millis| now.0.saturating_sub(at.0);
    let checked = endpoint.checked();
    let out = endpoint.out();
    json!({
        "service": endpoint.service,
        "address": endpoint.address.to_string(),
        "name": endpoint.name,
        "state": if endpoint.is_good() { "up" } else { "down" },
        "because": against(endpoint, now),
        "health": endpoint.health().as_str(),
        "check": checked.map(|checked| json!({
            "asked": &*checked.asked, "well": checked.well, "answer": checked.answer, "ago_ms": ago(checked.at),
        })),
        "out": out.map(|out| json!({
            "cause": out.cause.as_str(), "for_ms": out.until.0.saturating_sub(now.0), "trial": out.tried,
        })),
        "in_flight": endpoint.in_flight(),
        "failures": endpoint.failures(),
        "last_error": endpoint.last_error(),
    })
}

/// What speaks against an endpoint now; also where it gets requests nevertheless, because its service panics.
fn against(endpoint: &Endpoint, now: Millis) -> Option<String> {
    let leaving = endpoint.is_leaving().then(|| "its source says that it ends".to_owned());
    let health = match endpoint.health() {
        Health::Unhealthy | Health::Unreachable => Some(match endpoint.checked() {
            Some(checked) if !checked.well => format!("health check {}: {}", checked.asked, checked.answer),
            Some(checked) => {
                format!("health check {}: {}; it must answer well more often", checked.asked, checked.answer)
            }
            None => "its health check failed".to_owned(),
        }),
        Health::Joining => Some("it joins, and has not answered its health check yet".to_owned()),
        Health::Unknown | Health::Healthy => None,
    };
    let out = || {
        let out = endpoint.out()?;
        let seconds = out.until.0.saturating_sub(now.0).div_ceil(1000);
        let until = match (out.due(now), out.tried) {
            (true, _) => "the next request tries it".to_owned(),
            (false, false) => format!("tried in {seconds} s"),
            (false, true) => format!("being tried; again in {seconds} s"),
        };
        let words = match out.cause {
            Cause::Connect => endpoint.last_error().unwrap_or_default(),
            _ => format!("ejected: {}", endpoint.ejected_because().unwrap_or_default()),
        };
        Some(format!("{words} ({until})"))
    };
    leaving.or(health).or_else(out)
}

/// The services in which nobody is believed any more.
pub(super) fn panics(control: &Control) -> Vec<Value> {
    let mut groups = control.residents.endpoints.groups();
    groups.retain(|group| group.panicking());
    groups.sort_unstable_by(|a, b| a.service.cmp(&b.service));
    let told = |group: &Group| {
        let muster = group.muster_of_panic();
        json!({ "service": group.service, "reachable": muster.reachable, "good": muster.good })
    };
    groups.iter().map(|group| told(group)).collect()
}

impl Control {
    /// What is read of endpoints at each scrape.
    pub(super) fn endpoint_readings(&self, readings: &mut Vec<Reading>) {
        let flag = |flag: bool| f64::from(u8::from(flag));
        for endpoint in self.residents.endpoints.list() {
            let address = endpoint.address.to_string();
            let labels = [&*endpoint.service, address.as_str()];
            let mut read = |metric, value| readings.push(Reading::new(metric, &labels, value));
            read(Metric::EndpointUp, flag(endpoint.is_good()));
            read(Metric::EndpointInFlight, f64::from(endpoint.in_flight()));
            if let Some(checked) = endpoint.checked() {
                read(Metric::EndpointHealthy, flag(endpoint.health() == Health::Healthy));
                read(Metric::EndpointCheck, flag(checked.well));
            }
            for cause in Cause::EJECTIONS {
                let count = endpoint.ejections(cause);
                if count > 0 {
                    let labels = [&*endpoint.service, address.as_str(), cause.as_str()];
                    readings.push(Reading::new(Metric::EndpointEjections, &labels, count as f64));
                }
            }
            if endpoint.out().is_some_and(|out| out.cause != Cause::Connect) {
                readings.push(Reading::new(Metric::EndpointEjected, &labels, 1.0));
            }
        }
        for group in self.residents.endpoints.groups().iter().filter(|group| group.panicking()) {
            readings.push(Reading::new(Metric::ServicePanic, &[&group.service], 1.0));
        }
        for group in self.residents.endpoints.groups().iter().filter(|group| group.spill() > 0) {
            let share = f64::from(group.spill()) / f64::from(WHOLE);
            readings.push(Reading::new(Metric::ServiceSpill, &[&group.service], share));
        }
        let counts = &self.probes;
        for (result, cell) in [("well", &counts.well), ("ill", &counts.ill)] {
            let count = cell.load(std::sync::atomic::Ordering::Relaxed);
            readings.push(Reading::new(Metric::HealthProbes, &[result], count as f64));
        }
        let under_way = counts.under_way.load(std::sync::atomic::Ordering::Relaxed);
        readings.push(Reading::new(Metric::HealthProbesActive, &[], under_way as f64));
    }
}
