//! File descriptors of the data plane, counted before they are taken: so that clients and backends together never use
//! up what the control plane, files and name resolution need.
//!
//! The limit of open files is not asked again while the process runs; a limit that is lowered from outside shows as a
//! failed accept, which rests and goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Descriptors kept for everything that is no connection of a client or to a backend, beyond those open at the start:
/// admin and metrics connections, files read by a reload, name resolution, connections to authorities.
const RESERVE: u64 = 256;

/// Descriptors that a worker's runtime takes when it starts.
const PER_WORKER: u64 = 8;

/// How many descriptors connections may take. Cheap to clone; all clones count together.
#[derive(Debug, Clone)]
pub struct Budget {
    counts: Arc<Counts>,
}

#[derive(Debug)]
struct Counts {
    max: u32,
    used: AtomicU32,
}

/// Leave for one descriptor; dropping it gives it back.
#[derive(Debug)]
#[must_use = "the descriptor is counted only while this lives"]
pub struct Descriptor {
    of: Option<Arc<Counts>>,
    /// Whose it is, besides.
    owner: Option<Arc<AtomicU32>>,
}

impl Budget {
    /// At most so many.
    pub fn new(max: u32) -> Budget {
        Budget { counts: Arc::new(Counts { max, used: AtomicU32::new(0) }) }
    }

    /// What is left of a limit of open files when the fixed ones and the reserve are taken off; never less than a
    /// quarter, so that a process with a tiny limit still serves somebody.
    pub fn within(limit: u64, open_now: u64, workers: usize) -> Budget {
        let workers = u64::try_from(workers).unwrap_or(u64::MAX);
        let fixed = open_now.saturating_add(workers.saturating_mul(PER_WORKER));
        // A small limit is shared half and half.
        let reserve = RESERVE.min(limit.saturating_sub(fixed) / 2);
        let left = limit.saturating_sub(fixed).saturating_sub(reserve).max(limit / 4).max(1);
        Budget::new(u32::try_from(left).unwrap_or(u32::MAX))
    }

    /// The most that connections may take.
    pub fn max(&self) -> u32 {
        self.counts.max
    }

    /// How many are taken.
    pub fn used(&self) -> u32 {
        self.counts.used.load(Ordering::Relaxed)
    }

    /// One descriptor; `None` when all are taken.
    pub fn take(&self) -> Option<Descriptor> {
        let more = |used: u32| (used < self.counts.max).then(|| used + 1);
        self.counts.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Descriptor { of: Some(self.counts.clone()), owner: None })
    }
}

impl Descriptor {
    /// One that is not counted: for connections of the control plane, which live from the reserve.
    pub fn of_reserve() -> Descriptor {
        Descriptor { of: None, owner: None }
    }

    /// The same, counted for its owner too.
    pub fn owned(mut self, owner: &Arc<AtomicU32>) -> Descriptor {
        owner.fetch_add(1, Ordering::Relaxed);
        self.owner = Some(owner.clone());
        self
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        if let Some(counts) = &self.of {
            counts.used.fetch_sub(1, Ordering::Relaxed);
        }
        if let Some(owner) = &self.owner {
            owner.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Descriptors open now; a guess where the system does not tell.
pub fn open_now() -> u64 {
    let listed = std::fs::read_dir("/proc/self/fd").map(|entries| entries.count());
    listed.ok().and_then(|count| u64::try_from(count).ok()).unwrap_or(32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_ends_and_what_is_dropped_comes_back() {
        let budget = Budget::new(2);
        let held = [budget.take().unwrap(), budget.take().unwrap()];
        assert!(budget.take().is_none());
        let free = Descriptor::of_reserve();
        drop(held);
        drop(free);
        assert_eq!(budget.used(), 0);
        let owner = Arc::default();
        let again = budget.clone().take().unwrap().owned(&owner);
        assert_eq!((budget.used(), owner.load(Ordering::Relaxed)), (1, 1));
        drop(again);
        assert_eq!((budget.used(), owner.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn the_reserve_is_kept_and_a_tiny_limit_still_serves() {
        for (limit, open, workers, left) in [
            (1_048_576, 100, 4, 1_048_576 - 100 - 32 - 256),
            (1_024, 50, 2, 1_024 - 50 - 16 - 256),
            (256, 30, 1, 256 - 38 - 109),
            (64, 40, 4, 16),
            (0, 10, 1, 1),
            (u64::MAX, 10, 1, u64::from(u32::MAX)),
        ] {
            let budget = Budget::within(limit, open, workers);
            assert_eq!(u64::from(budget.max()), left, "{limit}");
        }
        assert!(open_now() > 2);
    }
}
