//! The test house: a real Tidegate process, scripted backends and strict clients, all on loopback and port zero.

pub mod api;
pub mod bind;
pub mod client;
pub mod deploy;
pub mod docker;
pub mod front;
pub mod h2_origin;
pub mod h2raw;
pub mod mmdb;
pub mod origin;
pub mod pebble;
pub mod pipeline;
pub mod port;
pub mod proxy;
pub mod strict;
pub mod tls;
pub mod tool;
pub mod wire;

use std::future::Future;
use std::time::{Duration, Instant};

pub use client::H2;
pub use docker::FakeDocker;
pub use front::Front;
pub use h2_origin::H2Origin;
pub use origin::{Answer, Exchange, Origin, Received};
pub use pebble::Pebble;
pub use proxy::{Proxy, ProxyBuilder};
pub use wire::{Head, Reply, Wire};

/// How long anything asynchronous may take before a test gives up. Generous: machines are shared; nothing waits
/// this long unless it fails.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Awaits with the deadline.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    within_for(DEADLINE, what, future).await
}

/// Awaits with a deadline of one's own.
pub async fn within_for<T>(deadline: Duration, what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(deadline, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {deadline:?} for {what}"),
    }
}

/// Polls a condition until it holds or the deadline passes: for effects that no answer announces.
pub async fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "waited {DEADLINE:?} for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Polls a question to the proxy until the answer is `Some`.
pub async fn wait_for<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = ask().await {
            return found;
        }
        assert!(start.elapsed() < DEADLINE, "waited {DEADLINE:?} for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A gate a test opens: scripts wait at it, so the test and not the clock decides the order of things.
#[derive(Clone, Default)]
pub struct Gate(std::sync::Arc<tokio::sync::Notify>, std::sync::Arc<std::sync::atomic::AtomicBool>);

impl Gate {
    /// Lets everybody through, now and later.
    pub fn open(&self) {
        self.1.store(true, std::sync::atomic::Ordering::SeqCst);
        self.0.notify_waiters();
    }

    /// Waits for [`Gate::open`].
    pub async fn pass(&self) {
        loop {
            let notified = self.0.notified();
            if self.1.load(std::sync::atomic::Ordering::SeqCst) {
                return;
            }
            notified.await;
        }
    }
}
