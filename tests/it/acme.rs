//! Certificates that get and keep themselves, with a real ACME authority: Pebble.

use rustls::version::TLS13;
use serde_json::Value;

use crate::harness::pebble::Ports;
use crate::harness::tls::{client_config, connect};
use crate::harness::{Origin, Pebble, Proxy, ProxyBuilder, tool, wait_for, wait_until};

const SITES: usize = 50;

pub fn name(number: usize) -> String {
    format!("s{number}.test")
}

/// A site whose certificate is to come from the authority although its name is no public one.
pub fn automatic(origin: &Origin) -> String {
    format!("{}\ncertificates = \"acme\"", origin.backends())
}

/// A builder that listens where Pebble looks, and asks Pebble.
pub fn asking(pebble: &Pebble, ports: Ports, challenges: &str) -> ProxyBuilder {
    Proxy::builder()
        .set("server.http", &format!("[\"127.0.0.1:{}\"]", ports.http))
        .set("server.https", &format!("[\"127.0.0.1:{}\"]", ports.https))
        .set("acme.email", "\"ops@tidegate.test\"")
        .set("acme.directory", &format!("{:?}", pebble.directory()))
        .set("acme.ca_file", &format!("{:?}", pebble.listener_ca()))
        .set("acme.challenges", challenges)
}

/// The rows of `GET /certs`, by site.
pub async fn certificates(proxy: &Proxy) -> Vec<Value> {
    proxy.admin("GET", "/certs").await["certificates"].as_array().expect("certificates").clone()
}

/// Waits until every one of these sites serves a certificate.
pub async fn all_issued(proxy: &Proxy, sites: &[String]) {
    let what = format!("{} certificates", sites.len());
    let found = wait_for_long(&what, || async {
        let rows = certificates(proxy).await;
        let has = |site: &String| rows.iter().any(|r| r["site"] == **site && r["not_after"].is_u64());
        sites.iter().all(has).then_some(())
    });
    if found.await.is_none() {
        panic!("{:#?}\n{}", certificates(proxy).await, proxy.stderr());
    }
}

/// Issuing takes several turns with the authority for each site, on a machine that is shared.
pub async fn wait_for_long<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut ask: impl FnMut() -> F,
) -> Option<T> {
    let start = std::time::Instant::now();
    while start.elapsed() < std::time::Duration::from_secs(90) {
        if let Some(found) = ask().await {
            return Some(found);
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    tool::report(&format!("waited 90 s for {what}"));
    None
}

/// What curl gets from a site when it trusts nobody but Pebble.
pub async fn curl(proxy: &Proxy, pebble: &Pebble, host: &str) -> String {
    let port = proxy.https().port();
    let resolve = format!("{host}:{port}:127.0.0.1");
    let url = format!("https://{host}:{port}/");
    let roots = pebble.roots_file();
    let args = crate::args![
        "--silent",
        "--show-error",
        "--max-time",
        "20",
        "--cacert",
        roots,
        "--resolve",
        resolve,
        url
    ];
    tool::stdout_of(&tool::run("curl", &args).await)
}

/// The story of a first start with many sites, whatever the challenge. In `hosts`, `{}` stands for a site's name; of a
/// wildcard the name `www` is asked for.
pub async fn fresh_start(pebble: &Pebble, builder: ProxyBuilder, challenge: &str, hosts: &[&str]) {
    let origin = Origin::saying("ok").await;
    let sites: Vec<String> = (0..SITES).map(name).collect();
    let site = |site: &str| {
        let hosts: Vec<String> = hosts.iter().map(|host| host.replace("{}", site)).collect();
        format!("hosts = {hosts:?}\n{}", automatic(&origin))
    };
    let mut proxy = sites.iter().fold(builder, |builder, name| builder.site(name, &site(name))).start().await;
    let asked = |site: &str| -> Vec<String> {
        hosts.iter().map(|host| host.replace("{}", site).replace('*', "www")).collect()
    };
    all_issued(&proxy, &sites).await;
    for host in sites.iter().flat_map(|site| asked(site)) {
        assert_eq!(curl(&proxy, pebble, &host).await, "ok", "{host}");
    }
    let answered = proxy.metrics().await;
    let answered = answered.sum("tidegate_acme_challenges_answered_total", &[("challenge", challenge)]);
    assert!(answered >= 1.0 || challenge == "dns-01", "no {challenge} challenge was answered");
    let issued = proxy.metrics().await.sum("tidegate_acme_orders_total", &[("result", "issued")]);
    assert_eq!(issued, SITES as f64);
    let status = proxy.site(&sites[0]).await;
    assert_eq!(status["certificate"]["source"], "acme", "{status}");

    // A new process finds everything in the store: it serves at once and orders nothing.
    let before = pebble.orders();
    assert_eq!(before, SITES, "one order for each site:\n{}", pebble.log());
    proxy.restart().await;
    for host in sites.iter().flat_map(|site| asked(site)) {
        assert_eq!(curl(&proxy, pebble, &host).await, "ok", "{host} after a restart");
    }
    // A reload with a new site drives the queue once around: what it wanted to order it has ordered then.
    let late = "late.test".to_owned();
    proxy.write_site(&late, &site(&late));
    proxy.reload().await;
    all_issued(&proxy, std::slice::from_ref(&late)).await;
    assert_eq!(pebble.orders(), before + 1, "{}", pebble.log());
}

async fn fresh_start_on_a_port(challenge: &str) {
    if !Pebble::is_here() {
        return;
    }
    let ports = Ports::free();
    let pebble = Pebble::start(ports, &[]).await;
    let builder = asking(&pebble, ports, &format!("[{challenge:?}]"));
    fresh_start(&pebble, builder, challenge, &["{}"]).await;
}

#[tokio::test]
async fn fifty_sites_get_certificates_by_http_01_and_keep_them_over_a_restart() {
    fresh_start_on_a_port("http-01").await;
}

#[tokio::test]
async fn fifty_sites_get_certificates_by_tls_alpn_01_and_keep_them_over_a_restart() {
    fresh_start_on_a_port("tls-alpn-01").await;
}

#[tokio::test]
async fn an_authority_that_was_away_is_asked_again_and_what_was_issued_serves_meanwhile() {
    if !Pebble::is_here() {
        return;
    }
    let origin = Origin::saying("ok").await;
    let ports = Ports::free();
    let mut pebble = Pebble::start(ports, &[]).await;
    let builder = asking(&pebble, ports, "[\"tls-alpn-01\", \"http-01\"]");
    let proxy = builder.site("early.test", &automatic(&origin)).start().await;
    all_issued(&proxy, &["early.test".to_owned()]).await;

    pebble.kill();
    proxy.write_site("late.test", &automatic(&origin));
    proxy.reload().await;
    let failed = wait_for("the failure to be told", || async {
        let rows = certificates(&proxy).await;
        rows.into_iter().find(|row| row["site"] == "late.test" && row["last_error"].is_string())
    })
    .await;
    assert!(failed["next_try"].is_u64() && failed["not_after"].is_null(), "{failed}");
    assert_eq!(proxy.metrics().await.sum("tidegate_certificates", &[("state", "failed")]), 1.0);
    assert!(proxy.metrics().await.sum("tidegate_acme_orders_total", &[("result", "network")]) >= 1.0);
    assert_eq!(curl(&proxy, &pebble, "early.test").await, "ok");
    let plan = tool::stdout_of(&proxy.command(&["certs", "plan"]));
    assert!(plan.contains("late.test") && plan.contains("ORDERS LEFT"), "{plan}");
    let listed = proxy.command(&["certs"]);
    assert_eq!(listed.status.code(), Some(1), "a certificate in trouble is a problem");
    assert!(tool::text(&listed.stdout).contains("because:"), "{}", tool::text(&listed.stdout));

    pebble.start_again().await;
    tool::stdout_of(&proxy.command(&["certs", "renew", "late.test"]));
    all_issued(&proxy, &["late.test".to_owned()]).await;
    for site in ["early.test", "late.test"] {
        assert_eq!(curl(&proxy, &pebble, site).await, "ok", "{site}");
    }
}

#[tokio::test]
async fn a_site_that_gets_another_host_serves_its_old_certificate_until_the_new_one_is_there() {
    if !Pebble::is_here() {
        return;
    }
    let origin = Origin::saying("ok").await;
    let ports = Ports::free();
    let mut pebble = Pebble::start(ports, &[]).await;
    let site = |hosts: &str| format!("hosts = [{hosts}]\n{}", automatic(&origin));
    let builder = asking(&pebble, ports, "[\"tls-alpn-01\"]").site("shop", &site("\"a.test\""));
    let proxy = builder.start().await;
    all_issued(&proxy, &["shop".to_owned()]).await;

    pebble.kill();
    proxy.write_site("shop", &site("\"a.test\", \"b.test\""));
    proxy.reload().await;
    assert_eq!(curl(&proxy, &pebble, "a.test").await, "ok");

    // A site whose hosts are all others has nothing to show, and does not show what was for the old ones.
    proxy.write_site("shop", &format!("until_issued = \"internal\"\n{}", site("\"c.test\"")));
    proxy.reload().await;
    let shown = proxy.site("shop").await["certificate"].clone();
    assert_eq!(shown["source"], "internal until issued", "{shown:#}");
    proxy.write_site("shop", &site("\"a.test\", \"b.test\""));
    proxy.reload().await;
    assert_eq!(curl(&proxy, &pebble, "a.test").await, "ok");

    pebble.start_again().await;
    tool::stdout_of(&proxy.command(&["certs", "renew", "shop"]));
    let both = wait_for_long("a certificate for both hosts", || async {
        let config = client_config(pebble.roots(), &[], &[&TLS13]);
        connect(config, proxy.https(), "b.test").await.ok().map(drop)
    });
    assert!(both.await.is_some(), "{}", proxy.stderr());
    assert_eq!(curl(&proxy, &pebble, "a.test").await, "ok");
}

#[tokio::test]
async fn automatic_certificates_can_be_turned_on_and_off_while_it_runs() {
    if !Pebble::is_here() {
        return;
    }
    let origin = Origin::saying("ok").await;
    let ports = Ports::free();
    let pebble = Pebble::start(ports, &[]).await;
    let proxy = Proxy::builder()
        .set("server.http", &format!("[\"127.0.0.1:{}\"]", ports.http))
        .set("server.https", &format!("[\"127.0.0.1:{}\"]", ports.https))
        .site("inner.test", &origin.backends())
        .start()
        .await;
    let section = format!(
        "[acme]\nemail = \"ops@tidegate.test\"\ndirectory = {:?}\nca_file = {:?}\n",
        pebble.directory(),
        pebble.listener_ca()
    );
    proxy.edit_config(|text| text + &section);
    proxy.write_site("shop.test", &automatic(&origin));
    proxy.reload().await;
    all_issued(&proxy, &["shop.test".to_owned()]).await;
    assert_eq!(curl(&proxy, &pebble, "shop.test").await, "ok");

    // Without the section the site is in error, and keeps its last good version with its certificate.
    proxy.edit_config(|text| text.replace(&section, ""));
    proxy.reload().await;
    assert_eq!(proxy.site("shop.test").await["state"], "quarantined");
    assert_eq!(curl(&proxy, &pebble, "shop.test").await, "ok");
    assert_eq!(proxy.get("inner.test", "/").await.status, 200);
    let orders = pebble.orders();
    proxy.edit_config(|text| text + &section);
    proxy.reload().await;
    assert_eq!(proxy.site("shop.test").await["state"], "active");
    assert_eq!(pebble.orders(), orders, "what is stored is not ordered again");
}

#[tokio::test]
async fn a_token_that_nobody_made_is_routed_as_usual() {
    let origin = Origin::saying("the backend's own").await;
    let proxy = Proxy::builder()
        .site("plain.test", &format!("{}\nplain_http = true", origin.backends()))
        .site("secure.test", &origin.backends())
        .start()
        .await;
    let path = "/.well-known/acme-challenge/nobody-made-this";
    let reply = proxy.plain().await.get("plain.test", path).await;
    assert_eq!((reply.status, reply.text().as_str()), (200, "the backend's own"));
    assert_eq!(proxy.plain().await.get("secure.test", path).await.status, 308);
    assert_eq!(proxy.get("secure.test", path).await.status, 200);
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.sum("tidegate_acme_challenges_answered_total", &[]), 0.0);
}

/// Settings with an authority that nobody reaches.
pub fn unreachable() -> ProxyBuilder {
    let port = Ports::free().http;
    Proxy::builder()
        .set("acme.email", "\"ops@tidegate.test\"")
        .set("acme.directory", &format!("\"https://127.0.0.1:{port}/dir\""))
}

#[tokio::test]
async fn a_site_without_its_first_certificate_refuses_handshakes_and_says_so_once() {
    let origin = Origin::saying("ok").await;
    let proxy = unreachable()
        .set("server.default_certificate", "\"other.test\"")
        .site("new.test", &automatic(&origin))
        .site("other.test", &origin.backends())
        .start()
        .await;
    for _ in 0..3 {
        assert!(proxy.try_wire("new.test").await.is_err(), "also not with the default certificate");
    }
    assert_eq!(proxy.get("other.test", "/").await.status, 200, "the other site is not affected");
    let refused = proxy.metrics().await;
    let refused = refused.sum("tidegate_tls_handshake_failures_total", &[("reason", "no-certificate")]);
    assert_eq!(refused, 3.0);
    let line = "a handshake was refused: the certificate for `new.test` is not there yet";
    wait_until("the log line", || proxy.stderr().contains(line)).await;
    assert_eq!(proxy.stderr().matches(line).count(), 1, "{}", proxy.stderr());
    let site = proxy.site("new.test").await;
    assert_eq!((&site["state"], &site["certificate"]["not_after"]), (&"active".into(), &Value::Null));
    let text = tool::stdout_of(&proxy.command(&["status"]));
    assert!(text.contains("acme, not there yet"), "{text}");
    let rows = certificates(&proxy).await;
    let row = rows.iter().find(|row| row["site"] == "new.test").expect("a row for the site");
    assert_eq!((&row["source"], &row["not_after"]), (&"acme".into(), &Value::Null), "{row}");
}

#[tokio::test]
async fn a_site_may_use_the_internal_authority_until_its_first_certificate_is_there() {
    let origin = Origin::saying("ok").await;
    let site = format!("{}\nuntil_issued = \"internal\"", automatic(&origin));
    let proxy = unreachable().site("new.test", &site).start().await;
    assert_eq!(proxy.get("new.test", "/").await.status, 200);
    assert_eq!(proxy.site("new.test").await["certificate"]["source"], "internal until issued");
}

#[tokio::test]
async fn a_client_that_plays_the_authority_gets_no_challenge_certificate() {
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::with_site("shop.test", &origin.backends()).await;
    let config = client_config(&proxy.ca_pem(), &["acme-tls/1"], &[&TLS13]);
    assert!(connect(config, proxy.https(), "shop.test").await.is_err());
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.sum("tidegate_acme_challenges_answered_total", &[]), 0.0);
}

#[tokio::test]
async fn only_automatic_certificates_can_be_renewed() {
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::with_site("shop.test", &origin.backends()).await;
    for (site, word) in [("shop.test", "internal CA"), ("nobody.test", "no site `nobody.test`")] {
        let output = proxy.command(&["certs", "renew", site]);
        let said = tool::text(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains(word), "{said}");
    }
    let text = tool::stdout_of(&proxy.command(&["certs"]));
    assert!(text.contains("shop.test") && text.contains("internal"), "{text}");
    let text = tool::stdout_of(&proxy.command(&["certs", "plan"]));
    assert!(text.contains("no [acme]"), "{text}");
}
