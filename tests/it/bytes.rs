//! A gigabyte through each direction: every byte the same, and none of it kept.

use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{Answer, DEADLINE, Origin, Proxy, Wire, tool, within, within_for};

const SITE: &str = "shop.test";
const TOTAL: usize = 1 << 30;
const PIECE: usize = 64 << 10;
/// What the proxy may grow by while it carries a gigabyte: buffers, not bodies.
const GROWTH_KIB_MAX: u64 = 24 << 10;

/// The n-th piece: different from every other, so that a lost, doubled or swapped one changes the sum.
fn piece(n: usize, into: &mut [u8]) {
    let mut state = n as u64 ^ 0x9e37_79b9_7f4a_7c15;
    for word in into.chunks_exact_mut(8) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        word.copy_from_slice(&state.to_le_bytes());
    }
}

async fn generate(wire: &mut Wire) -> std::io::Result<String> {
    let (mut sum, mut bytes) = (Sha256::new(), vec![0; PIECE]);
    for n in 0..TOTAL / PIECE {
        piece(n, &mut bytes);
        sum.update(&bytes);
        wire.io.write_all(&bytes).await?;
    }
    wire.io.flush().await?;
    Ok(hex(sum))
}

async fn absorb(wire: &mut Wire) -> std::io::Result<String> {
    let mut sum = Sha256::new();
    let ahead = std::mem::take(&mut wire.ahead);
    sum.update(&ahead);
    let (mut left, mut bytes) = (TOTAL - ahead.len(), vec![0; PIECE]);
    while left > 0 {
        let take = left.min(PIECE);
        let n = wire.io.read(&mut bytes[..take]).await?;
        if n == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        sum.update(&bytes[..n]);
        left -= n;
    }
    Ok(hex(sum))
}

fn hex(sum: Sha256) -> String {
    sum.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gigabyte_down_arrives_as_it_was_sent() {
    let origin = Origin::scripted(|mut x| async move {
        x.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {TOTAL}\r\n\r\n")).await.ok()?;
        let sum = generate(&mut x.wire).await.ok()?;
        assert_eq!(sum.len(), 64);
        Some(x)
    })
    .await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let mut wire = proxy.wire(SITE).await;
    wire.send(format!("GET / HTTP/1.1\r\nHost: {SITE}\r\n\r\n")).await;
    within("the head", wire.reply_head()).await.unwrap();
    let download = within_for(DEADLINE * 6, "the download", absorb(&mut wire));
    let (received, grown) = tool::watched(proxy.pid(), download).await;
    let mut expected = Sha256::new();
    let mut bytes = vec![0; PIECE];
    for n in 0..TOTAL / PIECE {
        piece(n, &mut bytes);
        expected.update(&bytes);
    }
    assert_eq!(received.unwrap(), hex(expected));
    tool::report(&format!("1 GiB down, the proxy grew by {grown} KiB"));
    assert!(grown < GROWTH_KIB_MAX, "the proxy grew by {grown} KiB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gigabyte_up_arrives_as_it_was_sent() {
    let origin = Origin::scripted(|mut x| async move {
        let sum = absorb(&mut x.wire).await.ok()?;
        x.answer(Answer::ok(sum)).await.ok()?;
        Some(x)
    })
    .await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let mut wire = proxy.wire(SITE).await;
    wire.send(format!("POST / HTTP/1.1\r\nHost: {SITE}\r\nContent-Length: {TOTAL}\r\n\r\n")).await;
    let upload = within_for(DEADLINE * 6, "the upload", generate(&mut wire));
    let (sent, grown) = tool::watched(proxy.pid(), upload).await;
    let reply = wire.reply_to("POST").await;
    assert_eq!((reply.status, reply.text()), (200, sent.unwrap()));
    tool::report(&format!("1 GiB up, the proxy grew by {grown} KiB"));
    assert!(grown < GROWTH_KIB_MAX, "the proxy grew by {grown} KiB");
}
