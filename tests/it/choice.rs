//! Backends that choose what is spoken with them (`http = "auto"`): both versions, and each change of mind.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use crate::harness::client::{empty, full, read};
use crate::harness::tls::{Ca, Pair};
use crate::harness::{Answer, Origin, Proxy, wait_for, within};

const SITE: &str = "shop.test";
const NEW: &str = "HTTP/2.0";
const OLD: &str = "HTTP/1.1";

/// What a backend was asked: the version and the path.
type Seen = Arc<Mutex<Vec<(String, String)>>>;

/// A backend under TLS that speaks what the handshake chose.
struct Backend {
    address: SocketAddr,
    ca: Ca,
    pair: Pair,
    tls: Arc<Mutex<Arc<rustls::ServerConfig>>>,
    connections: Arc<Mutex<JoinSet<()>>>,
    accepted: Arc<AtomicUsize>,
    seen: Seen,
    task: JoinHandle<()>,
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn choosing(pair: &Pair, alpn: &[&str]) -> Arc<rustls::ServerConfig> {
    let mut config = (*pair.server_config()).clone();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    Arc::new(config)
}

impl Backend {
    async fn choosing(alpn: &[&str]) -> Backend {
        let ca = Ca::new("inner");
        let pair = ca.leaf(&["api.internal"]);
        let tls = Arc::new(Mutex::new(choosing(&pair, alpn)));
        let (connections, accepted, seen) =
            (Arc::<Mutex<JoinSet<()>>>::default(), Arc::default(), Seen::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = {
            let (tls, connections, seen) = (tls.clone(), connections.clone(), seen.clone());
            let accepted: Arc<AtomicUsize> = Arc::clone(&accepted);
            tokio::spawn(async move {
                while let Ok((tcp, _)) = listener.accept().await {
                    let (tls, seen, accepted) = (tls.lock().unwrap().clone(), seen.clone(), accepted.clone());
                    connections.lock().unwrap().spawn(async move {
                        let Ok(stream) = TlsAcceptor::from(tls).accept(tcp).await else { return };
                        accepted.fetch_add(1, Ordering::SeqCst);
                        speak(stream, seen).await;
                    });
                }
            })
        };
        Backend { address, ca, pair, tls, connections, accepted, seen, task }
    }

    /// Closes every connection and chooses otherwise from now on.
    async fn choose(&self, alpn: &[&str]) {
        *self.tls.lock().unwrap() = choosing(&self.pair, alpn);
        let mut old = std::mem::take(&mut *self.connections.lock().unwrap());
        old.shutdown().await;
    }

    async fn proxy(&self, more: &str) -> Proxy {
        let builder = Proxy::builder();
        let file = builder.folder().join("inner.pem");
        std::fs::write(&file, &self.ca.pem).unwrap();
        let site = format!(
            "backends = [\"https://{}\"]\nupstream = {{ http = \"auto\", ca_file = {file:?}, server_name = \
             \"api.internal\" }}\n{more}",
            self.address
        );
        builder.site(SITE, &site).start().await
    }

    fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// The version in which a path was asked for last.
    fn last(&self, path: &str) -> Option<String> {
        let seen = self.seen.lock().unwrap();
        seen.iter().rev().find(|(_, seen)| seen == path).map(|(version, _)| version.clone())
    }
}

async fn speak(stream: tokio_rustls::server::TlsStream<tokio::net::TcpStream>, seen: Seen) {
    let new = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let service = service_fn(move |request| answer(request, seen.clone()));
    let io = TokioIo::new(stream);
    if new {
        let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(io, service)
            .await;
    } else {
        let http = hyper::server::conn::http1::Builder::new().serve_connection(io, service);
        let _ = http.with_upgrades().await;
    }
}

/// Says what arrived; an upgrade becomes an echo.
async fn answer(mut request: Request<Incoming>, seen: Seen) -> hyper::Result<Response<Full<Bytes>>> {
    let (version, path) = (format!("{:?}", request.version()), request.uri().path().to_string());
    seen.lock().unwrap().push((version.clone(), path.clone()));
    if let Some(protocol) = request.headers().get(header::UPGRADE).cloned() {
        let upgraded = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let (mut from, mut to) = tokio::io::split(TokioIo::new(upgraded.await.unwrap()));
            let _ = tokio::io::copy(&mut from, &mut to).await;
        });
        let response = Response::builder().status(101).header(header::UPGRADE, protocol);
        return Ok(response.header(header::CONNECTION, "upgrade").body(Full::default()).unwrap());
    }
    let method = request.method().clone();
    let length = request.into_body().collect().await?.to_bytes().len();
    Ok(Response::new(Full::from(format!("{version} {method} {path} {length}"))))
}

#[tokio::test]
async fn what_a_backend_chooses_is_spoken() {
    for (alpn, spoken) in [
        (&["h2"][..], NEW),
        (&["http/1.1"], OLD),
        (&["h2", "http/1.1"], NEW),
        (&["http/1.1", "h2"], OLD),
        (&[], OLD),
    ] {
        let backend = Backend::choosing(alpn).await;
        let proxy = backend.proxy("").await;
        let mut wire = proxy.wire(SITE).await;
        let mut client = proxy.h2(SITE).await;
        for _ in 0..2 {
            assert_eq!(wire.get(SITE, "/a").await.text(), format!("{spoken} GET /a 0"), "{alpn:?}");
            assert_eq!(
                wire.post(SITE, "/b", "hello").await.text(),
                format!("{spoken} POST /b 5"),
                "{alpn:?}"
            );
            for method in ["PUT", "GET"] {
                wire.send(format!(
                    "{method} /c HTTP/1.1\r\nHost: {SITE}\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
                ))
                .await;
                let reply = wire.reply_to(method).await;
                assert_eq!(reply.text(), format!("{spoken} {method} /c 3"), "{alpn:?}");
            }
            assert_eq!(client.get("/d").await.text(), format!("{spoken} GET /d 0"), "{alpn:?}");
            let large = client.request("POST", "/e").body(full(vec![7; 200_000])).unwrap();
            assert_eq!(client.send(large).await.text(), format!("{spoken} POST /e 200000"), "{alpn:?}");
        }
        // A body with a GET costs an HTTP/1.1 connection, see `forward::Lease`.
        assert_eq!(backend.accepted(), if spoken == NEW { 1 } else { 3 }, "{alpn:?}: connections are kept");
    }
}

#[tokio::test]
async fn requests_that_come_together_first_wait_for_one_choice() {
    for (alpn, spoken) in [("h2", NEW), ("http/1.1", OLD)] {
        let backend = Backend::choosing(&[alpn]).await;
        let proxy = backend.proxy("").await;
        let client = proxy.h2(SITE).await;
        let mut asked = JoinSet::new();
        for _ in 0..20 {
            let mut sender = client.sender.clone();
            let request = client.request("GET", "/").body(empty()).unwrap();
            asked.spawn(
                async move { read(sender.send_request(request).await.unwrap()).await.unwrap().text() },
            );
        }
        let answers = within("all answers", asked.join_all()).await;
        assert!(answers.iter().all(|text| *text == format!("{spoken} GET / 0")), "{answers:?}");
        if spoken == NEW {
            assert_eq!(backend.accepted(), 1, "one connection carries all");
        }
    }
}

#[tokio::test]
async fn tunnels_go_over_http1_whatever_the_backend_chooses_otherwise() {
    for alpn in [&["h2", "http/1.1"][..], &["http/1.1"]] {
        let backend = Backend::choosing(alpn).await;
        let proxy = backend.proxy("").await;
        assert_eq!(proxy.get(SITE, "/").await.status, 200);
        let mut wire = proxy.wire(SITE).await;
        let fields = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                      Sec-WebSocket-Version: 13\r\n";
        let reply = wire.ask("GET", "/ws", SITE, fields).await;
        assert_eq!(reply.status, 101, "{}", reply.raw_head());
        wire.send("hello").await;
        assert_eq!(within("the echo", wire.exactly(5)).await.unwrap(), b"hello");
        assert_eq!(backend.last("/ws").as_deref(), Some(OLD));
        // What the backend chose for ordinary requests is not forgotten over that.
        let spoken = if alpn.len() == 2 { NEW } else { OLD };
        assert_eq!(proxy.get(SITE, "/").await.text(), format!("{spoken} GET / 0"));
    }
}

#[tokio::test]
async fn a_backend_that_changes_its_mind_costs_nobody_a_request() {
    let backend = Backend::choosing(&["http/1.1"]).await;
    let proxy = backend.proxy("").await;
    let mut wire = proxy.wire(SITE).await;
    assert_eq!(wire.get(SITE, "/").await.text(), format!("{OLD} GET / 0"));
    // It will hear no more of HTTP/1.1, though it chose that a moment ago.
    backend.choose(&["h2"]).await;
    for _ in 0..3 {
        assert_eq!(wire.get(SITE, "/").await.text(), format!("{NEW} GET / 0"));
    }
    backend.choose(&["http/1.1"]).await;
    for _ in 0..3 {
        assert_eq!(wire.get(SITE, "/").await.text(), format!("{OLD} GET / 0"));
    }
}

#[tokio::test]
async fn a_plain_backend_has_no_choice_and_gets_http1_with_all_it_can() {
    let origin = Origin::scripted(|mut x| async move {
        assert_eq!(x.request.field("expect"), Some("100-continue"));
        x.write("HTTP/1.1 100 Continue\r\n\r\n").await.ok()?;
        x.read_body().await.ok()?;
        x.answer(Answer::ok("plain")).await.ok()?;
        Some(x)
    })
    .await;
    let proxy =
        Proxy::with_site(SITE, &format!("{}\nupstream = {{ http = \"auto\" }}", origin.backends())).await;
    let mut wire = proxy.wire(SITE).await;
    wire.send(format!("PUT / HTTP/1.1\r\nHost: {SITE}\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"))
        .await;
    assert_eq!(within("100 Continue", wire.head()).await.unwrap().unwrap().second(), "100");
    wire.send("hi").await;
    assert_eq!(wire.reply_to("PUT").await.text(), "plain");
    assert!(origin.only().head.line.ends_with(OLD));
}

#[tokio::test]
async fn health_checks_ask_in_the_version_that_the_backend_chooses() {
    for (alpn, spoken) in [("h2", NEW), ("http/1.1", OLD)] {
        let backend = Backend::choosing(&[alpn]).await;
        let proxy = backend.proxy("health = { path = \"/up\", interval = \"50ms\" }").await;
        wait_for("three checks", || async {
            let checks = backend.seen.lock().unwrap().iter().filter(|(_, path)| path == "/up").count();
            (checks >= 3).then_some(())
        })
        .await;
        assert_eq!(backend.last("/up").as_deref(), Some(spoken));
        assert_eq!(proxy.status().await["endpoints"][0]["state"], "up");
        assert_eq!(proxy.get(SITE, "/").await.status, 200);
    }
}

#[tokio::test]
async fn a_choice_and_a_proxy_protocol_header_exclude_each_other() {
    let site =
        "backends = [\"https://127.0.0.1:9\"]\nupstream = { http = \"auto\", proxy_protocol = \"v1\" }";
    let proxy = Proxy::with_site(SITE, site).await;
    assert!(
        proxy.stdout().contains("`http = \"auto\"` exclude each other")
            || proxy.stderr().contains("exclude each other")
    );
}
