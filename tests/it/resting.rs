//! Connections that wait for a request for a while are put to rest: what they cost shrinks, and nothing else changes.

use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::harness::tls::{client_config, connect};
use crate::harness::{Origin, Proxy, ProxyBuilder, Wire, wait_for, within};

const SITE: &str = "shop.test";
const GET: &str = "GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n";

fn at(origin: &Origin) -> ProxyBuilder {
    // One worker: what has rested before shows where a connection stands.
    Proxy::builder()
        .set("server.workers", "1")
        .site(SITE, &format!("{}\nplain_http = true", origin.backends()))
}

async fn rest(proxy: &Proxy, count: usize) {
    let there = || async {
        (proxy.metrics().await.sum("tidegate_connections_resting", &[]) == count as f64).then_some(())
    };
    wait_for("connections at rest", there).await;
}

async fn gone(proxy: &Proxy, listener: &str, closed: usize) {
    let all_gone = || async {
        let (metrics, listener) = (proxy.metrics().await, [("listener", listener)]);
        let sum = |name| metrics.sum(name, &listener);
        let ended = sum("tidegate_connections_active") == 0.0
            && sum("tidegate_connections_closed_total") == closed as f64;
        ended.then_some(())
    };
    wait_for("connections to be closed", all_gone).await;
    rest(proxy, 0).await;
}

/// A connection of every kind.
async fn wires(proxy: &Proxy) -> Vec<Wire> {
    let mut wires = vec![proxy.plain().await];
    for version in [&TLS12, &TLS13] {
        let config = client_config(&proxy.ca_pem(), &["http/1.1"], &[version]);
        wires.push(connect(config, proxy.https(), SITE).await.unwrap());
    }
    wires
}

/// A connection of every kind, each at rest after an answer.
async fn rested(proxy: &Proxy) -> Vec<Wire> {
    let mut wires = wires(proxy).await;
    for wire in &mut wires {
        assert_eq!(wire.get(SITE, "/").await.text(), "ok");
    }
    rest(proxy, 3).await;
    wires
}

#[tokio::test]
async fn a_connection_at_rest_serves_again() {
    let origin = Origin::saying("ok").await;
    let proxy = at(&origin).start().await;
    let mut wires = rested(&proxy).await;
    for wire in &mut wires {
        // Two at once, and the beginning of a third.
        wire.send(format!("{GET}{GET}GET / HT")).await;
        assert_eq!(wire.reply().await.text(), "ok");
        assert_eq!(wire.reply().await.text(), "ok");
    }
    // Another has gone to rest meanwhile: long enough for these, if they could.
    let mut other = proxy.wire(SITE).await;
    assert_eq!(other.get(SITE, "/").await.text(), "ok");
    rest(&proxy, 1).await;
    for wire in &mut wires {
        wire.send("TP/1.1\r\nHost: shop.test\r\n\r\n").await;
        assert_eq!(wire.reply().await.text(), "ok");
    }
    rest(&proxy, 4).await;
    for wire in &mut wires {
        wire.send("POST / HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 4\r\n\r\nbo").await;
        rest(&proxy, 3).await;
        wire.send("dy").await;
        assert_eq!(wire.reply().await.text(), "ok");
        rest(&proxy, 4).await;
    }
    assert_eq!(origin.count(), 3 * 5 + 1);
}

#[tokio::test]
async fn a_connection_that_says_nothing_rests_and_may_speak_later() {
    let origin = Origin::saying("ok").await;
    let proxy = at(&origin).start().await;
    let mut wires = wires(&proxy).await;
    rest(&proxy, 3).await;
    for wire in &mut wires {
        assert_eq!(wire.get(SITE, "/").await.text(), "ok");
    }
}

#[tokio::test]
async fn deadlines_pass_for_connections_at_rest() {
    let origin = Origin::saying("ok").await;
    let proxy =
        at(&origin).set("server.timeouts.idle", "\"2s\"").set("server.timeouts.head", "\"2s\"").start().await;
    let silent = wires(&proxy).await;
    let mut spoken = wires(&proxy).await;
    for wire in &mut spoken {
        assert_eq!(wire.get(SITE, "/").await.text(), "ok");
    }
    rest(&proxy, 6).await;
    for mut wire in silent.into_iter().chain(spoken) {
        // In order, and without a word.
        wire.closed().await;
    }
    gone(&proxy, "https", 4).await;
    gone(&proxy, "http", 2).await;
}

#[tokio::test]
async fn a_head_begun_after_a_rest_has_its_own_deadline() {
    let origin = Origin::saying("ok").await;
    let proxy = at(&origin).set("server.timeouts.head", "\"1s\"").start().await;
    let mut wire = proxy.wire(SITE).await;
    assert_eq!(wire.get(SITE, "/").await.text(), "ok");
    rest(&proxy, 1).await;
    wire.send("GET / HTTP/1.1\r\n").await;
    wire.reply().await.expect(408, "HEAD-TIMEOUT");
}

#[tokio::test]
async fn a_client_that_leaves_a_connection_at_rest_is_noticed() {
    let origin = Origin::saying("ok").await;
    let proxy = at(&origin).start().await;
    for round in 1..=3 {
        let mut wires = wires(&proxy).await;
        for wire in &mut wires {
            assert_eq!(wire.get(SITE, "/").await.text(), "ok");
        }
        rest(&proxy, 3).await;
        for mut wire in wires {
            match round {
                1 => {
                    wire.finish().await;
                    wire.closed().await;
                }
                2 => drop(wire),
                _ => {
                    wire.reset();
                }
            }
        }
        gone(&proxy, "https", round * 2).await;
        gone(&proxy, "http", round).await;
    }
}

#[tokio::test]
async fn a_drain_ends_connections_at_rest() {
    let origin = Origin::saying("ok").await;
    let mut proxy = at(&origin).start().await;
    let mut wires = wires(&proxy).await;
    for wire in &mut wires {
        assert_eq!(wire.get(SITE, "/").await.text(), "ok");
    }
    wires.extend(self::wires(&proxy).await);
    rest(&proxy, 6).await;
    proxy.signal(rustix::process::Signal::TERM);
    for mut wire in wires {
        wire.closed().await;
    }
    assert!(proxy.ended().await.success());
}

#[tokio::test]
async fn bytes_that_are_no_request_are_answered_after_a_rest() {
    let origin = Origin::saying("ok").await;
    let proxy = at(&origin).start().await;
    let mut wires = rested(&proxy).await;
    for (wire, left) in wires.iter_mut().zip([2, 1, 0]) {
        wire.send("GET / HTTP/1.1\nHost: shop.test\n\n").await;
        wire.reply().await.expect(400, "BAD-REQUEST");
        wire.closed().await;
        rest(&proxy, left).await;
    }
}

#[tokio::test]
async fn a_tls_record_in_pieces_wakes_a_connection_and_lets_it_rest_again() {
    let origin = Origin::saying("ok").await;
    let proxy = at(&origin).start().await;
    let config = client_config(&proxy.ca_pem(), &["http/1.1"], &[&TLS13]);
    let tcp = TcpStream::connect(proxy.https()).await.unwrap();
    let name = ServerName::try_from(SITE).unwrap();
    let (mut tcp, mut tls) = TlsConnector::from(config).connect(name, tcp).await.unwrap().into_inner();
    rest(&proxy, 1).await;
    let mut record = Vec::new();
    std::io::Write::write_all(&mut tls.writer(), GET.as_bytes()).unwrap();
    while tls.wants_write() {
        tls.write_tls(&mut record).unwrap();
    }
    let (first, second) = record.split_at(record.len() / 2);
    // Half of a record says nothing yet: whoever holds it back costs no more than before.
    tcp.write_all(first).await.unwrap();
    rest(&proxy, 0).await;
    rest(&proxy, 1).await;
    tcp.write_all(second).await.unwrap();
    let mut answer = Vec::new();
    within("an answer", async {
        let mut bytes = [0; 4096];
        while !answer.ends_with(b"ok") {
            let count = tcp.read(&mut bytes).await.unwrap();
            assert_ne!(count, 0, "{}", String::from_utf8_lossy(&answer));
            let mut read = &bytes[..count];
            while !read.is_empty() {
                tls.read_tls(&mut read).unwrap();
                tls.process_new_packets().unwrap();
            }
            // What is there and not the end of it.
            let _ = std::io::Read::read_to_end(&mut tls.reader(), &mut answer);
        }
    })
    .await;
}
