//! Who a client is: passwords, certificates, and what the backend hears of it.

use std::io::Write;
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tidegate::policy::auth::hash;

use crate::harness::tls::{Ca, client_config_as, connect};
use crate::harness::{Origin, Proxy, Reply, Wire, wait_for, within};

const SITE: &str = "shop.test";

fn basic(user: &str, password: &str) -> String {
    format!("Authorization: Basic {}\r\n", STANDARD.encode(format!("{user}:{password}")))
}

fn user(name: &str, password: &str) -> String {
    format!("{name}:{}", hash::bcrypt(password.as_bytes(), 4).unwrap())
}

async fn ask(proxy: &Proxy, target: &str, fields: &str) -> Reply {
    proxy.wire(SITE).await.ask("GET", target, SITE, fields).await
}

async fn counted(proxy: &Proxy, kind: &str, result: &str) -> f64 {
    proxy.metrics().await.sum("tidegate_auth_total", &[("kind", kind), ("result", result)])
}

// ---- passwords

#[tokio::test]
async fn a_password_lets_in_its_user_and_the_backend_hears_who_and_not_how() {
    let origin = Origin::saying("ok").await;
    let more =
        "auth = { basic = { file = \"users\", realm = \"the shop\" }, identity_header = \"X-Auth-User\" }";
    let builder = Proxy::builder().site(SITE, &format!("{}\n{more}", origin.backends()));
    std::fs::create_dir_all(builder.folder().join("sites")).unwrap();
    let users = format!("# people\n{}\n{}\n", user("ann", "open: sesame"), user("bob", "x"));
    std::fs::write(builder.folder().join("sites/users"), users).unwrap();
    let proxy = builder.start().await;

    let refused = ask(&proxy, "/", "").await;
    refused.expect(401, "AUTH-REQUIRED");
    assert_eq!(refused.field("www-authenticate"), Some("Basic realm=\"the shop\", charset=\"UTF-8\""));
    assert_eq!(refused.field("cache-control"), Some("no-store"));
    for (name, password) in [("ann", "open"), ("ann", ""), ("eve", "x"), ("", ""), ("ann", "x")] {
        let refused = ask(&proxy, "/", &basic(name, password)).await;
        refused.expect(401, "AUTH-WRONG");
        assert!(refused.field("www-authenticate").is_some());
    }
    ask(&proxy, "/", "Authorization: Basic !\r\n").await.expect(401, "AUTH-WRONG");
    ask(&proxy, "/", "Authorization: Bearer abc\r\n").await.expect(401, "AUTH-REQUIRED");
    let twice = format!("{}{}", basic("ann", "open: sesame"), basic("bob", "x"));
    ask(&proxy, "/", &twice).await.expect(401, "AUTH-WRONG");
    assert_eq!(origin.count(), 0);

    for _ in 0..3 {
        assert_eq!(ask(&proxy, "/", &basic("ann", "open: sesame")).await.text(), "ok");
    }
    let heard = &origin.requests()[0];
    assert_eq!(heard.field("x-auth-user"), Some("ann"));
    assert_eq!(heard.field("authorization"), None);
    assert_eq!(counted(&proxy, "basic", "accepted").await, 3.0);
    // Five wrong ones, and one for three right ones: what was right is remembered.
    assert_eq!(proxy.metrics().await.sum("tidegate_auth_hashes_total", &[]), 6.0);
    let records = proxy.records(12).await;
    assert_eq!(records.iter().filter(|record| record["user"] == "ann").count(), 3);
}

#[tokio::test]
async fn a_changed_file_of_users_holds_at_once_also_for_passwords_that_are_remembered() {
    let origin = Origin::saying("ok").await;
    let site = format!("{}\nauth = {{ basic = {{ file = \"users\" }} }}", origin.backends());
    let builder = Proxy::builder().site(SITE, &site);
    let file = builder.folder().join("sites/users");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, user("ann", "old")).unwrap();
    let proxy = builder.start().await;
    assert_eq!(ask(&proxy, "/", &basic("ann", "old")).await.status, 200);

    std::fs::write(&file, user("ann", "new")).unwrap();
    proxy.reload().await;
    ask(&proxy, "/", &basic("ann", "old")).await.expect(401, "AUTH-WRONG");
    assert_eq!(ask(&proxy, "/", &basic("ann", "new")).await.status, 200);

    // A file that makes no sense changes nothing, and says why.
    std::fs::write(&file, "ann:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=\n").unwrap();
    let told = proxy.reload().await.to_string();
    assert!(told.contains("SHA-1") && told.contains("line 1"), "{told}");
    assert_eq!(ask(&proxy, "/", &basic("ann", "new")).await.status, 200);
}

#[tokio::test]
async fn no_client_can_say_itself_who_it_is_on_any_route_in_any_spelling() {
    let origin = Origin::saying("ok").await;
    let backends = origin.backends();
    let more = format!(
        "auth = {{ basic = {{ users = [{:?}] }}, identity_header = \"X-Auth-User\" }}\n\
         [[site.\"{SITE}\".route]]\npath = \"/open/\"\nauth = \"off\"",
        user("ann", "x")
    );
    let other = format!("{backends}\ntenant = \"{SITE}\"");
    let proxy =
        Proxy::builder().site(SITE, &format!("{backends}\n{more}")).site("other.test", &other).start().await;
    let forged = "X-Auth-User: root\r\nX_Auth_User: root\r\nx-auth_user: root\r\nX.Auth.User: root\r\nX-Auth-Users: ok\r\n";

    assert_eq!(ask(&proxy, "/", &format!("{}{forged}", basic("ann", "x"))).await.status, 200);
    assert_eq!(ask(&proxy, "/open/", forged).await.status, 200);
    // Another site of the same tenant, which may lead to the same backends.
    assert_eq!(proxy.wire("other.test").await.ask("GET", "/", "other.test", forged).await.status, 200);
    let mut trailing = proxy.wire(SITE).await;
    let head = format!("POST /open/ HTTP/1.1\r\nHost: {SITE}\r\nTransfer-Encoding: chunked\r\n\r\n");
    trailing.send(format!("{head}0\r\nX-Auth-User: root\r\nX-Good: 1\r\n\r\n")).await;
    assert_eq!(trailing.reply().await.status, 200);

    let heard = origin.requests();
    let raw: Vec<String> = heard.iter().map(|request| request.raw()).collect();
    assert_eq!(raw.iter().filter(|raw| raw.contains("root")).count(), 0, "{raw:?}");
    assert_eq!(heard[0].field("x-auth-user"), Some("ann"));
    assert!(heard[..3].iter().all(|request| request.field("x-auth-users") == Some("ok")));
    assert!(heard[1..].iter().all(|request| request.field("x-auth-user").is_none()));
}

#[tokio::test]
async fn a_flood_of_wrong_passwords_fills_its_own_queue_and_others_are_served() {
    let origin = Origin::saying("ok").await;
    let line = format!("ann:{}", hash::argon2id(b"x").unwrap());
    let guarded = format!("{}\nauth = {{ basic = {{ users = [{line:?}] }} }}", origin.backends());
    let proxy = Proxy::builder()
        .set("server.workers", "1")
        .site(SITE, &guarded)
        .site("other.test", &origin.backends())
        .start()
        .await;
    let mut flood = Vec::new();
    for number in 0..64 {
        let mut wire = proxy.wire(SITE).await;
        let fields = basic("ann", &format!("wrong {number}"));
        wire.send(format!("GET / HTTP/1.1\r\nHost: {SITE}\r\n{fields}\r\n")).await;
        flood.push(wire);
    }
    assert_eq!(proxy.get("other.test", "/").await.text(), "ok");
    let mut busy = 0;
    for mut wire in flood {
        let reply = wire.reply().await;
        assert!([401, 503].contains(&reply.status), "{}", reply.status);
        if reply.status == 503 {
            reply.expect(503, "AUTH-BUSY");
            assert_eq!(reply.field("retry-after"), Some("1"));
            busy += 1;
        }
    }
    assert!(busy > 0, "all of them were computed");
    assert_eq!(counted(&proxy, "basic", "busy").await, f64::from(busy));
    assert_eq!(ask(&proxy, "/", &basic("ann", "x")).await.text(), "ok");
}

#[tokio::test]
async fn in_shadow_everybody_comes_in_and_what_would_have_been_refused_is_counted() {
    let origin = Origin::saying("ok").await;
    let auth = format!("auth = {{ basic = {{ users = [{:?}] }}, mode = \"shadow\" }}", user("ann", "x"));
    let proxy = Proxy::with_site(SITE, &format!("{}\n{auth}", origin.backends())).await;
    assert_eq!(ask(&proxy, "/", "").await.status, 200);
    assert_eq!(ask(&proxy, "/", &basic("ann", "wrong")).await.status, 200);
    assert_eq!(ask(&proxy, "/", &basic("ann", "x")).await.status, 200);
    let heard = origin.requests();
    assert!(heard[1].field("authorization").is_some() && heard[2].field("authorization").is_some());
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.sum("tidegate_would_block_total", &[("site", SITE), ("policy", "auth")]), 2.0);
    let records = proxy.records(3).await;
    assert_eq!(records[0]["would_block"], serde_json::json!(["auth"]));
    assert!(records[2].get("would_block").is_none() && records[2]["user"] == "ann");
}

#[test]
fn a_line_for_the_file_is_made_from_a_password_in_a_pipe() {
    let make = |args: &[&str], password: &str| {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tidegate"))
            .arg("hash-password")
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let written = child.stdin.take().unwrap().write_all(password.as_bytes());
        let output = child.wait_with_output().unwrap();
        // Who refuses the arguments may be gone before it reads.
        assert!(written.is_ok() || !output.status.success(), "{written:?}");
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    let (good, line) = make(&["--user", "ann"], "open sesame\n");
    assert!(good && line.starts_with("ann:$argon2id$v=19$m=19456,t=2,p=1$"), "{line}");
    let made = hash::Hash::parse(line.trim().strip_prefix("ann:").unwrap()).unwrap();
    assert!(made.verify(b"open sesame") && !made.verify(b"open sesame\n"));
    let (good, line) = make(&["--bcrypt", "--cost", "8"], "x");
    assert!(good && line.starts_with("$2y$08$"), "{line}");
    assert!(!make(&["--user", "a:b"], "x").0);
    assert!(!make(&[], "").0);
}

// ---- certificates

#[tokio::test]
async fn a_certificate_names_its_user() {
    let (ca, origin) = (Ca::new("clients"), Origin::saying("ok").await);
    let more = "tls = { client_auth = { ca_file = \"clients.pem\", mode = \"optional\" } }\n\
                auth = { client_cert = { from = \"cn\", users = { ann = \"Ann Miller\" } }, identity_header = \"X-Auth-User\" }";
    let builder = Proxy::builder().site(SITE, &format!("{}\n{more}", origin.backends()));
    std::fs::create_dir_all(builder.folder().join("sites")).unwrap();
    std::fs::write(builder.folder().join("sites/clients.pem"), &ca.pem).unwrap();
    let proxy = builder.start().await;

    ask(&proxy, "/", "").await.expect(403, "CLIENT-CERT-MISSING");
    for (name, serial, status, outcome) in [("eve", 2, 403, "AUTH-DENIED"), ("ann", 1, 200, "")] {
        let versions = [&rustls::version::TLS13];
        let config =
            client_config_as(&proxy.ca_pem(), &["http/1.1"], &versions, &ca.client(name, serial, 10));
        let mut wire = connect(config, proxy.https(), SITE).await.unwrap();
        let reply = wire.ask("GET", "/", SITE, "").await;
        assert_eq!(reply.status, status);
        if !outcome.is_empty() {
            reply.expect(status, outcome);
        }
    }
    assert_eq!(origin.only().field("x-auth-user"), Some("Ann Miller"));
    assert_eq!(counted(&proxy, "client-cert", "accepted").await, 1.0);
}

// ---- tokens

/// A signing key of an issuer: what its tokens are signed with, and what it publishes.
struct Issuer {
    id: &'static str,
    secret: jsonwebtoken::EncodingKey,
    jwk: serde_json::Value,
}

impl Issuer {
    fn new(id: &'static str) -> Issuer {
        use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
        let pair = rcgen::KeyPair::generate().unwrap();
        let point = pair.public_key_raw();
        let (x, y) = (BASE64.encode(&point[1..33]), BASE64.encode(&point[33..]));
        let jwk = serde_json::json!({ "kty": "EC", "crv": "P-256", "kid": id, "x": x, "y": y });
        let secret = jsonwebtoken::EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap();
        Issuer { id, secret, jwk }
    }

    fn token(&self, user: &str) -> String {
        let header = jsonwebtoken::Header {
            kid: Some(self.id.into()),
            ..jsonwebtoken::Header::new(jsonwebtoken::Algorithm::ES256)
        };
        let expires = jsonwebtoken::get_current_timestamp() + 600;
        let claims =
            serde_json::json!({ "sub": user, "iss": "https://id.test", "aud": "shop", "exp": expires });
        let token = jsonwebtoken::encode(&header, &claims, &self.secret).unwrap();
        format!("Authorization: Bearer {token}\r\n")
    }
}

#[tokio::test]
async fn tokens_of_an_issuer_are_taken_over_a_change_of_its_keys_and_while_it_is_away() {
    let (old, new) = (Issuer::new("old"), Issuer::new("new"));
    let published = std::sync::Arc::new(std::sync::Mutex::new(vec![old.jwk.clone()]));
    let ca = Ca::new("inner");
    let shown = published.clone();
    let publisher = Origin::answering_tls(ca.leaf(&["localhost"]).server_config(), move |_| {
        let set = serde_json::json!({ "keys": *shown.lock().unwrap() });
        crate::harness::Answer::ok(set.to_string())
    })
    .await;
    let origin = Origin::saying("ok").await;
    let auth = format!(
        "auth = {{ jwt = {{ jwks_url = \"https://localhost:{}/keys\", ca_file = \"inner.pem\", issuer = [\"https://id.test\"], \
         audience = [\"shop\"] }}, identity_header = \"X-Auth-User\", pass_authorization = false }}",
        publisher.address().port()
    );
    let builder = Proxy::builder().site(SITE, &format!("{}\n{auth}", origin.backends()));
    std::fs::create_dir_all(builder.folder().join("sites")).unwrap();
    std::fs::write(builder.folder().join("sites/inner.pem"), &ca.pem).unwrap();
    let proxy = builder.start().await;

    let refused = ask(&proxy, "/", "").await;
    refused.expect(401, "AUTH-REQUIRED");
    assert_eq!(refused.field("www-authenticate"), Some("Bearer realm=\"shop.test\""));
    assert_eq!(ask(&proxy, "/", &old.token("ann")).await.text(), "ok");
    let heard = &origin.requests()[0];
    assert_eq!((heard.field("x-auth-user"), heard.field("authorization")), (Some("ann"), None));

    // The issuer changes its key: the first token that names the new one has it fetched, and waits for it.
    *published.lock().unwrap() = vec![new.jwk.clone()];
    assert_eq!(ask(&proxy, "/", &new.token("bob")).await.text(), "ok");
    let refused = ask(&proxy, "/", &old.token("ann")).await;
    refused.expect(401, "AUTH-WRONG");
    assert_eq!(
        refused.field("www-authenticate"),
        Some("Bearer realm=\"shop.test\", error=\"invalid_token\"")
    );
    // Made-up names of keys do not make us ask again and again.
    let asked = publisher.count();
    for id in ["x", "y", "z"] {
        ask(&proxy, "/", &Issuer::new(id).token("eve")).await.expect(401, "AUTH-WRONG");
    }
    assert_eq!(publisher.count(), asked);

    publisher.kill().await;
    assert_eq!(ask(&proxy, "/", &new.token("ann")).await.text(), "ok", "the last keys stay");
}

#[tokio::test]
async fn without_keys_nobody_comes_in_and_it_is_not_the_client_s_fault() {
    let origin = Origin::saying("ok").await;
    let gone = Origin::saying("").await.kill().await;
    let auth = format!(
        "auth = {{ jwt = {{ jwks_url = \"https://localhost:{}/\", issuer = [\"https://id.test\"], audience = [] }} }}",
        gone.port()
    );
    let proxy = Proxy::with_site(SITE, &format!("{}\n{auth}", origin.backends())).await;
    ask(&proxy, "/", &Issuer::new("a").token("ann")).await.expect(503, "AUTH-UNAVAILABLE");
    ask(&proxy, "/", "").await.expect(401, "AUTH-REQUIRED");
    assert_eq!(origin.count(), 0);
    assert!(proxy.stderr().contains("the keys for tokens at https://localhost"), "{}", proxy.stderr());
}

// ---- another service that is asked

fn asking(origin: &Origin, service: std::net::SocketAddr, more: &str) -> String {
    format!(
        "{}\nauth = {{ forward = {{ url = \"http://{service}/verify\", user = \"Remote-User\", copy = [\"Remote-Groups\"]{more} }}, \
         identity_header = \"X-Auth-User\" }}",
        origin.backends()
    )
}

#[tokio::test]
async fn another_service_says_who_comes_in_and_its_refusals_reach_the_client() {
    use crate::harness::Answer;
    let origin = Origin::saying("ok").await;
    let service = Origin::answering(|asked| match asked.field("cookie") {
        Some("session=ann") => Answer::new(200)
            .field("Remote-User", "ann")
            .field("Remote-Groups", "staff")
            .field("X-Secret", "1"),
        Some("session=eve") => Answer::new(403).body("not you"),
        Some("session=odd") => Answer::new(500),
        Some("session=nobody") => Answer::new(200),
        _ => Answer::new(302).field("Location", "https://id.test/login").field("Set-Cookie", "state=1"),
    })
    .await;
    let proxy = Proxy::with_site(SITE, &asking(&origin, service.address(), "")).await;

    let sent = ask(&proxy, "/a?b=1", "").await;
    sent.expect(302, "AUTH-REDIRECT");
    assert_eq!(
        (sent.field("location"), sent.field("set-cookie")),
        (Some("https://id.test/login"), Some("state=1"))
    );
    assert_eq!(sent.field("cache-control"), Some("no-store"));
    let refused = ask(&proxy, "/", "Cookie: session=eve\r\n").await;
    refused.expect(403, "AUTH-DENIED");
    assert_eq!(refused.text(), "not you");
    for cookie in ["odd", "nobody"] {
        ask(&proxy, "/", &format!("Cookie: session={cookie}\r\n")).await.expect(503, "AUTH-UNAVAILABLE");
    }
    assert_eq!(origin.count(), 0);

    let mut wire = proxy.wire(SITE).await;
    let fields = "Cookie: session=ann\r\nRemote_Groups: root\r\nX-Forwarded-Uri: /open\r\nContent-Length: 4\r\n\
         X-Original-URL: https://open.test/\r\nX_Original_URI: /open\r\nX-Rewrite-URL: /open\r\n";
    wire.send(format!("POST /x/../admin?a=1 HTTP/1.1\r\nHost: {SITE}\r\n{fields}\r\nbody")).await;
    assert_eq!(wire.reply().await.text(), "ok");
    let asked = service.requests().pop().unwrap();
    assert_eq!((asked.method(), asked.target()), ("GET", "/verify"));
    assert_eq!(asked.field("x-forwarded-method"), Some("POST"));
    assert_eq!(asked.field("x-forwarded-uri"), Some("/admin?a=1"));
    assert_eq!(asked.field("x-forwarded-host"), Some(SITE));
    assert!(!asked.raw().contains("open"), "what is judged is not the client's to say: {}", asked.raw());
    // Nor is a path with two readings judged by one of them.
    ask(&proxy, "/public/..;/admin", "Cookie: session=ann\r\n").await.expect(400, "BAD-PATH");
    assert!(
        asked.field("content-length").is_none() && asked.body.is_empty() && !asked.raw().contains("root")
    );
    let heard = origin.only();
    assert_eq!(heard.body, b"body");
    assert_eq!((heard.field("x-auth-user"), heard.field("remote-groups")), (Some("ann"), Some("staff")));
    assert!(heard.field("x-secret").is_none() && !heard.raw().contains("root"));
    assert_eq!(counted(&proxy, "forward", "accepted").await, 1.0);
}

#[tokio::test]
async fn a_service_that_hangs_or_is_gone_lets_nobody_in() {
    use crate::harness::{Answer, Gate};
    let (origin, gate) = (Origin::saying("ok").await, Gate::default());
    let waiting = gate.clone();
    let service = Origin::scripted(move |mut exchange| {
        let waiting = waiting.clone();
        async move {
            waiting.pass().await;
            exchange.answer(Answer::new(200).field("Remote-User", "ann")).await.ok()?;
            Some(exchange)
        }
    })
    .await;
    let more = ", timeout = \"300ms\", in_flight = 2";
    let proxy = Proxy::with_site(SITE, &asking(&origin, service.address(), more)).await;
    let mut waiting = Vec::new();
    for _ in 0..2 {
        let mut wire = proxy.wire(SITE).await;
        wire.send(format!("GET / HTTP/1.1\r\nHost: {SITE}\r\n\r\n")).await;
        waiting.push(wire);
    }
    for mut wire in waiting {
        wire.reply().await.expect(503, "AUTH-UNAVAILABLE");
    }
    gate.open();
    assert_eq!(ask(&proxy, "/", "").await.text(), "ok");
    service.kill().await;
    ask(&proxy, "/", "").await.expect(503, "AUTH-UNAVAILABLE");
    assert_eq!(origin.count(), 1);
    assert!(proxy.stderr().contains("nobody says who may come in"), "{}", proxy.stderr());
}

#[tokio::test]
async fn an_answer_that_lets_in_is_used_again_for_whoever_shows_the_same_and_a_refusal_never_is() {
    use crate::harness::Answer;
    let origin = Origin::saying("ok").await;
    let service = Origin::answering(|asked| match asked.field("cookie") {
        Some("session=ann") => Answer::new(200).field("Remote-User", "ann").field("Remote-Groups", "staff"),
        Some("session=new") => Answer::new(204)
            .field("Remote-User", "new")
            .field("Set-Cookie", "sid=fresh; HttpOnly")
            .field("Set-Cookie", "secret=1"),
        _ => Answer::new(401).field("WWW-Authenticate", "Bearer"),
    })
    .await;
    let more = ", cache = \"1h\", cache_by = [\"cookie\", \"path\"], set_cookies = [\"sid\"]";
    let proxy = Proxy::with_site(SITE, &asking(&origin, service.address(), more)).await;
    for _ in 0..3 {
        assert_eq!(ask(&proxy, "/a", "Cookie: session=ann\r\n").await.text(), "ok");
    }
    assert_eq!(service.count(), 1);
    let heard = |at: usize| {
        let request = &origin.requests()[at];
        (request.field("x-auth-user").map(str::to_owned), request.field("remote-groups").map(str::to_owned))
    };
    assert_eq!((heard(0), heard(2)), ((Some("ann".into()), Some("staff".into())), heard(0)));
    assert_eq!(ask(&proxy, "/b", "Cookie: session=ann\r\n").await.status, 200);
    assert_eq!(service.count(), 2, "another path");
    for _ in 0..2 {
        ask(&proxy, "/a", "").await.expect(401, "AUTH-REQUIRED");
    }
    assert_eq!(service.count(), 4, "a refusal is asked for each time");
    for _ in 0..2 {
        let signed_in = ask(&proxy, "/a", "Cookie: session=new\r\n").await;
        assert_eq!(
            (signed_in.status, signed_in.head.fields_of("set-cookie")),
            (200, vec!["sid=fresh; HttpOnly"])
        );
    }
    assert_eq!(service.count(), 6, "an answer with a cookie is for one client once");
    assert_eq!(proxy.metrics().await.sum("tidegate_auth_answers_remembered_total", &[]), 2.0);
    // What it remembers does not outlive what was said about it.
    let more = ", cache = \"1h\", cache_by = [\"cookie\"]";
    proxy.write_site(SITE, &asking(&origin, service.address(), more));
    proxy.reload().await;
    for path in ["/a", "/b", "/c"] {
        assert_eq!(ask(&proxy, path, "Cookie: session=ann\r\n").await.status, 200);
    }
    assert_eq!(service.count(), 7);
    let privacy = proxy.command_async(&["privacy"]).await;
    assert!(String::from_utf8_lossy(&privacy.stdout).contains("forward.cache"), "the table has it");
}

#[tokio::test]
async fn where_any_of_several_ways_will_do_the_first_that_succeeds_counts() {
    let (ca, origin) = (Ca::new("clients"), Origin::saying("ok").await);
    let issuer = Issuer::new("one");
    let more = format!(
        "tls = {{ client_auth = {{ ca_file = \"clients.pem\", mode = \"optional\" }} }}\n\
         [site.\"{SITE}\".auth]\n\
         any = true\n\
         basic = {{ users = ['{}'], realm = \"shop\" }}\n\
         jwt = {{ jwks_file = \"keys.json\", issuer = [\"https://id.test\"], audience = [\"shop\"] }}\n\
         client_cert = {{ from = \"cn\", users = {{ robot = \"Robot\" }} }}\n\
         identity_header = \"X-Auth-User\"",
        user("ann", "sesame")
    );
    let site = format!("[site.\"{SITE}\"]\n{}\n{more}", origin.backends());
    let builder = Proxy::builder().site(SITE, &site);
    let folder = builder.folder().join("sites");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("clients.pem"), &ca.pem).unwrap();
    std::fs::write(folder.join("keys.json"), serde_json::json!({ "keys": [issuer.jwk] }).to_string())
        .unwrap();
    let proxy = builder.start().await;

    let refused = ask(&proxy, "/", "").await;
    refused.expect(401, "AUTH-REQUIRED");
    let asked = ["Bearer realm=\"shop.test\"", "Basic realm=\"shop\", charset=\"UTF-8\""];
    assert_eq!(refused.head.fields_of("www-authenticate"), asked, "all that would do, the dearest last");
    ask(&proxy, "/", &basic("ann", "wrong")).await.expect(401, "AUTH-WRONG");
    let forged = ask(&proxy, "/", &Issuer::new("one").token("eve")).await;
    forged.expect(401, "AUTH-WRONG");
    assert_eq!(forged.head.fields_of("www-authenticate").len(), 2);
    assert_eq!(origin.count(), 0);

    assert_eq!(ask(&proxy, "/", &basic("ann", "sesame")).await.text(), "ok");
    assert_eq!(ask(&proxy, "/", &issuer.token("bob")).await.text(), "ok");
    let config = |name: &str, serial| {
        let versions = [&rustls::version::TLS13];
        client_config_as(&proxy.ca_pem(), &["http/1.1"], &versions, &ca.client(name, serial, 10))
    };
    let mut robot = connect(config("robot", 1), proxy.https(), SITE).await.unwrap();
    assert_eq!(robot.ask("GET", "/", SITE, "").await.text(), "ok");
    // A certificate of somebody else is not enough, and no hindrance.
    let mut eve = connect(config("eve", 2), proxy.https(), SITE).await.unwrap();
    eve.ask("GET", "/", SITE, "").await.expect(403, "AUTH-DENIED");
    assert_eq!(eve.ask("GET", "/", SITE, &basic("ann", "sesame")).await.text(), "ok");
    let requests = origin.requests();
    let users: Vec<_> = requests.iter().map(|heard| heard.field("x-auth-user").unwrap_or("-")).collect();
    assert_eq!(users, ["ann", "bob", "Robot", "ann"]);
    assert!(requests.iter().all(|heard| heard.field("authorization").is_none()));
}
