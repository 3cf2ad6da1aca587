//! How much goes to the backends of a service: retries, capacity, breaker.

use std::time::Duration;

/// `retry = { … }`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    /// Tries for one request, the first included; 1 is no retry. 3.
    pub tries: u32,
    /// Retries for each hundred requests. 20.
    pub budget: u32,
    /// Retries in a second besides. 10.
    pub floor: u32,
    /// How long one try may wait for the head of an answer while another backend could be asked.
    pub per_try: Option<Duration>,
    /// How long all tries may take together.
    pub total: Option<Duration>,
    /// After what a request is tried again.
    pub on: Vec<Cause>,
}

impl Default for Retry {
    fn default() -> Retry {
        let on = vec![Cause::Connect, Cause::Reset, Cause::Timeout];
        Retry { tries: 3, budget: 20, floor: 10, per_try: None, total: None, on }
    }
}

impl Retry {
    /// `retry = "off"`
    pub fn off() -> Retry {
        Retry { tries: 1, budget: 0, floor: 0, per_try: None, total: None, on: Vec::new() }
    }
}

/// Why a try failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// There was no connection.
    Connect,
    /// The connection, or the stream, ended before an answer began.
    Reset,
    /// The head of an answer did not come within `per_try`.
    Timeout,
    /// The backend answered with this status: 502, 503 or 504.
    Status(u16),
}

impl Cause {
    /// Every cause and the word for it.
    pub const ALL: [(&'static str, Cause); 6] = [
        ("connect", Cause::Connect),
        ("reset", Cause::Reset),
        ("timeout", Cause::Timeout),
        ("502", Cause::Status(502)),
        ("503", Cause::Status(503)),
        ("504", Cause::Status(504)),
    ];
}

/// `capacity = { … }`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capacity {
    /// Requests in flight at each backend.
    pub per_endpoint: Option<u32>,
    /// Requests in flight at all backends of the service together.
    pub service: Option<u32>,
    /// Requests that wait at most. 1000.
    pub queue: u32,
    /// How long one waits at most. 5 s.
    pub queue_time: Duration,
    /// The bounds of a limit that follows the latency, if there is one.
    pub adaptive: Option<Adaptive>,
}

/// The bounds of an adaptive limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Adaptive {
    /// It never falls below. 4.
    pub min: u32,
    /// It never rises above. 1000.
    pub max: u32,
}

/// `breaker = { … }`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Breaker {
    /// Failed requests of a hundred at which it opens. 50.
    pub failures: u32,
    /// Requests in the window below which it does not open. 20.
    pub requests: u32,
    /// The time looked back upon. 10 s.
    pub window: Duration,
    /// How long it stays open before a trial. 5 s.
    pub open: Duration,
}
