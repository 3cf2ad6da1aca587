//! Where a client comes from: lists of addresses of the server, the site and the route, then countries.

use crate::base::outcome::Outcome;
use crate::base::policy::PolicyKind;
use crate::proxy::context::Context;
use crate::proxy::enforce::settle;
use crate::snapshot::{Route, Site};

/// Asks every list; the first that does not let the client in ends the request.
///
/// # Errors
/// [`Outcome::AddressDenied`], [`Outcome::CountryDenied`].
pub(super) fn check(context: &mut Context, site: &Site, route: &Route) -> Result<(), Outcome> {
    for list in site.addresses.iter().chain(&route.addresses) {
        if !list.admits(context.client) {
            settle(context, site, PolicyKind::Address, list.mode, Outcome::AddressDenied)?;
        }
    }
    let mut countries = site.countries.iter().chain(&route.countries).peekable();
    if countries.peek().is_none() {
        return Ok(());
    }
    let country = context.snapshot.country(context.client);
    for list in countries {
        if !list.admits(country) {
            settle(context, site, PolicyKind::Country, list.mode, Outcome::CountryDenied)?;
        }
    }
    Ok(())
}
