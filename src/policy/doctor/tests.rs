//! Verdicts over what workers saw.

use super::*;

fn key(address: &str) -> ClientKey {
    ClientKey::of(address.parse().unwrap())
}

/// A sketch of so many looks at each address.
fn seen(clients: &[(&str, u64, bool)]) -> Sketch {
    let mut sketch = Sketch::default();
    for (address, times, forwarded) in clients {
        (0..*times).for_each(|_| sketch.feed(key(address), *forwarded));
    }
    sketch
}

#[test]
fn a_loud_public_address_is_told_and_its_limits_stay_whatever_it_sends() {
    let doctor = Doctor::default();
    // It also says that it is a proxy: anybody can.
    let sketch = seen(&[("192.0.2.7", 200, true), ("198.51.100.1", 100, false)]);
    doctor.hear(&sketch, &[], Millis(0));
    assert_eq!(doctor.look(Millis(30_000)), [], "the minute is not over");
    let told = doctor.look(Millis(60_000));
    let [Stands { finding: Finding::Loud(loud), percent: 66, .. }] = told[..] else { panic!("{told:?}") };
    assert_eq!(loud, key("192.0.2.7"));
    assert_eq!((doctor.doubted(), doctor.generation()), (vec![], 0));
    // The next minute is one of its own, and nothing is told twice within an hour.
    doctor.hear(&sketch, &[], Millis(61_000));
    assert_eq!(doctor.look(Millis(120_000)), []);
    doctor.hear(&sketch, &[], Millis(3_600_000));
    assert_eq!(doctor.look(Millis(3_660_000)).len(), 1);
    assert_eq!(doctor.look(Millis(2 * 3_660_000)), []);
    assert_eq!(doctor.findings(), [], "what is not seen for an hour is over");
}

#[test]
fn little_traffic_says_nothing_and_an_even_one_neither() {
    let doctor = Doctor::default();
    doctor.hear(&seen(&[("192.0.2.7", REQUESTS_MIN / EVERY - 1, false)]), &[], Millis(0));
    assert_eq!(doctor.look(Millis(60_000)), []);
    let even = [("192.0.2.1", 100, false), ("192.0.2.2", 100, false), ("10.0.0.1", 60, true)];
    doctor.hear(&seen(&even), &[], Millis(61_000));
    assert_eq!(doctor.look(Millis(120_000)), [], "a quarter is what a proxy inside must have");
}

#[test]
fn a_proxy_inside_is_doubted_at_once_and_no_longer_than_it_is_seen() {
    for inner in ["10.1.2.3", "127.0.0.1", "fd00::1", "172.17.0.1"] {
        let doctor = Doctor::default();
        doctor.hear(&seen(&[(inner, 200, true), ("192.0.2.2", 300, true)]), &[], Millis(0));
        let told = doctor.look(Millis(1_000));
        assert!(matches!(told[..], [Stands { finding: Finding::Inner(_), percent: 40, .. }]), "{told:?}");
        assert_eq!((doctor.doubted(), doctor.generation()), (vec![key(inner)], 1));
        assert_eq!(doctor.look(Millis(2_000)), [], "told once");
        // The minute ends, and nothing more is seen.
        doctor.look(Millis(60_000));
        doctor.look(Millis(60_000).after(STANDS));
        assert_eq!((doctor.doubted(), doctor.generation()), (vec![], 2));
    }
    // A program inside that is loud and adds nothing is one client.
    let doctor = Doctor::default();
    doctor.hear(&seen(&[("10.1.2.3", 300, false)]), &[], Millis(0));
    let told = doctor.look(Millis(60_000));
    assert!(matches!(told[..], [Stands { finding: Finding::Loud(_), .. }]), "{told:?}");
    assert!(doctor.doubted().is_empty());
}

#[test]
fn a_known_proxy_is_told_by_its_name_and_turned_off_it_forgets() {
    let doctor = Doctor::default();
    doctor.hear(&Sketch::default(), &["cloudflare".into()], Millis(0));
    doctor.hear(&Sketch::default(), &["cloudflare".into()], Millis(1_000));
    let told = doctor.look(Millis(1_000));
    assert_eq!(told.len(), 1);
    assert_eq!((told[0].finding.kind(), told[0].finding.is_doubted()), ("known-proxy", true));
    doctor.hear(&seen(&[("10.1.2.3", 300, true)]), &[], Millis(2_000));
    doctor.look(Millis(2_000));
    assert_eq!(doctor.findings().len(), 2);
    doctor.forget();
    assert_eq!((doctor.findings(), doctor.doubted(), doctor.generation()), (vec![], vec![], 2));
}

#[test]
fn findings_are_bounded() {
    let doctor = Doctor::default();
    let names: Vec<Arc<str>> = (0..1_000).map(|number| format!("edge-{number}").into()).collect();
    doctor.hear(&Sketch::default(), &names, Millis(0));
    assert_eq!(doctor.look(Millis(0)).len(), FINDINGS_MAX);
}
