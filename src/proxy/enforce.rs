//! Step 6: the policies of a request, in their fixed order: rate limits of the site, rate limits of the route, body
//! length. Connection limits came before, at accept.

use hyper::body::Body;

use crate::base::outcome::Outcome;
use crate::policy::rate_limit;
use crate::proxy::context::Context;
use crate::snapshot::{Route, Site};

/// Asks every rate limit; the first that refuses ends the request, the tightest is told to the client.
///
/// # Errors
/// [`Outcome::RateLimited`].
pub fn limits(context: &mut Context, site: &Site, route: &Route) -> Result<(), Outcome> {
    if site.limits.is_empty() && route.limits.is_empty() {
        return Ok(());
    }
    let limiters = site.limits.iter().chain(&route.limits).map(|limiter| &**limiter);
    context.limit = rate_limit::check_all(limiters, context.client_key());
    let allowed = context.limit.is_none_or(|(_, verdict)| verdict.allowed);
    context.worker().shard.limit(route.series, allowed);
    if allowed { Ok(()) } else { Err(Outcome::RateLimited) }
}

/// Refuses a body that says it is too long before any of it is read (RFC 9110 section 15.5.14).
///
/// # Errors
/// [`Outcome::BodyTooLarge`].
pub fn body_length(route: &Route, body: Option<&impl Body>) -> Result<(), Outcome> {
    match (route.max_body, body) {
        (Some(max), Some(body)) if body.size_hint().lower() > max => Err(Outcome::BodyTooLarge),
        _ => Ok(()),
    }
}
