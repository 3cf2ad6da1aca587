//! Step 2, for names without a certificate: whether the handshake waits for one, and how that ends.
//!
//! Never blocks the worker: it asks a shared object with a short lock ([`Demand`]) and waits for its word. What no site
//! takes has cost a few lookups and goes on as it would without this.

use std::rc::Rc;
use std::time::Duration;

use crate::base::clock;
use crate::proxy::Worker;
use crate::snapshot::cell::Held;
use crate::snapshot::{Site, Snapshot};
use crate::telemetry::metric::Counter;
use crate::tls::acme::demand::{self, Demand, Owner, Refusal};

/// How long a handshake waits at most, if its deadline leaves as much.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// What a name without a certificate is to a site.
enum Missing<'a> {
    /// One of its hosts.
    Host(&'a Site),
    /// A name it takes on demand.
    Name(&'a Site, Owner<'a>),
}

/// The snapshot to shake hands with for this name (lower case, without a dot at its end), or nothing: the handshake is
/// to be refused.
pub async fn certificate(worker: &Rc<Worker>, snapshot: Held, name: &str) -> Option<Held> {
    let Some(missing) = missing(&snapshot, name) else { return Some(snapshot) };
    let (site, waited) = match missing {
        Missing::Host(site) if !site.waits => (site, Err(Refusal::Later)),
        Missing::Host(site) => (site, wait(&snapshot, &site.name, None).await),
        Missing::Name(site, owner) => (site, wait(&snapshot, &demand::id(name), Some(owner)).await),
    };
    worker.shard.add(counter(waited), 1);
    match waited {
        Ok(()) => Some(worker.snapshot()),
        // Like a name that nobody knows.
        Err(Refusal::Disallowed) => Some(snapshot),
        Err(refusal) => {
            tell(site, name, refusal);
            None
        }
    }
}

fn missing<'a>(snapshot: &'a Snapshot, name: &str) -> Option<Missing<'a>> {
    if snapshot.certificates.find(name).is_some() {
        return None;
    }
    if let Some(index) = snapshot.hosts.find(name) {
        return snapshot.sites.get(*index).map(|site| Missing::Host(site));
    }
    let owner = snapshot.rules.owner(name)?;
    Some(Missing::Name(snapshot.sites.get(owner.terms.position)?, owner))
}

async fn wait(snapshot: &Snapshot, id: &str, owner: Option<Owner<'_>>) -> Result<(), Refusal> {
    let Some(demand) = &snapshot.demand else { return Err(Refusal::Later) };
    // A tenth of the deadline is left for the handshake itself: the client gets an answer, not a broken connection.
    let deadline = snapshot.server.timeouts.handshake;
    let time = WAIT_MAX.min(deadline - deadline / 10);
    Demand::wait(demand, id, owner)?.settled(time).await
}

fn tell(site: &Site, name: &str, refusal: Refusal) {
    if site.tell_waiting(clock::now().0 / 1000) {
        tracing::warn!(
            site = &*site.name,
            "a handshake was refused: the certificate for `{name}` is not there yet: {refusal}; `tidegate certs` says how \
             it stands"
        );
    }
}

fn counter(waited: Result<(), Refusal>) -> Counter {
    match waited {
        Ok(()) => Counter::WaitIssued,
        Err(Refusal::Disallowed) => Counter::WaitDisallowed,
        Err(Refusal::Unanswered) => Counter::WaitUnanswered,
        Err(Refusal::Limit) => Counter::WaitLimit,
        Err(Refusal::Busy) => Counter::WaitBusy,
        Err(Refusal::Failed) => Counter::WaitFailed,
        Err(Refusal::Later) => Counter::WaitLater,
        Err(Refusal::Late) => Counter::WaitLate,
        Err(Refusal::Full) => Counter::WaitFull,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_is_counted_under_its_own_word() {
        let all = [
            Refusal::Disallowed,
            Refusal::Unanswered,
            Refusal::Limit,
            Refusal::Busy,
            Refusal::Failed,
            Refusal::Later,
            Refusal::Late,
            Refusal::Full,
        ];
        for refusal in all {
            assert_eq!(counter(Err(refusal)).cell().1, [refusal.word()]);
        }
    }
}
