//! Backends that die, in every way we know of: what the client gets, that nothing of it is left for the next request, and
//! that both logs name the endpoint and the cause.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::BodyExt;

use crate::harness::client::{empty, read};
use crate::harness::origin::Exchange;
use crate::harness::{Answer, Gate, H2, Origin, Proxy, Wire, wait_for, within};
use crate::limits::full_listener;

const SITE: &str = "shop.test";

/// What a client sees of a request whose backend dies.
#[derive(Clone, Copy, PartialEq)]
enum Sees {
    /// An answer of ours.
    Status(u16),
    /// The backend's answer, which has this body.
    Whole(&'static str),
    /// The beginning of the backend's answer, and that it was cut.
    Cut,
}
use Sees::{Cut, Status, Whole};

/// A way to die.
struct Way {
    name: &'static str,
    sees: Sees,
    outcome: &'static str,
    /// What the process log says of it; empty where nothing went wrong.
    cause: &'static str,
}

#[rustfmt::skip]
const WAYS: [Way; 17] = [
    Way { name: "refuse", sees: Status(502), outcome: "CONNECT-REFUSED", cause: "nothing listens on that port" },
    Way { name: "black-hole", sees: Status(504), outcome: "CONNECT-TIMEOUT", cause: "no connection within 300ms" },
    Way { name: "reset-before-head", sees: Status(502), outcome: "UPSTREAM-CLOSED", cause: "eset by peer" },
    Way { name: "reset-mid-head", sees: Status(502), outcome: "UPSTREAM-CLOSED", cause: "eset by peer" },
    Way { name: "close-mid-head", sees: Status(502), outcome: "UPSTREAM-CLOSED", cause: "closed before message completed" },
    Way { name: "hang-before-head", sees: Status(504), outcome: "UPSTREAM-TIMEOUT", cause: "no answer began within 600ms" },
    Way { name: "drip-head", sees: Status(504), outcome: "UPSTREAM-TIMEOUT", cause: "no answer began within 600ms" },
    Way { name: "garbage", sees: Status(502), outcome: "UPSTREAM-INVALID", cause: "breaks the grammar" },
    Way { name: "huge-head", sees: Status(502), outcome: "UPSTREAM-INVALID", cause: "larger than limits.upstream_head" },
    Way { name: "endless-interim", sees: Status(502), outcome: "UPSTREAM-INVALID", cause: "more than 16 interim answers" },
    Way { name: "reset-mid-body", sees: Cut, outcome: "UPSTREAM-TRUNCATED", cause: "eset by peer" },
    Way { name: "too-short", sees: Cut, outcome: "UPSTREAM-TRUNCATED", cause: "end of file before message length reached" },
    Way { name: "bad-chunk", sees: Cut, outcome: "UPSTREAM-INVALID", cause: "chunks are malformed" },
    Way { name: "hang-mid-body", sees: Cut, outcome: "UPSTREAM-STALLED", cause: "nothing more of the answer came within 1s" },
    Way { name: "drip-body", sees: Whole("half, and the rest of it"), outcome: "OK", cause: "" },
    Way { name: "too-long", sees: Whole("half"), outcome: "OK", cause: "bytes came that answer no request" },
    Way { name: "keep-alive-race", sees: Whole("again"), outcome: "OK", cause: "closed before message completed" },
];

const HALF: &str = "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf";

/// Dies as it is called, unless it is asked for something fine. `seen`: the client has the beginning of the answer;
/// `used`: connections that carried a request already.
async fn die(mut x: Exchange, way: &str, seen: Gate, used: Arc<Mutex<HashSet<usize>>>) -> Option<Exchange> {
    if x.request.target().ends_with("/fine") {
        used.lock().unwrap().insert(x.request.connection);
        x.answer(Answer::ok(way)).await.ok()?;
        return Some(x);
    }
    match way {
        "reset-before-head" => x.wire.reset(),
        "reset-mid-head" => {
            x.write("HTTP/1.1 200 OK\r\nContent-Le").await.ok()?;
            x.wire.reset();
        }
        "close-mid-head" => x.write("HTTP/1.1 200 OK\r\nContent-Le").await.ok()?,
        "hang-before-head" => x.until_closed().await,
        "drip-head" => drip(&mut x, &HALF.as_bytes()[..30]).await,
        "garbage" => x.write("ICY 200 OK\r\n\r\n").await.ok()?,
        "huge-head" => {
            let field = format!("X-Large: {}\r\n", "x".repeat(100));
            x.write(format!("HTTP/1.1 200 OK\r\n{}\r\n", field.repeat(1_000))).await.ok()?;
        }
        "endless-interim" => while x.write("HTTP/1.1 103 Early Hints\r\n\r\n").await.is_ok() {},
        "reset-mid-body" => {
            x.write(HALF).await.ok()?;
            seen.pass().await;
            x.wire.reset();
        }
        "too-short" => x.write(HALF).await.ok()?,
        "bad-chunk" => {
            x.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n").await.ok()?;
            seen.pass().await;
            x.write("-4\r\nhalf\r\n").await.ok()?;
        }
        "hang-mid-body" => {
            x.write(HALF).await.ok()?;
            x.until_closed().await;
        }
        "drip-body" => {
            x.write("HTTP/1.1 200 OK\r\nContent-Length: 24\r\n\r\n").await.ok()?;
            drip(&mut x, b"half, and the rest of it").await;
            return Some(x);
        }
        "too-long" => {
            x.write("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhalf of what it sends").await.ok()?;
            return Some(x);
        }
        // It closes while the next request is on its way to it.
        "keep-alive-race" if used.lock().unwrap().contains(&x.request.connection) => {}
        "keep-alive-race" => {
            x.answer(Answer::ok("again")).await.ok()?;
            return Some(x);
        }
        other => panic!("nobody dies by {other}"),
    }
    None
}

/// Byte by byte; the pace is what is tested.
async fn drip(x: &mut Exchange, bytes: &[u8]) {
    let mut pace = tokio::time::interval(Duration::from_millis(40));
    for byte in bytes {
        pace.tick().await;
        if x.write([*byte]).await.is_err() {
            return;
        }
    }
}

/// The backend of one way and one client, so that no other's failures stand in the log in its place.
struct Dying {
    way: &'static Way,
    route: String,
    address: String,
    seen: Gate,
    origin: Option<Origin>,
}

impl Dying {
    async fn of(way: &'static Way, client: &str, full: &str) -> Dying {
        let (route, seen) = (format!("/{}/{client}", way.name), Gate::default());
        if let "refuse" | "black-hole" = way.name {
            let nobody = Origin::saying("").await.kill().await.to_string();
            let address = if way.name == "refuse" { nobody } else { full.to_string() };
            return Dying { way, route, address, seen, origin: None };
        }
        let (gate, used) = (seen.clone(), Arc::default());
        let origin = Origin::scripted(move |x| die(x, way.name, gate.clone(), Arc::clone(&used))).await;
        Dying { way, route, address: origin.address().to_string(), seen, origin: Some(origin) }
    }

    fn text(&self) -> String {
        let Dying { route, address, .. } = self;
        format!(
            "[[site.\"{SITE}\".route]]\npath = \"{route}\"\nbackends = [\"{address}\"]\nconnect_timeout = \
             \"300ms\"\ntimeout = \"600ms\"\n"
        )
    }

    /// What the two logs must say.
    async fn is_told(&self, proxy: &Proxy) {
        let Dying { way, route, address, .. } = self;
        let record = wait_for(&format!("the record of {route}"), || async {
            proxy.access_log().into_iter().find(|record| record["path"] == *route)
        })
        .await;
        assert_eq!(
            (&record["outcome"], &record["upstream"]),
            (&way.outcome.into(), &(&**address).into()),
            "{record}"
        );
        let named = |line: &&str| line.contains(&**address) && line.contains("WARN");
        if way.cause.is_empty() {
            let log = proxy.stderr();
            return assert_eq!(log.lines().find(named), None, "{route}: nothing went wrong");
        }
        wait_for(&format!("{route}: a line with {:?} about {address}", way.cause), || async {
            let log = proxy.stderr();
            log.lines().filter(named).any(|line| line.contains(way.cause)).then_some(())
        })
        .await;
    }
}

async fn fine_h1(wire: &mut Wire, dying: &Dying) {
    assert_eq!(wire.get(SITE, "/").await.text(), "fine", "{}", dying.route);
    if dying.origin.is_some() {
        let reply = wire.get(SITE, &format!("{}/fine", dying.route)).await;
        assert_eq!((reply.status, reply.text().as_str()), (200, dying.way.name), "{}", dying.route);
    }
}

/// A client that keeps its HTTP/1.1 connection as long as that is possible.
async fn over_h1(proxy: &Proxy, dying: &[Dying]) {
    let mut wire = proxy.wire(SITE).await;
    for dying in dying {
        fine_h1(&mut wire, dying).await;
        wire.send(format!("GET {} HTTP/1.1\r\nHost: {SITE}\r\n\r\n", dying.route)).await;
        match dying.way.sees {
            Status(status) => wire.reply().await.expect(status, dying.way.outcome),
            Whole(body) => assert_eq!(wire.reply().await.text(), body, "{}", dying.route),
            Cut => {
                let head = within("a head", wire.reply_head()).await.unwrap();
                assert_eq!(head.status, 200, "{}", dying.route);
                while !wire.ahead.ends_with(b"half") && !wire.ahead.ends_with(b"half\r\n") {
                    assert!(within("half", wire.fill()).await.unwrap() > 0, "{}", dying.route);
                }
                dying.seen.open();
                // A length that is not reached, or chunks without their end.
                let body = wire.closed().await;
                assert!(body.len() < 20 && !body.ends_with(b"0\r\n\r\n"), "{}: {body:?}", dying.route);
                wire = proxy.wire(SITE).await;
            }
        }
        fine_h1(&mut wire, dying).await;
        dying.is_told(proxy).await;
    }
}

async fn fine_h2(client: &mut H2, dying: &Dying) {
    assert_eq!(client.get("/").await.text(), "fine", "{}", dying.route);
    if dying.origin.is_some() {
        let reply = client.get(&format!("{}/fine", dying.route)).await;
        assert_eq!((reply.status, reply.text().as_str()), (200, dying.way.name), "{}", dying.route);
    }
}

/// A client for all of whose requests one HTTP/2 connection is enough.
async fn over_h2(proxy: &Proxy, dying: &[Dying]) {
    let mut client = proxy.h2(SITE).await;
    for dying in dying {
        fine_h2(&mut client, dying).await;
        let request = client.request("GET", &dying.route).body(empty()).unwrap();
        let mut response = client.start(request).await.expect("a head");
        match dying.way.sees {
            Status(status) => {
                within("the answer", read(response)).await.unwrap().expect(status, dying.way.outcome);
            }
            Whole(body) => {
                let reply = within("the answer", read(response)).await.unwrap();
                assert_eq!(reply.text(), body, "{}", dying.route);
            }
            Cut => {
                assert_eq!(response.status(), 200, "{}", dying.route);
                let first = within("half", response.frame()).await.unwrap().unwrap();
                assert_eq!(first.into_data().unwrap(), "half", "{}", dying.route);
                dying.seen.open();
                let rest = within("the end", response.into_body().collect()).await;
                assert!(rest.is_err(), "{}: it looked whole", dying.route);
            }
        }
        fine_h2(&mut client, dying).await;
        dying.is_told(proxy).await;
    }
    assert!(!client.driver.is_finished(), "one connection was enough");
}

#[tokio::test]
async fn however_a_backend_dies_the_client_learns_it_the_next_request_is_well_and_the_logs_name_the_cause() {
    let fine = Origin::saying("fine").await;
    let (full, _queued, _socket) = full_listener();
    let (full, mut text) = (full.to_string(), fine.backends() + "\n");
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for way in &WAYS {
        for (client, list) in [("h1", &mut first), ("h2", &mut second)] {
            let dying = Dying::of(way, client, &full).await;
            text.push_str(&dying.text());
            list.push(dying);
        }
    }
    let proxy = Proxy::builder()
        .set("server.timeouts.tunnel", "\"1s\"")
        .site(SITE, &format!("[site.\"{SITE}\"]\n{text}"));
    let proxy = proxy.start().await;
    over_h1(&proxy, &first).await;
    over_h2(&proxy, &second).await;
}
