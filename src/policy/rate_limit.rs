//! Rate limits: so many requests in so long, per client, key, user or for all together.
//!
//! GCRA by `governor`: a bucket of `burst` units that refills evenly at the rate's pace. All buckets of the process
//! live in one bounded [`Table`], which also outlives reloads: a [`Limiter`] compiled again with the same id goes on
//! with the buckets it had. Give it an id made from whose the buckets are and the limit's text, so that a changed limit
//! begins afresh.
//!
//! A limit with `statuses` counts answers: a request is let in while its bucket has room, without a debit, and what it
//! owes is taken when its status is known ([`settle`]). Requests in flight at once may so pass the limit by as many as
//! they are.
//!
//! What clients are told follows draft-ietf-httpapi-ratelimit-headers: `RateLimit-Policy` and `RateLimit` on every
//! answer, `Retry-After` (RFC 9110 section 10.2.3) on refusals. Limits in shadow tell nothing, and those with `statuses`
//! only that they refuse.

mod key;
mod table;

#[cfg(test)]
mod tests;

pub use key::{Facts, Keys};
pub use table::{Fingerprint, Frame, Table};

use std::hash::Hasher;
use std::io::Write;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::clock::{Clock, MonotonicClock};
use governor::middleware::StateInformationMiddleware;
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::{Quota, RateLimiter};
use http::header::{HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};

use crate::base::address::ClientKey;
use crate::base::unit::Rate;
use crate::config::model::{Limit, Mode, Statuses};

/// The longest time between two refills of one request: 36 years. Longer ones are cut to it.
const INTERVAL_NS_MAX: u64 = 1 << 60;

/// The longest time in which a bucket fills: 146 years. Larger bursts are cut to it, so that no sum of times overflows.
const FILL_NS_MAX: u64 = 1 << 62;

const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// What a client hears a limit called that has no name.
const NAME: &str = "default";

/// One compiled limit.
pub struct Limiter<C: Clock = MonotonicClock> {
    governor: RateLimiter<Look, Buckets<C>, C, StateInformationMiddleware>,
    table: Arc<Table<C>>,
    keys: Keys,
    id: u64,
    burst: u32,
    cost: NonZeroU32,
    interval: Duration,
    name: Arc<str>,
    policy: HeaderValue,
}

/// A limit of a site or route, and whether it refuses.
#[derive(Clone)]
pub struct Rule<C: Clock = MonotonicClock> {
    /// Counts.
    pub limiter: Arc<Limiter<C>>,
    /// Whether it refuses.
    pub mode: Mode,
    /// Which answers count; `None`: every request.
    pub statuses: Option<Statuses>,
}

/// What several limits say about one request together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Round {
    /// The limit that a client should hear of, by its position, and what it said: the first that refuses, else the one
    /// with the fewest requests left. `None` where no limit is enforced.
    pub told: Option<(usize, Verdict)>,
    /// Whether a limit in shadow would have refused.
    pub would_block: bool,
    /// The client's address is a proxy's: what is counted by address refuses nobody.
    pub address_doubted: bool,
    /// What is to be taken when the status is known.
    owed: [Option<Owed>; OWED_MAX],
}

/// Limits with `statuses` that one request can meet: two of its site and two of its route.
const OWED_MAX: usize = 4;

/// A debit that waits for a status, and the position of its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Owed {
    position: usize,
    bucket: Fingerprint,
}

/// Which limits are asked: what a request is counted under may be known only after authentication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Those that need no user.
    Before,
    /// Those that do.
    After,
}

/// What a limit says about one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Whether the request may pass.
    pub allowed: bool,
    /// Units that a full bucket holds.
    pub limit: u32,
    /// Units left in the bucket after this request.
    pub remaining: u32,
    /// Units that a request takes.
    pub cost: u32,
    /// Time until the bucket is full again, rounded up to whole refills.
    pub reset: Duration,
    /// Time until such a request would be allowed; zero where this one was.
    pub retry_after: Duration,
}

impl Verdict {
    /// Requests like this one that are left.
    fn requests(&self) -> u32 {
        self.remaining / self.cost.max(1)
    }
}

impl<C: Clock + Clone> Limiter<C> {
    /// Compiles a limit. `id` tells its buckets from those of other limits in the same table.
    pub fn compile(limit: &Limit, table: &Arc<Table<C>>, id: u64) -> Limiter<C> {
        let (interval, burst) = shape(limit.rate, limit.burst);
        let interval = Duration::from_nanos(interval);
        let quota = Quota::with_period(interval).unwrap_or(Quota::per_second(burst)).allow_burst(burst);
        let fill = interval.saturating_mul(burst.get());
        let frame = Frame {
            // Read just before governor reads its own start. The nanoseconds in between make a bucket look fuller by
            // as much across limiters and reloads; within one limiter nothing shifts.
            start_ns: table.now_ns(),
            ahead_ns_max: u64::try_from(fill.as_nanos()).unwrap_or(u64::MAX),
        };
        let buckets = Buckets { table: Arc::clone(table), frame };
        let name = limit.name.clone().unwrap_or(Arc::from(NAME));
        let policy = format!("\"{name}\";q={burst};w={}", seconds_up(fill).max(1));
        Limiter {
            governor: RateLimiter::new(quota, buckets, table.clock().clone()),
            table: Arc::clone(table),
            keys: Keys::compile(&limit.keys),
            id,
            burst: burst.get(),
            cost: NonZeroU32::new(limit.cost.min(burst.get())).unwrap_or(NonZeroU32::MIN),
            interval,
            name,
            // Only digits and legal characters; the fallback is never taken.
            policy: HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static("\"default\"")),
        }
    }

    /// Whether it can be asked only once it is known who was authenticated.
    pub fn needs_user(&self) -> bool {
        self.keys.need_user()
    }

    /// Whether the client's address is part of what it counts by.
    pub fn counts_addresses(&self) -> bool {
        self.keys.have_address()
    }

    /// The bucket that a request is counted in.
    pub fn bucket(&self, facts: &Facts<'_>) -> Fingerprint {
        self.table.fingerprint(|hasher| {
            hasher.write_u64(self.id);
            self.keys.hash(facts, hasher);
        })
    }

    /// Takes one request out of a bucket, if there is as much left.
    pub fn check(&self, bucket: Fingerprint) -> Verdict {
        self.look(Look { bucket, debit: true })
    }

    /// Takes one out of the bucket of a client address, whatever the limit's keys.
    pub fn check_client(&self, client: ClientKey) -> Verdict {
        self.check(self.table.fingerprint(|hasher| {
            hasher.write_u64(self.id);
            hasher.write_u128(client.0);
        }))
    }

    /// Says what [`Limiter::check`] would say, and takes nothing.
    pub fn peek(&self, bucket: Fingerprint) -> Verdict {
        self.look(Look { bucket, debit: false })
    }

    fn look(&self, look: Look) -> Verdict {
        let decided = self.governor.check_key_n(&look, self.cost);
        let (limit, cost) = (self.burst, self.cost.get());
        match decided {
            Ok(Ok(state)) => {
                let remaining = state.remaining_burst_capacity().min(self.burst);
                let reset = self.interval.saturating_mul(self.burst.saturating_sub(remaining));
                Verdict { allowed: true, limit, remaining, cost, reset, retry_after: Duration::ZERO }
            }
            Ok(Err(until)) => {
                let wait = until.wait_time_from(self.governor.clock().now());
                let reset =
                    wait.saturating_add(self.interval.saturating_mul(self.burst.saturating_sub(cost)));
                Verdict { allowed: false, limit, remaining: 0, cost, reset, retry_after: wait }
            }
            // A request never costs more than a full bucket holds: never so.
            Err(_) => Verdict {
                allowed: true,
                limit,
                remaining: 0,
                cost,
                reset: Duration::ZERO,
                retry_after: Duration::ZERO,
            },
        }
    }

    /// Tells the client. Fields of the same name from a backend are replaced: this limit is the one in force here.
    pub fn write_headers(&self, verdict: &Verdict, headers: &mut HeaderMap) {
        headers.insert(RATELIMIT_POLICY, self.policy.clone());
        let (left, reset) = (verdict.remaining, seconds_up(verdict.reset));
        if let Some(value) = rendered(&self.name, left, reset) {
            headers.insert(RATELIMIT, value);
        }
        if !verdict.allowed {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds_up(verdict.retry_after).max(1)));
        }
    }
}

impl Round {
    /// Whether a limit that is enforced refuses.
    pub fn refused(&self) -> bool {
        self.told.is_some_and(|(_, verdict)| !verdict.allowed)
    }

    /// Whether something is to be taken when the status is known.
    pub fn owes(&self) -> bool {
        self.owed.first().is_some_and(Option::is_some)
    }

    fn owe(&mut self, owed: Owed) {
        if let Some(place) = self.owed.iter_mut().find(|place| place.is_none()) {
            *place = Some(owed);
        }
    }

    fn hear(&mut self, position: usize, verdict: Verdict) {
        let tightest = self.told.is_none_or(|(_, so_far)| verdict.requests() < so_far.requests());
        if tightest || !verdict.allowed {
            self.told = Some((position, verdict));
        }
    }
}

/// Asks several limits in turn, and adds what they say to what those before said. The first that refuses ends the round:
/// the ones after it are not debited. One in shadow is debited and never ends it.
pub fn check_all<'a, C: Clock + Clone + 'a>(
    rules: impl IntoIterator<Item = &'a Rule<C>>,
    facts: &Facts<'_>,
    when: When,
    round: &mut Round,
) {
    let asked = rules.into_iter().enumerate();
    for (position, rule) in asked.filter(|(_, rule)| rule.limiter.needs_user() == (when == When::After)) {
        let bucket = rule.limiter.bucket(facts);
        let verdict = match &rule.statuses {
            None => rule.limiter.check(bucket),
            Some(_) => rule.limiter.peek(bucket),
        };
        if rule.statuses.is_some() {
            round.owe(Owed { position, bucket });
        }
        let shadow = rule.mode == Mode::Shadow || (round.address_doubted && rule.limiter.counts_addresses());
        if shadow {
            round.would_block |= !verdict.allowed;
        } else if rule.statuses.is_none() || !verdict.allowed {
            round.hear(position, verdict);
        }
        if round.refused() {
            break;
        }
    }
}

/// The status of the answer is known: takes what is owed for it. `rules` are those that were asked, in their order.
pub fn settle<'a, C: Clock + Clone + 'a>(
    rules: impl Iterator<Item = &'a Rule<C>> + Clone,
    round: &mut Round,
    status: u16,
) {
    for owed in round.owed.iter_mut().map_while(Option::take) {
        let Some(rule) = rules.clone().nth(owed.position) else { continue };
        if rule.statuses.as_ref().is_some_and(|statuses| statuses.contains(status)) {
            // What a bucket no longer has is not taken: it is empty, which is all it can be.
            rule.limiter.check(owed.bucket);
        }
    }
}

/// Nanoseconds between two refills, and the size of the bucket; both within what can be added without overflow.
fn shape(rate: Rate, burst: u32) -> (u64, NonZeroU32) {
    let interval = rate.per.as_nanos() / u128::from(rate.count.max(1));
    let interval = u64::try_from(interval).unwrap_or(u64::MAX).clamp(1, INTERVAL_NS_MAX);
    let burst = u64::from(burst).min(FILL_NS_MAX / interval);
    let burst = u32::try_from(burst).unwrap_or(u32::MAX);
    (interval, NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN))
}

fn seconds_up(duration: Duration) -> u64 {
    duration.as_secs().saturating_add(u64::from(duration.subsec_nanos() > 0))
}

/// `"default";r=37;t=12`, put together on the stack; the one allocation is the value's own.
fn rendered(name: &str, left: u32, reset: u64) -> Option<HeaderValue> {
    // A name of 64 bytes in quotes, `;r=` + 10 digits, `;t=` + 20 digits.
    let mut buffer = [0u8; 112];
    let room = buffer.len();
    let mut rest: &mut [u8] = &mut buffer;
    let (mut left_text, mut reset_text) = (itoa::Buffer::new(), itoa::Buffer::new());
    for part in ["\"", name, "\";r=", left_text.format(left), ";t=", reset_text.format(reset)] {
        rest.write_all(part.as_bytes()).ok()?;
    }
    let used = room - rest.len();
    HeaderValue::from_bytes(buffer.get(..used)?).ok()
}

/// A look into a bucket, with or without a debit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Look {
    bucket: Fingerprint,
    debit: bool,
}

/// One limiter's view of the table, as governor wants it.
struct Buckets<C: Clock> {
    table: Arc<Table<C>>,
    frame: Frame,
}

impl<C: Clock> StateStore for Buckets<C> {
    type Key = Look;

    fn measure_and_replace<T, F, E>(&self, look: &Look, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        match look.debit {
            true => self.table.update(look.bucket, self.frame, decide),
            false => self.table.peek(look.bucket, self.frame, decide),
        }
    }
}
