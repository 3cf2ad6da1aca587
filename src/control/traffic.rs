//! How much goes to services that bound it: for `status` and `/metrics`.

use serde_json::{Value, json};

use crate::snapshot::{Action, Snapshot};
use crate::telemetry::hub::Reading;
use crate::telemetry::metric::Metric;
use crate::upstream::Service;

/// Services with a `capacity` or a `breaker`.
fn bounded(snapshot: &Snapshot) -> impl Iterator<Item = &Service> {
    let routes = snapshot.sites.iter().flat_map(|site| &site.routes);
    let services = routes.filter_map(|route| match &route.action {
        Action::Proxy(service) => Some(&service.core),
        _ => None,
    });
    services.filter(|core| core.capacity.is_some() || core.breaker.is_some())
}

/// The part of `GET /status`: what is in flight, what waits, and the bounds of both; `null` where there is none.
pub(super) fn status(snapshot: &Snapshot) -> Vec<Value> {
    let row = |core: &Service| {
        let gate = &core.ledger.gate;
        let capacity = core.capacity.as_ref();
        json!({
            "service": core.name,
            "in_flight": capacity.map(|_| gate.in_flight()),
            "limit": Some(core.limit()).filter(|limit| *limit != u32::MAX),
            "limit_per_endpoint": capacity.and_then(|capacity| capacity.per_endpoint),
            "adaptive": capacity.is_some_and(|capacity| capacity.adaptive.is_some()),
            "queue": capacity.map(|_| gate.waiting()),
            "queue_max": capacity.map(|capacity| capacity.queue),
            "breaker": core.breaker.as_ref().map(|_| if core.ledger.breaker.is_open() { "open" } else { "closed" }),
        })
    };
    bounded(snapshot).map(row).collect()
}

/// What is read at each scrape.
pub(super) fn readings(snapshot: &Snapshot, readings: &mut Vec<Reading>) {
    for core in bounded(snapshot) {
        let (gate, service) = (&core.ledger.gate, [&*core.name]);
        if core.capacity.is_some() {
            readings.push(Reading::new(Metric::QueueLength, &service, f64::from(gate.waiting())));
            readings.push(Reading::new(Metric::ServiceInFlight, &service, f64::from(gate.in_flight())));
        }
        if core.limit() != u32::MAX {
            readings.push(Reading::new(Metric::ServiceLimit, &service, f64::from(core.limit())));
        }
        if core.breaker.is_some() {
            let open = f64::from(u8::from(core.ledger.breaker.is_open()));
            readings.push(Reading::new(Metric::BreakerOpen, &service, open));
        }
    }
}
