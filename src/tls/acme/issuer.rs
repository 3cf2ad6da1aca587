//! What the manager asks of an engine: one certificate, or a reason.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use super::engine::Engine;
use crate::config::model::{ChallengeKind, Directory};

/// Longest message kept.
const MESSAGE_CHARS_MAX: usize = 1500;

/// One certificate to be had.
#[derive(Debug, Clone)]
pub struct Job {
    /// The site, for messages.
    pub site: Arc<str>,
    /// DNS names (wildcards as `*.example.org`) and IP addresses.
    pub names: Vec<String>,
    /// Ways to prove control, in order of preference.
    pub challenges: Vec<ChallengeKind>,
    /// Where.
    pub directory: Directory,
    /// The leaf this one is to replace, if the same CA issued it (RFC 9773 section 5).
    pub replaces: Option<CertificateDer<'static>>,
    /// Asked for where the CA offers it.
    pub profile: Option<String>,
    /// Who orders.
    pub engine: Engine,
    /// A staging CA that must issue before this one is asked.
    pub probe: Option<Directory>,
}

/// What came out.
pub struct Issued {
    /// Chain, the site's certificate first.
    pub chain: String,
    /// Its private key, PKCS #8.
    pub key: Zeroizing<String>,
}

/// Why nothing came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssueError {
    /// For metrics and for what to do next.
    pub kind: Reason,
    /// How long the CA wants to hear nothing.
    pub retry_after: Option<Duration>,
    /// The CA made no order, so there is none to count.
    pub no_order: bool,
    /// Whether it may be tried again sooner than failures are.
    pub again: Again,
    /// What happened: the CA's own words where it spoke.
    pub message: String,
    /// What a person can do.
    pub mend: &'static str,
}

/// What may be done sooner than after the usual wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// Nothing.
    Later,
    /// The same again: it had no effect at the CA.
    AtOnce,
    /// The same, by an engine with more patience: this one gives up when a call breaks off.
    ByManaged,
}

/// Kinds of failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The CA could not see the proof.
    Validation,
    /// DNS or CAA stood in the way.
    Dns,
    /// Too many orders, for the CA's taste.
    RateLimited,
    /// The CA does not issue for such a name, or not so.
    Rejected,
    /// The account was refused.
    Account,
    /// The CA could not be reached or was out of order.
    Network,
    /// Our own store.
    Store,
    /// Our clock or the CA's is wrong.
    Clock,
    /// What came did not pass the canary.
    Canary,
    /// Anything else.
    Other,
}

impl Reason {
    /// One word.
    pub fn word(self) -> &'static str {
        match self {
            Reason::Validation => "validation",
            Reason::Dns => "dns",
            Reason::RateLimited => "rate-limited",
            Reason::Rejected => "rejected",
            Reason::Account => "account",
            Reason::Network => "network",
            Reason::Store => "store",
            Reason::Clock => "clock",
            Reason::Canary => "canary",
            Reason::Other => "other",
        }
    }
}

impl IssueError {
    /// A failure with the mend that belongs to its kind.
    pub fn new(kind: Reason, message: impl Into<String>) -> IssueError {
        let mend = match kind {
            Reason::Validation => {
                "Do the site's names lead to this server in DNS, and do ports 80 and 443 reach it from the internet?"
            }
            Reason::Dns => "Check the names' DNS records; a CAA record must allow this CA.",
            Reason::RateLimited => "Nothing needs to be done: it is tried again when the CA allows it.",
            Reason::Rejected => {
                "Check the site's names and the profile; this CA does not issue for them as asked."
            }
            Reason::Account => "Check the [acme] settings email and eab, and the account at the CA.",
            Reason::Network => "Can this machine reach the CA? It is tried again.",
            Reason::Store => {
                "Mend the store; nothing is ordered and no account is made until it can be read."
            }
            Reason::Clock => "Set the clock (NTP); certificates are neither ordered nor swapped until then.",
            Reason::Canary => "The old certificate stays; it is tried again. If it persists, ask the CA.",
            Reason::Other => "It is tried again.",
        };
        let mut message = message.into();
        // A CA's words are kept for every site that fails.
        if let Some((end, _)) = message.char_indices().nth(MESSAGE_CHARS_MAX) {
            message.truncate(end);
            message.push('…');
        }
        IssueError { kind, retry_after: None, no_order: false, again: Again::Later, message, mend }
    }
}

impl fmt::Display for IssueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.message, self.mend)
    }
}

/// The answer to come.
pub type Issuing<'a> = Pin<Box<dyn Future<Output = Result<Issued, IssueError>> + Send + 'a>>;

/// An engine.
pub trait Issuer: Send + Sync {
    /// Its name in `certs`.
    fn name(&self) -> &'static str;
    /// Orders one certificate. Ends within a bounded time; leaves no challenge behind, also when dropped.
    fn issue<'a>(&'a self, job: &'a Job) -> Issuing<'a>;
}
