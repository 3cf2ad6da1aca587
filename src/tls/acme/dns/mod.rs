//! dns-01 (RFC 8555 section 8.4): TXT records written, seen, and taken away again.
//!
//! [`Provider`] is the seam: who writes (`rfc2136`, `cloudflare`, `route53`, `exec`). Common to all is here: the
//! name follows CNAME records ([`crate::net::dns`]), all records of an order are written first and then waited for once
//! (`propagation`), and what was written is removed whatever becomes of the order ([`Records`]).

mod cloudflare;
mod exec;
mod propagation;
mod rfc2136;
mod route53;

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::rr::Name;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

use super::http::Client;
use super::issuer::{IssueError, Reason};
use crate::base::clock;
use crate::base::secret::Secret;
use crate::config::model::{self, DnsProvider, SecretSource};
use crate::net::dns::{self as lookup, Resolver, plain};

/// Records written at once, where the provider minds nothing.
const WRITES_AT_ONCE: usize = 4;
/// One record written or removed, several calls of an API included.
const WRITE_DEADLINE: Duration = Duration::from_secs(150);
/// How often removing is tried, and the pause between.
const CLEANUP_TRIES: u32 = 3;
const CLEANUP_PAUSE: Duration = Duration::from_secs(2);
/// All records of one order removed: what is not done then is told and left.
const CLEANUP_DEADLINE: Duration = Duration::from_secs(240);
/// Pause between two questions whether a provider has put a change in force.
const SETTLE_PAUSE: Duration = Duration::from_secs(2);
/// Largest file with a secret.
const SECRET_BYTES_MAX: u64 = 64 << 10;
/// How long resolvers may keep our records, in seconds.
const TTL: u32 = 60;

/// A TXT record to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Txt {
    /// Where: the end of the aliases of `_acme-challenge.…`.
    pub name: Name,
    /// What.
    pub value: Arc<str>,
}

impl Txt {
    /// The name without the root's dot.
    fn plain(&self) -> String {
        plain(&self.name)
    }
}

/// Something a provider can be asked about: a change that is not yet in force everywhere.
pub type Ticket = String;

/// A call to a provider.
pub type Calling<'a, T> = Pin<Box<dyn Future<Output = Result<T, IssueError>> + Send + 'a>>;

/// Who writes TXT records. Calls may be made at once and for the same name; each ends within a bounded time.
pub trait Provider: Send + Sync {
    /// Adds a value; other values at that name stay. Doing it twice is no error.
    fn present<'a>(&'a self, record: &'a Txt) -> Calling<'a, Option<Ticket>>;
    /// Removes exactly that value. Removing what is not there is no error.
    fn cleanup<'a>(&'a self, record: &'a Txt) -> Calling<'a, ()>;
    /// Whether a change is in force.
    fn is_settled<'a>(&'a self, _ticket: &'a Ticket) -> Calling<'a, bool> {
        Box::pin(async { Ok(true) })
    }
}

/// How many orders have records written that are not removed yet.
pub struct Ledger(watch::Sender<usize>);

impl Default for Ledger {
    fn default() -> Ledger {
        Ledger(watch::Sender::new(0))
    }
}

impl Ledger {
    fn opened(&self) {
        self.0.send_modify(|orders| *orders += 1);
    }

    fn closed(&self) {
        self.0.send_modify(|orders| *orders = orders.saturating_sub(1));
    }

    /// Ends when there are none.
    pub async fn empty(&self) {
        // An error means that the sender is gone, which `self` is.
        let _ = self.0.subscribe().wait_for(|orders| *orders == 0).await;
    }
}

/// The writer of an `[acme.dns]` section.
pub struct Dns {
    provider: Box<dyn Provider>,
    resolver: Resolver,
    settings: model::Dns,
    writes: Semaphore,
    ledger: Arc<Ledger>,
}

impl Dns {
    /// Chooses the provider; asks nobody yet.
    pub fn new(settings: &model::Dns, client: &Client, ledger: &Arc<Ledger>) -> Arc<Dns> {
        let client = client.clone();
        // A program and Route 53 (five calls a second, whole record sets) are used by one at a time.
        let (provider, at_once): (Box<dyn Provider>, usize) = match &settings.provider {
            DnsProvider::Rfc2136(own) => (Box::new(rfc2136::Rfc2136::new(own)), WRITES_AT_ONCE),
            DnsProvider::Cloudflare(own) => {
                (Box::new(cloudflare::Cloudflare::new(own, client)), WRITES_AT_ONCE)
            }
            DnsProvider::Route53(own) => (Box::new(route53::Route53::new(own, client)), 1),
            DnsProvider::Exec(own) => (Box::new(exec::Exec::new(own)), 1),
        };
        Arc::new(Dns {
            provider,
            resolver: Resolver::new(&settings.resolvers),
            settings: settings.clone(),
            writes: Semaphore::new(at_once),
            ledger: Arc::clone(ledger),
        })
    }

    /// How long an order may take longer because of records.
    pub fn patience(&self) -> Duration {
        // Writing, then waiting for the provider and for the name servers.
        self.settings.propagation.saturating_mul(2).saturating_add(WRITE_DEADLINE)
    }

    /// Writes a record for each name (without `*.`) and value, and waits until the name servers show all of them.
    /// They are removed when the result is dropped; also when this fails or is dropped itself.
    ///
    /// # Errors
    /// The provider's own words.
    pub async fn publish(self: &Arc<Self>, wanted: &[(String, String)]) -> Result<Records, IssueError> {
        let mut records = Records::new(Arc::clone(self));
        for (host, value) in wanted {
            let record = Txt { name: self.place(host).await?, value: Arc::from(value.as_str()) };
            if !records.written.iter().any(|written| written.record == record) {
                records.write(record);
            }
        }
        let mut tickets = Vec::new();
        for written in &mut records.written {
            tickets.extend(written.end().await?);
        }
        self.settle(&tickets).await?;
        let all: Vec<Txt> = records.written.iter().map(|written| written.record.clone()).collect();
        propagation::wait(&self.resolver, &self.settings, &all).await?;
        Ok(records)
    }

    /// Where the record of a name is to be written.
    async fn place(&self, host: &str) -> Result<Name, IssueError> {
        let mend = "Check the CNAME record of that name, and `resolvers` in [acme.dns].";
        // RFC 8555 section 8.4: the label in front of the name, for a wildcard in front of the name below the `*`.
        let name = lookup::name(&format!("_acme-challenge.{host}"));
        let name = name.map_err(|why| trouble(format!("{why}."), "Check the site's hosts."))?;
        self.resolver.canonical(&name).await.map_err(|why| {
            let text =
                format!("It cannot be found out where the record of {} is to be: {why}.", plain(&name));
            trouble(text, mend)
        })
    }

    /// Waits until the provider says that its changes are in force.
    async fn settle(&self, tickets: &[Ticket]) -> Result<(), IssueError> {
        if self.settings.propagation.is_zero() {
            return Ok(());
        }
        let end = clock::now().after(self.settings.propagation);
        for ticket in tickets {
            while !self.provider.is_settled(ticket).await? {
                if clock::now() >= end {
                    let text = format!("The provider has not put the change {ticket} in force in time.");
                    return Err(trouble(text, "Raise `propagation` in [acme.dns]."));
                }
                tokio::time::sleep(SETTLE_PAUSE).await;
            }
        }
        Ok(())
    }

    /// `was_written`: whether the provider said so. If not, there is most likely nothing to remove, and no more to say
    /// than was said already.
    async fn remove(&self, record: &Txt, was_written: bool) {
        let tries = if was_written { CLEANUP_TRIES } else { 1 };
        for round in 1..=tries {
            let done = async {
                let _permit = self.writes.acquire().await;
                tokio::time::timeout(WRITE_DEADLINE, self.provider.cleanup(record)).await
            };
            let error = match done.await {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no end within {WRITE_DEADLINE:?}"),
            };
            let (name, value) = (record.plain(), &record.value);
            if !was_written {
                tracing::debug!(
                    "the TXT record {name} was not removed after it could not be written: {error}"
                );
            } else if round == tries {
                tracing::warn!(
                    "the TXT record {name} with {value:?} could not be removed: {error} It does no harm; remove it by hand."
                );
            } else {
                tokio::time::sleep(CLEANUP_PAUSE).await;
            }
        }
    }
}

/// Records of one order; removed when dropped, by a task of their own that nothing but the end of the process stops.
pub struct Records {
    dns: Arc<Dns>,
    written: Vec<Written>,
    runtime: Handle,
}

struct Written {
    record: Txt,
    /// Until its end has been seen. A task of its own: a call that has begun is finished, so that the removal comes
    /// after it.
    task: Option<JoinHandle<Result<Option<Ticket>, IssueError>>>,
    /// Whether the provider said that it is written.
    done: bool,
}

impl Records {
    fn new(dns: Arc<Dns>) -> Records {
        dns.ledger.opened();
        Records { dns, written: Vec::new(), runtime: Handle::current() }
    }

    fn write(&mut self, record: Txt) {
        let (dns, own) = (Arc::clone(&self.dns), record.clone());
        let task = self.runtime.spawn(async move {
            let _permit = dns.writes.acquire().await;
            tokio::time::timeout(WRITE_DEADLINE, dns.provider.present(&own)).await.unwrap_or_else(|_| {
                let text = format!("Writing the record {} took longer than {WRITE_DEADLINE:?}.", own.plain());
                Err(trouble(text, "Is the provider in order? It is tried again."))
            })
        });
        self.written.push(Written { record, task: Some(task), done: false });
    }
}

impl Written {
    async fn end(&mut self) -> Result<Option<Ticket>, IssueError> {
        let Some(task) = &mut self.task else { return Ok(None) };
        let ended = task.await;
        self.task = None;
        let ended = ended.unwrap_or_else(|error| {
            Err(trouble(format!("Writing a record broke off: {error}."), "It is tried again."))
        });
        self.done = ended.is_ok();
        ended
    }
}

impl Drop for Records {
    fn drop(&mut self) {
        let (dns, written) = (Arc::clone(&self.dns), std::mem::take(&mut self.written));
        if written.is_empty() {
            return dns.ledger.closed();
        }
        let names: Vec<_> = written.iter().map(|written| written.record.plain()).collect();
        self.runtime.spawn(async move {
            let removal = async {
                for mut written in written {
                    // Also where writing failed: it may have been done nevertheless.
                    let _ = written.end().await;
                    dns.remove(&written.record, written.done).await;
                }
            };
            if tokio::time::timeout(CLEANUP_DEADLINE, removal).await.is_err() {
                tracing::warn!(
                    "TXT records are left behind, there was no time to remove them: {}",
                    names.join(", ")
                );
            }
            dns.ledger.closed();
        });
    }
}

/// A failure of DNS, with what a person can do.
fn trouble(message: impl Into<String>, mend: &'static str) -> IssueError {
    IssueError { mend, ..IssueError::new(Reason::Dns, message) }
}

/// Reads a secret. `key` names the setting that says where it is.
async fn secret(source: &SecretSource, key: &'static str) -> Result<Secret, IssueError> {
    match source {
        SecretSource::Inline(secret) => Ok(secret.clone()),
        SecretSource::Environment(variable) => match std::env::var(variable) {
            Ok(text) if !text.trim().is_empty() => Ok(Secret::new(text.trim())),
            _ => Err(trouble(
                format!("The environment variable {variable} is not set for this process."),
                "Set it where the process is started, or name a file in [acme.dns].",
            )),
        },
        SecretSource::File(path) => {
            let own = path.clone();
            let read = tokio::task::spawn_blocking(move || read(&own)).await;
            let read = read.unwrap_or_else(|error| Err(error.to_string()));
            read.map_err(|why| {
                let text = format!("The file {} of `{key}` cannot be used: {why}.", path.display());
                trouble(text, "Write the secret into it, readable for this process alone.")
            })
        }
    }
}

fn read(path: &Path) -> Result<Secret, String> {
    use std::io::Read as _;
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    let mut text = zeroize::Zeroizing::new(String::new());
    file.take(SECRET_BYTES_MAX).read_to_string(&mut text).map_err(|error| error.to_string())?;
    match text.trim() {
        "" => Err("it is empty".into()),
        secret => Ok(Secret::new(secret)),
    }
}
