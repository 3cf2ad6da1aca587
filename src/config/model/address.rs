//! Who may come by where they come from.

use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;

use super::{Located, Mode, Origin};

/// `[networks."…"]`: networks with a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkList {
    /// The key, lower case.
    pub name: Arc<str>,
    /// Those written here.
    pub networks: Vec<IpNet>,
    /// A file with more of them, absolute.
    pub file: Option<Located<PathBuf>>,
    /// They are those of a proxy: its address is not a client's.
    pub proxy: bool,
}

/// One entry of a list of addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Networks {
    /// A network.
    One(IpNet),
    /// A list with a name: one of the configuration, or one that everybody knows.
    Named(Arc<str>),
}

impl std::fmt::Display for Networks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Networks::One(network) => write!(f, "{network}"),
            Networks::Named(name) => f.write_str(name),
        }
    }
}

/// `addresses = { … }`: which addresses are let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses {
    /// Only these; `None`: all.
    pub allow: Option<Vec<Networks>>,
    /// None of these, whatever `allow` says.
    pub deny: Vec<Networks>,
    /// Whether it refuses.
    pub mode: Mode,
    /// Where it stands.
    pub origin: Origin,
}

/// A country by its two capital letters (ISO 3166-1 alpha-2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Country(pub [u8; 2]);

impl Country {
    /// A country from its two letters, in either case.
    pub fn parse(text: &str) -> Option<Country> {
        let letters: [u8; 2] = text.as_bytes().try_into().ok()?;
        let letters = letters.map(|letter| letter.to_ascii_uppercase());
        letters.iter().all(u8::is_ascii_uppercase).then_some(Country(letters))
    }

    /// The two letters.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("??")
    }
}

/// `countries = { … }`: from which countries clients are let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Countries {
    /// Only these; `None`: all.
    pub allow: Option<Vec<Country>>,
    /// None of these.
    pub deny: Vec<Country>,
    /// Whether an address that the database gives no country for is let in.
    pub unknown: bool,
    /// Whether it refuses.
    pub mode: Mode,
    /// Where it stands.
    pub origin: Origin,
}
