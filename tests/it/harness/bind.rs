//! A real BIND on loopback: zones of its own, keys of its own, nothing of the machine's. It follows aliases from one of
//! its zones into another, and asks nobody outside.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use hickory_proto::rr::RecordType;
use tidegate::net::dns as lookup;

use super::tool::{self, Helper};
use super::{port, proxy, wait_for};

/// The key that may write TXT records below `shop.test` and `acme.test`.
pub const KEY: &str = "tidegate";
pub const SECRET: &str = "dGlkZWdhdGUtdGVzdC1rZXktMDEyMzQ1Njc4OWFiY2RlZg==";
/// A key that may write nothing.
pub const POOR_KEY: &str = "poor";
pub const POOR_SECRET: &str = "cG9vci1rZXktMDEyMzQ1Njc4OWFiY2RlZi1wb29yLWtleQ==";

/// A name server.
pub struct Bind {
    folder: tempfile::TempDir,
    pub address: SocketAddr,
    log: Arc<Mutex<String>>,
    serial: AtomicU32,
    process: Helper,
}

impl Bind {
    /// Whether the program is there; otherwise the test is skipped.
    #[must_use]
    pub fn is_here() -> bool {
        tool::requires("named", &["-v"])
    }

    /// Starts it with these zones: name, records beside SOA and NS, and whether the key may write TXT records.
    pub async fn start(zones: &[(&str, &str, bool)]) -> Bind {
        let folder = tempfile::tempdir().unwrap();
        let port = port::fixed();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let mut config = format!(
            "options {{ directory {:?}; listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; \
             pid-file none; lock-file none; session-keyfile {:?}; managed-keys-directory {:?}; recursion yes; forward only; forwarders {{ 127.0.0.1 port 1; }}; empty-zones-enable no; \
             allow-transfer {{ none; }}; dnssec-validation no; notify no; }};\n\
             controls {{ }};\n\
             key {KEY:?} {{ algorithm hmac-sha256; secret {SECRET:?}; }};\n\
             key {POOR_KEY:?} {{ algorithm hmac-sha256; secret {POOR_SECRET:?}; }};\n",
            path(""),
            path("session.key"),
            path(""),
        );
        for (name, records, may_write) in zones {
            let policy = if *may_write {
                format!("update-policy {{ grant {KEY} zonesub TXT; }};")
            } else {
                String::new()
            };
            let file = path(&format!("{name}.zone"));
            config.push_str(&format!("zone {name:?} {{ type primary; file {file:?}; {policy} }};\n"));
            std::fs::write(file, zone(name, 1, records)).unwrap();
        }
        std::fs::write(path("named.conf"), config).unwrap();
        let names: Vec<&str> = zones.iter().map(|(name, ..)| *name).collect();
        Bind::run(folder, port, &names).await
    }

    /// Runs what its folder says, until it knows these zones.
    async fn run(folder: tempfile::TempDir, port: u16, zones: &[&str]) -> Bind {
        let config = folder.path().join("named.conf");
        let mut child = Command::new("named")
            .args(["-g", "-c"])
            .arg(config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("spawn named");
        let log = proxy::collect(child.stderr.take().unwrap());
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let bind = Bind { folder, address, log, serial: AtomicU32::new(1), process: Helper(child) };
        for name in zones {
            let name = lookup::name(name).unwrap();
            wait_for("the name server", || async {
                let answer = lookup::ask(address, &name, RecordType::SOA, true).await.ok()?;
                (!answer.answers.is_empty()).then_some(())
            })
            .await;
        }
        bind
    }

    /// Starts another one that asks this one, keeps nothing, and fails to answer what leads to one of `denied`.
    pub async fn before(&self, denied: &str, zone: &str) -> Bind {
        let folder = tempfile::tempdir().unwrap();
        let port = port::fixed();
        std::fs::write(folder.path().join("named.conf"), self.asking(folder.path(), port, denied)).unwrap();
        Bind::run(folder, port, &[zone]).await
    }

    /// The configuration of one that asks this one.
    fn asking(&self, folder: &std::path::Path, port: u16, denied: &str) -> String {
        let session = folder.join("session.key");
        format!(
            "options {{ directory {folder:?}; listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; \
             pid-file none; lock-file none; session-keyfile {session:?}; managed-keys-directory {folder:?}; \
             recursion yes; forward only; forwarders {{ 127.0.0.1 port {}; }}; empty-zones-enable no; \
             dnssec-validation no; servfail-ttl 0; max-cache-ttl 0; max-ncache-ttl 0; \
             deny-answer-addresses {{ {denied} }}; }};\ncontrols {{ }};\n",
            self.address.port()
        )
    }

    /// Lets one that asks this one fail to answer what leads to one of `denied`, from now on.
    pub fn deny(&self, asking: &Bind, denied: &str) {
        let folder = asking.folder.path();
        let config = self.asking(folder, asking.address.port(), denied);
        std::fs::write(folder.join("named.conf"), config).unwrap();
        asking.signal(rustix::process::Signal::HUP);
    }

    /// Gives a zone other records beside SOA and NS; they are answered soon after.
    pub fn change(&self, name: &str, records: &str) {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed) + 1;
        let file = self.folder.path().join(format!("{name}.zone"));
        std::fs::write(file, zone(name, serial, records)).unwrap();
        self.signal(rustix::process::Signal::HUP);
    }

    /// Sends the name server a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.process.0.id().try_into().unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// The TXT values at a name.
    pub async fn texts(&self, name: &str) -> Vec<String> {
        let name = lookup::name(name).unwrap();
        let answer = lookup::ask(self.address, &name, RecordType::TXT, false).await.expect("an answer");
        lookup::texts(&answer).iter().map(|text| tool::text(text)).collect()
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }
}

fn zone(name: &str, serial: u32, records: &str) -> String {
    format!(
        "$TTL 60\n@ IN SOA ns.{name}. root.{name}. {serial} 60 60 600 60\n@ IN NS ns.{name}.\nns IN A 127.0.0.1\n{records}\n"
    )
}
