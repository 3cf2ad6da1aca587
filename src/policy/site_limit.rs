//! Open connections of a site, over all workers. Counted also while the site has no cap, so that a cap set by a reload
//! is right from the first moment; asked once per connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The connections of one site.
#[derive(Debug, Default)]
pub struct Places {
    open: AtomicU32,
}

/// Leave for one connection; dropping it gives the place back.
#[derive(Debug)]
#[must_use = "the connection is counted only while its place is held"]
pub struct Place(Arc<Places>);

impl Places {
    /// One more place; `max` 0 = no cap. `None`: the site has as many connections as it may.
    pub fn take(self: &Arc<Places>, max: u32) -> Option<Place> {
        let more = |open: u32| (max == 0 || open < max).then(|| open.saturating_add(1));
        self.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Place(self.clone()))
    }

    /// Connections open now.
    pub fn open(&self) -> u32 {
        self.open.load(Ordering::Relaxed)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_is_refused_and_a_place_comes_back() {
        let places = Arc::new(Places::default());
        let held: Vec<_> = (0..2).map(|_| places.take(2).unwrap()).collect();
        assert!(places.take(2).is_none() && places.open() == 2);
        // A reload that lowers the cap closes nothing, and one that lifts it lets in at once.
        assert!(places.take(1).is_none());
        let third = places.take(0).unwrap();
        drop(held);
        assert_eq!(places.open(), 1);
        drop(third);
        assert_eq!(places.open(), 0);
    }
}
