//! The settings of where requests go: one backend, health checks, how to speak to backends.

use super::Fallback::{Required, Value, Words};
use super::{DAY, HOUR, Id, Kind, Section, row};

#[rustfmt::skip]
pub(super) static BACKEND: Section = Section {
    id: Id::Backend,
    title: "{ address = \"…\", weight = … }",
    doc: "One backend, in the long form.",
    settings: &[
        row("address", Kind::Text(300), Required, "Host and port; `https://` before it: TLS. Or where addresses are found: `dns://api.internal:8080`, every address of a name; `srv://_http._tcp.api.internal`, its SRV records; `file:web.backends`, a file with one address a line."),
        row("tls", Kind::Flag, Value("false"), "Whether TLS is spoken to endpoints that are found."),
        row("weight", Kind::Count(1, 1_000), Value("1"), "Share of the requests."),
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
