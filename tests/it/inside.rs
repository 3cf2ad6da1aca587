//! Encrypted inside: the built-in authority signs endpoints and the certificate they are shown.

use crate::harness::tls::Pair;
use crate::harness::{Answer, Origin, Proxy, wait_for};

const SITE: &str = "shop.test";

/// A certificate for an endpoint, asked for as an operator does; the folder it lies in.
fn issue(proxy: &Proxy, folder: &str, names: &[&str]) -> (Pair, String) {
    let out = proxy.path().join(folder);
    let mut args = vec!["certs", "issue"];
    args.extend(names);
    args.extend(["--out", out.to_str().unwrap()]);
    let said = proxy.command(&args);
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let read = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
    (Pair { cert: read("cert.pem"), key: read("key.pem") }, read("ca.pem"))
}

#[tokio::test]
async fn endpoints_get_certificates_and_both_sides_prove_who_they_are() {
    let builder = Proxy::builder().site("other.test", "respond = { status = 204 }");
    let proxy = builder.start().await;
    let (pair, authority) = issue(&proxy, "web-1", &["web-1.internal", "127.0.0.1"]);
    assert_eq!(authority, proxy.ca_pem());
    let mode = std::fs::metadata(proxy.path().join("web-1/key.pem")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777, 0o600);
    let origin = Origin::answering_tls(pair.server_config_asking(&authority), |_| Answer::ok("inside")).await;
    // Found by a source, spoken to by TLS, each proving itself.
    std::fs::write(proxy.path().join("web.backends"), format!("{}\n", origin.address())).unwrap();
    let found = "backends = [{ address = \"file:../web.backends\", tls = true }]\nrequire_encrypted_backends = true\n";
    proxy.write_site(SITE, &format!("{found}upstream = {{ internal_ca = \"mutual\" }}"));
    wait_for("the endpoint to answer", || async {
        (proxy.try_get(SITE, "/").await.ok()?.text() == "inside").then_some(())
    })
    .await;
    assert_eq!(proxy.metrics().await.sum("tidegate_upstream_plaintext_bytes_total", &[]), 0.0);
    // Who only trusts shows nothing, and this endpoint wants to see something.
    proxy.write_site(SITE, &format!("{found}upstream = {{ internal_ca = \"trust\" }}"));
    proxy.reload().await;
    assert_eq!(proxy.get(SITE, "/").await.status, 502);
    // A reload with the same settings keeps the certificate that is shown.
    proxy.write_site(SITE, &format!("{found}upstream = {{ internal_ca = \"mutual\" }}"));
    proxy.reload().await;
    let nothing = proxy.reload().await;
    assert_eq!(nothing["changed"], false, "{nothing}");
    assert_eq!(proxy.get(SITE, "/").await.text(), "inside");
}

#[tokio::test]
async fn an_endpoint_signed_by_somebody_else_is_refused() {
    let proxy = Proxy::with_site("other.test", "respond = { status = 204 }").await;
    let stranger = crate::harness::tls::Ca::new("stranger");
    let origin =
        Origin::answering_tls(stranger.leaf(&["127.0.0.1"]).server_config(), |_| Answer::ok("no")).await;
    let site =
        format!("backends = [\"https://{}\"]\nupstream = {{ internal_ca = \"trust\" }}", origin.address());
    proxy.write_site(SITE, &site);
    proxy.reload().await;
    assert_eq!(proxy.get(SITE, "/").await.status, 502);
    assert_eq!(proxy.record_with("UPSTREAM-TLS").await["status"], 502);
}

#[tokio::test]
async fn what_is_no_name_gets_no_certificate_and_leaves_no_file() {
    let proxy = Proxy::with_site("other.test", "respond = { status = 204 }").await;
    let out = proxy.path().join("none");
    for (name, valid, expected) in [
        ("web_1 internal", "24h", "web_1 internal"),
        ("https://web", "24h", "is not a host name"),
        ("web.internal", "soon", "--valid"),
    ] {
        let said = proxy.command(&["certs", "issue", name, "--valid", valid, "--out", out.to_str().unwrap()]);
        let complaint = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(!said.status.success() && complaint.contains(expected), "{name}: {complaint}");
        assert!(!out.exists());
    }
}
