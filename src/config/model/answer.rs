//! What is said to browsers beside a backend's own words.

use std::sync::Arc;
use std::time::Duration;

/// `security_headers`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecurityHeaders {
    /// Which fields.
    pub preset: SecurityPreset,
    /// Also where the backend says something else.
    pub replace: bool,
}

/// Presets of fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecurityPreset {
    /// What breaks nothing.
    Basic,
    /// What an application must be made for.
    Strict,
}

/// `hsts`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hsts {
    /// For how long in the end; zero: browsers forget it.
    pub max_age: Duration,
    /// Names below too.
    pub include_subdomains: bool,
    /// Browsers may carry it in their lists.
    pub preload: bool,
    /// Step by step.
    pub ramp: bool,
}

/// `cors`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cors {
    /// Whose pages may read answers; at least one.
    pub origins: Vec<CorsOrigin>,
    /// With cookies.
    pub credentials: bool,
    /// Methods they may use.
    pub methods: Vec<String>,
    /// Fields they may send, lower case; empty: those they ask for.
    pub headers: Vec<String>,
    /// Fields they may read, lower case.
    pub expose: Vec<String>,
    /// How long an answer to a preflight question holds.
    pub max_age: Duration,
}

/// Whose pages may read answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CorsOrigin {
    /// `*`
    Any,
    /// One, as browsers write it.
    Exact(Arc<str>),
    /// `https://*.shop.example`: exactly one more label.
    Below {
        /// `https://`
        scheme: Arc<str>,
        /// `.shop.example`
        rest: Arc<str>,
    },
}
