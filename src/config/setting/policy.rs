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

/// Keys of one limit.
pub const LIMIT_KEYS_MAX: usize = 4;
/// What `by` may say.
const BY: Kind = Kind::TextOrTexts(
    "\"client-ip\", \"client-net\", \"header:X-Api-Key\", \"cookie:session\", \"path\", \"method\", \"user\", \"site\" or \"tenant\"",
    LIMIT_KEYS_MAX,
);

#[rustfmt::skip]
pub(super) static LIMIT: Section = Section {
    id: Id::Limit,
    title: "limit = { rate = \"…\", … }",
    doc: "A rate limit, in the long form. Requests above it are answered with 429.",
    settings: &[
        row("rate", Kind::Text(64), Required, "How many in how long, like `\"100 per 10s\"`; at most 10,000,000 per `\"1d\"`."),
        row("by", BY, Value(r#""client-ip""#), "What is counted on its own: each client address (IPv6: each /64), each neighbourhood (/24, IPv6: /48), each value of a header field or cookie, path, method, authenticated user, or a combination of these; or the whole site (or route), or all sites of the tenant."),
        row("burst", Kind::Count(1, 10_000_000), Words("the count of the rate"), "Requests allowed at once."),
        row("cost", Kind::Count(1, 10_000_000), Value("1"), "How much of the limit one request takes."),
        row("statuses", Kind::Statuses(16, 100, 599), Words("every request, before it is answered"), "Count only answers with these statuses, like `[401, 403]`."),
        row("name", Kind::Text(64), Value(r#""default""#), "What clients hear it called in `RateLimit-Policy`. Limits of one site with the same name, rate and keys share their buckets."),
        MODE,
    ],
};

/// Limits of one direction.
const FLOWS: Kind = Kind::TextOrTexts("a rate like \"2MiB/s by client-ip\"", 4);

#[rustfmt::skip]
pub(super) static BANDWIDTH: Section = Section {
    id: Id::Bandwidth,
    title: "bandwidth = { down = \"…\", … }",
    doc: "Bytes of bodies in a second, from `\"1KiB/s\"` to `\"1TiB/s\"`. What is faster is delayed. `by` is that of `limit`.",
    settings: &[
        row("down", FLOWS, Words("any"), "Answers."),
        row("up", FLOWS, Words("any"), "Uploads."),
        MODE,
    ],
};
