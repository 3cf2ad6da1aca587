//! Gate and slots: who goes first, who waits, who is refused.

use super::*;
use crate::config::model;
use crate::upstream::balance::{Affinity, Tried};
use crate::upstream::registry::Registry;
use std::sync::atomic::AtomicUsize;
use std::task::Wake;

#[derive(Default)]
struct Count(AtomicUsize);
impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// One that waits, and how often it was woken.
struct Client {
    ticket: Ticket,
    count: Arc<Count>,
}

impl Client {
    fn of(gate: &Arc<Gate>, rule: &Capacity, now: u64) -> Option<Client> {
        let (ticket, _) = gate.line_up(rule, Millis(now))?;
        let client = Client { ticket, count: Arc::default() };
        assert_eq!(client.poll(), Poll::Pending);
        Some(client)
    }

    fn poll(&self) -> Poll<Turn> {
        self.ticket.poll(&Context::from_waker(&Waker::from(self.count.clone())))
    }

    fn woken(&self) -> usize {
        self.count.0.load(Ordering::Relaxed)
    }
}

fn rule(queue: u32) -> Capacity {
    let queue_time = Duration::from_secs(5);
    Capacity { per_endpoint: None, service: Some(2), queue, queue_time, adaptive: None }
}

fn service(endpoints: u16, capacity: Capacity) -> Service {
    balanced(endpoints, capacity, model::Balance::P2c)
}

fn balanced(endpoints: u16, capacity: Capacity, balance: model::Balance) -> Service {
    let located = |port| model::Located {
        value: model::Backend {
            address: crate::base::address::EndpointAddress::Name("b".into(), port),
            tls: false,
            weight: 1,
            backup: false,
            name: Default::default(),
        },
        origin: model::Origin::Default,
    };
    let said = model::Service {
        name: "s//".into(),
        backends: (1..=endpoints).map(located).collect(),
        sources: Vec::new(),
        balance,
        slow_start: None,
        split: None,
        health: None,
        eject: None,
        panic: None,
        connect_timeout: Duration::from_secs(1),
        timeout: Duration::from_secs(1),
        upstream: model::Upstream::default(),
        retry: model::Retry::default(),
        capacity: Some(capacity),
        breaker: None,
        upgrade: Vec::new(),
    };
    Service::compile(&said, &Registry::new(), Arc::default())
}

fn ask(random: u64, tried: &Tried) -> Ask<'_> {
    Ask { now: Millis(1), random, affinity: Affinity::None, tried }
}

fn take(service: &Service, tried: &Tried) -> Option<(usize, Slot)> {
    match service.take(&ask(0x9E37_79B9_7F4A_7C15, tried), false) {
        Taken::Slot(at, slot) => Some((at, slot)),
        Taken::Full | Taken::None => None,
    }
}

#[test]
fn the_first_that_came_is_rung_first_once_for_each_place() {
    let gate = Arc::new(Gate::default());
    let places: Vec<_> = (0..2).map(|_| gate.enter(2).unwrap()).collect();
    assert!(gate.enter(2).is_none());
    let line: Vec<_> = (0..3).map(|_| Client::of(&gate, &rule(10), 0).unwrap()).collect();
    assert_eq!(gate.waiting(), 3);
    drop(places);
    assert_eq!(line.iter().map(Client::woken).collect::<Vec<_>>(), [1, 1, 0]);
    assert_eq!((line[0].poll(), line[2].poll()), (Poll::Ready(Turn::Try), Poll::Pending));
}

#[test]
fn one_that_goes_away_leaves_at_once_and_its_ring_is_for_the_next() {
    let gate = Arc::new(Gate::default());
    let place = gate.enter(1).unwrap();
    let mut line: Vec<_> = (0..3).map(|_| Client::of(&gate, &rule(10), 0).unwrap()).collect();
    drop(line.remove(1));
    assert_eq!(gate.waiting(), 2);
    drop(place);
    drop(line.remove(0));
    assert_eq!((line[0].woken(), gate.waiting()), (1, 1));
    drop(line);
    assert_eq!(gate.waiting(), 0);
}

#[test]
fn a_ring_that_comes_while_one_tries_is_heard() {
    let gate = Arc::new(Gate::default());
    let client = Client::of(&gate, &rule(10), 0).unwrap();
    gate.ring(Ring::Freed);
    assert_eq!(client.poll(), Poll::Ready(Turn::Try));
    gate.ring(Ring::Freed);
    assert_eq!((client.poll(), client.poll()), (Poll::Ready(Turn::Try), Poll::Pending));
}

#[test]
fn who_finds_a_slot_that_nobody_freed_rings_the_next() {
    let gate = Arc::new(Gate::default());
    let mut line: Vec<_> = (0..3).map(|_| Client::of(&gate, &rule(10), 0).unwrap()).collect();
    assert!(!gate.look(Millis(100)));
    assert_eq!(line.iter().map(Client::woken).collect::<Vec<_>>(), [1, 0, 0]);
    let first = line.remove(0);
    assert_eq!(first.poll(), Poll::Ready(Turn::Try));
    first.ticket.served();
    assert_eq!(line.iter().map(Client::woken).collect::<Vec<_>>(), [1, 0]);
}

#[test]
fn a_full_queue_refuses_the_newest_until_it_has_stood_too_long() {
    let gate = Arc::new(Gate::default());
    let mut line: Vec<_> = (0..3).map(|at| Client::of(&gate, &rule(3), at).unwrap()).collect();
    assert!(Client::of(&gate, &rule(3), 5_000).is_none());
    // Somebody has always waited for longer than anybody may: the oldest gives way, the newest is served first.
    let newest = Client::of(&gate, &rule(3), 5_001).unwrap();
    assert_eq!((line[0].woken(), line[0].poll()), (1, Poll::Ready(Turn::GaveWay)));
    assert!(newest.ticket.is_next() && gate.waiting() == 3);
    gate.ring(Ring::Freed);
    assert_eq!((newest.woken(), line[1].woken(), line[2].woken()), (1, 0, 0));
    // Once it was empty the order is that of coming again.
    line.clear();
    drop(newest);
    let line: Vec<_> = (0..2).map(|_| Client::of(&gate, &rule(3), 6_000).unwrap()).collect();
    assert!(line[0].ticket.is_next());
    assert!(Client::of(&gate, &rule(0), 9_000).is_none(), "no queue is no queue");
}

#[test]
fn retry_after_is_what_waits_at_the_rate_at_which_requests_end() {
    let gate = Arc::new(Gate::default());
    let line: Vec<_> = (0..99).map(|_| Client::of(&gate, &rule(100), 1_000).unwrap()).collect();
    assert_eq!(gate.retry_after(Millis(1_100)), 1, "nothing is known yet");
    for _ in 0..40 {
        drop(gate.enter(10));
    }
    assert_eq!(gate.retry_after(Millis(3_000)), 5, "a hundred at twenty a second");
    assert_eq!(gate.retry_after(Millis(900_000)), RETRY_AFTER_MAX_S);
    drop(line);
}

#[test]
fn that_requests_wait_is_told_now_and_then_and_that_none_does_once() {
    let gate = Arc::new(Gate::default());
    let (first, tell) = gate.line_up(&rule(9), Millis(0)).unwrap();
    let (second, again) = gate.line_up(&rule(9), Millis(1)).unwrap();
    assert!(tell && !again && !gate.look(Millis(2)));
    drop((first, second));
    assert_eq!((gate.look(Millis(3)), gate.look(Millis(4))), (true, false));
    let (third, soon) = gate.line_up(&rule(9), Millis(9_999)).unwrap();
    drop(third);
    assert!(!soon && !gate.look(Millis(9_999)));
    assert!(gate.line_up(&rule(9), Millis(10_000)).unwrap().1);
}

#[test]
fn endpoints_are_never_over_their_cap_and_the_last_free_one_is_found() {
    let service = service(20, Capacity { per_endpoint: Some(2), service: None, ..rule(10) });
    let slots: Vec<_> = (0..40).map(|_| take(&service, &Tried::default()).unwrap()).collect();
    assert!(service.endpoints.iter().all(|one| one.endpoint.in_flight() == 2));
    assert!(matches!(service.take(&ask(7, &Tried::default()), false), Taken::Full));
    let (at, slot) = slots.into_iter().next_back().unwrap();
    drop(slot);
    // All others were dropped with the iterator; fill them again but for one.
    let kept: Vec<_> = (0..39).map(|_| take(&service, &Tried::default()).unwrap()).collect();
    let (free, _slot) = take(&service, &Tried::default()).unwrap();
    let held = kept.iter().filter(|(other, _)| *other == free).count();
    assert_eq!(held, 1, "{at}");
    assert_eq!(service.ledger.gate.in_flight(), 40);
}

#[test]
fn regression_a_key_whose_endpoint_is_full_goes_to_the_next_in_its_order_and_waits_only_when_all_are() {
    for load in [Some(125), None] {
        let capacity = Capacity { per_endpoint: Some(1), service: None, ..rule(10) };
        let balance = model::Balance::Hash { key: model::Key::ClientIp, load };
        let service = balanced(12, capacity, balance);
        let none = Tried::default();
        let wants = |random| Ask { affinity: Affinity::Key(77), ..ask(random, &none) };
        // Its order: the endpoints that it gets while the ones before are out of the question.
        let mut passed = Tried::default();
        let order: Vec<usize> = (0..12)
            .map(|_| {
                let at = service.choose(&Ask { tried: &passed, ..wants(0) }).unwrap().0;
                passed.insert(at);
                at
            })
            .collect();
        let taken = |random: u64| {
            (0..12u64)
                .map(|step| match service.take(&wants(random.wrapping_mul(step + 1)), false) {
                    Taken::Slot(at, slot) => (at, slot),
                    other => panic!("{other:?}"),
                })
                .collect::<Vec<_>>()
        };
        for random in [1, 0x9E37_79B9_7F4A_7C15, u64::MAX / 3] {
            let slots = taken(random);
            assert_eq!(slots.iter().map(|(at, _)| *at).collect::<Vec<_>>(), order, "{load:?}");
            assert!(matches!(service.take(&wants(random), false), Taken::Full), "all are full: it waits");
        }
    }
}

#[test]
fn full_endpoints_are_no_reason_to_use_one_that_drains() {
    let capacity = Capacity { per_endpoint: Some(1), service: None, ..rule(10) };
    let mut service = service(3, capacity);
    service.endpoints[2].weight = 0;
    let _slots: Vec<_> = (0..2).map(|_| take(&service, &Tried::default()).unwrap()).collect();
    assert!(matches!(service.take(&ask(7, &Tried::default()), false), Taken::Full));
    assert_eq!(service.endpoints[2].endpoint.in_flight(), 0);
}

#[test]
fn nobody_overtakes_those_who_wait_and_those_in_line_may() {
    let service = service(2, rule(10));
    let gate = &service.ledger.gate;
    let held: Vec<_> = (0..2).map(|_| take(&service, &Tried::default()).unwrap()).collect();
    let client = Client::of(gate, &rule(10), 0).unwrap();
    drop(held);
    assert!(take(&service, &Tried::default()).is_none(), "there is room, and somebody who was first");
    assert!(matches!(service.take(&ask(7, &Tried::default()), true), Taken::Slot(..)));
    drop(client);
}

#[test]
fn a_failed_look_leaves_no_trace_and_rings_nobody() {
    let service = service(1, Capacity { per_endpoint: Some(1), service: Some(5), ..rule(10) });
    let gate = &service.ledger.gate;
    let (_, held) = take(&service, &Tried::default()).unwrap();
    let client = Client::of(gate, &rule(10), 0).unwrap();
    assert!(matches!(service.take(&ask(7, &Tried::default()), true), Taken::Full));
    assert_eq!((gate.in_flight(), client.woken()), (1, 0));
    drop(held);
    assert_eq!((gate.in_flight(), client.woken()), (0, 1));
}

#[test]
fn an_endpoint_that_was_tried_is_used_again_only_when_no_other_lives() {
    let service = service(2, Capacity { per_endpoint: Some(1), service: None, ..rule(10) });
    let mut tried = Tried::default();
    let (first, held) = take(&service, &tried).unwrap();
    drop(held);
    tried.insert(first);
    let (other, _held) = take(&service, &tried).unwrap();
    assert_ne!(first, other);
    // The other one lives and is full: wait for it rather than go back.
    assert!(matches!(service.take(&ask(7, &tried), false), Taken::Full));
    for _ in 0..2 {
        service.endpoints[other].endpoint.connect_failed(Millis(1), "refused");
    }
    assert_eq!(take(&service, &tried).map(|(at, _)| at), Some(first));
}
