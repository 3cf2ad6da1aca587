//! Rise and fall: how the answers to a health check become a state.
//!
//! The first answer of an endpoint that nothing is known about counts at once, whichever it is: a start does not wait
//! for `rise` probes, and a container that is not ready yet gets no requests. After that `fall` bad answers in a row
//! take an endpoint out and `rise` good ones bring it back. While either is being counted it is asked more often.

use std::time::Duration;

use crate::config::model;
use crate::upstream::endpoint::Health;

/// How far a time between two probes varies, in parts of it, to either side.
const JITTER: f64 = 0.1;

/// Answers of one kind in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Streak {
    good: u32,
    bad: u32,
}

/// What a probe found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// A good answer.
    Well,
    /// An answer that is not good, or none in time.
    Ill,
    /// No connection.
    Unreachable,
}

impl Streak {
    /// The state after one more answer.
    pub fn heard(&mut self, state: Health, found: Found, check: &model::Health) -> Health {
        let ill = if found == Found::Unreachable { Health::Unreachable } else { Health::Unhealthy };
        match found {
            Found::Well => (self.good, self.bad) = (self.good.saturating_add(1), 0),
            Found::Ill | Found::Unreachable => (self.good, self.bad) = (0, self.bad.saturating_add(1)),
        }
        match (state, found) {
            (Health::Unknown | Health::Joining, Found::Well) => Health::Healthy,
            (Health::Unknown | Health::Joining, _) => ill,
            (Health::Healthy, Found::Ill | Found::Unreachable) if self.bad >= check.fall => ill,
            (Health::Unhealthy | Health::Unreachable, Found::Well) if self.good >= check.rise => {
                Health::Healthy
            }
            // It is still out, perhaps for another reason.
            (Health::Unhealthy | Health::Unreachable, Found::Ill | Found::Unreachable) => ill,
            (state, _) => state,
        }
    }

    /// How long after the beginning of the last probe the next one begins; `random` is 64 random bits.
    pub fn pause(&self, state: Health, check: &model::Health, random: u64) -> Duration {
        let turning = match state {
            Health::Unknown | Health::Joining => true,
            Health::Healthy => self.bad > 0,
            Health::Unhealthy | Health::Unreachable => self.good > 0,
        };
        let pause = if turning { check.fast_interval } else { check.interval };
        pause.mul_f64(1.0 - JITTER + 2.0 * JITTER * unit(random))
    }
}

/// A moment anywhere within an interval; `random` is 64 random bits.
pub fn phase(interval: Duration, random: u64) -> Duration {
    interval.mul_f64(unit(random))
}

/// A number from 0 to 1 from the high random bits.
fn unit(random: u64) -> f64 {
    (random >> 40) as f64 / (1u64 << 24) as f64
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::config::model::Check;

    pub(in crate::upstream::health) fn check(rise: u32, fall: u32) -> model::Health {
        model::Health {
            check: Check::Tcp,
            address: None,
            port: None,
            interval: Duration::from_secs(5),
            fast_interval: Duration::from_secs(1),
            timeout: Duration::from_secs(2),
            rise,
            fall,
        }
    }

    /// `+` well, `-` ill, `x` unreachable; gives the states after each: `?HUXJ`.
    fn story(start: Health, rise: u32, fall: u32, answers: &str) -> String {
        let (check, mut streak, mut state) = (check(rise, fall), Streak::default(), start);
        let hear = |answer| {
            let found = match answer {
                '+' => Found::Well,
                '-' => Found::Ill,
                _ => Found::Unreachable,
            };
            state = streak.heard(state, found, &check);
            match state {
                Health::Unknown => '?',
                Health::Healthy => 'H',
                Health::Unhealthy => 'U',
                Health::Unreachable => 'X',
                Health::Joining => 'J',
            }
        };
        answers.chars().map(hear).collect()
    }

    #[test]
    fn the_first_answer_counts_at_once() {
        for start in [Health::Unknown, Health::Joining] {
            assert_eq!(story(start, 3, 3, "+"), "H");
            assert_eq!(story(start, 3, 3, "-"), "U");
            assert_eq!(story(start, 3, 3, "x"), "X");
        }
    }

    #[test]
    fn rise_and_fall_are_counted_in_a_row() {
        assert_eq!(story(Health::Healthy, 2, 3, "--+--+---"), "HHHHHHHHU");
        assert_eq!(story(Health::Unhealthy, 3, 1, "++-++-+++"), "UUUUUUUUH");
        assert_eq!(story(Health::Healthy, 1, 1, "-+-+"), "UHUH", "who wants every answer to count gets it");
    }

    #[test]
    fn why_it_is_out_follows_the_last_bad_answer() {
        assert_eq!(story(Health::Healthy, 2, 2, "-xx-+-++"), "HXXUUUUH");
    }

    #[test]
    fn a_backend_that_flaps_with_every_answer_stays_as_it_was() {
        assert_eq!(story(Health::Healthy, 2, 2, &"-+".repeat(50)), "H".repeat(100));
        assert_eq!(story(Health::Unhealthy, 2, 2, &"+-".repeat(50)), "U".repeat(100));
    }

    #[test]
    fn it_is_asked_more_often_while_a_change_is_being_counted() {
        let check = check(2, 2);
        let mut streak = Streak::default();
        let middle = 1u64 << 63;
        let pause = |streak: &Streak, state| streak.pause(state, &check, middle).as_millis();
        assert_eq!(pause(&streak, Health::Unknown), 1000);
        assert_eq!(pause(&streak, Health::Healthy), 5000);
        streak.heard(Health::Healthy, Found::Ill, &check);
        assert_eq!((pause(&streak, Health::Healthy), pause(&streak, Health::Unhealthy)), (1000, 5000));
        streak.heard(Health::Unhealthy, Found::Well, &check);
        assert_eq!((pause(&streak, Health::Unhealthy), pause(&streak, Health::Healthy)), (1000, 5000));
        let pauses = [0, u64::MAX].map(|random| streak.pause(Health::Healthy, &check, random).as_millis());
        assert_eq!(pauses, [4500, 5499]);
        assert_eq!([0, u64::MAX].map(|random| phase(check.interval, random).as_millis()), [0, 4999]);
    }
}
