//! What answers say to browsers, and fields with variables.

use crate::harness::{Answer, Origin, Proxy, Reply};

const SITE: &str = "shop.test";

async fn site(origin: &Origin, more: &str) -> Proxy {
    Proxy::with_site(SITE, &format!("{}\n{more}", origin.backends())).await
}

async fn ask(proxy: &Proxy, method: &str, target: &str, fields: &str) -> Reply {
    proxy.wire(SITE).await.ask(method, target, SITE, fields).await
}

#[tokio::test]
async fn edits_have_variables_and_no_client_can_break_out_of_one() {
    let origin = Origin::answering(|_| Answer::ok("ok").field("X-Old", "1")).await;
    let more = "request_headers = { set = { X-Who = \"{client_ip} {user}\", X-Where = \"{scheme}://{host}{path}\", X-Is = \"{{host}}\" } }\n\
                response_headers = { set = { X-Id = \"{request_id}\", X-Tls = \"{tls_version} {site} {tenant} {route} {method}\" }, \
                remove = [\"X-Old\"] }";
    let proxy = site(&origin, more).await;
    let answer = ask(&proxy, "GET", "/a%20X-Evil:%201?q=1", "X-Who: root\r\n").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.field("x-tls"), Some("1.3 shop.test shop.test / GET"));
    assert!(answer.field("x-old").is_none());
    let heard = origin.only();
    assert_eq!(answer.field("x-id"), heard.field("x-request-id"));
    assert_eq!(heard.head.fields_of("x-who"), ["127.0.0.1"]);
    assert_eq!(heard.field("x-where"), Some("https://shop.test/a%20X-Evil:%201"));
    assert_eq!(heard.field("x-is"), Some("{host}"));
    assert!(heard.field("x-evil").is_none());
}

#[tokio::test]
async fn presets_are_said_where_the_backend_says_nothing_and_on_our_own_answers() {
    let origin = Origin::answering(|_| Answer::ok("ok").field("X-Frame-Options", "DENY")).await;
    let more = format!(
        "security_headers = \"basic\"\n[[site.\"{SITE}\".route]]\npath = \"/strict/\"\nrespond = {{ status = 200 }}\n\
         security_headers = {{ preset = \"strict\", replace = true }}\n\
         [[site.\"{SITE}\".route]]\npath = \"/off/\"\nsecurity_headers = \"off\""
    );
    let proxy = site(&origin, &more).await;
    let answer = ask(&proxy, "GET", "/", "").await;
    assert_eq!(
        (answer.field("x-frame-options"), answer.field("x-content-type-options")),
        (Some("DENY"), Some("nosniff"))
    );
    let answer = ask(&proxy, "GET", "/strict/", "").await;
    assert_eq!(answer.field("content-security-policy"), Some("frame-ancestors 'none'"));
    assert_eq!(answer.field("cross-origin-opener-policy"), Some("same-origin"));
    assert!(ask(&proxy, "GET", "/off/", "").await.field("x-content-type-options").is_none());
}

#[tokio::test]
async fn hsts_begins_small_and_goes_on_over_a_restart() {
    let origin = Origin::saying("ok").await;
    let mut proxy = site(&origin, "hsts = { include_subdomains = true }").await;
    let value = |reply: Reply| reply.field("strict-transport-security").map(str::to_owned);
    let told = value(ask(&proxy, "GET", "/", "").await);
    assert_eq!(told.as_deref(), Some("max-age=300; includeSubDomains"));
    let file = proxy.path().join("state/hsts.json");
    let kept: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let since = kept[SITE].as_u64().unwrap();
    // Ten days ago: a week is told after the restart.
    std::fs::write(&file, serde_json::json!({ SITE: since - 10 * 86_400 }).to_string()).unwrap();
    proxy.restart().await;
    let told = value(ask(&proxy, "GET", "/", "").await);
    assert_eq!(told.as_deref(), Some("max-age=604800; includeSubDomains"));
    // Turned off and on again, it begins anew.
    proxy.write_site(SITE, &origin.backends());
    proxy.reload().await;
    assert_eq!(value(ask(&proxy, "GET", "/", "").await), None);
    proxy.write_site(SITE, &format!("{}\nhsts = \"on\"", origin.backends()));
    proxy.reload().await;
    assert_eq!(value(ask(&proxy, "GET", "/", "").await).as_deref(), Some("max-age=300"));
    let mut plain = proxy.plain().await;
    assert!(plain.ask("GET", "/", SITE, "").await.field("strict-transport-security").is_none());
}

#[tokio::test]
async fn pages_of_other_origins_are_let_in_by_us_and_preflights_reach_nobody() {
    let origin = Origin::answering(|_| Answer::ok("ok").field("Access-Control-Allow-Origin", "*")).await;
    let more = "cors = { origins = [\"https://app.test\", \"https://*.app.test\"], credentials = true, methods = [\"GET\", \"PUT\"], \
                max_age = \"1h\" }\nauth = { basic = { users = [\"ann:$2y$04$abcdefghijklmnopqrstuuMNz3ZoDq/kK0yf8QE4SQmHf3nv6xK0e\"] } }\n\
                [[site.\"shop.test\".route]]\npath = \"/open/\"\nauth = \"off\"";
    let proxy = site(&origin, more).await;
    let asked = "Access-Control-Request-Method: PUT\r\nAccess-Control-Request-Headers: x-a\r\n";
    // Without a password: browsers send none with this question.
    let answer = ask(&proxy, "OPTIONS", "/api", &format!("Origin: https://app.test\r\n{asked}")).await;
    assert_eq!(answer.status, 204);
    assert_eq!(answer.field("access-control-allow-origin"), Some("https://app.test"));
    assert_eq!(answer.field("access-control-allow-methods"), Some("GET, PUT"));
    assert_eq!(answer.field("access-control-allow-headers"), Some("x-a"));
    assert_eq!(answer.field("access-control-allow-credentials"), Some("true"));
    assert_eq!(answer.field("access-control-max-age"), Some("3600"));
    assert!(answer.head.fields_of("vary").contains(&"Origin"));
    let answer = ask(&proxy, "OPTIONS", "/api", &format!("Origin: https://evil.test\r\n{asked}")).await;
    assert_eq!((answer.status, answer.field("access-control-allow-origin")), (204, None));
    assert!(answer.field("access-control-allow-methods").is_none());
    assert_eq!(origin.count(), 0);

    // What is refused can be read by the page that may, and is still refused.
    let answer = ask(&proxy, "PUT", "/api", "Origin: https://app.test\r\nContent-Length: 0\r\n").await;
    answer.expect(401, "AUTH-REQUIRED");
    assert_eq!(answer.field("access-control-allow-origin"), Some("https://app.test"));
    for (from, allowed) in
        [("https://a.app.test", Some("https://a.app.test")), ("https://evil.test", None), ("null", None)]
    {
        let answer = ask(&proxy, "GET", "/open/", &format!("Origin: {from}\r\n")).await;
        assert_eq!(answer.field("access-control-allow-origin"), allowed, "{from}");
        assert!(answer.head.fields_of("vary").contains(&"Origin"));
    }
    // A plain OPTIONS is the backend's.
    ask(&proxy, "OPTIONS", "/open/", "Origin: https://app.test\r\n").await;
    assert_eq!(origin.requests().last().unwrap().method(), "OPTIONS");
}
