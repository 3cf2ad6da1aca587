//! Step 6: the policies of a request, in their fixed order. Each is a file below, around a decision of `policy`, and
//! one line in [`all`]. Connection limits came before, at accept.

mod address;
mod auth;
mod bandwidth;
mod bans;
mod forward_auth;
mod in_flight;
mod limits;
mod patch;

pub use bandwidth::would_wait;
pub use bans::{banned, note};
pub use limits::answered;

use http::request::Parts;
use hyper::body::{Body, Incoming};

use crate::base::outcome::Outcome;
use crate::base::policy::PolicyKind;
use crate::config::model::Mode;
use crate::policy::cors::Cors;
use crate::policy::rate_limit::When;
use crate::proxy::context::Context;
use crate::proxy::{doctor, observe};
use crate::snapshot::{Route, Site};

/// THE order in which policies are asked. The first that refuses ends the request.
///
/// # Errors
/// What the request ends in.
pub async fn all(
    context: &mut Context,
    site: &Site,
    route: &Route,
    parts: &Parts,
    path: &str,
    body: &mut Option<Incoming>,
) -> Result<(), Outcome> {
    doctor::note(context, &parts.headers);
    address::check(context, site, route)?;
    bans::check(context, site)?;
    in_flight::check(context, site)?;
    let wanted = patch::head(context, site, route, parts, path)?;
    observe::arrived(context, site);
    limits::check(context, site, route, parts, path, When::Before)?;
    context.cors = route.cors.as_ref().and_then(|cors| cors.allows(&parts.headers));
    // Browsers send no credentials with such a question, and nobody but us answers it.
    if route.cors.is_none() || !Cors::is_preflight(&parts.method, &parts.headers) {
        auth::check(context, site, route, parts, path).await?;
    }
    limits::check(context, site, route, parts, path, When::After)?;
    body_length(route, body.as_ref())?;
    if let (Some(kind), Some(body)) = (wanted, body.as_mut()) {
        // Boxed: few requests wait here.
        Box::pin(patch::body(context, site, route, parts, path, kind, body)).await?;
    }
    bandwidth::begin(context, route, parts, path);
    Ok(())
}

/// What it means that a policy refuses: in shadow the request is marked, counted and let through.
///
/// # Errors
/// `outcome`, where the policy is enforced.
pub fn settle(
    context: &mut Context,
    site: &Site,
    kind: PolicyKind,
    mode: Mode,
    outcome: Outcome,
) -> Result<(), Outcome> {
    match mode {
        Mode::Enforce => Err(outcome),
        Mode::Shadow => {
            // A policy with several rules refuses a request once.
            if context.would_block.set(kind) {
                site.would_block.count(kind);
            }
            Ok(())
        }
    }
}

/// Refuses a body that says it is too long before any of it is read (RFC 9110 section 15.5.14).
fn body_length(route: &Route, body: Option<&impl Body>) -> Result<(), Outcome> {
    match (route.max_body, body) {
        (Some(max), Some(body)) if body.size_hint().lower() > max => Err(Outcome::BodyTooLarge),
        _ => Ok(()),
    }
}
