//! What balancing does over many requests, with seeded random bits and times by hand: how far keys move, how evenly load
//! lies, what happens when workers act on old news. The figures of `docs/balancing.md` are printed by these tests
//! (`cargo test --lib simulation -- --nocapture`).

use std::collections::VecDeque;

use proptest::prelude::*;

use super::tests::{HASH, NOW, Seeded, balancer, endpoints};
use super::*;
use crate::base::hash::mix;
use crate::config::model;
use crate::upstream::endpoint::Health;

const UNBOUNDED: Balance = Balance::Hash { key: model::Key::ClientIp, load: None };

fn by_key(balancer: &Balancer, endpoints: &[Weighted], now: Millis, key: u64, random: u64) -> usize {
    let ask = Ask { now, random, affinity: Affinity::Key(key), tried: &Tried::default() };
    balancer.choose(endpoints, &ask).unwrap()
}

/// Where each of so many keys goes.
fn map(balancer: &Balancer, endpoints: &[Weighted], keys: u64) -> Vec<usize> {
    (0..keys).map(|key| by_key(balancer, endpoints, NOW, mix(key), 0)).collect()
}

fn tally(chosen: &[usize], endpoints: usize) -> Vec<usize> {
    let mut counts = vec![0; endpoints];
    chosen.iter().for_each(|&at| counts[at] += 1);
    counts
}

fn largest_over_mean(counts: &[usize]) -> f64 {
    let (max, sum) = (counts.iter().max().unwrap(), counts.iter().sum::<usize>());
    *max as f64 * counts.len() as f64 / sum as f64
}

#[test]
fn maglev_slots_are_even_and_keys_nearly_so() {
    for count in [2usize, 5, 10, 20, 100, 1_000] {
        let all = endpoints(&vec![1; count]);
        let ring = Ring::compile(&all, false, None);
        let slots: Vec<usize> = ring.table().slots().iter().map(|&at| usize::from(at)).collect();
        let spread = tally(&slots, count);
        let (least, most) = (spread.iter().min().unwrap(), spread.iter().max().unwrap());
        let keys = largest_over_mean(&tally(&map(&balancer(&UNBOUNDED, &all), &all, 100_000), count));
        println!(
            "maglev {count} endpoints: {} slots, {least} to {most} each, largest {:.3} of the mean; of 100,000 keys {keys:.3}",
            slots.len(),
            largest_over_mean(&spread),
        );
        assert!(most - least <= 1, "{least} {most}");
    }
}

#[test]
fn an_endpoint_that_is_down_moves_its_own_keys_only_and_to_all_others() {
    for count in [2usize, 5, 20, 100] {
        let all = endpoints(&vec![1; count]);
        let balancer = balancer(&UNBOUNDED, &all);
        let before = map(&balancer, &all, 20_000);
        all[1].endpoint.set_health(Health::Unhealthy, NOW);
        let during = map(&balancer, &all, 20_000);
        let moved = before.iter().zip(&during).filter(|(before, during)| before != during).count();
        assert_eq!(moved, before.iter().filter(|&&at| at == 1).count(), "nobody else's");
        let spread = tally(&during, count);
        let others: Vec<usize> = (0..count).filter(|&at| at != 1).map(|at| spread[at]).collect();
        println!(
            "down, 1 of {count}: {:.2} % of keys move, largest then {:.3} of the mean",
            moved as f64 / 200.0,
            largest_over_mean(&others)
        );
        assert!(spread[1] == 0 && largest_over_mean(&others) < 1.4, "{spread:?}");
        all[1].endpoint.set_health(Health::Healthy, NOW);
        assert_eq!(map(&balancer, &all, 20_000), before, "and all come back");
    }
}

#[test]
fn an_endpoint_that_leaves_the_list_moves_hardly_more_than_its_own_keys() {
    for count in [3usize, 10, 20, 100] {
        let all = endpoints(&vec![1; count]);
        let before = map(&balancer(&UNBOUNDED, &all), &all, 20_000);
        let mut fewer = all.clone();
        let gone = fewer.remove(1).endpoint.hash;
        let after = map(&balancer(&UNBOUNDED, &fewer), &fewer, 20_000);
        let names = before
            .iter()
            .map(|&at| all[at].endpoint.hash)
            .zip(after.iter().map(|&at| fewer[at].endpoint.hash));
        let (own, needless) = names.fold((0, 0), |(own, needless), (before, after)| {
            (own + usize::from(before == gone), needless + usize::from(before != gone && before != after))
        });
        let percent = |count: usize| count as f64 / 200.0;
        println!(
            "leaves, 1 of {count}: {:.2} % were its own, {:.2} % of keys move besides",
            percent(own),
            percent(needless)
        );
        assert!(percent(own) < 115.0 / count as f64 && percent(needless) < 4.0, "{own} {needless}");
    }
}

#[test]
fn keys_go_where_they_go_whatever_the_order_of_the_list_and_follow_weights() {
    let all = endpoints(&[1, 1, 2, 4]);
    let mut turned = all.clone();
    turned.reverse();
    let (one, two) = (balancer(&UNBOUNDED, &all), balancer(&UNBOUNDED, &turned));
    let (ahead, back) = (map(&one, &all, 40_000), map(&two, &turned, 40_000));
    assert!(ahead.iter().zip(&back).all(|(ahead, back)| ahead + back == 3));
    let shares = tally(&ahead, 4);
    println!("weights 1, 1, 2, 4 of 40,000 keys: {shares:?}");
    assert!(
        shares.iter().zip([5_000, 5_000, 10_000, 20_000]).all(|(&is, should)| is.abs_diff(should) < 400),
        "{shares:?}"
    );
}

#[test]
fn primaries_that_are_mostly_ill_leave_to_backups_what_they_could_not_carry() {
    let mut all = endpoints(&[1; 12]);
    all[8..].iter_mut().for_each(|one| one.backup = true);
    let group = all[0].endpoint.group.clone();
    group.adopt(all.iter().map(|one| (&one.endpoint, one.backup)), None, Some(50), NOW);
    let shares: Vec<(usize, [f64; 3])> = (0..=8)
        .rev()
        .map(|good| {
            (good..8).for_each(|at| all[at].endpoint.set_health(Health::Unhealthy, NOW));
            let each = [Balance::P2c, Balance::RoundRobin, UNBOUNDED].map(|balance| {
                let balancer = balancer(&balance, &all);
                let mut random = Seeded(5);
                let mut primaries = 0;
                for _ in 0..20_000 {
                    let key = random.next();
                    let affinity = if balance == UNBOUNDED { Affinity::Key(key) } else { Affinity::None };
                    let ask = Ask { now: NOW, random: random.next(), affinity, tried: &Tried::default() };
                    let at = balancer.choose(&all, &ask).unwrap();
                    assert!(at < good || at >= 8, "nobody who is ill");
                    primaries += usize::from(at < 8);
                }
                primaries as f64 / 20_000.0
            });
            println!("{good} of 8 primaries good, 4 backups: {each:.3?} of the requests at primaries");
            (good, each)
        })
        .collect();
    // At the threshold of one half four carry everything; each that is left carries no more than that.
    for (good, each) in shares {
        let expected = (good as f64 / 4.0).min(1.0);
        assert!(each.iter().all(|share| (share - expected).abs() < 0.02), "{good} {each:?}");
    }
}

#[test]
fn while_primaries_spill_over_keys_and_sessions_stay_where_they_are() {
    let mut all = endpoints(&[1; 8]);
    all[4..].iter_mut().for_each(|one| one.backup = true);
    all[1..4].iter().for_each(|one| one.endpoint.set_health(Health::Unhealthy, NOW));
    let group = all[0].endpoint.group.clone();
    group.adopt(all.iter().map(|one| (&one.endpoint, one.backup)), None, Some(50), NOW);
    assert!(group.spill() > 0);
    let balancer = balancer(&UNBOUNDED, &all);
    for key in 0..1_000 {
        let home = by_key(&balancer, &all, NOW, mix(key), 0);
        assert!((1..20).all(|random| by_key(&balancer, &all, NOW, mix(key), mix(random)) == home));
    }
    let sticky = model::Sticky { cookie: "c".into(), ttl: None, same_site: model::SameSite::Lax };
    let sticky = self::balancer(&Balance::Sticky(sticky), &all);
    let session = |at: usize| {
        let affinity = Affinity::Endpoint(at);
        let none = Tried::default();
        let ask = |random| Ask { now: NOW, random: mix(random), affinity, tried: &none };
        (0..200).filter(|&random| sticky.choose(&all, &ask(random)) == Some(at)).count()
    };
    assert_eq!([0, 1, 4, 7].map(session), [200, 0, 200, 200]);
}

/// Another table is another home for every user: this one must not change from version to version.
#[test]
fn the_table_is_the_same_in_every_version() {
    let all = endpoints(&[1, 1, 1]);
    let first = map(&balancer(&UNBOUNDED, &all), &all, 16);
    assert_eq!(first, KNOWN_TABLE);
}

const KNOWN_TABLE: [usize; 16] = [0, 2, 2, 2, 0, 1, 1, 2, 2, 0, 2, 0, 1, 2, 1, 1];

#[test]
fn a_popular_key_is_shared_out_and_no_endpoint_carries_more_than_the_bound() {
    for (load, count) in [(110, 10usize), (125, 10), (200, 10), (125, 50)] {
        let all = endpoints(&vec![1; count]);
        let balancer = balancer(&Balance::Hash { key: model::Key::ClientIp, load: Some(load) }, &all);
        let (mut random, mut held, mut home) = (Seeded(3), VecDeque::new(), 0);
        let unbounded = self::balancer(&UNBOUNDED, &all);
        for round in 0..20_000u64 {
            // A third of all requests have the same key.
            let key = if round % 3 == 0 { mix(0) } else { mix(random.next() % 5_000) };
            let at = by_key(&balancer, &all, NOW, key, random.next());
            home += usize::from(at == by_key(&unbounded, &all, NOW, key, 0));
            held.push_back(all[at].endpoint.begin());
            if held.len() > 400 {
                let done = usize::try_from(random.next() % 400).unwrap();
                held.swap(0, done);
                held.pop_front();
            }
            let total = held.len() as f64;
            let bound = (f64::from(load) / 100.0 * (total + 1.0) / count as f64).ceil();
            // One that was within a larger total may be above the bound of a smaller one, by what has ended since.
            assert!(f64::from(all[at].endpoint.in_flight()) <= bound, "{bound}");
        }
        let largest = all.iter().map(|one| one.endpoint.in_flight()).max().unwrap();
        println!(
            "bounded, load {load} %, {count} endpoints, a third of requests with one key: largest {:.3} of the mean, {:.1} % at home",
            f64::from(largest) * count as f64 / held.len() as f64,
            home as f64 / 200.0,
        );
    }
}

#[test]
fn without_a_popular_key_nearly_everybody_is_at_home() {
    let all = endpoints(&[1; 10]);
    let (bounded, unbounded) = (balancer(&HASH, &all), balancer(&UNBOUNDED, &all));
    let (mut random, mut held, mut home) = (Seeded(5), VecDeque::new(), 0);
    for _ in 0..20_000 {
        let key = mix(random.next() % 100_000);
        let at = by_key(&bounded, &all, NOW, key, random.next());
        home += usize::from(at == by_key(&unbounded, &all, NOW, key, 0));
        held.push_back(all[at].endpoint.begin());
        if held.len() > 1_000 {
            held.pop_front();
        }
    }
    println!(
        "bounded, load 125 %, 10 endpoints, 1,000 in flight, even keys: {:.2} % at home",
        home as f64 / 200.0
    );
    assert!(home > 19_400, "{home}");
}

/// Several workers choose by what they saw a while ago. Whoever picks the least loaded of all then picks the same one as
/// everybody else, again and again; two random choices do not.
#[test]
fn p2c_does_not_run_after_one_endpoint_when_news_is_old() {
    const ENDPOINTS: usize = 20;
    const ROUNDS: usize = 500;
    // In each round 8 workers send 10 requests each by the loads of the round before; a request lasts 5 rounds.
    let worst = |balance: &Balance| {
        let (seen, real) = (endpoints(&[1; ENDPOINTS]), endpoints(&[1; ENDPOINTS]));
        let workers: Vec<Balancer> = (0..8).map(|_| balancer(balance, &seen)).collect();
        let (mut random, mut ending, mut worst) = (Seeded(11), VecDeque::new(), 0f64);
        let mut news = Vec::new();
        for round in 0..ROUNDS {
            let mut begun = Vec::new();
            for worker in &workers {
                for _ in 0..10 {
                    let ask = Ask {
                        now: NOW,
                        random: random.next(),
                        affinity: Affinity::None,
                        tried: &Tried::default(),
                    };
                    begun.push(real[worker.choose(&seen, &ask).unwrap()].endpoint.begin());
                }
            }
            ending.push_back(begun);
            if ending.len() > 5 {
                ending.pop_front();
            }
            // What the workers see from now on is how it is at this moment.
            news.clear();
            for (seen, real) in seen.iter().zip(&real) {
                seen.endpoint.observe(1_000, NOW);
                news.extend((0..real.endpoint.in_flight()).map(|_| seen.endpoint.begin()));
            }
            if round > 20 {
                let counts: Vec<usize> = real.iter().map(|one| one.endpoint.in_flight() as usize).collect();
                worst = worst.max(largest_over_mean(&counts));
            }
        }
        worst
    };
    let (p2c, least, turns) =
        (worst(&Balance::P2c), worst(&Balance::LeastRequest), worst(&Balance::RoundRobin));
    println!(
        "herd, 8 workers, news one round old, worst of {ROUNDS} rounds: p2c {p2c:.2} of the mean, least of all {least:.2}, in turn {turns:.2}"
    );
    assert!(p2c < 2.0 && least > 2.0 * p2c, "{p2c} {least}");
}

/// The counters are in truth shared at once: then looking at all is as good as it gets.
#[test]
fn with_fresh_counters_all_balancers_keep_the_load_even() {
    for (name, balance, bound) in [
        ("p2c", Balance::P2c, 1.3),
        ("least_request", Balance::LeastRequest, 1.03),
        ("hash 125 %", HASH, 1.27),
    ] {
        let all = endpoints(&[1; 20]);
        let balancer = balancer(&balance, &all);
        all.iter().for_each(|one| one.endpoint.observe(1_000, NOW));
        let (mut random, mut held, mut worst) = (Seeded(13), VecDeque::new(), 0f64);
        for round in 0..20_000 {
            let (key, bits) = (mix(random.next() % 50_000), random.next());
            let affinity = if balance == HASH { Affinity::Key(key) } else { Affinity::None };
            let ask = Ask { now: NOW, random: bits, affinity, tried: &Tried::default() };
            held.push_back(all[balancer.choose(&all, &ask).unwrap()].endpoint.begin());
            if held.len() > 1_000 {
                let ends = usize::try_from(random.next() % 1_000).unwrap();
                held.swap(0, ends);
                held.pop_front();
                if round % 10 == 0 {
                    let counts: Vec<usize> =
                        all.iter().map(|one| one.endpoint.in_flight() as usize).collect();
                    worst = worst.max(largest_over_mean(&counts));
                }
            }
        }
        println!("even, 20 endpoints, 1,000 in flight, worst moment: {name} {worst:.3} of the mean");
        assert!(worst < bound, "{name} {worst}");
    }
}

#[test]
fn a_slow_start_rises_in_a_line_whatever_the_balancer() {
    let length = Duration::from_secs(30);
    for balance in [Balance::RoundRobin, Balance::P2c, Balance::LeastRequest, UNBOUNDED] {
        let all = endpoints(&[1; 4]);
        let balancer = Balancer::compile(&balance, Some(length), &all);
        all[2].endpoint.rise();
        let mut random = Seeded(17);
        let mut share = |seconds: u64| {
            let now = Millis(NOW.0 + seconds * 1_000);
            // Busy endpoints: a choice by load has something to go by, and shares have time to settle.
            let (mut held, mut count) = (VecDeque::new(), 0);
            for round in 0..12_000 {
                let affinity =
                    if balance == UNBOUNDED { Affinity::Key(random.next()) } else { Affinity::None };
                let ask = Ask { now, random: random.next(), affinity, tried: &Tried::default() };
                let at = balancer.choose(&all, &ask).unwrap();
                held.push_back(all[at].endpoint.begin());
                all[at].endpoint.observe(1_000, now);
                if held.len() > 400 {
                    held.pop_front();
                }
                count += usize::from(at == 2 && round >= 2_000);
            }
            count as f64 / 10_000.0
        };
        let shares = [0, 10, 20, 30].map(&mut share);
        println!("slow start of 30 s, one of four, share after 0, 10, 20, 30 s: {balance:?} {shares:.3?}");
        // 10, 40, 70 and 100 % of its weight against three whole ones.
        for (share, ramp) in shares.iter().zip([0.1, 0.4, 0.7, 1.0]) {
            let expected = ramp / (3.0 + ramp);
            assert!((share - expected).abs() < 0.03, "{balance:?} {shares:.3?}");
        }
    }
}

#[test]
fn a_key_moves_to_a_starting_endpoint_once_and_stays() {
    let all = endpoints(&[1; 4]);
    let balancer = Balancer::compile(&UNBOUNDED, Some(Duration::from_secs(30)), &all);
    all[2].endpoint.rise();
    for key in (0..2_000).map(mix) {
        let at = |seconds: u64| by_key(&balancer, &all, Millis(NOW.0 + seconds * 1_000), key, key) == 2;
        let homes: Vec<bool> = (0..=30).map(at).collect();
        assert!(homes.windows(2).all(|pair| pair[0] <= pair[1]), "{homes:?}");
    }
}

#[test]
fn endpoints_that_all_start_share_as_ever_and_a_lone_one_takes_all() {
    for balance in [Balance::RoundRobin, Balance::P2c, Balance::LeastRequest, UNBOUNDED] {
        let all = endpoints(&[1; 4]);
        let balancer = Balancer::compile(&balance, Some(Duration::from_secs(30)), &all);
        all.iter().for_each(|one| one.endpoint.rise());
        let mut random = Seeded(19);
        let mut chosen = || {
            let affinity = if balance == UNBOUNDED { Affinity::Key(random.next()) } else { Affinity::None };
            let ask = Ask { now: NOW, random: random.next(), affinity, tried: &Tried::default() };
            balancer.choose(&all, &ask).unwrap()
        };
        let spread = tally(&(0..4_000).map(|_| chosen()).collect::<Vec<_>>(), 4);
        assert!(spread.iter().all(|&count| count.abs_diff(1_000) < 250), "{balance:?} {spread:?}");
        (1..4).for_each(|at| all[at].endpoint.set_health(Health::Unhealthy, NOW));
        assert!((0..100).all(|_| chosen() == 0));
    }
}

proptest! {
    /// Whatever is up, tried, weighted or a backup: the promises of this module.
    #[test]
    fn the_promises_hold(
        parts in prop::collection::vec((0u32..4, any::<bool>(), 0u8..3, any::<bool>()), 1..30),
        way in 0usize..4,
        slow in any::<bool>(),
        random in any::<u64>(),
    ) {
        let mut all = endpoints(&parts.iter().map(|part| part.0).collect::<Vec<_>>());
        let mut tried = Tried::default();
        for (at, (weighted, (_, backup, state, is_tried))) in all.iter_mut().zip(&parts).enumerate() {
            weighted.backup = *backup;
            match state {
                1 => weighted.endpoint.set_health(Health::Unhealthy, NOW),
                2 => weighted.endpoint.rise(),
                _ => {}
            }
            if *is_tried {
                tried.insert(at);
            }
        }
        let ways = [Balance::P2c, Balance::RoundRobin, Balance::LeastRequest, HASH];
        let balancer = Balancer::compile(&ways[way], slow.then_some(Duration::from_secs(9)), &all);
        let affinity = if way == 3 { Affinity::Key(random) } else { Affinity::None };
        let found = balancer.choose(&all, &Ask { now: NOW, random, affinity, tried: &tried });
        // The best class that anybody is in, as the module's text puts them.
        let class = |at: usize| {
            let (one, is_tried) = (&all[at], tried.contains(at));
            match (one.endpoint.is_up(NOW), is_tried, one.weight == 0, one.backup) {
                (true, false, false, backup) => u8::from(backup),
                (true, true, false, backup) => 2 + u8::from(backup),
                (true, _, true, backup) => 4 + u8::from(backup),
                (false, false, ..) => 6,
                (false, true, ..) => 7,
            }
        };
        let best = (0..all.len()).map(class).min().unwrap();
        match found {
            Some(at) => prop_assert_eq!(class(at), best),
            None => prop_assert_eq!(best, 7),
        }
    }

    /// A key goes to the same endpoint however often it is asked, as long as nothing is in flight.
    #[test]
    fn a_key_has_one_home(weights in prop::collection::vec(1u32..1_000, 1..50), key in any::<u64>(), bits in any::<u64>()) {
        let all = endpoints(&weights);
        let balancer = balancer(&HASH, &all);
        prop_assert_eq!(by_key(&balancer, &all, NOW, key, bits), by_key(&balancer, &all, NOW, key, !bits));
    }
}
