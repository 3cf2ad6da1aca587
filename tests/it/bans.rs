//! Bans: by offences, by command, by file; at the door and with the request; what ends them and what does not.

use std::path::PathBuf;

use serde_json::Value;
use tokio::io::AsyncWriteExt;

use crate::harness::{Answer, Origin, Proxy, ProxyBuilder, Wire, tls, tool, wait_for, wait_until};

const SITE: &str = "shop.test";
/// A limit that every second request of a client breaks.
const TIGHT: &str = "limit = \"1 per 1h by client-ip\"";

/// A proxy that believes what the test says of its clients' addresses in `X-Forwarded-For`.
fn believing(site: &str) -> ProxyBuilder {
    Proxy::builder().set("server.trusted_proxies", "[\"127.0.0.1/32\"]").site(SITE, site)
}

/// One that learns them from the PROXY protocol.
fn introduced(site: &str) -> ProxyBuilder {
    believing(&format!("plain_http = true\n{site}")).set("server.proxy_protocol", "true")
}

async fn ask(wire: &mut Wire, client: &str) -> u16 {
    wire.ask("GET", "/", SITE, &format!("X-Forwarded-For: {client}\r\n")).await.status
}

/// A connection of this client, by PROXY protocol; what it hears, if anything.
async fn knock(proxy: &Proxy, client: &str) -> Option<u16> {
    let mut plain = proxy.plain().await;
    let family = if client.contains(':') { "TCP6" } else { "TCP4" };
    plain.send(format!("PROXY {family} {client} {client} 4711 80\r\n")).await;
    let request = format!("GET / HTTP/1.1\r\nHost: {SITE}\r\nConnection: close\r\n\r\n");
    // Who is banned may be closed before the request is written.
    let _ = plain.try_send(request).await;
    plain.try_reply_to("GET").await.ok().map(|reply| reply.status)
}

fn words(output: &std::process::Output) -> String {
    format!("{}{}", tool::text(&output.stdout), tool::text(&output.stderr))
}

async fn bans(proxy: &Proxy) -> Vec<Value> {
    proxy.admin("GET", "/bans").await["bans"].as_array().cloned().unwrap_or_default()
}

#[tokio::test]
async fn who_offends_too_often_is_banned_with_the_time_to_wait_and_others_are_not() {
    let origin = Origin::saying("ok").await;
    let proxy = believing(&format!("{}\n{TIGHT}", origin.backends()))
        .set("bans.after", "\"3 offences per 1m\"")
        .set("bans.for", "\"10m\"")
        .start()
        .await;
    let mut wire = proxy.wire(SITE).await;
    let mut seen = Vec::new();
    for _ in 0..6 {
        seen.push(ask(&mut wire, "192.0.2.1").await);
    }
    assert_eq!(seen, [200, 429, 429, 429, 403, 403], "the third offence bans");
    let refused = wire.ask("GET", "/", SITE, "X-Forwarded-For: 192.0.2.1\r\n").await;
    refused.expect(403, "BANNED");
    let wait: u64 = refused.field("retry-after").expect("Retry-After").parse().expect("seconds");
    assert!((500..=601).contains(&wait), "{wait}");
    assert_eq!(ask(&mut wire, "192.0.2.2").await, 200, "the connection is their proxy's and stays");
    let banned = bans(&proxy).await;
    assert_eq!((banned.len(), &banned[0]["net"]), (1, &Value::from("192.0.2.1/32")));
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.sum("tidegate_bans_by_offences_total", &[]), 1.0);
    assert_eq!(metrics.sum("tidegate_bans", &[("by", "offences")]), 1.0);
    assert!(proxy.stderr().contains("a client is banned for its offences"), "{}", proxy.stderr());
}

#[tokio::test]
async fn whose_address_the_connection_tells_is_turned_away_at_the_door_before_tls() {
    let origin = Origin::saying("ok").await;
    let proxy = introduced(&format!("{}\n{TIGHT}", origin.backends()))
        .set("bans.after", "\"2 per 1m\"")
        .start()
        .await;
    let mut seen = Vec::new();
    for _ in 0..5 {
        seen.push(knock(&proxy, "2001:db8::7").await);
    }
    assert_eq!(seen, [Some(200), Some(429), Some(429), None, None]);
    assert_eq!(knock(&proxy, "2001:db8::8").await, None, "of the same /64");
    assert_eq!(knock(&proxy, "2001:db8:0:1::7").await, Some(200));
    let mut tcp = tokio::net::TcpStream::connect(proxy.https()).await.unwrap();
    tcp.write_all(b"PROXY TCP6 2001:db8::7 2001:db8::7 4711 443\r\n").await.unwrap();
    let config = tls::client_config(&proxy.ca_pem(), &["http/1.1"], &[&rustls::version::TLS13]);
    assert!(tls::connect_over(config, tcp, SITE).await.is_err(), "no handshake for the banned");
    let refused = [("reason", "banned")];
    assert_eq!(proxy.metrics().await.sum("tidegate_connections_refused_total", &refused), 4.0);
}

#[tokio::test]
async fn a_ban_of_a_site_is_no_ban_elsewhere() {
    let origin = Origin::saying("ok").await;
    let strict = format!("{}\n{TIGHT}\nban = {{ after = \"1 per 1m\", for = \"1h\" }}", origin.backends());
    let proxy = introduced(&strict)
        .site("b.test", &format!("plain_http = true\n{}", origin.backends()))
        .start()
        .await;
    assert_eq!(knock(&proxy, "192.0.2.1").await, Some(200));
    assert_eq!(knock(&proxy, "192.0.2.1").await, Some(429));
    assert_eq!(knock(&proxy, "192.0.2.1").await, Some(403));
    let mut plain = proxy.plain().await;
    plain.send("PROXY TCP4 192.0.2.1 192.0.2.1 4711 80\r\n").await;
    assert_eq!(plain.get("b.test", "/").await.status, 200);
    assert_eq!(bans(&proxy).await[0]["site"], SITE);
}

#[tokio::test]
async fn in_shadow_the_banned_are_served_and_marked() {
    let origin = Origin::saying("ok").await;
    let proxy = believing(&format!("{}\n{TIGHT}", origin.backends()))
        .set("bans.after", "\"1 per 1m\"")
        .set("bans.mode", "\"shadow\"")
        .start()
        .await;
    let mut wire = proxy.wire(SITE).await;
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(ask(&mut wire, "192.0.2.1").await);
    }
    assert_eq!(seen, [200, 429, 429, 429], "refused by the limit alone");
    let marked = |record: &Value| record["would_block"].to_string().contains("\"ban\"");
    assert_eq!(proxy.records(4).await.iter().filter(|record| marked(record)).count(), 2);
    assert_eq!(bans(&proxy).await[0]["mode"], "shadow");
    assert_eq!(proxy.metrics().await.sum("tidegate_would_block_total", &[("policy", "ban")]), 2.0);
}

#[tokio::test]
async fn commands_ban_list_and_unban_and_open_connections_end() {
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let mut open = proxy.wire(SITE).await;
    assert_eq!(open.get(SITE, "/").await.status, 200);
    assert!(words(&proxy.command(&["bans"])).contains("nobody is banned"));
    // Loopback: only because it is named.
    let banned = proxy.command(&["ban", "127.0.0.1", "--for", "1h", "--why", "abuse & more = 100%"]);
    assert!(
        banned.status.success() && words(&banned).contains("127.0.0.1/32 is banned for 1h"),
        "{}",
        words(&banned)
    );
    open.get(SITE, "/").await.expect(403, "BANNED");
    open.closed().await;
    assert!(proxy.try_get(SITE, "/").await.is_err(), "a banned client was let in");
    let list = words(&proxy.command(&["bans"]));
    assert!(list.contains("127.0.0.1/32") && list.contains("abuse & more = 100%"), "{list}");
    let ended = proxy.command(&["unban", "127.0.0.1"]);
    assert!(ended.status.success(), "{}", words(&ended));
    assert_eq!(proxy.get(SITE, "/").await.status, 200);
    let again = proxy.command(&["unban", "127.0.0.1"]);
    assert!(!again.status.success() && words(&again).contains("is not banned"), "{}", words(&again));
}

#[tokio::test]
async fn commands_refuse_what_makes_no_sense_or_would_shut_out_our_own_proxies() {
    let proxy = believing("respond = { body = \"ok\" }").start().await;
    for (words_of, why) in [
        (["ban", "127.0.0.1", "--for", "1h"], "trusted proxy"),
        (["ban", "planet", "--for", "1h"], "neither an address nor a network"),
        (["ban", "192.0.2.0/33", "--for", "1h"], "neither an address nor a network"),
        (["ban", "192.0.2.1", "--for", "ever"], "is not a duration"),
        (["ban", "192.0.2.1", "--for", "367d"], "a ban lasts"),
        (["ban", "192.0.2.1", "--for", "0s"], "a ban lasts"),
        (["ban", "192.0.2.1", "--why", &"x".repeat(300)], "at most 200 bytes"),
    ] {
        let output = proxy.command(&words_of);
        assert!(!output.status.success() && words(&output).contains(why), "{words_of:?}: {}", words(&output));
    }
    // A network around a trusted proxy bans everybody in it but the proxy.
    assert!(proxy.command(&["ban", "0.0.0.0/0"]).status.success());
    let mut wire = proxy.wire(SITE).await;
    assert_eq!((ask(&mut wire, "192.0.2.1").await, wire.get(SITE, "/").await.status), (403, 200));
    assert!(bans(&proxy).await.len() == 1);
}

#[tokio::test]
async fn bans_outlive_reloads_and_the_process() {
    let origin = Origin::saying("ok").await;
    let site = format!("{}\n{TIGHT}\nban = {{ after = \"1 per 1m\", for = \"1h\" }}", origin.backends());
    let mut proxy = believing(&site).start().await;
    let mut wire = proxy.wire(SITE).await;
    assert_eq!([ask(&mut wire, "192.0.2.1").await, ask(&mut wire, "192.0.2.1").await], [200, 429]);
    assert!(proxy.command(&["ban", "198.51.100.0/24", "--why", "because"]).status.success());
    proxy.write_site(SITE, &format!("{site}\nmax_body = \"1MiB\""));
    proxy.reload().await;
    assert_eq!([ask(&mut wire, "192.0.2.1").await, ask(&mut wire, "198.51.100.9").await], [403, 403]);
    // Killed without a word: what is on disk by then is what counts.
    let file = proxy.path().join("state/bans.json");
    let both = || {
        std::fs::read_to_string(&file)
            .is_ok_and(|text| text.contains("192.0.2.1") && text.contains("198.51.100.0"))
    };
    wait_until("both bans to be on disk", both).await;
    proxy.restart().await;
    let mut wire = proxy.wire(SITE).await;
    assert_eq!([ask(&mut wire, "192.0.2.1").await, ask(&mut wire, "198.51.100.9").await], [403, 403]);
    assert_eq!(ask(&mut wire, "192.0.2.2").await, 200);
    let listed = bans(&proxy).await;
    assert!(listed.iter().any(|ban| ban["why"] == "because") && listed.len() == 2, "{listed:?}");
    // A store that is damaged bans nobody and keeps nobody from starting.
    proxy.kill();
    std::fs::write(&file, "{\"version\":1,\"bans\":[{").unwrap();
    proxy.begin();
    proxy.await_ready().await;
    assert_eq!(ask(&mut proxy.wire(SITE).await, "198.51.100.9").await, 200);
    assert!(proxy.stderr().contains("bans cannot be read"), "{}", proxy.stderr());
}

#[tokio::test]
async fn a_file_of_networks_is_followed_and_its_bad_lines_harm_nobody() {
    let builder = believing("respond = { body = \"ok\" }").set("bans.file", "\"banned.txt\"");
    let file: PathBuf = builder.folder().join("banned.txt");
    std::fs::write(&file, "192.0.2.0/24 # spam\nplanet\n203.0.113.5 until 2001-01-01\n").unwrap();
    let proxy = builder.start().await;
    let mut wire = proxy.wire(SITE).await;
    let mut seen = Vec::new();
    for client in ["192.0.2.9", "203.0.113.5", "198.51.100.1"] {
        seen.push(ask(&mut wire, client).await);
    }
    assert_eq!(seen, [403, 200, 200]);
    assert!(proxy.stderr().contains("line 2: `planet`") || proxy.stdout().contains("line 2: `planet`"));
    let checked = proxy.command(&["check"]);
    assert!(words(&checked).contains("line 2: `planet`"), "{}", words(&checked));
    std::fs::write(proxy.path().join("new.txt"), "198.51.100.0/24\n").unwrap();
    std::fs::rename(proxy.path().join("new.txt"), &file).unwrap();
    wait_for("the new file to be in force", || async {
        let mut wire = proxy.wire(SITE).await;
        (ask(&mut wire, "198.51.100.1").await == 403).then_some(())
    })
    .await;
    assert_eq!(ask(&mut wire, "192.0.2.9").await, 200);
    // A file that is gone leaves the last list in force, and says so.
    std::fs::remove_file(&file).unwrap();
    let report = proxy.reload().await;
    assert!(report["diagnostics"].to_string().contains("cannot be read"), "{report}");
    assert_eq!(ask(&mut wire, "198.51.100.1").await, 403);
    let listed = words(&proxy.command(&["bans"]));
    assert!(listed.contains("the networks of the file of [bans]: 1"), "{listed}");
}

#[tokio::test]
async fn malformed_requests_and_floods_are_offences_where_they_are_listed() {
    let proxy = introduced("respond = { body = \"ok\" }")
        .set("bans.after", "\"2 per 1m\"")
        .set("bans.offences", "[\"bad-request\", \"flood\"]")
        .start()
        .await;
    for _ in 0..2 {
        let mut plain = proxy.plain().await;
        plain.send("PROXY TCP4 192.0.2.1 192.0.2.1 4711 80\r\n").await;
        plain.send("GET / HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        assert_eq!(plain.reply_to("GET").await.status, 400);
    }
    assert_eq!(knock(&proxy, "192.0.2.1").await, None);
    assert_eq!(knock(&proxy, "192.0.2.2").await, Some(200));
}

/// What counts are refusals, not answers: a backend that says 429 is its own affair.
#[tokio::test]
async fn what_a_backend_answers_is_no_offence() {
    let origin = Origin::answering(|_| Answer::new(429)).await;
    let proxy = believing(&origin.backends()).set("bans.after", "\"1 per 1m\"").start().await;
    let mut wire = proxy.wire(SITE).await;
    for _ in 0..5 {
        assert_eq!(ask(&mut wire, "192.0.2.1").await, 429);
    }
    assert!(bans(&proxy).await.is_empty());
}
