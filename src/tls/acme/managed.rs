//! The engine on instant-acme: account, order, challenges, finalize; nothing is remembered but the account.
//!
//! The account's key is stored before the CA hears of it, and registering the same key again yields the same account
//! (RFC 8555 section 7.3.1): no crash can lose it. A store that cannot be read never leads to a new one.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD};
use instant_acme::{
    Account, AccountCredentials, CertificateIdentifier, ChallengeType, Error, ExternalAccountKey, Identifier,
    Key as AccountKey, NewAccount, NewOrder, Order, OrderStatus, Problem, RetryPolicy,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use super::challenge::Challenges;
use super::dns::Dns;
use super::http::{self, Client, Notes};
use super::issuer::{IssueError, Issued, Issuer, Issuing, Job, Reason, Suggesting, Window};
use super::store::{Expect, Key, Kind, Store, StoreError};
use crate::base::clock::{self, Millis};
use crate::config::model::Directory;

/// A whole order, from the account to the chain; TXT records may need more.
const ORDER_DEADLINE: Duration = Duration::from_secs(300);
/// Waiting for the CA to look at the proofs, and to sign.
const POLLING: RetryPolicy = RetryPolicy::new()
    .initial_delay(Duration::from_millis(300))
    .backoff(1.5)
    .timeout(Duration::from_secs(120));
/// Each call is made again so often when the CA refuses its nonce; instant-acme tries three times each.
const NONCE_ROUNDS: u32 = 6;
/// A call of an order is made again so often when its connection breaks, with a pause that doubles.
const STUMBLES_MAX: u32 = 3;
const STUMBLE_PAUSE: Duration = Duration::from_millis(500);
/// How long a loaded account, and with it the CA's directory and clock, is used without asking again.
const ACCOUNT_FRESH: Duration = Duration::from_secs(600);
/// How far the CA's clock may be from ours, in seconds.
pub const SKEW_MAX: u64 = 60;
/// How long an account's lock outlives us.
const LEASE: Duration = Duration::from_secs(60);

/// Makes the call again while the CA refuses nonces (RFC 8555 section 6.5: a refused nonce has no effect).
macro_rules! persist {
    ($call:expr) => {{
        let mut round = 1;
        loop {
            match $call.await {
                Err(error) if round < NONCE_ROUNDS && is(&error, "badNonce") => round += 1,
                other => break other,
            }
        }
    }};
}

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
    client: Client,
    store: Arc<dyn Store>,
    challenges: Arc<Challenges>,
    /// Who writes TXT records, if anybody does.
    dns: Option<Arc<Dns>>,
    email: Option<String>,
    accounts: Mutex<HashMap<Directory, (Millis, Account)>>,
}

/// An account as stored: the key first, the CA's answer as soon as it came.
#[derive(Serialize, Deserialize)]
struct StoredAccount {
    directory: String,
    /// PKCS #8, base64url.
    key: String,
    credentials: Option<AccountCredentials>,
    created: u64,
}

impl Managed {
    /// Does nothing yet.
    pub fn new(
        client: Client,
        store: Arc<dyn Store>,
        challenges: Arc<Challenges>,
        dns: Option<Arc<Dns>>,
        email: Option<String>,
    ) -> Managed {
        Managed { client, store, challenges, dns, email, accounts: Mutex::new(HashMap::new()) }
    }

    /// Calls to the CA, and to whom else the same roots are good for.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// When the CA suggests to renew a certificate (RFC 9773).
    pub fn suggest<'a>(
        &'a self,
        directory: &'a Directory,
        leaf: &'a CertificateDer<'static>,
    ) -> Suggesting<'a> {
        Box::pin(async move {
            let Ok(id) = CertificateIdentifier::try_from(leaf) else { return Ok(None) };
            let account = self.account(directory).await?;
            let (info, again) = match account.renewal_info(&id).await {
                Ok(found) => found,
                Err(Error::Unsupported(_)) => return Ok(None),
                Err(error) => return Err(explain(&error, &Notes::default())),
            };
            let seconds = |at: i64| u64::try_from(at).unwrap_or(0);
            let window = info.suggested_window;
            let (start, end) = (seconds(window.start.unix_timestamp()), seconds(window.end.unix_timestamp()));
            // RFC 9773 section 4.2: an end that is not after the start is no answer.
            Ok((end > start).then_some(Window { start, end, ask_again: again.as_secs() }))
        })
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
        let mut account = self.account(&job.directory).await?;
        self.check_clock()?;
        let mut order = match self.new_order(&account, job).await {
            Err(error) if is(&error, "accountDoesNotExist") && job.directory.eab.is_none() => {
                // The CA forgot us (a test CA that was restarted): the same key is registered again.
                account = self.register_again(&job.directory).await?;
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

    fn check_clock(&self) -> Result<(), IssueError> {
        match self.client.skew() {
            Some(skew) if skew.unsigned_abs() > SKEW_MAX => {
                Err(IssueError::new(Reason::Clock, format!("The CA's clock is {skew} s from ours.")))
            }
            _ => Ok(()),
        }
    }

    async fn account(&self, directory: &Directory) -> Result<Account, IssueError> {
        // Held over the whole: two orders at once must not make two accounts.
        let mut accounts = self.accounts.lock().await;
        if let Some((until, account)) = accounts.get(directory)
            && clock::now() < *until
        {
            return Ok(account.clone());
        }
        let account = self.open_account(directory, false).await?;
        accounts.insert(directory.clone(), (clock::now().after(ACCOUNT_FRESH), account.clone()));
        Ok(account)
    }

    async fn register_again(&self, directory: &Directory) -> Result<Account, IssueError> {
        let mut accounts = self.accounts.lock().await;
        let account = self.open_account(directory, true).await?;
        accounts.insert(directory.clone(), (clock::now().after(ACCOUNT_FRESH), account.clone()));
        Ok(account)
    }

    /// Loads the account, or makes one when the store certainly has none.
    async fn open_account(&self, directory: &Directory, again: bool) -> Result<Account, IssueError> {
        let place = Key::new(Kind::Account, &directory.url);
        let store = Arc::clone(&self.store);
        let (key, lock_name) = (place.clone(), directory.url.to_string());
        let (lock, found) = off(move || {
            let lock = store.lock(&lock_name, LEASE)?;
            Ok((lock, store.load(&key)?))
        })
        .await?;
        let lock = lock.ok_or_else(|| {
            IssueError::new(Reason::Store, "Another process is using the account at this CA just now.")
        })?;
        let mut stored = match found {
            Some(found) => serde_json::from_slice::<StoredAccount>(&found.bytes).map_err(|e| {
                let message = format!("The stored account for {} cannot be read: {e}.", directory.url);
                IssueError::new(Reason::Store, message)
            })?,
            None => new_key(directory)?,
        };
        let said = |error: Error| explain(&error, &Notes::default());
        let builder = Account::builder_with_http(Box::new(self.client.clone()));
        if let Some(credentials) = stored.credentials.take().filter(|_| !again) {
            return builder.from_credentials(credentials).await.map_err(said);
        }
        let lock: Arc<dyn super::store::Lock> = Arc::from(lock);
        let (account, credentials) = match &directory.eab {
            None => {
                self.save(&place, &stored, &lock).await?;
                self.register(directory, &stored).await?
            }
            Some(eab) => {
                let decoded = BASE64_URL_SAFE_NO_PAD
                    .decode(eab.hmac.trim_end_matches('='))
                    .or_else(|_| BASE64_STANDARD_NO_PAD.decode(eab.hmac.trim_end_matches('=')));
                let mac = decoded
                    .map_err(|_| IssueError::new(Reason::Account, "The MAC key of `eab` is not base64."))?;
                let contact = self.email.as_ref().map(|email| format!("mailto:{email}"));
                let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
                let new = NewAccount {
                    contact: &contact,
                    terms_of_service_agreed: true,
                    only_return_existing: false,
                };
                persist!(async {
                    // A refused nonce made no account, so a fresh key is as good.
                    let builder = Account::builder_with_http(Box::new(self.client.clone()));
                    let eab = ExternalAccountKey::new(eab.id.clone(), &mac);
                    builder.create(&new, directory.url.to_string(), Some(&eab)).await
                })
                .map_err(said)?
            }
        };
        stored.key = BASE64_URL_SAFE_NO_PAD.encode(credentials.private_key().secret_pkcs8_der());
        stored.credentials = Some(credentials);
        self.save(&place, &stored, &lock).await?;
        Ok(account)
    }

    async fn register(
        &self,
        directory: &Directory,
        stored: &StoredAccount,
    ) -> Result<(Account, AccountCredentials), IssueError> {
        let bad =
            || IssueError::new(Reason::Store, format!("The stored key for {} is no key.", directory.url));
        let der = Zeroizing::new(BASE64_URL_SAFE_NO_PAD.decode(&stored.key).map_err(|_| bad())?);
        let said = |error: Error| explain(&error, &Notes::default());
        let made = persist!(async {
            let pkcs8 = PrivatePkcs8KeyDer::from(der.to_vec());
            let key = AccountKey::from_pkcs8_der(pkcs8.clone_key())?;
            let builder = Account::builder_with_http(Box::new(self.client.clone()));
            builder.create_from_key((key, PrivateKeyDer::Pkcs8(pkcs8)), directory.url.to_string()).await
        });
        let (account, credentials) = made.map_err(said)?;
        if let Some(email) = &self.email {
            let contact = format!("mailto:{email}");
            // Without a contact the account works as well; many CAs ignore it.
            if let Err(error) = persist!(account.update_contacts(&[&contact])) {
                tracing::warn!(ca = %directory.name, "the CA did not take the email address: {error}");
            }
        }
        Ok((account, credentials))
    }

    async fn save(
        &self,
        place: &Key,
        stored: &StoredAccount,
        lock: &Arc<dyn super::store::Lock>,
    ) -> Result<(), IssueError> {
        let bytes = serde_json::to_vec(stored).map(Zeroizing::new);
        let bytes = bytes.map_err(|e| IssueError::new(Reason::Store, e.to_string()))?;
        let (store, place, lock) = (Arc::clone(&self.store), place.clone(), Arc::clone(lock));
        off(move || store.save(&place, &bytes, &Expect::Any, Some(lock.as_ref()))).await?;
        Ok(())
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

fn new_key(directory: &Directory) -> Result<StoredAccount, IssueError> {
    let (_, der) = AccountKey::generate_pkcs8()
        .map_err(|e| IssueError::new(Reason::Other, format!("An account key could not be made: {e}.")))?;
    Ok(StoredAccount {
        directory: directory.url.to_string(),
        key: BASE64_URL_SAFE_NO_PAD.encode(der.secret_pkcs8_der()),
        credentials: None,
        created: clock::wall().as_secs(),
    })
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

fn is(error: &Error, kind: &str) -> bool {
    let Error::Api(problem) = error else { return false };
    problem.r#type.as_deref().and_then(|t| t.strip_prefix("urn:ietf:params:acme:error:")) == Some(kind)
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

fn explain(error: &Error, notes: &Notes) -> IssueError {
    match error {
        Error::Api(problem) => explain_problem(problem, notes),
        Error::Timeout(_) => IssueError::new(Reason::Network, "The CA did not finish within two minutes."),
        Error::Other(inner) => IssueError::new(Reason::Network, inner.to_string()),
        other => IssueError::new(Reason::Other, other.to_string()),
    }
}

fn explain_problem(problem: &Problem, notes: &Notes) -> IssueError {
    let kind = problem.r#type.as_deref().and_then(|t| t.strip_prefix("urn:ietf:params:acme:error:"));
    let reason = match kind {
        Some("rateLimited") => Reason::RateLimited,
        Some("dns" | "caa") => Reason::Dns,
        Some("connection" | "unauthorized" | "incorrectResponse" | "tls") => Reason::Validation,
        Some("rejectedIdentifier" | "unsupportedIdentifier" | "invalidProfile" | "badCSR") => {
            Reason::Rejected
        }
        Some("accountDoesNotExist" | "externalAccountRequired" | "userActionRequired" | "invalidContact") => {
            Reason::Account
        }
        Some("serverInternal") => Reason::Network,
        _ if matches!(problem.status, Some(429)) => Reason::RateLimited,
        _ if problem.status.is_some_and(|status| status >= 500) => Reason::Network,
        _ => Reason::Other,
    };
    let mut error = IssueError::new(reason, problem.to_string());
    error.retry_after = notes.retry_after();
    error
}

/// Runs a blocking call of the store beside the runtime.
pub(super) async fn off<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, IssueError> {
    match tokio::task::spawn_blocking(call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(IssueError::new(Reason::Store, error.to_string())),
        Err(error) => Err(IssueError::new(Reason::Store, format!("The store call did not end: {error}."))),
    }
}
