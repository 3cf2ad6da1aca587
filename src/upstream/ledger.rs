//! What is known about the traffic of one service, over all workers and reloads: what it may spend on retries, whether
//! its breaker is open, who is in flight and who waits.

use std::sync::Arc;

use super::breaker::Breaker;
use super::capacity::Gate;
use super::retry::Budget;

/// The ledger of a service.
#[derive(Debug, Default)]
pub struct Ledger {
    /// For retries.
    pub budget: Budget,
    /// Whether requests are refused.
    pub breaker: Breaker,
    /// Who is in flight and who waits.
    pub gate: Arc<Gate>,
}
