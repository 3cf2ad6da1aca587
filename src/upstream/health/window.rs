//! Which endpoint of a service fails more, or is slower, than it may, over a window of time.
//!
//! Workers only count ([`Tally`]); once a second the control plane reads the counts and compares. Nothing of this is paid
//! by a request. A window begins anew when an endpoint was out: what it did before was answered for.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::group::Group;
use super::passive::Cause;
use crate::base::clock::Millis;
use crate::base::gentle;
use crate::config::model::Eject;
use crate::upstream::endpoint::Endpoint;

/// Readings kept of one endpoint, whatever the window.
const READINGS_MAX: u64 = 20;

/// How much slower than the others an endpoint must be, in microseconds: among backends that answer in a millisecond
/// one that takes five is no outlier.
const SLOWER_US_MIN: u64 = 20_000;

/// What an endpoint has done since it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Requests ended.
    pub requests: u64,
    /// How many of them failed.
    pub failures: u64,
    /// How many were answered.
    pub answers: u64,
    /// Sum of the times to the first byte of those, in microseconds.
    pub latency_us: u64,
}

impl Tally {
    fn since(&self, before: &Tally) -> Tally {
        Tally {
            requests: self.requests.saturating_sub(before.requests),
            failures: self.failures.saturating_sub(before.failures),
            answers: self.answers.saturating_sub(before.answers),
            latency_us: self.latency_us.saturating_sub(before.latency_us),
        }
    }

    fn mean_us(&self) -> Option<u64> {
        self.latency_us.checked_div(self.answers)
    }
}

/// The readings of one endpoint.
#[derive(Debug, Default)]
pub struct Window {
    readings: VecDeque<(Millis, Tally)>,
}

impl Window {
    /// What was done within the window that ends now.
    pub fn read(&mut self, now: Millis, tally: Tally, span: Duration) -> Tally {
        let span = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let begin = now.0.saturating_sub(span);
        // The newest reading that is as old as the window is its beginning.
        while self.readings.get(1).is_some_and(|(at, _)| at.0 <= begin) {
            self.readings.pop_front();
        }
        let apart = span / READINGS_MAX;
        if self.readings.back().is_none_or(|(at, _)| now.0.saturating_sub(at.0) >= apart) {
            self.readings.push_back((now, tally));
        }
        self.readings.front().map(|(_, before)| tally.since(before)).unwrap_or_default()
    }

    /// Forgets everything: the window begins anew.
    pub fn clear(&mut self) {
        self.readings.clear();
    }
}

/// The windows of all endpoints whose service has rules that need one.
#[derive(Debug, Default)]
pub struct Windows {
    /// By the id of the endpoint; whoever was not looked at is forgotten.
    known: HashMap<u64, Window>,
}

impl Windows {
    /// Looks at all services, ejects whom their rules condemn, and counts anew whether they are to panic.
    pub fn look(&mut self, groups: &[Arc<Group>], now: Millis) {
        let mut kept = HashMap::with_capacity(self.known.len());
        for group in gentle::each(groups) {
            if let Some(rules) = group.rules().filter(|_| group.counts()) {
                self.compare(&group.members(), &rules, &mut kept, now);
            }
            group.reconsider(now);
        }
        self.known = kept;
    }

    fn compare(
        &mut self,
        members: &[Arc<Endpoint>],
        rules: &Eject,
        kept: &mut HashMap<u64, Window>,
        now: Millis,
    ) {
        let mut seen = Vec::with_capacity(members.len());
        for endpoint in members {
            let mut window = self.known.remove(&endpoint.id).unwrap_or_default();
            if endpoint.out().is_some() {
                window.clear();
                seen.push(None);
            } else {
                seen.push(Some(window.read(now, endpoint.tally(), rules.window)));
            }
            kept.insert(endpoint.id, window);
        }
        for (endpoint, found) in members.iter().zip(outliers(&seen, rules)) {
            if let Some((cause, why)) = found {
                endpoint.eject(now, cause, &why);
            }
        }
    }
}

/// Whom the rules condemn, and in what words. `seen`: what each did in the window; `None` for one that is out.
pub fn outliers(seen: &[Option<Tally>], rules: &Eject) -> Vec<Option<(Cause, String)>> {
    let enough = |tally: &&Tally| tally.requests >= u64::from(rules.min_requests);
    let mut means: Vec<u64> = seen.iter().flatten().filter(enough).filter_map(Tally::mean_us).collect();
    means.sort_unstable();
    let judge = |tally: &Option<Tally>| {
        let tally = tally.as_ref().filter(enough)?;
        fails_too_often(tally, rules).or_else(|| too_slow(tally, &means, rules))
    };
    seen.iter().map(judge).collect()
}

fn fails_too_often(tally: &Tally, rules: &Eject) -> Option<(Cause, String)> {
    let most = u64::from(rules.error_rate?);
    let percent = tally.failures.saturating_mul(100) / tally.requests.max(1);
    (tally.failures > 0 && percent >= most).then(|| {
        let (failures, requests) = (tally.failures, tally.requests);
        (
            Cause::ErrorRate,
            format!("{failures} of {requests} requests failed, {percent}% (error_rate = {most}%)"),
        )
    })
}

/// `means`: of all that did enough, sorted.
fn too_slow(tally: &Tally, means: &[u64], rules: &Eject) -> Option<(Cause, String)> {
    let factor = u64::from(rules.latency?);
    let own = tally.mean_us()?;
    // The median of the others: of all without this one. Two opinions make no majority.
    let at = means.binary_search(&own).ok()?;
    let others = means.len().checked_sub(1).filter(|others| *others >= 2)?;
    let other = |place: usize| means.get(if place < at { place } else { place + 1 }).copied();
    let median = (other((others - 1) / 2)? + other(others / 2)?) / 2;
    (own >= median.saturating_mul(factor) && own >= median.saturating_add(SLOWER_US_MIN)).then(|| {
        let ms = |us: u64| us as f64 / 1000.0;
        let words = format!(
            "{:.1} ms to the first byte, the others {:.1} ms (latency = {factor})",
            ms(own),
            ms(median)
        );
        (Cause::Latency, words)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(requests: u64, failures: u64, mean_ms: u64) -> Option<Tally> {
        let answers = requests - failures;
        Some(Tally { requests, failures, answers, latency_us: answers * mean_ms * 1000 })
    }

    fn causes(seen: &[Option<Tally>], rules: &Eject) -> Vec<Option<Cause>> {
        outliers(seen, rules).into_iter().map(|found| found.map(|(cause, _)| cause)).collect()
    }

    #[test]
    fn a_window_slides_and_keeps_few_readings() {
        let (mut window, span) = (Window::default(), Duration::from_secs(10));
        let at = |requests| Tally { requests, ..Tally::default() };
        // A hundred requests a second.
        for second in 0..60u64 {
            let seen = window.read(Millis(second * 1000), at(second * 100), span).requests;
            assert_eq!(seen, second.min(10) * 100, "second {second}");
        }
        assert!(window.readings.len() <= 12);
        window.clear();
        assert_eq!(window.read(Millis(60_000), at(6000), span).requests, 0, "anew");
        for second in 0..100_000u64 {
            window.read(Millis(second * 1000), at(second), Duration::from_secs(3600));
        }
        assert!(window.readings.len() as u64 <= READINGS_MAX + 2);
    }

    #[test]
    fn the_error_rate_is_a_share_of_enough_requests() {
        let rules = Eject { error_rate: Some(20), ..Eject::default() };
        let seen = [tally(100, 20, 1), tally(100, 19, 1), tally(19, 19, 1), None, tally(0, 0, 0)];
        assert_eq!(causes(&seen, &rules), [Some(Cause::ErrorRate), None, None, None, None]);
        let (_, words) = outliers(&seen, &rules).swap_remove(0).unwrap();
        assert_eq!(words, "20 of 100 requests failed, 20% (error_rate = 20%)");
        assert_eq!(causes(&seen, &Eject::default()), [None; 5], "nobody asked for it");
        let lenient = Eject { error_rate: Some(1), ..Eject::default() };
        assert_eq!(causes(&[tally(100, 0, 1)], &lenient), [None]);
    }

    #[test]
    fn slow_is_what_is_slower_than_the_median_of_the_others() {
        let rules = Eject { latency: Some(3), ..Eject::default() };
        let seen = [tally(50, 0, 10), tally(50, 0, 12), tally(50, 0, 500), tally(50, 0, 11)];
        assert_eq!(causes(&seen, &rules), [None, None, Some(Cause::Latency), None]);
        let (_, words) = outliers(&seen, &rules).swap_remove(2).unwrap();
        assert_eq!(words, "500.0 ms to the first byte, the others 11.0 ms (latency = 3)");
        // Half of them slow: the quick ones are in no danger. When most are slow, slow is what is usual.
        let half = [tally(50, 0, 10), tally(50, 0, 500), tally(50, 0, 500), tally(50, 0, 10)];
        assert_eq!(causes(&half, &rules), [None, Some(Cause::Latency), Some(Cause::Latency), None]);
        let most = [tally(50, 0, 500), tally(50, 0, 500), tally(50, 0, 500), tally(50, 0, 10)];
        assert_eq!(causes(&most, &rules), [None; 4]);
        let quick = [tally(50, 0, 1), tally(50, 0, 1), tally(50, 0, 15)];
        assert_eq!(causes(&quick, &rules), [None; 3], "milliseconds are noise");
        assert_eq!(
            causes(&[tally(50, 0, 1), tally(50, 0, 900)], &rules),
            [None; 2],
            "two say nothing of each other"
        );
        let few = [tally(50, 0, 1), tally(50, 0, 1), tally(5, 0, 900)];
        assert_eq!(causes(&few, &rules), [None; 3]);
    }
}
