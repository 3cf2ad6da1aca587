//! Tests of the balancers: shares, preferences, failures; all with seeded random bits and times by hand.

use super::*;
use crate::base::address::EndpointAddress;
use crate::base::hash;
use crate::config::model;
use crate::upstream::endpoint::Health;
use crate::upstream::registry::Registry;

pub(super) const NOW: Millis = Millis(1_000_000);

pub(super) fn endpoints(weights: &[u32]) -> Vec<Weighted> {
    let (registry, service) = (Registry::new(), Arc::from("a/"));
    let weighted = |(port, &weight)| {
        let address = EndpointAddress::Name("backend.internal".into(), port);
        Weighted { endpoint: registry.obtain(&service, &address, false), weight, backup: false }
    };
    (1u16..).zip(weights).map(weighted).collect()
}

/// By client, as `balance = "hash"` says.
pub(super) const HASH: Balance = Balance::Hash { key: model::Key::ClientIp, load: Some(125) };

pub(super) fn balancer(balance: &Balance, endpoints: &[Weighted]) -> Balancer {
    Balancer::compile(balance, None, endpoints)
}

fn both(endpoints: &[Weighted]) -> [Balancer; 2] {
    [Balance::P2c, Balance::RoundRobin].map(|balance| balancer(&balance, endpoints))
}

/// Every way to choose; `sticky` without a cookie is p2c.
fn every(endpoints: &[Weighted]) -> Vec<Balancer> {
    let sticky = model::Sticky { cookie: "c".into(), ttl: None, same_site: model::SameSite::Lax };
    let ways = [Balance::P2c, Balance::RoundRobin, Balance::LeastRequest, HASH, Balance::Sticky(sticky)];
    ways.iter().map(|balance| balancer(balance, endpoints)).collect()
}

/// A request that belongs nowhere; to a balancer by hash, one of a new client.
fn choose(
    balancer: &Balancer,
    endpoints: &[Weighted],
    now: Millis,
    random: u64,
    tried: &Tried,
) -> Option<usize> {
    let affinity = match balancer.primaries {
        Method::Hash(..) => Affinity::Key(hash::mix(random)),
        _ => Affinity::None,
    };
    balancer.choose(endpoints, &Ask { now, random, affinity, tried })
}

fn tried(indices: &[usize]) -> Tried {
    let mut tried = Tried::default();
    indices.iter().for_each(|&at| tried.insert(at));
    tried
}

/// SplitMix64: the same bits in every run.
pub(super) struct Seeded(pub u64);

impl Seeded {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

fn counts(
    balancer: &Balancer,
    endpoints: &[Weighted],
    now: Millis,
    exclude: &Tried,
    rounds: usize,
) -> Vec<usize> {
    let (mut random, mut counts) = (Seeded(7), vec![0; endpoints.len()]);
    for _ in 0..rounds {
        counts[choose(balancer, endpoints, now, random.next(), exclude).unwrap()] += 1;
    }
    counts
}

fn fail(endpoint: &Endpoint, now: Millis) {
    endpoint.connect_failed(now, "refused");
    endpoint.connect_failed(now, "refused");
}

#[test]
fn round_robin_gives_each_exactly_its_share() {
    let all = endpoints(&[1, 2, 3, 1]);
    let [_, balancer] = both(&all);
    assert_eq!(counts(&balancer, &all, NOW, &Tried::default(), 700), [100, 200, 300, 100]);
}

#[test]
fn round_robin_shares_what_a_missing_endpoint_leaves() {
    let all = endpoints(&[1, 1, 1, 1]);
    let [_, balancer] = both(&all);
    fail(&all[1].endpoint, NOW);
    assert_eq!(counts(&balancer, &all, NOW, &Tried::default(), 900), [300, 0, 300, 300]);
}

#[test]
fn round_robin_is_fair_across_threads() {
    let all = endpoints(&[3, 1]);
    let [_, balancer] = both(&all);
    let total: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..4).map(|_| scope.spawn(|| counts(&balancer, &all, NOW, &Tried::default(), 1000))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(total.iter().map(|counts| counts[0]).sum::<usize>(), 3000);
}

#[test]
fn p2c_spreads_equal_endpoints_and_prefers_the_faster() {
    let all = endpoints(&[1, 1, 1, 1]);
    let [balancer, _] = both(&all);
    let even = counts(&balancer, &all, NOW, &Tried::default(), 4000);
    assert!(even.iter().all(|count| (850..1150).contains(count)), "{even:?}");

    for (at, latency_us) in [(0, 1_000), (1, 50_000), (2, 50_000), (3, 50_000)] {
        all[at].endpoint.observe(latency_us, NOW);
    }
    let uneven = counts(&balancer, &all, NOW, &Tried::default(), 4000);
    assert!(uneven[0] > 1_800, "chosen whenever it is one of the two: {uneven:?}");
    assert!(uneven[1..].iter().all(|&count| count > 400), "but nobody starves: {uneven:?}");
}

#[test]
fn p2c_weighs_requests_in_flight_by_weight() {
    let all = endpoints(&[3, 1]);
    let [balancer, _] = both(&all);
    let mut random = Seeded(1);
    let mut held = Vec::new();
    for _ in 0..400 {
        let at = choose(&balancer, &all, NOW, random.next(), &Tried::default()).unwrap();
        held.push(all[at].endpoint.begin());
    }
    let [heavy, light] = [0, 1].map(|at| all[at].endpoint.in_flight());
    assert!((295..=305).contains(&heavy) && heavy + light == 400, "{heavy} {light}");
}

#[test]
fn p2c_draws_by_weight_while_nothing_is_in_flight() {
    let all = endpoints(&[5, 2, 1]);
    let [balancer, _] = both(&all);
    let shares = counts(&balancer, &all, NOW, &Tried::default(), 8000);
    assert!(
        shares.iter().zip([5000, 2000, 1000]).all(|(&is, should)| is.abs_diff(should) < 200),
        "{shares:?}"
    );
}

#[test]
fn p2c_leaves_an_endpoint_whose_requests_hang() {
    let all = endpoints(&[1, 1, 1]);
    let [balancer, _] = both(&all);
    all.iter().for_each(|weighted| weighted.endpoint.observe(1_000, NOW));
    let _hanging: Vec<_> = (0..50).map(|_| all[2].endpoint.begin()).collect();
    assert_eq!(counts(&balancer, &all, NOW, &Tried::default(), 1000)[2], 0);
}

#[test]
fn what_is_down_gets_nothing_and_what_was_tried_nothing_more_while_another_lives() {
    let all = endpoints(&[1, 5, 1, 1]);
    fail(&all[0].endpoint, NOW);
    all[2].endpoint.set_health(Health::Unhealthy, NOW);
    for balancer in every(&all) {
        let spread = counts(&balancer, &all, NOW, &Tried::default(), 500);
        assert!(
            spread[0] == 0 && spread[2] == 0 && spread[1] > 0 && spread[3] > 0,
            "{balancer:?} {spread:?}"
        );
        assert_eq!(counts(&balancer, &all, NOW, &tried(&[1]), 500), [0, 0, 0, 500]);
        let again = counts(&balancer, &all, NOW, &tried(&[1, 3]), 500);
        assert!(again[0] == 0 && again[2] == 0, "the living ones again before the dead: {again:?}");
    }
}

#[test]
fn a_returning_endpoint_gets_one_trial() {
    for balance in [Balance::P2c, Balance::RoundRobin, Balance::LeastRequest, HASH] {
        let all = endpoints(&[1, 1, 1]);
        let balancer = balancer(&balance, &all);
        fail(&all[1].endpoint, NOW);
        let due = Millis(NOW.0 + 1000);
        assert_eq!(counts(&balancer, &all, due, &Tried::default(), 300)[1], 1, "{balance:?}");
        all[1].endpoint.connect_succeeded(due);
        assert!(counts(&balancer, &all, due, &Tried::default(), 300)[1] > 50);
    }
}

#[test]
fn when_all_are_down_the_soonest_is_asked_and_each_once() {
    for balance in [Balance::P2c, Balance::RoundRobin, Balance::LeastRequest, HASH] {
        let all = endpoints(&[1, 1, 1]);
        let balancer = balancer(&balance, &all);
        all[0].endpoint.set_health(Health::Unhealthy, NOW);
        fail(&all[1].endpoint, Millis(NOW.0 - 100));
        fail(&all[2].endpoint, Millis(NOW.0 - 500));
        let next = |indices: &[usize]| choose(&balancer, &all, NOW, 5, &tried(indices));
        assert_eq!(next(&[]), Some(2));
        assert_eq!(next(&[2]), Some(1));
        assert_eq!(next(&[2, 1]), Some(0));
        assert_eq!(next(&[2, 1, 0]), None);
    }
    let all = endpoints(&[1, 1, 1]);
    all.iter().for_each(|weighted| weighted.endpoint.set_health(Health::Unhealthy, NOW));
    for balancer in every(&all) {
        let spread = counts(&balancer, &all, NOW, &Tried::default(), 300);
        assert!(
            spread.iter().all(|&count| count > 60),
            "a wrong health check is not one endpoint's burden: {spread:?}"
        );
    }
}

#[test]
fn none_one_and_many_endpoints() {
    for balancer in every(&[]) {
        assert_eq!(choose(&balancer, &[], NOW, 1, &Tried::default()), None);
    }
    let one = endpoints(&[7]);
    for balancer in every(&one) {
        assert_eq!(choose(&balancer, &one, NOW, u64::MAX, &Tried::default()), Some(0));
        assert_eq!(choose(&balancer, &one, NOW, 0, &tried(&[0])), Some(0), "no other lives");
    }
    let many = endpoints(&vec![1; 1100]);
    let mut all_but_one = Tried::default();
    (0..1100).filter(|&at| at != 1000).for_each(|at| all_but_one.insert(at));
    assert!(all_but_one.contains(1023) && !all_but_one.contains(1000) && !all_but_one.contains(1024));
    for balancer in every(&many) {
        let at = choose(&balancer, &many, NOW, u64::MAX, &all_but_one).unwrap();
        assert!(at == 1000 || at >= TRIED_MAX, "{at}");
        let spread = counts(&balancer, &many, NOW, &Tried::default(), 11_000);
        assert!(spread.iter().filter(|&&count| count > 0).count() > 1_050);
    }
}

/// Endpoints of which the last ones are backups.
fn with_backups(primaries: usize, backups: usize) -> Vec<Weighted> {
    let mut all = endpoints(&vec![1; primaries + backups]);
    all.iter_mut().skip(primaries).for_each(|weighted| weighted.backup = true);
    all
}

#[test]
fn backups_serve_while_no_primary_is_up_and_give_back() {
    for at in 0..5 {
        let all = with_backups(2, 2);
        let balancer = &every(&all)[at];
        let spread = |tried: &Tried| counts(balancer, &all, NOW, tried, 400);
        assert_eq!(spread(&Tried::default())[2..], [0, 0], "{balancer:?}");
        fail(&all[0].endpoint, NOW);
        assert_eq!(spread(&Tried::default()), [0, 400, 0, 0]);
        let over = spread(&tried(&[1]));
        assert!(
            over[..2] == [0, 0] && over[2] > 100 && over[3] > 100,
            "the primary failed this request: {over:?}"
        );
        assert_eq!(spread(&tried(&[1, 2, 3])), [0, 400, 0, 0], "the primary again before a backup again");
        all[1].endpoint.set_health(Health::Unhealthy, NOW);
        let over = spread(&Tried::default());
        assert!(over[..2] == [0, 0] && over[2] > 100 && over[3] > 100, "{over:?}");
        all[1].endpoint.set_health(Health::Healthy, NOW);
        assert_eq!(spread(&Tried::default()), [0, 400, 0, 0]);
    }
}

#[test]
fn what_is_full_is_passed_over_in_the_usual_order_and_what_is_down_is_not_asked_for_it() {
    for at in 0..5 {
        let mut all = with_backups(3, 1);
        all[2].weight = 0;
        let balancer = &every(&all)[at];
        let mut held = Vec::new();
        let mut fill = |at: usize| held.push(all[at].endpoint.begin());
        let choose = |tried: &Tried| {
            let key = match balancer.primaries {
                Method::Hash(..) => Affinity::Key(5),
                _ => Affinity::None,
            };
            balancer.choose_below(&all, &Ask { now: NOW, random: 5, affinity: key, tried }, 1)
        };
        let none = Tried::default();
        assert!(choose(&none).unwrap() < 2);
        fill(0);
        assert_eq!(choose(&none), Some(1), "{balancer:?}");
        fail(&all[1].endpoint, NOW);
        assert_eq!(choose(&none), Some(3));
        assert_eq!(choose(&tried(&[3])), None, "the one that was tried less than one to wait for");
        fill(3);
        assert_eq!(choose(&none), None, "neither what drains nor what is down");
        [0, 3].iter().for_each(|&at| fail(&all[at].endpoint, NOW));
        assert_eq!(choose(&none), Some(2), "draining is better than down");
    }
}

#[test]
fn a_primary_is_tried_for_its_return_while_backups_serve() {
    for at in 0..5 {
        let all = with_backups(1, 1);
        let balancer = &every(&all)[at];
        fail(&all[0].endpoint, NOW);
        assert_eq!(counts(balancer, &all, NOW, &Tried::default(), 50), [0, 50]);
        let due = Millis(NOW.0 + 1_000);
        assert_eq!(counts(balancer, &all, due, &Tried::default(), 50), [1, 49], "{balancer:?}");
    }
}

#[test]
fn what_drains_keeps_its_sessions_and_gets_nothing_else() {
    let all = endpoints(&[0, 1, 1]);
    for balancer in every(&all) {
        assert_eq!(counts(&balancer, &all, NOW, &Tried::default(), 300)[0], 0, "{balancer:?}");
    }
    let sticky = &every(&all)[4];
    let session = |tried: &Tried| {
        sticky.choose(&all, &Ask { now: NOW, random: 3, affinity: Affinity::Endpoint(0), tried })
    };
    assert_eq!(session(&Tried::default()), Some(0));
    assert_ne!(session(&tried(&[0])), Some(0));
    all[1..].iter().for_each(|weighted| weighted.endpoint.set_health(Health::Unhealthy, NOW));
    for balancer in every(&all) {
        assert_eq!(counts(&balancer, &all, NOW, &Tried::default(), 30)[0], 30, "better than what is down");
    }
}

#[test]
fn a_session_stays_while_its_endpoint_is_up_and_leaves_backups_when_primaries_are_back() {
    let all = with_backups(3, 1);
    let sticky = &every(&all)[4];
    let session = |at: usize| {
        let (mut random, none) = (Seeded(1), Tried::default());
        let ask = |random| Ask { now: NOW, random, affinity: Affinity::Endpoint(at), tried: &none };
        (0..100).filter(|_| sticky.choose(&all, &ask(random.next())) == Some(at)).count()
    };
    assert_eq!([0, 1, 2].map(session), [100; 3]);
    assert_eq!((session(3), session(9)), (0, 0), "not to a backup, nor to what is not there");
    fail(&all[1].endpoint, NOW);
    assert_eq!(session(1), 0);
    [0, 2].iter().for_each(|&at| all[at].endpoint.set_health(Health::Unhealthy, NOW));
    assert_eq!(session(3), 100, "no primary is up");
}

#[test]
fn least_request_fills_up_the_emptiest_for_its_weight() {
    let all = endpoints(&[3, 1, 2]);
    let balancer = balancer(&Balance::LeastRequest, &all);
    let (mut random, mut held) = (Seeded(1), Vec::new());
    for _ in 0..600 {
        let at = choose(&balancer, &all, NOW, random.next(), &Tried::default()).unwrap();
        held.push(all[at].endpoint.begin());
    }
    assert_eq!([0, 1, 2].map(|at| all[at].endpoint.in_flight()), [300, 100, 200]);
    held.clear();
    let idle = counts(&balancer, &all, NOW, &Tried::default(), 6_000);
    assert!(
        idle.iter().zip([3_000, 1_000, 2_000]).all(|(&is, should)| is.abs_diff(should) < 200),
        "{idle:?}"
    );
}

#[test]
fn least_request_looks_at_a_bounded_number_of_many() {
    let all = endpoints(&vec![1; 500]);
    let balancer = balancer(&Balance::LeastRequest, &all);
    let held: Vec<_> = all.iter().skip(1).map(|weighted| weighted.endpoint.begin()).collect();
    let found = counts(&balancer, &all, NOW, &Tried::default(), 1_000)[0];
    assert!((64..250).contains(&found), "the empty one is among 64 of 500 for 128 of 1,000: {found}");
    drop(held);
}

#[test]
fn a_service_can_be_shared_by_workers() {
    fn shared<T: Send + Sync>() {}
    shared::<crate::upstream::Service>();
    shared::<Registry>();
}
