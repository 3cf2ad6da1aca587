//! Which site, which route, and what happens to the request on its way.

use crate::harness::client::empty;
use crate::harness::{Answer, Origin, Proxy, wait_for};

const SITE: &str = "shop.test";

/// An origin that says its name and what it was asked.
async fn named(name: &'static str) -> Origin {
    Origin::answering(move |r| Answer::ok(format!("{name} {}", r.target()))).await
}

/// `[[site."shop.test".route]]` with these lines.
fn route(lines: &str) -> String {
    format!("\n[[site.\"{SITE}\".route]]\n{lines}\n")
}

#[tokio::test]
async fn regression_a_route_with_reserved_characters_is_not_passed_by_with_their_escapes() {
    let origin = named("shop").await;
    let site = origin.backends() + &route("path = \"/@admin/\"\nrespond = { status = 403 }");
    let proxy = Proxy::with_site(SITE, &site).await;
    assert_eq!(proxy.get(SITE, "/@admin/x").await.status, 403);
    for target in ["/%40admin/x", "/a/../%40admin/x", "//%40admin/x"] {
        proxy.get(SITE, target).await.expect(400, "BAD-PATH");
    }
    assert_eq!(origin.count(), 0);
    // What leads to the same route either way stays as it was written.
    assert_eq!(proxy.get(SITE, "/users/a%40b%3Ac").await.text(), "shop /users/a%40b%3Ac");
}

#[tokio::test]
async fn regression_a_rewrite_leads_out_of_no_folder() {
    let origin = named("shop").await;
    let site = origin.backends()
        + &route(&format!("path = \"~^/api(.*)\"\nrewrite = \"/public/$1\"\n{}", origin.backends()));
    let proxy = Proxy::with_site(SITE, &site).await;
    proxy.get(SITE, "/api../secret").await.expect(400, "BAD-PATH");
    assert_eq!(origin.count(), 0);
    assert_eq!(proxy.get(SITE, "/api/x").await.text(), "shop /public//x");
}

// ---- names

#[tokio::test]
async fn a_host_that_no_site_has_is_not_found() {
    let origin = named("shop").await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    proxy.plain().await.get("nobody.test", "/").await.expect(404, "UNKNOWN-HOST");
    proxy.plain().await.get("127.0.0.1", "/").await.expect(404, "UNKNOWN-HOST");
    assert_eq!(origin.count(), 0);
}

#[tokio::test]
async fn a_connection_for_one_site_does_not_carry_requests_for_another() {
    let (a, b) = (named("a").await, named("b").await);
    let proxy = Proxy::builder().site("a.test", &a.backends()).site("b.test", &b.backends()).start().await;
    for host in ["b.test", "nobody.test"] {
        proxy.wire("a.test").await.get(host, "/").await.expect(421, "MISDIRECTED");
        let mut h2 = proxy.h2("a.test").await;
        let request = http::Request::get(format!("https://{host}/")).body(empty()).unwrap();
        h2.send(request).await.expect(421, "MISDIRECTED");
    }
    assert_eq!(b.count(), 0);
    // 421 concerns the request, not the connection.
    let mut wire = proxy.wire("a.test").await;
    assert_eq!(wire.get("b.test", "/").await.status, 421);
    assert_eq!(wire.get("a.test", "/").await.text(), "a /");
}

#[tokio::test]
async fn exact_names_win_over_wildcards_and_wildcards_take_one_label() {
    let (exact, wild) = (named("exact").await, named("wild").await);
    let proxy = Proxy::builder()
        .site("exact", &format!("hosts = [\"www.shop.test\"]\n{}", exact.backends()))
        .site("wild", &format!("hosts = [\"*.shop.test\", \"shop.test\"]\n{}", wild.backends()))
        .start()
        .await;
    for (host, expected) in [
        ("www.shop.test", "exact /"),
        ("api.shop.test", "wild /"),
        ("shop.test", "wild /"),
        ("WWW.Shop.TEST", "exact /"),
    ] {
        assert_eq!(proxy.get(host, "/").await.text(), expected, "{host}");
    }
    for (host, expected) in [("www.shop.test:8443", "exact /"), ("www.shop.test.", "exact /")] {
        assert_eq!(proxy.wire("www.shop.test").await.get(host, "/").await.text(), expected, "{host}");
    }
    assert_eq!(proxy.plain().await.get("a.b.shop.test", "/").await.status, 404);
}

// ---- paths and conditions

#[tokio::test]
async fn a_prefix_ends_at_a_segment_border() {
    let (api, rest) = (named("api").await, named("rest").await);
    let site = rest.backends() + &route(&format!("path = \"/api/\"\n{}", api.backends()));
    let proxy = Proxy::with_site(SITE, &site).await;
    let mut wire = proxy.wire(SITE).await;
    for (path, who) in [
        ("/api/x", "api"),
        ("/api/", "api"),
        ("/api", "api"),
        ("/apix", "rest"),
        ("/", "rest"),
        ("/x/api/", "rest"),
    ] {
        assert_eq!(wire.get(SITE, path).await.text(), format!("{who} {path}"));
    }
}

#[tokio::test]
async fn exact_before_longer_prefix_before_shorter() {
    let (exact, long, short, regex) =
        (named("exact").await, named("long").await, named("short").await, named("regex").await);
    let site = short.backends()
        + &route(&format!("path = \"/a/\"\n{}", short.backends()))
        + &route(&format!("path = \"/a/b/\"\n{}", long.backends()))
        + &route(&format!("path = \"=/a/b/c\"\n{}", exact.backends()))
        + &route(&format!("path = \"~^/v[0-9]+/\"\n{}", regex.backends()));
    let proxy = Proxy::with_site(SITE, &site).await;
    let mut wire = proxy.wire(SITE).await;
    for (path, who) in [
        ("/a/b/c", "exact"),
        ("/a/b/c/d", "long"),
        ("/a/b", "long"),
        ("/a/x", "short"),
        ("/v12/x", "regex"),
        ("/vx/", "short"),
    ] {
        assert_eq!(wire.get(SITE, path).await.text(), format!("{who} {path}"));
    }
}

#[tokio::test]
async fn methods_headers_and_queries_narrow_a_route() {
    let (post, beta, debug, rest) =
        (named("post").await, named("beta").await, named("debug").await, named("rest").await);
    let site = rest.backends()
        + &route(&format!("path = \"/\"\nmethods = [\"POST\", \"PUT\"]\n{}", post.backends()))
        + &route(&format!(
            "path = \"/h\"\nheaders = {{ x-beta = \"~^(yes|on)$\", x-old = false }}\n{}",
            beta.backends()
        ))
        + &route(&format!("path = \"/q\"\nquery = {{ debug = true, level = \"2\" }}\n{}", debug.backends()));
    let proxy = Proxy::with_site(SITE, &site).await;
    let mut wire = proxy.wire(SITE).await;
    let cases = [
        ("POST", "/", "Content-Length: 0\r\n", "post"),
        ("GET", "/", "", "rest"),
        ("DELETE", "/", "", "rest"),
        ("GET", "/h", "X-Beta: yes\r\n", "beta"),
        ("GET", "/h", "X-Beta: yes!\r\n", "rest"),
        ("GET", "/h", "X-Beta: on\r\nX-Old: 1\r\n", "rest"),
        ("GET", "/h", "", "rest"),
        ("GET", "/q?debug&level=2", "", "debug"),
        ("GET", "/q?level=2&debug=0", "", "debug"),
        ("GET", "/q?level=2", "", "rest"),
        ("GET", "/q?debug=1&level=22", "", "rest"),
    ];
    for (method, target, fields, who) in cases {
        let text = wire.ask(method, target, SITE, fields).await.text();
        assert_eq!(text, format!("{who} {target}"), "{method} {target} {fields}");
    }
}

#[tokio::test]
async fn a_site_whose_routes_do_not_match_says_no_route() {
    let api = named("api").await;
    let proxy = Proxy::with_site(SITE, &route(&format!("path = \"/api/\"\n{}", api.backends()))).await;
    proxy.get(SITE, "/other").await.expect(404, "NO-ROUTE");
    assert_eq!(proxy.get(SITE, "/api/1").await.status, 200);
}

// ---- changes on the way

#[tokio::test]
async fn strip_and_rewrite_change_the_path_and_keep_the_query() {
    let origin = named("o").await;
    let to = origin.backends();
    let site = to.clone()
        + &route(&format!("path = \"/strip/\"\nstrip = true\n{to}"))
        + &route(&format!("path = \"/old/\"\nrewrite = \"/new/\"\n{to}"))
        + &route(&format!("path = \"=/one\"\nrewrite = \"/two\"\n{to}"))
        + &route(&format!("path = \"~^/v([0-9]+)/(.*)$\"\nrewrite = \"/$2/version-$1\"\n{to}"));
    let proxy = Proxy::with_site(SITE, &site).await;
    let mut wire = proxy.wire(SITE).await;
    for (sent, expected) in [
        ("/strip/a?x=1", "/a?x=1"),
        ("/strip", "/"),
        ("/strip/", "/"),
        ("/old/a/b?y", "/new/a/b?y"),
        ("/one?z", "/two?z"),
        ("/v2/thing?q=%2f", "/thing/version-2?q=%2f"),
        ("/stripes", "/stripes"),
    ] {
        assert_eq!(wire.get(SITE, sent).await.text(), format!("o {expected}"), "{sent}");
    }
}

#[tokio::test]
async fn redirects_and_fixed_answers_need_no_backend() {
    let site = "redirect = { to = \"https://www.shop.test/\", status = 301 }".to_string()
        + &route("path = \"/old/\"\nredirect = { to = \"/new/\", status = 308 }")
        + &route("path = \"=/gone\"\nrespond = { status = 410, body = \"gone\\n\" }")
        + &route("path = \"=/robots.txt\"\nrespond = { status = 200, body = \"User-agent: *\" }");
    let proxy = Proxy::with_site(SITE, &site).await;
    let mut wire = proxy.wire(SITE).await;
    for (sent, status, location) in
        [("/old/a/b?q=1", 308, "/new/a/b?q=1"), ("/x?y=2", 301, "https://www.shop.test/x?y=2")]
    {
        let reply = wire.get(SITE, sent).await;
        assert_eq!((reply.status, reply.field("location")), (status, Some(location)), "{sent}");
    }
    let gone = wire.get(SITE, "/gone").await;
    assert_eq!((gone.status, gone.text().as_str()), (410, "gone\n"));
    assert_eq!(wire.get(SITE, "/robots.txt").await.text(), "User-agent: *");
    let outcomes: Vec<String> =
        proxy.records(4).await.iter().map(|r| r["outcome"].as_str().unwrap().to_string()).collect();
    assert_eq!(outcomes, ["REDIRECT", "REDIRECT", "FIXED", "FIXED"]);
}

#[tokio::test]
async fn a_redirect_cannot_be_made_to_leave_the_site_or_split_the_answer() {
    let proxy =
        Proxy::with_site(SITE, &route("path = \"/old/\"\nredirect = { to = \"/\", status = 308 }")).await;
    for path in ["/old//evil.test/", "/old/%2fevil.test", "/old/\\evil.test", "/old/%0d%0aX-Evil:%201"] {
        let reply = proxy.get(SITE, path).await;
        assert!(reply.field("x-evil").is_none());
        let to = reply.field("location").unwrap_or_default();
        assert!(!to.starts_with("//") && !to.starts_with("/\\"), "{path} leads to {to}");
    }
}

#[tokio::test]
async fn header_edits_remove_then_set_then_add() {
    let origin = Origin::answering(|_| {
        Answer::ok("x").field("Server", "inner/1.0").field("X-Powered-By", "p").field("Vary", "a")
    })
    .await;
    let site = origin.backends()
        + "\nrequest_headers = { set = { x-a = \"set\" }, add = { x-b = \"added\" }, remove = [\"x-c\"] }\n\
           response_headers = { set = { server = \"edge\" }, add = { vary = \"b\" }, remove = [\"X-Powered-By\"] }";
    let proxy = Proxy::with_site(SITE, &site).await;
    let reply =
        proxy.wire(SITE).await.ask("GET", "/", SITE, "X-A: 1\r\nX-A: 2\r\nX-B: own\r\nX-C: 3\r\n").await;
    let seen = origin.only();
    assert_eq!(seen.head.fields_of("x-a"), ["set"]);
    assert_eq!(seen.head.fields_of("x-b"), ["own", "added"]);
    assert!(seen.head.fields_of("x-c").is_empty());
    assert_eq!(reply.field("server"), Some("edge"));
    assert!(reply.head.fields_of("x-powered-by").is_empty());
    assert_eq!(reply.head.fields_of("vary"), ["a", "b"]);
}

// ---- plain HTTP

#[tokio::test]
async fn plain_http_is_sent_to_https_with_path_and_query() {
    let origin = named("shop").await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let mut wire = proxy.plain().await;
    let reply = wire.get(SITE, "/a/b?c=d").await;
    assert_eq!(reply.status, 308);
    let to = reply.field("location").unwrap();
    assert!(to.starts_with("https://shop.test") && to.ends_with("/a/b?c=d"), "{to}");
    assert_eq!(wire.post(SITE, "/form", "x=1").await.status, 308, "308 keeps the method and the body");
    assert_eq!(origin.count(), 0);
    assert_eq!(proxy.records(2).await[0]["outcome"], "HTTPS");
}

#[tokio::test]
async fn it_is_sent_to_the_port_that_clients_see() {
    let origin = named("shop").await;
    for (port, to) in [("443", "https://shop.test/a"), ("8443", "https://shop.test:8443/a")] {
        let builder = Proxy::builder().set("server.public_https_port", port);
        let proxy = builder.site(SITE, &origin.backends()).start().await;
        assert_eq!(proxy.plain().await.get(SITE, "/a").await.field("location"), Some(to));
    }
}

#[tokio::test]
async fn a_site_may_serve_plain_http() {
    let origin = named("shop").await;
    let proxy = Proxy::with_site(SITE, &format!("{}\nplain_http = true", origin.backends())).await;
    assert_eq!(proxy.plain().await.get(SITE, "/x").await.text(), "shop /x");
    assert_eq!(origin.only().field("x-forwarded-proto"), Some("http"));
}

#[tokio::test]
async fn plain_http_on_the_https_port_gets_a_hint() {
    let origin = named("shop").await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let mut wire = crate::harness::Wire::plain(proxy.https()).await;
    wire.send(format!("GET / HTTP/1.1\r\nHost: {SITE}\r\n\r\n")).await;
    assert_eq!(wire.reply().await.status, 400);
    wire.closed().await;
}

#[tokio::test]
async fn tls_on_the_http_port_is_closed() {
    let origin = named("shop").await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let config = crate::harness::tls::client_config(&proxy.ca_pem(), &[], &[&rustls::version::TLS13]);
    let refused = crate::harness::tls::connect(config, proxy.http(), SITE).await;
    assert!(refused.is_err());
    wait_for("others to be served", || async { (proxy.get(SITE, "/").await.status == 200).then_some(()) })
        .await;
}

/// A balancer in front that ends TLS would be sent to HTTPS again and again.
#[tokio::test]
async fn a_trusted_proxy_that_ended_tls_is_not_redirected() {
    let origin = Origin::saying("ok").await;
    let trusting = Proxy::builder().set("server.trusted_proxies", "[\"127.0.0.0/8\"]");
    let proxy = trusting.site("shop.test", &origin.backends()).start().await;
    let ask = async |fields: &str| proxy.plain().await.ask("GET", "/", "shop.test", fields).await.status;
    assert_eq!(ask("X-Forwarded-Proto: https\r\n").await, 200);
    assert_eq!(ask("X-Forwarded-Proto: http\r\n").await, 308);
    assert_eq!(ask("").await, 308);
    let strict = Proxy::with_site("shop.test", &origin.backends()).await;
    let forged = strict.plain().await.ask("GET", "/", "shop.test", "X-Forwarded-Proto: https\r\n").await;
    assert_eq!(forged.status, 308, "nobody else is believed");
}
