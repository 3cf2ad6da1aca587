//! Layer 5: how operators and their tools look into a running Tidegate.
//!
//! * [`serve`]: the admin API, HTTP/1.1 and JSON over a Unix socket that only the user of the process may open.
//! * [`metrics()`]: `/metrics` and `/healthz` on a TCP listener of their own.
//!
//! Both run on a `LocalSet` of a control-plane thread, never on a worker. Nothing here decides anything: the answers
//! come from a [`Backend`].
//!
//! | request | answer |
//! |---|---|
//! | `GET /status` | [`Backend::status`] |
//! | `POST /reload` | [`Backend::reload`] |
//! | `GET /config` | [`Backend::config`] |
//! | `GET /patches` | [`Backend::patches`] |
//! | `GET /certs` | [`Backend::certificates`] |
//! | `GET /certs/plan` | [`Backend::certificate_plan`] |
//! | `GET /certs/events` | [`Backend::certificate_events`] |
//! | `POST /certs/renew?site=NAME` | [`Backend::renew`] |
//! | `POST /certs/issue?names=NAMES&valid=SECONDS` | [`Backend::issue`] |
//! | `POST /deploy?what=NAME&to=ADDRESSES&timeout_ms=MS&drain_ms=MS[&hold_ms=MS]` | [`Backend::deploy`] |
//! | `GET /deployments` | [`Backend::deployments`] |
//! | `POST /observe?seconds=N[&site=NAME]` | [`Backend::observe`] |
//! | `GET /observe` | [`Backend::observation`] |
//! | `POST /observe/end` | [`Backend::end_observation`] |
//! | `GET /bans` | [`Backend::bans`] |
//! | `POST /ban?net=NET&seconds=N&why=TEXT` | [`Backend::ban`] |
//! | `POST /unban?net=NET` | [`Backend::unban`] |
//! | `POST /certs/reread` | [`Backend::reread`] |

mod api;
mod bind;
mod connection;
pub mod io;
mod metrics;

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

pub use api::serve;
pub use bind::bind;
pub use connection::{CONNECTION_TIME_MAX, CONNECTIONS_MAX, HEAD_TIME_MAX};
pub use metrics::metrics;

/// What `POST /deploy` asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deploy {
    /// A site, or the name of a `deploy://` source.
    pub what: String,
    /// The new endpoints.
    pub to: Vec<String>,
    /// Back to those before the last deployment instead.
    pub back: bool,
    /// How long they may take to become healthy.
    pub timeout: Duration,
    /// How long new requests may be held until the old endpoints have finished; `None`: they are not.
    pub hold: Option<Duration>,
    /// How long what is in flight at the old ones is waited for.
    pub drain: Duration,
}

/// An answer that takes a while.
pub type Told = Pin<Box<dyn Future<Output = Result<serde_json::Value, String>>>>;

/// Where the answers of the admin API come from.
pub trait Backend {
    /// The answer to `GET /status`.
    fn status(&self) -> serde_json::Value;

    /// Reloads and says what changed. Runs to its end even when the one who asked goes away.
    fn reload(&self) -> Pin<Box<dyn Future<Output = serde_json::Value>>>;

    /// The answer to `GET /config`.
    fn config(&self) -> serde_json::Value;

    /// The answer to `GET /patches`.
    fn patches(&self) -> serde_json::Value;

    /// The answer to `GET /certs`.
    fn certificates(&self) -> serde_json::Value;

    /// The answer to `GET /certs/plan`; it takes some seconds, because name servers are asked.
    fn certificate_plan(&self) -> Pin<Box<dyn Future<Output = serde_json::Value>>>;

    /// The answer to `GET /certs/events`.
    fn certificate_events(&self) -> serde_json::Value;

    /// Orders a site's certificate now; it has not come when this returns.
    ///
    /// # Errors
    /// A sentence: why not.
    fn renew(&self, site: &str) -> Result<(), String>;

    /// Issues a certificate of the internal CA; `names` are separated by commas.
    ///
    /// # Errors
    /// A sentence: why not.
    fn issue(&self, names: &str, valid: Duration) -> Result<serde_json::Value, String>;

    /// Begins a deployment and gives its number.
    ///
    /// # Errors
    /// A sentence: why not.
    fn deploy(&self, order: Deploy) -> Pin<Box<dyn Future<Output = Result<u64, String>>>>;

    /// How the last deployment of each source goes or went.
    fn deployments(&self) -> serde_json::Value;

    /// Begins to watch a site, or all, so that limits can be suggested.
    ///
    /// # Errors
    /// A sentence: why not.
    fn observe(&self, site: Option<&str>, time: Duration) -> Result<serde_json::Value, String>;

    /// How that goes.
    fn observation(&self) -> serde_json::Value;

    /// Ends it and says what was seen; nothing of it is kept.
    fn end_observation(&self) -> Told;

    /// Bans an address or a network.
    ///
    /// # Errors
    /// A sentence: why not.
    fn ban(&self, net: String, time: Duration, why: String) -> Told;

    /// Ends the bans of an address or a network.
    ///
    /// # Errors
    /// A sentence: why not.
    fn unban(&self, net: String) -> Told;

    /// Who is banned.
    fn bans(&self) -> serde_json::Value;

    /// Reads the certificate store again and puts in force what others wrote. Runs to its end like a reload.
    fn reread(&self) -> Pin<Box<dyn Future<Output = serde_json::Value>>>;
}

#[cfg(test)]
mod tests;
