//! The settings of bans.

use super::Fallback::{Value, Words};
use super::policy::MODE;
use super::{Id, Kind, Section, Setting, row};

const AFTER: Kind = Kind::Text(64);
const TIME: Kind = Kind::Duration(1_000, 30 * super::DAY);
const OFFENCES: Kind = Kind::Texts(8);
const OFFENCES_DEFAULT: &str = r#"["rate-limit", "auth", "patch"]"#;
const OFFENCES_DOC: &str = "What counts: `\"rate-limit\"`, `\"auth\"`, `\"patch\"` (requests that these refused), `\"bad-request\"` (malformed, or to be read in two ways) and `\"flood\"` (HTTP/2 connections closed because of one).";

#[rustfmt::skip]
pub(super) static BANS: Section = Section {
    id: Id::Bans,
    title: "[bans]",
    doc: "Clients that are turned away from all sites for a time: those of a file, those whom `tidegate ban` names, and, where `after` is said, those who offend too often.",
    settings: &[
        row("file", Kind::Path, Words("none"), "A file of addresses and networks, one a line, read again when it changes."),
        row("after", AFTER, Words("nobody is banned by offences"), "How many offences in how long ban a client (IPv6: its /64), like `\"20 per 1m\"`."),
        row("for", TIME, Value(r#""10m""#), "How long."),
        row("offences", OFFENCES, Value(OFFENCES_DEFAULT), OFFENCES_DOC),
        Setting { needs_restart: true, ..row("entries", Kind::Count(16, 1_000_000), Value("65536"), "Bans by offences and commands that are kept; when there are more, the one by offences that would end soonest gives way. At most 512 bytes each.") },
        MODE,
    ],
};

#[rustfmt::skip]
pub(super) static BAN: Section = Section {
    id: Id::Ban,
    title: "ban = { after = \"…\", … }",
    doc: "Clients that are turned away from this site for a time because they offended too often here.",
    settings: &[
        row("after", AFTER, super::Fallback::Required, "How many offences in how long, like `\"20 per 1m\"`."),
        row("for", TIME, Value(r#""10m""#), "How long."),
        row("offences", OFFENCES, Value(OFFENCES_DEFAULT), OFFENCES_DOC),
        MODE,
    ],
};
