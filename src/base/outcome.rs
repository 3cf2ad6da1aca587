//! THE table of ways a request can end.
//!
//! Every request ends in exactly one [`Outcome`]. The table is the single source for the status we answer with, the
//! sentence an operator reads, whose fault it was and whether trying again makes sense. Metrics, the access log,
//! `Proxy-Status` (RFC 9209) and the error pages all read it. Codes are stable: scripts and alerts depend on them.

/// Whose fault an ending was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// Nobody's: the request was served.
    None,
    /// The client sent something wrong, too much, or went away.
    Client,
    /// Tidegate itself or its configuration.
    Tidegate,
    /// The backend.
    Upstream,
}

impl Blame {
    /// The word used in the access log and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Blame::None => "none",
            Blame::Client => "client",
            Blame::Tidegate => "tidegate",
            Blame::Upstream => "upstream",
        }
    }
}

/// One row of the table.
#[derive(Debug)]
pub struct Row {
    /// Stable code, upper case, unique.
    pub code: &'static str,
    /// HTTP status we answer with; 0 where the answer is not ours to choose (it was the backend's, or nobody is
    /// left to read one).
    pub status: u16,
    /// Whose fault.
    pub blame: Blame,
    /// Whether the same request may succeed when sent again without a change.
    pub retryable: bool,
    /// RFC 9209 section 2.3 error type for `Proxy-Status`; empty where none fits.
    pub proxy_status: &'static str,
    /// A sentence for a person.
    pub sentence: &'static str,
}

macro_rules! outcomes {
    ($($name:ident = $code:literal, $status:literal, $blame:ident, $retry:literal, $ps:literal, $sentence:literal;)+) => {
        /// The way a request ended. See [`Outcome::row`] for what each means.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Outcome { $(#[doc = $sentence] $name,)+ }

        impl Outcome {
            /// Every outcome, in the order of the table.
            pub const ALL: &'static [Outcome] = &[$(Outcome::$name,)+];

            /// The row of the table for this outcome.
            pub const fn row(self) -> &'static Row {
                match self {
                    $(Outcome::$name => &Row {
                        code: $code, status: $status, blame: Blame::$blame, retryable: $retry,
                        proxy_status: $ps, sentence: $sentence,
                    },)+
                }
            }
        }
    };
}

outcomes! {
    // name = code, status, blame, retryable, RFC 9209 error type, sentence
    Served = "OK", 0, None, false, "", "The backend's answer was delivered.";
    Redirected = "REDIRECT", 0, None, false, "", "A redirect from the configuration was sent.";
    Responded = "FIXED", 0, None, false, "", "A fixed response from the configuration was sent.";
    Tunnelled = "TUNNEL", 0, None, false, "", "The connection was upgraded and later closed.";
    HttpsRedirect = "HTTPS", 308, None, false, "", "The client was sent to HTTPS.";

    BadRequest = "BAD-REQUEST", 400, Client, false, "http_request_error", "The request was malformed or ambiguous.";
    BadHost = "BAD-HOST", 400, Client, false, "http_request_error", "The Host header was missing, repeated or invalid.";
    BadPath = "BAD-PATH", 400, Client, false, "http_request_error", "The path could not be read in only one way.";
    BadFraming = "BAD-FRAMING", 400, Client, false, "http_request_error", "The length of the request body was ambiguous.";
    PlainOnTls = "PLAIN-ON-TLS", 400, Client, false, "http_request_error", "Plain HTTP was sent to the HTTPS port.";
    MethodRefused = "METHOD-REFUSED", 405, Client, false, "http_request_denied", "CONNECT and TRACE are not served here.";
    TunnelRefused = "TUNNEL-REFUSED", 501, Client, false, "http_request_denied", "No tunnel for this protocol is opened here.";
    HandshakeTimeout = "HANDSHAKE-TIMEOUT", 0, Client, true, "", "The TLS handshake did not finish in time.";
    HeadTimeout = "HEAD-TIMEOUT", 408, Client, true, "connection_timeout", "The request head did not arrive in time.";
    BodyTimeout = "BODY-TIMEOUT", 408, Client, true, "connection_timeout", "The request body stopped arriving.";
    BodyTooLarge = "BODY-TOO-LARGE", 413, Client, false, "http_request_error", "The request body was larger than this site allows.";
    ExpectationFailed = "EXPECTATION-FAILED", 417, Client, false, "http_request_error", "The request expected something other than 100-continue.";
    UriTooLong = "URI-TOO-LONG", 414, Client, false, "http_request_error", "The request target was longer than allowed.";
    HeadTooLarge = "HEAD-TOO-LARGE", 431, Client, false, "http_request_error", "The request head was larger than allowed or had too many fields.";
    UnknownHost = "UNKNOWN-HOST", 404, Client, false, "destination_not_found", "No site has this name.";
    NoRoute = "NO-ROUTE", 404, Client, false, "destination_not_found", "The site has no route for this request.";
    Misdirected = "MISDIRECTED", 421, Client, true, "destination_not_found", "The connection was opened for another site.";
    ClientCertMissing = "CLIENT-CERT-MISSING", 403, Client, false, "http_request_denied", "This site asks for a client certificate, and none was shown.";
    ClientCertUntrusted = "CLIENT-CERT-UNTRUSTED", 403, Client, false, "http_request_denied", "The client certificate was signed by nobody this site trusts.";
    ClientCertRevoked = "CLIENT-CERT-REVOKED", 403, Client, false, "http_request_denied", "The client certificate was revoked.";
    ClientCertExpired = "CLIENT-CERT-EXPIRED", 403, Client, false, "http_request_denied", "The client certificate has expired or is not valid yet.";
    ClientCertInvalid = "CLIENT-CERT-INVALID", 403, Client, false, "http_request_denied", "The client certificate is damaged or meant for another purpose.";
    AddressDenied = "ADDRESS-DENIED", 403, Client, false, "http_request_denied", "Clients with this address are not let in here.";
    CountryDenied = "COUNTRY-DENIED", 403, Client, false, "http_request_denied", "Clients from this country are not let in here.";
    AuthRequired = "AUTH-REQUIRED", 401, Client, false, "http_request_denied", "This page asks who you are, and it was not said.";
    AuthWrong = "AUTH-WRONG", 401, Client, false, "http_request_denied", "What was said about who you are is wrong, or no longer good.";
    AuthDenied = "AUTH-DENIED", 403, Client, false, "http_request_denied", "This page is not for you.";
    Patched = "PATCHED", 403, Client, false, "http_request_denied", "The request was recognised as an exploit by a virtual patch.";
    RateLimited = "RATE-LIMITED", 429, Client, true, "http_request_denied", "This client sent more requests than the limit allows.";
    ClientBusy = "CLIENT-BUSY", 429, Client, true, "connection_limit_reached", "This client has as many requests in flight as it may.";
    Banned = "BANNED", 403, Client, true, "http_request_denied", "This client is banned for a time.";
    ClientGone = "CLIENT-GONE", 499, Client, false, "", "The client went away before the answer was complete.";
    ClientStalled = "CLIENT-STALLED", 499, Client, false, "connection_write_timeout", "The client stopped reading the answer.";
    ClientFlood = "CLIENT-FLOOD", 499, Client, false, "", "The client's HTTP/2 connection was closed because of a flood of frames.";

    NoEndpoint = "NO-ENDPOINT", 503, Upstream, true, "destination_unavailable", "No backend of this service is available.";
    ConnectRefused = "CONNECT-REFUSED", 502, Upstream, true, "connection_refused", "The backend refused the connection.";
    ConnectFailed = "CONNECT-FAILED", 502, Upstream, true, "destination_ip_unroutable", "The connection to the backend failed.";
    ConnectTimeout = "CONNECT-TIMEOUT", 504, Upstream, true, "connection_timeout", "The backend did not accept the connection in time.";
    UpstreamName = "UPSTREAM-NAME", 502, Upstream, true, "dns_error", "The backend's name could not be resolved.";
    UpstreamTls = "UPSTREAM-TLS", 502, Upstream, false, "tls_certificate_error", "The TLS handshake with the backend failed.";
    UpstreamNotH2 = "UPSTREAM-PROTOCOL", 502, Upstream, false, "http_protocol_error", "The backend does not speak HTTP/2.";
    UpstreamBusy = "UPSTREAM-BUSY", 503, Upstream, true, "connection_limit_reached", "The backend had no free stream in time.";
    UpstreamReset = "UPSTREAM-RESET", 502, Upstream, true, "connection_terminated", "The backend reset the request before it answered.";
    UpstreamNoTunnel = "UPSTREAM-NO-TUNNEL", 502, Upstream, false, "http_request_denied", "The backend opens no tunnels over HTTP/2.";
    UpstreamClosed = "UPSTREAM-CLOSED", 502, Upstream, true, "connection_terminated", "The backend closed the connection before it answered.";
    UpstreamInvalid = "UPSTREAM-INVALID", 502, Upstream, false, "http_protocol_error", "The backend's answer was not valid HTTP.";
    UpstreamTimeout = "UPSTREAM-TIMEOUT", 504, Upstream, true, "http_response_timeout", "The backend did not begin to answer in time.";
    TotalTimeout = "TOTAL-TIMEOUT", 504, Upstream, true, "http_response_timeout", "No backend began to answer before the time for all tries was over.";
    QueueFull = "QUEUE-FULL", 503, Upstream, true, "connection_limit_reached", "The backends have as many requests as they may, and as many wait.";
    QueueTimeout = "QUEUE-TIMEOUT", 503, Upstream, true, "connection_limit_reached", "The backends had no room for the request in time.";
    CircuitOpen = "CIRCUIT-OPEN", 503, Upstream, true, "destination_unavailable", "The service failed too often lately and is left alone for a moment.";
    UpstreamTruncated = "UPSTREAM-TRUNCATED", 502, Upstream, false, "http_response_incomplete", "The backend's answer ended before it was complete.";
    UpstreamStalled = "UPSTREAM-STALLED", 504, Upstream, false, "http_response_timeout", "The backend's answer stopped arriving.";

    ClientCertUnchecked = "CLIENT-CERT-UNCHECKED", 403, Tidegate, false, "proxy_configuration_error", "No revocation list in force says whether the client certificate was revoked.";
    AuthRedirected = "AUTH-REDIRECT", 302, None, false, "", "The client was sent to where it can say who it is.";
    AuthUnavailable = "AUTH-UNAVAILABLE", 503, Tidegate, true, "destination_unavailable", "Nobody can say just now who may come in.";
    AuthBusy = "AUTH-BUSY", 503, Tidegate, true, "", "Too many passwords wait to be checked.";
    NoDescriptor = "NO-DESCRIPTOR", 503, Tidegate, true, "connection_limit_reached", "Tidegate has no file descriptor left for a connection to the backend.";
    OverShare = "OVER-SHARE", 503, Tidegate, true, "http_request_denied", "The site has more than its share of a node that has too much to do.";
    Overloaded = "OVERLOADED", 503, Tidegate, true, "http_request_denied", "The node has too much to do, and gives up some requests to be in time for others.";
    Loop = "LOOP", 502, Tidegate, false, "proxy_loop_detected", "The request goes round in a circle: a backend leads back to Tidegate.";
    SiteUnavailable = "SITE-UNAVAILABLE", 503, Tidegate, true, "proxy_configuration_error", "The site is configured with an error and has no earlier version.";
    Internal = "INTERNAL", 500, Tidegate, false, "proxy_internal_error", "Tidegate failed in a way it should not have.";
}

impl Outcome {
    /// The stable code.
    pub const fn code(self) -> &'static str {
        self.row().code
    }

    /// Position in [`Outcome::ALL`]; an index for arrays of counters.
    pub const fn index(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_statuses_legal() {
        let mut codes: Vec<_> = Outcome::ALL.iter().map(|o| o.code()).collect();
        codes.sort_unstable();
        let before = codes.len();
        codes.dedup();
        assert_eq!(before, codes.len(), "an outcome code stands twice");
        for (i, outcome) in Outcome::ALL.iter().enumerate() {
            let row = outcome.row();
            assert_eq!(outcome.index(), i);
            assert!(row.status == 0 || (300..600).contains(&row.status), "{}", row.code);
            assert!(row.sentence.ends_with('.'), "{}", row.code);
        }
    }
}
