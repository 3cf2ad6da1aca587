//! Simulations: endpoints that go wrong in different ways, behind the real balancers, in virtual time.

/// SplitMix64: the same bits in every run.
pub(super) struct Seeded(pub(super) u64);

impl Seeded {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use super::group::{Muster, WHOLE};
use super::passive::Cause;
use super::window::Windows;
use crate::base::address::EndpointAddress;
use crate::base::clock::Millis;
use crate::config::model::{Balance, Eject, Statuses};
use crate::upstream::balance::{Affinity, Ask};
use crate::upstream::endpoint::{Availability, Endpoint, Health, InFlight};
use crate::upstream::{Balancer, Registry, Tried, Weighted};

/// The endpoints of one service, with rules in force. The registry goes with them.
fn service(count: u16, rules: Option<&Eject>, panic: Option<u8>) -> (Registry, Vec<Weighted>) {
    let (registry, name) = (Registry::new(), Arc::from("a/"));
    let one = |port| {
        let address = EndpointAddress::Name("backend.internal".into(), port);
        Weighted { endpoint: registry.obtain(&name, &address, false), weight: 1, backup: false }
    };
    let endpoints: Vec<Weighted> = (1..=count).map(one).collect();
    adopt(&endpoints, rules, panic);
    (registry, endpoints)
}

fn adopt(endpoints: &[Weighted], rules: Option<&Eject>, panic: Option<u8>) {
    let group = &endpoints[0].endpoint.group;
    group.adopt(endpoints.iter().map(|one| (&one.endpoint, one.backup)), rules, panic, Millis(0));
}

fn up(endpoints: &[Weighted], now: Millis) -> String {
    endpoints.iter().map(|one| if one.endpoint.is_up(now) { '+' } else { '-' }).collect()
}

fn fail(endpoint: &Endpoint, times: u32, now: Millis) {
    (0..times).for_each(|_| endpoint.request_failed(now, "it did not answer"));
}

#[test]
fn five_failures_in_a_row_eject_and_a_good_answer_between_them_does_not() {
    let (_registry, all) = service(4, Some(&Eject::default()), Some(50));
    let endpoint = &all[0].endpoint;
    for _ in 0..10 {
        fail(endpoint, 4, Millis(0));
        endpoint.answered(1000, 503, Millis(0));
    }
    assert!(endpoint.is_up(Millis(0)), "no status is a failure unless somebody says so");
    fail(endpoint, 5, Millis(100));
    assert_eq!(endpoint.availability(Millis(100)), Availability::Down { retry_at: Millis(30_100) });
    assert_eq!(endpoint.ejections(Cause::Consecutive), 1);
    let because = endpoint.ejected_because().unwrap();
    assert_eq!(because, "5 requests in a row failed; the last: it did not answer");
    assert_eq!(endpoint.availability(Millis(30_100)), Availability::Trial);
    assert!(endpoint.claim_trial(Millis(30_100)) && !endpoint.claim_trial(Millis(30_100)));
    fail(endpoint, 1, Millis(30_200));
    assert_eq!(
        endpoint.availability(Millis(30_200)),
        Availability::Down { retry_at: Millis(90_200) },
        "twice as long"
    );
    assert!(endpoint.claim_trial(Millis(90_200)));
    endpoint.answered(1000, 200, Millis(90_300));
    assert!(endpoint.is_up(Millis(90_300)));
}

#[test]
fn statuses_are_failures_where_the_rules_say_so() {
    let rules = Eject { status: Statuses(vec![(502, 504)]), ..Eject::default() };
    let (_registry, all) = service(2, Some(&rules), Some(50));
    for (endpoint, status, up) in [(&all[0], 500, true), (&all[1], 503, false)] {
        (0..5).for_each(|_| endpoint.endpoint.answered(1000, status, Millis(0)));
        assert_eq!(endpoint.endpoint.is_up(Millis(0)), up, "{status}");
    }
    assert_eq!(all[1].endpoint.last_error().as_deref(), Some("it answered 503"));
}

#[test]
fn no_more_than_the_share_is_ejected_and_never_the_only_one() {
    let (_registry, all) = service(5, Some(&Eject::default()), Some(50));
    all.iter().for_each(|one| fail(&one.endpoint, 50, Millis(0)));
    assert_eq!(up(&all, Millis(0)), "--+++", "half of five are two");
    let (_registry, one) = service(1, Some(&Eject::default()), Some(50));
    fail(&one[0].endpoint, 50, Millis(0));
    assert_eq!(up(&one, Millis(0)), "+");
    // The share counts the endpoints of now: who left the service takes nobody's place.
    let left: Vec<Weighted> = all[2..].to_vec();
    adopt(&left, Some(&Eject::default()), Some(50));
    fail(&left[0].endpoint, 5, Millis(1));
    assert_eq!(up(&left, Millis(1)), "-++");
}

#[test]
fn threads_eject_no_more_than_the_share_between_them() {
    for _ in 0..50 {
        let (_registry, all) = service(8, Some(&Eject::default()), Some(50));
        std::thread::scope(|scope| {
            for one in &all {
                scope.spawn(|| fail(&one.endpoint, 20, Millis(0)));
            }
        });
        assert_eq!(up(&all, Millis(0)).matches('-').count(), 4);
    }
}

#[test]
fn without_rules_nobody_is_ejected_and_who_was_is_back() {
    let (_registry, all) = service(4, Some(&Eject::default()), Some(50));
    fail(&all[0].endpoint, 5, Millis(0));
    assert_eq!(up(&all, Millis(0)), "-+++");
    adopt(&all, None, Some(50));
    assert_eq!(up(&all, Millis(0)), "++++");
    fail(&all[0].endpoint, 100, Millis(0));
    assert_eq!(up(&all, Millis(0)), "++++");
    all[0].endpoint.connect_failed(Millis(0), "refused");
    all[0].endpoint.connect_failed(Millis(0), "refused");
    assert_eq!(up(&all, Millis(0)), "-+++", "that it cannot be connected to is no matter of rules");
}

#[test]
fn a_service_panics_when_too_few_are_in_good_standing_and_calms_down() {
    let (_registry, all) = service(4, None, Some(50));
    let set = |at: usize, health| all[at].endpoint.set_health(health, Millis(0));
    set(0, Health::Unhealthy);
    set(1, Health::Unhealthy);
    assert_eq!(up(&all, Millis(0)), "--++", "half are enough");
    set(2, Health::Unhealthy);
    assert_eq!(up(&all, Millis(0)), "++++", "one of four is not: nobody is believed");
    assert!(all[0].endpoint.group.panicking());
    set(0, Health::Healthy);
    assert_eq!(up(&all, Millis(0)), "+--+");
    adopt(&all, None, None);
    set(0, Health::Unhealthy);
    assert_eq!(up(&all, Millis(0)), "---+", "whoever wants no panic has none");
}

#[test]
fn regression_panic_is_judged_of_primaries_and_of_backups_by_themselves() {
    let (_registry, mut all) = service(6, None, Some(50));
    all[4..].iter_mut().for_each(|one| one.backup = true);
    adopt(&all, None, Some(50));
    let group = all[0].endpoint.group.clone();
    let set = |range: std::ops::Range<usize>, health| {
        all[range].iter().for_each(|one| one.endpoint.set_health(health, Millis(0)));
    };
    let state =
        || (up(&all, Millis(0)), group.panics(false), group.panics(true), group.spill() * 100 / WHOLE);
    let is = |up: &str, primaries, backups, spill| (up.to_owned(), primaries, backups, spill);
    assert_eq!(state(), is("++++++", false, false, 0));
    set(0..2, Health::Unhealthy);
    assert_eq!(state(), is("--++++", false, false, 0), "half are enough");
    set(2..3, Health::Unhealthy);
    assert_eq!(
        state(),
        is("---+++", false, false, 50),
        "one carries what one of two would, the rest goes to backups"
    );
    set(3..4, Health::Unhealthy);
    assert_eq!(state(), is("----++", false, false, 0), "nothing is to be shared: backups serve");
    set(4..5, Health::Unhealthy);
    assert_eq!(state(), is("-----+", false, false, 0), "half of the backups are enough, too");
    set(5..6, Health::Unhealthy);
    assert_eq!(state(), is("++++++", true, true, 0), "nobody is left to take over");
    assert_eq!(group.muster_of_panic(), Muster { reachable: 6, good: 0 });
    set(0..2, Health::Healthy);
    assert_eq!(
        state(),
        is("++----", false, false, 0),
        "opinions about backups stand while primaries can serve"
    );
    set(1..2, Health::Unhealthy);
    assert_eq!(state(), is("++++++", true, true, 0));
    // Facts are no opinions: backups that are gone take nothing over and panic about nothing.
    set(4..6, Health::Unreachable);
    assert_eq!(state(), is("++++--", true, false, 0));
    set(0..4, Health::Unreachable);
    set(4..5, Health::Unhealthy);
    set(5..6, Health::Unhealthy);
    assert_eq!(state(), is("----++", false, true, 0));
    adopt(&all, None, None);
    assert_eq!(state(), is("------", false, false, 0), "whoever wants no panic has none");
}

#[test]
fn panic_overrules_opinions_and_not_facts() {
    let (_registry, all) = service(6, Some(&Eject { max_share: 100, ..Eject::default() }), Some(50));
    let group = &all[0].endpoint.group;
    all[0].endpoint.set_health(Health::Unreachable, Millis(0));
    all[1].endpoint.connect_failed(Millis(0), "refused");
    all[1].endpoint.connect_failed(Millis(0), "refused");
    all[2].endpoint.set_health(Health::Joining, Millis(0));
    assert_eq!((group.musters()[0], group.panicking()), (Muster { reachable: 3, good: 3 }, false));
    assert_eq!(
        up(&all, Millis(0)),
        "---+++",
        "three of six are gone, and nothing is said against the others"
    );
    all[3].endpoint.set_health(Health::Unhealthy, Millis(0));
    fail(&all[4].endpoint, 5, Millis(0));
    assert_eq!((group.musters()[0], group.panicking()), (Muster { reachable: 3, good: 1 }, true));
    assert_eq!(
        up(&all, Millis(0)),
        "---+++",
        "the unhealthy and the ejected, but nobody who cannot be reached"
    );
    // A trial that is due is taken all the same, by one.
    assert_eq!(all[4].endpoint.availability(Millis(30_000)), Availability::Trial);
    assert!(all[4].endpoint.claim_trial(Millis(30_000)) && all[4].endpoint.is_up(Millis(30_000)));
}

#[test]
fn endpoints_that_join_are_no_reason_to_panic() {
    let (_registry, all) = service(6, None, Some(50));
    all[..2].iter().for_each(|one| one.endpoint.set_health(Health::Healthy, Millis(0)));
    all[2..].iter().for_each(|one| one.endpoint.set_health(Health::Joining, Millis(0)));
    assert_eq!(up(&all, Millis(0)), "++----");
    all[2..].iter().for_each(|one| one.endpoint.set_health(Health::Healthy, Millis(1)));
    assert_eq!(up(&all, Millis(1)), "++++++");
}

/// How a request to an endpoint ends.
enum End {
    /// After so many milliseconds, with this status.
    Answered(u64, u16),
    /// Nothing came for so many milliseconds.
    Failed(u64),
    /// It could not be connected to.
    Refused,
}

/// Ten endpoints of which the last goes wrong, a request every millisecond for two minutes of virtual time. Gives the
/// requests that the wrong one got in each ten seconds; 1,000 are its fair share.
fn story(balance: Balance, rules: &Eject, wrong: impl Fn(Millis, u64) -> End) -> Vec<usize> {
    const SECONDS: u64 = 120;
    let (registry, all) = service(10, Some(rules), Some(50));
    let balancer = Balancer::compile(&balance, None, &all);
    let (mut random, mut windows) = (Seeded(11), Windows::default());
    let mut ending: BinaryHeap<Reverse<(u64, u64)>> = BinaryHeap::new();
    let mut going: BTreeMap<u64, (usize, InFlight, u64, Option<u16>)> = BTreeMap::new();
    let mut counts = vec![0; (SECONDS / 10) as usize];
    for number in 0..SECONDS * 1000 {
        let now = Millis(number + 1);
        while let Some(&Reverse((_, id))) = ending.peek().filter(|Reverse((end, _))| *end <= now.0) {
            ending.pop();
            let (at, in_flight, took, status) = going.remove(&id).unwrap();
            match status {
                Some(status) => all[at].endpoint.answered(took * 1000, status, now),
                None => all[at].endpoint.request_failed(now, "no answer in time"),
            }
            drop(in_flight);
        }
        if now.0.is_multiple_of(1000) {
            windows.look(&registry.groups(), now);
        }
        let mut tried = Tried::default();
        // A connection that is refused is tried elsewhere, as the proxy does.
        for _ in 0..3 {
            let at = balancer
                .choose(&all, &Ask { now, random: random.next(), affinity: Affinity::None, tried: &tried })
                .unwrap();
            tried.insert(at);
            if at == 9 {
                counts[(number / 10_000) as usize] += 1;
            }
            let usual = End::Answered(4 + random.next() % 5, 200);
            let (took, status) = match if at == 9 { wrong(now, random.next()) } else { usual } {
                End::Refused => {
                    all[at].endpoint.connect_failed(now, "refused");
                    continue;
                }
                End::Answered(took, status) => (took, Some(status)),
                End::Failed(took) => (took, None),
            };
            all[at].endpoint.connect_succeeded(now);
            ending.push(Reverse((now.0 + took, number)));
            going.insert(number, (at, all[at].endpoint.begin(), took, status));
            break;
        }
    }
    counts
}

fn both(rules: &Eject, wrong: impl Fn(Millis, u64) -> End) -> [Vec<usize>; 2] {
    [Balance::P2c, Balance::RoundRobin].map(|balance| story(balance, rules, &wrong))
}

/// Requests in the first ten seconds, and in all that follow.
fn told(what: &str, stories: &[Vec<usize>; 2]) -> [(usize, usize); 2] {
    let sums = [0, 1].map(|at| (stories[at][0], stories[at][1..].iter().sum::<usize>()));
    println!("{what}: p2c {:?}, round robin {:?}; of 1,000 and 11,000; {stories:?}", sums[0], sums[1]);
    sums
}

#[test]
fn an_endpoint_that_turns_slow_gets_little() {
    let slow = |_, _| End::Answered(500, 200);
    let [(_, p2c), (_, turns)] = told("slow, no rule", &both(&Eject::default(), slow));
    assert!(p2c < 600, "p2c avoids it by itself: {p2c} of 11,000");
    assert!(turns > 10_900, "whose turn it is gets it");
    let rules = Eject { latency: Some(3), ..Eject::default() };
    let [_, (first, turns)] = told("slow, latency = 3", &both(&rules, slow));
    assert!(first < 350 && turns < 1_000, "{first} {turns}");
}

#[test]
fn an_endpoint_that_flaps_gets_what_it_can_answer_and_a_few_trials() {
    // Three seconds gone, three seconds there.
    let flapping =
        |now: Millis, _| if (now.0 / 3000).is_multiple_of(2) { End::Refused } else { End::Answered(5, 200) };
    for (_, later) in told("flapping", &both(&Eject::default(), flapping)) {
        assert!(later < 9_000, "about its share of the time it is there: {later}");
    }
    let refused = std::cell::Cell::new(0);
    let counted = |now: Millis, random| {
        let end = flapping(now, random);
        refused.set(refused.get() + usize::from(matches!(end, End::Refused)));
        end
    };
    story(Balance::RoundRobin, &Eject::default(), counted);
    println!("flapping: {} connects refused in 20 times of 3 s", refused.get());
    assert!(refused.get() <= 20 * 4, "two to notice, and a trial or two each time: {}", refused.get());
}

#[test]
fn an_endpoint_that_fails_one_in_ten_is_ejected_for_longer_and_longer() {
    let failing = |_, random: u64| End::Answered(5, if random.is_multiple_of(10) { 500 } else { 200 });
    let status = Statuses(vec![(500, 599)]);
    let rules = Eject { error_rate: Some(5), status, ..Eject::default() };
    for (first, later) in told("500 for 10 %, error_rate = 5 %", &both(&rules, failing)) {
        assert!(first <= 350 && later <= 900, "{first} {later}");
    }
}

#[test]
fn an_endpoint_that_never_answers_gets_five_requests_and_then_trials() {
    let silent = |_, _| End::Failed(2000);
    let [(p2c, p2c_later), (turns, turns_later)] = told("never answers", &both(&Eject::default(), silent));
    // In turn it gets a tenth of the two seconds that the first five take to fail; p2c sees them in flight.
    assert!(p2c <= 20 && turns <= 220, "{p2c} {turns}");
    assert!(p2c_later <= 6 && turns_later <= 6, "trials after 30 s and 60 s more: {p2c_later} {turns_later}");
}

#[test]
fn an_endpoint_that_lies_in_its_health_check_is_found_out_by_requests() {
    let (_registry, all) = service(10, Some(&Eject::default()), Some(50));
    let liar = &all[9].endpoint;
    fail(liar, 5, Millis(0));
    liar.set_health(Health::Healthy, Millis(1));
    assert!(!liar.is_up(Millis(1)), "what it says of itself brings it not back");
    let rules = Eject { status: Statuses(vec![(500, 599)]), ..Eject::default() };
    for (first, later) in told("lies: all is 500", &both(&rules, |_, _| End::Answered(5, 500))) {
        assert!(first <= 10 && later <= 6, "{first} {later}");
    }
}
