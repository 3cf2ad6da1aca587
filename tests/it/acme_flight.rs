//! Certificates in the making while the world changes: reloads, sites that come and go, signals, a second process.
//!
//! The authority holds an order at a gate, so that what happens meanwhile happens in the middle of it.

use rustix::process::Signal;
use rustls::version::TLS13;

use crate::acme::{all_issued, asking, automatic, certificates, curl, wait_for_long};
use crate::harness::front::Fault;
use crate::harness::pebble::Ports;
use crate::harness::proxy::TIDEGATE;
use crate::harness::tls::{client_config, connect};
use crate::harness::{Front, Gate, Origin, Pebble, Proxy, ProxyBuilder, tool, wait_for, wait_until};

/// Where orders are held: the last step before the certificate, and the step that has the authority look.
const FINALIZE: &str = "/finalize-order/";
const READY: &str = "/chalZ/";

struct House {
    origin: Origin,
    pebble: Pebble,
    front: Front,
    builder: Option<ProxyBuilder>,
}

impl House {
    async fn new() -> Option<House> {
        if !Pebble::is_here() {
            return None;
        }
        let ports = Ports::free();
        let pebble =
            Pebble::start(ports, &[("PEBBLE_AUTHZREUSE", "0"), ("PEBBLE_WFE_NONCEREJECT", "0")]).await;
        let front = Front::of(&pebble).await;
        let builder = asking(&pebble, ports, "[\"tls-alpn-01\", \"http-01\"]")
            .set("acme.directory", &format!("{:?}", front.directory()));
        Some(House { origin: Origin::saying("ok").await, pebble, front, builder: Some(builder) })
    }

    fn site(&self, hosts: &[&str]) -> String {
        format!("hosts = {hosts:?}\n{}", automatic(&self.origin))
    }

    /// Starts with a site whose order stands at the gate.
    async fn held(&mut self, site: &str, hosts: &[&str], path: &'static str) -> (Proxy, Gate) {
        let gate = Gate::default();
        self.front.plan(path, 1, Fault::Hold(gate.clone()));
        let builder = self.builder.take().unwrap().site(site, &self.site(hosts));
        let proxy = builder.start().await;
        self.arrived(path, 1).await;
        (proxy, gate)
    }

    async fn arrived(&self, path: &str, times: usize) {
        wait_until(&format!("{times} requests to {path}"), || self.front.asked(path).len() >= times).await;
    }

    async fn serves(&self, proxy: &Proxy, host: &str) -> bool {
        let config = client_config(self.pebble.roots(), &[], &[&TLS13]);
        connect(config, proxy.https(), host).await.is_ok()
    }
}

async fn failures(proxy: &Proxy) -> f64 {
    let metrics = proxy.metrics().await;
    let all = metrics.sum("tidegate_acme_orders_total", &[]);
    all - metrics.sum("tidegate_acme_orders_total", &[("result", "issued")])
}

#[tokio::test]
async fn a_reload_in_the_middle_of_an_order_neither_repeats_nor_loses_it() {
    let Some(mut house) = House::new().await else { return };
    let (proxy, gate) = house.held("shop.test", &["shop.test"], FINALIZE).await;
    // Another site, then other settings of [acme]: a new engine, while the old one is at work.
    proxy.write_site("other.test", &house.site(&["other.test"]));
    proxy.reload().await;
    proxy.edit_config(|text| text.replace("ops@tidegate.test", "new@tidegate.test"));
    assert_eq!(proxy.reload().await["refused"], false);
    all_issued(&proxy, &["other.test".into()]).await;
    gate.open();
    all_issued(&proxy, &["shop.test".into()]).await;
    for host in ["shop.test", "other.test"] {
        assert_eq!(curl(&proxy, &house.pebble, host).await, "ok", "{host}");
        assert_eq!(house.front.orders_of(host).len(), 1, "{host}");
    }
    assert_eq!((house.front.accounts(), failures(&proxy).await), (1, 0.0));
}

#[tokio::test]
async fn a_site_that_goes_in_the_middle_of_its_order_may_come_back_to_the_certificate() {
    let Some(mut house) = House::new().await else { return };
    let (proxy, gate) = house.held("shop.test", &["shop.test"], FINALIZE).await;
    proxy.remove_site("shop.test");
    proxy.write_site("other.test", &house.site(&["other.test"]));
    proxy.reload().await;
    gate.open();
    all_issued(&proxy, &["other.test".into()]).await;
    wait_until("the certificate to be fetched", || !house.front.fetched_of("shop.test").is_empty()).await;
    assert!(!house.serves(&proxy, "shop.test").await, "a site that is gone is not served");
    let rows = certificates(&proxy).await;
    assert!(rows.iter().all(|row| row["site"] != "shop.test"), "{rows:#?}");
    // Even when asked for, what is gone is not renewed.
    let refused = proxy.command(&["certs", "renew", "shop.test"]);
    assert_eq!(refused.status.code(), Some(1));

    proxy.write_site("shop.test", &house.site(&["shop.test"]));
    proxy.reload().await;
    all_issued(&proxy, &["shop.test".into()]).await;
    assert_eq!(curl(&proxy, &house.pebble, "shop.test").await, "ok");
    assert_eq!(house.front.orders_of("shop.test").len(), 1);
    assert_eq!(failures(&proxy).await, 0.0);
}

#[tokio::test]
async fn a_site_that_goes_and_comes_back_within_its_order_is_not_ordered_twice() {
    let Some(mut house) = House::new().await else { return };
    let (proxy, gate) = house.held("shop.test", &["shop.test"], FINALIZE).await;
    proxy.remove_site("shop.test");
    proxy.reload().await;
    proxy.write_site("shop.test", &house.site(&["shop.test"]));
    // Its order would be the next, so that one for another site shows that the queue has been there.
    proxy.write_site("zz.test", &house.site(&["zz.test"]));
    proxy.reload().await;
    all_issued(&proxy, &["zz.test".into()]).await;
    let rows = certificates(&proxy).await;
    let row = rows.iter().find(|row| row["site"] == "shop.test").expect("a row");
    assert_eq!((&row["state"], row["last_error"].is_null()), (&"ordering".into(), true), "{row}");
    gate.open();
    all_issued(&proxy, &["shop.test".into()]).await;
    assert_eq!(house.front.orders_of("shop.test").len(), 1);
    assert_eq!(failures(&proxy).await, 0.0, "{}", proxy.stderr());
}

#[tokio::test]
async fn hosts_that_come_in_the_middle_of_an_order_are_ordered_next() {
    let Some(mut house) = House::new().await else { return };
    let (proxy, gate) = house.held("shop", &["a.test"], FINALIZE).await;
    proxy.write_site("shop", &house.site(&["a.test", "b.test"]));
    proxy.reload().await;
    gate.open();
    let both = wait_for_long("a certificate for both", || async {
        house.serves(&proxy, "b.test").await.then_some(())
    });
    assert!(both.await.is_some(), "{}", proxy.stderr());
    assert!(house.serves(&proxy, "a.test").await);
    let orders = house.front.orders();
    let names: Vec<_> = orders.iter().map(|order| order.names.join(" ")).collect();
    assert_eq!(names, ["a.test", "a.test b.test"]);
    // The first certificate was stored, so the second order replaces it.
    assert_eq!(orders[1].replaces.as_deref(), Some(house.front.fetched()[0].id.as_str()));
    assert_eq!(failures(&proxy).await, 0.0);
}

/// The new host leads elsewhere, and the machine starts anew meanwhile.
#[tokio::test]
async fn a_host_that_cannot_be_ordered_takes_no_certificate_from_the_others_over_a_restart() {
    let Some(mut house) = House::new().await else { return };
    let builder = house.builder.take().unwrap().site("shop", &house.site(&["a.test"]));
    let mut proxy = builder.start().await;
    all_issued(&proxy, &["shop".into()]).await;
    house.pebble.point("b.test", "127.0.0.2").await;
    proxy.write_site("shop", &house.site(&["a.test", "b.test"]));
    proxy.reload().await;
    assert_eq!(curl(&proxy, &house.pebble, "a.test").await, "ok");
    wait_for_long("the failure", || async {
        let rows = certificates(&proxy).await;
        rows.iter().any(|row| row["site"] == "shop" && row["last_error"].is_string()).then_some(())
    })
    .await
    .expect("b.test cannot be validated");
    proxy.restart().await;
    assert_eq!(curl(&proxy, &house.pebble, "a.test").await, "ok", "after the restart");
}

#[tokio::test]
async fn sigterm_in_the_middle_of_an_order_ends_in_time_and_leaves_no_failure_behind() {
    let Some(mut house) = House::new().await else { return };
    for path in [READY, FINALIZE] {
        let name = if path == READY { "early.test" } else { "late.test" };
        let (mut proxy, gate) = house.held(name, &[name], path).await;
        let before = house.front.asked(path).len();
        proxy.signal(Signal::TERM);
        let status = proxy.ended().await;
        assert!(status.success(), "{status}\n{}", proxy.stderr());
        gate.open();
        // The next process owes the authority nothing: it orders at once, not after a minute.
        proxy.begin();
        proxy.await_ready().await;
        all_issued(&proxy, &[name.into()]).await;
        assert_eq!(curl(&proxy, &house.pebble, name).await, "ok", "{name}");
        assert!(house.front.asked(path).len() > before);
        assert_eq!(failures(&proxy).await, 0.0, "{}", proxy.stderr());
        drop(proxy);
        let Some(fresh) = House::new().await else { return };
        house = fresh;
    }
}

#[tokio::test]
async fn an_order_that_is_nearly_done_is_finished_before_the_process_ends() {
    let Some(mut house) = House::new().await else { return };
    house.builder = house.builder.take().map(|builder| builder.set("server.drain", "\"30s\""));
    let (mut proxy, gate) = house.held("shop.test", &["shop.test"], FINALIZE).await;
    proxy.signal(Signal::TERM);
    wait_until("the process to be stopping", || proxy.stderr().contains("stopping:")).await;
    gate.open();
    assert!(proxy.ended().await.success());
    let served = house.front.orders().len();
    proxy.begin();
    proxy.await_ready().await;
    assert_eq!(curl(&proxy, &house.pebble, "shop.test").await, "ok", "it serves from its first moment");
    assert_eq!((served, house.front.orders().len()), (1, 1));
}

#[tokio::test]
async fn a_second_process_on_the_same_state_orders_nothing() {
    let Some(mut house) = House::new().await else { return };
    let (proxy, gate) = house.held("shop.test", &["shop.test"], READY).await;
    let config = std::fs::read_to_string(proxy.config()).unwrap();
    let second = proxy.path().join("second");
    std::fs::create_dir_all(second.join("sites")).unwrap();
    std::fs::write(second.join("tidegate.toml"), config.replace("admin.sock", "second.sock")).unwrap();
    std::fs::copy(proxy.path().join("sites/shop.test.toml"), second.join("sites/shop.test.toml")).unwrap();
    let path = second.join("tidegate.toml").display().to_string();
    let output = tool::run(TIDEGATE, &crate::args!["run", "--config", path]).await;
    let said = tool::text(&output.stderr);
    assert!(
        !output.status.success() && said.contains("another tidegate runs with the state folder"),
        "{said}"
    );
    gate.open();
    all_issued(&proxy, &["shop.test".into()]).await;
    assert_eq!((house.front.orders().len(), house.front.accounts()), (1, 1));
}
