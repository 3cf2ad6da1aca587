//! Bans: who is turned away, and what is counted against whom. Most of the banned never come here: their connections
//! are closed when they are accepted.

use std::net::IpAddr;

use crate::base::address::is_inner;
use crate::base::outcome::Outcome;
use crate::base::policy::PolicyKind;
use crate::config::model::{ClientIpDoctor, Mode};
use crate::policy::ban;
use crate::proxy::context::Context;
use crate::proxy::enforce::settle;
use crate::proxy::shed::Shed;
use crate::proxy::{Worker, doctor};
use crate::snapshot::{Site, Snapshot};

/// Whether a client is banned from all sites, and so not to be let in. Trusted proxies never are, and proxies that nobody trusts
/// yet are not for what was done through them. Of an address inside it is found out by its requests whether it is a proxy:
/// what it did is held against those, and not against its connections.
pub fn banned(worker: &Worker, client: IpAddr) -> bool {
    let snapshot = worker.snapshot();
    let Some(hit) = snapshot.bans.bans.look(client, None) else { return false };
    let server = &snapshot.server;
    let looks = || server.client_ip_doctor == ClientIpDoctor::On && is_inner(client.to_canonical());
    hit.mode == Mode::Enforce
        && !server.trusted_proxies.contains(client)
        && !(hit.by_offences && (looks() || worker.examiner.doubts(&snapshot, client)))
}

/// Refuses a request of a client that is banned, and ends its connection where that is the client's own.
///
/// # Errors
/// [`Outcome::Banned`].
pub(super) fn check(context: &mut Context, site: &Site) -> Result<(), Outcome> {
    let snapshot = &context.snapshot;
    let Some(hit) = snapshot.bans.bans.look(context.client, site.ban.as_ref().map(|rule| &rule.scope)) else {
        return Ok(());
    };
    if snapshot.server.trusted_proxies.contains(context.client) {
        return Ok(());
    }
    let mode = if hit.by_offences && doctor::doubts(context) { Mode::Shadow } else { hit.mode };
    settle(context, site, PolicyKind::Ban, mode, Outcome::Banned).inspect_err(|_| {
        context.retry_after = hit.left.map(|left| left.as_secs().saturating_add(1));
        if !context.connection.trusted {
            context.close = true;
            context.connection.closing.set(true);
            context.connection.progress.wake();
        }
    })
}

/// Counts an ending against its client, where it is an offence and somebody counts them.
pub fn note(worker: &Worker, snapshot: &Snapshot, site: Option<&Site>, client: IpAddr, outcome: Outcome) {
    let Some(offence) = ban::offence(outcome) else { return };
    // A ban of a proxy that nobody trusts yet would be one of everybody behind it.
    if worker.examiner.doubts(snapshot, client) {
        return;
    }
    let watch = &snapshot.bans;
    let rules = watch.rule.as_deref().into_iter().chain(site.and_then(|site| site.ban.as_deref()));
    for rule in rules {
        if !snapshot.server.trusted_proxies.contains(client) && watch.bans.offend(rule, client, offence) {
            worker.shed_client(Shed::Offender, client);
        }
    }
}
