//! Bans: who is turned away for a time.

use std::path::PathBuf;
use std::time::Duration;

use super::{Located, Mode};
use crate::base::unit::Rate;

/// `[bans]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bans {
    /// A file of networks that are banned.
    pub file: Option<Located<PathBuf>>,
    /// Whether the file is enforced.
    pub mode: Mode,
    /// Bans by offences and commands that are kept at most.
    pub entries: usize,
    /// What bans a client from all sites.
    pub rule: Option<BanRule>,
}

/// What bans a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BanRule {
    /// So many offences in so long.
    pub after: Rate,
    /// How long it is banned.
    pub time: Duration,
    /// What counts.
    pub offences: Vec<Offence>,
    /// Whether it is enforced.
    pub mode: Mode,
}

/// What can be counted against a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offence {
    /// A request that a rate limit refused.
    RateLimit,
    /// A request that said wrongly who it came from.
    Auth,
    /// A request that a virtual patch refused.
    Patch,
    /// A request that was malformed or could be read in two ways.
    BadRequest,
    /// A flood of HTTP/2 frames.
    Flood,
}

impl Offence {
    /// Every offence.
    pub const ALL: [Offence; 5] =
        [Offence::RateLimit, Offence::Auth, Offence::Patch, Offence::BadRequest, Offence::Flood];

    /// The word in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Offence::RateLimit => "rate-limit",
            Offence::Auth => "auth",
            Offence::Patch => "patch",
            Offence::BadRequest => "bad-request",
            Offence::Flood => "flood",
        }
    }
}
