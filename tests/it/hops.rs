//! The way of a request over several gateways: `Via`, circles, and `Max-Forwards`.

use crate::harness::client::empty;
use crate::harness::h2_origin::{H2Origin, Settings};
use crate::harness::{Origin, Proxy, wait_for};

const SITE: &str = "shop.test";

async fn called(via: Option<&str>, site: &str) -> Proxy {
    let builder = Proxy::builder();
    let builder = match via {
        Some(name) => builder.set("server.via", &format!("\"{name}\"")),
        None => builder,
    };
    builder.site(SITE, site).start().await
}

#[tokio::test]
async fn backends_learn_which_gateways_a_request_has_passed_and_clients_learn_nothing() {
    let (origin, new) = (Origin::saying("ok").await, H2Origin::echoing(Settings::default()).await);
    let site = format!(
        "[site.\"{SITE}\"]\n{}\n[[site.\"{SITE}\".route]]\npath = \"/new\"\nbackends = [\"{}\"]\nupstream = {{ http = \
         \"h2\" }}\n[[site.\"{SITE}\".route]]\npath = \"/quiet\"\nrequest_headers = {{ remove = [\"Via\"] }}\n",
        origin.backends(),
        new.address()
    );
    let proxy = called(None, &site).await;
    let mut wire = proxy.wire(SITE).await;
    let reply = wire.ask("GET", "/", SITE, "Via: 1.0 fred\r\nVia: 1.1 p.example\r\n").await;
    assert_eq!((reply.status, reply.field("via")), (200, None));
    let mut client = proxy.h2(SITE).await;
    let request = client.request("GET", "/").header("via", "1.1 first").body(empty()).unwrap();
    assert_eq!(client.send(request).await.status, 200);
    assert_eq!(client.get("/new").await.status, 200);
    assert_eq!(client.get("/quiet").await.status, 200);
    wire.send(format!("GET / HTTP/1.0\r\nHost: {SITE}\r\n\r\n")).await;
    assert_eq!(wire.reply().await.status, 200);
    let seen: Vec<Vec<String>> = origin
        .requests()
        .iter()
        .map(|request| request.head.fields_of("via").into_iter().map(str::to_string).collect())
        .collect();
    assert_eq!(
        seen,
        [
            vec!["1.0 fred", "1.1 p.example", "1.1 tidegate"],
            vec!["1.1 first", "2 tidegate"],
            vec![],
            vec!["1.0 tidegate"]
        ],
        "RFC 9110 section 7.6.3; an edit of the route can take it away"
    );
    assert_eq!(new.heads()[0].0.headers["via"], "2 tidegate");
}

#[tokio::test]
async fn the_name_in_via_is_the_operators_and_off_is_none() {
    let origin = Origin::saying("ok").await;
    for (name, expected) in [("edge-1.example", Some("1.1 edge-1.example")), ("off", None)] {
        let proxy = called(Some(name), &origin.backends()).await;
        assert_eq!(proxy.get(SITE, "/").await.status, 200);
        assert_eq!(origin.requests().last().unwrap().field("via"), expected, "{name}");
    }
    let failed = Proxy::builder().set("server.via", "\"edge 1\"").site(SITE, &origin.backends()).fails();
    let said =
        String::from_utf8_lossy(&failed.stderr).into_owned() + &String::from_utf8_lossy(&failed.stdout);
    assert!(!failed.status.success() && said.contains("`edge 1` is no name"), "{said}");
}

#[tokio::test]
async fn a_site_that_leads_back_to_itself_ends_in_a_named_error_and_not_in_all_connections() {
    let proxy = called(None, "backends = [\"127.0.0.1:9\"]\nplain_http = true").await;
    proxy.write_site(SITE, &format!("backends = [\"{}\"]\nplain_http = true", proxy.http()));
    proxy.reload().await;
    let mut client = proxy.h2(SITE).await;
    client.get("/").await.expect(502, "LOOP");
    assert_eq!(client.get("/").await.status, 502, "the connection goes on");
    let looped = proxy.record_with("LOOP").await;
    assert_eq!((&looped["blame"], &looped["upstream"]), (&"tidegate".into(), &serde_json::Value::Null));
    // Eight rounds, and no more: one record each for two requests, and the refusals.
    let records = wait_for("the records of all rounds", || async {
        let records = proxy.access_log();
        (records.len() >= 18).then_some(records)
    })
    .await;
    assert_eq!(records.len(), 18, "{records:#?}");
}

#[tokio::test]
async fn max_forwards_is_counted_down_for_options_and_at_zero_the_answer_is_ours() {
    let origin = Origin::saying("site").await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let mut wire = proxy.wire(SITE).await;
    let reply = wire.ask("OPTIONS", "/a", SITE, "Max-Forwards: 0\r\n").await;
    assert_eq!((reply.status, reply.body.len()), (204, 0), "RFC 9110 section 7.6.2");
    assert!(reply.field("allow").unwrap().contains("OPTIONS"));
    assert_eq!(origin.count(), 0);
    for (said, passed) in [("1", "0"), ("70", "69")] {
        let reply = wire.ask("OPTIONS", "/a", SITE, &format!("Max-Forwards: {said}\r\n")).await;
        assert_eq!(reply.text(), "site");
        assert_eq!(origin.requests().last().unwrap().field("max-forwards"), Some(passed));
    }
    // Other methods do not know it.
    assert_eq!(wire.ask("GET", "/a", SITE, "Max-Forwards: 0\r\n").await.text(), "site");
    assert_eq!(origin.requests().last().unwrap().field("max-forwards"), Some("0"));
    let mut client = proxy.h2(SITE).await;
    let request = client.request("OPTIONS", "/a").header("max-forwards", "0").body(empty()).unwrap();
    assert_eq!(client.send(request).await.status, 204);
    for bad in ["Max-Forwards: -1\r\n", "Max-Forwards: 1\r\nMax-Forwards: 2\r\n"] {
        proxy.wire(SITE).await.ask("OPTIONS", "/a", SITE, bad).await.expect(400, "BAD-REQUEST");
    }
    assert_eq!(origin.count(), 3);
}
