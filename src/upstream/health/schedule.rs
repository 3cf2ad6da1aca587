//! Which probe is due. A thousand endpoints are asked a thousand times in an interval, but never all at once.
//!
//! What nobody knows anything about is asked as soon as there is room, everything else at a moment of its own within the
//! interval. However many are due, at most a fixed number is under way: the others wait, the longest due first, and
//! none is left out. The bound protects our descriptors and whoever stands between us and the backends; it is reached
//! when so many backends at once are silent until the deadline.

use std::collections::{BTreeSet, HashMap};

use crate::base::clock::Millis;

/// Which probe is due when, and how many are under way.
#[derive(Debug)]
pub struct Schedule {
    max: usize,
    waiting: BTreeSet<(Millis, u64)>,
    /// When each waits for; `None` while it is under way.
    known: HashMap<u64, Option<Millis>>,
    under_way: usize,
}

impl Schedule {
    /// Nothing to do; at most so many under way.
    pub fn new(max: usize) -> Schedule {
        Schedule { max: max.max(1), waiting: BTreeSet::new(), known: HashMap::new(), under_way: 0 }
    }

    /// One more, due at a time.
    pub fn insert(&mut self, id: u64, due: Millis) {
        self.known.entry(id).or_insert_with(|| {
            self.waiting.insert((due, id));
            Some(due)
        });
    }

    /// One less. If it is under way it keeps its room until [`Schedule::ended`].
    pub fn remove(&mut self, id: u64) {
        if let Some(Some(due)) = self.known.remove(&id) {
            self.waiting.remove(&(due, id));
        }
    }

    /// The next to begin now, if there is room; it then is under way.
    pub fn begin(&mut self, now: Millis) -> Option<u64> {
        let (due, id) = *self.waiting.first()?;
        if due > now || self.under_way >= self.max {
            return None;
        }
        self.waiting.remove(&(due, id));
        self.known.insert(id, None);
        self.under_way += 1;
        Some(id)
    }

    /// One that was under way has ended; its next is due at a time.
    pub fn ended(&mut self, id: u64, next: Millis) {
        self.under_way = self.under_way.saturating_sub(1);
        if let Some(state) = self.known.get_mut(&id) {
            *state = Some(next);
            self.waiting.insert((next, id));
        }
    }

    /// When the next is due; `None` while there is nothing to begin: there is none, or no room.
    pub fn next(&self) -> Option<Millis> {
        let room = self.under_way < self.max;
        self.waiting.first().filter(|_| room).map(|(due, _)| *due)
    }

    /// How many are under way.
    pub fn under_way(&self) -> usize {
        self.under_way
    }
}

#[cfg(test)]
mod tests {
    use super::super::active::tests::check;
    use super::super::active::{Found, Streak, phase};
    use super::super::tests::Seeded;
    use super::*;
    use crate::upstream::endpoint::Health;

    #[test]
    fn the_longest_due_comes_first_and_nothing_before_its_time() {
        let mut schedule = Schedule::new(2);
        schedule.insert(1, Millis(30));
        schedule.insert(2, Millis(10));
        schedule.insert(3, Millis(20));
        schedule.insert(3, Millis(0));
        assert_eq!((schedule.next(), schedule.begin(Millis(9))), (Some(Millis(10)), None));
        assert_eq!((schedule.begin(Millis(40)), schedule.begin(Millis(40))), (Some(2), Some(3)));
        assert_eq!(
            (schedule.begin(Millis(40)), schedule.next(), schedule.under_way()),
            (None, None, 2),
            "no room"
        );
        schedule.ended(2, Millis(100));
        assert_eq!(schedule.begin(Millis(40)), Some(1), "it waited, and was not forgotten");
    }

    #[test]
    fn what_is_removed_under_way_keeps_its_room_and_does_not_return() {
        let mut schedule = Schedule::new(1);
        schedule.insert(1, Millis(0));
        schedule.insert(2, Millis(0));
        assert_eq!(schedule.begin(Millis(0)), Some(1));
        schedule.remove(1);
        schedule.remove(7);
        assert_eq!(schedule.begin(Millis(0)), None);
        schedule.ended(1, Millis(5));
        schedule.remove(2);
        assert_eq!((schedule.begin(Millis(9)), schedule.under_way(), schedule.next()), (None, 0, None));
    }

    /// A thousand endpoints for a minute of virtual time, asked each millisecond. `silent` of them keep a probe for its
    /// whole deadline. Gives the most under way, the probes of each second, and the probes of each endpoint.
    fn minute(fresh: bool, silent: u64) -> (usize, Vec<usize>, Vec<usize>) {
        const MAX: usize = 128;
        let (check, mut random, mut schedule) = (check(2, 2), Seeded(3), Schedule::new(MAX));
        let state = if fresh { Health::Unknown } else { Health::Healthy };
        let mut endpoints = vec![(state, Streak::default()); 1000];
        for id in 0..1000 {
            let due = if fresh { Millis(0) } else { Millis(0).after(phase(check.interval, random.next())) };
            schedule.insert(id, due);
        }
        let mut ending: BTreeSet<(u64, u64, u64)> = BTreeSet::new();
        let (mut most, mut seconds, mut counts) = (0, vec![0; 60], vec![0; 1000]);
        for now in 0..60_000u64 {
            while let Some(&(end, id, begun)) = ending.first().filter(|(end, ..)| *end <= now) {
                ending.remove(&(end, id, begun));
                let (state, streak) = &mut endpoints[id as usize];
                let first = *state == Health::Unknown;
                let found = if id < silent { Found::Ill } else { Found::Well };
                *state = streak.heard(*state, found, &check);
                let pause = match first && *state == Health::Healthy {
                    true => phase(check.interval, random.next()),
                    false => streak.pause(*state, &check, random.next()),
                };
                schedule.ended(id, Millis(begun).after(pause).max(Millis(now)));
            }
            while let Some(id) = schedule.begin(Millis(now)) {
                let took = if id < silent { 2000 } else { 5 };
                ending.insert((now + took, id, now));
                seconds[(now / 1000) as usize] += 1;
                counts[id as usize] += 1;
            }
            most = most.max(schedule.under_way());
        }
        (most, seconds, counts)
    }

    #[test]
    fn a_thousand_known_endpoints_are_asked_evenly() {
        let (most, seconds, counts) = minute(false, 0);
        // 1,000 in 5 s are 200 a second, one for each of the 5 ms that a probe takes.
        assert!(most <= 16, "{most} under way at once");
        assert!(seconds.iter().all(|count| (140..=260).contains(count)), "{seconds:?}");
        assert!(counts.iter().all(|count| (11..=14).contains(count)), "each about every 5 s");
    }

    #[test]
    fn a_thousand_fresh_endpoints_are_all_asked_at_once_within_the_bound_and_evenly_from_then_on() {
        let (most, seconds, counts) = minute(true, 0);
        assert_eq!(most, 128);
        assert!(
            (1000..1300).contains(&seconds[0]),
            "all of them, and the first of the next round: {seconds:?}"
        );
        assert!(seconds[6..].iter().all(|count| (140..=260).contains(count)), "{seconds:?}");
        assert!(counts.iter().all(|count| (11..=15).contains(count)));
    }

    #[test]
    fn silent_endpoints_neither_pass_the_bound_nor_starve_the_others() {
        let (most, _, counts) = minute(true, 200);
        // 200 of them keep 80 probes under way: two seconds of each five.
        assert!(most <= 128, "{most}");
        assert!(counts.iter().all(|&count| count >= 10), "{:?}", counts.iter().min());
        // With all of them silent the rounds take longer, but everybody's turn comes.
        let (most, seconds, counts) = minute(true, 1000);
        assert_eq!((most, seconds[30..].iter().sum::<usize>() / 30), (128, 64), "128 in 2 s");
        assert!(counts.iter().all(|count| (2..=6).contains(count)), "{counts:?}");
    }
}
