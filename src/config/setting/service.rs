//! The settings of where requests go: one backend, health checks, how to speak to backends.

use super::Fallback::{Required, Value, Words};
use super::{BACKENDS, DAY, HOUR, Id, Kind, Section, row};

/// Ways to choose a backend.
pub const BALANCE_WORDS: &[&str] = &["p2c", "round_robin", "least_request", "hash", "sticky"];

/// What `balance` may be in the short form.
pub(super) const BALANCE_SHORT: &str = "\"p2c\", \"round_robin\", \"least_request\", \"hash\", \"sticky\"";

/// Parts of one `split`.
pub(super) const BRANCHES_MAX: usize = 16;

#[rustfmt::skip]
pub(super) static BACKEND: Section = Section {
    id: Id::Backend,
    title: "{ address = \"…\", weight = … }",
    doc: "One backend, in the long form.",
    settings: &[
        row("address", Kind::Text(300), Required, "Host and port; `https://` before it: TLS. Or where addresses are found: `dns://api.internal:8080`, every address of a name; `srv://_http._tcp.api.internal`, its SRV records; `file:web.backends`, a file with one address a line."),
        row("tls", Kind::Flag, Value("false"), "Whether TLS is spoken to endpoints that are found."),
        row("weight", Kind::Count(0, 1_000), Value("1"), "Share of the requests; 0: it drains, and gets only requests whose `sticky` cookie names it."),
        row("backup", Kind::Flag, Value("false"), "It gets requests only while no other backend is up."),
    ],
};

#[rustfmt::skip]
pub(super) static BALANCE: Section = Section {
    id: Id::Balance,
    title: "balance = { by = \"…\", … }",
    doc: "How a backend is chosen, in the long form.",
    settings: &[
        row("by", Kind::Word(BALANCE_WORDS), Required, "`\"p2c\"`: the less loaded of two random ones; `\"round_robin\"`: in turn; `\"least_request\"`: the one with the fewest requests in flight; `\"hash\"`: the same one for the same key; `\"sticky\"`: the same one for the same client, by a cookie."),
        row("key", Kind::Text(256), Value(r#""client-ip""#), "hash: what is the same: `\"client-ip\"` (IPv6: the /64), `\"path\"`, `\"header:X-User\"`, `\"cookie:session\"`. Requests without it are balanced by p2c."),
        row("load", Kind::CountOr("off", 101, 1_000), Value("125"), "hash: percent of the mean load that a backend may carry before its keys go to the next one; `\"off\"`: any."),
        row("cookie", Kind::Text(128), Value(r#""tidegate""#), "sticky: name of the cookie. Backends never see it."),
        row("ttl", Kind::Duration(1_000, 400 * DAY), Words("until the browser is closed"), "sticky: how long a client keeps the cookie, from when it was first sent."),
        row("same_site", Kind::Word(&["lax", "strict", "none"]), Value(r#""lax""#), "sticky: with which requests from other sites browsers send the cookie; `\"none\"` (with all) works over HTTPS only."),
    ],
};

#[rustfmt::skip]
pub(super) static SPLIT: Section = Section {
    id: Id::Split,
    title: "{ name = \"…\", percent = …, backends = […] }",
    doc: "One part of `split`: backends that get a share of the requests. Everything else is as the site or route says.",
    settings: &[
        row("name", Kind::Text(32), Required, "Stands behind the route's name in logs and metrics: `/#canary`."),
        row("percent", Kind::Count(0, 100), Value("0"), "Share of the requests."),
        row("header", Kind::Text(256), Words("none"), "Field by which a client chooses: `always` goes here, `never` does not."),
        row("cookie", Kind::Text(128), Words("none"), "Cookie by which a client chooses, in the same way; the field goes first."),
        row("backends", BACKENDS, Required, "Where these requests go."),
    ],
};

#[rustfmt::skip]
pub(super) static HEALTH: Section = Section {
    id: Id::Health,
    title: "health = { path = \"…\", … }",
    doc: "An active health check: GET, and any status from 200 to 399 is a success.",
    settings: &[
        row("path", Kind::Text(2_048), Required, "Path asked for."),
        row("interval", Kind::Duration(10, DAY), Value(r#""5s""#), "Time between two probes of one backend."),
        row("timeout", Kind::Duration(10, HOUR), Value(r#""2s""#), "Deadline of one probe."),
        row("rise", Kind::Count(1, 100), Value("2"), "Successes in a row before a backend is up again."),
        row("fall", Kind::Count(1, 100), Value("2"), "Failures in a row before a backend is down."),
    ],
};

#[rustfmt::skip]
pub(super) static UPSTREAM: Section = Section {
    id: Id::Upstream,
    title: "upstream = { … }",
    doc: "How Tidegate speaks to the backends.",
    settings: &[
        row("ca_file", Kind::Path, Words("the system's roots"), "PEM file of the authority that signed the backends' certificates."),
        row("internal_ca", Kind::Word(&["off", "trust", "mutual"]), Value(r#""off""#), "`\"trust\"`: the built-in authority signed the backends' certificates (`tidegate certs issue`); `\"mutual\"`: it also signs the one shown to backends that ask."),
        row("server_name", Kind::Text(253), Words("the backend's host"), "Name expected in the backend's certificate."),
        row("cert", Kind::Path, Words("none"), "PEM file of the certificate shown to backends that ask for one, then its intermediates."),
        row("key", Kind::Path, Words("none"), "PEM file of its private key."),
        row("http", Kind::Word(&["h1", "h2", "auto"]), Value(r#""h1""#), "Protocol: HTTP/1.1; or HTTP/2 (by ALPN to `https://` backends, with prior knowledge to others), which gRPC needs; or `\"auto\"`: each `https://` backend chooses by ALPN, others get HTTP/1.1."),
        row("proxy_protocol", Kind::Word(&["off", "v1", "v2"]), Value(r#""off""#), "Begin each connection with a PROXY protocol header that names the client; it then carries requests of this client only."),
    ],
};
