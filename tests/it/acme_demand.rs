//! Certificates on demand: got at the first handshake for a name, with a real ACME authority; and handshakes that wait
//! for a site's first certificate.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustls::version::TLS13;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tidegate::tls::acme::demand;
use tidegate::tls::acme::record::{self, Certificate, Demanded};
use tidegate::tls::acme::store::FolderStore;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::pebble::Ports;
use crate::harness::tls::{Ca, client_config, connect};
use crate::harness::{
    Answer, Gate, Origin, Pebble, Proxy, ProxyBuilder, Wire, tool, wait_for, wait_until, within,
};

/// A builder that listens where Pebble looks, and asks Pebble. Handshakes may take as long as a busy machine needs.
fn asking(pebble: &Pebble, ports: Ports) -> ProxyBuilder {
    Proxy::builder()
        .set("server.http", &format!("[\"127.0.0.1:{}\"]", ports.http))
        .set("server.https", &format!("[\"127.0.0.1:{}\"]", ports.https))
        .set("server.timeouts.handshake", "\"60s\"")
        .set("acme.email", "\"ops@tidegate.test\"")
        .set("acme.directory", &format!("{:?}", pebble.directory()))
        .set("acme.ca_file", &format!("{:?}", pebble.listener_ca()))
}

/// A site without hosts that takes names on demand.
fn on_demand(origin: &Origin, terms: &str) -> String {
    format!("hosts = []\n{}\non_demand = {{ {terms} }}", origin.backends())
}

/// The handshake that orders: tried again while the authority is slower than a handshake can wait, because the order
/// goes on.
async fn first(proxy: &Proxy, pebble: &Pebble, name: &str) -> Wire {
    wait_for(&format!("a certificate for {name}"), || async { handshake(proxy, pebble, name).await.ok() })
        .await
}

/// One handshake by a client that trusts Pebble alone.
async fn handshake(proxy: &Proxy, pebble: &Pebble, name: &str) -> io::Result<Wire> {
    let config = client_config(pebble.roots(), &["http/1.1"], &[&TLS13]);
    connect(config, proxy.https(), name).await
}

async fn text(proxy: &Proxy, pebble: &Pebble, name: &str) -> String {
    first(proxy, pebble, name).await.get(name, "/").await.text()
}

/// The row of `GET /certs` for a name.
async fn certificate(proxy: &Proxy, name: &str) -> Value {
    let all = proxy.admin("GET", "/certs").await;
    let rows = all["certificates"].as_array().expect("certificates").clone();
    rows.into_iter().find(|row| row["names"] == serde_json::json!([name])).unwrap_or(Value::Null)
}

async fn waits(proxy: &Proxy, result: &str) -> f64 {
    proxy.metrics().await.sum("tidegate_certificate_waits_total", &[("result", result)])
}

/// Somebody who is asked about names: yes below `yes.test`, an error below `sick.test`, no otherwise.
async fn oracle() -> (Origin, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let origin = Origin::answering(move |request| {
        count.fetch_add(1, Ordering::SeqCst);
        let name = request.target().strip_prefix("/allowed?domain=").unwrap_or_default();
        match name {
            name if name.ends_with(".yes.test") => Answer::ok("come in"),
            name if name.ends_with(".sick.test") => Answer::new(503),
            _ => Answer::new(404),
        }
    })
    .await;
    (origin, asked)
}

#[tokio::test]
async fn listed_names_are_ordered_at_their_first_handshake_and_kept_over_a_restart() {
    if !Pebble::is_here() {
        return;
    }
    let (origin, other) = (Origin::saying("customers").await, Origin::saying("own").await);
    let ports = Ports::free();
    let pebble = Pebble::start(ports, &[]).await;
    let terms = "allow = [\"shop.test\", \"*.one.test\", \".deep.one.test\"]";
    let mut proxy = asking(&pebble, ports)
        .site("customers", &on_demand(&origin, terms))
        .site("own", &format!("hosts = [\"own.one.test\"]\n{}\ncertificates = \"acme\"", other.backends()))
        .start()
        .await;
    for name in ["shop.test", "a.one.test", "x.y.deep.one.test"] {
        assert_eq!(text(&proxy, &pebble, name).await, "customers", "{name}");
        let row = certificate(&proxy, name).await;
        assert_eq!((&row["site"], &row["on_demand"]), (&"customers".into(), &true.into()), "{row}");
        assert_eq!(row["state"], "valid", "{row}");
    }
    // What another site names is never taken, whatever a list says.
    assert_eq!(text(&proxy, &pebble, "own.one.test").await, "own");
    for name in ["one.test", "www.shop.test", "b.a.one.test", "deep.one.test.evil.test", "my_shop.one.test"] {
        assert!(handshake(&proxy, &pebble, name).await.is_err(), "{name}");
    }
    let orders = pebble.orders();
    assert_eq!(orders, 4, "{}", pebble.log());
    let status = proxy.site("customers").await;
    assert_eq!((&status["on_demand"]["names"], &status["hosts"]), (&3.into(), &serde_json::json!([])));
    let listed = tool::stdout_of(&proxy.command(&["certs"]));
    assert!(listed.contains("customers") && listed.contains("x.y.deep.one.test"), "{listed}");

    proxy.restart().await;
    for name in ["shop.test", "a.one.test", "x.y.deep.one.test"] {
        let mut wire = handshake(&proxy, &pebble, name).await.expect("at once after a restart");
        assert_eq!(wire.get(name, "/").await.text(), "customers");
    }
    assert_eq!(pebble.orders(), orders, "{}", pebble.log());
}

#[tokio::test]
async fn many_handshakes_for_one_new_name_ask_once_and_order_once() {
    if !Pebble::is_here() {
        return;
    }
    let origin = Origin::saying("customers").await;
    let (oracle, asked) = oracle().await;
    let ports = Ports::free();
    let pebble = Pebble::start(ports, &[]).await;
    let terms = format!("ask = \"http://{}/allowed\"", oracle.address());
    let proxy = asking(&pebble, ports).site("customers", &on_demand(&origin, &terms)).start().await;
    let all: Vec<_> = (0..40).map(|_| handshake(&proxy, &pebble, "new.yes.test")).collect();
    let mut all: Vec<_> = futures_of(all).await;
    for wire in all.iter_mut() {
        let Ok(wire) = wire else { continue };
        assert_eq!(wire.get("new.yes.test", "/").await.text(), "customers");
    }
    // On a machine that is slower than a handshake can wait, all come too late; the order is the same one.
    assert_eq!(text(&proxy, &pebble, "new.yes.test").await, "customers");
    assert_eq!((pebble.orders(), asked.load(Ordering::SeqCst)), (1, 1), "{}", pebble.log());
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.sum("tidegate_on_demand_questions_total", &[("answer", "yes")]), 1.0);
    assert_eq!(metrics.sum("tidegate_certificate_waiters", &[]), 0.0);
}

#[tokio::test]
async fn a_no_is_remembered_and_no_answer_is_not_a_no() {
    let origin = Origin::saying("customers").await;
    let (oracle, asked) = oracle().await;
    let terms = format!("ask = \"http://{}/allowed\"", oracle.address());
    let proxy = unreachable().site("customers", &on_demand(&origin, &terms)).start().await;
    for _ in 0..3 {
        assert!(proxy.try_wire("new.no.test").await.is_err());
    }
    assert_eq!((asked.load(Ordering::SeqCst), waits(&proxy, "disallowed").await), (1, 3.0));
    let unknown = proxy.metrics().await;
    let unknown = unknown.sum("tidegate_tls_handshake_failures_total", &[("reason", "unknown-name")]);
    assert_eq!(unknown, 3.0, "as if the name were nobody's");
    for _ in 0..3 {
        assert!(proxy.try_wire("new.sick.test").await.is_err());
    }
    assert_eq!((asked.load(Ordering::SeqCst), waits(&proxy, "unanswered").await), (2, 3.0));
    let line = "gave no answer about new.sick.test: it answered 503";
    wait_until("the log line", || proxy.stderr().contains(line)).await;
    let names = proxy.metrics().await.sum("tidegate_certificate_refusals", &[]);
    assert_eq!(names, 2.0);
    // Not even asked: what nobody signs. (Clients send no server name for an address.)
    for name in ["localhost", "my_shop.no.test", "no"] {
        assert!(proxy.try_wire(name).await.is_err(), "{name}");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    assert!(
        !proxy.path().join("state/acme/failure").read_dir().unwrap().any(|_| true),
        "nothing on the disk"
    );
}

#[tokio::test]
async fn a_failed_order_is_not_tried_again_by_the_next_handshake_but_by_the_operator() {
    if !Pebble::is_here() {
        return;
    }
    let origin = Origin::saying("customers").await;
    let (oracle, asked) = oracle().await;
    let ports = Ports::free();
    let mut pebble = Pebble::start(ports, &[]).await;
    let terms = format!("allow = [\"early.test\"], ask = \"http://{}/allowed\"", oracle.address());
    let mut proxy = asking(&pebble, ports).site("customers", &on_demand(&origin, &terms)).start().await;
    assert_eq!(text(&proxy, &pebble, "early.test").await, "customers");

    pebble.kill();
    assert!(handshake(&proxy, &pebble, "late.yes.test").await.is_err());
    let row = wait_for("the failure", || async {
        Some(certificate(&proxy, "late.yes.test").await).filter(|row| row["state"] == "failed")
    })
    .await;
    assert!(row["next_try"].is_u64() && row["last_error"].is_string(), "{row}");
    assert!(handshake(&proxy, &pebble, "late.yes.test").await.is_err());
    assert!(waits(&proxy, "failed").await >= 1.0);
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    let listed = proxy.command(&["certs"]);
    assert_eq!(listed.status.code(), Some(0), "a name that a stranger may have made up is no alert");
    assert_eq!(proxy.metrics().await.sum("tidegate_certificates", &[("state", "failed")]), 0.0);
    let mut early = handshake(&proxy, &pebble, "early.test").await.expect("what was issued serves on");
    assert_eq!(early.get("early.test", "/").await.status, 200);

    // The backoff survives a restart.
    proxy.restart().await;
    assert!(handshake(&proxy, &pebble, "late.yes.test").await.is_err());
    assert_eq!(asked.load(Ordering::SeqCst), 1, "not even asked");

    pebble.start_again().await;
    for name in ["never-seen.yes.test", "new.no.test"] {
        assert_eq!(proxy.command(&["certs", "renew", name]).status.code(), Some(1), "{name}");
    }
    tool::stdout_of(&proxy.command(&["certs", "renew", "late.yes.test"]));
    assert_eq!(text(&proxy, &pebble, "late.yes.test").await, "customers");
    let mut early = handshake(&proxy, &pebble, "early.test").await.expect("the old one still serves");
    assert_eq!(early.get("early.test", "/").await.status, 200);
}

#[tokio::test]
async fn waiting_handshakes_are_bounded() {
    let origin = Origin::saying("customers").await;
    let gate = Gate::default();
    let held = gate.clone();
    let oracle = Origin::scripted(move |mut exchange| {
        let gate = held.clone();
        async move {
            gate.pass().await;
            exchange.answer(Answer::new(404)).await.ok()?;
            Some(exchange)
        }
    })
    .await;
    let terms = format!("ask = \"http://{}/allowed\"", oracle.address());
    let proxy = unreachable().site("customers", &on_demand(&origin, &terms)).start().await;
    let waiting = (0..80).map(|_| proxy.try_wire("new.test")).collect();
    // 64 may wait for one name; the others are refused at once, while those wait.
    let watching = async {
        wait_for("sixteen refusals", || async { (waits(&proxy, "busy").await == 16.0).then_some(()) }).await;
        assert_eq!(proxy.metrics().await.sum("tidegate_certificate_waiters", &[]), 64.0);
        gate.open();
    };
    let (ended, ()) = tokio::join!(futures_of(waiting), watching);
    assert!(ended.iter().all(Result::is_err));
    assert_eq!(proxy.metrics().await.sum("tidegate_certificate_waiters", &[]), 0.0);
    assert_eq!(oracle.count(), 1);
}

#[tokio::test]
async fn a_site_whose_turn_it_is_makes_its_first_handshake_wait() {
    if !Pebble::is_here() {
        return;
    }
    let origin = Origin::saying("ok").await;
    let ports = Ports::free();
    let pebble = Pebble::start(ports, &[]).await;
    let proxy = asking(&pebble, ports).site("inner.test", &origin.backends()).start().await;
    proxy.write_site("new.test", &format!("{}\ncertificates = \"acme\"", origin.backends()));
    proxy.reload().await;
    // Whether the order takes as long as the handshake can wait or not: none is refused for anything else.
    assert_eq!(text(&proxy, &pebble, "new.test").await, "ok");
    let (issued, late) = (waits(&proxy, "issued").await, waits(&proxy, "late").await);
    assert!(issued + late >= 1.0, "it waited");
    assert_eq!(pebble.orders(), 1);
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.sum("tidegate_certificate_waits_total", &[]), issued + late);
}

#[tokio::test]
async fn a_connection_for_one_name_on_demand_carries_no_request_for_another() {
    if !Pebble::is_here() {
        return;
    }
    let origin = Origin::saying("customers").await;
    let ports = Ports::free();
    let pebble = Pebble::start(ports, &[]).await;
    let terms = "allow = [\".many.test\"]";
    let proxy = asking(&pebble, ports).site("customers", &on_demand(&origin, terms)).start().await;
    for name in ["a.many.test", "b.many.test"] {
        assert_eq!(text(&proxy, &pebble, name).await, "customers");
    }
    for other in ["b.many.test", "not-yet.many.test", "nobody.test"] {
        let mut wire = handshake(&proxy, &pebble, "a.many.test").await.unwrap();
        assert_eq!(wire.get(other, "/").await.status, 421, "{other}");
    }
    // Plain requests are sent to where the certificate is ordered, and unknown names are nobody's.
    let reply = proxy.plain().await.get("new.many.test", "/a?b=c").await;
    let port = proxy.https().port();
    let location = reply.field("location").map(str::to_owned);
    assert_eq!((reply.status, location), (308, Some(format!("https://new.many.test:{port}/a?b=c"))));
    assert_eq!(proxy.plain().await.get("nobody.test", "/").await.status, 404);
}

#[tokio::test]
async fn names_follow_the_configuration_and_what_it_takes_back_is_refused() {
    if !Pebble::is_here() {
        return;
    }
    let (origin, own) = (Origin::saying("customers").await, Origin::saying("own").await);
    let ports = Ports::free();
    let pebble = Pebble::start(ports, &[]).await;
    let site = |allow: &str| on_demand(&origin, &format!("allow = [{allow}]"));
    let proxy = asking(&pebble, ports).site("customers", &site("\".many.test\"")).start().await;
    assert_eq!(text(&proxy, &pebble, "a.many.test").await, "customers");
    let orders = pebble.orders();

    proxy.write_site("customers", &site("\"other.test\""));
    proxy.reload().await;
    assert!(handshake(&proxy, &pebble, "a.many.test").await.is_err());
    assert_eq!(certificate(&proxy, "a.many.test").await, Value::Null);
    proxy.write_site("customers", &site("\"a.many.test\", \"other.test\""));
    proxy.reload().await;
    assert_eq!(text(&proxy, &pebble, "a.many.test").await, "customers");
    assert_eq!(pebble.orders(), orders, "the certificate was kept");
    // A site that names the host has it from then on, with a certificate of its own.
    let fixed = format!("hosts = [\"a.many.test\"]\n{}\ncertificates = \"internal\"", own.backends());
    proxy.write_site("own", &fixed);
    proxy.reload().await;
    assert_eq!(proxy.get("a.many.test", "/").await.text(), "own");

    // One site alone asks.
    let (oracle, _) = oracle().await;
    let ask = format!("ask = \"http://{}/allowed\"", oracle.address());
    proxy.write_site("customers", &on_demand(&origin, &ask));
    proxy.reload().await;
    proxy.write_site("rivals", &on_demand(&own, &ask));
    let report = proxy.reload().await;
    assert_eq!(report["quarantined"], serde_json::json!(["rivals"]), "{report}");
    let message = report["diagnostics"][0]["message"].as_str().unwrap_or_default();
    assert!(message.contains("already belongs to the site `customers` (customers.toml, line "), "{report}");
}

/// Random names below a suffix that is allowed: as many orders as the site's pace allows, and nothing that stays.
#[tokio::test]
async fn random_names_below_an_allowed_suffix_use_up_their_own_orders_and_no_more() {
    if !Pebble::is_here() {
        return;
    }
    let origin = Origin::saying("ok").await;
    let ports = Ports::free();
    let pebble = Pebble::start(ports, &[]).await;
    let terms = "allow = [\".many.test\"], orders = \"6 per 1d\"";
    let proxy = asking(&pebble, ports).site("customers", &on_demand(&origin, terms)).start().await;
    let flood = Flood { address: proxy.https(), in_flight: 16 };
    // A handshake that waits holds its place in the flood, so the first ones are not waited for.
    for number in 0..3 {
        flood.knock(&format!("first{number}.many.test")).await;
    }
    wait_for("three certificates", || async {
        let names = proxy.site("customers").await["on_demand"]["names"].as_u64();
        (names == Some(3)).then_some(())
    })
    .await;
    flood.run(2_000, |number| format!("x{number}.many.test")).await;
    assert_eq!(pebble.orders(), 3, "half of the orders at once, the others later");
    assert_eq!(waits(&proxy, "limit").await, 2_000.0);
    // Configured sites are not kept from their orders.
    proxy.write_site("own.test", &format!("{}\ncertificates = \"acme\"", origin.backends()));
    proxy.reload().await;
    assert_eq!(text(&proxy, &pebble, "own.test").await, "ok");
    assert_eq!(pebble.orders(), 4);
    let status = tool::stdout_of(&proxy.command(&["status"]));
    assert!(status.lines().count() < 40, "{status}");
}

/// The flood of the issue: strangers' names cost nothing but refused handshakes.
#[tokio::test]
async fn a_hundred_thousand_unknown_names_order_nothing_and_grow_no_memory() {
    const NAMES: usize = 100_000;
    const GROWTH_KIB_MAX: u64 = 16 << 10;
    if !Pebble::is_here() {
        return;
    }
    let origin = Origin::saying("customers").await;
    let (oracle, asked) = oracle().await;
    let ports = Ports::free();
    let pebble = Pebble::start(ports, &[]).await;
    let terms = format!("allow = [\"shop.test\"], ask = \"http://{}/allowed\"", oracle.address());
    let proxy = asking(&pebble, ports)
        .set("server.max_connections_per_client", "0")
        .set("log.access", "\"off\"")
        .site("customers", &on_demand(&origin, &terms))
        .start()
        .await;
    let flood = Flood { address: proxy.https(), in_flight: 64 };
    // The machinery is warm: buffers, tables, the allocator's arenas.
    flood.run(5_000, |number| format!("warm{number}.no.test")).await;
    let before = tool::rss_kib(proxy.pid());
    let start = std::time::Instant::now();
    let (served, ()) = tokio::join!(
        text(&proxy, &pebble, "shop.test"),
        flood.run(NAMES, |number| format!("x{number}.no.test"))
    );
    let took = start.elapsed();
    assert_eq!(served, "customers");
    let after = tool::rss_kib(proxy.pid());
    let questions = asked.load(Ordering::SeqCst);
    tool::report(&format!(
        "{NAMES} handshakes with unknown names in {took:?}: RSS {} KiB before, {} KiB after; {questions} questions",
        before, after
    ));
    assert_eq!(pebble.orders(), 1, "{}", pebble.log());
    assert!(after < before + GROWTH_KIB_MAX, "{before} KiB before, {after} after");
    let metrics = proxy.metrics().await;
    let failed = metrics.sum("tidegate_tls_handshake_failures_total", &[]);
    assert!(failed >= (NAMES + 5_000) as f64, "{failed}");
    assert!((questions as f64) < 0.5 * NAMES as f64, "{questions} questions");
    assert!(
        !proxy.path().join("state/acme/failure").read_dir().unwrap().any(|_| true),
        "nothing on the disk"
    );
}

/// Ten thousand customers, and one more: what is there already is neither read nor made again.
#[tokio::test]
async fn one_more_name_beside_ten_thousand_is_served_at_its_first_handshake() {
    const NAMES: usize = 10_000;
    if !Pebble::is_here() {
        return;
    }
    let origin = Origin::saying("customers").await;
    let ports = Ports::free();
    let pebble = Pebble::start(ports, &[]).await;
    let builder = asking(&pebble, ports).site("customers", &on_demand(&origin, "allow = [\".many.test\"]"));
    let ca = Ca::new("before");
    stored(&builder.folder().join("state"), &ca, NAMES, &pebble.directory());
    let proxy = builder.start().await;
    assert_eq!(proxy.site("customers").await["on_demand"]["names"], NAMES, "{}", proxy.stderr());
    let kept = tool::rss_kib(proxy.pid());
    let old = client_config(&ca.pem, &["http/1.1"], &[&TLS13]);
    for number in [0, NAMES / 2, NAMES - 1] {
        let name = format!("n{number}.many.test");
        let mut wire = connect(old.clone(), proxy.https(), &name).await.expect("what is stored");
        assert_eq!(wire.get(&name, "/").await.text(), "customers");
    }
    let mut took = Vec::new();
    for name in ["new.many.test", "newer.many.test"] {
        let start = std::time::Instant::now();
        assert_eq!(text(&proxy, &pebble, name).await, "customers");
        took.push(start.elapsed());
    }
    tool::report(&format!("first handshakes beside {NAMES} names: {took:?}; RSS {kept} KiB"));
    assert_eq!(pebble.orders(), 2);
    assert_eq!(proxy.site("customers").await["on_demand"]["names"], NAMES + 2);
    // Still one page each, and everything for programs.
    for command in ["status", "certs"] {
        let page = tool::stdout_of(&proxy.command(&[command]));
        assert!(page.lines().count() < 80, "{page}");
    }
    let all = proxy.admin("GET", "/certs").await;
    assert_eq!(all["certificates"].as_array().map(Vec::len), Some(NAMES + 2));
    let start = std::time::Instant::now();
    proxy.reload().await;
    tool::report(&format!("a reload beside {NAMES} names: {:?}", start.elapsed()));
    let mut wire = handshake(&proxy, &pebble, "new.many.test").await.expect("after a reload");
    assert_eq!(wire.get("new.many.test", "/").await.text(), "customers");
}

/// Puts certificates for `n0.many.test` and so on into a store, as an earlier run left them; without its care for each
/// single write.
fn stored(state: &std::path::Path, ca: &Ca, names: usize, directory: &str) {
    drop(FolderStore::open(state).unwrap());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let day = 24 * 60 * 60;
    for number in 0..names {
        let name = format!("n{number}.many.test");
        let pair = ca.leaf(&[&name]);
        let certificate = Certificate {
            site: demand::id(&name),
            names: vec![name.clone()],
            directory: directory.into(),
            ca: "before".into(),
            engine: "managed".into(),
            chain: format!("{}{}", pair.cert, ca.pem),
            key: pair.key,
            issued_at: now - day,
            not_before: now - day,
            not_after: now + 89 * day,
            suggested: None,
            renew_at: now + 59 * day,
            hurried: false,
            demand: Some(Demanded { site: "customers".into(), asked: true }),
        };
        let body = record::bytes(&certificate);
        let sum: String = Sha256::digest(&body).iter().map(|byte| format!("{byte:02x}")).collect();
        let mut content = format!("tidegate-store 1 sha256 {sum}\n").into_bytes();
        content.extend_from_slice(&body);
        std::fs::write(state.join(format!("acme/certificate/%40{name}.rec")), content).unwrap();
    }
}

/// Settings with an authority that nobody reaches.
fn unreachable() -> ProxyBuilder {
    let port = Ports::free().http;
    Proxy::builder()
        .set("acme.email", "\"ops@tidegate.test\"")
        .set("acme.directory", &format!("\"https://127.0.0.1:{port}/dir\""))
}

/// Awaits all at once, on this task.
async fn futures_of<T>(futures: Vec<impl Future<Output = T>>) -> Vec<T> {
    let mut futures: Vec<_> = futures.into_iter().map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|cx| {
        let mut pending = false;
        for (future, result) in futures.iter_mut().filter(|(_, result)| result.is_none()) {
            match future.as_mut().poll(cx) {
                std::task::Poll::Ready(value) => *result = Some(value),
                std::task::Poll::Pending => pending = true,
            }
        }
        if pending { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
    })
    .await;
    futures.into_iter().filter_map(|(_, result)| result).collect()
}

/// Clients that say hello and read the alert, and do no cryptography.
struct Flood {
    address: SocketAddr,
    in_flight: usize,
}

impl Flood {
    /// So many handshakes, each of which must be refused.
    async fn run(&self, handshakes: usize, name: impl Fn(usize) -> String) {
        let next = AtomicUsize::new(0);
        let client = || async {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= handshakes {
                    return;
                }
                let mut tcp = self.knock(&name(number)).await;
                let mut answer = [0u8; 64];
                let read = within("an alert", tcp.read(&mut answer)).await.expect("an alert");
                // RFC 8446 section 5.1: content type 21; section 6: level 2 is fatal.
                assert!(
                    answer[..read].first() == Some(&21) && answer.get(5) == Some(&2),
                    "{:?}",
                    &answer[..read]
                );
            }
        };
        futures_of((0..self.in_flight).map(|_| client()).collect()).await;
    }

    /// Says hello with a name.
    async fn knock(&self, name: &str) -> TcpStream {
        let mut tcp = within("connect", TcpStream::connect(self.address)).await.expect("connect");
        tcp.write_all(&hello(name)).await.expect("a hello");
        tcp
    }
}

/// A ClientHello for TLS 1.3 (RFC 8446 section 4.1.2) with a share for X25519 that nobody has the key of.
fn hello(name: &str) -> Vec<u8> {
    fn framed(out: &mut Vec<u8>, bytes: usize, body: &[u8]) {
        let length = body.len().to_be_bytes();
        out.extend_from_slice(&length[length.len() - bytes..]);
        out.extend_from_slice(body);
    }
    fn extension(out: &mut Vec<u8>, kind: u16, body: &[u8]) {
        out.extend_from_slice(&kind.to_be_bytes());
        framed(out, 2, body);
    }
    let mut names = vec![0u8];
    framed(&mut names, 2, name.as_bytes());
    let mut list = Vec::new();
    framed(&mut list, 2, &names);
    let mut share = vec![0x00, 0x1d];
    framed(&mut share, 2, &[9; 32]);
    let mut shares = Vec::new();
    framed(&mut shares, 2, &share);
    let mut extensions = Vec::new();
    extension(&mut extensions, 0, &list);
    extension(&mut extensions, 10, &[0, 2, 0x00, 0x1d]);
    extension(&mut extensions, 13, &[0, 4, 0x04, 0x03, 0x08, 0x04]);
    extension(&mut extensions, 43, &[2, 0x03, 0x04]);
    extension(&mut extensions, 51, &shares);
    let mut body = vec![0x03, 0x03];
    body.extend_from_slice(&[7; 32]);
    framed(&mut body, 1, &[]);
    framed(&mut body, 2, &[0x13, 0x01]);
    framed(&mut body, 1, &[0]);
    framed(&mut body, 2, &extensions);
    let mut message = vec![1];
    framed(&mut message, 3, &body);
    let mut record = vec![22, 0x03, 0x01];
    framed(&mut record, 2, &message);
    record
}
