//! What backends say: the client sees a safe outcome in every version of HTTP, a cut body looks cut, and the next
//! client gets its own answer.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::case::{self, Section};
use super::recorder::short;
use super::{SITE, report};
use crate::harness::h2_origin::{H2Origin, Settings};
use crate::harness::h2raw::{END_HEADERS, END_STREAM, End, HEADERS, RawH2, block, frame};
use crate::harness::strict::{self, Read};
use crate::harness::{Answer, Origin, Proxy, Wire, tls, within};

/// What the backend does when it is asked for `/case`.
#[derive(Default, Clone)]
struct Script {
    bytes: Vec<u8>,
    then: String,
}

/// How a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speech {
    Http11,
    Http10,
    Http2,
}

/// What a client saw.
#[derive(Debug)]
enum Seen {
    /// An answer that looks whole: status, body, names of its fields and trailers.
    Whole(u16, Vec<u8>, Vec<String>),
    /// One that does not.
    Cut,
}

async fn backend(script: Arc<Mutex<Script>>) -> Origin {
    Origin::scripted(move |mut x| {
        let script = script.lock().unwrap().clone();
        async move {
            if x.request.target() != "/case" {
                x.answer(Answer::ok("mine")).await.ok()?;
                return Some(x);
            }
            x.write(&script.bytes).await.ok()?;
            match script.then.as_str() {
                "reset" => {
                    x.wire.reset();
                    None
                }
                "wait" => Some(x),
                _ => None,
            }
        }
    })
    .await
}

async fn ask(proxy: &Proxy, speech: Speech, method: &str) -> Seen {
    match speech {
        Speech::Http2 => ask_h2(proxy, method).await,
        // In the clear, where a connection that just ends looks like the end of an answer.
        _ => {
            let version = if speech == Speech::Http10 { "1.0" } else { "1.1" };
            let mut wire = proxy.plain().await;
            wire.send(format!("{method} /case HTTP/{version}\r\nHost: {SITE}\r\n\r\n")).await;
            within("an ending", read(&mut wire, method)).await
        }
    }
}

async fn read(wire: &mut Wire, method: &str) -> Seen {
    let mut end = None;
    loop {
        match strict::answer(&wire.ahead, method, end == Some(true)) {
            Read::Whole(message, _) => {
                let status = message.second().parse().expect("a status");
                let fields = message.fields.iter().chain(&message.trailers);
                return Seen::Whole(status, message.body.clone(), fields.map(|(n, _)| n.clone()).collect());
            }
            Read::Bad(why) => panic!("the client saw {why} in {}", short(&wire.ahead)),
            Read::Part if end.is_some() => return Seen::Cut,
            Read::Part => match wire.fill().await {
                Ok(1..) => {}
                // A reset is no end.
                ended => end = Some(ended.is_ok()),
            },
        }
    }
}

async fn ask_h2(proxy: &Proxy, method: &str) -> Seen {
    let config = tls::client_config(&proxy.ca_pem(), &["h2"], &[&rustls::version::TLS13]);
    let mut h2 = RawH2::over(tls::connect(config, proxy.https(), SITE).await.expect("TLS for h2")).await;
    let pairs = [(":method", method), (":scheme", "https"), (":authority", SITE), (":path", "/case")];
    let fields = pairs.map(|(n, v)| (n.as_bytes().to_vec(), v.as_bytes().to_vec()));
    h2.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&fields))).await;
    match within("an ending", h2.end(1)).await {
        End::Whole { status, body, .. } => Seen::Whole(status, body, Vec::new()),
        _ => Seen::Cut,
    }
}

fn safe(seen: &Seen, expected: &str) -> bool {
    expected.split(" | ").any(|one| match (one.split_once(' '), seen) {
        (None, Seen::Cut) => one == "cut",
        (None, Seen::Whole(status, ..)) => one == status.to_string(),
        (Some((code, text)), Seen::Whole(status, body, _)) => {
            code == status.to_string() && case::bytes(text.trim_matches('"')) == *body
        }
        _ => false,
    })
}

async fn run(proxy: &Proxy, script: &Mutex<Script>, section: &Section, speech: Speech) -> Vec<String> {
    let bytes = section.lines.iter().filter(|(key, _)| key == ">").flat_map(|(_, text)| case::bytes(text));
    let then = section.get("then").unwrap_or("wait").to_string();
    *script.lock().unwrap() = Script { bytes: bytes.collect(), then };
    let expected = section.get("client").expect("what the client may see");
    let mut wrong = Vec::new();
    // A fresh connection to the backend and a pooled one.
    for _ in 0..2 {
        let seen = ask(proxy, speech, section.get("ask").unwrap_or("GET")).await;
        if !safe(&seen, expected) {
            wrong.push(format!("the client saw {seen:?} instead of {expected}"));
        }
        for (_, name) in section.lines.iter().filter(|(key, _)| key == "lacks") {
            if matches!(&seen, Seen::Whole(_, _, fields) if fields.contains(name)) {
                wrong.push(format!("the client saw {name}"));
            }
        }
        let next = within("the next client", async { proxy.plain().await.get(SITE, "/next").await }).await;
        if (next.status, next.text().as_str()) != (200, "mine") {
            wrong.push(format!("the next client was answered {} {:?}", next.status, next.text()));
        }
    }
    wrong
}

#[tokio::test]
async fn every_answer_of_a_backend_ends_safely() {
    let script = Arc::new(Mutex::new(Script::default()));
    let origin = backend(script.clone()).await;
    let proxy = Proxy::builder()
        // Waited for where a backend says half of something and then nothing.
        .set("server.timeouts.first_byte", "\"20s\"")
        .site(SITE, &format!("{}\nplain_http = true", origin.backends()))
        .start()
        .await;
    let cases = case::sections("answers");
    let mut findings = Vec::new();
    for section in &cases {
        for speech in [Speech::Http11, Speech::Http10, Speech::Http2] {
            let ran =
                tokio::time::timeout(Duration::from_secs(30), run(&proxy, &script, section, speech)).await;
            let wrong = ran.unwrap_or_else(|_| vec!["no end".into()]);
            findings.extend(wrong.into_iter().map(|w| format!("{} ({speech:?}): {w}", section.name)));
        }
    }
    report(cases.len(), findings);
}

#[tokio::test]
async fn an_answer_over_http2_that_http1_could_not_say_is_invalid() {
    type Fields = &'static [(&'static str, &'static str)];
    let cases: [(u16, Fields, u16); 7] = [
        (200, &[("x-a", " b")], 502),
        (200, &[("x-a", "b\t")], 502),
        (200, &[("content-length", "2"), ("content-length", "200")], 502),
        (200, &[("content-length", "2"), ("content-length", "2")], 502),
        (200, &[("content-length", "+2")], 502),
        (700, &[], 502),
        (200, &[("content-length", "2"), ("x-a", "b c")], 200),
    ];
    let next = Arc::new(Mutex::new(0));
    let index = next.clone();
    let origin = H2Origin::scripted(Settings::default(), move |mut stream| {
        let (status, fields, _) = cases[*index.lock().unwrap()];
        async move {
            let _ = stream.read().await;
            let mut body = stream.head(status, fields, false);
            let _ = body.send_data("ok".into(), true);
        }
    })
    .await;
    let proxy = Proxy::with_site(SITE, &origin.site()).await;
    for (at, (status, fields, expected)) in cases.iter().enumerate() {
        *next.lock().unwrap() = at;
        let mut wire = proxy.wire(SITE).await;
        let reply = wire.post(SITE, "/", "x").await;
        assert_eq!(reply.status, *expected, "{status} {fields:?}: {}", reply.raw_head());
        assert_eq!(proxy.h2(SITE).await.get("/").await.status, *expected, "{status} {fields:?}");
    }
}
