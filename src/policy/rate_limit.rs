//! Rate limits: so many requests in so long, per client or for all together.
//!
//! GCRA by `governor`: a bucket of `burst` requests that refills evenly at the rate's pace. All buckets of the process
//! live in one bounded [`Table`], which also outlives reloads: a [`Limiter`] compiled again with the same id goes on
//! with the buckets it had. Give it an id made from the site, the route and the limit's text, so that a changed limit
//! begins afresh.
//!
//! What clients are told follows draft-ietf-httpapi-ratelimit-headers: `RateLimit-Policy` and `RateLimit` on every
//! answer, `Retry-After` (RFC 9110 section 10.2.3) on refusals.

mod table;

#[cfg(test)]
mod tests;

pub use table::Table;

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
use crate::config::model::{Limit, LimitKey, Mode};
use table::Frame;

/// The longest time between two refills of one request: 36 years. Longer ones are cut to it.
const INTERVAL_NS_MAX: u64 = 1 << 60;

/// The longest time in which a bucket fills: 146 years. Larger bursts are cut to it, so that no sum of times overflows.
const FILL_NS_MAX: u64 = 1 << 62;

const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// One compiled limit.
pub struct Limiter<C: Clock = MonotonicClock> {
    governor: RateLimiter<ClientKey, Buckets<C>, C, StateInformationMiddleware>,
    key: LimitKey,
    burst: u32,
    interval: Duration,
    policy: HeaderValue,
}

/// A limit of a site or route, and whether it refuses.
pub struct Rule<C: Clock = MonotonicClock> {
    /// Counts.
    pub limiter: Arc<Limiter<C>>,
    /// Whether it refuses.
    pub mode: Mode,
}

/// What several limits say about one request together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Round {
    /// The limit that a client should hear of, by its position, and what it said: the first that refuses, else the one
    /// with the fewest requests left. `None` where no limit is enforced.
    pub told: Option<(usize, Verdict)>,
    /// Whether a limit in shadow would have refused.
    pub would_block: bool,
}

/// What a limit says about one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Whether the request may pass.
    pub allowed: bool,
    /// Requests that a full bucket holds.
    pub limit: u32,
    /// Requests left in the bucket after this one.
    pub remaining: u32,
    /// Time until the bucket is full again, rounded up to whole refills.
    pub reset: Duration,
    /// Time until the next request would be allowed; zero where this one was.
    pub retry_after: Duration,
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
        let buckets = Buckets { table: Arc::clone(table), limiter: id, frame };
        let policy = format!("\"default\";q={burst};w={}", seconds_up(fill).max(1));
        Limiter {
            governor: RateLimiter::new(quota, buckets, table.clock().clone()),
            key: limit.key,
            burst: burst.get(),
            interval,
            // Only digits and legal characters; the fallback is never taken.
            policy: HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static("\"default\"")),
        }
    }

    /// Takes one request out of the client's bucket, if there is one left.
    pub fn check(&self, client: ClientKey) -> Verdict {
        let key = match self.key {
            LimitKey::ClientIp => client,
            LimitKey::Site => ClientKey(0),
        };
        match self.governor.check_key(&key) {
            Ok(state) => {
                let remaining = state.remaining_burst_capacity().min(self.burst);
                Verdict {
                    allowed: true,
                    limit: self.burst,
                    remaining,
                    reset: self.interval.saturating_mul(self.burst.saturating_sub(remaining)),
                    retry_after: Duration::ZERO,
                }
            }
            Err(until) => {
                let wait = until.wait_time_from(self.governor.clock().now());
                Verdict {
                    allowed: false,
                    limit: self.burst,
                    remaining: 0,
                    reset: wait.saturating_add(self.interval.saturating_mul(self.burst.saturating_sub(1))),
                    retry_after: wait,
                }
            }
        }
    }

    /// Tells the client. Fields of the same name from a backend are replaced: this limit is the one in force here.
    pub fn write_headers(&self, verdict: &Verdict, headers: &mut HeaderMap) {
        headers.insert(RATELIMIT_POLICY, self.policy.clone());
        let (left, reset) = (verdict.remaining, seconds_up(verdict.reset));
        if let Some(value) = rendered(left, reset) {
            headers.insert(RATELIMIT, value);
        }
        if !verdict.allowed {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds_up(verdict.retry_after).max(1)));
        }
    }
}

/// Asks several limits in turn. The first that refuses ends the round: the ones after it are not debited. One in shadow
/// is debited and never ends it.
pub fn check_all<'a, C: Clock + Clone + 'a>(
    rules: impl IntoIterator<Item = &'a Rule<C>>,
    client: ClientKey,
) -> Round {
    let mut round = Round::default();
    for (position, rule) in rules.into_iter().enumerate() {
        let verdict = rule.limiter.check(client);
        if rule.mode == Mode::Shadow {
            round.would_block |= !verdict.allowed;
            continue;
        }
        let tightest = round.told.is_none_or(|(_, so_far)| verdict.remaining < so_far.remaining);
        if tightest || !verdict.allowed {
            round.told = Some((position, verdict));
        }
        if !verdict.allowed {
            break;
        }
    }
    round
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
fn rendered(left: u32, reset: u64) -> Option<HeaderValue> {
    // `"default";r=` + 10 digits + `;t=` + 20 digits.
    let mut buffer = [0u8; 64];
    let room = buffer.len();
    let mut rest: &mut [u8] = &mut buffer;
    let (mut left_text, mut reset_text) = (itoa::Buffer::new(), itoa::Buffer::new());
    for part in ["\"default\";r=", left_text.format(left), ";t=", reset_text.format(reset)] {
        rest.write_all(part.as_bytes()).ok()?;
    }
    let used = room - rest.len();
    HeaderValue::from_bytes(buffer.get(..used)?).ok()
}

/// One limiter's view of the table, as governor wants it.
struct Buckets<C: Clock> {
    table: Arc<Table<C>>,
    limiter: u64,
    frame: Frame,
}

impl<C: Clock> StateStore for Buckets<C> {
    type Key = ClientKey;

    fn measure_and_replace<T, F, E>(&self, key: &ClientKey, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        self.table.update(self.limiter, key, self.frame, decide)
    }
}
