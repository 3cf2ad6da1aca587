//! `tidegate suggest`: what is seen for a while becomes a limit that the configuration takes.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use crate::harness::proxy::TIDEGATE;
use crate::harness::{Origin, Proxy, ProxyBuilder, Wire, wait_for};

const SITE: &str = "shop.test";

/// A proxy that believes its peers, so that one machine can be many clients.
fn many_clients() -> ProxyBuilder {
    Proxy::builder()
        .set("server.trusted_proxies", "[\"127.0.0.0/8\"]")
        .set("server.workers", "2")
        .set("log.privacy", "\"strict\"")
        // A quick machine sends more than the usual number while a window lasts.
        .set("server.max_requests_per_connection", "0")
}

/// A request of a client; it need not pass.
async fn request(wire: &mut Wire, client: &str, body: &str) {
    let length = body.len();
    wire.send(format!(
        "POST / HTTP/1.1\r\nHost: {SITE}\r\nX-Forwarded-For: {client}\r\nContent-Length: {length}\r\n\r\n{body}"
    ))
    .await;
    wire.reply_to("POST").await;
}

/// Requests of 25 clients and of one that sends as many as all of them together, until told to stop.
async fn traffic(proxy: &Proxy, stop: &AtomicBool) {
    let mut wires = [proxy.plain().await, proxy.plain().await, proxy.plain().await];
    while !stop.load(Ordering::Relaxed) {
        for number in 0..50 {
            let client = if number < 25 { format!("10.0.0.{number}") } else { "192.0.2.77".to_owned() };
            request(&mut wires[number % 3], &client, "some body").await;
        }
    }
}

fn said(output: &std::process::Output) -> String {
    [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned()).concat()
}

#[tokio::test]
async fn what_was_seen_becomes_a_limit_that_the_configuration_takes() {
    let origin = Origin::saying("ok").await;
    let in_shadow = "plain_http = true\nlimit = { rate = \"1 per 1h\", by = \"site\", mode = \"shadow\" }";
    let proxy = many_clients()
        .site(SITE, &format!("{}\n{in_shadow}", origin.backends()))
        .site("quiet.test", &origin.backends())
        .start()
        .await;
    let stop = AtomicBool::new(false);
    let watched = async {
        let output = proxy.command_async(&["suggest", "--for", "3s", "--json"]).await;
        stop.store(true, Ordering::Relaxed);
        assert!(output.status.success(), "{}", said(&output));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let (report, ()) = tokio::join!(watched, traffic(&proxy, &stop));

    assert_eq!((&report["silent_sites"], &report["early"]), (&1.into(), &false.into()), "{report:#}");
    let site = &report["sites"][0];
    let requests = site["requests"].as_u64().unwrap();
    assert!(site["site"] == SITE && requests > 100 && site["clients"] == 26, "{site:#}");
    let windows = &site["requests_per_client_and_window"];
    assert!(windows["max"].as_u64() > windows["p90"].as_u64() && windows["count"] == 26, "{site:#}");
    assert!(site["bodies"]["max"] == 9 && site["max_body"]["toml"] == "max_body = \"64KiB\"", "{site:#}");
    // Whoever is as loud as all others together does not shape the limit, and under `strict` is not named whole.
    assert!(site["warnings"].to_string().contains("was left out of the proposal"), "{site:#}");
    assert_eq!(site["top_client"]["client"], "192.0.2.0");
    assert_eq!(site["limit"]["refused_clients"], 1, "{site:#}");
    assert!(site["limit"]["refused"].as_u64().unwrap() > requests / 4, "{site:#}");
    // The limit in shadow that is there already.
    assert!(site["would_block"]["rate-limit"].as_u64().unwrap() > requests / 2, "{site:#}");

    let texts = ["limit", "max_body"].map(|name| site[name]["toml"].as_str().unwrap().to_owned());
    proxy.write_site(SITE, &format!("{}\nplain_http = true\n{}", origin.backends(), texts.join("\n")));
    let reload = proxy.reload().await;
    assert!(reload["quarantined"].as_array().is_none_or(Vec::is_empty), "{reload:#}");
    assert_eq!(proxy.site(SITE).await["state"], "active", "{reload:#}");
    // Nothing is kept once it was told.
    assert_eq!(proxy.admin("GET", "/observe").await["running"], false);
}

#[tokio::test]
async fn one_at_a_time_and_who_ends_it_gets_what_was_seen() {
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let unknown = proxy.command_async(&["suggest", "shop.tesd"]).await;
    assert!(said(&unknown).contains("no site has the name or host `shop.tesd`"), "{}", said(&unknown));
    let long = proxy.command_async(&["suggest", "--for", "2h"]).await;
    assert!(said(&long).contains("from 1s to 1h"), "{}", said(&long));
    let nothing = proxy.command_async(&["suggest", "--end"]).await;
    assert!(said(&nothing).contains("nothing is being watched"), "{}", said(&nothing));

    let first = proxy.command_async(&["suggest", SITE, "--for", "1h"]);
    let other = async {
        wait_for("the first to watch", || async {
            (proxy.admin("GET", "/observe").await["running"] == true).then_some(())
        })
        .await;
        let refused = proxy.command_async(&["suggest"]).await;
        assert!(!refused.status.success());
        assert!(said(&refused).contains("somebody watches already, for "), "{}", said(&refused));
        let ended = proxy.command_async(&["suggest", "--end"]).await;
        assert!(ended.status.success() && said(&ended).contains(", ended early.\n"), "{}", said(&ended));
        assert!(said(&ended).contains("nothing to suggest"), "{}", said(&ended));
    };
    let (first, ()) = tokio::join!(first, other);
    assert!(
        !first.status.success() && said(&first).contains("somebody else has ended it"),
        "{}",
        said(&first)
    );
}

#[tokio::test]
async fn ctrl_c_ends_it_early_and_prints_what_was_seen() {
    let origin = Origin::saying("ok").await;
    let proxy = many_clients().site(SITE, &format!("{}\nplain_http = true", origin.backends())).start().await;
    let config = proxy.config().display().to_string();
    let watching = Command::new(TIDEGATE)
        .args(["suggest", "--for", "1h", "--config", &config])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for("it to watch", || async {
        (proxy.admin("GET", "/observe").await["running"] == true).then_some(())
    })
    .await;
    let stop = AtomicBool::new(false);
    let interrupted = async {
        // Workers hand over what they saw at the end of a window: then it is sure that something was seen.
        wait_for("a window to end", || async {
            (proxy.admin("GET", "/observe").await["requests"].as_u64() > Some(0)).then_some(())
        })
        .await;
        let pid = rustix::process::Pid::from_child(&watching);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        let output = tokio::task::spawn_blocking(|| watching.wait_with_output()).await.unwrap().unwrap();
        stop.store(true, Ordering::Relaxed);
        output
    };
    let (output, ()) = tokio::join!(interrupted, traffic(&proxy, &stop));
    let text = said(&output);
    assert!(output.status.success() && text.contains(", ended early.\n"), "{text}");
    assert!(text.contains("shop.test: ") && text.contains("limit = { rate = \""), "{text}");
    assert!(text.contains("! one client sent ") && text.contains("! thin data: "), "{text}");
}
