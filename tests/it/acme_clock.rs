//! A wrong clock orders nothing: the real binary under Debian's libfaketime, with a real Pebble that has the right time.

use std::path::PathBuf;

use serde_json::Value;

use crate::acme::{all_issued, asking, automatic, certificates, curl};
use crate::harness::front::{Fault, Front};
use crate::harness::pebble::Ports;
use crate::harness::{Gate, Origin, Pebble, Proxy, ProxyBuilder, tool, wait_for, wait_until};

/// A clock that is set by writing a file, for the wall alone: timers go on.
struct Clock(PathBuf);

impl Clock {
    /// Makes a proxy that will be started see this clock; `None` where faketime is missing.
    fn of(builder: ProxyBuilder) -> Option<(ProxyBuilder, Clock)> {
        if !tool::requires("faketime", &["-v"]) {
            return None;
        }
        // Where the library is, is faketime's own secret.
        let asked = ["-m", "-f", "+0", "printenv", "LD_PRELOAD"];
        let library = std::process::Command::new("faketime").args(asked).output().unwrap();
        let library = tool::text(&library.stdout).trim().to_owned();
        let clock = Clock(builder.folder().join("clock"));
        clock.set("+0");
        let builder = builder
            .env("LD_PRELOAD", &library)
            .env("FAKETIME_TIMESTAMP_FILE", clock.0.to_str().unwrap())
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        Some((builder, clock))
    }

    fn set(&self, offset: &str) {
        let fresh = self.0.with_extension("new");
        std::fs::write(&fresh, format!("{offset}\n")).unwrap();
        std::fs::rename(fresh, &self.0).unwrap();
    }
}

/// Waits until the guard says that the clock is wrong, or right.
async fn held(proxy: &Proxy, wanted: bool) -> Value {
    let event = if wanted { "held" } else { "released" };
    let events = wait_for(&format!("the clock guard's event {event}"), || async {
        let events = proxy.admin("GET", "/certs/events").await["events"].as_array().unwrap().clone();
        let last = events.iter().rev().find(|e| e["event"] == "held" || e["event"] == "released")?;
        (last["event"] == event).then(|| last.clone())
    })
    .await;
    let wrong = proxy.metrics().await.sum("tidegate_clock_wrong", &[]);
    assert_eq!(wrong, f64::from(u8::from(wanted)), "{events}");
    events
}

#[tokio::test]
async fn a_clock_an_hour_ahead_orders_nothing_until_it_is_set() {
    if !Pebble::is_here() {
        return;
    }
    let origin = Origin::saying("ok").await;
    let ports = Ports::free();
    let pebble = Pebble::start(ports, &[]).await;
    let builder = asking(&pebble, ports, "[\"http-01\"]").site("one.test", &automatic(&origin));
    let Some((builder, clock)) = Clock::of(builder) else { return };
    clock.set("+3600");
    let proxy = builder.start().await;
    let event = held(&proxy, true).await;
    assert!(event["message"].as_str().unwrap().contains("ahead of the authority's"), "{event}");
    let offset = proxy.metrics().await.sum("tidegate_clock_offset_seconds", &[]);
    assert!((offset - 3600.0).abs() < 60.0, "{offset}");
    assert!(
        proxy.stderr().contains("Certificates are neither ordered nor put in force"),
        "{}",
        proxy.stderr()
    );
    for command in [&["certs"][..], &["status"][..]] {
        let text = tool::text(&proxy.command(command).stdout).to_owned();
        assert!(text.contains("clock: This machine's clock is 3"), "{text}");
    }
    // Nobody forces an order past it.
    proxy.command(&["certs", "renew", "one.test"]);
    proxy.reload().await;
    assert_eq!((pebble.orders(), pebble.accounts()), (0, 0), "{}", pebble.log());

    clock.set("+0");
    held(&proxy, false).await;
    all_issued(&proxy, &["one.test".to_owned()]).await;
    assert_eq!(curl(&proxy, &pebble, "one.test").await, "ok");
}

#[tokio::test]
async fn a_clock_that_jumps_by_years_renews_nothing_and_serves_on() {
    if !Pebble::is_here() {
        return;
    }
    let origin = Origin::saying("ok").await;
    let ports = Ports::free();
    let pebble = Pebble::start(ports, &[]).await;
    let mut builder = asking(&pebble, ports, "[\"http-01\"]");
    let sites: Vec<String> = (0..3).map(|n| format!("s{n}.test")).collect();
    for site in &sites {
        builder = builder.site(site, &automatic(&origin));
    }
    let Some((builder, clock)) = Clock::of(builder) else { return };
    let proxy = builder.start().await;
    all_issued(&proxy, &sites).await;
    let orders = pebble.orders();
    // Pebble signs for five years: at four all are due, at ten expired, and a year ago this version was not made.
    for (round, (offset, said)) in
        [("+4y", "ahead"), ("-1y", "before this version"), ("+10y", "ahead"), ("-50y", "before this version")]
            .into_iter()
            .enumerate()
    {
        clock.set(offset);
        let event = held(&proxy, true).await;
        assert!(event["message"].as_str().unwrap().contains(said), "{offset}: {event}");
        // A site more wakes the queue, which looks at everybody.
        let late = format!("late{round}.test");
        proxy.write_site(&late, &automatic(&origin));
        proxy.reload().await;
        assert_eq!(curl(&proxy, &pebble, &sites[0]).await, "ok", "{offset}");
        assert_eq!(pebble.orders(), orders + round, "{offset}: {}", pebble.log());
        clock.set("+0");
        held(&proxy, false).await;
        all_issued(&proxy, &[late]).await;
        assert_eq!(pebble.orders(), orders + round + 1, "{offset}: only the new site is ordered for");
    }
    let rows = certificates(&proxy).await;
    assert!(rows.iter().all(|row| row["state"] == "valid"), "{rows:#?}");
}

/// What was ordered with a right clock and comes with a wrong one is neither lost nor served before its time.
#[tokio::test]
async fn a_clock_that_goes_wrong_within_an_order_holds_the_new_certificate_back() {
    if !Pebble::is_here() {
        return;
    }
    let origin = Origin::saying("ok").await;
    let ports = Ports::free();
    let pebble = Pebble::start(ports, &[]).await;
    let front = Front::of(&pebble).await;
    let gate = Gate::default();
    front.plan("/certZ/", 1, Fault::Hold(gate.clone()));
    let builder = asking(&pebble, ports, "[\"http-01\"]")
        .set("acme.directory", &format!("{:?}", front.directory()))
        .site("one.test", &automatic(&origin));
    let Some((builder, clock)) = Clock::of(builder) else { return };
    let proxy = builder.start().await;
    wait_until("the certificate to be fetched", || !front.asked("/certZ/").is_empty()).await;
    clock.set("+7200");
    held(&proxy, true).await;
    gate.open();
    wait_until("the authority's answer", || !front.fetched_of("one.test").is_empty()).await;
    proxy.reload().await;
    let rows = certificates(&proxy).await;
    assert!(rows.iter().all(|row| row["not_after"].is_null() && row["state"] == "ordering"), "{rows:#?}");

    clock.set("+0");
    all_issued(&proxy, &["one.test".to_owned()]).await;
    assert_eq!(curl(&proxy, &pebble, "one.test").await, "ok");
    assert_eq!(front.orders_of("one.test").len(), 1);
}
