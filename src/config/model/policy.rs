//! What all policies have in common, and rate limits.

use std::fmt;
use std::sync::Arc;

use super::{Origin, Statuses};
use crate::base::unit::Rate;

/// Whether a policy refuses, or says only what it would have refused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// It refuses.
    #[default]
    Enforce,
    /// It counts and marks what it would have refused, and lets it pass.
    Shadow,
}

impl Mode {
    /// The word in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Mode::Enforce => "enforce",
            Mode::Shadow => "shadow",
        }
    }
}

/// A rate limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// What its buckets are known by: limits of one place with the same text have the same buckets. Neither the mode nor
    /// the cost is in it.
    pub text: Arc<str>,
    /// How much in how long.
    pub rate: Rate,
    /// Units that a full bucket holds; default: the count of the rate.
    pub burst: u32,
    /// What a bucket is kept for, all of them together; [`LimitKey::Site`] and [`LimitKey::Tenant`] say whose bucket it is.
    pub keys: Vec<LimitKey>,
    /// Units that one request takes. 1.
    pub cost: u32,
    /// Only answers with one of these statuses are counted; `None`: every request is, before it is answered.
    pub statuses: Option<Statuses>,
    /// What clients hear it called; limits of a site with the same name and the same text share their buckets.
    pub name: Option<Arc<str>>,
    /// Whether it refuses.
    pub mode: Mode,
    /// Where it stands.
    pub origin: Origin,
}

/// What a bucket is kept for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum LimitKey {
    /// Each client address (v6: its /64).
    ClientIp,
    /// The neighbourhood of each client address: its /24, of v6 its /48.
    ClientNet,
    /// One bucket for the whole site or route.
    Site,
    /// One bucket for all sites of a tenant.
    Tenant,
    /// Each path, as normalised, without the query.
    Path,
    /// Each method.
    Method,
    /// Each user that was authenticated.
    User,
    /// Each value of a header field, by its name in lower case.
    Header(Arc<str>),
    /// Each value of a cookie.
    Cookie(Arc<str>),
}

impl fmt::Display for LimitKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LimitKey::ClientIp => f.write_str("client-ip"),
            LimitKey::ClientNet => f.write_str("client-net"),
            LimitKey::Site => f.write_str("site"),
            LimitKey::Tenant => f.write_str("tenant"),
            LimitKey::Path => f.write_str("path"),
            LimitKey::Method => f.write_str("method"),
            LimitKey::User => f.write_str("user"),
            LimitKey::Header(name) => write!(f, "header:{name}"),
            LimitKey::Cookie(name) => write!(f, "cookie:{name}"),
        }
    }
}
