//! Real sockets, real HTTP.

use std::cell::Cell;
use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::pin::Pin;
use std::rc::Rc;

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::*;
use crate::telemetry::Hub;

/// Runs a test as the control plane runs: one thread, a `LocalSet`.
fn local<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test)
}

async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> String {
    stream.write_all(format!("{request} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

fn body(answer: &str) -> Value {
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

#[derive(Default)]
struct Fake {
    reloads: Rc<Cell<u32>>,
    gate: Rc<tokio::sync::Notify>,
    gated: bool,
}

impl Backend for Fake {
    fn status(&self) -> Value {
        json!({ "generation": 7 })
    }

    fn reload(&self) -> Pin<Box<dyn Future<Output = Value>>> {
        let (reloads, gate, gated) = (self.reloads.clone(), self.gate.clone(), self.gated);
        Box::pin(async move {
            if gated {
                gate.notified().await;
            }
            reloads.set(reloads.get() + 1);
            gate.notify_one();
            json!({ "changed": true })
        })
    }

    fn ban(&self, net: String, time: std::time::Duration, why: String) -> Told {
        Box::pin(async move {
            if net == "planet" { Err("no".into()) } else { Ok(json!([net, time.as_secs(), why])) }
        })
    }

    fn unban(&self, net: String) -> Told {
        Box::pin(async move { Ok(json!(net)) })
    }

    fn bans(&self) -> Value {
        json!({ "bans": [] })
    }

    fn config(&self) -> Value {
        json!([{ "key": "server.drain", "value": "30s", "origin": "default" }])
    }

    fn certificates(&self) -> Value {
        json!({ "certificates": [{ "site": "a.example" }] })
    }

    fn patches(&self) -> Value {
        json!({})
    }

    fn certificate_events(&self) -> Value {
        json!({ "events": [{ "event": "issued" }] })
    }

    fn certificate_plan(&self) -> Pin<Box<dyn Future<Output = Value>>> {
        Box::pin(async { json!({ "queue": [] }) })
    }

    fn renew(&self, site: &str) -> Result<(), String> {
        if site == "a.example" { Ok(()) } else { Err(format!("there is no site `{site}`")) }
    }

    fn deploy(&self, order: Deploy) -> Pin<Box<dyn Future<Output = Result<u64, String>>>> {
        let known = order.what == "a.example";
        let why = format!("no site is called `{}`", order.what);
        Box::pin(async move { if known { Ok(7) } else { Err(why) } })
    }

    fn deployments(&self) -> Value {
        json!([{ "id": 7, "source": "a", "over": true, "phase": "done", "endpoints": [], "replaced": [] }])
    }

    fn observe(&self, site: Option<&str>, time: std::time::Duration) -> Result<Value, String> {
        if site == Some("b.example") {
            return Err("somebody watches already".into());
        }
        Ok(json!({ "id": 1, "seconds": time.as_secs(), "sites": 1 }))
    }

    fn observation(&self) -> Value {
        json!({ "running": true, "id": 1, "seconds": 1, "elapsed_seconds": 1, "over": true, "requests": 7 })
    }

    fn end_observation(&self) -> Pin<Box<dyn Future<Output = Result<Value, String>>>> {
        Box::pin(async { Ok(json!({ "seconds": 1, "sites": [], "silent_sites": 1 })) })
    }

    fn issue(&self, names: &str, valid: std::time::Duration) -> Result<Value, String> {
        Ok(json!({ "names": names, "valid": valid.as_secs() }))
    }

    fn reread(&self) -> Pin<Box<dyn Future<Output = Value>>> {
        Box::pin(async { json!({ "open": true, "taken": ["a.example"], "refused": [] }) })
    }
}

#[test]
fn the_api_answers_its_three_questions_and_says_what_it_has_otherwise() {
    local(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let backend = Rc::new(Fake::default());
        tokio::task::spawn_local(serve(bind(&path).unwrap(), backend.clone()));
        let ask = async |request: &str| ask(UnixStream::connect(&path).await.unwrap(), request).await;

        assert_eq!(body(&ask("GET /status").await)["generation"], 7);
        assert_eq!(body(&ask("GET /config").await)[0]["key"], "server.drain");
        assert_eq!(body(&ask("GET /certs").await)["certificates"][0]["site"], "a.example");
        assert_eq!(body(&ask("GET /certs/events").await)["events"][0]["event"], "issued");
        assert!(body(&ask("GET /certs/plan").await)["queue"].is_array());
        assert_eq!(body(&ask("POST /certs/renew?site=a.example").await)["queued"], true);
        for (request, status, word) in [
            ("POST /certs/renew?site=b.example", "409", "there is no site `b.example`"),
            ("POST /certs/renew?site=", "400", "name the site"),
            ("POST /certs/renew", "400", "name the site"),
            ("GET /certs/renew?site=a.example", "405", "POST"),
        ] {
            let answer = ask(request).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains(word), "{answer}");
        }
        assert_eq!(body(&ask("POST /reload").await)["changed"], true);
        assert_eq!(backend.reloads.get(), 1);

        let answer = ask("GET /reload").await;
        assert!(answer.starts_with("HTTP/1.1 405 ") && answer.contains("\r\nallow: POST\r\n"), "{answer}");
        assert_eq!(backend.reloads.get(), 1, "a GET changes nothing");
        let answer = ask("POST /status").await;
        assert!(
            answer.starts_with("HTTP/1.1 405 ") && answer.contains("\r\nallow: GET, HEAD\r\n"),
            "{answer}"
        );
        let answer = ask("GET /nothing").await;
        assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
        assert!(body(&answer)["error"].as_str().unwrap().contains("GET /status"));
        assert!(ask("GET").await.starts_with("HTTP/1.1 400 "));
    });
}

#[test]
fn a_reload_is_finished_when_the_client_hangs_up() {
    local(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let backend = Rc::new(Fake { gated: true, ..Fake::default() });
        tokio::task::spawn_local(serve(bind(&path).unwrap(), backend.clone()));
        let mut client = UnixStream::connect(&path).await.unwrap();
        client.write_all(b"POST /reload HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        // Another question answered after this one was sent: the reload has begun.
        ask(UnixStream::connect(&path).await.unwrap(), "GET /status").await;
        drop(client);
        ask(UnixStream::connect(&path).await.unwrap(), "GET /status").await;
        backend.gate.notify_one();
        let finished = async {
            while backend.reloads.get() == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(30), finished).await.unwrap();
    });
}

#[test]
fn the_socket_is_private_and_so_is_the_folder_made_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("made/here/admin.sock");
    let listener = bind(&path).unwrap();
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    let left: Vec<_> =
        std::fs::read_dir(path.parent().unwrap()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["admin.sock"], "nothing else is left behind");
    drop(listener);
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    drop(bind(&path).unwrap());
    assert!(path.exists(), "the file of the first run is still there");
    let live = bind(&path).unwrap();
    let refused = bind(&path).unwrap_err();
    assert!(refused.contains("another tidegate runs with this state"), "{refused}");
    std::os::unix::net::UnixStream::connect(&path).unwrap();
    live.accept().unwrap();
}

#[test]
fn paths_that_cannot_be_a_socket_are_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("precious.txt");
    std::fs::write(&file, "keep me").unwrap();
    assert!(bind(&file).unwrap_err().contains("not a socket"));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "keep me");
    assert!(bind(&dir.path().join("x".repeat(200))).unwrap_err().contains("cannot be opened"));
    let deep = dir.path().join("d".repeat(100)).join("admin.sock");
    assert!(bind(&deep).unwrap_err().contains("shorter"));
    assert!(bind(&file.join("admin.sock")).unwrap_err().contains("check the folder"));
    assert!(bind(std::path::Path::new("/")).unwrap_err().contains("not a file inside a folder"));
}

#[test]
fn metrics_and_health_are_served_and_nothing_else() {
    local(async {
        let hub = Hub::new(3);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        tokio::task::spawn_local(metrics(listener, hub));
        let ask = async |request: &str| ask(TcpStream::connect(address).await.unwrap(), request).await;
        let answer = ask("GET /metrics").await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("version=0.0.4"), "{answer}");
        assert!(answer.contains("\ntidegate_workers 3\n"));
        assert!(ask("GET /healthz").await.ends_with("\r\n\r\nok\n"));
        assert!(ask("HEAD /metrics").await.ends_with("\r\n\r\n"));
        assert!(ask("POST /metrics").await.starts_with("HTTP/1.1 405 "));
        assert!(ask("GET /").await.starts_with("HTTP/1.1 404 "));
    });
}

#[test]
fn more_clients_than_the_cap_wait_and_are_served_when_others_leave() {
    local(async {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        tokio::task::spawn_local(metrics(listener, Hub::new(1)));
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let waiting = tokio::task::spawn_local(async move {
            ask(TcpStream::connect(address).await.unwrap(), "GET /healthz").await
        });
        drop(silent);
        assert!(waiting.await.unwrap().ends_with("ok\n"));
    });
}

#[test]
fn bans_are_asked_for_with_any_text() {
    let asked = |line: &'static str| {
        local(async move {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("s");
            let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
            tokio::task::spawn_local(serve(listener, Rc::new(Fake::default())));
            ask(UnixStream::connect(&path).await.unwrap(), line).await
        })
    };
    let banned = asked("POST /ban?net=2001%3Adb8%3A%3A%2F32&seconds=60&why=a%26b%20%C3%A9");
    assert_eq!(body(&banned), json!(["2001:db8::/32", 60, "a&b é"]));
    for wrong in [
        "POST /ban",
        "POST /ban?net=1",
        "POST /ban?net=1&seconds=x",
        "POST /ban?net=%zz&seconds=1",
        "POST /ban?net=%f&seconds=1",
        "POST /ban?net=%ff&seconds=1",
        "POST /unban",
        "POST /unban?net=%",
    ] {
        assert!(asked(wrong).starts_with("HTTP/1.1 400 "), "{wrong}");
    }
    assert!(asked("POST /ban?net=planet&seconds=1").starts_with("HTTP/1.1 409 "));
    assert!(asked("GET /ban?net=1&seconds=1").starts_with("HTTP/1.1 405 "));
    assert_eq!(body(&asked("POST /unban?net=192.0.2.1")), json!("192.0.2.1"));
    assert_eq!(body(&asked("GET /bans")), json!({ "bans": [] }));
}
