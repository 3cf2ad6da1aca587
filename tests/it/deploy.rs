//! Containers of a real engine are replaced while people use them, and no request fails.
//!
//! A tunnel lives as long as the container at its other end: when that is stopped, the tunnel ends. What must not fail is
//! the next one, opened at once; and tunnels to containers that live are left alone.
//!
//! `TIDEGATE_TEST_DEPLOYS=20` makes the everyday run the long one, `TIDEGATE_TEST_DEPLOY_KILLS=60` likewise.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::harness::deploy::{Front, Load, Service, possible};
use crate::harness::{Proxy, Wire, port, tool, wait_for, within};

const SITE: &str = "deploy.test";
const CONTAINERS: usize = 5;
/// How long a container goes on listening once it is told to stop, in milliseconds. One that cuts idle connections in that
/// very moment can cut one on which an upload was just begun, and nobody may send that twice (RFC 9110 section 9.2.2).
const LINGER: u32 = 300;

fn often(variable: &str, usually: usize) -> usize {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(usually)
}

/// A site that the labels of running containers make, and the proxy before it.
async fn deployed(name: &str, linger: u32) -> (Service, Arc<Proxy>) {
    let labels = [("tidegate.site", SITE)];
    let mut service = Service::new(name, linger, &labels).await;
    for _ in 0..CONTAINERS {
        service.start().await;
    }
    let network = format!("{:?}", service.tag);
    let proxy = Proxy::builder()
        .set("server.workers", "2")
        .set("docker.network", &network)
        .site("other.test", "respond = { status = 200, body = \"0\" }")
        .start()
        .await;
    until(&proxy, CONTAINERS).await;
    (service, Arc::new(proxy))
}

/// Waits until so many containers take part.
async fn until(proxy: &Proxy, count: usize) {
    found(proxy, "docker-labels:deploy.test|/", count).await;
}

async fn found(proxy: &Proxy, source: &str, count: usize) {
    let source = [("source", source)];
    wait_for(&format!("{count} endpoints"), || async {
        let found = proxy.metrics().await.sum("tidegate_discovered_endpoints", &source);
        (found == count as f64).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rolling_deploys_and_reloads_fail_no_request() {
    if !possible() {
        return;
    }
    let rounds = often("TIDEGATE_TEST_DEPLOYS", 2);
    let (mut service, proxy) = deployed("deploy", LINGER).await;
    let load = Load::on(&Front::Proxy(proxy.clone(), SITE.into()), 100, true);
    let began = Instant::now();
    for round in 0..rounds {
        for number in 0..CONTAINERS {
            service.start().await;
            until(&proxy, CONTAINERS + 1).await;
            service.stop_oldest().await;
            until(&proxy, CONTAINERS).await;
            // Files change meanwhile, too.
            proxy.write_site(
                "other.test",
                &format!("respond = {{ status = 200, body = \"{round} {number}\" }}"),
            );
            proxy.reload().await;
        }
    }
    let took = began.elapsed();
    let seen = load.end().await;
    tool::report(&format!(
        "{rounds} deploys of {CONTAINERS} containers in {took:?}: {} requests ({} sent again by their client), {} tunnels ({} ended with their container), {} failed",
        seen.good.load(Ordering::Relaxed),
        seen.again.load(Ordering::Relaxed),
        seen.tunnels.load(Ordering::Relaxed),
        seen.reopened.load(Ordering::Relaxed),
        seen.failed().len(),
    ));
    assert_eq!(seen.failed(), [""; 0], "{}", proxy.stderr());
    assert_eq!(seen.again.load(Ordering::Relaxed), 0);
    assert!(seen.good.load(Ordering::Relaxed) > 100);
    assert!(seen.tunnels.load(Ordering::Relaxed) >= 100);
}

/// What `status` says of a container: health, why it is out, requests in flight.
async fn known(proxy: &Proxy, container: &str) -> (String, String, u64) {
    let status = proxy.status().await;
    let all = status["endpoints"].as_array().expect("endpoints");
    let mine = |e: &&serde_json::Value| {
        e["name"].as_str().is_some_and(|name| name.split(' ').next() == Some(container))
    };
    let found = all.iter().find(mine).unwrap_or_else(|| panic!("no {container} in {status}"));
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    (text(&found["health"]), text(&found["out"]["cause"]), found["in_flight"].as_u64().unwrap())
}

async fn all_known(proxy: &Proxy, containers: &[String]) -> Vec<(String, String, u64)> {
    let mut all = Vec::new();
    for container in containers {
        all.push(known(proxy, container).await);
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_reloads_during_deployments_forget_nothing() {
    if !possible() {
        return;
    }
    let service_name = format!("reloads{}", std::process::id());
    let mut service = Service::new("reloads", LINGER, &[("tidegate.service", &service_name)]).await;
    let stay = [
        service.start().await,
        service.start().await,
        service.start_as("failing").await,
        service.start_as("sick").await,
    ];
    let site = |number: usize| {
        format!(
            "backends = [\"docker://{service_name}\"]\nbalance = \"round_robin\"\ntimeout = \"{}s\"\n\
             health = {{ path = \"/up\", interval = \"1s\" }}\n\
             eject = {{ status = [\"500-599\"], time = \"1d\", time_max = \"1d\" }}",
            60 + number
        )
    };
    let proxy =
        Proxy::builder().set("server.workers", "2").set("docker.network", &format!("{:?}", service.tag));
    let proxy = Arc::new(proxy.site(SITE, &site(0)).start().await);
    let source = format!("docker://{service_name}");
    found(&proxy, &source, stay.len()).await;
    wait_for("one to be ejected and one to be found ill", || async {
        proxy.get(SITE, "/").await;
        let (failing, sick) = (known(&proxy, &stay[2]).await, known(&proxy, &stay[3]).await);
        (failing.1 == "consecutive" && sick.0 == "unhealthy").then_some(())
    })
    .await;
    // Tunnels to the two that are well: what is in flight for as long as the story lasts.
    let mut tunnels = Vec::new();
    for _ in 0..10 {
        tunnels.push(tunnel(&proxy).await);
    }
    let before = all_known(&proxy, &stay).await;
    let expected =
        [("healthy", "", 5), ("healthy", "", 5), ("healthy", "consecutive", 0), ("unhealthy", "", 0)];
    assert_eq!(before, expected.map(|(health, out, count)| (health.to_owned(), out.to_owned(), count)));
    let ejections = async || proxy.metrics().await.sum("tidegate_endpoint_ejections_total", &[]);
    let ejected = ejections().await;
    let mut rolling = Vec::new();
    for _ in 0..3 {
        rolling.push(service.start().await);
    }
    found(&proxy, &source, stay.len() + 3).await;
    let load = Load::on(&Front::Proxy(proxy.clone(), SITE.into()), 10, true);
    for round in 0..10 {
        rolling.push(service.start().await);
        found(&proxy, &source, stay.len() + 4).await;
        let stopping = rolling.remove(0);
        let reloads = async {
            for number in 1..=10 {
                proxy.write_site(SITE, &site(round * 10 + number));
                proxy.reload().await;
            }
        };
        tokio::join!(service.stop(&stopping), reloads);
        found(&proxy, &source, stay.len() + 3).await;
        for (now, before) in all_known(&proxy, &stay).await.iter().zip(&before) {
            assert_eq!((&now.0, &now.1), (&before.0, &before.1), "round {round}");
        }
    }
    let seen = load.end().await;
    let good = seen.good.load(Ordering::Relaxed);
    tool::report(&format!(
        "100 reloads during 10 replacements: {good} requests, {} failed",
        seen.failed().len()
    ));
    assert_eq!(seen.failed(), [""; 0], "{}", proxy.stderr());
    assert!(proxy.status().await["generation"].as_u64().unwrap() > 100, "each reload was put in force");
    // The load is over; what was in flight before it still is, and is counted, once.
    wait_for("the load to be gone", || async { (all_known(&proxy, &stay).await == before).then_some(()) })
        .await;
    assert_eq!(ejections().await, ejected, "the same ejection as before, and no other");
    for wire in &mut tunnels {
        wire.send("ping").await;
        assert_eq!(within("an echo", wire.exactly(4)).await.unwrap(), b"ping");
    }
    drop(tunnels);
    wait_for("nothing to be in flight", || async {
        let all = all_known(&proxy, &stay).await;
        all.iter().all(|(.., count)| *count == 0).then_some(())
    })
    .await;
}

async fn tunnel(proxy: &Proxy) -> Wire {
    let mut wire = proxy.wire(SITE).await;
    wire.send(format!(
        "GET /ws HTTP/1.1\r\nHost: {SITE}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ))
    .await;
    let head = within("a tunnel", wire.head()).await.unwrap().expect("an answer");
    assert!(head.line.contains(" 101 "), "{}", head.line);
    wire
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_containers_fail_no_idempotent_request() {
    if !possible() {
        return;
    }
    let kills = often("TIDEGATE_TEST_DEPLOY_KILLS", 5);
    let (mut service, proxy) = deployed("kills", 0).await;
    let load = Load::on(&Front::Proxy(proxy.clone(), SITE.into()), 10, false);
    let mut pace = tokio::time::interval(Duration::from_secs(1));
    for _ in 0..kills {
        pace.tick().await;
        service.kill_oldest().await;
        service.start().await;
    }
    let seen = load.end().await;
    // An answer whose first bytes are sent cannot be taken back: a download from a killed container ends with it.
    let (cut, failed): (Vec<_>, Vec<_>) = seen
        .failed()
        .into_iter()
        .partition(|failure| failure.starts_with("download") || failure.contains("body"));
    tool::report(&format!(
        "{kills} containers killed: {} requests, {} downloads cut in their middle, {} failed",
        seen.good.load(Ordering::Relaxed),
        cut.len() as u64 + seen.again.load(Ordering::Relaxed),
        failed.len(),
    ));
    assert_eq!(failed, [""; 0], "{}", proxy.stderr());
}

/// Others under the same deployments: whatever runs them rewrites their list of servers and reloads them when a container
/// has started and when one has ended, as the usual tools do.
struct Peer {
    kind: &'static str,
    folder: tempfile::TempDir,
    port: u16,
    child: std::process::Child,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.signal(rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}

impl Peer {
    fn start(kind: &'static str, servers: &[String]) -> Peer {
        let folder = tempfile::tempdir().unwrap();
        let port = port::fixed();
        let config = folder.path().join("config");
        std::fs::write(&config, text(kind, folder.path(), port, servers)).unwrap();
        let mut command = std::process::Command::new(kind);
        match kind {
            "haproxy" => command.args(["-W", "-db", "-f"]).arg(&config),
            _ => command.arg("-c").arg(&config).args(["-g", "daemon off;"]),
        };
        let quiet = std::process::Stdio::null;
        let child = command.stdout(quiet()).stderr(quiet()).spawn().unwrap();
        Peer { kind, folder, port, child }
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.child.id() as i32).unwrap();
        let _ = rustix::process::kill_process(pid, signal);
    }

    fn update(&self, servers: &[String]) {
        let config = text(self.kind, self.folder.path(), self.port, servers);
        std::fs::write(self.folder.path().join("config"), config).unwrap();
        let reload = rustix::process::Signal::USR2;
        self.signal(if self.kind == "haproxy" { reload } else { rustix::process::Signal::HUP });
    }
}

fn text(kind: &str, folder: &std::path::Path, port: u16, servers: &[String]) -> String {
    let list = |each: &dyn Fn(usize, &String) -> String| {
        servers.iter().enumerate().map(|(number, server)| each(number, server)).collect::<String>()
    };
    if kind == "haproxy" {
        let servers = list(&|number, server| format!("  server s{number} {server}\n"));
        return format!(
            "global\n  stats socket {}/stats level admin expose-fd listeners\n  nbthread 2\n\
             defaults\n  mode http\n  timeout connect 2s\n  timeout client 60s\n  timeout server 60s\n  timeout tunnel 1h\n\
             \x20 option redispatch\n  retries 3\n\
             frontend front\n  bind 127.0.0.1:{port}\n  default_backend back\n\
             backend back\n  balance leastconn\n  option httpchk GET /\n  default-server check inter 1s fall 2 rise 1\n{servers}",
            folder.display()
        );
    }
    let servers = list(&|_, server| format!("server {server};"));
    format!(
        "worker_processes 2; pid {0}/pid; error_log /dev/null; worker_shutdown_timeout 30s; events {{ }}\n\
         http {{ access_log off; client_body_temp_path {0}/body; proxy_temp_path {0}/proxy; fastcgi_temp_path {0}/f;\n\
         uwsgi_temp_path {0}/u; scgi_temp_path {0}/s;\n\
         map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}\n\
         upstream back {{ least_conn; {servers} keepalive 16; }}\n\
         server {{ listen 127.0.0.1:{port}; client_max_body_size 0;\n\
         location / {{ proxy_pass http://back; proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade;\n\
         proxy_set_header Connection $connection_upgrade; proxy_set_header Host $host; proxy_connect_timeout 2s; }} }} }}\n",
        folder.display()
    )
}

async fn servers(service: &Service) -> Vec<String> {
    let mut all = Vec::new();
    for name in &service.running {
        all.push(service.address(name).await.to_string());
    }
    all
}

/// By hand: `scripts/bench-deploy`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a comparison with other programs, for minutes"]
async fn peers_under_the_same_deployments() {
    if !possible() || !tool::requires("haproxy", &["-v"]) || !tool::requires("nginx", &["-v"]) {
        return;
    }
    let rounds = often("TIDEGATE_TEST_DEPLOYS", 4);
    let kills = often("TIDEGATE_TEST_DEPLOY_KILLS", 20);
    tool::report("| program | story | requests | failed | sent again by the client | tunnels ended |");
    for linger in [0, 300] {
        for kind in ["tidegate", "haproxy", "nginx"] {
            let labels = [("tidegate.site", SITE), ("tidegate.plain_http", "true")];
            let mut service = Service::new(&format!("{kind}{linger}"), linger, &labels).await;
            for _ in 0..CONTAINERS {
                service.start().await;
            }
            let mut proxy = None;
            let peer = if kind == "tidegate" {
                let network = format!("{:?}", service.tag);
                proxy = Some(
                    Proxy::builder().set("server.workers", "2").set("docker.network", &network).start().await,
                );
                None
            } else {
                Some(Peer::start(kind, &servers(&service).await))
            };
            let address = match (&proxy, &peer) {
                (Some(proxy), _) => proxy.http(),
                (None, Some(peer)) => ([127, 0, 0, 1], peer.port).into(),
                _ => unreachable!(),
            };
            wait_for("it to listen", || async { tokio::net::TcpStream::connect(address).await.ok() }).await;
            let front = Front::Plain(address, SITE.into());
            let load = Load::on(&front, 100, true);
            for _ in 0..rounds * CONTAINERS {
                service.start().await;
                match (&proxy, &peer) {
                    (Some(proxy), _) => until(proxy, CONTAINERS + 1).await,
                    (_, Some(peer)) => {
                        peer.update(&servers(&service).await);
                        // What a careful script does.
                        tokio::time::sleep(Duration::from_millis(500)).await;
                    }
                    _ => {}
                }
                service.stop_oldest().await;
                if let Some(peer) = &peer {
                    peer.update(&servers(&service).await);
                }
            }
            row(kind, &format!("{rounds} deploys, {linger} ms"), load.end().await);
            if linger > 0 {
                continue;
            }
            let load = Load::on(&front, 20, false);
            let mut pace = tokio::time::interval(Duration::from_secs(1));
            for _ in 0..kills {
                pace.tick().await;
                service.kill_oldest().await;
                service.start().await;
                if let Some(peer) = &peer {
                    peer.update(&servers(&service).await);
                }
            }
            row(kind, &format!("{kills} kills"), load.end().await);
        }
    }
}

fn row(kind: &str, story: &str, seen: Arc<crate::harness::deploy::Seen>) {
    let failed = seen.failed();
    let mut kinds = std::collections::BTreeMap::new();
    for failure in &failed {
        *kinds.entry(failure.clone()).or_insert(0) += 1;
    }
    tool::report(&format!(
        "| {kind} | {story} | {} | {} | {} | {} | {kinds:?}",
        seen.good.load(Ordering::Relaxed),
        failed.len(),
        seen.again.load(Ordering::Relaxed),
        seen.reopened.load(Ordering::Relaxed),
    ));
}
