//! Fifty sites and everything that goes wrong at an authority at once; faults one by one.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::acme::{all_issued, asking, automatic, certificates, curl, name, wait_for_long};
use crate::harness::front::{self, Fault, Front};
use crate::harness::pebble::Ports;
use crate::harness::{Origin, Pebble, Proxy, tool, wait_for, wait_until};

/// Sites of the long story.
const SITES: usize = 50;
/// Orders that the settings allow in three hours; half of them may come at once.
const BUDGET: usize = 300;
/// How long the authority is away, in seconds: `TIDEGATE_TEST_OUTAGE` makes it two minutes for a run by hand.
const OUTAGE: u64 = 5;

/// A number from the environment, for runs longer than everyday's.
pub fn number(variable: &str, usual: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// Half of all nonces are refused, one site cannot be validated, validation takes seconds, and in the middle the
/// authority is gone and comes back without a memory. Nobody helps.
#[tokio::test]
async fn fifty_sites_are_served_in_the_end_however_rough_the_authority_is() {
    if !Pebble::is_here() {
        return;
    }
    let outage = Duration::from_secs(number("TIDEGATE_TEST_OUTAGE", OUTAGE));
    let origin = Origin::saying("ok").await;
    let ports = Ports::free();
    let rough = [("PEBBLE_WFE_NONCEREJECT", "50"), ("PEBBLE_VA_NOSLEEP", "0"), ("PEBBLE_VA_SLEEPTIME", "3")];
    let mut pebble = Pebble::start(ports, &rough).await;
    let front = Front::of(&pebble).await;
    pebble.point("lost.test", "127.0.0.2").await;
    let sites: Vec<String> = (0..SITES).map(name).collect();
    let builder = asking(&pebble, ports, "[\"tls-alpn-01\", \"http-01\"]")
        .set("acme.directory", &format!("{:?}", front.directory()))
        .site("lost.test", &automatic(&origin));
    let proxy = sites.iter().fold(builder, |b, site| b.site(site, &automatic(&origin))).start().await;

    let a_third = || (front.fetched().len() > SITES / 3).then_some(());
    wait_for_long("a third of the certificates", || async { a_third() }).await.expect("progress");
    let started = Instant::now();
    let made = pebble.orders();
    pebble.kill();
    // The outage is the story, not a wait for an effect.
    tokio::time::sleep(outage).await;
    pebble.start_again().await;

    // What failed meanwhile waits its minute (or ten), as always.
    let most = outage * 8 + Duration::from_secs(120);
    while front::unserved(&certificates(&proxy).await, &sites).is_some() {
        let left = front::unserved(&certificates(&proxy).await, &sites);
        assert!(started.elapsed() < most, "not served in {most:?}: {left:?}\n{}", proxy.stderr());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    for site in &sites {
        assert_eq!(curl(&proxy, &pebble, site).await, "ok", "{site}");
    }
    assert!(front.fetched_of("lost.test").is_empty());
    let made = made + pebble.orders();
    assert!(made <= BUDGET, "{made} orders");
    // No order for a name that has its certificate. One that was issued and not fetched does not count as had.
    for site in &sites {
        let fetched = front.fetched_of(site);
        let first = fetched.first().expect("a certificate").at;
        let late: Vec<_> = front.orders_of(site).into_iter().filter(|order| order.at > first).collect();
        assert!(late.is_empty(), "{site} was ordered again: {late:#?}");
    }
    let failed = certificates(&proxy).await;
    let lost = failed.iter().find(|row| row["site"] == "lost.test").expect("a row");
    assert!(lost["last_error"].is_string() && lost["next_try"].is_u64(), "{lost}");
    tool::report(&format!(
        "{} sites after an outage of {outage:?}: {made} orders, {:?} from the outage to the last",
        SITES,
        started.elapsed()
    ));
}

struct House {
    pebble: Pebble,
    front: Front,
    proxy: Proxy,
    origin: Origin,
}

impl House {
    async fn new() -> Option<House> {
        if !Pebble::is_here() {
            return None;
        }
        let origin = Origin::saying("ok").await;
        let ports = Ports::free();
        let pebble = Pebble::start(ports, &[("PEBBLE_WFE_NONCEREJECT", "0")]).await;
        let front = Front::of(&pebble).await;
        // What the managed engine makes of faults; the simple one hands over to it.
        let proxy = asking(&pebble, ports, "[\"tls-alpn-01\"]")
            .set("acme.directory", &format!("{:?}", front.directory()))
            .set("acme.engine", "\"managed\"")
            .site("first.test", &automatic(&origin))
            .start()
            .await;
        all_issued(&proxy, &["first.test".into()]).await;
        Some(House { pebble, front, proxy, origin })
    }

    async fn add(&self, site: &str) {
        self.proxy.write_site(site, &automatic(&self.origin));
        self.proxy.reload().await;
    }

    async fn renew(&self, site: &str) {
        self.proxy.admin("POST", &format!("/certs/renew?site={site}")).await;
    }

    async fn row(&self, site: &str) -> Value {
        let rows = certificates(&self.proxy).await;
        rows.into_iter().find(|row| row["site"] == site).expect("a row")
    }

    /// Waits until the site's last order has failed, and gives its row.
    async fn failed(&self, site: &str, attempts: u64) -> Value {
        let found = wait_for_long("a failure", || async {
            let row = self.row(site).await;
            (row["state"] == "failed" && row["attempts"].as_u64() >= Some(attempts)).then_some(row)
        });
        match found.await {
            Some(row) => row,
            None => panic!("{:#}\n{}", self.row(site).await, self.proxy.stderr()),
        }
    }
}

/// A fault of each kind at each step: the failure is told with its reason, the next try has everything it needs.
#[tokio::test]
async fn a_fault_at_any_step_of_an_order_is_told_and_mended_by_the_next_try() {
    let Some(house) = House::new().await else { return };
    let mut sites = Vec::new();
    let steps = ["/order-plz", "/authZ/", "/chalZ/", "/my-order/", "/finalize-order/", "/certZ/"];
    for (number, path) in steps.into_iter().enumerate() {
        let mut faults = vec![("l", Fault::Lose), ("t", Fault::Truncate)];
        if matches!(path, "/order-plz" | "/finalize-order/") {
            faults.extend([("d", Fault::Drop), ("p", Fault::Page(502, None))]);
        }
        for (letter, fault) in faults {
            // One at a time, so that the fault meets the order it is meant for.
            house.front.plan(path, 1, fault);
            let site = format!("{letter}{number}.test");
            house.add(&site).await;
            let ended = wait_for_long("the order to end", || async {
                let row = house.row(&site).await;
                (row["state"] == "failed" || row["not_after"].is_u64()).then_some(row)
            });
            let row = ended.await.expect("an end");
            if row["state"] == "failed" {
                let said = row["last_error"].as_str().expect("words");
                assert!(said.contains("127.0.0.1") || said.contains("502"), "{path} {letter}: {said}");
                house.renew(&site).await;
            }
            all_issued(&house.proxy, std::slice::from_ref(&site)).await;
            sites.push((path, letter, site));
        }
    }
    let twice: Vec<_> = sites
        .iter()
        .filter(|(.., site)| house.front.orders_of(site).len() > 1)
        .map(|(p, l, _)| (p, l))
        .collect();
    tool::report(&format!("ordered twice after: {twice:?}"));
    // Once there is an order, a broken connection is no reason to make another, or to throw a certificate away. Only
    // whether the order itself was made cannot be known.
    assert!(twice.iter().all(|(path, _)| **path == "/order-plz"), "{twice:?}");
    assert_eq!(house.front.accounts(), 1);
    assert_eq!(curl(&house.proxy, &house.pebble, &sites[0].2).await, "ok");
}

/// RFC 8555 section 6.6: a pause the authority asks for is kept, whoever wants a certificate.
#[tokio::test]
async fn retry_after_is_obeyed_for_the_whole_authority() {
    let Some(house) = House::new().await else { return };
    let pauses = [
        ("limit.test", "/order-plz", Fault::Refuse(429, "rateLimited", Some("4")), "rate-limited"),
        ("page.test", "/order-plz", Fault::Page(503, Some("4")), "network"),
    ];
    for (site, path, fault, reason) in pauses {
        house.front.plan(path, 1, fault);
        house.add(site).await;
        house.failed(site, 1).await;
        let asked = house.front.asked(path).last().expect("the refused one").when;
        let metrics = house.proxy.metrics().await;
        assert_eq!(metrics.sum("tidegate_acme_orders_total", &[("result", reason)]), 1.0);
        // Also for others, and for an operator who is impatient.
        let other = format!("after-{site}");
        house.add(&other).await;
        house.renew(site).await;
        all_issued(&house.proxy, &[site.to_owned(), other]).await;
        let next = house.front.asked(path);
        let next = next.iter().map(|asked| asked.when).find(|when| *when > asked).expect("the next one");
        assert!(next - asked >= Duration::from_secs(3), "asked again after {:?}", next - asked);
    }
}

/// The library of the managed engine adds the seconds to the time of day, and panics.
#[tokio::test]
async fn regression_a_pause_longer_than_time_itself_ends_one_try_and_not_the_sites_orders() {
    let Some(house) = House::new().await else { return };
    house.front.plan("/my-order/", 1, Fault::Refuse(400, "malformed", Some("18446744073709551615")));
    house.add("odd.test").await;
    house.failed("odd.test", 1).await;
    assert!(!house.proxy.stderr().contains("panicked"), "{}", house.proxy.stderr());
    house.renew("odd.test").await;
    all_issued(&house.proxy, &["odd.test".to_owned()]).await;
}

/// A clock that is wrong makes certificates that nobody accepts: nothing is ordered while the two clocks differ.
#[tokio::test]
async fn an_authority_with_another_clock_is_asked_for_nothing_until_they_agree() {
    let Some(mut house) = House::new().await else { return };
    house.front.plan("/", usize::MAX, Fault::Date(3600));
    // A new process has no memory of what the clock was.
    house.proxy.restart().await;
    let orders = house.front.orders().len();
    // It may come before the first look at the clock has ended: then its order asks for the time itself.
    house.add("early.test").await;
    let clock = wait_for("the clock guard", || async {
        let clock = house.proxy.admin("GET", "/certs").await["clock"].clone();
        (clock["state"] == "wrong").then_some(clock)
    })
    .await;
    assert!(clock["message"].as_str().is_some_and(|said| said.contains("clock")), "{clock}");
    house.add("late.test").await;
    for site in ["early.test", "late.test"] {
        house.renew(site).await;
        let waits = async || (house.row(site).await["state"] == "waiting").then_some(());
        wait_for("the site to wait: it is not its failure", waits).await;
    }
    assert_eq!(house.front.orders().len(), orders, "nothing was ordered");
    house.front.mend();
    house.proxy.restart().await;
    for site in ["early.test", "late.test"] {
        house.renew(site).await;
    }
    all_issued(&house.proxy, &["early.test".into(), "late.test".into()]).await;
}
