//! The engine on rustls-acme: a job is one `AcmeState`, made for it, polled until the new certificate is there, dropped.
//!
//! rustls-acme would go on by itself: order again after a failure, renew, make an account when it cannot read one. None
//! of that is reached. It is given the account's key, so that it never makes one; its caches never fail; it is dropped
//! at its first error, before its own timer orders again; and a deadline stands over all of it, because it has none.
//!
//! Simplifying assumption: one way of proof for all names of a certificate, which is how rustls-acme works.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_core::Stream;
use rustls_acme::acme::{AcmeError, Auth, Problem};
use rustls_acme::{
    AccountCache, AcmeConfig, AcmeState, CertCache, EventError, EventOk, OrderError, UseChallenge,
};
use zeroize::Zeroizing;

use super::account::Accounts;
use super::challenge::{Challenges, Published};
use super::engine;
use super::issuer::{Again, IssueError, Issued, Issuer, Issuing, Job, Reason};
use super::problem;
use crate::config::model::ChallengeKind;

/// A whole order, from the account to the chain.
const ORDER_DEADLINE: Duration = Duration::from_secs(300);
/// rustls-acme drops the CA's `Retry-After`: after "too many", this long.
const RATE_LIMITED_PAUSE: Duration = Duration::from_secs(3600);
/// What it tells before it is done: the certificate is there, then stored.
const EVENTS_MAX: usize = 8;

/// The engine.
pub struct Simple {
    accounts: Arc<Accounts>,
    challenges: Arc<Challenges>,
}

impl Simple {
    /// Does nothing yet.
    pub fn new(accounts: Arc<Accounts>, challenges: Arc<Challenges>) -> Simple {
        Simple { accounts, challenges }
    }

    async fn ordered(&self, job: &Job) -> Result<Issued, IssueError> {
        let Some(kind) = job.challenges.iter().copied().find(|kind| *kind != ChallengeKind::Dns01) else {
            let message = "The simple engine proves control by tls-alpn-01 and http-01 only.";
            return Err(IssueError::new(Reason::Rejected, message));
        };
        if let Some(because) = engine::names_need_managed(&job.names) {
            let message = format!("The simple engine cannot order this: {because}. Remove [acme] engine.");
            return Err(IssueError::new(Reason::Rejected, message));
        }
        let ended = tokio::time::timeout(ORDER_DEADLINE, self.order(job, kind)).await;
        ended.unwrap_or_else(|_| {
            Err(IssueError::new(Reason::Network, format!("The order took longer than {ORDER_DEADLINE:?}.")))
        })
    }

    async fn order(&self, job: &Job, kind: ChallengeKind) -> Result<Issued, IssueError> {
        // Registered here, once: orders that began together would each register the key, and meet at the CA.
        let nothing = |error: IssueError| IssueError { no_order: true, ..error };
        self.accounts.account(&job.directory).await.map_err(nothing)?;
        let account = self.accounts.key(&job.directory).await.map_err(nothing)?;
        let issued = Arc::new(Mutex::new(None));
        let way = match kind {
            ChallengeKind::TlsAlpn01 => UseChallenge::TlsAlpn01,
            ChallengeKind::Http01 | ChallengeKind::Dns01 => UseChallenge::Http01,
        };
        let mut config = AcmeConfig::new_with_client_config(&job.names, self.accounts.client().tls())
            .directory(&*job.directory.url)
            .challenge_type(way)
            .cache(Cache { account, issued: Arc::clone(&issued) });
        if let Some(contact) = self.accounts.contact() {
            config = config.contact_push(contact);
        }
        let mut state = config.state();
        // Taken back when this function ends or is dropped, whatever happens.
        let _published = self.publish(&state, job, kind)?;
        for _ in 0..EVENTS_MAX {
            match poll_fn(|context| Pin::new(&mut state).poll_next(context)).await {
                Some(Ok(EventOk::CertCacheStore)) => break,
                Some(Ok(_)) => {}
                // Dropped here: its next poll would wait a second and order again.
                Some(Err(error)) => {
                    let mut error = explain(&error, job);
                    if error.kind == Reason::Network && error.again == Again::Later {
                        error.again = Again::ByManaged;
                    }
                    return Err(error);
                }
                None => break,
            }
        }
        let found = issued.lock().unwrap_or_else(PoisonError::into_inner).take();
        found.as_deref().and_then(|pem| split(pem)).ok_or_else(|| {
            IssueError::new(Reason::Other, "The simple engine ended without a certificate.".to_owned())
        })
    }

    /// All workers answer for it: by its own resolver, or by asking it for the token.
    fn publish(
        &self,
        state: &AcmeState<Infallible>,
        job: &Job,
        kind: ChallengeKind,
    ) -> Result<Vec<Published>, IssueError> {
        let resolver = state.resolver();
        let published = match kind {
            ChallengeKind::TlsAlpn01 => {
                let names = job.names.iter();
                names.map(|name| self.challenges.publish_resolver(name, resolver.clone())).collect()
            }
            ChallengeKind::Http01 | ChallengeKind::Dns01 => {
                let source = move |token: &str| resolver.get_http_01_key_auth(token);
                self.challenges.publish_source(Arc::new(source)).map(|one| vec![one])
            }
        };
        published.map_err(|e| IssueError::new(Reason::Other, e))
    }
}

impl Issuer for Simple {
    fn name(&self) -> &'static str {
        engine::Engine::Simple.word()
    }

    fn issue<'a>(&'a self, job: &'a Job) -> Issuing<'a> {
        Box::pin(self.ordered(job))
    }
}

/// Between rustls-acme and our store, which the manager reads before and writes after an order.
struct Cache {
    account: Zeroizing<Vec<u8>>,
    issued: Arc<Mutex<Option<Zeroizing<Vec<u8>>>>>,
}

#[async_trait]
impl CertCache for Cache {
    type EC = Infallible;

    async fn load_cert(&self, _: &[String], _: &str) -> Result<Option<Vec<u8>>, Infallible> {
        Ok(None)
    }

    async fn store_cert(&self, _: &[String], _: &str, pem: &[u8]) -> Result<(), Infallible> {
        let kept = Zeroizing::new(pem.to_vec());
        *self.issued.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
        Ok(())
    }
}

#[async_trait]
impl AccountCache for Cache {
    type EA = Infallible;

    async fn load_account(&self, _: &[String], _: &str) -> Result<Option<Vec<u8>>, Infallible> {
        Ok(Some(self.account.to_vec()))
    }

    /// Called only after a key was made, and none ever is.
    async fn store_account(&self, _: &[String], _: &str, _: &[u8]) -> Result<(), Infallible> {
        Ok(())
    }
}

/// Its PEM: the key, then the chain.
fn split(pem: &[u8]) -> Option<Issued> {
    let text = std::str::from_utf8(pem).ok()?;
    let (key, chain) = text.split_at_checked(text.find("-----BEGIN CERTIFICATE-----")?)?;
    Some(Issued { chain: chain.to_owned(), key: Zeroizing::new(key.trim().to_owned() + "\n") })
}

fn explain(error: &EventError<Infallible, Infallible>, job: &Job) -> IssueError {
    match error {
        EventError::Order(OrderError::Acme(error)) => explain_call(error, job),
        EventError::Order(OrderError::BadAuth(auth)) => explain_proof(auth),
        EventError::Order(OrderError::BadOrder(order)) => match &order.error {
            Some(problem) => explain_problem(problem),
            None => IssueError::new(
                Reason::Other,
                "The CA called the order invalid and did not say why.".to_owned(),
            ),
        },
        EventError::Order(OrderError::TooManyAttemptsAuth(name)) => {
            IssueError::new(Reason::Network, format!("The CA did not look at the proof for {name} in time."))
        }
        EventError::Order(OrderError::ProcessingTimeout(_)) => {
            IssueError::new(Reason::Network, "The CA did not sign in time.".to_owned())
        }
        EventError::Order(OrderError::Rcgen(error)) => {
            IssueError::new(Reason::Other, format!("The certificate request could not be made: {error}."))
        }
        other => IssueError::new(Reason::Other, format!("The simple engine stopped: {other}.")),
    }
}

fn explain_call(error: &AcmeError, job: &Job) -> IssueError {
    let host = job.directory.url.parse::<http::Uri>().ok();
    let host = host.as_ref().and_then(http::Uri::host).unwrap_or_default();
    match error {
        AcmeError::HttpRequest(inner) => {
            let said = inner.to_string();
            match refusal(&said) {
                Some((status, body)) => explain_refusal(host, status, &body),
                None => IssueError::new(Reason::Network, format!("{host}: {said}.")),
            }
        }
        AcmeError::Io(_)
        | AcmeError::Json(_)
        | AcmeError::MissingHeader(_)
        | AcmeError::HttpResponseNonStringHeader(_) => {
            IssueError::new(Reason::Network, format!("{host}: {error}."))
        }
        AcmeError::NoTlsAlpn01Challenge | AcmeError::NoHttp01Challenge => IssueError::new(
            Reason::Rejected,
            format!("The CA does not offer this way to prove control: {error}."),
        ),
        AcmeError::KeyRejected(_) => {
            IssueError::new(Reason::Store, format!("The stored key for {} is no key.", job.directory.url))
        }
        other => IssueError::new(Reason::Other, other.to_string()),
    }
}

/// The CA looked and was not content: what it saw stands in the challenges.
fn explain_proof(auth: &Auth) -> IssueError {
    let rustls_acme::acme::Identifier::Dns(name) = &auth.identifier;
    let Some(problem) = auth.challenges.iter().find_map(|challenge| challenge.error.as_ref()) else {
        let message =
            format!("{name}: the CA calls the authorization {:?} and does not say why.", auth.status);
        return IssueError::new(Reason::Validation, message);
    };
    let told = explain_problem(problem);
    let kind = if told.kind == Reason::Other { Reason::Validation } else { told.kind };
    IssueError::new(kind, format!("{name}: {}", told.message))
}

fn explain_problem(problem: &Problem) -> IssueError {
    let detail = problem.detail.as_deref().unwrap_or("no detail");
    let kind = problem.typ.as_deref();
    let message = format!("API error: {detail} ({})", kind.unwrap_or("no type"));
    IssueError::new(problem::reason(kind, None), message)
}

fn explain_refusal(host: &str, status: u16, body: &str) -> IssueError {
    let whole = problem::completed(body.as_bytes(), None).unwrap_or_else(|| body.as_bytes().to_vec());
    let Ok(problem) = serde_json::from_slice::<instant_acme::Problem>(&whole) else {
        let message = format!("{host}: HTTP {status} with {} bytes that explain nothing.", body.len());
        return IssueError::new(problem::reason(None, Some(status)), message);
    };
    let kind = problem.r#type.as_deref();
    let mut error = IssueError::new(problem::reason(kind, Some(status)), problem.to_string());
    // RFC 8555 section 6.5: it had no effect, and there is a new one at once.
    if problem::word(kind) == Some("badNonce") {
        error.again = Again::AtOnce;
    }
    if error.kind == Reason::RateLimited {
        error.retry_after = Some(RATE_LIMITED_PAUSE);
    }
    error
}

/// Status and body of a refusal: rustls-acme keeps its type to itself, so they are read from what it prints.
fn refusal(said: &str) -> Option<(u16, String)> {
    let (status, quoted) = said.strip_prefix("non 2xx http status: ")?.split_once(' ')?;
    let body = quoted.strip_prefix('"')?.strip_suffix('"')?;
    Some((status.parse().ok()?, unescape(body)))
}

/// The text that `{:?}` printed between quotes. What is no escape of Rust stays as it is.
fn unescape(printed: &str) -> String {
    let mut text = String::with_capacity(printed.len());
    let mut rest = printed.chars();
    while let Some(next) = rest.next() {
        if next != '\\' {
            text.push(next);
            continue;
        }
        match rest.next() {
            Some('n') => text.push('\n'),
            Some('r') => text.push('\r'),
            Some('t') => text.push('\t'),
            Some('0') => text.push('\0'),
            Some('u') => {
                let digits: String = rest.by_ref().skip(1).take_while(|digit| *digit != '}').collect();
                let found = u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32);
                text.push(found.unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            Some(other) => text.push(other),
            None => {}
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rustls_acme_prints_is_read_back() {
        for body in [
            "",
            "plain",
            r#"{"type":"urn:ietf:params:acme:error:caa","detail":"CAA \"issue\" of ümläut.de: \\ no"}"#,
            "line\r\n\ttab \u{1b}[31m \u{0} 'quoted' \u{202e}",
        ] {
            let said = format!("non 2xx http status: 403 {body:?}");
            assert_eq!(refusal(&said), Some((403, body.to_owned())));
        }
        for said in ["", "io error: x", "non 2xx http status: x \"\"", "non 2xx http status: 400 \""] {
            assert_eq!(refusal(said), None, "{said}");
        }
        assert_eq!(unescape("\\u{110000}\\"), "\u{fffd}");
    }

    #[test]
    fn a_refusal_keeps_the_words_of_the_ca() {
        let of = |status, body: &str| explain_refusal("ca.test", status, body);
        let nonce =
            of(400, r#"{"type":"urn:ietf:params:acme:error:badNonce","detail":"JWS has an invalid nonce"}"#);
        assert!(
            nonce.again == Again::AtOnce
                && nonce.kind == Reason::Network
                && nonce.message.contains("invalid nonce")
        );
        let many =
            of(429, r#"{"type":"urn:ietf:params:acme:error:rateLimited","detail":"too many certificates"}"#);
        assert!(many.again == Again::Later && many.retry_after == Some(RATE_LIMITED_PAUSE));
        assert!(many.message.contains("too many certificates"));
        let person = of(
            403,
            r#"{"type":"urn:ietf:params:acme:error:userActionRequired","detail":"Agree.","instance":"https://ca.test/t"}"#,
        );
        assert!(person.kind == Reason::Account && person.message.contains("See https://ca.test/t"));
        let proxy = of(503, "<html>down</html>");
        assert!(proxy.kind == Reason::Network && proxy.message.contains("HTTP 503"), "{proxy:?}");
    }

    #[test]
    fn the_key_and_the_chain_are_told_apart() {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
        let chain = params.self_signed(&key).unwrap().pem();
        let whole = format!("{}\n{chain}", key.serialize_pem());
        let issued = split(whole.as_bytes()).unwrap();
        assert_eq!(issued.chain, chain);
        assert!(rcgen::KeyPair::from_pem(&issued.key).is_ok());
        assert!(split(b"nothing").is_none() && split(&[0xff]).is_none());
    }
}
