//! Many client addresses through the PROXY protocol: memory stays within its bound, and the honest client is limited as if it
//! were alone. A short run here; `scripts/bench-spray` runs it with as many as you like.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::harness::Proxy;

const SITE: &str = "shop.test";
/// Requests of the honest client that pass in an hour.
const HONEST: u64 = 50;
/// Those of all others in one /48, in an hour.
const NET: u64 = 400;
/// Tasks that open connections.
const SPRAYERS: u64 = 32;
/// The table of buckets: 16 bytes each.
const ENTRIES: u64 = 1 << 20;

/// What the run opens: from the environment, else few enough for every day.
fn connections() -> u64 {
    std::env::var("TIDEGATE_SPRAY").ok().and_then(|count| count.parse().ok()).unwrap_or(4_000)
}

/// The `n`th address: within one /48, each in a /64 of its own as far as there are such (65,536), then others in them.
fn sprayed(n: u64) -> Ipv6Addr {
    let (net, host) = (n & 0xffff, n >> 16);
    Ipv6Addr::from((0x2001_0db8_0001_u128 << 80) | (u128::from(net) << 64) | u128::from(host + 1))
}

/// The `n`th address, each in a /48 of its own.
fn scattered(n: u64) -> Ipv6Addr {
    Ipv6Addr::from((0x2600_u128 << 112) | (u128::from(n) << 80) | 1)
}

/// A header of version 2 for this client.
fn header(client: Ipv6Addr) -> Vec<u8> {
    let mut out = b"\r\n\r\n\0\r\nQUIT\n\x21\x21\x00\x24".to_vec();
    out.extend(client.octets());
    out.extend(Ipv6Addr::LOCALHOST.octets());
    out.extend(4711u16.to_be_bytes());
    out.extend(80u16.to_be_bytes());
    out
}

/// A connection from one of many loopback addresses, so that no run is short of ports.
async fn connect(to: SocketAddr, n: u64) -> std::io::Result<TcpStream> {
    let [.., a, b, c] = n.to_be_bytes();
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((Ipv4Addr::new(127, a % 200 + 1, b, c.max(1)), 0)))?;
    socket.connect(to).await
}

/// One request on a connection of its own; the status.
async fn once(to: SocketAddr, n: u64, client: Ipv6Addr) -> std::io::Result<u16> {
    let mut stream = connect(to, n).await?;
    let mut bytes = header(client);
    bytes.extend(format!("GET / HTTP/1.1\r\nHost: {SITE}\r\nConnection: close\r\n\r\n").as_bytes());
    stream.write_all(&bytes).await?;
    let mut answer = Vec::with_capacity(512);
    stream.read_to_end(&mut answer).await?;
    let status = answer.get(9..12).and_then(|status| std::str::from_utf8(status).ok()?.parse().ok());
    // Closed by the other side: the port is not held back here.
    status.ok_or_else(|| std::io::Error::other("no answer"))
}

#[derive(Default)]
struct Seen {
    allowed: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
}

/// Sprays `count` addresses; meanwhile the honest client asks again and again, on a connection of its own.
async fn spray(proxy: &Proxy, count: u64, address: fn(u64) -> Ipv6Addr) -> (Seen, Vec<u16>, f64) {
    let (seen, to) = (Arc::new(Seen::default()), proxy.http());
    let (next, begin) = (Arc::new(AtomicU64::new(0)), Instant::now());
    let mut sprayers = tokio::task::JoinSet::new();
    for _ in 0..SPRAYERS {
        let (seen, next) = (seen.clone(), next.clone());
        sprayers.spawn(async move {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= count {
                    return;
                }
                match once(to, n, address(n)).await {
                    Ok(200) => seen.allowed.fetch_add(1, Ordering::Relaxed),
                    Ok(429) => seen.refused.fetch_add(1, Ordering::Relaxed),
                    _ => seen.failed.fetch_add(1, Ordering::Relaxed),
                };
            }
        });
    }
    let mut honest = Vec::new();
    let mut at = 0;
    // Spread over the whole run: a fiftieth of the addresses between two of its requests.
    while !sprayers.is_empty() || honest.len() < 2 * HONEST as usize {
        if next.load(Ordering::Relaxed) >= at || sprayers.is_empty() {
            honest.push(once(to, 1 << 40, "2001:db8:ffff::1".parse().unwrap()).await.unwrap_or(0));
            at += count / (2 * HONEST) + 1;
        }
        tokio::select! {
            Some(ended) = sprayers.join_next() => ended.expect("a sprayer"),
            () = tokio::time::sleep(Duration::from_millis(1)) => {}
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    (Arc::into_inner(seen).expect("all have ended"), honest, seconds)
}

async fn proxy(limit: &str) -> Proxy {
    Proxy::builder()
        .set("server.trusted_proxies", "[\"127.0.0.0/8\"]")
        .set("server.proxy_protocol", "true")
        .set("server.limit_entries", &ENTRIES.to_string())
        .set("server.workers", "2")
        .set("log.access", "\"off\"")
        .site(SITE, &format!("plain_http = true\nrespond = {{ body = \"ok\" }}\nlimit = {limit}"))
        .start()
        .await
}

async fn memory(proxy: &Proxy) -> f64 {
    proxy.metrics().await.sum("process_resident_memory_bytes", &[]) / f64::from(1 << 20)
}

fn told(what: &str, count: u64, seen: &Seen, seconds: f64, before: f64, after: f64) {
    println!(
        "{what}: {count} addresses in {seconds:.1} s ({:.0}/s): {} passed, {} refused, {} failed; memory {before:.1} MiB before, \
         {after:.1} MiB after (bound of the table: {} MiB)",
        count as f64 / seconds,
        seen.allowed.load(Ordering::Relaxed),
        seen.refused.load(Ordering::Relaxed),
        seen.failed.load(Ordering::Relaxed),
        (ENTRIES * 16) >> 20,
    );
}

/// Beyond the table a run may cost what connections cost while they are open.
const MEMORY_MIB: f64 = ((ENTRIES * 16) >> 20) as f64 + 48.0;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_sprays_within_a_48_is_limited_as_one_and_the_honest_client_as_itself() {
    let limits = format!("[\"{HONEST} per 1h by client-ip\", \"{NET} per 1h by client-net\"]");
    let proxy = proxy(&limits).await;
    let (count, before) = (connections(), memory(&proxy).await);
    let (seen, honest, seconds) = spray(&proxy, count, sprayed).await;
    let after = memory(&proxy).await;
    told("within one /48", count, &seen, seconds, before, after);
    // A few units come back while it runs.
    let returned = (seconds * NET as f64 / 3600.0).ceil() as u64 + 1;
    let allowed = seen.allowed.into_inner();
    assert!((NET..=NET + returned).contains(&allowed), "{allowed} of one /48 passed");
    let passed = honest.iter().filter(|status| **status == 200).count() as u64;
    let returned = (seconds * HONEST as f64 / 3600.0).ceil() as u64 + 1;
    assert!(
        (HONEST..=HONEST + returned).contains(&passed),
        "{passed} of {} passed: {honest:?}",
        honest.len()
    );
    assert!(after - before < MEMORY_MIB, "memory grew from {before:.1} to {after:.1} MiB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn however_many_addresses_there_are_the_table_holds_and_the_honest_client_is_limited() {
    let proxy = proxy(&format!("\"{HONEST} per 1h by client-ip\"")).await;
    let (count, before) = (connections(), memory(&proxy).await);
    let (seen, honest, seconds) = spray(&proxy, count, scattered).await;
    let after = memory(&proxy).await;
    told("each in a /48 of its own", count, &seen, seconds, before, after);
    assert_eq!(seen.refused.into_inner(), 0, "each of them asks once");
    let passed = honest.iter().filter(|status| **status == 200).count() as u64;
    let returned = (seconds * HONEST as f64 / 3600.0).ceil() as u64 + 1;
    assert!(
        (HONEST..=HONEST + returned).contains(&passed),
        "{passed} of {} passed: {honest:?}",
        honest.len()
    );
    assert!(after - before < MEMORY_MIB, "memory grew from {before:.1} to {after:.1} MiB");
}
