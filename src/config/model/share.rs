//! What a tenant may take of the node, and what is given up when it is too much.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::Mode;

/// `[server.shares]` and `[tenant."…"]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shares {
    /// Whether anything is refused, or made to wait.
    pub mode: Mode,
    /// How much of everything is lent to whoever comes first, in percent. 75.
    pub lend: u32,
    /// How long a request of a tenant over its share may wait for the processor. 1 s.
    pub wait: Duration,
    /// Requests in flight on the node; `None`: as many as client connections.
    pub in_flight: Option<u32>,
    /// Who has how much.
    pub weights: Weights,
}

/// Weights of tenants; 1 for those that are not named. In order, because what it prints as tells whether it changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Weights(pub Arc<BTreeMap<Arc<str>, u32>>);

impl Weights {
    /// The weight of a tenant.
    pub fn of(&self, tenant: &str) -> u32 {
        self.0.get(tenant).copied().unwrap_or(1)
    }
}

/// `[server.overload]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overload {
    /// Whether anything is refused.
    pub mode: Mode,
    /// Memory of the process; `None`: nine tenths of what there is.
    pub memory: Option<u64>,
    /// How late a worker may be. 200 ms.
    pub lag: Duration,
    /// How long it must be calm before a stage is left. 5 s.
    pub hold: Duration,
}

/// `priority` of a site: in which order requests are given up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// First.
    Low,
    /// After those.
    #[default]
    Normal,
    /// Never.
    High,
}

impl Priority {
    /// The word in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Priority::Low => "low",
            Priority::Normal => "normal",
            Priority::High => "high",
        }
    }
}
