//! Ten thousand clients that do nothing, on one worker.

use std::sync::Arc;

use rustls::version::TLS13;
use tokio::sync::Semaphore;

use crate::harness::tls::{client_config, connect};
use crate::harness::{DEADLINE, Origin, Proxy, Wire, tool, within_for};

const SITE: &str = "shop.test";
const CONNECTIONS: usize = 10_000;
/// Above this something is kept per connection that should not be.
const KIB_EACH_MAX: u64 = 100;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_idle_tls_connections_are_held_and_still_answer() {
    let limit = tool::raise_file_limit();
    // Other tests of this binary run beside this one: leave them some.
    if limit < CONNECTIONS as u64 + 2_000 {
        tool::skip(&format!(
            "only {limit} files may be open (ulimit -Hn), {} are needed",
            CONNECTIONS + 2_000
        ));
        return;
    }
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::builder()
        .set("server.max_connections", "12000")
        .set("server.max_connections_per_client", "0")
        .set("server.timeouts.idle", "\"10m\"")
        // At four fifths of `max_connections` idle ones would be closed.
        .set("server.overload.mode", "\"shadow\"")
        .site(SITE, &origin.backends())
        .start()
        .await;
    assert_eq!(proxy.get(SITE, "/").await.status, 200);
    let before = tool::rss_kib(proxy.pid());
    let config = client_config(&proxy.ca_pem(), &["http/1.1"], &[&TLS13]);
    let (address, at_once) = (proxy.https(), Arc::new(Semaphore::new(64)));
    let mut opening = tokio::task::JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (config, at_once) = (config.clone(), at_once.clone());
        opening.spawn(async move {
            let _turn = at_once.acquire().await.unwrap();
            let mut wire = connect(config, address, SITE).await.expect("a TLS connection");
            assert_eq!(wire.get(SITE, "/").await.status, 200);
            wire
        });
    }
    let mut held: Vec<Wire> = within_for(DEADLINE * 9, "all connections", opening.join_all()).await;
    let status = proxy.status().await;
    assert!(status["connections"].as_u64().unwrap() >= CONNECTIONS as u64, "{}", status["connections"]);
    let each = tool::rss_kib(proxy.pid()).saturating_sub(before) as f64 / CONNECTIONS as f64;
    tool::report(&format!("{CONNECTIONS} idle TLS connections, {each:.1} KiB each"));
    assert!(each < KIB_EACH_MAX as f64, "{each:.1} KiB for each connection");
    for wire in held.iter_mut().step_by(100) {
        assert_eq!(wire.get(SITE, "/").await.status, 200, "an idle connection answers again");
    }
}
