//! The settings of what is said to browsers beside a backend's own words.

use super::Fallback::{Required, Value};
use super::{DAY, Id, Kind, Section, row};

pub(super) const SECURITY_SHORT: &str = "\"off\", \"basic\" or \"strict\"";
pub(super) const HSTS_SHORT: &str = "\"off\", \"on\" or \"clear\"";
pub(super) const CORS_SHORT: &str = "\"off\", or one origin like \"https://app.example\"";

#[rustfmt::skip]
pub(super) static SECURITY: Section = Section {
    id: Id::Security,
    title: "security_headers = { preset = \"…\", … }",
    doc: "Fields that make browsers more careful. The short form is the preset. See docs/headers.md.",
    settings: &[
        row("preset", Kind::Word(&["basic", "strict"]), Required, "`\"basic\"`: `nosniff`, `Referrer-Policy`, `X-Frame-Options: SAMEORIGIN`; `\"strict\"`: framed by nobody, no referrer, no camera and the like, nothing shared across origins."),
        row("replace", Kind::Flag, Value("false"), "Also where the backend says something else."),
    ],
};

#[rustfmt::skip]
pub(super) static HSTS: Section = Section {
    id: Id::Hsts,
    title: "hsts = { … }",
    doc: "`Strict-Transport-Security` (RFC 6797). `hsts = \"on\"` is every default; `\"clear\"` makes browsers forget it.",
    settings: &[
        row("max_age", Kind::Duration(0, 730 * DAY), Value(r#""365d""#), "For how long browsers keep to HTTPS in the end."),
        row("ramp", Kind::Flag, Value("true"), "Step by step: 5 minutes on the first day, a day in the first week, a week for four weeks, then `max_age`."),
        row("include_subdomains", Kind::Flag, Value("false"), "Names below too, whoever serves them."),
        row("preload", Kind::Flag, Value("false"), "Browsers may carry it in their lists, which nobody is taken from for months. Needs `include_subdomains` and a `max_age` of a year; said after the ramp alone."),
    ],
};

#[rustfmt::skip]
pub(super) static CORS: Section = Section {
    id: Id::Cors,
    title: "cors = { … }",
    doc: "Whose pages may use the site from another origin. Preflight questions are answered by Tidegate; what a backend says about this is replaced.",
    settings: &[
        row("origins", Kind::Texts(100), Required, "Origins like `\"https://app.example\"` or `\"https://*.app.example\"` (one more label); `\"*\"`: every one."),
        row("credentials", Kind::Flag, Value("false"), "With cookies and passwords; not with `\"*\"`."),
        row("methods", Kind::Texts(32), Value(r#"["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]"#), "Methods they may use."),
        row("headers", Kind::Texts(64), Value("[]"), "Fields they may send; `[]`: those they ask for."),
        row("expose", Kind::Texts(64), Value("[]"), "Fields of answers they may read beside the common ones."),
        row("max_age", Kind::Duration(0, DAY), Value(r#""10m""#), "How long browsers need not ask again."),
    ],
};
