//! Who is let in by where they come from: lists of addresses, files of them, countries.

use crate::harness::mmdb;
use crate::harness::{Origin, Proxy, ProxyBuilder, Reply, wait_for};

const SITE: &str = "shop.test";

/// A proxy that believes `X-Forwarded-For` of this machine, so that a test can come from anywhere.
fn anywhere() -> ProxyBuilder {
    Proxy::builder().set("server.trusted_proxies", "[\"loopback\"]")
}

/// A request of a client at this address.
async fn from(proxy: &Proxy, address: &str, path: &str) -> Reply {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {SITE}\r\nX-Forwarded-For: {address}\r\nConnection: close\r\n\r\n"
    );
    let mut wire = proxy.wire(SITE).await;
    wire.send(request).await;
    wire.reply().await
}

#[tokio::test]
async fn a_list_lets_in_whom_it_allows_and_a_route_may_let_in_fewer() {
    let origin = Origin::saying("ok").await;
    let site = format!(
        "{backends}\naddresses = {{ deny = [\"192.0.2.0/24\", \"2001:db8:bad::/48\"] }}\n\
         [[site.\"{SITE}\".route]]\npath = \"/admin/\"\naddresses = {{ allow = [\"office\"] }}",
        backends = origin.backends()
    );
    let proxy = anywhere()
        .set("networks.office.networks", "[\"203.0.113.0/24\", \"192.0.2.0/24\"]")
        .site(SITE, &site)
        .start()
        .await;
    assert_eq!(from(&proxy, "198.51.100.1", "/").await.status, 200);
    from(&proxy, "192.0.2.9", "/").await.expect(403, "ADDRESS-DENIED");
    from(&proxy, "::ffff:192.0.2.9", "/").await.expect(403, "ADDRESS-DENIED");
    from(&proxy, "2001:db8:bad::1", "/").await.expect(403, "ADDRESS-DENIED");
    assert_eq!(from(&proxy, "203.0.113.5", "/admin/").await.status, 200);
    from(&proxy, "198.51.100.1", "/admin/").await.expect(403, "ADDRESS-DENIED");
    from(&proxy, "192.0.2.9", "/admin/").await.expect(403, "ADDRESS-DENIED");
    assert_eq!(origin.count(), 2);
    let record = proxy.record_with("ADDRESS-DENIED").await;
    assert_eq!((&record["blame"], &record["site"]), (&"client".into(), &SITE.into()));
}

#[tokio::test]
async fn a_list_in_shadow_lets_everybody_in_and_says_whom_it_would_not() {
    let origin = Origin::saying("ok").await;
    let site =
        format!("{}\naddresses = {{ allow = [\"203.0.113.0/24\"], mode = \"shadow\" }}", origin.backends());
    let proxy = anywhere().site(SITE, &site).start().await;
    assert_eq!(from(&proxy, "203.0.113.1", "/").await.status, 200);
    assert_eq!(from(&proxy, "198.51.100.1", "/").await.status, 200);
    let records = proxy.records(2).await;
    let marked = records.iter().filter(|record| record["would_block"] == serde_json::json!(["address"]));
    assert_eq!(marked.count(), 1);
    let labels = [("site", SITE), ("policy", "address")];
    assert_eq!(proxy.metrics().await.sum("tidegate_would_block_total", &labels), 1.0);
}

#[tokio::test]
async fn a_file_of_a_hundred_thousand_networks_is_followed_while_requests_run() {
    let origin = Origin::saying("ok").await;
    let site = format!("{}\naddresses = {{ deny = [\"blocklist\"] }}", origin.backends());
    let builder = anywhere().set("networks.blocklist.file", "\"block.txt\"").site(SITE, &site);
    let file = builder.folder().join("block.txt");
    let network = |i: u32| format!("{}.{}.{}.0/24 ; entry {i}\n", 20 + i / 65_536, i / 256 % 256, i % 256);
    let mut list: String = (0..100_000).map(network).collect();
    std::fs::write(&file, &list).unwrap();
    let proxy = builder.start().await;
    from(&proxy, "20.0.0.1", "/").await.expect(403, "ADDRESS-DENIED");
    from(&proxy, "21.134.159.255", "/").await.expect(403, "ADDRESS-DENIED");
    assert_eq!(from(&proxy, "198.51.100.1", "/").await.status, 200);

    list.push_str("198.51.100.0/24\n");
    let newer = file.with_extension("new");
    std::fs::write(&newer, &list).unwrap();
    std::fs::rename(&newer, &file).unwrap();
    let denied = || async { (from(&proxy, "198.51.100.1", "/").await.status == 403).then_some(()) };
    wait_for("the longer list is in force", denied).await;

    // A file that cannot be understood changes nothing, and is told.
    std::fs::write(&file, "192.0.2.0/24\nnot a network\n").unwrap();
    wait_for("the bad file is told", || async {
        proxy.stderr().contains("line 2: `not a network` is not a network").then_some(())
    })
    .await;
    assert_eq!(from(&proxy, "198.51.100.1", "/").await.status, 403);
    assert_eq!(from(&proxy, "192.0.2.1", "/").await.status, 200);
}

#[tokio::test]
async fn the_servers_list_closes_connections_before_a_byte_is_read() {
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::builder()
        .set("server.addresses", "{ deny = [\"loopback\"] }")
        .site(SITE, &origin.backends())
        .start()
        .await;
    assert!(proxy.try_get(SITE, "/").await.is_err());
    let refused = proxy.metrics().await.sum("tidegate_connections_refused_total", &[("reason", "address")]);
    assert!(refused >= 1.0);
    assert_eq!(origin.count(), 0);
}

#[tokio::test]
async fn countries_are_known_by_the_database_and_follow_it() {
    let origin = Origin::saying("ok").await;
    let site = format!(
        "{backends}\ncountries = {{ deny = [\"FR\"] }}\n\
         [[site.\"{SITE}\".route]]\npath = \"/inner/\"\ncountries = {{ allow = [\"DE\"], unknown = \"deny\" }}",
        backends = origin.backends()
    );
    let builder = anywhere().set("server.country_database", "\"countries.mmdb\"").site(SITE, &site);
    let file = builder.folder().join("countries.mmdb");
    std::fs::write(&file, mmdb::countries(&[("203.0.113.0/24", "DE"), ("198.51.100.0/24", "FR")])).unwrap();
    let proxy = builder.start().await;
    assert_eq!(from(&proxy, "203.0.113.1", "/").await.status, 200);
    from(&proxy, "198.51.100.1", "/").await.expect(403, "COUNTRY-DENIED");
    assert_eq!(from(&proxy, "192.0.2.1", "/").await.status, 200, "of an unknown country");
    from(&proxy, "192.0.2.1", "/inner/").await.expect(403, "COUNTRY-DENIED");
    assert_eq!(from(&proxy, "203.0.113.1", "/inner/").await.status, 200);

    let newer = file.with_extension("new");
    std::fs::write(&newer, mmdb::countries(&[("203.0.113.0/24", "FR")])).unwrap();
    std::fs::rename(&newer, &file).unwrap();
    wait_for("the newer database is in force", || async {
        (from(&proxy, "203.0.113.1", "/").await.status == 403).then_some(())
    })
    .await;
    std::fs::write(&file, "no database").unwrap();
    wait_for("the broken one is told", || async {
        proxy.stderr().contains("no MaxMind database").then_some(())
    })
    .await;
    assert_eq!(from(&proxy, "203.0.113.1", "/").await.status, 403, "the one before stays");
}

#[tokio::test]
async fn regression_without_any_database_a_list_of_countries_lets_nobody_in() {
    let origin = Origin::saying("ok").await;
    let site = format!("{}\ncountries = {{ allow = [\"DE\"] }}", origin.backends());
    let builder = anywhere()
        .set("server.country_database", "\"countries.mmdb\"")
        .site(SITE, &site)
        .site("open.test", &origin.backends());
    let file = builder.folder().join("countries.mmdb");
    let proxy = builder.start().await;
    assert_eq!(proxy.get("open.test", "/").await.status, 200);
    let status = proxy.site(SITE).await;
    assert_eq!(status["state"], "quarantined", "{status:#}");
    assert!(status["reason"].to_string().contains("the database was never read"), "{status:#}");
    let newer = file.with_extension("new");
    std::fs::write(&newer, mmdb::countries(&[("203.0.113.0/24", "DE")])).unwrap();
    std::fs::rename(&newer, &file).unwrap();
    proxy.reload().await;
    assert_eq!(from(&proxy, "203.0.113.1", "/").await.status, 200);
    assert_eq!(from(&proxy, "192.0.2.1", "/").await.status, 200, "of an unknown country");
}

#[tokio::test]
async fn regression_a_newer_database_counts_where_a_country_is_only_told_to_backends() {
    let origin = Origin::saying("ok").await;
    let site =
        format!("{}\nrequest_headers = {{ set = {{ X-Country = \"{{country}}\" }} }}", origin.backends());
    let builder = anywhere().set("server.country_database", "\"countries.mmdb\"").site(SITE, &site);
    let file = builder.folder().join("countries.mmdb");
    std::fs::write(&file, mmdb::countries(&[("203.0.113.0/24", "DE")])).unwrap();
    let proxy = builder.start().await;
    let told = async || {
        assert_eq!(from(&proxy, "203.0.113.1", "/").await.status, 200);
        origin.requests().pop().unwrap().field("x-country").map(ToOwned::to_owned)
    };
    assert_eq!(told().await.as_deref(), Some("DE"));
    let newer = file.with_extension("new");
    std::fs::write(&newer, mmdb::countries(&[("203.0.113.0/24", "FR")])).unwrap();
    std::fs::rename(&newer, &file).unwrap();
    proxy.reload().await;
    assert_eq!(told().await.as_deref(), Some("FR"));
}

#[tokio::test]
async fn a_name_in_trusted_proxies_stands_for_its_networks() {
    let origin = Origin::saying("ok").await;
    let proxy =
        anywhere().site(SITE, &format!("{}\naddresses = {{ deny = [\"cloudflare\"] }}", origin.backends()));
    let proxy = proxy.start().await;
    from(&proxy, "104.16.0.1", "/").await.expect(403, "ADDRESS-DENIED");
    assert_eq!(from(&proxy, "192.0.2.1", "/").await.status, 200);
}
