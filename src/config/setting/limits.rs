//! The settings of sizes and rates: what requests, answers and connections may take of the data plane.

use super::Fallback::Value;
use super::{Id, KIB, Kind, MIB, SECOND, Section, row};

#[rustfmt::skip]
pub(super) static LIMITS: Section = Section {
    id: Id::Limits,
    title: "[server.limits]",
    doc: "Sizes of the data plane. Whatever is larger is refused with the status named.",
    settings: &[
        row("head", Kind::Size(8 * KIB, MIB), Value(r#""32KiB""#), "Bytes of a request head (431)."),
        row("fields", Kind::Count(8, 10_000), Value("100"), "Header fields of a request (431)."),
        row("uri", Kind::Size(256, 256 * KIB), Value(r#""8KiB""#), "Bytes of a request target (414)."),
        row("h2_streams", Kind::Count(1, 10_000), Value("128"), "Concurrent streams of an HTTP/2 connection."),
        row("h2_resets", Kind::Count(1, 100_000), Value("1000"), "Resets pending on an HTTP/2 connection before it is closed."),
        row("h2_reset_rate", Kind::Count(1, 1_000_000), Value("100"), "Streams an HTTP/2 client may reset in a second, in the long run, and `h2_streams` more at once; those that were open for more than a second do not count. Beyond, its connection is closed."),
        row("flood_delay", Kind::Duration(0, 30 * SECOND), Value(r#""2s""#), "The longest that new connections of an address (IPv6: /64) wait before their TLS handshake because others of it were closed for floods: 250 ms longer for each, forgotten within five times as long; `\"0s\"`: no wait."),
        row("requests_per_client", Kind::Count(0, 1_000_000), Value("1024"), "Requests in flight of one client address (IPv6: per /64), over all its connections (429); 0 = no cap. Trusted proxies have none."),
        row("requests_per_client_mode", Kind::Word(&["enforce", "shadow"]), Value(r#""enforce""#), "`shadow`: only counts and marks what the cap would have refused."),
        row("body_rate", Kind::Size(0, MIB), Value(r#""100B""#), "Bytes of a request body that must arrive in a second, on average over the time it is waited for, once that is as long as `timeouts.body` (408); `\"0B\"`: any. gRPC to backends over HTTP/2 is exempt."),
        row("write_rate", Kind::Size(0, MIB), Value(r#""100B""#), "Bytes of an answer that a client must take in a second, on average over the time it is waited for, once that is as long as `timeouts.write`; `\"0B\"`: any."),
        row("handshakes", Kind::Count(16, 1_000_000), Value("1024"), "TLS handshakes of one worker that wait for their client (the oldest gives way), and again as many that wait for their turn (the newest is refused)."),
        row("upstream_idle", Kind::Count(0, 10_000), Value("256"), "Unused pooled connections kept per endpoint and worker."),
        row("upstream_h2_connections", Kind::Count(1, 1_000), Value("16"), "HTTP/2 connections per endpoint and worker; with all streams taken, a request waits until `connect_timeout` has passed (503)."),
        row("upstream_head", Kind::Size(8 * KIB, MIB), Value(r#""64KiB""#), "Bytes of a backend's response head (502)."),
    ],
};
