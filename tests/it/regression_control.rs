//! What the control plane once got wrong, and must not again.

use crate::harness::{Origin, Proxy, wait_for};

/// `a.test` is older than `b.test`; each says its letter.
async fn two() -> (Origin, Origin, Proxy) {
    let (a, b) = (Origin::saying("a").await, Origin::saying("b").await);
    let proxy = Proxy::builder().site("a.test", &a.backends()).start().await;
    proxy.write_site("b.test", &b.backends());
    proxy.reload().await;
    (a, b, proxy)
}

async fn each_serves_its_own(proxy: &Proxy) {
    assert_eq!(proxy.get("a.test", "/").await.text(), "a");
    assert_eq!(proxy.get("b.test", "/").await.text(), "b");
}

#[tokio::test]
async fn a_restart_does_not_hand_a_host_to_an_older_site_that_claimed_it() {
    let (a, _b, mut proxy) = two().await;
    proxy.write_site("a.test", &format!("hosts = [\"a.test\", \"b.test\"]\n{}", a.backends()));
    proxy.reload().await;
    assert_eq!(proxy.site("a.test").await["state"], "quarantined");
    each_serves_its_own(&proxy).await;
    proxy.restart().await;
    assert_eq!(proxy.site("a.test").await["state"], "quarantined");
    assert_eq!(proxy.site("b.test").await["state"], "active");
    each_serves_its_own(&proxy).await;
}

#[tokio::test]
async fn who_claims_a_host_of_a_broken_site_keeps_its_own_last_version() {
    let (_a, b, mut proxy) = two().await;
    proxy.write_site("a.test", "backends = [");
    proxy.write_site("b.test", &format!("hosts = [\"b.test\", \"a.test\"]\n{}", b.backends()));
    let report = proxy.reload().await;
    assert!(report["diagnostics"].to_string().contains("goes on serving the host `a.test`"), "{report}");
    each_serves_its_own(&proxy).await;
    proxy.restart().await;
    each_serves_its_own(&proxy).await;
}

#[tokio::test]
async fn two_sites_that_swap_hosts_while_one_is_bad_both_stay_as_they_were() {
    let (a, _b, proxy) = two().await;
    proxy.write_site("a.test", &format!("hosts = [\"b.test\"]\n{}", a.backends()));
    proxy.write_site(
        "b.test",
        "hosts = [\"a.test\"]\nbackends = [\"127.0.0.1:1\"]\n\
         certificate = { cert = \"no.pem\", key = \"no.key\" }",
    );
    proxy.reload().await;
    each_serves_its_own(&proxy).await;
}

#[tokio::test]
async fn a_site_that_moved_unchanged_is_looked_for_in_its_new_file_after_a_restart() {
    let (a, _b, mut proxy) = two().await;
    proxy.remove_site("a.test");
    let moved = proxy.path().join("sites/moved.toml");
    std::fs::write(&moved, format!("[site.\"a.test\"]\n{}", a.backends())).unwrap();
    assert_eq!(proxy.reload().await["quarantined"].as_array().map(Vec::len), Some(0));
    std::fs::write(&moved, "[site.\"a.test\"\n").unwrap();
    proxy.restart().await;
    each_serves_its_own(&proxy).await;
}

#[tokio::test]
async fn a_second_definition_in_an_earlier_file_takes_no_site_away() {
    let (_a, _b, mut proxy) = two().await;
    let thief = Origin::saying("thief").await;
    let earlier = proxy.path().join("sites/0.toml");
    std::fs::write(&earlier, format!("[site.\"a.test\"]\n{}", thief.backends())).unwrap();
    let report = proxy.reload().await;
    assert!(report["diagnostics"].to_string().contains("0.toml"), "{report}");
    each_serves_its_own(&proxy).await;
    proxy.restart().await;
    each_serves_its_own(&proxy).await;
    // Once the file it lived in gives it up, it has moved.
    proxy.remove_site("a.test");
    proxy.reload().await;
    assert_eq!(proxy.get("a.test", "/").await.text(), "thief");
}

#[tokio::test]
async fn a_new_site_that_was_never_good_is_unavailable_and_not_unknown() {
    let (_a, _b, proxy) = two().await;
    proxy.write_site("new.test", "backends = [\"nonsense:port\"]");
    wait_for("the new site to be known", || async {
        proxy.reload().await;
        (proxy.site("new.test").await["state"] == "quarantined").then_some(())
    })
    .await;
    proxy.plain().await.get("new.test", "/").await.expect(503, "SITE-UNAVAILABLE");
    proxy.remove_site("new.test");
    proxy.reload().await;
    proxy.plain().await.get("new.test", "/").await.expect(404, "UNKNOWN-HOST");
}

#[tokio::test]
async fn a_last_good_version_that_cannot_serve_now_is_not_forgotten() {
    let origin = Origin::saying("a").await;
    let proxy = Proxy::builder().site("b.test", &origin.backends()).start().await;
    let (authority, aside) = (proxy.path().join("authority.pem"), proxy.path().join("aside.pem"));
    std::fs::copy(proxy.ca_file(), &authority).unwrap();
    let route = format!(
        "{}\n[[site.\"a.test\".route]]\npath = \"/inner/\"\nbackends = [\"https://127.0.0.1:1\"]\n\
         upstream = {{ ca_file = {authority:?} }}",
        origin.backends()
    );
    let mut proxy = proxy;
    proxy.write_site("a.test", &route);
    proxy.reload().await;
    assert_eq!(proxy.get("a.test", "/").await.text(), "a");
    proxy.write_site("a.test", "backends = [");
    std::fs::rename(&authority, &aside).unwrap();
    proxy.restart().await;
    assert_eq!(proxy.site("a.test").await["serving"], false);
    proxy.restart().await;
    assert_eq!(proxy.site("a.test").await["serving"], false);
    std::fs::rename(&aside, &authority).unwrap();
    proxy.reload().await;
    assert_eq!(proxy.get("a.test", "/").await.text(), "a");
}

#[tokio::test]
async fn check_finds_what_a_start_would_refuse_and_touches_nothing() {
    let (_a, _b, proxy) = two().await;
    let pair = rcgen::generate_simple_self_signed(["other.test".to_owned()]).unwrap();
    let stranger = rcgen::generate_simple_self_signed(["b.test".to_owned()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("a.pem"), pair.cert.pem()).unwrap();
    std::fs::write(at("a.key"), pair.signing_key.serialize_pem()).unwrap();
    std::fs::write(at("b.key"), stranger.signing_key.serialize_pem()).unwrap();
    let site = |cert: &str, key: &str| {
        let (cert, key) = (at(cert), at(key));
        format!("respond = {{ status = 200 }}\ncertificate = {{ cert = {cert:?}, key = {key:?} }}")
    };
    for (cert, key, code, said) in [
        ("a.pem", "none.key", 1, "does not exist"),
        ("a.pem", "b.key", 1, "belongs to another certificate"),
        ("a.pem", "a.key", 0, "not valid for the host `a.test`"),
    ] {
        proxy.write_site("a.test", &site(cert, key));
        proxy.edit_config(|text| text.replace("/state\"", "/elsewhere\""));
        let output = proxy.command(&["check"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(text.contains(said), "{text}");
    }
    assert!(!proxy.path().join("elsewhere").exists());
}

#[tokio::test]
async fn two_processes_do_not_share_a_state_folder() {
    let (_a, _b, proxy) = two().await;
    let text = std::fs::read_to_string(proxy.config()).unwrap();
    let other = proxy.path().join("other.toml");
    std::fs::write(&other, text.replace("admin.sock", "other.sock")).unwrap();
    let output = crate::harness::proxy::run_to_end(&["run", "--config", other.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("another tidegate runs with the state folder"), "{said}");
    assert!(!proxy.path().join("other.sock").exists());
    each_serves_its_own(&proxy).await;
}

/// The shipped configuration has its admin socket in the state folder; both locked that folder, and the process waited
/// for itself before it listened.
#[tokio::test]
async fn an_admin_socket_in_the_state_folder_does_not_block_the_start() {
    let origin = Origin::saying("ok").await;
    let builder = Proxy::builder();
    let socket = builder.folder().join("state/admin.sock");
    let proxy =
        builder.set("admin.socket", &format!("{socket:?}")).site("a.test", &origin.backends()).start().await;
    assert_eq!(proxy.get("a.test", "/").await.text(), "ok");
}

#[tokio::test]
async fn another_file_became_a_site_whose_own_could_not_be_read() {
    let (a, intruder) = (Origin::saying("a").await, Origin::saying("intruder").await);
    let mut proxy = Proxy::builder().site("a.test", &a.backends()).start().await;
    let other = proxy.path().join("sites/zz.toml");
    std::fs::write(other, format!("[site.\"a.test\"]\n{}\n", intruder.backends())).unwrap();
    proxy.reload().await;
    assert_eq!(proxy.get("a.test", "/").await.text(), "a", "the one read first");
    std::fs::write(proxy.path().join("sites/a.test.toml"), "[site.\"a.test\"\n").unwrap();
    let report = proxy.reload().await;
    assert!(report["diagnostics"].to_string().contains("which is broken just now"), "{report:#}");
    assert_eq!(proxy.site("a.test").await["state"], "quarantined");
    assert_eq!(proxy.get("a.test", "/").await.text(), "a");
    proxy.restart().await;
    assert_eq!(proxy.get("a.test", "/").await.text(), "a");
}
