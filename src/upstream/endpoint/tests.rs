//! Tests of one endpoint: state machine, averages, texts.

use super::latency::UNKNOWN_LATENCY_US;
use super::*;

fn endpoint() -> Arc<Endpoint> {
    let address = EndpointAddress::Socket("[2001:db8::1]:80".parse().unwrap());
    Arc::new(Endpoint::new(1, 0, Arc::new(Group::new("a/".into())), address, false, ""))
}

fn down(until: u64) -> Availability {
    Availability::Down { retry_at: Millis(until) }
}

#[test]
fn two_failed_connects_in_a_row_take_it_down_for_a_second() {
    let endpoint = endpoint();
    endpoint.connect_failed(Millis(100), "refused");
    assert_eq!(endpoint.availability(Millis(100)), Availability::Up);
    endpoint.connect_succeeded(Millis(0));
    endpoint.connect_failed(Millis(200), "refused");
    assert!(endpoint.is_up(Millis(200)), "not in a row");
    endpoint.connect_failed(Millis(300), "refused again");
    assert_eq!(endpoint.availability(Millis(300)), down(1300));
    assert_eq!(endpoint.availability(Millis(1299)), down(1300));
    assert_eq!(endpoint.availability(Millis(1300)), Availability::Trial);
    assert_eq!((endpoint.failures(), endpoint.last_error().as_deref()), (3, Some("refused again")));
}

#[test]
fn one_request_tries_it_again_and_the_time_doubles_up_to_its_bound() {
    let endpoint = endpoint();
    endpoint.connect_failed(Millis(0), "refused");
    endpoint.connect_failed(Millis(0), "refused");
    let mut now = 1000;
    for pause in [2000, 4000, 8000, 16_000, 30_000, 30_000] {
        assert!(endpoint.claim_trial(Millis(now)));
        assert!(!endpoint.claim_trial(Millis(now)), "one only");
        assert_eq!(endpoint.availability(Millis(now)), down(now + pause));
        endpoint.connect_failed(Millis(now + 1), "refused");
        assert_eq!(endpoint.availability(Millis(now + 1)), down(now + pause), "counted when it was claimed");
        now += pause;
    }
    assert!(endpoint.claim_trial(Millis(now)));
    endpoint.connect_succeeded(Millis(0));
    assert!(endpoint.is_up(Millis(now)) && !endpoint.claim_trial(Millis(now)));
    endpoint.connect_failed(Millis(now), "refused");
    endpoint.connect_failed(Millis(now), "refused");
    assert_eq!(endpoint.availability(Millis(now)), down(now + 1000), "from the beginning");
}

#[test]
fn many_connects_that_fail_together_are_one_failure() {
    let endpoint = endpoint();
    (0..100).for_each(|_| endpoint.connect_failed(Millis(5), "refused"));
    assert_eq!(endpoint.availability(Millis(5)), down(1005));
    assert_eq!(endpoint.failures(), 100);
}

#[test]
fn threads_get_one_trial_between_them() {
    for _ in 0..200 {
        let endpoint = endpoint();
        endpoint.connect_failed(Millis(0), "refused");
        endpoint.connect_failed(Millis(0), "refused");
        let won = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    won.fetch_add(u32::from(endpoint.claim_trial(Millis(1000))), Ordering::Relaxed)
                });
            }
        });
        assert_eq!(won.into_inner(), 1);
    }
}

#[test]
fn the_health_check_overrules_and_brings_back() {
    let endpoint = endpoint();
    endpoint.set_health(Health::Unhealthy, Millis(0));
    assert_eq!(endpoint.availability(Millis(0)), down(u64::MAX));
    endpoint.forget_health(Millis(0));
    assert!(endpoint.is_up(Millis(0)) && endpoint.health() == Health::Unknown);
    endpoint.connect_failed(Millis(0), "refused");
    endpoint.connect_failed(Millis(0), "refused");
    endpoint.set_health(Health::Healthy, Millis(0));
    assert!(endpoint.is_up(Millis(0)) && endpoint.health() == Health::Healthy);
}

#[test]
fn requests_in_flight_are_counted_by_guards() {
    let endpoint = endpoint();
    let guards: Vec<_> = (0..3).map(|_| endpoint.begin()).collect();
    assert_eq!((endpoint.in_flight(), guards[0].endpoint().id), (3, 1));
    drop(guards);
    assert_eq!(endpoint.in_flight(), 0);
}

#[test]
fn failures_are_logged_once_a_second_and_the_rest_is_counted() {
    let endpoint = endpoint();
    assert_eq!(endpoint.may_log(Millis(0)), Some(0));
    assert_eq!(endpoint.may_log(Millis(10)), None);
    assert_eq!(endpoint.may_log(Millis(999)), None);
    assert_eq!(endpoint.may_log(Millis(1_001)), Some(2));
    assert_eq!(endpoint.may_log(Millis(1_002)), None);
}

#[test]
fn the_average_jumps_to_peaks_falls_slowly_and_fades_when_idle() {
    let endpoint = endpoint();
    let load = |now| endpoint.load(1.0, Millis(now)).round();
    assert_eq!(load(0), 0.0, "unknown and idle: it must be tried");
    let asked = endpoint.begin();
    assert_eq!(load(0), 2.0 * f64::from(UNKNOWN_LATENCY_US), "unknown, one asks already");
    drop(asked);
    endpoint.observe(1_000, Millis(0));
    assert_eq!(load(0), 1_000.0);
    endpoint.observe(100_000, Millis(1));
    assert_eq!(load(1), 100_000.0, "a peak counts at once");
    endpoint.observe(1_000, Millis(2));
    assert!(load(2) > 99_000.0, "one quick answer does not excuse it");
    (0..5000).for_each(|ms| endpoint.observe(1_000, Millis(2 + ms * 10)));
    assert!(load(50_000) < 2_000.0, "many do");
    endpoint.observe(100_000, Millis(60_000));
    assert!((load(70_000) - 36_788.0).abs() < 2.0, "1/e after ten idle seconds");
    assert_eq!(load(10_000_000), 50.0, "never free");
    let _guards = [endpoint.begin(), endpoint.begin()];
    assert_eq!(load(10_000_000), 150.0);
}

#[test]
fn times_that_wrap_or_run_backwards_and_huge_latencies_do_no_harm() {
    let endpoint = endpoint();
    let wrap = u64::from(u32::MAX);
    endpoint.observe(u64::MAX, Millis(wrap));
    assert_eq!(endpoint.load(1.0, Millis(wrap - 5)), f64::from(u32::MAX));
    assert!((endpoint.load(1.0, Millis(wrap + 10_000)) / f64::from(u32::MAX) - 0.3679).abs() < 0.001);
    endpoint.observe(0, Millis(wrap + 1));
    assert!(endpoint.load(1.0, Millis(wrap + 1)) > 4.0e9);
}

#[test]
fn long_errors_are_cut_between_characters() {
    let endpoint = endpoint();
    endpoint.note_failure(&"ä".repeat(1000));
    assert_eq!(endpoint.last_error().unwrap(), "ä".repeat(ERROR_BYTES_MAX / 2));
    endpoint.note_failure(&format!("x{}", "ä".repeat(1000)));
    assert_eq!(endpoint.last_error().unwrap().len(), ERROR_BYTES_MAX - 1);
    assert_eq!((endpoint.host.as_str(), endpoint.is_up(Millis(0))), ("2001:db8::1", true));
}

#[test]
fn one_that_is_told_to_end_gets_nothing_until_it_is_said_to_stay() {
    let endpoint = endpoint();
    endpoint.set_health(Health::Healthy, Millis(0));
    endpoint.leave(true, Millis(1));
    assert_eq!(endpoint.availability(Millis(1)), down(u64::MAX));
    assert!(!endpoint.is_good());
    endpoint.set_health(Health::Healthy, Millis(2));
    assert!(!endpoint.is_up(Millis(2)), "whatever its health check says");
    endpoint.leave(false, Millis(3));
    assert!(endpoint.is_up(Millis(3)) && endpoint.is_good());
}
