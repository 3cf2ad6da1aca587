//! What one client has in flight: each request costs a connection to a backend, or a stream of one, and buffers for as
//! long as the client takes for it. HTTP/2 multiplies what the cap on connections leaves by the streams of each.

use crate::base::outcome::Outcome;
use crate::base::policy::PolicyKind;
use crate::proxy::context::Context;
use crate::proxy::doctor;
use crate::proxy::enforce::settle;
use crate::snapshot::Site;

/// Refuses a request beyond the cap. As for connections, a trusted proxy has none, and neither has an address behind which
/// there are many clients, as far as it looks.
///
/// # Errors
/// [`Outcome::ClientBusy`].
pub(super) fn check(context: &mut Context, site: &Site) -> Result<(), Outcome> {
    let limits = &context.snapshot.server.limits;
    let (max, mode) = (limits.requests_per_client, limits.requests_per_client_mode);
    if max == 0 || context.connection.in_flight_of_client() <= max || doctor::doubts(context) {
        return Ok(());
    }
    settle(context, site, PolicyKind::InFlight, mode, Outcome::ClientBusy)
        .inspect_err(|_| context.retry_after = Some(1))
}
