//! Who is asked: keys and sessions that stay where they are, backups that step in, shares that go to a new version.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::harness::wire::{Reply, Wire};
use crate::harness::{Answer, Origin, Proxy, wait_for};

const SITE: &str = "shop.test";

async fn origins<const N: usize>(names: [&'static str; N]) -> Vec<Origin> {
    let mut all = Vec::new();
    for name in names {
        all.push(Origin::saying(name).await);
    }
    all
}

fn backends<'a>(origins: impl IntoIterator<Item = &'a Origin>) -> String {
    let all: Vec<String> = origins.into_iter().map(|origin| format!("\"{}\"", origin.address())).collect();
    format!("backends = [{}]\n", all.join(", "))
}

async fn with(wire: &mut Wire, fields: &str) -> Reply {
    let reply = wire.ask("GET", "/", SITE, fields).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply
}

/// Which backend each of so many users is sent to.
async fn homes(proxy: &Proxy, users: usize) -> BTreeMap<usize, String> {
    let mut wire = proxy.wire(SITE).await;
    let mut homes = BTreeMap::new();
    for user in 0..users {
        homes.insert(user, with(&mut wire, &format!("X-User: user-{user}\r\n")).await.text());
    }
    homes
}

#[tokio::test]
async fn a_key_keeps_its_backend_over_reloads_restarts_and_the_loss_of_others() {
    let mut all = origins(["one", "two", "three", "four"]).await;
    let balance = "balance = { by = \"hash\", key = \"header:X-User\" }\n";
    let site = |all: &[Origin]| format!("{}{balance}", backends(all));
    let mut proxy = Proxy::with_site(SITE, &site(&all)).await;
    let before = homes(&proxy, 60).await;
    assert!(["one", "two", "three", "four"].iter().all(|name| before.values().any(|home| home == name)));
    assert_eq!(homes(&proxy, 60).await, before, "again");

    proxy.write_site(SITE, &format!("{}{balance}max_body = \"1MiB\"", backends(all.iter().rev())));
    proxy.reload().await;
    assert_eq!(homes(&proxy, 60).await, before, "the order of the list does not matter");
    proxy.restart().await;
    assert_eq!(homes(&proxy, 60).await, before, "another process agrees");

    // It dies: what was its own is shared by the others, and nobody else is moved.
    all.remove(1).kill().await;
    let during = homes(&proxy, 60).await;
    for (user, home) in &before {
        assert_eq!(during[user] == *home, home != "two", "user {user}: {home}, then {}", during[user]);
    }
    let heirs: Vec<&String> =
        during.iter().filter(|(user, _)| before[user] == "two").map(|(_, home)| home).collect();
    assert!(heirs.iter().any(|heir| *heir != heirs[0]), "not one neighbour alone: {heirs:?}");
}

#[tokio::test]
async fn a_request_without_the_key_is_served_all_the_same() {
    let all = origins(["one", "two"]).await;
    let site = format!("{}balance = {{ by = \"hash\", key = \"cookie:session\" }}", backends(&all));
    let proxy = Proxy::with_site(SITE, &site).await;
    let mut wire = proxy.wire(SITE).await;
    for _ in 0..40 {
        with(&mut wire, "Cookie: other=1\r\n").await;
    }
    assert!(all.iter().all(|origin| origin.count() > 0), "spread over all");
    let first = with(&mut wire, "Cookie: other=1; session=abc\r\n").await.text();
    for _ in 0..20 {
        assert_eq!(with(&mut wire, "Cookie: session=abc\r\n").await.text(), first);
    }
}

/// `name=value` of the `Set-Cookie`, if there is one.
fn cookie(reply: &Reply) -> Option<String> {
    reply.field("set-cookie").map(|set| set.split(';').next().unwrap().to_owned())
}

/// Every request of the session is answered at its home, and the client is told nothing new.
async fn stays(proxy: &Proxy, session: &str, home: &str) {
    let mut wire = proxy.wire(SITE).await;
    for _ in 0..20 {
        let reply = with(&mut wire, &format!("Cookie: a=1; {session}; b=2\r\n")).await;
        assert_eq!((reply.text().as_str(), cookie(&reply)), (home, None));
    }
}

#[tokio::test]
async fn a_session_survives_a_restart_and_other_backends_and_no_backend_sees_its_cookie() {
    let all = origins(["one", "two", "three"]).await;
    let balance = "balance = \"sticky\"\n";
    let mut proxy = Proxy::with_site(SITE, &format!("{}{balance}", backends(&all))).await;
    let first = proxy.get(SITE, "/").await;
    let set = first.field("set-cookie").expect("a cookie").to_owned();
    assert!(set.ends_with("; Path=/; HttpOnly; SameSite=Lax; Secure"), "{set}");
    let session = cookie(&first).unwrap();
    let index = ["one", "two", "three"].iter().position(|name| *name == first.text()).unwrap();
    assert!(!set.contains(&all[index].address().port().to_string()), "not the address: {set}");
    let home = first.text();
    stays(&proxy, &session, &home).await;
    assert_eq!(all[index].requests().last().unwrap().field("cookie"), Some("a=1; b=2"));
    proxy.restart().await;
    stays(&proxy, &session, &home).await;

    // Others come, the order changes, one goes: not this session's business.
    let fourth = Origin::saying("four").await;
    let left: Vec<&Origin> = [&fourth, &all[index], &all[(index + 1) % 3]].into();
    proxy.write_site(SITE, &format!("{}{balance}", backends(left)));
    proxy.reload().await;
    stays(&proxy, &session, &home).await;

    // Its own goes: another one, and the client is told.
    proxy.write_site(SITE, &format!("{}{balance}", backends([&fourth])));
    proxy.reload().await;
    let mut wire = proxy.wire(SITE).await;
    let moved = with(&mut wire, &format!("Cookie: {session}\r\n")).await;
    assert_eq!(moved.text(), "four");
    let new = cookie(&moved).expect("a new cookie");
    assert_ne!(new, session);
    assert_eq!(cookie(&with(&mut wire, &format!("Cookie: {new}\r\n")).await), None);
}

#[tokio::test]
async fn a_forged_cookie_counts_as_none_and_a_dead_backend_ends_its_sessions() {
    let mut all = origins(["one", "two"]).await;
    let site = format!("{}balance = {{ by = \"sticky\", cookie = \"at\", ttl = \"1h\" }}", backends(&all));
    let proxy = Proxy::with_site(SITE, &site).await;
    let mut wire = proxy.wire(SITE).await;
    for forged in [
        "at=".to_owned(),
        "at=AAAAAAAAAAAAAAAAAAAAAA".into(),
        format!("at={}", all[0].address()),
        format!("at={}", "x".repeat(4_000)),
        "at=\"; at=%00".into(),
    ] {
        let reply = with(&mut wire, &format!("Cookie: {forged}\r\n")).await;
        let set = reply.field("set-cookie").expect("a good one in its place");
        assert!(set.contains("; Max-Age=3600; "), "{set}");
    }
    let session = cookie(&with(&mut wire, "").await).unwrap();
    let at = with(&mut wire, &format!("Cookie: {session}\r\n")).await.text();
    let (dying, other) = if at == "one" { (0, "two") } else { (1, "one") };
    all.remove(dying).kill().await;
    let moved = with(&mut wire, &format!("Cookie: {session}\r\n")).await;
    assert_eq!(moved.text(), other);
    assert_ne!(cookie(&moved).expect("a new cookie"), session);
}

#[tokio::test]
async fn what_drains_keeps_its_sessions_and_gets_no_new_ones() {
    let all = origins(["one", "two"]).await;
    let proxy = Proxy::with_site(SITE, &format!("{}balance = \"sticky\"\n", backends(&all))).await;
    let mut wire = proxy.wire(SITE).await;
    let session = loop {
        let reply = with(&mut wire, "").await;
        if reply.text() == "one" {
            break cookie(&reply).unwrap();
        }
    };
    let (one, two) = (all[0].address(), all[1].address());
    let draining =
        format!("backends = [{{ address = \"{one}\", weight = 0 }}, \"{two}\"]\nbalance = \"sticky\"\n");
    proxy.write_site(SITE, &draining);
    proxy.reload().await;
    for _ in 0..20 {
        assert_eq!(with(&mut wire, &format!("Cookie: {session}\r\n")).await.text(), "one");
        assert_eq!(with(&mut wire, "").await.text(), "two");
    }
}

#[tokio::test]
async fn over_plain_http_the_cookie_is_not_for_https_alone() {
    let origin = Origin::saying("one").await;
    let site = format!("{}balance = \"sticky\"\nplain_http = true", origin.backends() + "\n");
    let proxy = Proxy::with_site(SITE, &site).await;
    let reply = proxy.plain().await.get(SITE, "/").await;
    let set = reply.field("set-cookie").expect("a cookie");
    assert!(set.starts_with("tidegate=") && !set.contains("Secure"), "{set}");
}

#[tokio::test]
async fn a_backup_takes_over_and_gives_back_and_no_request_fails() {
    let well = Arc::new(AtomicBool::new(true));
    let answer = well.clone();
    let primary = Origin::answering(move |request| match request.target() {
        "/up" if !answer.load(Ordering::SeqCst) => Answer::new(503),
        _ => Answer::ok("primary"),
    })
    .await;
    let backup = Origin::saying("backup").await;
    let site = format!(
        "backends = [\"{}\", {{ address = \"{}\", backup = true }}]\n\
         health = {{ path = \"/up\", interval = \"20ms\", rise = 1, fall = 1 }}",
        primary.address(),
        backup.address()
    );
    let proxy = Proxy::with_site(SITE, &site).await;
    for _ in 0..2 {
        let mut wire = proxy.wire(SITE).await;
        for _ in 0..30 {
            assert_eq!(with(&mut wire, "").await.text(), "primary");
        }
        well.store(false, Ordering::SeqCst);
        wait_for("the backup to serve", || async {
            (proxy.get(SITE, "/").await.text() == "backup").then_some(())
        })
        .await;
        for _ in 0..30 {
            assert_eq!(with(&mut wire, "").await.text(), "backup");
        }
        well.store(true, Ordering::SeqCst);
        wait_for("the primary to serve", || async {
            (proxy.get(SITE, "/").await.text() == "primary").then_some(())
        })
        .await;
    }
    assert!(proxy.access_log().iter().all(|record| record["status"] == 200));
}

#[tokio::test]
async fn a_split_sends_its_share_and_clients_may_choose() {
    let all = origins(["main", "new"]).await;
    let site = format!(
        "{}split = [{{ name = \"canary\", percent = 20, header = \"X-Canary\", cookie = \"canary\", backends = [\"{}\"] }}]",
        backends([&all[0]]),
        all[1].address()
    );
    let proxy = Proxy::with_site(SITE, &site).await;
    let mut wire = proxy.wire(SITE).await;
    for _ in 0..1_000 {
        with(&mut wire, "").await;
    }
    // Of 1,000 draws of 20 %: within 6.3 standard deviations, missed by chance less than once in a billion runs.
    let drawn = all[1].count();
    assert!((120..=280).contains(&drawn), "{drawn}");
    for (fields, expected) in [
        ("X-Canary: always\r\n", "new"),
        ("X-Canary: never\r\n", "main"),
        ("Cookie: canary=always\r\n", "new"),
        ("Cookie: canary=never\r\n", "main"),
        ("X-Canary: never\r\nCookie: canary=always\r\n", "main"),
    ] {
        for _ in 0..25 {
            assert_eq!(with(&mut wire, fields).await.text(), expected, "{fields}");
        }
    }

    let log = proxy.records(1_125).await;
    let to = |service: &str| log.iter().filter(|record| record["service"] == service).count();
    assert_eq!((to("shop.test//"), to("shop.test//#canary")), (all[0].count(), all[1].count()));
    let metrics = proxy.metrics().await;
    let counted = |route| metrics.sum("tidegate_requests_total", &[("site", SITE), ("route", route)]);
    assert_eq!((counted("/"), counted("/#canary")), (all[0].count() as f64, all[1].count() as f64));
}

#[tokio::test]
async fn a_split_by_a_key_keeps_everybody_on_their_side_and_more_percent_keep_those_who_were_there() {
    let all = origins(["main", "new"]).await;
    let site = |percent| {
        format!(
            "{}split = [{{ name = \"canary\", percent = {percent}, backends = [\"{}\"] }}]\nsplit_by = \"header:X-User\"",
            backends([&all[0]]),
            all[1].address()
        )
    };
    let proxy = Proxy::with_site(SITE, &site(30)).await;
    let before = homes(&proxy, 100).await;
    let share = before.values().filter(|home| *home == "new").count();
    assert!((5..=60).contains(&share), "{share}");
    assert_eq!(homes(&proxy, 100).await, before);
    proxy.write_site(SITE, &site(60));
    proxy.reload().await;
    let after = homes(&proxy, 100).await;
    assert!(before.iter().all(|(user, home)| home == "main" || after[user] == "new"), "nobody flips back");
    assert!(after.values().filter(|home| *home == "new").count() > share);
}

/// The session names a backend of one side: without this, half of the requests of a client would lose it.
#[tokio::test]
async fn a_session_keeps_its_side_of_a_split() {
    let all = origins(["main", "new"]).await;
    let site = format!(
        "{}balance = \"sticky\"\nsplit = [{{ name = \"canary\", percent = 50, backends = [\"{}\"] }}]",
        backends([&all[0]]),
        all[1].address()
    );
    let proxy = Proxy::with_site(SITE, &site).await;
    let mut wire = proxy.wire(SITE).await;
    for wanted in ["main", "new"] {
        let session = loop {
            let reply = with(&mut wire, "").await;
            if reply.text() == wanted {
                break cookie(&reply).expect("a cookie of either side");
            }
        };
        for _ in 0..20 {
            let reply = with(&mut wire, &format!("Cookie: {session}\r\n")).await;
            assert_eq!((reply.text().as_str(), cookie(&reply)), (wanted, None));
        }
    }
}

#[tokio::test]
async fn the_health_check_asks_the_backends_of_a_split_too() {
    let (main, sick) = (Origin::saying("main").await, Origin::answering(|_| Answer::new(500)).await);
    let site = format!(
        "{}health = {{ path = \"/up\", interval = \"20ms\", fall = 1 }}\nsplit = [{{ name = \"canary\", backends = [\"{}\"] }}]",
        main.backends() + "\n",
        sick.address()
    );
    let proxy = Proxy::with_site(SITE, &site).await;
    wait_for("the endpoint of the split to be down", || async {
        let status = proxy.status().await;
        let all = status["endpoints"].as_array()?.clone();
        all.into_iter().find(|one| one["service"] == "shop.test//#canary" && one["state"] == "down")
    })
    .await;
}
