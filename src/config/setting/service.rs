//! The settings of where requests go: one backend, health checks, how to speak to backends.

use super::Fallback::{Required, Value, Words};
use super::site::BACKENDS;
use super::{DAY, HOUR, Id, Kind, Section, row};

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
        row("address", Kind::Text(300), Required, "Host and port; `https://` before it: TLS. Or where addresses are found: `dns://api.internal:8080`, every address of a name; `srv://_http._tcp.api.internal`, its SRV records; `file:web.backends`, a file with one address a line; `docker://web`, containers; `deploy://shop`, what `tidegate deploy shop` put in place."),
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
    doc: "An active health check. `health = \"/up\"` asks for this path, `\"tcp\"` and `\"grpc\"` are these types with every default.",
    settings: &[
        row("type", Kind::Word(&["http", "tcp", "grpc"]), Value(r#""http""#), "What is asked: an HTTP request; a connection, with its TLS handshake where the backend speaks TLS; `grpc.health.v1.Health/Check`."),
        row("path", Kind::Text(2_048), Words("must be said for HTTP"), "Path asked for."),
        row("method", Kind::Word(&["GET", "HEAD"]), Value(r#""GET""#), "Method of the request."),
        row("host", Kind::Text(300), Words("the site's name"), "`Host` of the request."),
        row("status", Kind::Statuses(16, 100, 599), Value(r#"["200-399"]"#), "Statuses of a good answer."),
        row("body", Kind::Text(1_024), Words("anything"), "What the first 64 KiB of the body must contain; `\"~regex\"`: what must be found in them."),
        row("service", Kind::Text(256), Value(r#""""#), "gRPC: the service asked for; `\"\"` is the server as a whole."),
        row("address", Kind::Text(253), Words("the backend's"), "IP address or name that is asked in the backend's place."),
        row("port", Kind::Count(1, 65_535), Words("the backend's"), "Port that is asked in place of the backend's."),
        row("interval", Kind::Duration(10, DAY), Value(r#""5s""#), "Time between two probes of one backend, give or take 10 %."),
        row("fast_interval", Kind::Duration(10, DAY), Words("`interval`, at most `\"1s\"`"), "The same while a change of state is being counted."),
        row("timeout", Kind::Duration(10, HOUR), Value(r#""2s""#), "Deadline of one probe."),
        row("rise", Kind::Count(1, 100), Value("2"), "Successes in a row before a backend is up again. The first answer of a new one counts at once."),
        row("fall", Kind::Count(1, 100), Value("2"), "Failures in a row before a backend is down."),
    ],
};

#[rustfmt::skip]
pub(super) static EJECT: Section = Section {
    id: Id::Eject,
    title: "eject = { consecutive = …, … }",
    doc: "What takes a backend out that fails requests: an answer that did not come or broke off, and what `status` adds. A backend that cannot be connected to is out after two tries, whatever stands here.",
    settings: &[
        row("consecutive", Kind::CountOr("off", 1, 1_000), Value("5"), "Failures in a row."),
        row("error_rate", Kind::PercentOr("off", 1, 100), Value(r#""off""#), "Share of failures among the requests of a window."),
        row("latency", Kind::CountOr("off", 2, 1_000), Value(r#""off""#), "How many times the median of the other backends the mean time to the first byte of an answer is, over a window; at least 20 ms above it."),
        row("status", Kind::Statuses(16, 400, 599), Value("[]"), "Statuses that count as failures."),
        row("window", Kind::Duration(1_000, HOUR), Value(r#""10s""#), "Over how long `error_rate` and `latency` are taken."),
        row("min_requests", Kind::Count(1, 1_000_000), Value("20"), "Requests to a backend in a window below which `error_rate` and `latency` say nothing."),
        row("time", Kind::Duration(100, DAY), Value(r#""30s""#), "How long a backend is out the first time; the second time it is twice that, and so on. Each such time without another takes one off."),
        row("time_max", Kind::Duration(100, DAY), Value(r#""5m""#), "The longest time a backend is out."),
        row("max_share", Kind::Percent(1, 100), Value(r#""50%""#), "How many of a service's backends may be out at once by this."),
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
