//! Tunnels: which are opened, which are not, and every way of asking meeting every way of agreeing.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use bytes::Bytes;
use h2::client::SendRequest;
use h2::ext::Protocol;
use h2::{RecvStream, SendStream};
use http::{Method, Request, Response};

use crate::harness::client::empty;
use crate::harness::h2_origin::{self, H2Origin, Settings};
use crate::harness::{Answer, Origin, Proxy, Wire, tool, wait_until, within};

const SITE: &str = "shop.test";
const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

fn accept(key: &str) -> String {
    let mut digest = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY);
    digest.update(key.as_bytes());
    digest.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    base64::engine::general_purpose::STANDARD.encode(digest.finish())
}

/// Agrees to whatever is asked for, in HTTP/1.1, and echoes.
async fn echo() -> Origin {
    Origin::scripted(|mut x| async move {
        let Some(protocol) = x.request.field("upgrade").map(str::to_owned) else {
            x.answer(Answer::ok("no upgrade")).await.ok()?;
            return Some(x);
        };
        let proof = x.request.field("sec-websocket-key").map(accept).unwrap_or_default();
        x.write(format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\nSec-WebSocket-Accept: {proof}\r\n\
             Sec-WebSocket-Protocol: chat\r\n\r\nearly"
        ))
        .await
        .ok()?;
        loop {
            if x.wire.ahead.is_empty() && x.wire.fill().await.ok()? == 0 {
                return None;
            }
            let bytes = std::mem::take(&mut x.wire.ahead);
            x.write(bytes).await.ok()?;
        }
    })
    .await
}

/// The same in HTTP/2.
async fn echo_h2(takes_tunnels: bool) -> H2Origin {
    H2Origin::scripted(Settings { takes_tunnels, ..Settings::default() }, |mut stream| async move {
        if stream.head.method != Method::CONNECT {
            return stream.answer(200, "no tunnel").await;
        }
        assert_eq!(stream.head.extensions.get::<Protocol>().unwrap().as_str(), "websocket");
        let mut out = stream.head(200, &[("sec-websocket-protocol", "chat")], false);
        out.send_data("early".into(), false).unwrap();
        while let Some(Ok(piece)) = stream.body.data().await {
            let _ = stream.body.flow_control().release_capacity(piece.len());
            if h2_origin::send(&mut out, piece, false).await.is_err() {
                return;
            }
        }
        let _ = out.send_data(Bytes::new(), true);
    })
    .await
}

/// An HTTP/2 client that knows that the proxy takes extended CONNECT.
async fn client(proxy: &Proxy) -> SendRequest<Bytes> {
    let client = proxy.bare_h2(SITE).await;
    wait_until("SETTINGS_ENABLE_CONNECT_PROTOCOL", || client.is_extended_connect_protocol_enabled()).await;
    client
}

/// Asks for a tunnel over HTTP/2.
async fn connect(
    client: &mut SendRequest<Bytes>,
    protocol: &'static str,
    path: &str,
) -> (Response<RecvStream>, SendStream<Bytes>) {
    let request = Request::connect(format!("https://{SITE}{path}"))
        .extension(Protocol::from_static(protocol))
        .header("sec-websocket-version", "13")
        .header("sec-websocket-protocol", "chat")
        .body(())
        .unwrap();
    let (response, out) = client.send_request(request, false).unwrap();
    (within("an answer", response).await.unwrap(), out)
}

fn outcome(response: &Response<RecvStream>) -> String {
    let value = response.headers().get("proxy-status").map(|v| v.to_str().unwrap()).unwrap_or_default();
    value.split("details=\"").nth(1).unwrap_or_default().trim_end_matches('"').to_owned()
}

/// Everything there and back, then the end in both directions.
async fn echoes(response: Response<RecvStream>, mut out: SendStream<Bytes>) {
    assert_eq!(response.status(), 200, "{:?}", response.headers());
    assert_eq!(response.headers()["sec-websocket-protocol"], "chat");
    for name in ["sec-websocket-accept", "upgrade", "connection", "transfer-encoding", "content-length"] {
        assert!(!response.headers().contains_key(name), "{name}: {:?}", response.headers());
    }
    let data: Bytes = (0..300_000u32).map(|i| i as u8).collect::<Vec<u8>>().into();
    let expected = [b"early".as_slice(), &data].concat();
    let sending = tokio::spawn(async move { h2_origin::send(&mut out, data, true).await });
    let mut body = response.into_body();
    let mut seen = Vec::new();
    while let Some(piece) = within("the echo", body.data()).await {
        let piece = piece.unwrap();
        body.flow_control().release_capacity(piece.len()).unwrap();
        seen.extend_from_slice(&piece);
        if seen.len() == expected.len() {
            break;
        }
    }
    assert!(seen == expected, "{} of {} bytes", seen.len(), expected.len());
    within("the upload", sending).await.unwrap().unwrap();
}

async fn echoes_h1(mut wire: Wire) {
    let reply = wire.ask("GET", "/ws", SITE, UPGRADE).await;
    assert_eq!(reply.status, 101, "{}", reply.raw_head());
    assert!(reply.field("upgrade").unwrap().eq_ignore_ascii_case("websocket"));
    assert!(reply.field("connection").unwrap().eq_ignore_ascii_case("upgrade"));
    assert_eq!(reply.field("sec-websocket-accept"), Some(ACCEPT), "the answer to the client's own key");
    assert_eq!(within("early", wire.exactly(5)).await.unwrap(), b"early");
    let data: Vec<u8> = (0..300_000u32).map(|i| i as u8).collect();
    wire.send(&data).await;
    assert!(within("the echo", wire.exactly(data.len())).await.unwrap() == data);
}

// ---- each way of asking, each way of agreeing

#[tokio::test]
async fn http2_client_to_http1_backend() {
    let origin = echo().await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let mut client = client(&proxy).await;
    let (response, out) = connect(&mut client, "websocket", "/ws?room=1").await;
    echoes(response, out).await;
    let seen = origin.only();
    assert_eq!((seen.method(), seen.target()), ("GET", "/ws?room=1"), "RFC 8441 section 5");
    assert!(seen.field("connection").unwrap().eq_ignore_ascii_case("upgrade"), "{}", seen.raw());
    assert_eq!(seen.field("upgrade"), Some("websocket"));
    assert_eq!(seen.field("host"), Some(SITE));
    assert_eq!(seen.field("sec-websocket-key").unwrap().len(), 24, "a key of our own");
    wait_until("the backend's side to end", || origin.open() == 0).await;
    let record = proxy.record_with("TUNNEL").await;
    assert_eq!((&record["status"], &record["method"]), (&200.into(), &"CONNECT".into()));
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.sum("tidegate_tunnels_total", &[]), 1.0);
    assert_eq!(metrics.sum("tidegate_tunnels_active", &[]), 0.0);
    assert_eq!(metrics.sum("tidegate_tunnel_bytes_total", &[("direction", "in")]), 300_000.0);
}

#[tokio::test]
async fn http2_client_to_http2_backend() {
    let origin = echo_h2(true).await;
    let proxy = Proxy::with_site(SITE, &origin.site()).await;
    let mut client = client(&proxy).await;
    for _ in 0..3 {
        let (response, out) = connect(&mut client, "websocket", "/ws").await;
        echoes(response, out).await;
    }
    for (head, connection) in origin.heads() {
        assert_eq!((head.uri.path(), connection), ("/ws", 0));
        assert!(!head.headers.contains_key("sec-websocket-key"), "RFC 8441 section 5");
    }
}

#[tokio::test]
async fn http1_client_to_http2_backend() {
    let origin = echo_h2(true).await;
    let proxy = Proxy::with_site(SITE, &origin.site()).await;
    echoes_h1(proxy.wire(SITE).await).await;
    assert!(!origin.heads()[0].0.headers.contains_key("sec-websocket-key"));
    assert_eq!(proxy.record_with("TUNNEL").await["status"], 101);
}

#[tokio::test]
async fn http1_client_to_http1_backend() {
    let origin = echo().await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    echoes_h1(proxy.wire(SITE).await).await;
}

// ---- what is not opened

#[tokio::test]
async fn an_http2_backend_without_tunnels_is_named_as_such() {
    let origin = echo_h2(false).await;
    let proxy = Proxy::with_site(SITE, &origin.site()).await;
    let mut wire = proxy.wire(SITE).await;
    wire.ask("GET", "/ws", SITE, UPGRADE).await.expect(502, "UPSTREAM-NO-TUNNEL");
    let (response, _) = connect(&mut client(&proxy).await, "websocket", "/ws").await;
    assert_eq!((response.status().as_u16(), outcome(&response).as_str()), (502, "UPSTREAM-NO-TUNNEL"));
    assert_eq!(origin.count(), 0);
}

#[tokio::test]
async fn an_ordinary_connect_stays_refused_over_http2() {
    let origin = echo().await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let mut client = client(&proxy).await;
    let request = Request::builder().method("CONNECT").uri(format!("{SITE}:443")).body(()).unwrap();
    let (response, _out) = client.send_request(request, false).unwrap();
    let response = within("an answer", response).await.unwrap();
    assert_eq!((response.status().as_u16(), outcome(&response).as_str()), (405, "METHOD-REFUSED"));
    assert_eq!(origin.count(), 0);
}

#[tokio::test]
async fn only_listed_protocols_are_opened_and_routes_list_their_own() {
    let origin = echo().await;
    let site = format!(
        "{}\n[[site.\"{SITE}\".route]]\npath = \"/none/\"\nupgrade = []\n\
         [[site.\"{SITE}\".route]]\npath = \"/other/\"\nupgrade = [\"x-other/1\", \"websocket\"]",
        origin.backends()
    );
    let proxy = Proxy::with_site(SITE, &site).await;
    let over_h1 = async |path: &str, protocol: &str| {
        let fields = format!("Connection: Upgrade\r\nUpgrade: {protocol}\r\n");
        proxy.wire(SITE).await.ask("GET", path, SITE, &fields).await.status
    };
    for (path, protocol, status) in [
        ("/", "websocket", 101),
        ("/", "x-other/1", 200),
        ("/", "x-other/1, websocket", 101),
        ("/none/", "websocket", 200),
        ("/other/", "x-other/1", 101),
        ("/other/", "WebSocket", 101),
    ] {
        assert_eq!(over_h1(path, protocol).await, status, "{path} {protocol}");
    }
    // Only what was allowed is passed on.
    let asked: Vec<_> = origin.requests().iter().map(|r| r.field("upgrade").map(str::to_owned)).collect();
    let names = ["websocket", "", "websocket", "", "x-other/1", "WebSocket"];
    assert_eq!(asked, names.map(|name| (!name.is_empty()).then(|| name.to_owned())));
    let mut client = client(&proxy).await;
    for (path, protocol) in [("/", "x-other/1"), ("/none/", "websocket"), ("/", "connect-udp")] {
        let (response, _) = connect(&mut client, protocol, path).await;
        let ending = (response.status().as_u16(), outcome(&response));
        assert_eq!(ending, (501, "TUNNEL-REFUSED".into()), "RFC 9220 section 3: {path} {protocol}");
    }
    assert_eq!(origin.count(), 6);
    let (response, _) = connect(&mut client, "x-other/1", "/other/").await;
    assert_eq!(response.status(), 200);
}

#[tokio::test]
async fn a_backend_must_agree_to_what_was_asked_and_prove_it() {
    const HEAD: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n";
    let answers = [
        format!("{HEAD}Upgrade: x-other\r\n\r\n"),
        format!("{HEAD}\r\n"),
        // The right protocol, and the proof for somebody else's key.
        format!("{HEAD}Upgrade: websocket\r\nSec-WebSocket-Accept: {ACCEPT}\r\n\r\n"),
        // Success, but no switch: an HTTP/2 client would take it for an open tunnel.
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_owned(),
    ];
    for (index, text) in answers.into_iter().enumerate() {
        let origin = Origin::scripted(move |mut x| {
            let text = text.clone();
            async move {
                x.write(text).await.ok()?;
                x.until_closed().await;
                None
            }
        })
        .await;
        let proxy = Proxy::with_site(SITE, &origin.backends()).await;
        let (response, _) = connect(&mut client(&proxy).await, "websocket", "/ws").await;
        let ending = (response.status().as_u16(), outcome(&response));
        assert_eq!(ending, (502, "UPSTREAM-INVALID".into()), "answer {index}");
        if index < 2 {
            let mut wire = proxy.wire(SITE).await;
            wire.ask("GET", "/ws", SITE, UPGRADE).await.expect(502, "UPSTREAM-INVALID");
        }
    }
}

#[tokio::test]
async fn a_backend_that_refuses_is_passed_on_as_it_is() {
    let origin = Origin::answering(|_| Answer::new(403).body("no sockets")).await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let mut client = client(&proxy).await;
    let (response, _) = connect(&mut client, "websocket", "/ws").await;
    assert_eq!(response.status(), 403);
    let body = within("the body", response.into_body().data()).await.unwrap().unwrap();
    assert_eq!(body, "no sockets");
}

#[tokio::test]
async fn a_route_by_method_takes_a_tunnel_as_the_get_it_stands_for() {
    let (sockets, other) = (echo().await, Origin::saying("other").await);
    let site = format!(
        "{}\n[[site.\"{SITE}\".route]]\nmethods = [\"GET\"]\n{}",
        other.backends(),
        sockets.backends()
    );
    let proxy = Proxy::with_site(SITE, &site).await;
    let (response, _) = connect(&mut client(&proxy).await, "websocket", "/ws").await;
    assert_eq!((response.status().as_u16(), sockets.count(), other.count()), (200, 1, 0));
}

#[tokio::test]
async fn a_silent_tunnel_ends_and_its_http2_connection_goes_on() {
    let origin = echo().await;
    let proxy = Proxy::builder()
        .set("server.timeouts.tunnel", "\"500ms\"")
        .site(SITE, &origin.backends())
        .start()
        .await;
    let mut client = client(&proxy).await;
    let (response, _out) = connect(&mut client, "websocket", "/ws").await;
    let mut body = response.into_body();
    assert_eq!(within("early", body.data()).await.unwrap().unwrap(), "early");
    wait_until("the tunnel to end", || origin.open() == 0).await;
    let ended = within("the client's side", body.data()).await;
    assert!(ended.is_none_or(|ended| ended.map_or(true, |last| last.is_empty())));
    let request = Request::get(format!("https://{SITE}/")).body(()).unwrap();
    let (response, _) = client.send_request(request, true).unwrap();
    assert_eq!(within("an answer", response).await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_client_that_resets_its_tunnel_ends_it_at_the_backend() {
    let origin = echo().await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let mut client = client(&proxy).await;
    let (response, mut out) = connect(&mut client, "websocket", "/ws").await;
    out.send_reset(h2::Reason::CANCEL);
    drop(response);
    wait_until("the backend's side to end", || origin.open() == 0).await;
    proxy.record_with("TUNNEL").await;
}

// ---- a real browser

const PYTHON: &str = "/usr/bin/python3";
const ECHO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/echo.py");

const PAGE: &str = r#"<!doctype html><title>socket</title><body><script>
const socket = new WebSocket(`wss://${location.host}/echo`);
let seen = 0;
socket.onopen = () => { for (let i = 0; i < 100; i++) socket.send("message " + i); };
socket.onmessage = e => { if (e.data == "message " + seen && ++seen == 100) fetch("/done?n=" + seen); };
socket.onerror = socket.onclose = () => fetch("/done?n=" + seen + "&failed");
</script>"#;

/// A browser that starts for the first time on a cold, busy machine takes its time.
const FIRST_START: Duration = Duration::from_secs(240);

#[tokio::test]
async fn chromium_opens_a_websocket_over_its_http2_connection() {
    if !tool::requires("chromium", &["--version"]) || !tool::requires(PYTHON, &["-c", "import websockets"]) {
        return;
    }
    let mut server = tool::Helper(
        Command::new(PYTHON).args([ECHO, "serve"]).stdout(Stdio::piped()).spawn().expect("the echo server"),
    );
    let mut port = String::new();
    BufReader::new(server.0.stdout.take().unwrap()).read_line(&mut port).expect("the echo server's port");
    let pages = Origin::answering(|r| match r.target() {
        "/" => Answer::ok(PAGE).field("Content-Type", "text/html"),
        _ => Answer::new(204),
    })
    .await;
    let site = format!(
        "{}\n[[site.\"{SITE}\".route]]\npath = \"/echo\"\nbackends = [\"127.0.0.1:{}\"]",
        pages.backends(),
        port.trim()
    );
    let proxy = Proxy::with_site(SITE, &site).await;
    let profile = tempfile::tempdir().unwrap();
    let log = profile.path().join("stderr");
    let browser = Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
        .args(["--disable-background-networking", "--remote-debugging-port=0", "--ignore-certificate-errors"])
        .args([
            format!("--user-data-dir={}", profile.path().display()),
            format!("--host-resolver-rules=MAP {SITE} 127.0.0.1"),
        ])
        .arg(format!("https://{SITE}:{}/", proxy.https().port()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .expect("chromium");
    let browser = tool::Helper(browser);
    let done = || pages.requests().into_iter().find(|r| r.target().starts_with("/done"));
    let start = Instant::now();
    while done().is_none() {
        let said = || tool::text(&std::fs::read(&log).unwrap());
        assert!(start.elapsed() < FIRST_START, "no last word of the page; the browser says: {}", said());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop(browser);
    assert_eq!(done().unwrap().target(), "/done?n=100");
    let record = proxy.record_with("TUNNEL").await;
    assert_eq!(record["method"], "CONNECT", "over HTTP/2, not over a connection of its own: {record}");
}
