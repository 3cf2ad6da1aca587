//! Bandwidth: bytes in a second.

use std::sync::Arc;

use super::{LimitKey, Mode};

/// `bandwidth = { … }`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bandwidth {
    /// Limits of answers.
    pub down: Vec<Flow>,
    /// Limits of uploads.
    pub up: Vec<Flow>,
    /// Whether anybody waits.
    pub mode: Mode,
}

/// A limit of one direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// What its buckets are known by: `2MiB/s by client-ip`.
    pub text: Arc<str>,
    /// Bytes in a second.
    pub rate: u64,
    /// What is counted on its own.
    pub keys: Vec<LimitKey>,
}
