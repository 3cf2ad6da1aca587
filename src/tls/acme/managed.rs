//! The engine on instant-acme: order, challenges, finalize; nothing is remembered but the account (see
//! [`super::account`]).

use std::sync::Arc;
use std::time::Duration;

use instant_acme::{
    Account, CertificateIdentifier, ChallengeType, Error, Identifier, NewOrder, Order, OrderStatus, Problem,
    RetryPolicy,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use zeroize::Zeroizing;

use super::account::Accounts;
use super::challenge::Challenges;
use super::dns::Dns;
use super::http::{self, Notes};
use super::issuer::{IssueError, Issued, Issuer, Issuing, Job, Reason};
use super::nonce::{is, persist};
use super::problem;

/// A whole order, from the account to the chain; TXT records may need more.
const ORDER_DEADLINE: Duration = Duration::from_secs(300);
/// Waiting for the CA to look at the proofs, and to sign.
const POLLING: RetryPolicy = RetryPolicy::new()
    .initial_delay(Duration::from_millis(300))
    .backoff(1.5)
    .timeout(Duration::from_secs(120));
/// A call of an order is made again so often when its connection breaks, with a pause that doubles.
const STUMBLES_MAX: u32 = 3;
const STUMBLE_PAUSE: Duration = Duration::from_millis(500);

/// The same while the network or the CA stumbles: for calls that may be made twice. An order that exists is worth more
/// patience than a new one costs.
macro_rules! insist {
    ($notes:expr, $call:expr) => {{
        let mut round = 0;
        loop {
            match persist!($call) {
                Err(error) if round < STUMBLES_MAX && is_fleeting(&error, $notes) => {
                    tokio::time::sleep(STUMBLE_PAUSE * 2u32.pow(round)).await;
                    round += 1;
                }
                other => break other,
            }
        }
    }};
}

mod prove;

/// The engine.
pub struct Managed {
    accounts: Arc<Accounts>,
    challenges: Arc<Challenges>,
    /// Who writes TXT records, if anybody does.
    dns: Option<Arc<Dns>>,
}

impl Managed {
    /// Does nothing yet.
    pub fn new(accounts: Arc<Accounts>, challenges: Arc<Challenges>, dns: Option<Arc<Dns>>) -> Managed {
        Managed { accounts, challenges, dns }
    }

    async fn ordered(&self, job: &Job) -> Result<Issued, IssueError> {
        if let Some(wildcard) = job.names.iter().find(|name| name.starts_with("*."))
            && self.dns.is_none()
        {
            let message = format!("{wildcard} needs a dns-01 challenge, and so the section [acme.dns].");
            return Err(IssueError::new(Reason::Rejected, message));
        }
        let notes = Arc::new(Notes::default());
        let work = http::noted(Arc::clone(&notes), self.order(job, &notes));
        let records = self.dns.as_ref().map(|dns| dns.patience()).unwrap_or_default();
        let deadline = ORDER_DEADLINE + records;
        let ended = tokio::time::timeout(deadline, work).await.unwrap_or_else(|_| {
            Err(IssueError::new(Reason::Network, format!("The order took longer than {deadline:?}.")))
        });
        ended.map_err(|mut error| {
            error.no_order = !notes.ordered();
            // Also refusals that came before the order, such as 503 for the directory.
            if matches!(error.kind, Reason::Network | Reason::RateLimited) {
                error.retry_after = error.retry_after.or(notes.retry_after());
            }
            error
        })
    }

    async fn order(&self, job: &Job, notes: &Notes) -> Result<Issued, IssueError> {
        let said = |error: Error| explain(&error, notes);
        let mut account = self.accounts.account(&job.directory).await?;
        let mut order = match self.new_order(&account, job).await {
            Err(error) if is(&error, "accountDoesNotExist") && job.directory.eab.is_none() => {
                // The CA forgot us (a test CA that was restarted): the same key is registered again.
                account = self.accounts.register_again(&job.directory).await?;
                self.new_order(&account, job).await.map_err(said)?
            }
            other => other.map_err(said)?,
        };
        notes.set_ordered();
        // Taken back when this function ends or is dropped, whatever happens.
        let _published = self.prove(&mut order, job, notes).await?;
        if order.state().status == OrderStatus::Pending {
            let status = insist!(notes, order.poll_ready(&POLLING));
            if !matches!(status, Ok(OrderStatus::Ready)) {
                return Err(why(&mut order, status.err(), notes).await);
            }
        }
        let failed = |e: &dyn std::fmt::Display| {
            IssueError::new(Reason::Other, format!("The certificate request could not be made: {e}."))
        };
        let mut params = CertificateParams::new(job.names.clone()).map_err(|e| failed(&e))?;
        params.distinguished_name = DistinguishedName::new();
        let key = KeyPair::generate().map_err(|e| failed(&e))?;
        let request = params.serialize_request(&key).map_err(|e| failed(&e))?;
        if let Err(error) = insist!(notes, order.finalize_csr(request.der())) {
            // The CA may have done it and the answer got lost: then it refuses to do it again.
            let state = insist!(notes, async { order.refresh().await.map(|state| state.status) });
            if !matches!(state, Ok(OrderStatus::Processing | OrderStatus::Valid)) {
                return Err(said(error));
            }
        }
        let chain = insist!(notes, order.poll_certificate(&POLLING)).map_err(said)?;
        Ok(Issued { chain, key: Zeroizing::new(key.serialize_pem()) })
    }

    async fn new_order(&self, account: &Account, job: &Job) -> Result<Order, Error> {
        let identifiers: Vec<Identifier> = job
            .names
            .iter()
            .map(|name| name.parse().map_or_else(|_| Identifier::Dns(name.clone()), Identifier::Ip))
            .collect();
        let mut plain = NewOrder::new(&identifiers);
        if let Some(wanted) = &job.profile
            && account.profiles().any(|offered| offered.name == wanted)
        {
            plain = plain.profile(wanted);
        }
        let replaces = job.replaces.as_ref().and_then(|leaf| CertificateIdentifier::try_from(leaf).ok());
        if let Some(id) = replaces {
            let mut renewal = NewOrder::new(&identifiers).replaces(id);
            if let Some(wanted) = &job.profile
                && account.profiles().any(|offered| offered.name == wanted)
            {
                renewal = renewal.profile(wanted);
            }
            match persist!(account.new_order(&renewal)) {
                Err(error) if is_about_replacing(&error) => {
                    tracing::debug!(site = %job.site, "ordered without `replaces`: {error}");
                }
                other => return other,
            }
        }
        persist!(account.new_order(&plain))
    }
}

impl Issuer for Managed {
    fn name(&self) -> &'static str {
        "managed"
    }

    fn issue<'a>(&'a self, job: &'a Job) -> Issuing<'a> {
        Box::pin(self.ordered(job))
    }
}

/// The CA looked and was not content: what it saw stands in the challenges.
async fn why(order: &mut Order, error: Option<Error>, notes: &Notes) -> IssueError {
    let mut found = None;
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        if persist!(async { authorization.refresh().await.map(drop) }).is_err() {
            break;
        }
        let name = authorization.identifier().to_string();
        let failed = authorization.challenges.iter().find_map(|c| c.error.as_ref().map(|e| (c, e)));
        if let Some((challenge, problem)) = failed {
            let mut told = explain_problem(problem, notes);
            if told.kind == Reason::Other {
                told = IssueError {
                    kind: Reason::Validation,
                    ..IssueError::new(Reason::Validation, told.message)
                };
            }
            if challenge.r#type == ChallengeType::Dns01 {
                told.mend = "The TXT record was written. Do all name servers of its zone serve it to the whole world?";
            }
            told.message = format!("{name}: {}", told.message);
            found = Some(told);
            break;
        }
    }
    found.or_else(|| error.map(|error| explain(&error, notes))).unwrap_or_else(|| {
        IssueError::new(Reason::Validation, "The CA called the order invalid and did not say why.")
    })
}

/// Whether a refusal may have been for `replaces`: it is then an order like any other (RFC 9773 section 5). Replaced
/// already; not one of this account's, or of none of these names; not known any more: CAs call these `malformed`,
/// `unauthorized` or 404. A CA that does not reflect the wish as it must has not understood it.
fn is_about_replacing(error: &Error) -> bool {
    match error {
        Error::Unsupported(_) => true,
        Error::Api(problem) => {
            let kinds = ["alreadyReplaced", "malformed", "unauthorized"];
            kinds.iter().any(|kind| is(error, kind)) || matches!(problem.status, Some(404 | 409))
        }
        Error::Other(inner) => inner.to_string().starts_with("replaces field mismatch"),
        _ => false,
    }
}

/// Whether the next try may be luckier: no answer, half of one, or a server that is out of order and does not say for
/// how long.
fn is_fleeting(error: &Error, notes: &Notes) -> bool {
    match error {
        _ if notes.retry_after().is_some() => false,
        Error::Api(problem) => problem.status.is_some_and(|status| status >= 500),
        Error::Json(_) => true,
        // What the HTTP client says.
        Error::Other(_) => true,
        _ => false,
    }
}

pub(super) fn explain(error: &Error, notes: &Notes) -> IssueError {
    match error {
        Error::Api(problem) => explain_problem(problem, notes),
        Error::Timeout(_) => IssueError::new(Reason::Network, "The CA did not finish within two minutes."),
        Error::Other(inner) => IssueError::new(Reason::Network, inner.to_string()),
        other => IssueError::new(Reason::Other, other.to_string()),
    }
}

fn explain_problem(problem: &Problem, notes: &Notes) -> IssueError {
    let reason = problem::reason(problem.r#type.as_deref(), problem.status);
    let mut error = IssueError::new(reason, problem.to_string());
    error.retry_after = notes.retry_after();
    error
}
