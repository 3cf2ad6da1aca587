//! Thousands of certificates in the store: how long a start takes, beside reading the same bytes, and what each costs in
//! memory. The figures are reported, not asserted; `scripts/bench-store` runs this with a release build and 10,000.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustls::version::TLS13;
use sha2::{Digest, Sha256};

use crate::harness::pebble::Ports;
use crate::harness::tls::{client_config, connect};
use crate::harness::{DEADLINE, proxy, tool};

/// Sites where nobody says another number.
const SITES: usize = 500;

/// Ended when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn name(number: usize) -> String {
    format!("s{number}.scale.test")
}

/// A record for each site, as the store writes them: one key for all, but a certificate of its own for each; in the
/// chain its issuer. Gives the root.
fn fill(store: &Path, sites: usize) -> String {
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, "scale");
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let root = params.self_signed(&ca_key).unwrap().pem();
    let issuer = rcgen::Issuer::new(params, ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let folder = store.join("certificate");
    fs::create_dir_all(&folder).unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    for number in 0..sites {
        let site = name(number);
        let leaf = rcgen::CertificateParams::new([site.clone(), format!("www.{site}")]).unwrap();
        let leaf = leaf.signed_by(&key, &issuer).unwrap().pem();
        let record = serde_json::json!({
            "site": site, "names": [site, format!("www.{site}")], "directory": "https://ca.test/dir", "ca": "ca",
            "engine": "managed", "chain": format!("{leaf}{root}"), "key": key.serialize_pem(), "issued_at": now,
            "not_before": now, "not_after": now + 90 * 86_400, "suggested": null, "renew_at": now + 60 * 86_400,
        });
        let body = record.to_string();
        let mut sum = String::new();
        Sha256::digest(body.as_bytes()).iter().for_each(|byte| write!(sum, "{byte:02x}").unwrap());
        fs::write(folder.join(format!("{site}.rec")), format!("tidegate-store 1 sha256 {sum}\n{body}"))
            .unwrap();
    }
    root
}

/// A configuration with a file for each site.
fn configure(folder: &Path, ports: Ports, sites: usize) -> PathBuf {
    fs::create_dir_all(folder.join("sites")).unwrap();
    for number in 0..sites {
        let site = name(number);
        let text = format!(
            "[site.\"{site}\"]\nhosts = [\"{site}\", \"www.{site}\"]\ncertificates = \"acme\"\nrespond = {{ status = 200 }}\n"
        );
        fs::write(folder.join(format!("sites/{site}.toml")), text).unwrap();
    }
    let config = folder.join("tidegate.toml");
    // Nobody listens at the directory: what is asked there (renewal information) is refused at once.
    let text = format!(
        "[server]\nhttp = []\nhttps = [\"127.0.0.1:{}\"]\nworkers = 1\nstate = \"state\"\n[metrics]\nlisten = \"off\"\n\
         [admin]\nsocket = \"admin.sock\"\n[log]\naccess = \"off\"\n[acme]\nemail = \"ops@scale.test\"\n\
         challenges = [\"tls-alpn-01\"]\ndirectory = \"https://127.0.0.1:{}/dir\"\nconcurrent = 1\n",
        ports.https, ports.http
    );
    fs::write(&config, text).unwrap();
    config
}

fn start(config: &Path) -> Running {
    let binary = std::env::var("TIDEGATE_BENCH_BINARY").unwrap_or(proxy::TIDEGATE.into());
    let child = Command::new(binary)
        .args(["run", "--config"])
        .arg(config)
        .stdin(Stdio::null())
        .stdout(fs::File::create(said(config)).unwrap())
        .stderr(Stdio::null())
        .spawn()
        .expect("spawn tidegate");
    Running(child)
}

/// Where standard output goes.
fn said(config: &Path) -> PathBuf {
    config.with_extension("stdout")
}

/// Waits for something that a start brings; gives the time it took.
async fn until<F: Future<Output = bool>>(
    what: &str,
    started: Instant,
    mut done: impl FnMut() -> F,
) -> Duration {
    while !done().await {
        assert!(started.elapsed() < DEADLINE * 5, "waited for {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    started.elapsed()
}

#[tokio::test]
async fn thousands_of_certificates_are_there_from_the_first_handshake_on() {
    let sites = std::env::var("TIDEGATE_STORE_SITES").ok().and_then(|n| n.parse().ok()).unwrap_or(SITES);
    let folder = tempfile::tempdir().unwrap();
    let ports = Ports::free();
    let config = configure(folder.path(), ports, sites);
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], ports.https));

    // The same sites without certificates, for the memory they need themselves.
    let bare = {
        let running = start(&config);
        let ready =
            || async { fs::read_to_string(said(&config)).unwrap().lines().any(|line| line == "ready") };
        until("a start", Instant::now(), ready).await;
        tool::rss_kib(running.0.id())
    };
    let store = folder.path().join("state/acme");
    fs::remove_dir_all(&store).unwrap();
    let root = fill(&store, sites);
    let reading = Instant::now();
    let read: usize = fs::read_dir(store.join("certificate"))
        .unwrap()
        .map(|e| fs::read(e.unwrap().path()).unwrap().len())
        .sum();
    let reading = reading.elapsed();

    let started = Instant::now();
    let running = start(&config);
    let trusting = client_config(&root, &[], &[&TLS13]);
    let last = name(sites - 1);
    let took = until("the first handshake", started, || async {
        let tcp = tokio::net::TcpStream::connect(address).await;
        tcp.is_ok() && connect(trusting.clone(), address, &last).await.is_ok()
    })
    .await;
    let full = tool::rss_kib(running.0.id());
    for number in (0..sites).step_by((sites / 50).max(1)) {
        let site = name(number);
        connect(trusting.clone(), address, &site).await.unwrap_or_else(|e| panic!("{site}: {e}"));
    }
    let each = full.saturating_sub(bare) * 1024 / sites as u64;
    tool::report(&format!(
        "{sites} certificates: start to first handshake {took:.2?}; plain read of the same {read} bytes {reading:.2?}; \
         memory {full} KiB, {bare} KiB without certificates, so {each} bytes each"
    ));
}
