//! Two engines, one account: which one orders, what a change of engine keeps, and how each takes a bad day of the
//! authority or of the store. With real Pebbles.

use serde_json::Value;

use crate::acme::{all_issued, asking, automatic, certificates, curl};
use crate::harness::front::{Fault, Front};
use crate::harness::pebble::Ports;
use crate::harness::{Origin, Pebble, Proxy, tool, wait_for};

async fn row(proxy: &Proxy, site: &str) -> Value {
    certificates(proxy).await.into_iter().find(|row| row["site"] == site).unwrap_or(Value::Null)
}

/// Adds a site and waits for its certificate.
async fn add(proxy: &Proxy, origin: &Origin, site: &str) {
    proxy.write_site(site, &automatic(origin));
    proxy.reload().await;
    all_issued(proxy, &[site.to_owned()]).await;
}

/// Waits until a site's certificate failed so often.
async fn failed(proxy: &Proxy, site: &str, attempts: u64) -> Value {
    let what = format!("{attempts} failures of {site}");
    wait_for(&what, || async {
        let row = row(proxy, site).await;
        let enough = row["attempts"].as_u64() >= Some(attempts) && row["state"] == "failed";
        enough.then_some(row)
    })
    .await
}

fn engine(proxy: &Proxy, from: &str, to: &str) {
    let line = |word: &str| format!("engine = {word:?}");
    proxy.edit_config(|text| text.replace(&line(from), &line(to)));
}

async fn both_engines(challenge: &str) {
    if !Pebble::is_here() {
        return;
    }
    let origin = Origin::saying("ok").await;
    let ports = Ports::free();
    let pebble = Pebble::start(ports, &[]).await;
    let builder = asking(&pebble, ports, &format!("[{challenge:?}]")).set("acme.engine", "\"simple\"");
    let mut proxy = builder.site("one.test", &automatic(&origin)).start().await;
    all_issued(&proxy, &["one.test".to_owned()]).await;
    assert_eq!(row(&proxy, "one.test").await["issuer"], "simple");

    // The other engine goes on with the account and the certificates of the first, and the reverse.
    engine(&proxy, "simple", "managed");
    add(&proxy, &origin, "two.test").await;
    assert_eq!(row(&proxy, "two.test").await["issuer"], "managed");
    engine(&proxy, "managed", "simple");
    add(&proxy, &origin, "three.test").await;
    assert_eq!(row(&proxy, "three.test").await["issuer"], "simple");
    let orders = pebble.orders();
    proxy.restart().await;
    for (site, issuer) in [("one.test", "simple"), ("two.test", "managed"), ("three.test", "simple")] {
        assert_eq!(curl(&proxy, &pebble, site).await, "ok", "{site} after a restart");
        assert_eq!(row(&proxy, site).await["issuer"], issuer);
    }
    engine(&proxy, "simple", "managed");
    add(&proxy, &origin, "four.test").await;
    assert_eq!(pebble.orders(), orders + 1, "{}", pebble.log());
    assert_eq!(pebble.accounts(), 1, "{}", pebble.log());
    let metrics = proxy.metrics().await;
    assert!(metrics.sum("tidegate_acme_challenges_answered_total", &[("challenge", challenge)]) >= 1.0);
}

#[tokio::test]
async fn both_engines_issue_by_http_01_and_share_one_account() {
    both_engines("http-01").await;
}

#[tokio::test]
async fn both_engines_issue_by_tls_alpn_01_and_share_one_account() {
    both_engines("tls-alpn-01").await;
}

#[tokio::test]
async fn the_engine_follows_from_the_settings_and_is_explained() {
    if !Pebble::is_here() {
        return;
    }
    let origin = Origin::saying("ok").await;
    let ports = Ports::free();
    let pebble = Pebble::start(ports, &[]).await;
    let builder = asking(&pebble, ports, "[\"http-01\"]").site("one.test", &automatic(&origin));
    let proxy = builder.start().await;
    all_issued(&proxy, &["one.test".to_owned()]).await;
    assert_eq!(row(&proxy, "one.test").await["issuer"], "simple");
    let text = tool::stdout_of(&proxy.command(&["certs"]));
    assert!(text.contains("(simple)"), "{text}");
    proxy.edit_config(|text| text.replace("[acme]\n", "[acme]\nprofile = \"shortlived\"\n"));
    proxy.reload().await;
    let row = row(&proxy, "one.test").await;
    assert_eq!((&row["issuer"], &row["next_issuer"]), (&"simple".into(), &"managed".into()), "{row}");
    assert!(row["next_issuer_because"].as_str().unwrap().contains("profile"), "{row}");
    let plan = tool::stdout_of(&proxy.command(&["certs", "plan"]));
    assert!(plan.contains("managed, because a profile is asked for"), "{plan}");
    let events = tool::stdout_of(&proxy.command(&["certs", "--events"]));
    assert!(events.contains("issued") && events.contains("one.test"), "{events}");
    assert!(proxy.stderr().contains("engine=\"simple\""), "{}", proxy.stderr());

    proxy.remove_site("one.test");
    proxy.reload().await;
    let events = proxy.admin("GET", "/certs/events").await;
    let last = events["events"].as_array().unwrap().last().unwrap().clone();
    assert_eq!((&last["event"], &last["site"]), (&"dropped".into(), &"one.test".into()), "{events}");
}

#[tokio::test]
async fn an_authority_that_refuses_half_of_all_nonces_delays_nobody() {
    if !Pebble::is_here() {
        return;
    }
    let origin = Origin::saying("ok").await;
    let ports = Ports::free();
    let pebble = Pebble::start(ports, &[("PEBBLE_WFE_NONCEREJECT", "50")]).await;
    let mut builder = asking(&pebble, ports, "[\"tls-alpn-01\", \"http-01\"]");
    let sites: Vec<String> = (0..4).map(|n| format!("s{n}.test")).collect();
    for site in &sites {
        builder = builder.site(site, &automatic(&origin));
    }
    let proxy = builder.start().await;
    all_issued(&proxy, &sites).await;
    assert_eq!(pebble.accounts(), 1, "{}", pebble.log());
    for site in &sites {
        assert_eq!(row(&proxy, site).await["attempts"], 0);
    }
}

#[tokio::test]
async fn an_authority_that_refuses_every_nonce_is_left_alone_after_three_tries() {
    if !Pebble::is_here() {
        return;
    }
    let origin = Origin::saying("ok").await;
    let ports = Ports::free();
    let pebble = Pebble::start(ports, &[]).await;
    let front = Front::of(&pebble).await;
    front.plan("/order-plz", usize::MAX, Fault::Refuse(400, "badNonce", None));
    let builder = asking(&pebble, ports, "[\"http-01\"]")
        .set("acme.directory", &format!("{:?}", front.directory()))
        .set("acme.engine", "\"simple\"");
    let proxy = builder.site("one.test", &automatic(&origin)).start().await;
    let row = failed(&proxy, "one.test", 3).await;
    let error = row["last_error"].as_str().unwrap();
    assert!(error.contains("badNonce"), "{error}");
    // The third wait: about 100 minutes.
    let now = tidegate::base::clock::wall().as_secs();
    assert!(row["next_try"].as_u64().unwrap() > now + 4000, "{row}");
    assert_eq!((front.asked("/order-plz").len(), pebble.orders()), (3, 0), "{}", pebble.log());
}

async fn damaged_account(word: &str) {
    if !Pebble::is_here() {
        return;
    }
    let origin = Origin::saying("ok").await;
    let ports = Ports::free();
    let pebble = Pebble::start(ports, &[]).await;
    let builder = asking(&pebble, ports, "[\"http-01\"]").set("acme.engine", &format!("{word:?}"));
    let mut proxy = builder.site("one.test", &automatic(&origin)).start().await;
    all_issued(&proxy, &["one.test".to_owned()]).await;
    let folder = proxy.path().join("state/acme/account");
    let record = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let record = record.into_iter().find(|path| path.extension().is_some_and(|e| e == "rec")).unwrap();
    let mut bent = std::fs::read(&record).unwrap();
    *bent.last_mut().unwrap() ^= 1;
    std::fs::write(&record, &bent).unwrap();

    proxy.write_site("two.test", &automatic(&origin));
    proxy.restart().await;
    // Our own store is no fault of the site: it does not count as a failure of its.
    let row = failed(&proxy, "two.test", 0).await;
    let error = row["last_error"].as_str().unwrap();
    assert!(error.contains("is damaged"), "{error}");
    assert_eq!(curl(&proxy, &pebble, "one.test").await, "ok");
    assert_eq!((pebble.orders(), pebble.accounts()), (1, 1), "{}", pebble.log());
    assert_eq!(std::fs::read(&record).unwrap(), bent, "what cannot be read is not written over");
}

#[tokio::test]
async fn a_damaged_account_makes_no_new_one_with_the_simple_engine() {
    damaged_account("simple").await;
}

#[tokio::test]
async fn a_damaged_account_makes_no_new_one_with_the_managed_engine() {
    damaged_account("managed").await;
}

#[tokio::test]
async fn after_two_failures_a_staging_authority_is_tried_first() {
    if !Pebble::is_here() {
        return;
    }
    let origin = Origin::saying("ok").await;
    let ports = Ports::free();
    let mut real = Pebble::start(ports, &[]).await;
    let mut staging = Pebble::start(ports.of_another(), &[]).await;
    real.kill();
    staging.kill();
    let builder = asking(&real, ports, "[\"http-01\"]");
    let roots = builder.folder().join("both.pem");
    let both = [real.listener_ca(), staging.listener_ca()].map(|path| std::fs::read_to_string(path).unwrap());
    std::fs::write(&roots, both.concat()).unwrap();
    let builder = builder
        .set("acme.ca_file", &format!("{:?}", roots.display().to_string()))
        .set("acme.staging", &format!("{:?}", staging.directory()));
    let proxy = builder.site("one.test", &automatic(&origin)).start().await;
    let renew = || tool::stdout_of(&proxy.command(&["certs", "renew", "one.test"]));
    failed(&proxy, "one.test", 1).await;
    renew();
    failed(&proxy, "one.test", 2).await;

    // The real one is back, but what would be asked first is not.
    real.start_again().await;
    renew();
    let row = failed(&proxy, "one.test", 3).await;
    let error = row["last_error"].as_str().unwrap();
    assert!(error.contains("tried first after failures"), "{error}");
    assert_eq!(real.orders(), 0, "{}", real.log());

    staging.start_again().await;
    renew();
    all_issued(&proxy, &["one.test".to_owned()]).await;
    assert_eq!(curl(&proxy, &real, "one.test").await, "ok", "the real one's certificate serves");
    assert_eq!((staging.orders(), real.orders()), (1, 1), "{}", staging.log());
    assert_eq!((staging.accounts(), real.accounts()), (1, 1), "each has its own account");
}
