//! Let's Encrypt's test authority, Pebble, and its name server, as processes of their own.
//!
//! Everything Pebble knows (accounts, orders, its root) is in its memory: one that is started again is a new authority
//! behind the old address.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use tokio::net::TcpStream;

use super::tls::{Ca, Pair};
use super::tool::{self, Helper};
use super::{Wire, port, proxy, wait_for};

/// An authority that validates on the ports given.
pub struct Pebble {
    folder: tempfile::TempDir,
    ports: Ports,
    environment: Vec<(&'static str, &'static str)>,
    /// Whom Pebble asks for names.
    resolver: String,
    process: Option<Helper>,
    _names: Helper,
    log: Arc<Mutex<String>>,
    roots: String,
}

/// Ports of one test, free a moment ago.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    /// Where the proxy is to listen.
    pub http: u16,
    pub https: u16,
    directory: u16,
    management: u16,
    names: u16,
    names_management: u16,
}

impl Ports {
    /// Pebble and the proxy must know each other's ports before they start.
    pub fn free() -> Ports {
        let [http, https, directory, management, names, names_management] =
            std::array::from_fn(|_| port::fixed());
        Ports { http, https, directory, management, names, names_management }
    }

    /// The address of Pebble's own name server.
    pub fn resolver(self) -> String {
        format!("127.0.0.1:{}", self.names)
    }

    /// Where that name server is told what to answer.
    pub fn names_management(self) -> String {
        format!("http://127.0.0.1:{}", self.names_management)
    }

    /// Ports of a second authority that validates where the first does.
    pub fn of_another(self) -> Ports {
        let Ports { http, https, .. } = self;
        Ports { http, https, ..Ports::free() }
    }
}

impl Pebble {
    /// Whether both programs are there; otherwise the test is skipped.
    #[must_use]
    pub fn is_here() -> bool {
        tool::requires("pebble", &["-v"]) && tool::requires("pebble-challtestsrv", &["-v"])
    }

    /// Starts both; `environment` are Pebble's switches.
    pub async fn start(ports: Ports, environment: &[(&'static str, &'static str)]) -> Pebble {
        Pebble::start_with(ports, environment, &[]).await
    }

    /// The same with another name server than Pebble's own.
    pub async fn start_asking(
        ports: Ports,
        environment: &[(&'static str, &'static str)],
        resolver: String,
    ) -> Pebble {
        Pebble::start_as(ports, environment, &[], resolver).await
    }

    /// The same with more members of its configuration.
    pub async fn start_with(
        ports: Ports,
        environment: &[(&'static str, &'static str)],
        members: &[(&str, serde_json::Value)],
    ) -> Pebble {
        Pebble::start_as(ports, environment, members, ports.resolver()).await
    }

    async fn start_as(
        ports: Ports,
        environment: &[(&'static str, &'static str)],
        members: &[(&str, serde_json::Value)],
        resolver: String,
    ) -> Pebble {
        let folder = tempfile::tempdir().unwrap();
        let ca = Ca::new("pebble's own listener");
        let pair = ca.leaf(&["localhost", "127.0.0.1"]);
        let put = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        put("listener-ca.pem", &ca.pem);
        put("cert.pem", &pair.cert);
        put("key.pem", &pair.key);
        let mut config = serde_json::json!({ "pebble": {
            "listenAddress": format!("127.0.0.1:{}", ports.directory),
            "managementListenAddress": format!("127.0.0.1:{}", ports.management),
            "certificate": folder.path().join("cert.pem"),
            "privateKey": folder.path().join("key.pem"),
            "httpPort": ports.http,
            "tlsPort": ports.https,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": false,
        }});
        for (name, value) in members {
            config["pebble"][*name] = value.clone();
        }
        put("pebble.json", &config.to_string());
        let mut pebble = Pebble {
            folder,
            ports,
            environment: environment.to_vec(),
            resolver,
            process: None,
            _names: names(ports),
            log: Arc::default(),
            roots: String::new(),
        };
        pebble.start_again().await;
        pebble
    }

    /// Starts Pebble, as a new authority, and adds its root to [`Pebble::roots`].
    pub async fn start_again(&mut self) {
        let mut child = Command::new("pebble")
            .arg("-config")
            .arg(self.folder.path().join("pebble.json"))
            .args(["-dnsserver", &self.resolver])
            .env("PEBBLE_VA_NOSLEEP", "1")
            // Pebble refuses every twentieth nonce by itself; a test that is about that says so.
            .env("PEBBLE_WFE_NONCEREJECT", "0")
            .envs(self.environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("spawn pebble");
        self.log = proxy::collect(child.stdout.take().unwrap());
        self.process = Some(Helper(child));
        let url = format!("https://127.0.0.1:{}/roots/0", self.ports.management);
        let args = crate::args!["--silent", "--fail", "--cacert", self.listener_ca(), url];
        let root = wait_for("pebble's root", || async {
            let output = tool::run("curl", &args).await;
            output.status.success().then(|| tool::text(&output.stdout))
        })
        .await;
        wait_for("pebble's directory", || async {
            let args = crate::args!["--silent", "--fail", "--cacert", self.listener_ca(), self.directory()];
            tool::run("curl", &args).await.status.success().then_some(())
        })
        .await;
        self.roots.push_str(&root);
        std::fs::write(self.roots_file(), &self.roots).unwrap();
    }

    /// Ends Pebble; what it knew is lost.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.ports.directory).into()
    }
    /// The certificate of its listener and the key.
    pub fn listener_pair(&self) -> Pair {
        let read = |name: &str| std::fs::read_to_string(self.folder.path().join(name)).unwrap();
        Pair { cert: read("cert.pem"), key: read("key.pem") }
    }
    /// Lets the name server say that a name is at another address.
    pub async fn point(&self, name: &str, address: &str) {
        let body = serde_json::json!({ "host": name, "addresses": [address] }).to_string();
        let server: SocketAddr = ([127, 0, 0, 1], self.ports.names_management).into();
        wait_for("the name server", || async { TcpStream::connect(server).await.ok() }).await;
        let reply = Wire::plain(server).await.post("localhost", "/add-a", &body).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
    }

    /// The address of the ACME directory.
    pub fn directory(&self) -> String {
        format!("https://127.0.0.1:{}/dir", self.ports.directory)
    }
    /// The CA of Pebble's own listener: what `[acme] ca_file` is for.
    pub fn listener_ca(&self) -> String {
        self.folder.path().join("listener-ca.pem").display().to_string()
    }
    /// The roots of all authorities so far, as a file for curl.
    pub fn roots_file(&self) -> String {
        self.folder.path().join("roots.pem").display().to_string()
    }
    pub fn roots(&self) -> &str {
        &self.roots
    }
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }
    /// Orders made with the Pebble that runs now.
    pub fn orders(&self) -> usize {
        self.log().matches("Added order").count()
    }
}

impl Pebble {
    /// Accounts made with the Pebble that runs now.
    pub fn accounts(&self) -> usize {
        self.log().matches("accounts in memory").count()
    }
}

/// The name server: every name is at 127.0.0.1.
fn names(ports: Ports) -> Helper {
    let child = Command::new("pebble-challtestsrv")
        .args(["-dns01", &format!("127.0.0.1:{}", ports.names)])
        .args(["-management", &format!("127.0.0.1:{}", ports.names_management)])
        .args(["-defaultIPv4", "127.0.0.1", "-defaultIPv6", ""])
        .args(["-http01", "", "-https01", "", "-tlsalpn01", ""])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("spawn pebble-challtestsrv");
    Helper(child)
}
