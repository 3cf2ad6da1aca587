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

/// All codes of ISO 3166-1 alpha-2 that are officially assigned, and Kosovo's, which databases use.
const ASSIGNED: &str = "\
    AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR BS BT BV BW BY \
    BZ CA CC CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ EC EE EG EH ER ES ET FI FJ FK \
    FM FO FR GA GB GD GE GF GG GH GI GL GM GN GP GQ GR GS GT GU GW GY HK HM HN HR HT HU ID IE IL IM IN IO IQ IR \
    IS IT JE JM JO JP KE KG KH KI KM KN KP KR KW KY KZ LA LB LC LI LK LR LS LT LU LV LY MA MC MD ME MF MG MH MK \
    ML MM MN MO MP MQ MR MS MT MU MV MW MX MY MZ NA NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM \
    PN PR PS PT PW PY QA RE RO RS RU RW SA SB SC SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF \
    TG TH TJ TK TL TM TN TO TR TT TV TW TZ UA UG UM US UY UZ VA VC VE VG VI VN VU WF WS XK YE YT ZA ZM ZW";

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

    /// Whether these letters are any country's.
    pub fn is_assigned(&self) -> bool {
        ASSIGNED.split(' ').any(|code| code.as_bytes() == self.0)
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
