//! The settings of who may come by where they come from.

use super::Fallback::{Value, Words};
use super::policy::MODE;
use super::{Id, Kind, Section, row};

/// Entries of one list that stand in the configuration; a file holds more.
const LIST_MAX: usize = 10_000;

#[rustfmt::skip]
pub(super) static NETWORKS: Section = Section {
    id: Id::Networks,
    title: "[networks.\"…\"]",
    doc: "Networks with a name, for `addresses` and `trusted_proxies`. Those of `networks` and of `file` count together.",
    settings: &[
        row("networks", Kind::Networks(LIST_MAX), Value("[]"), "The networks."),
        row("file", Kind::Path, Words("none"), "A file with networks, one a line; what follows `#` or `;` is a comment. Read again when it changes; one that cannot be understood changes nothing. At most 1,000,000 lines and 64 MiB."),
        row("proxy", Kind::Flag, Value("false"), "They belong to a proxy or a content delivery network: an address there is never a client's own, so that no limit by address is kept to it unless it is in `trusted_proxies`."),
    ],
};

#[rustfmt::skip]
pub(super) static ADDRESSES: Section = Section {
    id: Id::Addresses,
    title: "addresses = { … }",
    doc: "Which client addresses are let in. An entry is a network, an address, a name of `[networks]`, or one of the names that `trusted_proxies` knows.",
    settings: &[
        row("allow", Kind::Texts(LIST_MAX), Words("all"), "Only these are let in."),
        row("deny", Kind::Texts(LIST_MAX), Value("[]"), "These are not, whatever `allow` says."),
        MODE,
    ],
};

#[rustfmt::skip]
pub(super) static COUNTRIES: Section = Section {
    id: Id::Countries,
    title: "countries = { … }",
    doc: "From which countries clients are let in, by two letters (ISO 3166-1): `\"DE\"`. A country is a guess from an address: good against noise, no proof of anything.",
    settings: &[
        row("allow", Kind::Texts(300), Words("all"), "Only these."),
        row("deny", Kind::Texts(300), Value("[]"), "None of these."),
        row("unknown", Kind::Word(&["allow", "deny"]), Value(r#""allow""#), "What happens to addresses that the database gives no country for: private ones, say, or new ones."),
        MODE,
    ],
};
