//! What `[dns]` means: how names in `backends` are resolved.

use std::net::SocketAddr;
use std::time::Duration;

/// `[dns]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolution {
    /// `resolvers`: asked in this order; empty: those of the system.
    pub resolvers: Vec<SocketAddr>,
    /// `ttl_min`: an answer is asked for again no sooner. 5 s.
    pub ttl_min: Duration,
    /// `ttl_max`: and no later. 5 min.
    pub ttl_max: Duration,
    /// `hold`: how long the answer must be "none" before the endpoints are given up. 30 s.
    pub hold: Duration,
}
