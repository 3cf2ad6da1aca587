//! From requests on several workers to a proposal.

use std::sync::Arc;
use std::time::Duration;

use super::*;

const SECOND: u64 = 1_000;

fn plan(sites: &[&str], workers: usize, seconds: u64) -> Arc<Plan> {
    let sites = sites.iter().map(|name| Arc::from(*name)).collect();
    Arc::new(Plan::new(1, sites, workers, Millis(0), Duration::from_secs(seconds)))
}

/// A client, told by a number.
fn client(number: u32) -> ClientKey {
    ClientKey::of(std::net::IpAddr::from(std::net::Ipv4Addr::from(0x0A00_0000 + number)))
}

/// Plays `seconds` of requests over the workers, a tick a second, and merges what they left.
fn played(
    plan: &Arc<Plan>,
    seconds: u64,
    mut requests: impl FnMut(u64, &mut dyn FnMut(usize, &str, ClientKey)),
) -> Merged {
    let watch = Watch::default();
    watch.set(Some(plan.clone()));
    let mut workers: Vec<Option<Box<Tally>>> = (0..plan.workers).map(|_| None).collect();
    let mut merged = Merged::new(plan.clone());
    for second in 0..=seconds {
        workers.iter_mut().for_each(|tally| watch.tick(tally, Millis(second * SECOND)));
        watch.collect().into_iter().for_each(|tally| merged.add(tally));
        if second < seconds {
            requests(second, &mut |worker, site, client| {
                let count = workers.len();
                if let Some(tally) = &mut workers[worker % count] {
                    tally.request(site, client);
                }
            });
        }
    }
    assert!(
        workers.iter().all(Option::is_none) && merged.ended(),
        "the time is over, and they ended by themselves"
    );
    merged
}

fn report(plan: &Arc<Plan>, merged: Merged, seconds: u64) -> Report {
    Report::new(&plan.sites, merged.finish(), seconds)
}

#[test]
fn what_a_client_sent_over_several_workers_is_added_up_window_by_window() {
    let plan = plan(&["a", "b"], 3, 60);
    let merged = played(&plan, 60, |second, send| {
        // Each second every client sends one request on another worker; client 7 three more.
        for number in 0..40 {
            send(second as usize + number as usize, "a", client(number));
        }
        (0..3).for_each(|worker| send(worker, "a", client(7)));
        send(0, "elsewhere", client(1));
    });
    let report = report(&plan, merged, 60);
    assert_eq!((report.sites.len(), report.silent), (1, 1));
    let site = &report.sites[0];
    assert_eq!((&*site.name, site.seen.requests, site.clients, site.seen.one_in), ("a", 60 * 43, 40, 1));
    assert_eq!(site.seen.windows.count(), 6 * 40);
    let quantiles = [500, 900, 990, 999].map(|q| site.seen.windows.quantile(q));
    assert_eq!((quantiles, site.seen.windows.max()), ([10, 10, 40, 40], 40));
    assert_eq!(site.seen.clients.last().map(|client| (client.most, client.requests)), Some((40, 240)));
    // Client 7 is no more than one of 40, so it counts as ordinary: twice what it sent.
    assert_eq!(site.limit, Limit { count: 80, refused: 0, clients: 0 });
    assert!(site.warnings.is_empty(), "{:?}", site.warnings);
}

#[test]
fn a_loud_client_does_not_shape_the_limit_that_is_to_stop_it() {
    let plan = plan(&["a"], 2, 60);
    let merged = played(&plan, 60, |second, send| {
        (0..30).for_each(|number| send(number as usize, "a", client(number)));
        (0..200).for_each(|at| send(at, "a", client(99)));
        assert!(second < 60);
    });
    let report = report(&plan, merged, 60);
    let site = &report.sites[0];
    assert_eq!(site.limit, Limit { count: 20, refused: 6 * (2000 - 20), clients: 1 });
    assert_eq!(site.top, Some((client(99), 200 * 1000 / 230)));
    assert!(site.warnings[0].contains("86 % of the requests and was left out"), "{:?}", site.warnings);
}

#[test]
fn little_is_said_to_be_little() {
    let plan = plan(&["a"], 1, 5);
    let merged = played(&plan, 5, |_, send| send(0, "a", client(1)));
    let report = report(&plan, merged, 5);
    let site = &report.sites[0];
    assert_eq!(site.limit, Limit { count: 20, refused: 0, clients: 0 });
    assert!(site.warnings[0].starts_with("thin data: 5 requests of 1 clients in 5 s"), "{:?}", site.warnings);
    assert!(site.warnings[1].contains("too few others"), "{:?}", site.warnings);
}

#[test]
fn more_clients_than_room_are_reckoned_from_a_part_and_requests_stay_exact() {
    let plan = plan(&["big", "small"], 2, 20);
    let merged = played(&plan, 20, |second, send| {
        for number in 0..20_000u32 {
            let number = number + 20_000 * u32::try_from(second % 10).unwrap();
            send(number as usize, "big", client(number));
        }
        (0..25).for_each(|number| send(0, "small", client(number)));
    });
    let report = report(&plan, merged, 20);
    let [big, small] = &report.sites[..] else { panic!("{}", report.sites.len()) };
    assert_eq!((big.seen.requests, small.seen.requests, small.clients), (400_000, 500, 25));
    assert!(big.seen.one_in >= 8 && small.seen.one_in == 1, "{}", big.seen.one_in);
    assert!((170_000..230_000).contains(&big.clients), "{} reckoned of 200,000", big.clients);
    assert!(big.warnings.iter().any(|warning| warning.contains("one in")), "{:?}", big.warnings);
}

#[test]
fn bodies_and_connections_have_their_bounds_too() {
    let plan = plan(&["a"], 1, 10);
    let mut tally = Tally::new(&plan, 0);
    tally.last = true;
    tally.request("a", client(1));
    tally.body("a", 70_000, false);
    tally.body("a", 0, false);
    tally.body("a", 1 << 30, true);
    tally.body("other", 1, false);
    (1..=6).for_each(|nth| tally.connection(nth));
    tally.connection(500);
    let mut merged = Merged::new(plan.clone());
    merged.add(tally);
    let report = report(&plan, merged, 10);
    let site = &report.sites[0];
    assert_eq!((site.body.max, site.seen.bodies.count(), site.seen.too_large), (256 << 10, 1, 1));
    assert!(site.warnings.iter().any(|warning| warning.contains("refused for their size")));
    // 500 is the worst of seven: with so few, nothing is out of the ordinary.
    assert_eq!(report.cap, Some(Cap { max: 1_000, refused: 0 }));
}

#[test]
fn another_plan_ends_the_first_and_what_is_late_is_not_mixed_in() {
    let (first, watch) = (plan(&["a"], 1, 60), Watch::default());
    let second = Arc::new(Plan::new(2, vec!["a".into()], 1, Millis(5_000), Duration::from_secs(60)));
    let mut tally = None;
    watch.tick(&mut tally, Millis(0));
    assert!(tally.is_none(), "nothing is watched");
    watch.set(Some(first.clone()));
    watch.tick(&mut tally, Millis(100));
    tally.as_mut().unwrap().request("a", client(1));
    watch.set(Some(second.clone()));
    watch.tick(&mut tally, Millis(5_100));
    assert_eq!(tally.as_ref().unwrap().plan.id, 2);
    let mut merged = Merged::new(second);
    watch.collect().into_iter().for_each(|tally| merged.add(tally));
    assert_eq!((merged.requests(), merged.ended()), (0, false));
    watch.set(None);
    watch.tick(&mut tally, Millis(5_200));
    assert!(tally.is_none());
    watch.collect().into_iter().for_each(|tally| merged.add(tally));
    assert!(merged.ended());
}

#[test]
fn what_nobody_collects_is_bounded() {
    let (plan, watch) = (plan(&["a"], 1, 3_600), Watch::default());
    watch.set(Some(plan));
    let mut tally = None;
    (0..3_600).step_by(10).for_each(|second| watch.tick(&mut tally, Millis(second * SECOND)));
    assert_eq!(watch.collect().len(), WAITING_MAX);
}
