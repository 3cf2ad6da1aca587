//! Renewal: certificates of seconds, ten generations long, under clients that never stop; and the authority's own idea
//! of when (RFC 9773).

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustls::version::{TLS12, TLS13};
use serde_json::json;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::acme::{all_issued, asking, automatic, certificates, curl, wait_for_long};
use crate::harness::front::{self, Fault, Front};
use crate::harness::pebble::Ports;
use crate::harness::tls::{client_config, connect};
use crate::harness::{Origin, Pebble, Proxy, tool, wait_for, wait_until};

/// Lifetime of a certificate in seconds: renewed at half, and time enough left for an order on a busy machine.
const LIFETIME: u64 = 16;
/// Generations to be seen after the first.
const GENERATIONS: usize = 10;

/// What clients have seen so far.
#[derive(Default)]
struct Seen {
    serials: Mutex<BTreeSet<String>>,
    handshakes: AtomicUsize,
    stop: AtomicBool,
    /// Least seconds a certificate had left when it was shown.
    least: Mutex<Option<u64>>,
}

/// Shakes hands until told to stop; a failure ends the test.
async fn shake(
    seen: Arc<Seen>,
    config: Arc<rustls::ClientConfig>,
    address: std::net::SocketAddr,
    name: &'static str,
) {
    while !seen.stop.load(Ordering::SeqCst) {
        let wire = connect(config.clone(), address, name).await;
        // The client checks chain, name and time by itself.
        let wire =
            wire.unwrap_or_else(|e| panic!("handshake {}: {e}", seen.handshakes.load(Ordering::SeqCst)));
        seen.handshakes.fetch_add(1, Ordering::SeqCst);
        if !wire.tls.resumed && !wire.tls.leaf.is_empty() {
            let (_, leaf) = X509Certificate::from_der(&wire.tls.leaf).unwrap();
            let left =
                u64::try_from(leaf.validity().not_after.timestamp()).unwrap().saturating_sub(front::now());
            let mut least = seen.least.lock().unwrap();
            *least = Some(least.map_or(left, |least| least.min(left)));
            seen.serials.lock().unwrap().insert(leaf.raw_serial_as_string());
        }
        // Between handshakes, not for an effect: four clients must not eat the machine.
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_generations_of_short_lived_certificates_pass_and_no_handshake_fails() {
    if !Pebble::is_here() {
        return;
    }
    let origin = Origin::saying("ok").await;
    let ports = Ports::free();
    let members = [("certificateValidityPeriod", json!(LIFETIME + 1))];
    let pebble = Pebble::start_with(ports, &[], &members).await;
    let front = Front::of(&pebble).await;
    let proxy = asking(&pebble, ports, "[\"tls-alpn-01\", \"http-01\"]")
        .set("acme.directory", &format!("{:?}", front.directory()))
        .set("acme.profile", "\"shortlived\"")
        .site("short.test", &automatic(&origin))
        .start()
        .await;
    all_issued(&proxy, &["short.test".into()]).await;

    let seen = Arc::new(Seen::default());
    let config = |alpn: &[&str], version: &'static rustls::SupportedProtocolVersion, resume: bool| {
        let mut config = rustls::ClientConfig::clone(&client_config(pebble.roots(), alpn, &[version]));
        if !resume {
            config.resumption = rustls::client::Resumption::disabled();
        }
        Arc::new(config)
    };
    let kinds = [
        config(&["h2", "http/1.1"], &TLS13, false),
        config(&["http/1.1"], &TLS13, true),
        config(&[], &TLS12, false),
        config(&["h2"], &TLS12, true),
    ];
    let clients = kinds.map(|kind| tokio::spawn(shake(seen.clone(), kind, proxy.https(), "short.test")));
    let start = Instant::now();
    let most = Duration::from_secs(LIFETIME * (GENERATIONS as u64 + 4));
    while seen.serials.lock().unwrap().len() <= GENERATIONS {
        assert!(clients.iter().all(|client| !client.is_finished()), "a client gave up: {}", proxy.stderr());
        assert!(
            start.elapsed() < most,
            "{} generations\n{}",
            seen.serials.lock().unwrap().len(),
            proxy.stderr()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    seen.stop.store(true, Ordering::SeqCst);
    for client in clients {
        client.await.expect("every handshake succeeds");
    }
    let issued = front.fetched();
    let serials: BTreeSet<String> = issued.iter().map(|fetched| fetched.serial.clone()).collect();
    assert!(seen.serials.lock().unwrap().is_subset(&serials));
    // One order a generation, each naming the one it replaces and the profile.
    let orders = front.orders();
    assert!(orders.len() <= issued.len() + 1, "{} orders for {} certificates", orders.len(), issued.len());
    assert!(orders.iter().all(|order| order.profile.as_deref() == Some("shortlived")));
    for (order, old) in orders.iter().skip(1).zip(&issued) {
        assert_eq!(order.replaces.as_ref(), Some(&old.id));
    }
    crate::harness::tool::report(&format!(
        "{} generations, {} handshakes, least left {:?} s, in {:?}",
        seen.serials.lock().unwrap().len(),
        seen.handshakes.load(Ordering::SeqCst),
        seen.least.lock().unwrap(),
        start.elapsed(),
    ));
}

/// The example of RFC 9773 section 4.1, as a certificate.
#[test]
fn the_identifier_of_a_certificate_is_that_of_the_rfc() {
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let id = "69885b6b87464041e1b37b847ba0ae2cde01c8d4";
    let bytes = (0..id.len()).step_by(2).map(|at| u8::from_str_radix(&id[at..at + 2], 16).unwrap()).collect();
    params.key_identifier_method = rcgen::KeyIdMethod::PreSpecified(bytes);
    let issuer = rcgen::Issuer::new(params, rcgen::KeyPair::generate().unwrap());
    let mut leaf = rcgen::CertificateParams::new(vec!["example.test".into()]).unwrap();
    leaf.serial_number = Some(rcgen::SerialNumber::from(vec![0x87, 0x65, 0x43, 0x21]));
    leaf.use_authority_key_identifier_extension = true;
    let der = leaf.signed_by(&rcgen::KeyPair::generate().unwrap(), &issuer).unwrap();
    let want = "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE";
    assert_eq!(instant_acme::CertificateIdentifier::try_from(der.der()).unwrap().to_string(), want);
    let (_, parsed) = X509Certificate::from_der(der.der()).unwrap();
    assert_eq!(front::identifier(&parsed), want, "the authority of the tests agrees");
}

struct House {
    pebble: Pebble,
    front: Front,
    proxy: Proxy,
    _origin: Origin,
}

/// One site with a certificate of years, at an authority that offers renewal information.
async fn house() -> Option<House> {
    if !Pebble::is_here() {
        return None;
    }
    let origin = Origin::saying("ok").await;
    let ports = Ports::free();
    let pebble = Pebble::start(ports, &[("PEBBLE_WFE_NONCEREJECT", "0")]).await;
    let front = Front::of(&pebble).await;
    let proxy = asking(&pebble, ports, "[\"tls-alpn-01\"]")
        .set("acme.directory", &format!("{:?}", front.directory()))
        .site("shop.test", &automatic(&origin))
        .start()
        .await;
    all_issued(&proxy, &["shop.test".into()]).await;
    Some(House { pebble, front, proxy, _origin: origin })
}

impl House {
    async fn row(&self) -> serde_json::Value {
        certificates(&self.proxy).await.into_iter().find(|row| row["site"] == "shop.test").expect("a row")
    }

    /// Waits until the process that runs now has had so many certificates issued.
    async fn issued(&self, count: usize) {
        let what = format!("{count} certificates");
        let found = wait_for_long(&what, || async {
            let metrics = self.proxy.metrics().await;
            let issued = metrics.sum("tidegate_acme_orders_total", &[("result", "issued")]);
            (issued >= count as f64).then_some(())
        });
        assert!(found.await.is_some(), "{:#}\n{}", self.row().await, self.proxy.stderr());
    }
}

#[tokio::test]
async fn an_authority_that_wants_a_certificate_replaced_has_it_replaced_at_once_and_only_once() {
    let Some(mut house) = house().await else { return };
    let first = house.front.fetched()[0].clone();
    // Long past: "attempt renewal immediately" (RFC 9773 section 4.2). A new process asks when it starts.
    house.front.set_window(&first.id, front::now() - 7200, front::now() - 3600);
    house.proxy.restart().await;
    house.issued(1).await;
    let orders = house.front.orders();
    assert_eq!(orders.len(), 2);
    assert_eq!(orders[1].replaces.as_deref(), Some(first.id.as_str()));
    let asked = house.front.asked("/renewal-info/");
    assert!(asked.iter().all(|asked| asked.method == "GET"));
    assert_eq!(asked[0].target, format!("/renewal-info/{}", first.id));

    // The new one is asked about by its own identifier, and left alone: its window is far away.
    let second = house.front.fetched()[1].clone();
    let target = format!("/renewal-info/{}", second.id);
    wait_until("the new certificate to be asked about", || !house.front.asked(&target).is_empty()).await;
    house.proxy.reload().await;
    assert_eq!(house.row().await["state"], "valid");
    assert_eq!(house.front.orders().len(), 2);
    assert_eq!(curl(&house.proxy, &house.pebble, "shop.test").await, "ok");
}

#[tokio::test]
async fn regression_a_site_in_quarantine_is_shown_with_its_renewed_certificate() {
    let Some(house) = house().await else { return };
    house.proxy.write_site("shop.test", "backends = [");
    house.proxy.reload().await;
    assert_eq!(house.proxy.site("shop.test").await["state"], "quarantined");
    let output = house.proxy.command(&["certs", "renew", "shop.test"]);
    assert!(output.status.success(), "{}", tool::text(&output.stderr));
    house.issued(2).await;
    let second = house.front.fetched()[1].serial.clone();
    let shown = wait_for_long("the renewed certificate", || async {
        let config = client_config(house.pebble.roots(), &[], &[&TLS13]);
        let leaf = connect(config, house.proxy.https(), "shop.test").await.ok()?.tls.leaf;
        let (_, leaf) = X509Certificate::from_der(&leaf).unwrap();
        (leaf.raw_serial_as_string() == second).then_some(())
    });
    assert!(shown.await.is_some(), "{:#}\n{}", house.row().await, house.proxy.stderr());
    assert_eq!(house.proxy.site("shop.test").await["state"], "quarantined");
    assert_eq!(curl(&house.proxy, &house.pebble, "shop.test").await, "ok");
}

#[tokio::test]
async fn a_window_in_the_future_is_kept_to_over_a_restart_and_the_old_identifier_is_asked_no_more() {
    let Some(mut house) = house().await else { return };
    let first = house.front.fetched()[0].clone();
    let (start, end) = (front::now() + 86_400, front::now() + 2 * 86_400);
    house.front.set_window(&first.id, start, end);
    house.proxy.restart().await;
    let chosen = wait_for("the window to be taken over", || async {
        house.row().await["renew_at"].as_u64().filter(|at| (start..end).contains(at))
    })
    .await;
    // Told before it is on the disk.
    let record = house.proxy.path().join("state/acme/certificate/shop.test.rec");
    let stored =
        || std::fs::read_to_string(&record).is_ok_and(|text| text.contains(&format!("\"chosen\":{chosen}")));
    wait_until("the second to be stored", stored).await;
    // The second chosen is kept, also by a process that asks again and hears the same.
    let asked = house.front.asked("/renewal-info/").len();
    house.proxy.restart().await;
    wait_until("the window to be asked for again", || house.front.asked("/renewal-info/").len() > asked)
        .await;
    house.proxy.reload().await;
    assert_eq!(house.row().await["renew_at"], chosen);
    assert_eq!(house.front.orders().len(), 1);
}

/// "The window end is not after its start", an error page, a refusal, silence: renewal goes on as without.
#[tokio::test]
async fn renewal_information_that_cannot_be_used_changes_nothing() {
    let Some(mut house) = house().await else { return };
    let first = house.front.fetched()[0].clone();
    let before = house.row().await["renew_at"].clone();
    house.front.set_window(&first.id, front::now() - 60, front::now() - 60);
    house.proxy.restart().await;
    let faults = [
        None,
        Some(Fault::Page(503, Some("1"))),
        Some(Fault::Refuse(500, "serverInternal", None)),
        Some(Fault::Drop),
        Some(Fault::Truncate),
    ];
    for fault in faults {
        let asked = house.front.asked("/renewal-info/").len();
        if let Some(fault) = fault {
            house.front.plan("/renewal-info/", 1, fault);
        }
        house.proxy.restart().await;
        wait_until("the window to be asked for", || house.front.asked("/renewal-info/").len() > asked).await;
        house.proxy.reload().await;
        assert_eq!(house.row().await["renew_at"], before);
    }
    assert_eq!(house.front.orders().len(), 1);
    // A renewal is not in its way either.
    house.front.mend();
    house.front.plan("/renewal-info/", 99, Fault::Drop);
    house.proxy.admin("POST", "/certs/renew?site=shop.test").await;
    house.issued(1).await;
}

/// RFC 9773 section 5: `replaces` is a wish. Whatever the authority has against it, the certificate is renewed.
#[tokio::test]
async fn an_authority_that_refuses_to_replace_is_asked_for_a_certificate_like_any_other() {
    let Some(house) = house().await else { return };
    let refusals = [(409, "alreadyReplaced"), (404, "malformed"), (400, "malformed"), (403, "unauthorized")];
    for (count, (status, kind)) in refusals.into_iter().enumerate() {
        house.front.plan("/order-plz", 1, Fault::Refuse(status, kind, None));
        house.proxy.admin("POST", "/certs/renew?site=shop.test").await;
        house.issued(count + 2).await;
        let order = house.front.orders().pop().unwrap();
        assert_eq!(order.replaces, None, "after {status} {kind}");
    }
    // One that speaks of renewal information and does not reflect `replaces` has not understood it.
    house.front.plan("/order-plz", 1, Fault::Forget("replaces"));
    house.proxy.admin("POST", "/certs/renew?site=shop.test").await;
    house.issued(6).await;
    let metrics = house.proxy.metrics().await;
    assert_eq!(
        metrics.sum("tidegate_acme_orders_total", &[("result", "issued")]),
        6.0,
        "{}",
        house.proxy.stderr()
    );
    assert_eq!(metrics.sum("tidegate_acme_orders_total", &[]), 6.0, "{}", house.proxy.stderr());
}
