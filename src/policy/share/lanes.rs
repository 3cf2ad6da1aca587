//! Who waits for the processor, tenant by tenant, and whose turn it is: deficit round robin by time.
//!
//! Each tenant has a lane. Lanes take turns; in its turn a lane may use [`QUANTUM`] microseconds for each unit of weight,
//! and what it used beyond that is taken from its next turns. So lanes get time by weight, however long each of their
//! items takes and however many wait in them. A lane that is empty takes no turn and earns nothing; it keeps what is left
//! of its last turn, and so whoever uses little is served at once.
//!
//! Within a lane those that were begun go before those that are new: what is half done holds something.
//!
//! Pure: nobody is woken here, and the time used is told.

use std::collections::VecDeque;

use super::Slot;

/// Microseconds of a turn for each unit of weight.
pub const QUANTUM: i64 = 100;
/// Turns that a lane misses at most for what it used too much.
const MISSED_MAX: i64 = 16;

/// The lanes of one worker.
#[derive(Debug)]
pub struct Lanes<T> {
    lanes: Vec<Lane<T>>,
    /// Lanes in which somebody waits; the first has its turn.
    ring: VecDeque<Slot>,
    waiting: usize,
    weights: u64,
}

#[derive(Debug)]
struct Lane<T> {
    weight: u32,
    left: i64,
    begun: VecDeque<T>,
    fresh: VecDeque<T>,
}

impl<T> Default for Lanes<T> {
    fn default() -> Lanes<T> {
        Lanes { lanes: Vec::new(), ring: VecDeque::new(), waiting: 0, weights: 0 }
    }
}

impl<T> Lane<T> {
    fn quantum(&self) -> i64 {
        QUANTUM.saturating_mul(i64::from(self.weight))
    }

    fn len(&self) -> usize {
        self.begun.len() + self.fresh.len()
    }
}

impl<T> Lanes<T> {
    /// One more waits. `begun`: it is half done.
    pub fn push(&mut self, slot: Slot, weight: u32, item: T, begun: bool) {
        let at = slot.index();
        if self.lanes.len() <= at {
            let empty = || Lane { weight: 1, left: QUANTUM, begun: VecDeque::new(), fresh: VecDeque::new() };
            self.lanes.resize_with(at + 1, empty);
        }
        let Some(lane) = self.lanes.get_mut(at) else { return };
        if lane.len() == 0 {
            lane.weight = weight.max(1);
            self.weights += u64::from(lane.weight);
            if lane.left > 0 {
                // Its turn is not used up.
                self.ring.push_front(slot);
            } else {
                lane.left += lane.quantum();
                self.ring.push_back(slot);
            }
        }
        let queue = if begun { &mut lane.begun } else { &mut lane.fresh };
        queue.push_back(item);
        self.waiting += 1;
    }

    /// Whose turn it is. Whoever takes it tells with [`Lanes::charge`] what it used.
    pub fn turn(&mut self) -> Option<(Slot, T)> {
        // Each round gives every lane a quantum, and none owes more than so many.
        for _ in 0..=self.ring.len().saturating_mul(MISSED_MAX as usize + 1) {
            let slot = *self.ring.front()?;
            let lane = self.lanes.get_mut(slot.index())?;
            if lane.left <= 0 {
                lane.left += lane.quantum();
                self.ring.rotate_left(1);
                continue;
            }
            let item = lane.begun.pop_front().or_else(|| lane.fresh.pop_front())?;
            self.waiting -= 1;
            if lane.len() == 0 {
                self.weights -= u64::from(lane.weight);
                self.ring.pop_front();
            }
            return Some((slot, item));
        }
        None
    }

    /// What had a lane's turn used so many microseconds.
    pub fn charge(&mut self, slot: Slot, micros: u64) {
        let Some(lane) = self.lanes.get_mut(slot.index()) else { return };
        let micros = i64::try_from(micros).unwrap_or(i64::MAX);
        lane.left = lane.left.saturating_sub(micros).max(-MISSED_MAX * lane.quantum());
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    /// How many wait in a lane.
    pub fn waiting(&self, slot: Slot) -> usize {
        self.lanes.get(slot.index()).map_or(0, Lane::len)
    }

    /// A lane's part of `whole`, by its weight among those in which somebody waits, and `kept`; it is counted among them.
    pub fn part(&self, slot: Slot, weight: u32, whole: usize, kept: u32) -> usize {
        let own = u64::from(weight.max(1));
        let counted = if self.waiting(slot) > 0 { 0 } else { own };
        let whole = u64::try_from(whole).unwrap_or(u64::MAX);
        let part = whole.saturating_mul(own) / (self.weights + counted + u64::from(kept)).max(1);
        usize::try_from(part).unwrap_or(usize::MAX)
    }

    /// Takes out what nobody waits for any more.
    pub fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        let (mut waiting, mut weights) = (0, 0);
        let lanes = &mut self.lanes;
        self.ring.retain(|slot| {
            let Some(lane) = lanes.get_mut(slot.index()) else { return false };
            lane.begun.retain(&mut keep);
            lane.fresh.retain(&mut keep);
            waiting += lane.len();
            if lane.len() > 0 {
                weights += u64::from(lane.weight);
            }
            lane.len() > 0
        });
        (self.waiting, self.weights) = (waiting, weights);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes turns until so many microseconds are used; each item costs what its lane says. Lanes stay full.
    fn used(lanes: &mut Lanes<u32>, costs: &[(u32, u64)], total: u64) -> Vec<u64> {
        let mut used = vec![0; costs.len() + 1];
        while used.iter().sum::<u64>() < total {
            let (slot, item) = lanes.turn().unwrap();
            let cost = costs.iter().find(|(lane, _)| *lane == slot.0).unwrap().1;
            lanes.push(slot, item, item, false);
            lanes.charge(slot, cost);
            used[slot.index()] += cost;
        }
        used
    }

    #[test]
    fn time_is_shared_by_weight_whatever_the_items_cost_and_however_many_wait() {
        let mut lanes = Lanes::default();
        for _ in 0..500 {
            lanes.push(Slot(1), 1, 1, false);
        }
        lanes.push(Slot(2), 1, 1, false);
        lanes.push(Slot(3), 2, 2, false);
        let used = used(&mut lanes, &[(1, 10), (2, 300), (3, 50)], 400_000);
        for (slot, expected) in [(1, 100_000), (2, 100_000), (3, 200_000)] {
            let off = used[slot].abs_diff(expected);
            assert!(off <= 2_000, "{slot}: {used:?}");
        }
    }

    #[test]
    fn nobody_starves_and_nothing_is_lost() {
        let mut lanes = Lanes::default();
        for slot in 1..=50u32 {
            for item in 0..slot {
                lanes.push(Slot(slot), 1 + slot % 3, (slot, item), item % 2 == 0);
            }
        }
        let mut seen = std::collections::HashSet::new();
        let mut first = Vec::new();
        while let Some((slot, item)) = lanes.turn() {
            // Dear items: each lane misses turns.
            lanes.charge(slot, 400 * u64::from(1 + slot.0 % 5));
            assert!(seen.insert(item) && item.0 == slot.0);
            if first.len() < 600 {
                first.push(slot.0);
            }
        }
        assert_eq!(seen.len(), 50 * 51 / 2);
        assert!(lanes.is_empty() && lanes.weights == 0);
        let early: std::collections::HashSet<_> = first.into_iter().collect();
        assert_eq!(early.len(), 50, "everybody had a turn early");
    }

    #[test]
    fn what_is_begun_goes_first_and_then_who_came_first() {
        let mut lanes = Lanes::default();
        for (item, begun) in [("a", false), ("b", true), ("c", false), ("d", true)] {
            lanes.push(Slot(1), 1, item, begun);
        }
        let order: Vec<_> = std::iter::from_fn(|| lanes.turn().map(|(_, item)| item)).collect();
        assert_eq!(order, ["b", "d", "a", "c"]);
    }

    #[test]
    fn who_uses_little_is_served_at_once() {
        let mut lanes = Lanes::default();
        for _ in 0..100 {
            lanes.push(Slot(1), 1, 'a', false);
        }
        let mut waited = 0;
        for _ in 0..50 {
            // Ten steps of the one in which many wait, then one of the other.
            for _ in 0..10 {
                assert_eq!(lanes.turn(), Some((Slot(1), 'a')));
                lanes.charge(Slot(1), 30);
                lanes.push(Slot(1), 1, 'a', false);
            }
            lanes.push(Slot(2), 1, 'b', false);
            while lanes.turn().unwrap().1 != 'b' {
                lanes.charge(Slot(1), 30);
                lanes.push(Slot(1), 1, 'a', false);
                waited += 1;
            }
            lanes.charge(Slot(2), 30);
        }
        assert!(waited <= 50 * 2, "{waited}");
    }

    #[test]
    fn an_idle_lane_saves_nothing_up_and_its_time_is_the_others() {
        let mut lanes = Lanes::default();
        lanes.push(Slot(1), 1, 1u32, false);
        let alone = used(&mut lanes, &[(1, 100)], 100_000);
        assert_eq!(alone[1], 100_000);
        lanes.push(Slot(2), 1, 1, false);
        let both = used(&mut lanes, &[(1, 100), (2, 100)], 10_000);
        assert!(both[1].abs_diff(both[2]) <= 400, "{both:?}");
    }

    #[test]
    fn parts_follow_the_weights_of_those_that_wait() {
        let mut lanes = Lanes::default();
        assert_eq!(lanes.part(Slot(1), 1, 1024, 0), 1024);
        assert_eq!(lanes.part(Slot(1), 1, 1024, 1), 512);
        lanes.push(Slot(1), 1, 'a', false);
        assert_eq!(lanes.part(Slot(1), 1, 1024, 0), 1024);
        assert_eq!(lanes.part(Slot(2), 3, 1024, 0), 768);
        lanes.push(Slot(2), 3, 'b', false);
        assert_eq!((lanes.part(Slot(1), 1, 1024, 0), lanes.part(Slot(2), 3, 1024, 0)), (256, 768));
        assert_eq!((lanes.waiting(Slot(1)), lanes.waiting(Slot(2)), lanes.waiting(Slot(9))), (1, 1, 0));
        lanes.retain(|item| *item != 'a');
        assert_eq!((lanes.len(), lanes.part(Slot(2), 3, 8, 0)), (1, 8));
        assert_eq!(lanes.turn(), Some((Slot(2), 'b')));
        assert_eq!(lanes.turn(), None);
    }
}
