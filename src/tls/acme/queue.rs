//! Who orders next: pure, under a given time (seconds since 1970), so that tests move time by hand.
//!
//! Three classes, each worked off completely before the next: certificates about to expire; sites that serve nothing
//! (or something expired); renewals that are due. Inside a class: soonest expiry first, and among sites without a
//! certificate those that failed less often, then those that wait longer. What failed is in backoff and in nobody's
//! way. Each choice looks at every entry once; ten thousand of them take well under a millisecond.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// The window of the order budget, in seconds.
const WINDOW: u64 = 3 * 60 * 60;
/// Waits after the first failures, in seconds; then a day. (Let's Encrypt's integration guide.)
const BACKOFF: [u64; 3] = [60, 600, 6000];
const DAY: u64 = 24 * 60 * 60;
/// Lifetimes below this renew at half instead of two thirds.
const SHORT_LIVED: u64 = 10 * DAY;
/// Rest after a CA could not be reached, in seconds; doubled each time, up to the most.
const REST: u64 = 30;
const REST_MAX: u64 = 600;
/// Unanswered rests in a row after which the next CA takes over.
const SILENT: u32 = 2;
/// Longest pause for a whole CA, in seconds.
pub const HOLD_MAX: u64 = 3 * 60 * 60;
/// Longest wait a CA may impose with Retry-After, in seconds; a mistake of the CA must not end renewals.
const RETRY_AFTER_MAX: u64 = 7 * DAY;

/// Added to the failures of guests, so that they come after everybody else of their class.
const GUESTS_AFTER: u64 = 1 << 32;

/// Random numbers for jitter; not for secrets.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// A reproducible sequence.
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    /// From 0 up to, not including, `end`; 0 if `end` is 0. (SplitMix64; the bias is of no matter here.)
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)).checked_rem(end).unwrap_or(0)
    }
}

/// What is known of a certificate for timing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime {
    /// Seconds since 1970.
    pub not_before: u64,
    /// Seconds since 1970.
    pub not_after: u64,
    /// When it is to be renewed, seconds since 1970.
    pub renew_at: u64,
}

/// When to renew: two thirds of the lifetime, half of a short one, or the point chosen in the CA's window (RFC 9773
/// section 4.2), whichever is earlier. `spread` (any number that belongs to the site) moves it forward by up to a
/// fiftieth of the lifetime, so that what was issued together is not renewed together.
pub fn renew_at(not_before: u64, not_after: u64, suggested: Option<u64>, spread: u64) -> u64 {
    let lifetime = not_after.saturating_sub(not_before);
    let share = if lifetime < SHORT_LIVED { lifetime / 2 } else { lifetime / 3 * 2 };
    let early = spread.checked_rem(lifetime / 50).unwrap_or(0);
    let own = not_before.saturating_add(share).saturating_sub(early);
    suggested.map_or(own, |suggested| suggested.min(own))
}

/// When the next try after `attempts` failures in a row may be: 1, 10, 100 minutes, then daily, ±20 %; not before the
/// CA's Retry-After.
pub fn next_try(now: u64, attempts: u32, retry_after: Option<Duration>, dice: &mut Dice) -> u64 {
    let index = usize::try_from(attempts.saturating_sub(1)).unwrap_or(usize::MAX);
    let wait = BACKOFF.get(index).copied().unwrap_or(DAY);
    let jittered = wait - wait / 5 + dice.below(wait / 5 * 2 + 1);
    let asked = retry_after.map_or(0, |after| after.as_secs().min(RETRY_AFTER_MAX));
    now.saturating_add(jittered.max(asked))
}

/// How many of so many failures in a row were at one of the CAs, which take turns by twos.
pub fn failures_at(attempts: u32, directory: usize, directories: usize) -> u32 {
    let count = u32::try_from(directories).unwrap_or(u32::MAX).max(1);
    let own = u32::try_from(directory).unwrap_or(u32::MAX);
    let (rounds, rest) = (attempts / (2 * count), attempts % (2 * count));
    rounds * 2 + rest.saturating_sub(own.saturating_mul(2)).min(2)
}

/// Orders left at a CA, as a bucket that refills evenly over three hours.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Bucket {
    /// Orders that may start now; fractions are refill under way.
    pub left: f64,
    /// When `left` was right, seconds since 1970.
    pub at: u64,
}

impl Bucket {
    /// A full one.
    pub fn full(limit: u32, now: u64) -> Bucket {
        Bucket { left: f64::from(burst(limit)), at: now }
    }

    fn refill(&mut self, limit: u32, now: u64) {
        // A clock set back refills nothing and starts counting from there.
        let passed = now.saturating_sub(self.at);
        let added = u32::try_from(passed.min(WINDOW)).map_or(0.0, f64::from) * rate(limit);
        self.left = (self.left + added).min(f64::from(burst(limit)));
        self.at = now;
    }

    fn take(&mut self, limit: u32, now: u64) {
        self.refill(limit, now);
        self.left = (self.left - 1.0).max(0.0);
    }

    /// Gives back what was taken for an order that the CA never heard of.
    fn give_back(&mut self, limit: u32) {
        self.left = (self.left + 1.0).min(f64::from(burst(limit)));
    }

    /// When there will be so many.
    fn ready_for(&self, orders: f64, limit: u32) -> u64 {
        let missing = (orders - self.left).max(0.0);
        let seconds =
            Duration::try_from_secs_f64(missing / rate(limit)).map_or(WINDOW, |wait| wait.as_secs() + 1);
        self.at.saturating_add(seconds)
    }
}

/// Half of the limit may come at once; the other half is the refill, so that no three hours see more than the limit.
fn burst(limit: u32) -> u32 {
    (limit / 2).max(1)
}

/// Orders per second.
fn rate(limit: u32) -> f64 {
    f64::from(limit.saturating_sub(burst(limit)).max(1)) / 10_800.0
}

/// Class, order inside it, and who waits longer.
type Rank = (u8, u64, u64);

#[derive(Debug, Clone)]
struct Entry {
    lifetime: Option<Lifetime>,
    since: u64,
    attempts: u32,
    next_try: u64,
    forced: bool,
    running: bool,
    /// On demand and without a certificate: has what others leave.
    guest: bool,
}

/// The scheduler.
#[derive(Debug)]
pub struct Queue {
    entries: HashMap<Arc<str>, Entry>,
    buckets: Vec<Bucket>,
    /// Until when a CA wants to hear nothing; same order as `buckets`.
    holds: Vec<u64>,
    /// How often in a row a CA could not be reached, and until when it is left alone for that; the same order.
    silences: Vec<(u32, u64)>,
    limit: u32,
    concurrent: usize,
    running: usize,
    /// Removed while their order was in flight: whoever comes back is still being ordered for.
    gone: HashSet<Arc<str>>,
    /// Guests whose order runs.
    guests: HashSet<Arc<str>>,
}

/// When a site has its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Its order runs, or may run as soon as there is a place.
    Now,
    /// Not before this second.
    Later(u64),
    /// It is not in the queue.
    Unknown,
}

/// What to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Order for this site at that CA (an index); [`Queue::finished`] must follow.
    Start { site: Arc<str>, directory: usize },
    /// Nothing before this second.
    Wait(u64),
    /// Nothing until something changes.
    Idle,
}

impl Queue {
    /// For so many CAs, each with a bucket.
    pub fn new(buckets: Vec<Bucket>, limit: u32, concurrent: usize) -> Queue {
        let holds = vec![0; buckets.len()];
        let silences = vec![(0, 0); buckets.len()];
        let (concurrent, limit) = (concurrent.max(1), limit.max(2));
        let (entries, gone, guests) = (HashMap::new(), HashSet::new(), HashSet::new());
        Queue { entries, buckets, holds, silences, limit, concurrent, running: 0, gone, guests }
    }

    /// Changes limits and CAs; entries and running orders stay. `before` says where each CA stood until now: what is
    /// left of its budget, and the pause it asked for, are kept.
    pub fn reconfigure(
        &mut self,
        buckets: Vec<Bucket>,
        before: &[Option<usize>],
        limit: u32,
        concurrent: usize,
    ) {
        let was = |index: usize| before.get(index).copied().flatten();
        let hold = |index| was(index).and_then(|old| self.holds.get(old).copied()).unwrap_or(0);
        self.holds = (0..buckets.len()).map(hold).collect();
        let silence = |index| was(index).and_then(|old| self.silences.get(old).copied()).unwrap_or_default();
        self.silences = (0..buckets.len()).map(silence).collect();
        let kept = |(index, fresh)| was(index).and_then(|old| self.bucket(old)).unwrap_or(fresh);
        self.buckets = buckets.into_iter().enumerate().map(kept).collect();
        self.limit = limit.max(2);
        self.concurrent = concurrent.max(1);
    }

    /// Adds or updates a site.
    pub fn put(
        &mut self,
        site: &Arc<str>,
        lifetime: Option<Lifetime>,
        attempts: u32,
        next_try: u64,
        now: u64,
    ) {
        let old = self.entries.get(site);
        let entry = Entry {
            lifetime,
            since: old.map_or(now, |old| old.since),
            attempts,
            next_try,
            forced: old.is_some_and(|old| old.forced),
            running: old.map_or_else(|| self.gone.remove(site), |old| old.running),
            guest: old.is_some_and(|old| old.guest),
        };
        self.entries.insert(Arc::clone(site), entry);
    }

    /// Says whether a site is a guest: its order comes after those of all others that serve nothing, guests have half of
    /// the places, and leave half of the burst of the budget alone. So whoever makes guests up uses up what is theirs.
    pub fn set_guest(&mut self, site: &str, guest: bool) {
        if let Some(entry) = self.entries.get_mut(site) {
            entry.guest = guest;
        }
    }

    /// When a site has its turn, as far as is known now.
    pub fn turn(&self, site: &str, now: u64) -> Turn {
        let Some(entry) = self.entries.get(site) else { return Turn::Unknown };
        if entry.running {
            return Turn::Now;
        }
        let from = entry.from();
        if from > now {
            return Turn::Later(from);
        }
        match self.ready_at(entry, self.directory(entry.attempts, now), now) {
            ready if ready > now => Turn::Later(ready),
            _ => Turn::Now,
        }
    }

    /// Forgets a site. An order in flight for it still counts until it is finished.
    pub fn remove(&mut self, site: &str) {
        if let Some((name, entry)) = self.entries.remove_entry(site)
            && entry.running
        {
            self.gone.insert(name);
        }
    }

    /// Orders at the next opportunity, whatever its backoff or lifetime. `false`: not known here.
    pub fn force(&mut self, site: &str) -> bool {
        self.entries.get_mut(site).map(|entry| entry.forced = true).is_some()
    }

    /// Chooses. `Start` has taken from the budget and counts as running.
    pub fn next(&mut self, now: u64) -> Step {
        if self.running >= self.concurrent || self.buckets.is_empty() {
            return Step::Idle;
        }
        let mut best: Option<(Rank, &Arc<str>, usize)> = None;
        let mut wake = u64::MAX;
        for (site, entry) in self.entries.iter().filter(|(_, entry)| !entry.running) {
            if entry.guest && !entry.forced && self.guests.len() >= self.concurrent.div_ceil(2) {
                continue;
            }
            let directory = self.directory(entry.attempts, now);
            let from = entry.from().max(self.ready_at(entry, directory, now));
            if from > now {
                wake = wake.min(from);
                continue;
            }
            let rank = entry.rank(now);
            if best.is_none_or(|(other, name, _)| (rank, site) < (other, name)) {
                best = Some((rank, site, directory));
            }
        }
        let Some((_, site, directory)) = best else {
            return if wake == u64::MAX { Step::Idle } else { Step::Wait(wake) };
        };
        let site = Arc::clone(site);
        if let Some(bucket) = self.buckets.get_mut(directory) {
            bucket.take(self.limit, now);
        }
        if let Some(entry) = self.entries.get_mut(&site) {
            entry.running = true;
            if entry.guest {
                self.guests.insert(Arc::clone(&site));
            }
        }
        self.running += 1;
        Step::Start { site, directory }
    }

    /// Two tries at each CA in turn; one on hold or without budget is waited for, never skipped: the second CA is for
    /// failures, not for haste. One that cannot be reached again and again is passed over for one that can.
    fn directory(&self, attempts: u32, now: u64) -> usize {
        // Counted by `failures_at`.
        let turn = usize::try_from(attempts / 2).unwrap_or(0);
        let count = self.buckets.len();
        let mut all = (0..count).filter_map(|step| turn.wrapping_add(step).checked_rem(count));
        let silent = |index: &usize| {
            self.silences.get(*index).is_some_and(|(times, until)| *times >= SILENT && *until > now)
        };
        let first = turn.checked_rem(count).unwrap_or(0);
        all.find(|index| !silent(index)).unwrap_or(first)
    }

    /// When a CA may be asked for this one.
    fn ready_at(&self, entry: &Entry, directory: usize, now: u64) -> u64 {
        // A person may know that it can be reached again, but not that it has changed its mind.
        let rest = self.silences.get(directory).filter(|_| !entry.forced).map_or(0, |(_, until)| *until);
        let hold = self.holds.get(directory).copied().unwrap_or(0).max(rest);
        let Some(mut bucket) = self.bucket(directory) else { return now.saturating_add(WINDOW) };
        bucket.refill(self.limit, now);
        let guest = entry.guest && !entry.forced;
        let orders = 1.0 + if guest { f64::from(burst(self.limit) / 2) } else { 0.0 };
        if bucket.left >= orders { hold } else { hold.max(bucket.ready_for(orders, self.limit)).max(now + 1) }
    }

    /// An order ended; `put` says what is known of the site since.
    pub fn finished(&mut self, site: &str) {
        self.running = self.running.saturating_sub(1);
        self.gone.remove(site);
        self.guests.remove(site);
        if let Some(entry) = self.entries.get_mut(site) {
            entry.running = false;
            entry.forced = false;
        }
    }

    /// A CA wants to hear nothing until then.
    pub fn hold(&mut self, directory: usize, until: u64) {
        if let Some(hold) = self.holds.get_mut(directory) {
            *hold = (*hold).max(until);
        }
    }

    /// A CA could not be reached. It is left alone for a while, so that an outage costs few sites a failure; orders
    /// that were under way at the same time count as one.
    pub fn unreached(&mut self, directory: usize, now: u64) {
        if let Some((times, until)) = self.silences.get_mut(directory)
            && *until <= now
        {
            *until = now.saturating_add(REST.saturating_mul(1 << (*times).min(16)).min(REST_MAX));
            *times = times.saturating_add(1);
        }
    }

    /// A CA was reached.
    pub fn reached(&mut self, directory: usize) {
        if let Some(silence) = self.silences.get_mut(directory) {
            *silence = (0, 0);
        }
    }

    /// Gives back what was taken for an order that was never made.
    pub fn give_back(&mut self, directory: usize) {
        if let Some(bucket) = self.buckets.get_mut(directory) {
            bucket.give_back(self.limit);
        }
    }

    /// Forgets pauses that nobody asked for: they end later than any may, so the clock was ahead when they began.
    pub fn release_holds(&mut self, now: u64) {
        self.holds.iter_mut().filter(|hold| **hold > now.saturating_add(HOLD_MAX)).for_each(|hold| *hold = 0);
        let ahead = |(_, until): &&mut (u32, u64)| *until > now.saturating_add(REST_MAX);
        self.silences.iter_mut().filter(ahead).for_each(|silence| *silence = (0, 0));
    }

    /// The bucket of a CA, for storing.
    pub fn bucket(&self, directory: usize) -> Option<Bucket> {
        self.buckets.get(directory).copied()
    }

    /// Whole orders that could start now at a CA.
    pub fn left(&self, directory: usize, now: u64) -> u32 {
        let Some(mut bucket) = self.bucket(directory) else { return 0 };
        bucket.refill(self.limit, now);
        // Counted off instead of cast: a cast of a fraction would be a lint's exception.
        (0..self.limit).take_while(|n| f64::from(n + 1) <= bucket.left).fold(0, |count, _| count + 1)
    }

    /// Until when a CA is not asked, because it wants that or cannot be reached; 0 if it is.
    pub fn held_until(&self, directory: usize) -> u64 {
        let rest = self.silences.get(directory).map_or(0, |(_, until)| *until);
        self.holds.get(directory).copied().unwrap_or(0).max(rest)
    }

    /// How many orders are in flight.
    pub fn in_flight(&self) -> usize {
        self.running
    }

    /// Whether an order of a site is in flight.
    pub fn is_running(&self, site: &str) -> bool {
        self.entries.get(site).is_some_and(|entry| entry.running)
    }

    /// Sites in the order they would be taken if time stood still after their earliest moment: (site, earliest
    /// second).
    pub fn plan(&self, now: u64) -> Vec<(Arc<str>, u64)> {
        let mut all: Vec<_> = self.entries.iter().filter(|(_, e)| !e.running).collect();
        all.sort_by_key(|(site, e)| {
            let from = e.from().max(now);
            (from, e.rank(from), Arc::clone(site))
        });
        all.into_iter().map(|(site, e)| (Arc::clone(site), e.from().max(now))).collect()
    }
}

impl Entry {
    /// The first second an order may start.
    fn from(&self) -> u64 {
        match (self.forced, self.lifetime) {
            (true, _) => 0,
            (false, None) => self.next_try,
            (false, Some(lifetime)) => lifetime.renew_at.max(self.next_try),
        }
    }

    /// The smaller the sooner.
    fn rank(&self, now: u64) -> Rank {
        match self.lifetime {
            Some(l) if l.not_after > now => {
                // The last sixth of its life: half of what is left at the usual moment of renewal.
                let urgent = l.not_after - now < l.not_after.saturating_sub(l.not_before) / 6;
                (if urgent { 0 } else { 2 }, l.not_after, self.since)
            }
            _ => (1, u64::from(self.attempts) + if self.guest { GUESTS_AFTER } else { 0 }, self.since),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn queue(limit: u32, concurrent: usize) -> Queue {
        Queue::new(vec![Bucket::full(limit, NOW)], limit, concurrent)
    }

    fn life(not_after: u64, renew_at: u64) -> Option<Lifetime> {
        Some(Lifetime { not_before: not_after - 90 * DAY, not_after, renew_at })
    }

    fn site(name: &str) -> Arc<str> {
        name.into()
    }

    fn starts(queue: &mut Queue, now: u64) -> Vec<String> {
        let mut found = Vec::new();
        while let Step::Start { site, .. } = queue.next(now) {
            found.push(site.to_string());
        }
        found
    }

    #[test]
    fn the_urgent_goes_first_then_who_serves_nothing_then_the_soonest_expiry() {
        let mut q = queue(300, 100);
        q.put(&site("due-late"), life(NOW + 30 * DAY, NOW - 5), 0, 0, NOW);
        q.put(&site("due-soon"), life(NOW + 20 * DAY, NOW - 1), 0, 0, NOW);
        q.put(&site("urgent"), life(NOW + 3 * DAY, NOW - 9), 0, 0, NOW);
        q.put(&site("expired"), life(NOW - 1, NOW - 9), 3, NOW, NOW - 7);
        q.put(&site("new"), None, 0, 0, NOW);
        q.put(&site("young"), life(NOW + 80 * DAY, NOW + 50 * DAY), 0, 0, NOW);
        q.put(&site("backing-off"), None, 1, NOW + 60, NOW);
        assert_eq!(starts(&mut q, NOW), ["urgent", "new", "expired", "due-soon", "due-late"]);
        for name in ["urgent", "new", "expired", "due-soon", "due-late"] {
            q.finished(name);
            q.remove(name);
        }
        assert_eq!(q.next(NOW), Step::Wait(NOW + 60));
        assert!(q.force("young") && !q.force("nobody"));
        assert_eq!(starts(&mut q, NOW), ["young"]);
    }

    #[test]
    fn no_three_hours_see_more_orders_than_the_limit_and_no_name_starves() {
        let (limit, concurrent, names) = (300, 10, 10_000);
        let mut q = queue(limit, concurrent);
        let mut dice = Dice::new(7);
        for n in 0..names {
            // Half have a certificate that expires within the run, the others none; every tenth fails three times.
            let lifetime = (n % 2 == 0).then(|| life(NOW + 6 * DAY + n, NOW)).flatten();
            q.put(&site(&format!("s{n}")), lifetime, 0, 0, NOW);
        }
        let (mut now, mut begun, mut failures) = (NOW, Vec::new(), HashMap::<String, u32>::new());
        let (mut served, mut rounds) = (0, 0);
        while served < names {
            rounds += 1;
            assert!(rounds < 200_000, "{served} served");
            match q.next(now) {
                Step::Start { site, .. } => {
                    begun.push(now);
                    q.finished(&site);
                    let failed = failures.entry(site.to_string()).or_default();
                    if site.ends_with('3') && *failed < 3 {
                        *failed += 1;
                        let again = next_try(now, *failed, None, &mut dice);
                        q.put(&site, None, *failed, again, now);
                    } else {
                        served += 1;
                        q.put(&site, life(now + 90 * DAY, now + 60 * DAY), 0, 0, now);
                    }
                }
                Step::Wait(until) => {
                    assert!(until > now);
                    now = until;
                }
                Step::Idle => panic!("{served} served"),
            }
        }
        for (position, start) in begun.iter().enumerate() {
            let end = begun.partition_point(|other| *other < start + WINDOW);
            assert!(end - position <= 300, "{} orders in three hours", end - position);
        }
        // 13,000 orders at 300 in 3 h need 130 h; the refill alone gives 150 in 3 h after the burst.
        assert!(now - NOW < 12 * DAY, "{} hours", (now - NOW) / 3600);
    }

    #[test]
    fn at_most_so_many_run_at_once() {
        let mut q = queue(300, 2);
        for name in ["a", "b", "c"] {
            q.put(&site(name), None, 0, 0, NOW);
        }
        assert_eq!(starts(&mut q, NOW), ["a", "b"]);
        assert_eq!(q.next(NOW), Step::Idle);
        // A site removed while its order runs frees its place when that ends.
        q.remove("a");
        q.finished("a");
        assert_eq!(starts(&mut q, NOW), ["c"]);
    }

    #[test]
    fn a_site_that_goes_and_comes_back_within_its_order_is_not_started_twice() {
        let mut q = queue(300, 9);
        q.put(&site("a"), None, 0, 0, NOW);
        assert_eq!(starts(&mut q, NOW), ["a"]);
        for _ in 0..3 {
            q.remove("a");
            q.put(&site("a"), None, 0, 0, NOW);
            assert!(q.is_running("a") && starts(&mut q, NOW).is_empty());
        }
        q.finished("a");
        assert_eq!((starts(&mut q, NOW), q.in_flight()), (vec!["a".to_owned()], 1));
        // Gone for good: it is as if it had never been there.
        q.remove("a");
        q.finished("a");
        q.put(&site("a"), None, 0, 0, NOW);
        assert!(!q.is_running("a") && q.in_flight() == 0);
    }

    #[test]
    fn an_outage_costs_few_sites_a_failure_and_no_budget() {
        let mut q = queue(8, 2);
        for n in 0..9 {
            q.put(&site(&format!("s{n}")), None, 0, 0, NOW);
        }
        let mut now = NOW;
        for rest in [30, 60, 120, 240, 480, 600, 600] {
            let tried = starts(&mut q, now);
            assert_eq!(tried.len(), 2, "what is free to go finds out");
            for name in &tried {
                q.finished(name);
                q.give_back(0);
                q.unreached(0, now);
            }
            assert_eq!((q.next(now), q.left(0, now)), (Step::Wait(now + rest), 4));
            now += rest;
        }
        // A person asks at once, and finds it well: so all go on.
        q.unreached(0, now);
        assert!(q.force("s7") && q.next(now) == Step::Start { site: site("s7"), directory: 0 });
        q.reached(0);
        assert_eq!(starts(&mut q, now).len(), 1);
    }

    #[test]
    fn a_ca_that_stays_silent_leaves_its_sites_to_the_next() {
        let mut q = Queue::new(vec![Bucket::full(300, NOW); 2], 300, 9);
        q.put(&site("a"), None, 0, 0, NOW);
        q.unreached(0, NOW);
        assert_eq!(q.next(NOW), Step::Wait(NOW + 30), "once is nothing yet");
        q.unreached(0, NOW + 30);
        assert_eq!(q.next(NOW + 31), Step::Start { site: site("a"), directory: 1 });
        q.finished("a");
        // After its rest it is asked again.
        assert_eq!(q.next(NOW + 90), Step::Start { site: site("a"), directory: 0 });
        q.finished("a");
        q.unreached(1, NOW + 90);
        q.unreached(1, NOW + 120);
        q.unreached(0, NOW + 120);
        assert_eq!(q.next(NOW + 121), Step::Wait(NOW + 240), "all are silent: it is the first one's turn");
    }

    #[test]
    fn a_pause_of_one_ca_delays_nobody_whose_turn_is_at_another() {
        let mut q = Queue::new(vec![Bucket::full(300, NOW); 2], 300, 9);
        q.put(&site("first"), None, 0, 0, NOW);
        q.put(&site("second"), None, 2, 0, NOW);
        q.hold(0, NOW + 500);
        assert_eq!(q.next(NOW), Step::Start { site: site("second"), directory: 1 });
        assert_eq!(q.next(NOW), Step::Wait(NOW + 500));
    }

    #[test]
    fn other_settings_make_nobody_forget_a_pause_or_a_budget() {
        let mut q = Queue::new(vec![Bucket::full(4, NOW); 2], 4, 9);
        q.put(&site("a"), None, 0, 0, NOW);
        assert_eq!(starts(&mut q, NOW), ["a"]);
        q.hold(0, NOW + 500);
        // A new CA comes first, the second one goes.
        let fresh = vec![Bucket::full(4, NOW); 2];
        q.reconfigure(fresh, &[None, Some(0)], 4, 2);
        assert_eq!([q.held_until(0), q.held_until(1)], [0, NOW + 500]);
        assert_eq!([q.left(0, NOW), q.left(1, NOW)], [2, 1]);
    }

    #[test]
    fn guests_come_last_have_half_of_the_places_and_leave_half_of_the_burst() {
        let mut q = queue(40, 4);
        for n in 0..30 {
            let name = site(&format!("@g{n:02}.test"));
            q.put(&name, None, 0, 0, NOW);
            q.set_guest(&name, true);
        }
        q.put(&site("own"), None, 3, 0, NOW);
        q.put(&site("due"), life(NOW + 20 * DAY, NOW - 1), 0, 0, NOW);
        assert_eq!(starts(&mut q, NOW), ["own", "@g00.test", "@g01.test", "due"]);
        // The burst is 20, guests may take it down to 10: two are gone, two were for others.
        let mut guests = 2;
        q.finished("own");
        q.finished("due");
        q.remove("own");
        q.remove("due");
        let mut running = vec!["@g00.test".to_owned(), "@g01.test".to_owned()];
        loop {
            for name in running.drain(..) {
                q.finished(&name);
                q.remove(&name);
            }
            running = starts(&mut q, NOW);
            guests += running.len();
            if running.is_empty() {
                break;
            }
        }
        assert_eq!((guests, q.left(0, NOW)), (8, 10));
        assert!(matches!(q.next(NOW), Step::Wait(_)), "{:?}", q.next(NOW));
        assert!(matches!(q.turn("@g20.test", NOW), Turn::Later(_)));
        // What others want is ordered all the same, and an operator's word counts for guests too.
        q.put(&site("late"), None, 0, 0, NOW);
        assert_eq!((q.turn("late", NOW), starts(&mut q, NOW)), (Turn::Now, vec!["late".to_owned()]));
        assert!(q.force("@g20.test"));
        assert_eq!(starts(&mut q, NOW), ["@g20.test"]);
    }

    #[test]
    fn a_turn_is_now_later_or_never() {
        let mut q = queue(4, 1);
        q.put(&site("first"), None, 0, 0, NOW);
        q.put(&site("second"), None, 0, 0, NOW);
        q.put(&site("failed"), None, 1, NOW + 60, NOW);
        q.put(&site("young"), life(NOW + 80 * DAY, NOW + 50 * DAY), 0, 0, NOW);
        assert_eq!(starts(&mut q, NOW), ["first"]);
        assert_eq!((q.turn("first", NOW), q.turn("second", NOW)), (Turn::Now, Turn::Now));
        assert_eq!((q.turn("failed", NOW), q.turn("nobody", NOW)), (Turn::Later(NOW + 60), Turn::Unknown));
        assert_eq!(q.turn("young", NOW), Turn::Later(NOW + 50 * DAY));
        q.hold(0, NOW + 500);
        assert_eq!((q.turn("first", NOW), q.turn("second", NOW)), (Turn::Now, Turn::Later(NOW + 500)));
    }

    #[test]
    fn after_two_failures_the_second_ca_is_asked_and_a_hold_is_kept() {
        let mut q = Queue::new(vec![Bucket::full(300, NOW); 2], 300, 9);
        for (attempts, want) in [(0, 0), (1, 0), (2, 1), (3, 1), (4, 0)] {
            let name = site(&format!("s{attempts}"));
            q.put(&name, None, attempts, 0, NOW);
            assert_eq!(q.next(NOW), Step::Start { site: name.clone(), directory: want });
            q.finished(&name);
            q.remove(&name);
        }
        q.hold(0, NOW + 500);
        q.put(&site("a"), None, 0, 0, NOW);
        assert_eq!(q.next(NOW), Step::Wait(NOW + 500));
        assert!(matches!(q.next(NOW + 500), Step::Start { directory: 0, .. }));
    }

    #[test]
    fn failures_are_told_apart_by_ca() {
        let at =
            |attempts, count| -> Vec<u32> { (0..count).map(|d| failures_at(attempts, d, count)).collect() };
        assert_eq!((0..5).map(|n| at(n, 1)[0]).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        assert_eq!(at(1, 2), [1, 0]);
        assert_eq!(at(3, 2), [2, 1]);
        assert_eq!(at(7, 3), [3, 2, 2]);
        for attempts in 0..50 {
            assert_eq!(at(attempts, 3).iter().sum::<u32>(), attempts);
        }
    }

    #[test]
    fn a_hold_of_a_clock_that_was_ahead_is_forgotten() {
        let mut q = queue(300, 9);
        q.put(&site("a"), None, 0, 0, NOW);
        q.hold(0, NOW + HOLD_MAX);
        q.release_holds(NOW);
        assert_eq!(q.next(NOW), Step::Wait(NOW + HOLD_MAX));
        q.hold(0, NOW + 365 * DAY);
        q.release_holds(NOW);
        assert!(matches!(q.next(NOW), Step::Start { .. }));
    }

    #[test]
    fn waits_grow_with_jitter_and_obey_the_ca() {
        let mut dice = Dice::new(1);
        for (attempts, base) in [(1, 60), (2, 600), (3, 6000), (4, DAY), (400, DAY)] {
            let all: Vec<u64> = (0..200).map(|_| next_try(NOW, attempts, None, &mut dice) - NOW).collect();
            assert!(all.iter().all(|w| (base * 4 / 5..=base * 6 / 5).contains(w)), "{attempts}: {all:?}");
            assert!(all.iter().any(|w| *w != all[0]));
        }
        let asked = Some(Duration::from_secs(5000));
        assert_eq!(next_try(NOW, 1, asked, &mut dice), NOW + 5000);
        assert_eq!(next_try(NOW, 1, Some(Duration::MAX), &mut dice), NOW + RETRY_AFTER_MAX);
    }

    #[test]
    fn renewal_is_at_two_thirds_or_half_or_earlier_if_the_ca_says_so() {
        assert_eq!(renew_at(0, 90 * DAY, None, 0), 60 * DAY);
        assert_eq!(renew_at(0, 6 * DAY, None, 0), 3 * DAY);
        assert_eq!(renew_at(0, 90 * DAY, Some(5), 0), 5);
        assert_eq!(renew_at(0, 90 * DAY, Some(80 * DAY), 0), 60 * DAY);
        for spread in [1, 999, u64::MAX] {
            let at = renew_at(0, 90 * DAY, None, spread);
            assert!((58 * DAY..=60 * DAY).contains(&at), "{at}");
        }
        // Nonsense from a CA: never a panic.
        assert_eq!(renew_at(9, 3, None, 7), 9);
    }

    #[test]
    fn a_clock_set_back_neither_refills_nor_locks_up() {
        let mut bucket = Bucket::full(2, NOW);
        bucket.take(2, NOW);
        bucket.refill(2, NOW - 5 * DAY);
        assert!(bucket.left < 1.0 && bucket.ready_for(1.0, 2) <= NOW - 5 * DAY + WINDOW + 1);
        bucket.refill(2, NOW);
        assert!(bucket.left >= 1.0);
    }
}
