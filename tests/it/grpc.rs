//! gRPC, spoken by a real implementation on both sides: grpcio behind and in front of the proxy.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use http::{HeaderMap, Request};

use crate::args;
use crate::harness::h2_origin::{self, H2Origin, Settings};
use crate::harness::{Gate, Origin, Proxy, tool, within};

const SITE: &str = "shop.test";
/// Debian's python, which sees Debian's packages, whatever `python3` is first on the path.
const PYTHON: &str = "/usr/bin/python3";
const RPC: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/rpc.py");

fn grpcio() -> bool {
    tool::requires(PYTHON, &["-c", "import grpc"])
}

/// A gRPC server; its port.
fn server() -> (tool::Helper, String) {
    let mut server = tool::Helper(
        Command::new(PYTHON).args([RPC, "serve"]).stdout(Stdio::piped()).spawn().expect("the gRPC server"),
    );
    let mut port = String::new();
    BufReader::new(server.0.stdout.take().unwrap()).read_line(&mut port).expect("the gRPC server's port");
    (server, port.trim().to_owned())
}

async fn python(proxy: &Proxy, what: &str) -> String {
    let args = args![RPC, what, SITE, proxy.https().port(), proxy.ca_file().display()];
    tool::stdout_of(&tool::run(PYTHON, &args).await).trim().to_owned()
}

#[tokio::test]
async fn every_kind_of_call_passes_between_real_clients_and_servers() {
    if !grpcio() {
        return;
    }
    let (_server, port) = server();
    let site = format!("backends = [\"127.0.0.1:{port}\"]\nupstream = {{ http = \"h2\" }}");
    let proxy = Proxy::with_site(SITE, &site).await;
    let said = python(&proxy, "ask").await;
    assert_eq!(said, "unary\ndeadlines\nerrors\nstreams\nboth ways\ncancelled");
    let opened = proxy.metrics().await.sum("tidegate_upstream_connections_opened_total", &[]);
    assert_eq!(opened, 1.0, "all calls on one connection");
}

#[tokio::test]
async fn real_clients_read_our_own_failures_as_grpc_statuses() {
    if !grpcio() {
        return;
    }
    let dead = Origin::saying("").await.kill().await;
    let http1 = Origin::saying("").await;
    let reset = H2Origin::scripted(Settings::default(), |mut stream| async move {
        stream.respond.send_reset(Reason::ENHANCE_YOUR_CALM);
    })
    .await;
    let h2 = "upstream = { http = \"h2\" }\nconnect_timeout = \"1s\"";
    for (site, said) in [
        (format!("backends = [\"{dead}\"]\n{h2}"), "UNAVAILABLE: The backend refused the connection."),
        (format!("{}\n{h2}", http1.backends()), "UNAVAILABLE: The backend does not speak HTTP/2."),
        (reset.site(), "RESOURCE_EXHAUSTED: The backend reset the request before it answered."),
        (
            format!("[site.\"{SITE}\"]\n[[site.\"{SITE}\".route]]\npath = \"/x/\"\nbackends = [\"{dead}\"]"),
            "UNIMPLEMENTED: The site has no route for this request.",
        ),
        (
            format!("backends = [\"{dead}\"]\nlimit = \"1 per 1h by site\""),
            "RESOURCE_EXHAUSTED: This client sent more requests than the limit allows.",
        ),
    ] {
        let proxy = Proxy::with_site(SITE, &site).await;
        let mut answer = python(&proxy, "status").await;
        if said.starts_with("RESOURCE_EXHAUSTED: This") {
            answer = python(&proxy, "status").await;
        }
        assert_eq!(answer, said);
    }
}

fn call(path: &str) -> http::request::Builder {
    Request::post(format!("https://{SITE}{path}"))
        .header("content-type", "application/grpc+proto")
        .header("te", "trailers")
}

#[tokio::test]
async fn our_own_failure_is_a_head_alone_with_status_200() {
    let dead = Origin::saying("").await.kill().await;
    let proxy = Proxy::with_site(SITE, &format!("backends = [\"{dead}\"]")).await;
    let mut client = proxy.bare_h2(SITE).await;
    let (response, mut body) = client.send_request(call("/a.B/C").body(()).unwrap(), false).unwrap();
    body.send_data(Bytes::from_static(b"\0\0\0\0\0"), true).unwrap();
    let response = within("an answer", response).await.unwrap();
    assert_eq!(response.status(), 200);
    let headers = response.headers();
    assert_eq!(
        (&headers["content-type"], &headers["grpc-status"]),
        (&"application/grpc".parse().unwrap(), &"14".parse().unwrap())
    );
    assert_eq!(headers["grpc-message"], "The backend refused the connection.");
    assert!(headers["proxy-status"].to_str().unwrap().contains("CONNECT-REFUSED"));
    assert!(headers.contains_key("x-request-id"));
    assert!(response.body().is_end_stream(), "trailers-only: nothing follows the head");
    let record = proxy.record_with("CONNECT-REFUSED").await;
    assert_eq!(record["status"], 200, "{record}");
    // Who does not speak gRPC reads HTTP.
    proxy.get(SITE, "/").await.expect(502, "CONNECT-REFUSED");
}

#[tokio::test]
async fn a_backends_trailers_only_answer_and_its_fields_pass_unchanged() {
    let origin = H2Origin::scripted(Settings::default(), |mut stream| async move {
        assert_eq!(stream.field("te"), Some("trailers"));
        assert_eq!(stream.field("grpc-timeout"), Some("5S"));
        let fields = [("content-type", "application/grpc"), ("grpc-status", "5"), ("grpc-message", "gone")];
        stream.head(200, &fields, true);
    })
    .await;
    let proxy = Proxy::with_site(SITE, &origin.site()).await;
    let mut client = proxy.bare_h2(SITE).await;
    let request = call("/a.B/C").header("grpc-timeout", "5S").body(()).unwrap();
    let (response, _) = client.send_request(request, true).unwrap();
    let response = within("an answer", response).await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["grpc-status"]),
        (200, &"5".parse().unwrap())
    );
    assert!(response.body().is_end_stream());
    assert!(!response.headers().contains_key("content-length"));
    assert_eq!(origin.count(), 1);
}

#[tokio::test]
async fn a_stream_of_messages_may_be_silent_longer_than_an_upload() {
    let gate = Gate::default();
    let inner = gate.clone();
    let origin = H2Origin::scripted(Settings::default(), move |mut stream| {
        let gate = inner.clone();
        async move {
            let mut answer = stream.head(200, &[("content-type", "application/grpc")], false);
            // Everything the client says comes back, then the status.
            while let Some(Ok(piece)) = stream.body.data().await {
                let _ = stream.body.flow_control().release_capacity(piece.len());
                h2_origin::send(&mut answer, piece, false).await.unwrap();
                gate.open();
            }
            let status = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
            answer.send_trailers(status).unwrap();
        }
    })
    .await;
    let proxy = Proxy::builder()
        .set("server.timeouts.body", "\"300ms\"")
        .site(SITE, &format!("{}\ntimeout = \"60s\"", origin.site()))
        .start()
        .await;
    let mut client = proxy.bare_h2(SITE).await;
    let (response, mut body) = client.send_request(call("/a.B/C").body(()).unwrap(), false).unwrap();
    let mut answer = within("a head before any message", response).await.unwrap().into_body();
    for message in ["one", "two"] {
        // The silence that is tested.
        tokio::time::sleep(Duration::from_millis(1200)).await;
        body.send_data(Bytes::from_static(message.as_bytes()), false).unwrap();
        assert_eq!(within("the echo", answer.data()).await.unwrap().unwrap(), message);
    }
    body.send_data(Bytes::new(), true).unwrap();
    assert!(within("the end", answer.data()).await.is_none());
    let trailers = within("trailers", answer.trailers()).await.unwrap().unwrap();
    assert_eq!(trailers["grpc-status"], "0");
}
