//! Tests of the balancers: shares, preferences, failures; all with seeded random bits and times by hand.

use super::*;
use crate::base::address::EndpointAddress;
use crate::upstream::endpoint::Health;
use crate::upstream::registry::Registry;

const NOW: Millis = Millis(1_000_000);

fn endpoints(weights: &[u32]) -> Vec<Weighted> {
    let (registry, service) = (Registry::new(), Arc::from("a/"));
    let weighted = |(port, &weight)| {
        let address = EndpointAddress::Name("backend.internal".into(), port);
        Weighted { endpoint: registry.obtain(&service, &address, false), weight }
    };
    (1u16..).zip(weights).map(weighted).collect()
}

fn both(endpoints: &[Weighted]) -> [Balancer; 2] {
    [Balance::P2c, Balance::RoundRobin].map(|balance| Balancer::compile(balance, endpoints))
}

fn tried(indices: &[usize]) -> Tried {
    let mut tried = Tried::default();
    indices.iter().for_each(|&at| tried.insert(at));
    tried
}

/// SplitMix64: the same bits in every run.
struct Seeded(u64);

impl Seeded {
    fn next(&mut self) -> u64 {
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
        counts[balancer.choose(endpoints, now, random.next(), exclude).unwrap()] += 1;
    }
    counts
}

fn fail(endpoint: &Endpoint, now: Millis) {
    endpoint.connect_failed(now, "refused");
    endpoint.connect_failed(now, "refused");
}

#[test]
fn round_robin_gives_each_exactly_its_share() {
    let all = endpoints(&[1, 2, 3, 0]);
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
        let at = balancer.choose(&all, NOW, random.next(), &Tried::default()).unwrap();
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
    all[2].endpoint.set_health(Health::Unhealthy);
    for balancer in both(&all) {
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
    for balance in [Balance::P2c, Balance::RoundRobin] {
        let all = endpoints(&[1, 1, 1]);
        let balancer = Balancer::compile(balance, &all);
        fail(&all[1].endpoint, NOW);
        let due = Millis(NOW.0 + 1000);
        assert_eq!(counts(&balancer, &all, due, &Tried::default(), 300)[1], 1, "{balance:?}");
        all[1].endpoint.connect_succeeded();
        assert!(counts(&balancer, &all, due, &Tried::default(), 300)[1] > 50);
    }
}

#[test]
fn when_all_are_down_the_soonest_is_asked_and_each_once() {
    for balance in [Balance::P2c, Balance::RoundRobin] {
        let all = endpoints(&[1, 1, 1]);
        let balancer = Balancer::compile(balance, &all);
        all[0].endpoint.set_health(Health::Unhealthy);
        fail(&all[1].endpoint, Millis(NOW.0 - 100));
        fail(&all[2].endpoint, Millis(NOW.0 - 500));
        let next = |indices: &[usize]| balancer.choose(&all, NOW, 5, &tried(indices));
        assert_eq!(next(&[]), Some(2));
        assert_eq!(next(&[2]), Some(1));
        assert_eq!(next(&[2, 1]), Some(0));
        assert_eq!(next(&[2, 1, 0]), None);
    }
    let all = endpoints(&[1, 1, 1]);
    all.iter().for_each(|weighted| weighted.endpoint.set_health(Health::Unhealthy));
    for balancer in both(&all) {
        let spread = counts(&balancer, &all, NOW, &Tried::default(), 300);
        assert!(
            spread.iter().all(|&count| count > 60),
            "a wrong health check is not one endpoint's burden: {spread:?}"
        );
    }
}

#[test]
fn none_one_and_many_endpoints() {
    for balancer in both(&[]) {
        assert_eq!(balancer.choose(&[], NOW, 1, &Tried::default()), None);
    }
    let one = endpoints(&[7]);
    for balancer in both(&one) {
        assert_eq!(balancer.choose(&one, NOW, u64::MAX, &Tried::default()), Some(0));
        assert_eq!(balancer.choose(&one, NOW, 0, &tried(&[0])), Some(0), "no other lives");
    }
    let many = endpoints(&vec![1; 1100]);
    let mut all_but_one = Tried::default();
    (0..1100).filter(|&at| at != 1000).for_each(|at| all_but_one.insert(at));
    assert!(all_but_one.contains(1023) && !all_but_one.contains(1000) && !all_but_one.contains(1024));
    for balancer in both(&many) {
        let at = balancer.choose(&many, NOW, u64::MAX, &all_but_one).unwrap();
        assert!(at == 1000 || at >= TRIED_MAX, "{at}");
        let spread = counts(&balancer, &many, NOW, &Tried::default(), 11_000);
        assert!(spread.iter().filter(|&&count| count > 0).count() > 1_050);
    }
}

#[test]
fn a_service_can_be_shared_by_workers() {
    fn shared<T: Send + Sync>() {}
    shared::<crate::upstream::Service>();
    shared::<Registry>();
}
