//! Certificates that get and keep themselves (RFC 8555, RFC 8737, RFC 9773).
//!
//! One [`Manager`]: a [`queue`] that says who orders next, a [`store`] that survives crashes, two engines ([`simple`] and
//! [`managed`]; [`engine`] says which) behind the trait [`issuer::Issuer`], [`challenge`] answers for all workers, TXT
//! records where [`dns`] writes them, a [`canary`] before anything is served, and [`demand`], where handshakes wait.
//! [`backup`] moves a whole store.

pub mod account;
pub mod backup;
pub mod canary;
pub mod challenge;
pub mod demand;
pub mod dns;
pub mod engine;
pub mod event;
pub mod http;
pub mod issuer;
pub mod managed;
pub mod manager;
mod nonce;
pub mod predict;
pub mod problem;
pub mod queue;
pub mod record;
pub mod renewal_info;
pub mod simple;
pub mod store;

use std::sync::Arc;

use serde::Serialize;

pub use challenge::Challenges;
pub use manager::{Manager, Reread};

use crate::config::model::{ChallengeKind, HostPattern};
use crate::config::section::host;

/// A certificate a site wants to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The site.
    pub site: Arc<str>,
    /// The names it must cover.
    pub names: Vec<HostPattern>,
    /// How control may be proven, in order of preference.
    pub challenge: Vec<ChallengeKind>,
    /// Who owns the site.
    pub tenant: Arc<str>,
    /// For a name on demand (`site` is then its id): the site that takes it.
    pub on_demand: Option<Arc<str>>,
}

impl Wanted {
    /// The names as certificates write them.
    pub fn texts(&self) -> Vec<String> {
        self.names.iter().map(host::written).collect()
    }
}

/// One line of `tidegate certs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CertificateStatus {
    /// The site.
    pub site: Arc<str>,
    /// The names are no hosts of the site: they were asked for at a handshake.
    pub on_demand: bool,
    /// Names it must cover.
    pub names: Vec<String>,
    /// Engine that got it, or would get the first: `simple` or `managed`.
    pub issuer: &'static str,
    /// Engine that would order now.
    pub next_issuer: &'static str,
    /// Why that one: half a sentence after "because".
    pub next_issuer_because: &'static str,
    /// Where the CA explains when it wants the certificate renewed.
    pub explanation: Option<String>,
    /// The CA that issued it, or is asked next.
    pub ca: Arc<str>,
    /// When it expires, in seconds since 1970.
    pub not_after: Option<u64>,
    /// When it is to be renewed, in seconds since 1970.
    pub renew_at: Option<u64>,
    /// `valid`, `due`, `unused`, `ordering`, `failed` or `waiting`.
    pub state: &'static str,
    /// The CA's own words about the last failure.
    pub last_error: Option<String>,
    /// Failures in a row.
    pub attempts: u32,
    /// When the next try may be, in seconds since 1970.
    pub next_try: Option<u64>,
}
