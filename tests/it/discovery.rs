//! Endpoints that are found: they come and go while requests are answered, and a source that fails takes none away.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Signal;

use crate::harness::bind::Bind;
use crate::harness::{Origin, Proxy, wait_for};

const SITE: &str = "shop.test";

/// Replaces the list of a source in one step, as tools do.
fn list(proxy: &Proxy, text: &str) {
    std::fs::write(proxy.path().join("new"), text).unwrap();
    std::fs::rename(proxy.path().join("new"), proxy.path().join("web.backends")).unwrap();
}

async fn serves(proxy: &Proxy, text: &str) {
    wait_for(&format!("the site to say {text}"), || async {
        (proxy.try_get(SITE, "/").await.ok()?.text() == text).then_some(())
    })
    .await;
}

#[tokio::test]
async fn endpoints_follow_a_file_and_nothing_fails_meanwhile() {
    let (one, two) = (Origin::saying("one").await, Origin::saying("two").await);
    let site = "backends = [\"file:../web.backends\"]";
    let builder = Proxy::builder().site(SITE, site);
    std::fs::write(builder.folder().join("web.backends"), format!("{} # first\n", one.address())).unwrap();
    let proxy = builder.start().await;
    // The first answer was waited for: nobody saw a 503.
    assert_eq!(proxy.get(SITE, "/").await.text(), "one");
    let before = proxy.status().await;
    let stop = Arc::new(AtomicBool::new(false));
    let steady = async {
        let mut client = proxy.h2(SITE).await;
        let mut answers = 0;
        while !stop.load(Ordering::Relaxed) {
            let reply = client.get("/").await;
            assert_eq!(reply.status, 200, "{}", reply.text());
            answers += 1;
        }
        answers
    };
    let changes = async {
        for _ in 0..5 {
            list(&proxy, &format!("{}\n", two.address()));
            serves(&proxy, "two").await;
            list(&proxy, &format!("{} weight 3\n", one.address()));
            serves(&proxy, "one").await;
        }
        stop.store(true, Ordering::Relaxed);
    };
    let (answers, ()) = tokio::join!(steady, changes);
    assert!(answers > 20, "{answers}");
    let after = proxy.status().await;
    assert!(after["generation"].as_u64() > before["generation"].as_u64(), "{after}");
    assert_eq!(after["sources"][0]["endpoints"], 1, "{after}");
    assert!(proxy.stderr().contains("1 endpoint now (+"), "{}", proxy.stderr());
}

#[tokio::test]
async fn a_source_that_fails_keeps_its_last_endpoints_and_says_why() {
    let origin = Origin::saying("here").await;
    let proxy = Proxy::with_site(SITE, "backends = [\"file:../web.backends\"]").await;
    let reply = proxy.get(SITE, "/").await;
    assert_eq!(reply.status, 503, "nothing was found yet");
    list(&proxy, &format!("{}\n", origin.address()));
    serves(&proxy, "here").await;
    list(&proxy, &format!("{}\n127.0.0.1\n", origin.address()));
    let trouble = wait_for("the trouble to be known", || async {
        proxy.status().await["sources"][0]["trouble"].as_str().map(str::to_owned)
    })
    .await;
    assert!(trouble.contains("web.backends:2: `127.0.0.1` has no port"), "{trouble}");
    assert_eq!(proxy.get(SITE, "/").await.text(), "here");
    let told = proxy.command(&["status"]);
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(told.contains("failing, its last endpoints stay") && told.contains("has no port"), "{told}");
    let source = format!("file:{}", proxy.path().join("web.backends").display());
    let failing =
        || async { proxy.metrics().await.sum("tidegate_discovery_failing", &[("source", &source)]) };
    assert_eq!(failing().await, 1.0);
    // A reload meanwhile changes nothing about that.
    proxy.write_site("other.test", &origin.backends());
    proxy.reload().await;
    assert_eq!(proxy.get(SITE, "/").await.text(), "here");
    list(&proxy, &format!("{}\n", origin.address()));
    wait_for("the source to answer again", || async { (failing().await == 0.0).then_some(()) }).await;
    // The log may come a moment later.
    wait_for("it to be told", || async { proxy.stderr().contains("answers again").then_some(()) }).await;
}

#[tokio::test]
async fn a_source_outlives_reloads_and_goes_with_the_last_site_that_names_it() {
    let origin = Origin::saying("here").await;
    let builder = Proxy::builder().site(SITE, "backends = [\"file:../web.backends\"]");
    std::fs::write(builder.folder().join("web.backends"), format!("{}\n", origin.address())).unwrap();
    let proxy = builder.start().await;
    for number in 0..10 {
        proxy.write_site("other.test", &format!("respond = {{ status = 200, body = \"{number}\" }}"));
        proxy.reload().await;
        assert_eq!(proxy.get(SITE, "/").await.text(), "here");
    }
    proxy.write_site(SITE, &origin.backends());
    proxy.reload().await;
    wait_for("nobody to follow the file", || async {
        proxy.status().await["sources"].as_array().is_some_and(Vec::is_empty).then_some(())
    })
    .await;
    assert_eq!(proxy.get(SITE, "/").await.text(), "here");
}

/// A proxy that asks this name server, often.
fn asking(bind: &Bind, backends: &str) -> crate::harness::proxy::ProxyBuilder {
    let site = format!("backends = [{backends}]\nbalance = \"round_robin\"");
    Proxy::builder()
        .set("dns.resolvers", &format!("[\"{}\"]", bind.address))
        .set("dns.ttl_min", "\"100ms\"")
        .set("dns.ttl_max", "\"1s\"")
        .set("dns.hold", "\"1s\"")
        .site(SITE, &site)
}

#[tokio::test]
async fn endpoints_follow_the_addresses_of_a_name() {
    if !Bind::is_here() {
        return;
    }
    let one = Origin::saying("one").await;
    let port = one.address().port();
    let bind =
        Bind::start(&[("web.test", "api 0 IN A 127.0.0.1\nsix 0 IN AAAA ::1\nboth 0 IN CNAME api", false)])
            .await;
    let proxy = asking(&bind, &format!("\"dns://both.web.test:{port}\"")).start().await;
    assert_eq!(proxy.get(SITE, "/").await.text(), "one", "known when the first connection is taken");
    let addresses = || async {
        let status = proxy.status().await;
        let mut all: Vec<String> = status["endpoints"]
            .as_array()
            .unwrap()
            .iter()
            .map(|endpoint| endpoint["address"].as_str().unwrap().to_owned())
            .collect();
        all.sort();
        all
    };
    let become_these = async |hosts: &[&str]| {
        let expected: Vec<String> = hosts.iter().map(|host| format!("{host}:{port}")).collect();
        wait_for(&format!("the endpoints {expected:?}"), || async {
            (addresses().await == expected).then_some(())
        })
        .await;
    };
    bind.change(
        "web.test",
        "api 0 IN A 127.0.0.1\napi 0 IN A 127.0.0.2\napi 0 IN AAAA ::1\nboth 0 IN CNAME api",
    );
    become_these(&["127.0.0.1", "127.0.0.2", "[::1]"]).await;
    bind.change("web.test", "api 0 IN A 127.0.0.1\nboth 0 IN CNAME api");
    become_these(&["127.0.0.1"]).await;
    // A name without an address for a moment is a mistake; for longer, it is meant.
    bind.change("web.test", "");
    let told = wait_for("the trouble to be told", || async {
        proxy.status().await["sources"][0]["trouble"].as_str().map(str::to_owned)
    })
    .await;
    assert!(told.contains("has no address"), "{told}");
    become_these(&[]).await;
    assert_eq!(proxy.get(SITE, "/").await.status, 503);
    bind.change("web.test", "both 0 IN A 127.0.0.1");
    become_these(&["127.0.0.1"]).await;
    assert_eq!(proxy.get(SITE, "/").await.text(), "one");
}

#[tokio::test]
async fn a_name_server_that_falls_silent_takes_no_endpoint_away() {
    if !Bind::is_here() {
        return;
    }
    let origin = Origin::saying("here").await;
    let bind = Bind::start(&[("web.test", "api 0 IN A 127.0.0.1", false)]).await;
    let source = format!("dns://api.web.test:{}", origin.address().port());
    let proxy = asking(&bind, &format!("\"{source}\"")).start().await;
    assert_eq!(proxy.get(SITE, "/").await.text(), "here");
    bind.signal(Signal::TERM);
    wait_for("the trouble to be known", || async {
        let failing = proxy.metrics().await.sum("tidegate_discovery_failing", &[("source", &source)]);
        (failing == 1.0).then_some(())
    })
    .await;
    assert_eq!(proxy.get(SITE, "/").await.text(), "here");
    assert!(proxy.stderr().contains("its last endpoints stay"), "{}", proxy.stderr());
}

#[tokio::test]
async fn service_records_give_ports_and_weights() {
    if !Bind::is_here() {
        return;
    }
    let (one, two, spare) =
        (Origin::saying("one").await, Origin::saying("two").await, Origin::saying("spare").await);
    let port = |origin: &Origin| origin.address().port();
    let records = format!(
        "host 0 IN A 127.0.0.1\n_http._tcp 0 IN SRV 1 3 {} host\n_http._tcp 0 IN SRV 1 1 {} host\n_http._tcp 0 IN SRV 2 1 {} host",
        port(&one),
        port(&two),
        port(&spare)
    );
    let bind = Bind::start(&[("web.test", &records, false)]).await;
    let proxy = asking(&bind, "\"srv://_http._tcp.web.test\"").start().await;
    let mut client = proxy.h2(SITE).await;
    for _ in 0..40 {
        assert_eq!(client.get("/").await.status, 200);
    }
    assert_eq!((one.count(), two.count(), spare.count()), (30, 10, 0));
    bind.change("web.test", &format!("host 0 IN A 127.0.0.1\n_http._tcp 0 IN SRV 2 1 {} host", port(&spare)));
    serves(&proxy, "spare").await;
}

#[tokio::test]
async fn regression_a_family_that_the_resolver_fails_on_keeps_its_endpoints_and_the_other_moves_on() {
    if !Bind::is_here() {
        return;
    }
    let one = Origin::saying("one").await;
    let port = one.address().port();
    let zone = "web.test";
    let behind = Bind::start(&[(zone, "api 0 IN A 127.0.0.1\napi 0 IN AAAA ::1", false)]).await;
    let bind = behind.before("", zone).await;
    let source = format!("dns://api.web.test:{port}");
    let proxy = asking(&bind, &format!("{source:?}")).start().await;
    let become_these = async |hosts: &[&str]| {
        let expected: Vec<String> = hosts.iter().map(|host| format!("{host}:{port}")).collect();
        wait_for(&format!("the endpoints {expected:?}"), || async {
            let status = proxy.status().await;
            let all = status["endpoints"].as_array().unwrap();
            let mut all: Vec<_> = all.iter().map(|one| one["address"].as_str().unwrap()).collect();
            all.sort_unstable();
            (all == expected).then_some(())
        })
        .await;
    };
    let trouble = async || proxy.status().await["sources"][0]["trouble"].as_str().map(str::to_owned);
    become_these(&["127.0.0.1", "[::1]"]).await;
    // The resolver answers SERVFAIL for AAAA from now on, and addresses of the other family change.
    behind.deny(&bind, "::1;");
    let told = wait_for("the trouble to be told", trouble).await;
    assert!(told.contains("AAAA") && told.contains("SERVFAIL"), "{told}");
    behind.change(zone, "api 0 IN A 127.0.0.2\napi 0 IN A 127.0.0.3\napi 0 IN AAAA ::1");
    become_these(&["127.0.0.2", "127.0.0.3", "[::1]"]).await;
    assert!(trouble().await.is_some());
    assert_eq!(proxy.metrics().await.sum("tidegate_discovery_failing", &[("source", &source)]), 1.0);
    // That there is no address of a family is an answer.
    behind.change(zone, "api 0 IN A 127.0.0.2");
    become_these(&["127.0.0.2"]).await;
    wait_for("the trouble to be over", || async { trouble().await.is_none().then_some(()) }).await;
}

#[tokio::test]
async fn service_records_that_are_too_many_for_a_datagram_are_asked_for_over_tcp() {
    if !Bind::is_here() {
        return;
    }
    let one = Origin::saying("one").await;
    let port = one.address().port();
    // 60 records of more than 40 bytes do not fit into 1,232 bytes.
    let record = |at: u8| {
        format!(
            "backend-number-{at}.with-a-long-name 0 IN A 127.0.1.{at}\n_http._tcp 0 IN SRV 1 1 {port} backend-number-{at}.with-a-long-name\n"
        )
    };
    let bind = Bind::start(&[("web.test", &(1..=60).map(record).collect::<String>(), false)]).await;
    let name = tidegate::net::dns::name("_http._tcp.web.test").unwrap();
    let kind = hickory_proto::rr::RecordType::SRV;
    let answer = tidegate::net::dns::ask(bind.address, &name, kind, true).await.unwrap();
    assert!(answer.answers.len() == 60 && answer.to_vec().unwrap().len() > 1_232);
    let proxy = asking(&bind, "\"srv://_http._tcp.web.test\"").start().await;
    assert_eq!(proxy.status().await["endpoints"].as_array().unwrap().len(), 60);
}
