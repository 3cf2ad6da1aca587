//! Tells what the client-IP doctor found: in the process log when it is new and every hour, in `status` and in a metric.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::base::address::truncated;
use crate::base::clock;
use crate::base::record::Privacy;
use crate::config::model::ClientIpDoctor;
use crate::control::Control;
use crate::policy::doctor::{Finding, Stands};
use crate::telemetry::hub::Reading;
use crate::telemetry::metric::Metric;

/// Time between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// Looks as long as the process lives.
pub async fn run(control: Arc<Control>) {
    loop {
        control.examine();
        tokio::time::sleep(LOOK).await;
    }
}

impl Control {
    fn examine(&self) {
        let doctor = &self.residents.doctor;
        let server = self.server();
        if server.client_ip_doctor == ClientIpDoctor::Off {
            doctor.forget();
            return;
        }
        for found in doctor.look(clock::now()) {
            let advice = advice(&found, server.log.privacy, server.client_ip_doctor);
            tracing::warn!(finding = found.finding.kind(), "{advice}");
        }
    }

    /// What `status` tells of it.
    pub(super) fn doctor_status(&self) -> Value {
        let server = self.server();
        let now = clock::now();
        let one = |found: &Stands| {
            let enforced = !found.finding.is_doubted() || server.client_ip_doctor != ClientIpDoctor::On;
            json!({
                "finding": found.finding.kind(),
                "who": who(&found.finding, server.log.privacy),
                "percent": (found.percent > 0).then_some(found.percent),
                "seen_before_ms": now.0.saturating_sub(found.last.0),
                "limits_by_address": if enforced { "enforced" } else { "not enforced" },
                "advice": advice(found, server.log.privacy, server.client_ip_doctor),
            })
        };
        self.residents.doctor.findings().iter().map(one).collect()
    }

    /// One line for each kind, so that an alert can look for any of them.
    pub(super) fn doctor_readings(&self, readings: &mut Vec<Reading>) {
        let findings = self.residents.doctor.findings();
        for kind in ["known-proxy", "inner-proxy", "loud-address"] {
            let count = findings.iter().filter(|found| found.finding.kind() == kind).count();
            readings.push(Reading::new(Metric::DoctorFindings, &[kind], count as f64));
        }
    }
}

/// A name, or an address as far as logs may show it.
fn who(finding: &Finding, privacy: Privacy) -> String {
    match finding {
        Finding::Known(name) => name.to_string(),
        Finding::Inner(key) | Finding::Loud(key) => match privacy {
            Privacy::Strict => truncated(key.address()).to_string(),
            Privacy::Full => key.address().to_string(),
        },
    }
}

fn advice(found: &Stands, privacy: Privacy, setting: ClientIpDoctor) -> String {
    let who = who(&found.finding, privacy);
    let meanwhile = match setting {
        ClientIpDoctor::On => "Until then limits by address count but refuse nobody there",
        _ => "Until then limits by address treat all of them as one client",
    };
    match &found.finding {
        Finding::Known(_) => format!(
            "connections come from the proxy `{who}`, which is not trusted: everybody behind it has its address. \
             Write trusted_proxies = [\"{who}\"] in [server]. {meanwhile}"
        ),
        Finding::Inner(_) => format!(
            "{} % of the requests come from {who} in a private network, and most carry fields that proxies add: it \
             seems to be a proxy in front (a load balancer, or Docker's), and everybody behind it has its address. \
             If it is yours, write its address into trusted_proxies in [server]. {meanwhile}",
            found.percent
        ),
        Finding::Loud(_) => format!(
            "{} % of the requests come from one address, {who}: a proxy, CDN or NAT in front (write it into \
             trusted_proxies in [server] if it is yours), Docker's userland proxy, a monitor, or an attacker. Limits \
             by address go on",
            found.percent
        ),
    }
}
