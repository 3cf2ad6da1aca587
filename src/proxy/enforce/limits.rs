//! Rate limits: first the site's, over all its routes, then the route's. Those that count users come after
//! authentication, the others before.

use http::request::Parts;

use crate::base::outcome::Outcome;
use crate::base::policy::PolicyKind;
use crate::config::model::Mode;
use crate::policy::rate_limit::{self, Facts, When};
use crate::proxy::context::Context;
use crate::proxy::doctor;
use crate::proxy::enforce::settle;
use crate::snapshot::{Route, Site};

/// Asks the rate limits whose turn it is; the first that refuses ends the request, the tightest is told to the client.
///
/// # Errors
/// [`Outcome::RateLimited`].
pub(super) fn check(
    context: &mut Context,
    site: &Site,
    route: &Route,
    parts: &Parts,
    path: &str,
    when: When,
) -> Result<(), Outcome> {
    // The route's know of the site's: most requests meet no limit, or none by user.
    let asked = match when {
        When::Before => !site.limits.is_empty() || !route.limits.is_empty(),
        When::After => route.limits_by_user,
    };
    if !asked {
        return Ok(());
    }
    let mut round = context.limits;
    round.address_doubted = doctor::doubts(context);
    let rules = site.limits.iter().chain(&route.limits);
    let facts = Facts {
        client: context.client,
        method: &parts.method,
        path,
        headers: &parts.headers,
        user: user(context),
    };
    rate_limit::check_all(rules, &facts, when, &mut round);
    context.limits = round;
    if std::mem::take(&mut context.limits.would_block) {
        settle(context, site, PolicyKind::RateLimit, Mode::Shadow, Outcome::RateLimited)?;
    }
    let refused = round.refused();
    // Each request is counted once, by the last that is asked.
    if refused || when == When::After || !route.limits_by_user {
        context.worker().shard.limit(route.series, !refused);
    }
    if refused { Err(Outcome::RateLimited) } else { Ok(()) }
}

/// Who was authenticated.
pub(super) fn user(context: &Context) -> Option<&str> {
    context.identity.as_deref()
}

/// The status of the answer is known: what limits with `statuses` are owed is taken.
pub fn answered(context: &mut Context, status: u16) {
    if !context.limits.owes() {
        return;
    }
    let mut round = std::mem::take(&mut context.limits);
    if let (Some(site), Some(route)) = (context.site(), context.route()) {
        rate_limit::settle(site.limits.iter().chain(&route.limits), &mut round, status);
    }
    context.limits = round;
}
