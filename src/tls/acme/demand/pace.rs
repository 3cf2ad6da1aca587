//! So many in so long, as one number: half of them may come at once, the other half is the refill, so that no span of
//! time sees more than the rate allows.

use crate::base::clock::Millis;
use crate::base::unit::Rate;

/// How far a rate is used up.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pace {
    /// When all that was taken will be paid for.
    paid: u64,
}

impl Pace {
    /// Milliseconds until one more may be taken; 0 is now.
    pub fn wait(&self, rate: Rate, now: Millis) -> u64 {
        let (burst, each) = terms(rate);
        self.paid.saturating_sub(each.saturating_mul(burst - 1)).saturating_sub(now.0)
    }

    /// Takes one, if it may be taken.
    pub fn take(&mut self, rate: Rate, now: Millis) -> bool {
        if self.wait(rate, now) > 0 {
            return false;
        }
        let (_, each) = terms(rate);
        self.paid = self.paid.max(now.0).saturating_add(each);
        true
    }
}

/// How many may come at once, and the milliseconds in which one comes back.
fn terms(rate: Rate) -> (u64, u64) {
    let count = u64::from(rate.count.max(1));
    let burst = (count / 2).max(1);
    let per = u64::try_from(rate.per.as_millis()).unwrap_or(u64::MAX);
    (burst, per.div_ceil((count - burst).max(1)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn no_span_sees_more_than_the_rate_and_an_idle_one_sees_half_at_once() {
        for (count, at_once) in [(1, 1), (2, 1), (4, 2), (5, 2), (60, 30)] {
            let rate = Rate { count, per: Duration::from_secs(60) };
            let (mut pace, mut taken) = (Pace::default(), Vec::new());
            for now in (1_000..600_000).step_by(10) {
                if pace.take(rate, Millis(now)) {
                    taken.push(now);
                    assert!(pace.wait(rate, Millis(now)) <= 60_000);
                }
            }
            assert_eq!(taken.iter().filter(|at| **at < 1_000 + at_once * 10).count() as u64, at_once);
            for (position, start) in taken.iter().enumerate() {
                let end = taken.partition_point(|other| *other < start + 60_000);
                assert!(end - position <= count as usize, "{count}: {} in a minute", end - position);
            }
            assert!(taken.len() as u64 >= u64::from(count - count / 2) * 9, "{count}: the refill comes");
        }
    }
}
