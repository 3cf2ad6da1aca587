//! What the policies of a site would have refused if they were not in shadow.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::base::policy::PolicyKind;

/// Requests that each policy of a site would have refused, over all workers. Only what would have been refused is
/// counted here, so that requests that nothing speaks against never touch it.
#[derive(Debug, Default)]
pub struct WouldBlock([AtomicU64; PolicyKind::ALL.len()]);

impl WouldBlock {
    /// One more.
    pub fn count(&self, kind: PolicyKind) {
        if let Some(cell) = self.0.get(kind.index()) {
            cell.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The policies that would have refused something, and how many requests.
    pub fn all(&self) -> impl Iterator<Item = (PolicyKind, u64)> {
        let counts = PolicyKind::ALL.iter().zip(&self.0);
        let counts = counts.map(|(kind, cell)| (*kind, cell.load(Ordering::Relaxed)));
        counts.filter(|(_, count)| *count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_would_have_been_refused_is_told() {
        let counts = WouldBlock::default();
        assert_eq!(counts.all().count(), 0);
        counts.count(PolicyKind::Patch);
        counts.count(PolicyKind::Patch);
        counts.count(PolicyKind::Address);
        assert_eq!(counts.all().collect::<Vec<_>>(), [(PolicyKind::Address, 1), (PolicyKind::Patch, 2)]);
    }
}
