//! The settings of the policies: what refuses a request, and whether it does or only says so.

use super::Fallback::{Required, Value, Words};
use super::{Id, Kind, Section, Setting, row};

/// `mode` of every policy.
pub(super) const MODE: Setting = row(
    "mode",
    Kind::Word(&["enforce", "shadow"]),
    Value(r#""enforce""#),
    "`\"shadow\"`: what would have been refused is let through, counted and marked in the access log (`would_block`).",
);

#[rustfmt::skip]
pub(super) static LIMIT: Section = Section {
    id: Id::Limit,
    title: "limit = { rate = \"…\", … }",
    doc: "A rate limit, in the long form. Requests above it are answered with 429.",
    settings: &[
        row("rate", Kind::Text(64), Required, "How many in how long, like `\"100 per 10s\"`; at most 10,000,000 per `\"1d\"`."),
        row("by", Kind::Word(&["client-ip", "site"]), Value(r#""client-ip""#), "What is counted on its own: each client address (IPv6: each /64), or the whole site (or route)."),
        row("burst", Kind::Count(1, 10_000_000), Words("the count of the rate"), "Requests allowed at once."),
        MODE,
    ],
};
