//! What may be tried again, and the budget that keeps retries from becoming a storm. Pure: times come from the caller.
//!
//! Retries cost the backends most when they can bear it least. So each request of a service earns a share of a retry,
//! good for [`WINDOW_S`] seconds, and a retry needs a whole one; besides there is a floor of some a second, or a service
//! with few requests would have none. When every backend is dead, tries stay below requests × (1 + budget) + the floor,
//! whatever `tries` says.
//!
//! The budget is shared by all workers and takes no lock: a ring of atomics, one for each second.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::base::clock::Millis;
use crate::base::outcome::Outcome;
use crate::config::model::{self, Cause};

/// Seconds for which what a request earned may be spent.
pub const WINDOW_S: u64 = 10;
const SLOTS: usize = 10;
/// What a retry costs; a request earns the hundredth part of it for each percent of the budget.
const PRICE: u32 = 100;

/// `retry` of a service, compiled.
#[derive(Debug, Clone)]
pub struct Retry {
    /// Tries for one request, the first included.
    pub tries: u32,
    /// How long one try may wait while another endpoint could be asked.
    pub per_try: Option<Duration>,
    /// How long all tries may take together.
    pub total: Option<Duration>,
    /// Whether any status of an answer leads to another try.
    pub statuses: bool,
    budget: u32,
    floor: u32,
    on: Box<[Cause]>,
}

impl Retry {
    /// Compiles the setting.
    pub fn compile(said: &model::Retry) -> Retry {
        Retry {
            tries: said.tries.max(1),
            per_try: said.per_try.filter(|_| said.tries > 1),
            total: said.total,
            statuses: said.tries > 1 && said.on.iter().any(|cause| matches!(cause, Cause::Status(_))),
            budget: said.budget,
            floor: said.floor,
            on: said.on.clone().into_boxed_slice(),
        }
    }

    /// Whether another try may follow a failure for this cause.
    pub fn follows(&self, cause: Cause) -> bool {
        self.on.contains(&cause)
    }
}

/// Why a try that ended so failed; `None` where no other try can help.
pub fn cause(outcome: Outcome) -> Option<Cause> {
    match outcome {
        Outcome::ConnectRefused
        | Outcome::ConnectFailed
        | Outcome::ConnectTimeout
        | Outcome::UpstreamName
        | Outcome::UpstreamTls
        | Outcome::UpstreamNotH2
        | Outcome::UpstreamBusy => Some(Cause::Connect),
        Outcome::UpstreamClosed | Outcome::UpstreamReset | Outcome::UpstreamTruncated => Some(Cause::Reset),
        Outcome::UpstreamTimeout => Some(Cause::Timeout),
        _ => None,
    }
}

/// What a service may spend on retries. Outlives reloads.
#[derive(Debug, Default)]
pub struct Budget {
    /// What requests earned in a second: its number in the high 32 bits (wraps after 136 years), the rest in the low.
    slots: [AtomicU64; SLOTS],
    /// Up to when the floor is spent, in microseconds of process time.
    floor_spent: AtomicU64,
}

impl Budget {
    /// A request has come.
    pub fn earn(&self, retry: &Retry, now: Millis) {
        if retry.budget > 0 && retry.tries > 1 {
            self.put(now.0 / 1000, retry.budget);
        }
    }

    /// Pays for a retry; `false`: there is nothing left to pay with.
    pub fn pay(&self, retry: &Retry, now: Millis) -> bool {
        self.pay_from_earned(now.0 / 1000) || self.pay_from_floor(retry.floor, now)
    }

    fn put(&self, second: u64, credit: u32) {
        let Some(slot) = self.slot(second) else { return };
        let add = |packed| {
            let (number, held) = unpack(packed);
            let held = if number == low(second) { held } else { 0 };
            Some(pack(second, held.saturating_add(credit)))
        };
        let _ = slot.fetch_update(Relaxed, Relaxed, add);
    }

    /// Takes the oldest first, so that nothing expires that could have been spent.
    fn pay_from_earned(&self, second: u64) -> bool {
        let mut missing = PRICE;
        for age in (0..WINDOW_S).rev() {
            let Some(of) = second.checked_sub(age) else { continue };
            let Some(slot) = self.slot(of) else { continue };
            let taken = slot.fetch_update(Relaxed, Relaxed, |packed| {
                let (number, held) = unpack(packed);
                (number == low(of) && held > 0).then(|| pack(of, held - held.min(missing)))
            });
            if let Ok(before) = taken {
                missing -= unpack(before).1.min(missing);
            }
            if missing == 0 {
                return true;
            }
        }
        // Not enough for a whole one: it stays good for those after us.
        if missing < PRICE {
            self.put(second, PRICE - missing);
        }
        false
    }

    /// A bucket that holds what the floor gives in a second.
    fn pay_from_floor(&self, floor: u32, now: Millis) -> bool {
        let Some(each) = 1_000_000u64.checked_div(u64::from(floor)) else { return false };
        let now = now.0.saturating_mul(1000);
        let spend = |spent: u64| {
            let next = spent.max(now).saturating_add(each);
            (next <= now.saturating_add(1_000_000)).then_some(next)
        };
        self.floor_spent.fetch_update(Relaxed, Relaxed, spend).is_ok()
    }

    fn slot(&self, second: u64) -> Option<&AtomicU64> {
        self.slots.get(usize::try_from(second % WINDOW_S).unwrap_or(0))
    }
}

fn pack(second: u64, credit: u32) -> u64 {
    u64::from(low(second)) << 32 | u64::from(credit)
}

fn unpack(packed: u64) -> (u32, u32) {
    (low(packed >> 32), low(packed))
}

fn low(value: u64) -> u32 {
    u32::try_from(value & u64::from(u32::MAX)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retry(budget: u32, floor: u32) -> Retry {
        Retry::compile(&model::Retry { budget, floor, ..model::Retry::default() })
    }

    /// Requests that all fail: how many retries they are given.
    fn storm(budget: &Budget, retry: &Retry, requests: u64, from_ms: u64, to_ms: u64) -> u64 {
        let mut paid = 0;
        for i in 0..requests {
            let now = Millis(from_ms + (to_ms - from_ms) * i / requests);
            budget.earn(retry, now);
            paid += (1..retry.tries).filter(|_| budget.pay(retry, now)).count() as u64;
        }
        paid
    }

    #[test]
    fn when_everything_fails_retries_are_the_budget_and_the_floor_and_no_more() {
        for (percent, floor, requests) in [(20, 10, 30_000), (20, 0, 30_000), (0, 10, 30_000), (100, 0, 500)]
        {
            let (budget, retry) = (Budget::default(), retry(percent, floor));
            let paid = storm(&budget, &retry, requests, 5_000, 35_000);
            let share = requests * u64::from(percent) / 100;
            let floors = u64::from(floor) * 31;
            assert!(paid <= share + floors, "{percent}% + {floor}: {paid}");
            assert!(
                paid + 1 >= share + floors.saturating_sub(u64::from(floor) * 2),
                "{percent}% + {floor}: {paid}"
            );
        }
    }

    #[test]
    fn what_was_earned_expires_and_the_floor_fills_again() {
        let (budget, plain) = (Budget::default(), retry(20, 0));
        for _ in 0..1000 {
            budget.earn(&plain, Millis(1_000));
        }
        assert!(budget.pay(&plain, Millis(10_999)), "ten seconds on it is still good");
        assert!(!budget.pay(&plain, Millis(11_000)), "and then no more");
        let floor = retry(0, 5);
        let paid = |ms| (0..100).filter(|_| budget.pay(&floor, Millis(ms))).count();
        assert_eq!((paid(20_000), paid(20_000), paid(20_400), paid(60_000)), (5, 0, 2, 5));
    }

    #[test]
    fn shares_of_a_retry_add_up_over_seconds_and_are_not_lost_by_asking() {
        let (budget, retry) = (Budget::default(), retry(20, 0));
        for second in 0..4 {
            budget.earn(&retry, Millis(second * 1000));
            assert!(!budget.pay(&retry, Millis(second * 1000)));
        }
        budget.earn(&retry, Millis(4_000));
        assert!(budget.pay(&retry, Millis(4_000)), "five requests earn one");
        assert!(!budget.pay(&retry, Millis(4_000)));
    }

    #[test]
    fn workers_together_spend_no_more_than_one_alone() {
        let (budget, retry) = (Budget::default(), retry(20, 0));
        let paid: u64 = std::thread::scope(|scope| {
            let workers: Vec<_> =
                (0..4).map(|_| scope.spawn(|| storm(&budget, &retry, 5_000, 0, 9_000))).collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        assert!(paid <= 4_000, "{paid}");
        assert!(paid >= 3_900, "{paid}");
    }

    #[test]
    fn only_what_another_backend_may_do_better_is_tried_again() {
        let retry = retry(20, 10);
        let again = |outcome| cause(outcome).is_some_and(|cause| retry.follows(cause));
        assert!(again(Outcome::ConnectRefused) && again(Outcome::UpstreamClosed));
        for outcome in
            [Outcome::UpstreamInvalid, Outcome::BodyTooLarge, Outcome::NoDescriptor, Outcome::ClientGone]
        {
            assert!(!again(outcome), "{outcome:?}");
        }
        assert!(!retry.follows(Cause::Status(503)) && !retry.statuses);
    }
}
