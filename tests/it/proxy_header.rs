//! PROXY protocol towards backends: they learn the client's address, and never a wrong one.

use std::net::SocketAddr;

use crate::harness::tls::Ca;
use crate::harness::{Answer, Origin, Proxy, wait_until, within};

const SITE: &str = "shop.test";

/// Answers with what the PROXY header said: the origin sees it before the request's own line.
async fn origin() -> Origin {
    Origin::scripted(|mut x| async move {
        let line = x.request.head.line.clone();
        x.answer(Answer::ok(line)).await.ok()?;
        Some(x)
    })
    .await
}

#[tokio::test]
async fn version_1_names_the_client_in_front_of_the_first_request_of_a_connection() {
    let origin = origin().await;
    let site = format!("{}\nupstream = {{ proxy_protocol = \"v1\" }}", origin.backends());
    let proxy = Proxy::with_site(SITE, &site).await;
    let mut wire = proxy.wire(SITE).await;
    let client = wire.io.tcp().unwrap().local_addr().unwrap();
    let first = wire.get(SITE, "/a").await.text();
    let port = proxy.https().port();
    assert_eq!(first, format!("PROXY TCP4 127.0.0.1 127.0.0.1 {} {port}", client.port()));
    // The same client's next request, on the same connection: no second header.
    assert_eq!(wire.get(SITE, "/b").await.text(), "GET /b HTTP/1.1");
    assert_eq!(origin.accepted(), 1);
}

fn v1(source: &str) -> String {
    format!("PROXY TCP4 {source} 192.0.2.200 4711 443\r\n")
}

#[tokio::test]
async fn a_connection_carries_the_requests_of_one_client_alone() {
    let origin = origin().await;
    let site = format!("{}\nplain_http = true\nupstream = {{ proxy_protocol = \"v1\" }}", origin.backends());
    let proxy = Proxy::builder()
        .set("server.proxy_protocol", "true")
        .set("server.trusted_proxies", "[\"127.0.0.0/8\"]")
        .site(SITE, &site)
        .start()
        .await;
    for (client, text) in [
        ("203.0.113.1", "PROXY TCP4 203.0.113.1 192.0.2.200 4711 443"),
        ("203.0.113.2", "PROXY TCP4 203.0.113.2 192.0.2.200 4711 443"),
        ("203.0.113.1", "GET /3 HTTP/1.1"),
        ("203.0.113.2", "GET /4 HTTP/1.1"),
        ("203.0.113.3", "PROXY TCP4 203.0.113.3 192.0.2.200 4711 443"),
    ] {
        let mut wire = proxy.plain().await;
        wire.send(v1(client)).await;
        let path = text.split(' ').nth(1).filter(|path| path.starts_with('/')).unwrap_or("/");
        assert_eq!(wire.get(SITE, path).await.text(), text, "{client}");
    }
    assert_eq!(origin.accepted(), 3);
}

#[tokio::test]
async fn behind_a_trusted_proxy_the_client_of_its_field_is_named() {
    let origin = origin().await;
    let site = format!("{}\nplain_http = true\nupstream = {{ proxy_protocol = \"v1\" }}", origin.backends());
    let proxy =
        Proxy::builder().set("server.trusted_proxies", "[\"127.0.0.0/8\"]").site(SITE, &site).start().await;
    let mut wire = proxy.plain().await;
    let port = proxy.http().port();
    for (client, text) in [
        ("203.0.113.1", format!("PROXY TCP4 203.0.113.1 127.0.0.1 0 {port}")),
        ("2001:db8::1", format!("PROXY TCP6 2001:db8::1 ::ffff:127.0.0.1 0 {port}")),
    ] {
        let reply = wire.ask("GET", "/", SITE, &format!("X-Forwarded-For: {client}\r\n")).await;
        assert_eq!(reply.text(), text);
    }
}

#[tokio::test]
async fn version_2_stands_in_front_of_tls() {
    let ca = Ca::new("inner");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(ca.leaf(&["api.internal"]).server_config());
    let backend = tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut tcp, _) = listener.accept().await.unwrap();
        let mut header = [0u8; 28];
        tcp.read_exact(&mut header).await.unwrap();
        let mut tls = acceptor.accept(tcp).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            tls.read_buf(&mut head).await.unwrap();
        }
        tls.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        header
    });
    let builder = Proxy::builder();
    let file = builder.folder().join("inner.pem");
    std::fs::write(&file, ca.pem).unwrap();
    let site = format!(
        "backends = [\"https://{address}\"]\nupstream = {{ proxy_protocol = \"v2\", ca_file = {file:?}, server_name = \"api.internal\" }}"
    );
    let proxy = builder.site(SITE, &site).start().await;
    let mut wire = proxy.wire(SITE).await;
    let client: SocketAddr = wire.io.tcp().unwrap().local_addr().unwrap();
    assert_eq!(wire.get(SITE, "/").await.status, 200);
    let header = within("the backend", backend).await.unwrap();
    assert_eq!(&header[..16], b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c");
    assert_eq!(&header[16..24], [127, 0, 0, 1, 127, 0, 0, 1]);
    assert_eq!(&header[24..26], client.port().to_be_bytes());
    assert_eq!(&header[26..28], proxy.https().port().to_be_bytes());
}

#[tokio::test]
async fn health_checks_speak_for_themselves() {
    for (version, first) in [("v1", "PROXY UNKNOWN"), ("v2", "")] {
        let origin = origin().await;
        let site = format!(
            "{}\nhealth = {{ path = \"/up\", interval = \"200ms\" }}\nupstream = {{ proxy_protocol = \"{version}\" }}",
            origin.backends()
        );
        let _proxy = Proxy::with_site(SITE, &site).await;
        wait_until("a probe", || origin.count() > 0).await;
        assert_eq!(origin.requests()[0].head.line, first);
    }
}

#[tokio::test]
async fn a_reload_that_turns_it_on_leaves_no_old_connection_in_use() {
    let origin = origin().await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let mut wire = proxy.wire(SITE).await;
    assert_eq!(wire.get(SITE, "/").await.text(), "GET / HTTP/1.1");
    proxy.write_site(SITE, &format!("{}\nupstream = {{ proxy_protocol = \"v1\" }}", origin.backends()));
    proxy.reload().await;
    assert!(wire.get(SITE, "/").await.text().starts_with("PROXY TCP4 127.0.0.1"));
    proxy.write_site(SITE, &origin.backends());
    proxy.reload().await;
    assert_eq!(wire.get(SITE, "/").await.text(), "GET / HTTP/1.1");
}
