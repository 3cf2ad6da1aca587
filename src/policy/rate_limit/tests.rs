//! Tests of rate limits: by a clock moved by hand, by threads, and by floods of addresses.

use std::sync::Arc;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use governor::clock::FakeRelativeClock;
use http::{HeaderMap, Method};

use super::{Facts, Limiter, Round, Rule, Table, Verdict, When, settle};
use crate::base::unit::parse_rate;
use crate::config::model::{Limit, LimitKey, Mode, Origin, Statuses};

type FakeTable = Arc<Table<FakeRelativeClock>>;

fn limit(rate: &str, burst: u32, key: LimitKey) -> Limit {
    let parsed = parse_rate(rate).unwrap();
    Limit {
        text: rate.into(),
        rate: parsed,
        burst,
        keys: vec![key],
        cost: 1,
        statuses: None,
        name: None,
        mode: Mode::Enforce,
        origin: Origin::Default,
    }
}

fn fake(entries: usize) -> (FakeRelativeClock, FakeTable) {
    let clock = FakeRelativeClock::default();
    (clock.clone(), Arc::new(Table::with_clock(entries, clock)))
}

fn per_client(rate: &str, burst: u32, table: &FakeTable, id: u64) -> Limiter<FakeRelativeClock> {
    Limiter::compile(&limit(rate, burst, LimitKey::ClientIp), table, id)
}

/// A request of a client, each of which has a /64 of its own.
fn by<T>(client: u128, ask: impl FnOnce(&Facts<'_>) -> T) -> T {
    let client = std::net::Ipv6Addr::from((client + 1) << 64).into();
    let headers = HeaderMap::new();
    ask(&Facts { client, method: &Method::GET, path: "/", headers: &headers, user: None })
}

fn check(limiter: &Limiter<impl governor::clock::Clock + Clone>, client: u128) -> Verdict {
    by(client, |facts| limiter.check(limiter.bucket(facts)))
}

fn allowed(limiter: &Limiter<FakeRelativeClock>, client: u128, requests: u32) -> u32 {
    (0..requests).filter(|_| check(limiter, client).allowed).count() as u32
}

fn check_all<'a>(rules: impl IntoIterator<Item = &'a Rule<FakeRelativeClock>>, client: u128) -> Round {
    let mut round = Round::default();
    by(client, |facts| super::check_all(rules, facts, When::Before, &mut round));
    round
}

fn rule(limiter: Limiter<FakeRelativeClock>, mode: Mode) -> Rule<FakeRelativeClock> {
    Rule { limiter: Arc::new(limiter), mode, statuses: None }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).map(|value| value.to_str().unwrap())
}

#[test]
fn a_bucket_holds_its_burst_and_refills_evenly() {
    let (clock, table) = fake(64);
    let limiter = per_client("10 per 10s", 5, &table, 1);
    assert_eq!(allowed(&limiter, 7, 20), 5);
    clock.advance(Duration::from_millis(999));
    assert_eq!(allowed(&limiter, 7, 1), 0);
    clock.advance(Duration::from_millis(1));
    assert_eq!(allowed(&limiter, 7, 5), 1, "one a second");
    clock.advance(Duration::from_secs(3600));
    assert_eq!(allowed(&limiter, 7, 20), 5, "never more than the burst");
}

#[test]
fn verdicts_count_down_and_say_when_to_come_back() {
    let (clock, table) = fake(64);
    let limiter = per_client("2 per 10s", 2, &table, 1);
    let secs = Duration::from_secs;
    let verdict = |allowed, remaining, reset, retry_after| Verdict {
        allowed,
        limit: 2,
        remaining,
        cost: 1,
        reset,
        retry_after,
    };
    assert_eq!(check(&limiter, 1), verdict(true, 1, secs(5), secs(0)));
    assert_eq!(check(&limiter, 1), verdict(true, 0, secs(10), secs(0)));
    clock.advance(secs(1));
    assert_eq!(check(&limiter, 1), verdict(false, 0, secs(9), secs(4)));
    clock.advance(secs(4));
    assert!(check(&limiter, 1).allowed, "after exactly the time told");
}

#[test]
fn headers_follow_the_draft() {
    let (clock, table) = fake(64);
    let limiter = per_client("100 per 10s", 100, &table, 1);
    let mut headers = HeaderMap::new();
    headers.insert("ratelimit", "from-the-backend".parse().unwrap());
    let mut verdict = check(&limiter, 1);
    limiter.write_headers(&verdict, &mut headers);
    assert_eq!(header(&headers, "ratelimit-policy"), Some("\"default\";q=100;w=10"));
    assert_eq!(header(&headers, "ratelimit"), Some("\"default\";r=99;t=1"));
    assert_eq!(header(&headers, "retry-after"), None);
    assert_eq!(allowed(&limiter, 1, 200), 99);
    clock.advance(Duration::from_millis(50));
    verdict = check(&limiter, 1);
    limiter.write_headers(&verdict, &mut headers);
    assert_eq!(header(&headers, "ratelimit"), Some("\"default\";r=0;t=10"));
    assert_eq!(header(&headers, "retry-after"), Some("1"), "50 ms, rounded up");
    assert_eq!(headers.get_all("ratelimit").iter().count(), 1);
}

#[test]
fn a_request_may_cost_more_than_one_and_limits_of_one_id_share_their_bucket() {
    let (clock, table) = fake(64);
    let costing = |cost| {
        let said = Limit { cost, ..limit("10 per 10s", 10, LimitKey::ClientIp) };
        Limiter::compile(&said, &table, 1)
    };
    let (page, search) = (costing(1), costing(4));
    let verdict = check(&search, 1);
    assert_eq!((verdict.allowed, verdict.remaining, verdict.requests()), (true, 6, 1));
    assert_eq!(check(&page, 1).remaining, 5);
    assert!(check(&search, 1).allowed);
    let refused = check(&search, 1);
    assert!(!refused.allowed && check(&page, 1).allowed, "one is left: for a page, not for a search");
    assert_eq!((refused.retry_after, refused.reset), (Duration::from_secs(3), Duration::from_secs(9)));
    clock.advance(Duration::from_secs(4));
    assert!(check(&search, 1).allowed, "after the time told, and one second more for the page");
}

#[test]
fn the_tightest_limit_is_the_one_with_the_fewest_requests_left_not_units() {
    let (_, table) = fake(64);
    let dear = Limit { cost: 10, ..limit("100 per 1h", 50, LimitKey::ClientIp) };
    let rules = [
        rule(per_client("20 per 1h", 20, &table, 1), Mode::Enforce),
        rule(Limiter::compile(&dear, &table, 2), Mode::Enforce),
    ];
    assert_eq!(check_all(&rules, 1).told.map(|(at, verdict)| (at, verdict.remaining)), Some((1, 40)));
}

#[test]
fn a_limit_of_statuses_counts_only_those_and_is_told_only_when_it_refuses() {
    let (clock, table) = fake(64);
    let mut guesses = rule(per_client("2 per 10s", 2, &table, 1), Mode::Enforce);
    guesses.statuses = Some(Statuses(vec![(401, 401), (403, 403)]));
    let rules = [guesses];
    let answered = |status: u16| {
        let mut round = check_all(&rules, 1);
        assert!(!round.refused() && round.told.is_none() && round.owes());
        settle(rules.iter(), &mut round, status);
        assert!(!round.owes(), "an answer is counted once");
        settle(rules.iter(), &mut round, status);
    };
    assert_eq!(table.segments_allocated(), 0);
    (0..50).for_each(|_| answered(200));
    assert_eq!(table.segments_allocated(), 0, "a look takes no memory");
    answered(401);
    answered(200);
    answered(403);
    let round = check_all(&rules, 1);
    assert!(round.refused());
    let (_, verdict) = round.told.unwrap();
    assert_eq!((verdict.remaining, verdict.retry_after), (0, Duration::from_secs(5)));
    clock.advance(Duration::from_secs(5));
    answered(401);
    assert!(check_all(&rules, 1).refused() && !check_all(&rules, 2).refused());
}

#[test]
fn what_is_in_flight_at_once_may_pass_a_limit_of_statuses_and_never_owes_more_than_a_bucket() {
    let (clock, table) = fake(64);
    let mut guesses = rule(per_client("2 per 10s", 2, &table, 1), Mode::Enforce);
    guesses.statuses = Some(Statuses(vec![(401, 401)]));
    let rules = [guesses];
    let mut rounds: Vec<Round> = (0..10).map(|_| check_all(&rules, 1)).collect();
    assert!(rounds.iter().all(|round| !round.refused()));
    rounds.iter_mut().for_each(|round| settle(rules.iter(), round, 401));
    assert!(check_all(&rules, 1).refused());
    clock.advance(Duration::from_secs(5));
    assert!(!check_all(&rules, 1).refused(), "ten wrong guesses shut nobody out for longer than two");
}

#[test]
fn a_limit_by_user_waits_for_the_user_and_names_of_limits_are_told() {
    let (_, table) = fake(64);
    let said = Limit { name: Some("by-user".into()), ..limit("1 per 1h", 1, LimitKey::User) };
    let rules = [
        rule(per_client("5 per 1h", 5, &table, 1), Mode::Enforce),
        rule(Limiter::compile(&said, &table, 2), Mode::Enforce),
    ];
    let headers = HeaderMap::new();
    let ask = |user| {
        let client = "192.0.2.1".parse().unwrap();
        let facts = Facts { client, method: &Method::GET, path: "/", headers: &headers, user };
        let mut round = Round::default();
        super::check_all(&rules, &facts, When::Before, &mut round);
        let before = round.told.map(|(at, _)| at);
        super::check_all(&rules, &facts, When::After, &mut round);
        (before, round.told.map(|(at, verdict)| (at, verdict.allowed)))
    };
    assert_eq!(ask(Some("ann")), (Some(0), Some((1, true))));
    assert_eq!(ask(Some("bob")), (Some(0), Some((1, true))), "each user has a bucket of its own");
    assert_eq!(ask(Some("ann")), (Some(0), Some((1, false))));
    let mut told = HeaderMap::new();
    let verdict = by(1, |facts| rules[1].limiter.check(rules[1].limiter.bucket(facts)));
    rules[1].limiter.write_headers(&verdict, &mut told);
    assert_eq!(header(&told, "ratelimit-policy"), Some("\"by-user\";q=1;w=3600"));
    assert!(header(&told, "ratelimit").unwrap().starts_with("\"by-user\";r=0;t="));
}

#[test]
fn the_longest_header_fits_its_buffer() {
    let (_, table) = fake(8);
    let name = "n".repeat(64);
    let said = Limit { name: Some(name.as_str().into()), ..limit("1 per 1s", 1, LimitKey::ClientIp) };
    let limiter = Limiter::compile(&said, &table, 1);
    let far = Duration::from_secs(u64::MAX);
    let verdict =
        Verdict { allowed: false, limit: 1, remaining: u32::MAX, cost: 1, reset: far, retry_after: far };
    let mut headers = HeaderMap::new();
    limiter.write_headers(&verdict, &mut headers);
    assert_eq!(
        header(&headers, "ratelimit"),
        Some(&*format!("\"{name}\";r=4294967295;t=18446744073709551615"))
    );
    assert_eq!(header(&headers, "retry-after"), Some("18446744073709551615"));
}

#[test]
fn clients_and_limits_have_buckets_of_their_own_and_a_site_has_one() {
    let (_, table) = fake(1024);
    let (a, b) = (per_client("3 per 1s", 3, &table, 1), per_client("3 per 1s", 3, &table, 2));
    for client in 0..50 {
        assert_eq!((allowed(&a, client, 9), allowed(&b, client, 9)), (3, 3));
    }
    let site = Limiter::compile(&limit("3 per 1s", 3, LimitKey::Site), &table, 3);
    assert_eq!((0..50).map(|client| allowed(&site, client, 1)).sum::<u32>(), 3);
}

#[test]
fn buckets_outlive_a_reload_and_a_lowered_limit_begins_afresh() {
    let (clock, table) = fake(64);
    clock.advance(Duration::from_secs(5));
    let before = per_client("10 per 10s", 10, &table, 1);
    assert_eq!(allowed(&before, 1, 10), 10);
    clock.advance(Duration::from_secs(2));
    let after = per_client("10 per 10s", 10, &table, 1);
    assert_eq!(allowed(&after, 1, 10), 2, "two seconds, two requests");

    let long = per_client("10 per 1h", 10, &table, 2);
    assert_eq!(allowed(&long, 1, 20), 10);
    let short = per_client("1 per 1s", 1, &table, 2);
    assert_eq!(allowed(&short, 1, 2), 1, "not shut out for an hour by a limit of one second");
}

#[test]
fn several_limits_report_the_tightest_and_stop_at_the_first_refusal() {
    let (_, table) = fake(64);
    let limits = [
        rule(per_client("5 per 1s", 5, &table, 1), Mode::Enforce),
        rule(per_client("2 per 1s", 2, &table, 2), Mode::Enforce),
    ];
    let told = |round: Round| round.told.map(|(_, v)| (v.allowed, v.limit, v.remaining));
    let remaining = || told(check_all(&limits, 1));
    assert_eq!(remaining(), Some((true, 2, 1)));
    assert_eq!(remaining(), Some((true, 2, 0)));
    assert_eq!(remaining(), Some((false, 2, 0)));
    assert_eq!(check(&limits[0].limiter, 1).remaining, 1, "the first was debited three times before");
    let swapped = [&limits[1], &limits[0]];
    assert_eq!(told(check_all(swapped, 1)), Some((false, 2, 0)));
    assert_eq!(check(&limits[0].limiter, 1).remaining, 0, "behind a refusal nothing is debited");
    assert_eq!(check_all([], 1), Round::default());
}

#[test]
fn a_limit_in_shadow_counts_and_refuses_nobody() {
    let (_, table) = fake(64);
    let rule = |burst, id, mode| rule(per_client("9 per 1h", burst, &table, id), mode);
    let limits = [rule(1, 1, Mode::Shadow), rule(3, 2, Mode::Enforce)];
    let ask = || check_all(&limits, 1);
    let summary = |round: Round| (round.told.map(|(at, v)| (at, v.allowed, v.remaining)), round.would_block);
    assert_eq!(summary(ask()), (Some((1, true, 2)), false));
    assert_eq!(summary(ask()), (Some((1, true, 1)), true));
    assert_eq!(summary(ask()), (Some((1, true, 0)), true));
    assert_eq!(summary(ask()), (Some((1, false, 0)), true));
    let alone = check_all(&limits[..1], 1);
    assert_eq!(
        alone,
        Round { told: None, would_block: true, ..Round::default() },
        "a client hears nothing of it"
    );
}

#[test]
fn extreme_rates_neither_panic_nor_allow_too_much() {
    for (rate, burst) in [
        ("1 per 200000000d", u32::MAX),
        ("4294967295 per 1ms", u32::MAX),
        ("4294967295 per 1ms", 1),
        ("1 per 200000000d", 0),
        ("1 per 1ms", u32::MAX),
    ] {
        let (clock, table) = fake(8);
        clock.advance(Duration::from_secs(1 << 31));
        let limiter = per_client(rate, burst, &table, 1);
        let first = check(&limiter, 1);
        assert!(
            first.allowed && first.remaining < first.limit && first.limit <= burst.max(1),
            "{rate} {first:?}"
        );
        for before in 1..10 {
            let next = check(&limiter, 1);
            assert!(next.allowed == (before < first.limit), "{rate} {next:?}");
        }
    }
}

#[test]
fn full_buckets_give_way_without_loss_and_others_only_in_need() {
    let (clock, table) = fake(8);
    let (quick, slow) = (per_client("1 per 1s", 1, &table, 1), per_client("1 per 1h", 1, &table, 2));
    assert_eq!((0..8).map(|client| allowed(&quick, client, 2)).sum::<u32>(), 8);
    clock.advance(Duration::from_secs(1));
    assert_eq!((0..7).map(|client| allowed(&slow, client, 2)).sum::<u32>(), 7);
    assert_eq!(allowed(&quick, 0, 2), 1);
    assert_eq!(table.evictions(), 0, "seven places of buckets that were full again went to others");

    assert_eq!(allowed(&quick, 1, 2), 1, "the ninth bucket is let in");
    assert_eq!(table.evictions(), 1);
    assert_eq!(
        (0..7).map(|client| allowed(&slow, client, 1)).sum::<u32>(),
        0,
        "the soonest full one gave way"
    );
    assert_eq!(allowed(&quick, 1, 1), 0);
}

#[test]
fn a_flood_of_addresses_stays_within_the_memory_and_lets_strangers_in() {
    let (_, table) = fake(1000);
    assert_eq!(
        (table.capacity(), table.segments_allocated()),
        (1000, 0),
        "nothing is taken before it is needed"
    );
    let limiter = per_client("1 per 1h", 1, &table, 1);
    assert!((0..100_000).all(|client| check(&limiter, client).allowed));
    assert_eq!(table.segments_allocated(), 4);
    assert_eq!(table.evictions(), 100_000 - 1000);
    assert_eq!(Table::new(0).capacity(), 8);
}

/// As many as the environment says, for `scripts/bench-spray`; few enough for every day otherwise.
fn sprayed() -> u128 {
    std::env::var("TIDEGATE_SPRAY_KEYS").ok().and_then(|count| count.parse().ok()).unwrap_or(300_000)
}

#[test]
fn a_spray_of_addresses_neither_grows_the_table_nor_frees_who_is_over_its_limit() {
    let (count, entries) = (sprayed(), 1 << 16);
    let table = Arc::new(Table::new(entries));
    let limiter = Limiter::compile(&limit("100 per 1d", 100, LimitKey::ClientIp), &table, 1);
    let begin = crate::base::clock::now();
    let mut honest = 0;
    for client in 1..=count {
        assert!(check(&limiter, client).allowed, "a stranger that asks once");
        if client % (count / 1000) == 0 {
            honest += u32::from(check(&limiter, 0).allowed);
        }
    }
    let seconds = (crate::base::clock::now().0 - begin.0) as f64 / 1000.0;
    println!(
        "{count} addresses in {seconds:.1} s: {} of {entries} buckets evicted, {} bytes of {}; the honest client: {honest} of 1000",
        table.evictions(),
        table.bytes(),
        entries * 16
    );
    assert!((100..=101).contains(&honest), "{honest} of 1000 passed, 100 may");
    assert!(table.bytes() <= entries * 16);
    assert!(u128::from(table.evictions()) <= count);
}

#[test]
fn an_untouched_table_allocates_one_piece_for_one_client() {
    let table = Arc::new(Table::new(1 << 20));
    let limiter = Limiter::compile(&limit("1 per 1h", 1, LimitKey::ClientIp), &table, 1);
    assert!(check(&limiter, 1).allowed && !check(&limiter, 1).allowed);
    assert_eq!((table.capacity(), table.segments_allocated()), (1 << 20, 1));
}

/// Threads that begin together; how many requests were allowed in total.
fn race(
    threads: u128,
    limiter: &Limiter<FakeRelativeClock>,
    client_of: impl Fn(u128, u128) -> u128 + Sync,
) -> u32 {
    let (barrier, total) = (Barrier::new(threads as usize), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (barrier, total, client_of) = (&barrier, &total, &client_of);
            scope.spawn(move || {
                barrier.wait();
                let mut passed = 0;
                for request in 0..2000 {
                    passed += u32::from(check(limiter, client_of(thread, request)).allowed);
                }
                total.fetch_add(passed, Ordering::Relaxed);
            });
        }
    });
    total.into_inner()
}

#[test]
fn threads_share_one_bucket_exactly() {
    for round in 0..50 {
        let (_, table) = fake(8);
        let limiter = per_client("1000 per 1h", 1000, &table, round);
        assert_eq!(race(4, &limiter, |_, _| 1), 1000);
        assert_eq!(table.evictions(), 0);
    }
}

#[test]
fn threads_share_a_bucket_in_the_place_of_an_expired_one_exactly() {
    for round in 0..50 {
        let (clock, table) = fake(8);
        let quick = per_client("1 per 1s", 1, &table, 1);
        (0..8).for_each(|client| assert_eq!(allowed(&quick, client, 1), 1));
        clock.advance(Duration::from_secs(1));
        let limiter = per_client("1000 per 1h", 1000, &table, 2 + round);
        assert_eq!(race(4, &limiter, |_, _| 1), 1000);
        assert_eq!(table.evictions(), 0);
    }
}

#[test]
fn threads_that_bring_new_clients_at_once_grant_each_its_burst_exactly() {
    let (_, table) = fake(1 << 16);
    let limiter = per_client("3 per 1h", 3, &table, 1);
    // 4 threads, each 2000 requests over the same 500 clients: 16 requests a client.
    assert_eq!(race(4, &limiter, |_, request| request % 500), 1500);
    assert_eq!(table.evictions(), 0);
}

#[test]
fn threads_fighting_for_one_full_set_neither_hang_nor_lose_the_heavy_client() {
    let (_, table) = fake(8);
    let heavy = per_client("10 per 1h", 10, &table, 1);
    assert_eq!(allowed(&heavy, 1, 100), 10);
    let strangers = per_client("1 per 1s", 1, &table, 2);
    // Strangers evict each other, whose buckets are nearer to full, never the heavy client.
    // A debit that lands in a neighbour's bucket may refuse the neighbour; that stays the exception.
    assert!(race(4, &strangers, |thread, request| thread * 10_000 + request) > 4000);
    assert_eq!(allowed(&heavy, 1, 100), 0);
    assert!(table.evictions() > 0);
}

#[test]
fn a_limiter_can_be_shared_by_workers() {
    fn shared<T: Send + Sync>() {}
    shared::<Limiter>();
    shared::<Table>();
}
