//! Whether a backend is well: what it is asked (`health`), and what takes it out when it fails requests (`eject`).

use std::fmt;
use std::time::Duration;

/// `health = "/up"`, `health = "tcp"` or the long form. Two backends with equal values, addresses and ways to be reached
/// are asked once.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Health {
    /// What is asked.
    pub check: Check,
    /// Host that is asked instead of the backend's.
    pub address: Option<String>,
    /// Port that is asked instead of the backend's.
    pub port: Option<u16>,
    /// Time between probes of one backend. 5 s.
    pub interval: Duration,
    /// The same while nothing is known yet, or a change of state is being counted. `interval`, at most 1 s.
    pub fast_interval: Duration,
    /// Deadline of one probe. 2 s.
    pub timeout: Duration,
    /// Successes in a row before a backend is up again. 2.
    pub rise: u32,
    /// Failures in a row before it is down. 2.
    pub fall: u32,
}

impl Health {
    /// Whether it can be connected to, with every default.
    pub fn connecting() -> Health {
        let (interval, second) = (Duration::from_secs(5), Duration::from_secs(1));
        Health {
            check: Check::Tcp,
            address: None,
            port: None,
            interval,
            fast_interval: second,
            timeout: 2 * second,
            rise: 2,
            fall: 2,
        }
    }
}

/// What a backend is asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Check {
    /// An HTTP request.
    Http(HttpCheck),
    /// A connection, with its TLS handshake where the backend speaks TLS.
    Tcp,
    /// `grpc.health.v1.Health/Check`.
    Grpc {
        /// The service asked for; empty is the server as a whole.
        service: String,
    },
}

/// An HTTP request and the answer expected.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HttpCheck {
    /// `HEAD` instead of `GET`.
    pub head: bool,
    /// Path and query.
    pub path: String,
    /// `Host`; default: the site's name.
    pub host: Option<String>,
    /// Statuses of an answer that is well. 200 to 399.
    pub status: Statuses,
    /// What the beginning of the body must say.
    pub body: Option<BodyCheck>,
}

/// What a body must say.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum BodyCheck {
    /// It contains this.
    Contains(String),
    /// This regular expression, known to compile, finds something in it.
    Matches(String),
}

/// A set of statuses, as ranges with both ends included.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Statuses(pub Vec<(u16, u16)>);

impl Statuses {
    /// Whether a status is one of them.
    pub fn contains(&self, status: u16) -> bool {
        self.0.iter().any(|(low, high)| (*low..=*high).contains(&status))
    }
}

impl fmt::Display for Statuses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (low, high)) in self.0.iter().enumerate() {
            let comma = if at > 0 { ", " } else { "" };
            match low == high {
                true => write!(f, "{comma}{low}")?,
                false => write!(f, "{comma}{low}-{high}")?,
            }
        }
        Ok(())
    }
}

/// `eject = { … }`: requests as judges of a backend. The default value is the default of the settings table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Eject {
    /// Failures in a row after which a backend is taken out; `None`: they are not counted.
    pub consecutive: Option<u32>,
    /// Failures among the requests of a window, in percent; `None`: they are not counted.
    pub error_rate: Option<u8>,
    /// How many times slower than the median of the others; `None`: nobody compares.
    pub latency: Option<u32>,
    /// Statuses that count as failures, beside answers that never came whole.
    pub status: Statuses,
    /// Over how long `error_rate` and `latency` are taken.
    pub window: Duration,
    /// Requests in a window below which nothing is said about it.
    pub min_requests: u32,
    /// How long a backend is taken out the first time; the second time twice as long, and so on.
    pub time: Duration,
    /// The longest it is taken out.
    pub time_max: Duration,
    /// How much of a service may be taken out at once, in percent of its backends.
    pub max_share: u8,
}

impl Default for Eject {
    fn default() -> Eject {
        Eject {
            consecutive: Some(5),
            error_rate: None,
            latency: None,
            status: Statuses::default(),
            window: Duration::from_secs(10),
            min_requests: 20,
            time: Duration::from_secs(30),
            time_max: Duration::from_secs(300),
            max_share: 50,
        }
    }
}

/// Below this share of backends in good standing, in percent, all are used.
pub const PANIC_DEFAULT: u8 = 50;
