//! Words about the access log that both the configuration and the telemetry speak.

use std::path::PathBuf;

/// Where access records go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessTarget {
    /// Nowhere.
    Off,
    /// Standard output.
    Stdout,
    /// A file, absolute; appended to, reopened on SIGHUP.
    File(PathBuf),
}

/// Shape of an access record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessFormat {
    /// One JSON object a line.
    Json,
    /// The Apache "combined" line.
    Combined,
}

/// How much access records say about people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Privacy {
    /// Addresses cut to /24 and /48, no query values, no cookies, no user agent detail.
    Strict,
    /// Full addresses, queries, referrer and user agent.
    Full,
}
