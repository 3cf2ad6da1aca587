//! What `[server]`, `[log]` and their tables mean: deadlines, sizes, the access log.

use std::time::Duration;

use crate::base::record::{AccessFormat, AccessTarget, Privacy};
use crate::config::model::Mode;

/// `client_ip_doctor`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ClientIpDoctor {
    /// It warns, and limits by address refuse nobody at a proxy that is not trusted.
    #[default]
    On,
    /// It only warns.
    Warn,
    /// It does not look.
    Off,
}

/// `[server.timeouts]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// `handshake`: from accept to the end of the TLS handshake. 10 s.
    pub handshake: Duration,
    /// `head`: from the first byte of a request to the end of its head. 10 s.
    pub head: Duration,
    /// `idle`: a keep-alive connection without a request. 75 s.
    pub idle: Duration,
    /// `body`: the request body made no progress. 30 s.
    pub body: Duration,
    /// `write`: the client accepted no byte of the answer. 30 s.
    pub write: Duration,
    /// `tunnel`: an upgraded connection without a byte either way. 1 h.
    pub tunnel: Duration,
    /// `connect`: connecting to a backend. 2 s. A site or route may set its own (`connect_timeout`).
    pub connect: Duration,
    /// `first_byte`: from the request sent to the first byte of the backend's answer. 60 s. Own: `timeout`.
    pub first_byte: Duration,
    /// `upstream_idle`: an unused pooled connection to a backend. 60 s.
    pub upstream_idle: Duration,
    /// `age`: the longest life of a client connection; the request that is begun after it is its last. 0 = no end. 1 h.
    pub age: Duration,
    /// `upstream_ping`: silence on an HTTP/2 connection to a backend before a ping. 5 min 30 s.
    pub upstream_ping: Duration,
}

/// `[server.limits]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// `head`: bytes of a request head. 32 KiB.
    pub head: u64,
    /// `fields`: header fields of a request. 100.
    pub fields: usize,
    /// `uri`: bytes of a request target. 8 KiB.
    pub uri: usize,
    /// `h2_streams`: concurrent streams of an HTTP/2 connection. 128.
    pub h2_streams: u32,
    /// `h2_resets`: resets pending on an HTTP/2 connection before it is closed. 1,000.
    pub h2_resets: usize,
    /// `h2_reset_rate`: young streams a client may reset in a second, in the long run; `h2_streams` more at once. 100.
    pub h2_reset_rate: u32,
    /// `flood_delay`: the longest that new connections of a client wait whose connections ended in floods. 0 = no wait. 2 s.
    pub flood_delay: Duration,
    /// `requests_per_client`: requests in flight of one client address, over all its connections. 0 = no cap. 1,024: what as
    /// many connections over HTTP/1 have.
    pub requests_per_client: u32,
    /// `requests_per_client_mode`: whether it refuses. It does.
    pub requests_per_client_mode: Mode,
    /// `body_rate`: bytes of a request body that must arrive in a second while it is waited for. 0 = any. 100.
    pub body_rate: u64,
    /// `write_rate`: bytes of an answer that a client must take in a second while it is waited for. 0 = any. 100.
    pub write_rate: u64,
    /// `handshakes`: TLS handshakes of a worker that wait for their client, and again as many that wait for their turn.
    /// 1,024: what a worker gets through in less than half a second.
    pub handshakes: usize,
    /// `upstream_idle`: unused pooled connections kept per endpoint and worker. 256: as many as a few HTTP/2 clients
    /// can have in flight, or each burst would connect anew.
    pub upstream_idle: usize,
    /// `upstream_h2_connections`: HTTP/2 connections per endpoint and worker. 16.
    pub upstream_h2_connections: usize,
    /// `upstream_head`: bytes of a backend's response head. 64 KiB.
    pub upstream_head: usize,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// Where access records go.
    pub access: AccessTarget,
    /// Their shape.
    pub format: AccessFormat,
    /// How much they say about people.
    pub privacy: Privacy,
}
