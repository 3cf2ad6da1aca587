//! The ACME engine against Debian's Pebble: real orders, real challenges, real crashes of the CA.
//!
//! Pebble takes fixed ports only; they are found by binding port zero, and a Pebble that lost such a port to somebody
//! else is started again on another. The validation ports are bound before and never given up.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests stop aloud"
)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tidegate::config::model::{Acme, AcmeEngine, ChallengeKind, Directory, Eab, HostPattern, Staging};
use tidegate::tls::acme::{CertificateStatus, Challenges, Manager, Wanted};
use tidegate::tls::pem::Identity;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::{JoinHandle, LocalSet};

/// Nothing takes this long unless it fails.
const DEADLINE: Duration = Duration::from_secs(40);

/// Ends with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A CA with its DNS, the answering server, and a state folder.
struct House {
    folder: tempfile::TempDir,
    challenges: Arc<Challenges>,
    pebble: RefCell<Option<Process>>,
    port: u16,
    management: u16,
    dns: u16,
    _dns: Process,
    http_port: u16,
    tls_port: u16,
    nonce_reject: u32,
    eab: bool,
}

fn free_port() -> u16 {
    let [port] = free_ports();
    port
}

/// All are held at once, so that none comes twice.
fn free_ports<const N: usize>() -> [u16; N] {
    let held: [std::net::TcpListener; N] =
        std::array::from_fn(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    held.map(|socket| socket.local_addr().unwrap().port())
}

/// Asks until the answer is yes, the process is gone, or the time is up. An open port proves nothing, for it may be
/// somebody else's, or that of a process about to end because its other port is: the question must tell.
async fn ready(process: &mut Child, mut asked: impl AsyncFnMut() -> bool) -> bool {
    let asking = async {
        while process.try_wait().unwrap().is_none() {
            if asked().await {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        false
    };
    tokio::time::timeout(DEADLINE, asking).await.unwrap_or(false)
}

/// Whether curl gets an answer of success.
async fn answers(arguments: &[&str]) -> bool {
    let mut curl = tokio::process::Command::new("curl");
    curl.args(["--silent", "--fail", "--max-time", "10", "--output", "/dev/null"]).args(arguments);
    curl.kill_on_drop(true).status().await.expect("curl is needed").success()
}

/// Whether the name server at `dns` tells what the one managed at `management` has just been told.
async fn names_are_told(dns: u16, management: u16) -> bool {
    let told = r#"{ "host": "own.test", "addresses": ["127.8.9.10"] }"#;
    if !answers(&["--data", told, &format!("http://127.0.0.1:{management}/add-a")]).await {
        return false;
    }
    // RFC 1035, section 4.1: one question, for the A records of own.test.
    let question = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03own\x04test\0\0\x01\0\x01";
    let asking = async {
        let socket = UdpSocket::bind("127.0.0.1:0").await?;
        socket.connect(("127.0.0.1", dns)).await?;
        socket.send(question).await?;
        let mut answer = [0; 512];
        let length = socket.recv(&mut answer).await?;
        std::io::Result::Ok(answer[..length].windows(4).any(|four| four == [127, 8, 9, 10]))
    };
    matches!(tokio::time::timeout(Duration::from_secs(1), asking).await, Ok(Ok(true)))
}

impl House {
    async fn new(nonce_reject: u32, eab: bool) -> House {
        let folder = tempfile::tempdir().unwrap();
        certificates(folder.path());
        let challenges = Challenges::new();
        let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tls = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (http_port, tls_port) = (http.local_addr().unwrap().port(), tls.local_addr().unwrap().port());
        tokio::task::spawn_local(answer_http(http, Arc::clone(&challenges)));
        tokio::task::spawn_local(answer_tls(tls, Arc::clone(&challenges)));
        let (dns, process) = start_dns().await;
        let mut house = House {
            folder,
            challenges,
            pebble: RefCell::new(None),
            port: 0,
            management: 0,
            dns,
            _dns: process,
            http_port,
            tls_port,
            nonce_reject,
            eab,
        };
        house.start_ca_anywhere().await;
        house
    }

    /// A CA on other ports: again, where it lost one to somebody else.
    async fn start_ca_anywhere(&mut self) {
        for _ in 0..5 {
            [self.port, self.management] = free_ports();
            if self.start_ca().await {
                return;
            }
        }
        panic!("Pebble does not start");
    }

    /// A CA without a memory of the former one.
    async fn start_ca(&self) -> bool {
        let path = |name: &str| self.folder.path().join(name).display().to_string();
        let config = serde_json::json!({ "pebble": {
            "listenAddress": format!("127.0.0.1:{}", self.port),
            "managementListenAddress": format!("127.0.0.1:{}", self.management),
            "certificate": path("ca-https.pem"),
            "privateKey": path("ca-https.key"),
            "httpPort": self.http_port,
            "tlsPort": self.tls_port,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": self.eab,
            "externalAccountMACKeys": { "kid-1": "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W" },
        }});
        std::fs::write(path("pebble.json"), config.to_string()).unwrap();
        let mut child = Command::new("pebble")
            .args(["-config", &path("pebble.json"), "-dnsserver", &format!("127.0.0.1:{}", self.dns)])
            .env("PEBBLE_VA_NOSLEEP", "1")
            .env("PEBBLE_AUTHZREUSE", "0")
            .env("PEBBLE_WFE_NONCEREJECT", self.nonce_reject.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("Debian's package pebble is needed");
        // Only this CA has a certificate of this root.
        let root = path("ca-root.pem");
        let directory = self.directory().url;
        let roots = format!("https://127.0.0.1:{}/roots/0", self.management);
        let up = ready(&mut child, async || {
            answers(&["--cacert", &root, &directory]).await && answers(&["--cacert", &root, &roots]).await
        })
        .await;
        *self.pebble.borrow_mut() = Some(Process(child));
        up
    }

    fn stop_ca(&self) {
        self.pebble.borrow_mut().take();
    }

    fn directory(&self) -> Directory {
        let url = format!("https://127.0.0.1:{}/dir", self.port).into();
        Directory { name: "pebble".into(), url, eab: None }
    }

    fn settings(&self) -> Acme {
        Acme {
            directories: vec![self.directory()],
            email: Some("admin@example.org".into()),
            ca_file: Some(self.folder.path().join("ca-root.pem")),
            challenges: vec![ChallengeKind::TlsAlpn01, ChallengeKind::Http01],
            orders_per_3h: 300,
            concurrent: 4,
            profile: None,
            engine: AcmeEngine::Auto,
            staging: Staging::Off,
            dns: None,
            store_key: None,
        }
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    fn start(&self) -> Running {
        self.start_with(&self.settings(), Arc::clone(&self.challenges))
    }

    fn start_with(&self, settings: &Acme, challenges: Arc<Challenges>) -> Running {
        let manager = Manager::open(settings, &self.state(), challenges).unwrap();
        let changes = Rc::new(RefCell::new(BTreeMap::<String, usize>::new()));
        let (told, run) = (Rc::clone(&changes), Arc::clone(&manager));
        let changed = move |site: &str| *told.borrow_mut().entry(site.to_owned()).or_default() += 1;
        let task = tokio::task::spawn_local(run.run(changed));
        Running { manager, changes, task }
    }

    /// The key of the stored account, if there is one.
    fn account_key(&self) -> Option<serde_json::Value> {
        let records = self.records("account");
        let whole = records.iter().find(|(path, _)| path.extension().is_some_and(|e| e == "rec"));
        let body = whole?.1.split(|b| *b == b'\n').nth(1).unwrap();
        Some(serde_json::from_slice::<serde_json::Value>(body).unwrap()["key"].clone())
    }

    /// The files of a kind of record, with their content.
    fn records(&self, kind: &str) -> BTreeMap<PathBuf, Vec<u8>> {
        let entries = std::fs::read_dir(self.state().join("acme").join(kind)).unwrap();
        entries.map(|e| e.unwrap().path()).map(|p| (p.clone(), std::fs::read(p).unwrap())).collect()
    }
}

/// A manager that works; stops in the middle of whatever it does when dropped.
struct Running {
    manager: Arc<Manager>,
    changes: Rc<RefCell<BTreeMap<String, usize>>>,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Running {
    fn want(&self, sites: &[&Wanted]) {
        self.manager.want(sites.iter().map(|w| (*w).clone()).collect());
    }

    fn status(&self, wanted: &Wanted) -> CertificateStatus {
        self.manager.status().into_iter().find(|s| s.site == wanted.site).unwrap()
    }

    fn identity(&self, wanted: &Wanted) -> Option<Arc<Identity>> {
        self.manager.identity(&wanted.site, &wanted.names)
    }

    fn changes(&self, wanted: &Wanted) -> usize {
        self.changes.borrow().get(&*wanted.site).copied().unwrap_or(0)
    }

    async fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let asked = async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(DEADLINE, asked).await.is_err() {
            panic!("waited for {what}: {:#?}", self.manager.status());
        }
    }

    async fn issued(&self, wanted: &Wanted, times: usize) {
        self.until("a certificate", || self.changes(wanted) >= times).await;
    }

    async fn failed(&self, wanted: &Wanted, attempts: u32) -> CertificateStatus {
        self.until("a failure", || {
            let status = self.status(wanted);
            status.state == "failed" && status.attempts >= attempts
        })
        .await;
        self.status(wanted)
    }
}

fn site(name: &str, hosts: &[&str], challenge: &[ChallengeKind]) -> Wanted {
    let names = hosts.iter().map(|host| HostPattern::Exact((*host).into())).collect();
    Wanted { site: name.into(), names, challenge: challenge.to_vec(), tenant: name.into(), on_demand: None }
}

fn certificates(folder: &Path) {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // OpenSSL takes a certificate whose issuer has its own name for one that signed itself.
    params.distinguished_name.push(rcgen::DnType::CommonName, "Pebble's own listener");
    let key = KeyPair::generate().unwrap();
    std::fs::write(folder.join("ca-root.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(params, key);
    let own = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap().signed_by(&own, &issuer).unwrap();
    std::fs::write(folder.join("ca-https.pem"), leaf.pem()).unwrap();
    std::fs::write(folder.join("ca-https.key"), own.serialize_pem()).unwrap();
}

async fn start_dns() -> (u16, Process) {
    for _ in 0..5 {
        let [dns, management] = free_ports();
        let mut child = Command::new("pebble-challtestsrv")
            .args([
                "-defaultIPv4",
                "127.0.0.1",
                "-defaultIPv6",
                "",
                "-http01",
                "",
                "-https01",
                "",
                "-tlsalpn01",
                "",
            ])
            .args(["-dns01", &format!("127.0.0.1:{dns}"), "-management", &format!("127.0.0.1:{management}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("Debian's package pebble is needed");
        let up = ready(&mut child, async || names_are_told(dns, management).await).await;
        let process = Process(child);
        if up {
            return (dns, process);
        }
    }
    panic!("pebble-challtestsrv does not start");
}

async fn answer_http(listener: TcpListener, challenges: Arc<Challenges>) {
    while let Ok((mut tcp, _)) = listener.accept().await {
        let mut head = vec![0; 4096];
        let Ok(length) = tcp.read(&mut head).await else { continue };
        let text = String::from_utf8_lossy(&head[..length]).into_owned();
        let path = text.split(' ').nth(1).unwrap_or_default();
        let token = path.strip_prefix("/.well-known/acme-challenge/").unwrap_or_default();
        let answer = match challenges.http01(token) {
            Some(body) => {
                let body = String::from_utf8(body.to_vec()).unwrap();
                format!(
                    "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                )
            }
            None => "HTTP/1.1 404 Not Found\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".into(),
        };
        let _ = tcp.write_all(answer.as_bytes()).await;
    }
}

async fn answer_tls(listener: TcpListener, challenges: Arc<Challenges>) {
    while let Ok((tcp, _)) = listener.accept().await {
        let acceptor = tokio_rustls::LazyConfigAcceptor::new(rustls::server::Acceptor::default(), tcp);
        let Ok(start) = acceptor.await else { continue };
        let name = start.client_hello().server_name().unwrap_or_default().to_owned();
        if let Some(config) = challenges.tls_alpn01(&name)
            && let Ok(mut tls) = start.into_stream(config).await
        {
            let _ = tls.shutdown().await;
        }
    }
}

/// What the child of the crash test is told: state folder, settings' CA, ports.
const CHILD: &str = "TIDEGATE_TEST_ACME_CHILD";

/// No test of its own: the process that [`kills_lose_neither_account_nor_certificate`] kills. It orders for ten sites,
/// renews the first for ever, and never ends.
#[test]
#[ignore = "run by another test, as a process"]
fn child() {
    let Ok(told) = std::env::var(CHILD) else { return };
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    let text = |key: &str| told[key].as_str().unwrap().to_owned();
    story(|| async move {
        let challenges = Challenges::new();
        let http = TcpListener::bind(text("http")).await.unwrap();
        tokio::task::spawn_local(answer_http(http, Arc::clone(&challenges)));
        let settings = Acme {
            directories: vec![Directory { name: "pebble".into(), url: text("url").into(), eab: None }],
            email: None,
            ca_file: Some(text("root").into()),
            challenges: HTTP.to_vec(),
            orders_per_3h: 100_000,
            concurrent: 3,
            profile: None,
            engine: AcmeEngine::Managed,
            staging: Staging::Off,
            dns: None,
            store_key: None,
        };
        let manager = Manager::open(&settings, Path::new(&text("state")), challenges).unwrap();
        manager.want(crash_sites());
        manager.renew("s0").unwrap();
        let again = Arc::clone(&manager);
        manager
            .run(move |site| {
                if site == "s0" {
                    again.renew("s0").unwrap();
                }
            })
            .await;
    });
}

fn crash_sites() -> Vec<Wanted> {
    (0..10).map(|n| site(&format!("s{n}"), &[&format!("s{n}.test")], HTTP)).collect()
}

#[test]
fn kills_lose_neither_account_nor_certificate() {
    story(|| async {
        let house = House::new(5, false).await;
        let http = free_port();
        let mut own = House { http_port: http, ..house };
        own.stop_ca();
        own.start_ca_anywhere().await;
        let told = serde_json::json!({
            "http": format!("127.0.0.1:{http}"),
            "url": &*own.directory().url,
            "root": own.folder.path().join("ca-root.pem"),
            "state": own.state(),
        });
        let mut account = None;
        let mut issued = BTreeMap::<PathBuf, Vec<u8>>::new();
        for round in 0..25_u64 {
            let child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "child", "--ignored"])
                .env(CHILD, told.to_string())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let process = Process(child);
            // Another moment each time: this is the variation, nothing is waited for.
            tokio::time::sleep(Duration::from_millis(100 + round * 67 % 1500)).await;
            drop(process);
            if !own.state().join("acme/lock").is_dir() {
                continue;
            }
            // Whatever was there once is there for ever, whole; all but the renewed one unchanged.
            let opened = Manager::open(&own.settings(), &own.state(), Challenges::new()).unwrap();
            opened.want(crash_sites());
            assert!(
                opened.status().iter().all(|status| status.last_error.is_none()),
                "{:#?}",
                opened.status()
            );
            let now = own.records("certificate");
            for (path, content) in &issued {
                let kept = &now[path];
                assert!(kept == content || path.ends_with("s0.rec"), "{} was ordered twice", path.display());
            }
            issued =
                now.into_iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "rec")).collect();
            let key = own.account_key();
            assert!(account.is_none() || key == account, "the account's key changed");
            account = key;
        }
        assert!(account.is_some() && !issued.is_empty(), "nothing happened between the kills");
    });
}

/// A test of its own runtime, on one thread like the control plane.
fn story<F: Future<Output = ()>>(tell: impl FnOnce() -> F) {
    tidegate::tls::install_provider();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async { tell().await });
}

const HTTP: &[ChallengeKind] = &[ChallengeKind::Http01];
const TLS: &[ChallengeKind] = &[ChallengeKind::TlsAlpn01];

#[test]
fn certificates_come_by_both_challenges_and_outlive_a_restart_with_their_account() {
    story(|| async {
        let house = House::new(0, false).await;
        let by_http = site("by-http", &["a.test", "www.a.test"], HTTP);
        let by_tls = site("by-tls", &["b.test", "www.b.test"], TLS);
        let first = house.start();
        first.want(&[&by_http, &by_tls]);
        assert!(first.identity(&by_http).is_none());
        for wanted in [&by_http, &by_tls] {
            first.issued(wanted, 1).await;
            let identity = first.identity(wanted).unwrap();
            assert!(identity.key.cert.len() > 1, "the chain is whole");
            let status = first.status(wanted);
            assert_eq!((status.state, status.last_error, status.attempts), ("valid", None, 0));
            assert!(status.renew_at.unwrap() < status.not_after.unwrap());
        }
        assert!(house.challenges.is_empty(), "every challenge is taken back");
        let (accounts, kept) = (house.records("account"), house.records("certificate"));
        assert_eq!((accounts.len(), kept.len()), (1, 2));
        let print = first.identity(&by_http).unwrap().fingerprint;
        drop(first);

        // After the restart a third site is ordered with the same account, and the old ones are left alone.
        let second = house.start();
        let third = site("third", &["c.test"], HTTP);
        second.want(&[&by_http, &by_tls, &third]);
        assert_eq!(second.identity(&by_http).unwrap().fingerprint, print);
        second.issued(&third, 1).await;
        assert_eq!(second.changes(&by_http) + second.changes(&by_tls), 0);
        assert_eq!(house.records("account"), accounts);
        for (path, content) in kept {
            assert_eq!(std::fs::read(path).unwrap(), content);
        }
        // A name more is another certificate; until then there is none for all names.
        let wider = site("third", &["c.test", "d.test"], HTTP);
        second.want(&[&wider]);
        assert!(second.identity(&wider).is_none() && second.identity(&third).is_some());
        second.issued(&wider, 2).await;
        assert!(second.identity(&wider).is_some());
    });
}

#[test]
fn half_of_all_nonces_refused_delays_nobody() {
    story(|| async {
        let house = House::new(50, false).await;
        let sites: Vec<Wanted> = (0..8)
            .map(|n| site(&format!("s{n}"), &[&format!("s{n}.test")], if n % 2 == 0 { HTTP } else { TLS }))
            .collect();
        let running = house.start();
        running.want(&sites.iter().collect::<Vec<_>>());
        for wanted in &sites {
            running.issued(wanted, 1).await;
        }
        assert_eq!(house.records("account").len(), 1);
        assert!(running.manager.status().iter().all(|status| status.attempts == 0));
    });
}

#[test]
fn a_failure_speaks_the_words_of_the_ca_and_its_wait_survives_a_restart() {
    story(|| async {
        let house = House::new(0, false).await;
        let wanted = site("lost", &["lost.test"], HTTP);
        let other = site("fine", &["fine.test"], TLS);
        // Answers published where nobody asks for them.
        let first = house.start_with(&house.settings(), Challenges::new());
        first.want(&[&wanted]);
        let status = first.failed(&wanted, 1).await;
        let words = status.last_error.clone().unwrap();
        assert!(
            words.contains("lost.test") && words.contains("unauthorized") && words.contains("80"),
            "{words}"
        );
        // Told before it is on the disk.
        let is_record = |path: &PathBuf| path.extension().is_some_and(|e| e == "rec");
        first.until("the record", || house.records("failure").keys().any(is_record)).await;
        drop(first);

        let second = house.start();
        second.want(&[&wanted, &other]);
        second.issued(&other, 1).await;
        let again = second.status(&wanted);
        assert_eq!((again.attempts, again.next_try, again.last_error), (1, status.next_try, Some(words)));
        let plan = second.manager.plan();
        assert_eq!(plan["queue"][0]["site"], "lost");
        assert!(plan["queue"][0]["earliest"].as_u64() >= status.next_try);
        // A person may be impatient.
        second.manager.renew("lost").unwrap();
        second.issued(&wanted, 1).await;
        assert_eq!(second.status(&wanted).last_error, None);
        assert!(house.records("failure").is_empty());
        assert!(second.manager.renew("nobody").unwrap_err().contains("nobody"));
    });
}

#[test]
fn the_old_certificate_serves_until_the_new_one_is_stored() {
    story(|| async {
        let house = House::new(0, false).await;
        let wanted = site("shop", &["shop.test"], TLS);
        let running = house.start();
        running.want(&[&wanted]);
        running.issued(&wanted, 1).await;
        let old = running.identity(&wanted).unwrap().fingerprint;
        // The CA is away: a renewal fails, and nothing changes for clients.
        house.stop_ca();
        running.manager.renew("shop").unwrap();
        let status = running.failed(&wanted, 1).await;
        assert!(status.last_error.unwrap().contains("127.0.0.1"));
        assert_eq!(running.identity(&wanted).unwrap().fingerprint, old);
        // It comes back without any memory: the same key is registered again.
        let before = house.account_key();
        assert!(house.start_ca().await);
        running.manager.renew("shop").unwrap();
        running.issued(&wanted, 2).await;
        assert_ne!(running.identity(&wanted).unwrap().fingerprint, old);
        assert_eq!(house.account_key(), before);
    });
}

#[test]
fn a_damaged_store_makes_no_account_and_no_order() {
    story(|| async {
        let house = House::new(0, false).await;
        let (a, b) = (site("a", &["a.test"], HTTP), site("b", &["b.test"], HTTP));
        let first = house.start();
        first.want(&[&a]);
        first.issued(&a, 1).await;
        drop(first);

        // The account: b cannot be ordered, a goes on.
        let (path, whole) = house.records("account").into_iter().next().unwrap();
        let mut bent = whole.clone();
        *bent.last_mut().unwrap() ^= 1;
        std::fs::write(&path, &bent).unwrap();
        let second = house.start();
        second.want(&[&a, &b]);
        // Our own store is no fault of the site: it does not count as a failure of its.
        let status = second.failed(&b, 0).await;
        assert!(status.last_error.unwrap().contains("damaged"));
        assert!(second.identity(&a).is_some());
        assert_eq!(house.records("account").into_iter().next().unwrap(), (path.clone(), bent));
        drop(second);
        std::fs::write(&path, &whole).unwrap();

        // A certificate: its site is left alone and told about, b is served.
        let (path, mut bent) = house.records("certificate").into_iter().next().unwrap();
        bent.truncate(bent.len() / 2);
        std::fs::write(&path, &bent).unwrap();
        let third = house.start();
        third.want(&[&a, &b]);
        third.manager.renew("b").unwrap();
        third.issued(&b, 1).await;
        let status = third.status(&a);
        assert_eq!((status.state, third.changes(&a)), ("failed", 0));
        assert!(status.last_error.unwrap().contains("damaged"));
        assert!(third.manager.renew("a").unwrap_err().contains("damaged"));
        assert_eq!(std::fs::read(&path).unwrap(), bent);
    });
}

#[test]
fn the_second_ca_is_asked_after_two_failures_of_the_first() {
    story(|| async {
        let house = House::new(0, true).await;
        let mut settings = house.settings();
        let dead = format!("https://127.0.0.1:{}/dir", free_port());
        let eab = Eab {
            id: "kid-1".into(),
            hmac: "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W".into(),
        };
        settings.directories = vec![
            Directory { name: "dead".into(), url: dead.into(), eab: None },
            Directory { eab: Some(eab), ..house.directory() },
        ];
        let wanted = site("shop", &["shop.test"], TLS);
        let running = house.start_with(&settings, Arc::clone(&house.challenges));
        running.want(&[&wanted]);
        running.failed(&wanted, 1).await;
        running.manager.renew("shop").unwrap();
        running.failed(&wanted, 2).await;
        running.manager.renew("shop").unwrap();
        running.issued(&wanted, 1).await;
        assert_eq!(&*running.status(&wanted).ca, "pebble");
    });
}

#[test]
fn what_cannot_be_done_is_said_and_ordered_from_nobody() {
    story(|| async {
        let house = House::new(0, false).await;
        let state = house.state();
        let open = |settings: &Acme| Manager::open(settings, &state, Challenges::new()).err().unwrap();
        let simple = Acme { engine: AcmeEngine::Simple, profile: Some("short".into()), ..house.settings() };
        assert!(open(&simple).contains("profile"));
        let none = Acme { directories: vec![], ..house.settings() };
        assert!(open(&none).contains("no directory"));
        let missing = Acme { ca_file: Some("/nowhere/ca.pem".into()), ..house.settings() };
        assert!(open(&missing).contains("/nowhere/ca.pem"));
        let mut wild = site("wild", &["a.test"], &[]);
        wild.names.push(HostPattern::Wildcard("a.test".into()));
        let running = house.start();
        running.want(&[&wild]);
        let status = running.failed(&wild, 1).await;
        assert!(status.last_error.unwrap().contains("dns-01"));
        assert!(house.records("account").is_empty());
    });
}
