//! The one table in which all rate limits of the process keep their buckets: bounded, lock-free, lazily allocated.
//!
//! A bucket is 16 bytes: the fingerprint of (limiter, client) and its TAT, GCRA's "theoretical arrival time": the
//! moment at which the bucket will be full again. TATs are nanoseconds since the table was made, so that one whose
//! moment has passed can be told apart whatever limiter it belongs to. Such a bucket is full, which is the same as
//! absent: its place can be taken and nothing is lost.
//!
//! A fingerprint belongs to one set of [`WAYS`] places. When all of them hold buckets that are not full yet, the one
//! closest to full gives way: its client starts again with a full bucket. The table *fails open* under a flood of
//! addresses larger than itself, rather than grow or refuse strangers; [`Table::evictions`] counts it. The hash is
//! seeded per process, so nobody can choose addresses that fall into one set.
//!
//! # Races
//!
//! The two halves of a place are separate atomics. What can go wrong when threads meet, and what bounds it:
//!
//! * *Two threads debit one bucket*: a compare-and-swap on the TAT; both count, exactly.
//! * *Two threads bring one new key*: the compare-and-swap on the fingerprint lets one claim the place, the other finds
//!   it. An expired TAT left there equals a full bucket, so that the claimer may lose the race to write the first
//!   debit, and both count, exactly.
//! * *They claim different places* (one saw a place expire that the other did not): whoever claims looks at the set
//!   again, and the lower place absorbs the higher. A debit under way in the higher one may be lost: at most one
//!   request per thread and event.
//! * *A place is claimed between finding and debiting*: the fingerprint is checked before and after the debit, and a
//!   debit that landed in somebody else's bucket is made again in the right one. The other's bucket may keep it. If
//!   that would shut the other out for longer than its own limit ever could, the TAT is recognised as foreign and
//!   ignored.
//! * *A live bucket is evicted*: the claimer clears its TAT, and a debit of the new owner made within that moment is
//!   lost: at most one request per thread and eviction.
//!
//! So every request allowed is debited somewhere, except for at most one per thread at such an event. Nothing here
//! panics or waits.

use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher, RandomState};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use governor::clock::{Clock, MonotonicClock, Reference};
use governor::nanos::Nanos;

/// Places in a set.
const WAYS: usize = 8;

/// Sets that are allocated together: 4 KiB.
const SEGMENT_SETS: usize = 32;

/// How often a request looks for its place again before it is let through uncounted. Each time means that another
/// thread took a place of the same set in between.
const ATTEMPTS_MAX: usize = 64;

/// The fingerprint of a free place.
const FREE: u64 = 0;

/// The buckets of every rate limit.
pub struct Table<C: Clock = MonotonicClock> {
    segments: Box<[OnceLock<Box<[Set]>>]>,
    sets: usize,
    seed: RandomState,
    evictions: AtomicU64,
    clock: C,
    epoch: C::Instant,
}

/// Two cache lines: the fingerprints, which every lookup reads, and the TATs, of which it reads one.
#[derive(Default)]
#[repr(align(64))]
struct Set {
    fingerprints: [AtomicU64; WAYS],
    tats: [AtomicU64; WAYS],
}

#[derive(Clone, Copy)]
struct Place<'a> {
    way: usize,
    fingerprint: &'a AtomicU64,
    tat: &'a AtomicU64,
}

/// The hash by which a bucket is known. 64 bits for a few million keys: two of them meet once in millions of years of
/// restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(u64);

/// What a limiter knows about its own times.
#[derive(Clone, Copy)]
pub struct Frame {
    /// The limiter's start, in nanoseconds since the table was made.
    pub start_ns: u64,
    /// How far a TAT of this limiter can lie ahead: the time in which an empty bucket fills.
    pub ahead_ns_max: u64,
}

impl Table {
    /// A table with room for `entries` buckets of 16 bytes each, at least one set of 8. Memory is taken in pieces of
    /// 4 KiB when they are first needed.
    pub fn new(entries: usize) -> Table {
        Table::with_clock(entries, MonotonicClock)
    }
}

impl<C: Clock> Table<C> {
    /// As [`Table::new`], with a clock of one's own.
    pub fn with_clock(entries: usize, clock: C) -> Table<C> {
        let sets = (entries / WAYS).max(1);
        let segments = (0..sets.div_ceil(SEGMENT_SETS)).map(|_| OnceLock::new()).collect();
        let epoch = clock.now();
        Table { segments, sets, seed: RandomState::new(), evictions: AtomicU64::new(0), clock, epoch }
    }

    /// How many buckets fit.
    pub fn capacity(&self) -> usize {
        self.sets * WAYS
    }

    /// How many buckets that were still in use gave way to others. Anything but zero means that `limit_entries` is too
    /// small for the clients there are, or that somebody sprays addresses.
    pub fn evictions(&self) -> u64 {
        self.evictions.load(Ordering::Relaxed)
    }

    pub(super) fn clock(&self) -> &C {
        &self.clock
    }

    /// Nanoseconds since the table was made.
    pub fn now_ns(&self) -> u64 {
        self.clock.now().duration_since(self.epoch).as_u64()
    }

    /// The fingerprint of what `feed` gives to the hash, under a seed of this process.
    pub fn fingerprint(&self, feed: impl FnOnce(&mut DefaultHasher)) -> Fingerprint {
        let mut hasher = self.seed.build_hasher();
        feed(&mut hasher);
        Fingerprint(hasher.finish().max(FREE + 1))
    }

    /// A number for a name, under the same seed: the same one as long as the process lives.
    pub fn id(&self, name: &impl Hash) -> u64 {
        self.seed.hash_one(name)
    }

    /// The moment kept for a fingerprint, in nanoseconds since the table was made; 0 where there is none.
    pub fn moment(&self, Fingerprint(fingerprint): Fingerprint) -> u64 {
        let place = self.known(fingerprint).and_then(|set| set.find(fingerprint));
        place.map_or(0, |place| place.tat.load(Ordering::Acquire))
    }

    /// Keeps a moment for a fingerprint, whatever was kept before. One that has passed is forgotten.
    pub fn set_moment(&self, fingerprint: Fingerprint, moment_ns: u64) {
        let frame = Frame { start_ns: 0, ahead_ns_max: u64::MAX };
        let _ = self.update::<(), ()>(fingerprint, frame, |_| Ok(((), Nanos::new(moment_ns))));
    }

    /// Decides by `decide` as [`Table::update`] does, and keeps nothing. Takes no memory either.
    pub(super) fn peek<T, E>(
        &self,
        Fingerprint(fingerprint): Fingerprint,
        frame: Frame,
        decide: impl Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    ) -> Result<T, E> {
        let place = self.known(fingerprint).and_then(|set| set.find(fingerprint));
        let tat = place.map_or(0, |place| place.tat.load(Ordering::Acquire));
        self.decided(tat, frame, decide).map(|(value, _)| value)
    }

    /// Decides by `decide`, which takes the bucket's TAT in the limiter's own time and gives the next one, and keeps
    /// what it decided.
    pub fn update<T, E>(
        &self,
        Fingerprint(fingerprint): Fingerprint,
        frame: Frame,
        decide: impl Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    ) -> Result<T, E> {
        if let Some(set) = self.set(fingerprint) {
            for _ in 0..ATTEMPTS_MAX {
                let place = set.find(fingerprint).or_else(|| self.claim(set, fingerprint));
                if let Some(place) = place
                    && let Some(decision) = self.debit(place, fingerprint, frame, &decide)
                {
                    return decision;
                }
            }
        }
        self.evictions.fetch_add(1, Ordering::Relaxed);
        decide(None).map(|(value, _)| value)
    }

    /// The high half of the product spreads the hash over any number of sets, not only powers of two.
    fn position(&self, fingerprint: u64) -> Option<usize> {
        usize::try_from((u128::from(fingerprint) * self.sets as u128) >> 64).ok()
    }

    /// The set of a fingerprint, if there is one already.
    fn known(&self, fingerprint: u64) -> Option<&Set> {
        let set = self.position(fingerprint)?;
        self.segments.get(set / SEGMENT_SETS)?.get()?.get(set % SEGMENT_SETS)
    }

    fn set(&self, fingerprint: u64) -> Option<&Set> {
        let set = self.position(fingerprint)?;
        let segment = self.segments.get(set / SEGMENT_SETS)?;
        let sets = segment.get_or_init(|| {
            let begin = set - set % SEGMENT_SETS;
            (0..SEGMENT_SETS.min(self.sets - begin)).map(|_| Set::default()).collect()
        });
        sets.get(set % SEGMENT_SETS)
    }

    /// Takes a place for a fingerprint that has none. `None`: another thread took the place that was chosen.
    fn claim<'a>(&self, set: &'a Set, fingerprint: u64) -> Option<Place<'a>> {
        let now = self.now_ns();
        let mut victim: Option<(Place<'_>, u64, u64, u64)> = None;
        // Each fingerprint begins at a way of its own, so that threads in need of a place seldom want the same one.
        let (all, start) = (set.places(), usize::try_from(fingerprint % WAYS as u64).unwrap_or(0));
        for place in all.clone().skip(start).chain(all.take(start)) {
            let owner = place.fingerprint.load(Ordering::SeqCst);
            if owner == fingerprint {
                // Another thread brought the same key since we looked.
                return Some(place);
            }
            let tat = place.tat.load(Ordering::SeqCst);
            let rank = match (owner, tat) {
                (FREE, _) => 0,
                // Claimed a moment ago and not debited yet: taken only when there is nothing else.
                (_, 0) => u64::MAX,
                (_, tat) if tat <= now => 0,
                (_, tat) => tat,
            };
            if victim.is_none_or(|(.., smallest)| rank < smallest) {
                victim = Some((place, owner, tat, rank));
            }
            if rank == 0 {
                break;
            }
        }
        let (place, owner, tat, _) = victim?;
        place.fingerprint.compare_exchange(owner, fingerprint, Ordering::SeqCst, Ordering::SeqCst).ok()?;
        if tat <= now {
            // Only a mark that the place is new. Who debited it since has replaced the TAT, and that stands.
            let _ = place.tat.compare_exchange(tat, 0, Ordering::SeqCst, Ordering::SeqCst);
        } else {
            place.tat.store(0, Ordering::SeqCst);
            self.evictions.fetch_add(u64::from(owner != FREE), Ordering::Relaxed);
        }
        Some(set.merge(place, fingerprint))
    }

    /// Decides on the bucket at `place`. `None`: the place is no longer the fingerprint's.
    fn debit<T, E>(
        &self,
        place: Place<'_>,
        fingerprint: u64,
        frame: Frame,
        decide: impl Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    ) -> Option<Result<T, E>> {
        let ours = || place.fingerprint.load(Ordering::SeqCst) == fingerprint;
        let mut tat = place.tat.load(Ordering::Acquire);
        // Each turn means that another thread's debit succeeded.
        loop {
            if !ours() {
                return None;
            }
            let (value, next) = match self.decided(tat, frame, &decide) {
                Ok(allowed) => allowed,
                Err(refused) => return Some(Err(refused)),
            };
            let next = next.as_u64().saturating_add(frame.start_ns);
            match place.tat.compare_exchange_weak(tat, next, Ordering::SeqCst, Ordering::Acquire) {
                Ok(_) => return ours().then_some(Ok(value)),
                Err(current) => tat = current,
            }
        }
    }

    fn decided<T, E>(
        &self,
        tat: u64,
        frame: Frame,
        decide: impl Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    ) -> Result<(T, Nanos), E> {
        // A TAT before the limiter's start has passed: zero says the same.
        match decide(Some(Nanos::new(tat.saturating_sub(frame.start_ns)))) {
            // No bucket of this limiter can be that far ahead: somebody else's debit, or a larger limit that an
            // operator has since lowered.
            Err(_) if tat > self.now_ns().saturating_add(frame.ahead_ns_max) => decide(None),
            decided => decided,
        }
    }

    /// Memory taken so far for buckets, in bytes.
    pub fn bytes(&self) -> usize {
        self.segments_allocated() * SEGMENT_SETS * size_of::<Set>()
    }

    /// Walks the whole table: not for requests.
    pub(super) fn segments_allocated(&self) -> usize {
        self.segments.iter().filter(|segment| segment.get().is_some()).count()
    }
}

impl Set {
    fn places(&self) -> impl Iterator<Item = Place<'_>> + Clone {
        let pairs = self.fingerprints.iter().zip(&self.tats).enumerate();
        pairs.map(|(way, (fingerprint, tat))| Place { way, fingerprint, tat })
    }

    fn find(&self, fingerprint: u64) -> Option<Place<'_>> {
        self.places().find(|place| place.fingerprint.load(Ordering::SeqCst) == fingerprint)
    }

    /// Leaves one place of the set to the fingerprint, the lowest, and gives it the latest TAT.
    fn merge<'a>(&'a self, claimed: Place<'a>, fingerprint: u64) -> Place<'a> {
        let mut kept = claimed;
        for other in self.places().filter(|place| place.way != claimed.way) {
            if other.fingerprint.load(Ordering::SeqCst) != fingerprint {
                continue;
            }
            let dropped = if other.way < kept.way { std::mem::replace(&mut kept, other) } else { other };
            kept.tat.fetch_max(dropped.tat.load(Ordering::SeqCst), Ordering::SeqCst);
            let _ =
                dropped.fingerprint.compare_exchange(fingerprint, FREE, Ordering::SeqCst, Ordering::SeqCst);
        }
        kept
    }
}
