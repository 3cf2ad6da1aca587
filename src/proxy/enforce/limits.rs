//! Rate limits: first the site's, over all its routes, then the route's.

use crate::base::outcome::Outcome;
use crate::base::policy::PolicyKind;
use crate::config::model::Mode;
use crate::policy::rate_limit;
use crate::proxy::context::Context;
use crate::proxy::enforce::settle;
use crate::snapshot::{Route, Site};

/// Asks every rate limit; the first that refuses ends the request, the tightest is told to the client.
///
/// # Errors
/// [`Outcome::RateLimited`].
pub(super) fn check(context: &mut Context, site: &Site, route: &Route) -> Result<(), Outcome> {
    if site.limits.is_empty() && route.limits.is_empty() {
        return Ok(());
    }
    let round = rate_limit::check_all(site.limits.iter().chain(&route.limits), context.client_key());
    context.limit = round.told;
    if round.would_block {
        settle(context, site, PolicyKind::RateLimit, Mode::Shadow, Outcome::RateLimited)?;
    }
    let allowed = context.limit.is_none_or(|(_, verdict)| verdict.allowed);
    context.worker().shard.limit(route.series, allowed);
    if allowed { Ok(()) } else { Err(Outcome::RateLimited) }
}
