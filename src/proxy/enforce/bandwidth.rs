//! Bandwidth: bodies find their lanes here; [`throttle`](crate::proxy::throttle) holds them to it while they move.

use http::request::Parts;

use crate::base::policy::PolicyKind;
use crate::policy::rate_limit::Facts;
use crate::proxy::context::Context;
use crate::proxy::doctor;
use crate::proxy::throttle::Throttle;
use crate::snapshot::Route;
use crate::telemetry::metric::Counter;

/// Gives the bodies of a request to their lanes. Nothing is refused.
pub(super) fn begin(context: &mut Context, route: &Route, parts: &Parts, path: &str) {
    let Some(lanes) = &route.bandwidth else { return };
    let facts = Facts {
        client: context.client,
        method: &parts.method,
        path,
        headers: &parts.headers,
        user: super::limits::user(context),
    };
    let (worker, doubted) = (context.worker(), doctor::doubts(context));
    let (wheel, shard) = (&worker.wheel, &worker.shard);
    let down = Throttle::begin(&lanes.down, &facts, doubted, wheel, shard, Counter::BandwidthDown);
    let up = Throttle::begin(&lanes.up, &facts, doubted, wheel, shard, Counter::BandwidthUp);
    context.throttles = (down, up);
}

/// A body would have waited, if its lane were not in shadow.
pub fn would_wait(context: &mut Context) {
    if context.would_block.set(PolicyKind::Bandwidth)
        && let Some(site) = context.site()
    {
        site.would_block.count(PolicyKind::Bandwidth);
    }
}
