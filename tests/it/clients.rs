//! Clients that other people wrote.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::{Answer, Origin, Proxy, tool};

const SITE: &str = "shop.test";
/// Debian's python, which sees Debian's packages, whatever `python3` is first on the path.
const PYTHON: &str = "/usr/bin/python3";
const ECHO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/echo.py");

#[tokio::test]
async fn curl_over_http1_and_http2() {
    if !tool::requires("curl", &["--version"]) {
        return;
    }
    let origin = Origin::answering(|r| Answer::ok(format!("{} {}", r.method(), r.body.len()))).await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    for (flag, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
        let output = proxy.curl(SITE, &[flag, "-w", " %{http_version} %{http_code}"], "/").await;
        assert_eq!(tool::stdout_of(&output), format!("GET 0 {version} 200"));
        let output = proxy.curl(SITE, &[flag, "--data-binary", "hello"], "/").await;
        assert_eq!(tool::stdout_of(&output), "POST 5");
        // Chunked, and larger than curl's threshold for Expect: 100-continue.
        let file = proxy.path().join("big");
        std::fs::write(&file, vec![b'x'; 3 << 20]).unwrap();
        let output = proxy
            .curl(SITE, &[flag, "-H", "Transfer-Encoding: chunked", "-T", file.to_str().unwrap()], "/")
            .await;
        assert_eq!(tool::stdout_of(&output), format!("PUT {}", 3 << 20));
        let output = proxy.curl(SITE, &[flag, "--head", "-o", "/dev/null", "-w", "%{http_code}"], "/").await;
        assert_eq!(tool::stdout_of(&output), "200");
    }
    let port = proxy.http().port();
    let args = crate::args![
        "--silent",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code} %{redirect_url}",
        "--resolve",
        format!("{SITE}:{port}:127.0.0.1"),
        format!("http://{SITE}:{port}/a?b")
    ];
    let text = tool::stdout_of(&tool::run("curl", &args).await);
    assert!(text.starts_with("308 https://shop.test") && text.ends_with("/a?b"), "{text}");
}

#[tokio::test]
async fn h2load_finds_every_answer_and_the_metrics_agree() {
    if !tool::requires("h2load", &["--version"]) {
        return;
    }
    let origin = Origin::saying("hello").await;
    let proxy = Proxy::with_site("localhost", &origin.backends()).await;
    let url = format!("https://localhost:{}/", proxy.https().port());
    let output = tool::run("h2load", &crate::args!["-n5000", "-c10", "-m10", url]).await;
    let text = tool::stdout_of(&output);
    assert!(text.contains("5000 succeeded, 0 failed, 0 errored, 0 timeout"), "{text}");
    let h1 = tool::run("h2load", &crate::args!["--h1", "-n2000", "-c10", url]).await;
    assert!(tool::stdout_of(&h1).contains("2000 succeeded, 0 failed"), "{}", tool::text(&h1.stdout));
    proxy.records(7_000).await;
    assert_eq!(proxy.metrics().await.sum("tidegate_requests_total", &[("status", "2xx")]), 7_000.0);
}

#[tokio::test]
async fn ten_thousand_websocket_messages_come_back() {
    if !tool::requires(PYTHON, &["-c", "import websockets"]) {
        return;
    }
    let mut server = tool::Helper(
        Command::new(PYTHON).args([ECHO, "serve"]).stdout(Stdio::piped()).spawn().expect("the echo server"),
    );
    let mut port = String::new();
    BufReader::new(server.0.stdout.take().unwrap()).read_line(&mut port).expect("the echo server's port");
    let proxy = Proxy::with_site(SITE, &format!("backends = [\"127.0.0.1:{}\"]", port.trim())).await;
    let args = crate::args![ECHO, "ask", SITE, proxy.https().port(), proxy.ca_file().display(), 10_000];
    assert_eq!(tool::stdout_of(&tool::run(PYTHON, &args).await).trim(), "10000 echoed");
    assert_eq!(proxy.record_with("TUNNEL").await["status"], 101);
}

const PAGE: &str = r#"<!doctype html><title>hundred</title><body><script>
let done = 0, failed = 0;
function count() {
  if (done + failed < 100) return;
  const seen = performance.getEntriesByType("resource").filter(e => e.name.includes("/image/"));
  // An entry may be written after its image's own event.
  if (seen.length < 100) { setTimeout(count, 50); return; }
  const h2 = seen.filter(e => e.nextHopProtocol == "h2").length;
  fetch(`/done?n=${done}&h2=${h2}`);
}
for (let i = 0; i < 100; i++) {
  const image = new Image();
  image.onload = () => { done++; count(); };
  image.onerror = () => { failed++; count(); };
  image.src = `/image/${i}.svg`;
}
</script>"#;

/// A browser that starts for the first time on a cold, busy machine takes its time.
const FIRST_START: Duration = Duration::from_secs(240);

const IMAGE: &str = r#"<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>"#;

#[tokio::test]
async fn chromium_loads_a_page_with_a_hundred_resources_over_http2() {
    if !tool::requires("chromium", &["--version"]) {
        return;
    }
    let origin = Origin::answering(|r| match r.target() {
        "/" => Answer::ok(PAGE).field("Content-Type", "text/html"),
        path if path.starts_with("/image/") => Answer::ok(IMAGE).field("Content-Type", "image/svg+xml"),
        _ => Answer::new(204),
    })
    .await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
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
    let done = || origin.requests().into_iter().find(|r| r.target().starts_with("/done"));
    let start = Instant::now();
    while done().is_none() {
        let said = || tool::text(&std::fs::read(&log).unwrap());
        assert!(start.elapsed() < FIRST_START, "no last word of the page; the browser says: {}", said());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop(browser);
    assert_eq!(done().unwrap().target(), "/done?n=100&h2=100");
}
