//! A real `tidegate run` in a folder of its own.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustls::version::{TLS12, TLS13};
use serde_json::Value;

use super::client::H2;
use super::wire::{Reply, Wire};
use super::{DEADLINE, tls, tool, wait_for, wait_until};

/// The binary under test.
pub const TIDEGATE: &str = env!("CARGO_BIN_EXE_tidegate");

/// What a proxy is to be started with.
pub struct ProxyBuilder {
    settings: BTreeMap<String, BTreeMap<String, String>>,
    sites: Vec<(String, String)>,
    environment: Vec<(String, String)>,
    folder: tempfile::TempDir,
    wrapper: &'static [&'static str],
    files: Option<u64>,
}

/// Starts what follows without root's right to pass over the permissions of files.
const OBEYING: &[&str] = &["setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--"];

/// A running proxy. Dropping it ends the process; a panic inside it fails the test.
pub struct Proxy {
    child: Child,
    environment: Vec<(String, String)>,
    folder: tempfile::TempDir,
    output: Arc<Mutex<String>>,
    errors: Arc<Mutex<String>>,
    addresses: Vec<(String, SocketAddr)>,
    wrapper: &'static [&'static str],
}

impl ProxyBuilder {
    /// A setting by its full name, as in `set("server.timeouts.head", "\"300ms\"")`. The value is TOML.
    pub fn set(mut self, key: &str, value: &str) -> ProxyBuilder {
        let (section, name) = key.rsplit_once('.').expect("section.name");
        self.settings.entry(section.into()).or_default().insert(name.into(), value.into());
        self
    }

    /// The permissions of files hold for the process, also where the tests run as root.
    pub fn obeying_permissions(mut self) -> ProxyBuilder {
        if rustix::process::geteuid().is_root() {
            self.wrapper = OBEYING;
        }
        self
    }

    /// A file below `sites/`, with the site's table header written for you when the text has none.
    pub fn site(mut self, name: &str, toml: &str) -> ProxyBuilder {
        self.sites.push((name.to_string(), toml.to_string()));
        self
    }

    /// At most so many files open.
    pub fn files(mut self, limit: u64) -> ProxyBuilder {
        self.files = Some(limit);
        self
    }

    /// A variable of the process, also after a restart.
    pub fn env(mut self, name: &str, value: &str) -> ProxyBuilder {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// The folder of the configuration, to put files into before the start.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Writes the configuration without starting anything; returns the path of `tidegate.toml`.
    pub fn write(&self) -> PathBuf {
        let mut text = String::new();
        for (section, values) in &self.settings {
            text.push_str(&format!("[{section}]\n"));
            values.iter().for_each(|(k, v)| text.push_str(&format!("{k} = {v}\n")));
        }
        let path = self.folder().join("tidegate.toml");
        std::fs::create_dir_all(self.folder().join("sites")).expect("sites folder");
        std::fs::write(&path, text).expect("tidegate.toml");
        for (name, toml) in &self.sites {
            put_site(self.folder(), name, toml);
        }
        path
    }

    /// Starts the process and waits until it says `ready`.
    pub async fn start(self) -> Proxy {
        let config = self.write();
        let mut proxy = spawn(self.folder, &config, self.wrapper, self.files, self.environment);
        proxy.await_ready().await;
        proxy
    }

    /// Runs `tidegate run` and expects it to give up with a message.
    pub fn fails(self) -> Output {
        let config = self.write();
        run_to_end(&["run", "--config", config.to_str().unwrap()])
    }
}

/// Runs the binary to its end, killing it after the deadline.
pub fn run_to_end(args: &[&str]) -> Output {
    let mut child = Command::new(TIDEGATE)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("spawn tidegate");
    let start = Instant::now();
    while child.try_wait().expect("wait").is_none() {
        if start.elapsed() > DEADLINE {
            let _ = child.kill();
            let output = child.wait_with_output().expect("output");
            panic!(
                "tidegate {args:?} did not end: {}{}",
                tool::text(&output.stdout),
                tool::text(&output.stderr)
            );
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().expect("output")
}

fn put_site(folder: &Path, name: &str, toml: &str) {
    let written = toml.trim_start();
    let text = if written.starts_with("[site.") || written.starts_with("[[site.") {
        toml.to_string()
    } else {
        format!("[site.\"{name}\"]\n{toml}\n")
    };
    // Replaced by rename, as editors and deploy tools do: a reader never sees half a file.
    let path = folder.join("sites").join(format!("{name}.toml"));
    let fresh = folder.join(format!("{name}.toml.new"));
    std::fs::write(&fresh, text).expect("site file");
    std::fs::rename(fresh, path).expect("site file in place");
}

fn spawn(
    folder: tempfile::TempDir,
    config: &Path,
    wrapper: &'static [&'static str],
    files: Option<u64>,
    environment: Vec<(String, String)>,
) -> Proxy {
    let limit = files.map(|limit| format!("ulimit -n {limit}; exec \"$0\" \"$@\""));
    let shell = limit.iter().flat_map(|script| ["sh", "-c", script.as_str()]);
    let binary = std::env::var("TIDEGATE_BENCH_BINARY").unwrap_or(TIDEGATE.into());
    let mut words = shell.chain(wrapper.iter().copied()).chain([binary.as_str()]);
    let mut child = Command::new(words.next().expect("a program"))
        .args(words)
        .args(["run", "--config"])
        .arg(config)
        .current_dir(folder.path())
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("spawn tidegate");
    let (output, errors) = (collect(child.stdout.take().unwrap()), collect(child.stderr.take().unwrap()));
    Proxy { child, environment, folder, output, errors, addresses: Vec::new(), wrapper }
}

pub(super) fn collect(pipe: impl std::io::Read + Send + 'static) -> Arc<Mutex<String>> {
    let text = Arc::new(Mutex::new(String::new()));
    let sink = text.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            let mut text = sink.lock().unwrap();
            text.push_str(&line);
            text.push('\n');
        }
    });
    text
}

/// Access records shown when a story fails.
const LAST_RECORDS: usize = 10;

impl Proxy {
    /// Settings that suit tests: one worker, port zero everywhere, state and logs in a temporary folder.
    pub fn builder() -> ProxyBuilder {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let state = folder.path().join("state");
        let socket = folder.path().join("admin.sock");
        let log = folder.path().join("access.log");
        let (settings, environment) = (BTreeMap::new(), Vec::new());
        let builder =
            ProxyBuilder { settings, sites: Vec::new(), environment, folder, wrapper: &[], files: None };
        builder
            .set("server.http", "[\"127.0.0.1:0\"]")
            .set("server.https", "[\"127.0.0.1:0\"]")
            .set("server.workers", "1")
            .set("server.drain", "\"2s\"")
            // A build for tests on a machine that does other things, too, is late for reasons of its own.
            .set("server.overload.lag", "\"1m\"")
            .set("server.state", &format!("{state:?}"))
            .set("metrics.listen", "\"127.0.0.1:0\"")
            .set("admin.socket", &format!("{socket:?}"))
            .set("log.access", &format!("{log:?}"))
            .set("log.privacy", "\"full\"")
    }

    /// The common case: one site.
    pub async fn with_site(name: &str, toml: &str) -> Proxy {
        Proxy::builder().site(name, toml).start().await
    }

    /// Waits until the process says that it serves.
    pub async fn await_ready(&mut self) {
        let start = Instant::now();
        while !self.stdout().lines().any(|line| line.starts_with("ready")) {
            if let Some(status) = self.child.try_wait().expect("wait") {
                panic!("tidegate ended before it was ready ({status})\n{}", self.everything());
            }
            assert!(
                start.elapsed() < DEADLINE,
                "tidegate was not ready in {DEADLINE:?}\n{}",
                self.everything()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let status = self.status().await;
        let listeners = status["listeners"].as_array().expect("listeners in the status").clone();
        self.addresses = listeners
            .iter()
            .filter_map(|l| Some((l["kind"].as_str()?.to_string(), l["address"].as_str()?.parse().ok()?)))
            .collect();
    }

    /// Stops with SIGKILL and starts again in the same folder.
    pub async fn restart(&mut self) {
        self.kill();
        self.begin();
        self.await_ready().await;
    }

    /// Stops with SIGKILL.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts a process that has ended again in the same folder, and waits for nothing.
    pub fn begin(&mut self) {
        assert!(!self.stderr().contains("panicked at"), "the proxy panicked\n{}", self.everything());
        let folder = std::mem::replace(&mut self.folder, tempfile::tempdir().expect("folder"));
        let config = folder.path().join("tidegate.toml");
        *self = spawn(folder, &config, self.wrapper, None, std::mem::take(&mut self.environment));
    }

    fn address_of(&self, kind: &str) -> SocketAddr {
        let found = self.addresses.iter().find(|(k, _)| k == kind);
        found.unwrap_or_else(|| panic!("no {kind} listener in {:?}", self.addresses)).1
    }
    pub fn https(&self) -> SocketAddr {
        self.address_of("https")
    }
    pub fn http(&self) -> SocketAddr {
        self.address_of("http")
    }
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
    pub fn config(&self) -> PathBuf {
        self.path().join("tidegate.toml")
    }
    pub fn socket(&self) -> PathBuf {
        // As the configuration names it.
        let text = std::fs::read_to_string(self.path().join("tidegate.toml")).expect("tidegate.toml");
        let line = text.lines().find_map(|line| line.strip_prefix("socket = ")).expect("a socket setting");
        PathBuf::from(line.trim_matches('"'))
    }
    pub fn stdout(&self) -> String {
        self.output.lock().unwrap().clone()
    }
    pub fn stderr(&self) -> String {
        self.errors.lock().unwrap().clone()
    }

    fn everything(&self) -> String {
        let log = std::fs::read_to_string(self.path().join("access.log")).unwrap_or_default();
        let last: Vec<&str> = log.lines().rev().take(LAST_RECORDS).collect();
        let last: String = last.into_iter().rev().map(|line| format!("{line}\n")).collect();
        format!("--- stdout\n{}--- stderr\n{}--- last access records\n{last}", self.stdout(), self.stderr())
    }

    /// Path of the internal CA's certificate.
    pub fn ca_file(&self) -> PathBuf {
        self.path().join("state/internal-ca/ca.pem")
    }
    /// The internal CA's certificate.
    pub fn ca_pem(&self) -> String {
        std::fs::read_to_string(self.ca_file()).expect("the internal CA's certificate")
    }

    /// An HTTP/1.1 connection over TLS with this SNI.
    pub async fn wire(&self, name: &str) -> Wire {
        self.try_wire(name).await.unwrap_or_else(|e| panic!("TLS to {name}: {e}\n{}", self.everything()))
    }
    pub async fn try_wire(&self, name: &str) -> std::io::Result<Wire> {
        let config = tls::client_config(&self.ca_pem(), &["http/1.1"], &[&TLS13, &TLS12]);
        tls::connect(config, self.https(), name).await
    }
    /// An HTTP/2 connection with this SNI and authority.
    pub async fn h2(&self, name: &str) -> H2 {
        let config = tls::client_config(&self.ca_pem(), &["h2"], &[&TLS13, &TLS12]);
        let wire = tls::connect(config, self.https(), name).await.expect("TLS for h2");
        H2::over(wire, name).await
    }
    /// The same without comfort.
    pub async fn bare_h2(&self, name: &str) -> h2::client::SendRequest<bytes::Bytes> {
        let config = tls::client_config(&self.ca_pem(), &["h2"], &[&TLS13, &TLS12]);
        let wire = tls::connect(config, self.https(), name).await.expect("TLS for h2");
        super::client::bare_h2(wire).await
    }
    /// A plain connection to the HTTP listener.
    pub async fn plain(&self) -> Wire {
        Wire::plain(self.http()).await
    }
    /// One GET on a connection of its own.
    pub async fn get(&self, host: &str, target: &str) -> Reply {
        self.wire(host).await.get(host, target).await
    }
    /// The same, for endings that may be cut.
    pub async fn try_get(&self, host: &str, target: &str) -> std::io::Result<Reply> {
        let mut wire = self.try_wire(host).await?;
        wire.try_send(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await?;
        super::within("an answer", wire.try_reply_to("GET")).await
    }

    /// curl with the CA and this host resolved to our HTTPS listener; `url` may use `{port}`.
    pub async fn curl(&self, host: &str, args: &[&str], path: &str) -> Output {
        let port = self.https().port();
        let mut all = vec!["--silent".into(), "--show-error".into(), "--max-time".into(), "60".into()];
        all.extend(["--cacert".into(), self.ca_file().display().to_string()]);
        all.extend(["--resolve".into(), format!("{host}:{port}:127.0.0.1")]);
        all.extend(args.iter().map(ToString::to_string));
        all.push(format!("https://{host}:{port}{path}"));
        tool::run("curl", &all).await
    }

    /// Replaces (or adds) a site's file.
    pub fn write_site(&self, name: &str, toml: &str) {
        put_site(self.path(), name, toml);
    }
    pub fn remove_site(&self, name: &str) {
        std::fs::remove_file(self.path().join("sites").join(format!("{name}.toml"))).expect("remove a site");
    }
    /// Changes the text of `tidegate.toml`.
    pub fn edit_config(&self, edit: impl FnOnce(String) -> String) {
        let text = std::fs::read_to_string(self.config()).expect("tidegate.toml");
        std::fs::write(self.config(), edit(text)).expect("tidegate.toml");
    }

    /// Asks the admin socket.
    pub async fn admin(&self, method: &str, target: &str) -> Value {
        let mut wire =
            Wire::unix(&self.socket()).await.unwrap_or_else(|e| panic!("{e}\n{}", self.everything()));
        let reply = wire.ask(method, target, "tidegate", "Content-Length: 0\r\nConnection: close\r\n").await;
        serde_json::from_slice(&reply.body)
            .unwrap_or_else(|e| panic!("{method} {target}: {e}: {}", reply.text()))
    }
    pub async fn status(&self) -> Value {
        self.admin("GET", "/status").await
    }
    pub async fn reload(&self) -> Value {
        self.admin("POST", "/reload").await
    }
    /// The status entry of a site.
    pub async fn site(&self, name: &str) -> Value {
        let status = self.status().await;
        let sites = status["sites"].as_array().expect("sites in the status").clone();
        sites.into_iter().find(|s| s["name"] == name).unwrap_or(Value::Null)
    }

    /// Runs a command of the binary against this proxy.
    pub fn command(&self, args: &[&str]) -> Output {
        let config = self.config();
        let mut all = args.to_vec();
        all.extend(["--config", config.to_str().unwrap()]);
        run_to_end(&all)
    }

    /// The same on a thread of its own: origins of the test answer meanwhile.
    pub async fn command_async(&self, args: &[&str]) -> Output {
        let config = self.config().display().to_string();
        let all: Vec<String> =
            args.iter().map(ToString::to_string).chain(["--config".to_owned(), config]).collect();
        let run = move || run_to_end(&all.iter().map(String::as_str).collect::<Vec<_>>());
        tokio::task::spawn_blocking(run).await.unwrap()
    }

    /// The metrics page.
    pub async fn metrics(&self) -> Metrics {
        let mut wire = Wire::plain(self.address_of("metrics")).await;
        let reply = wire.ask("GET", "/metrics", "localhost", "Connection: close\r\n").await;
        assert_eq!(reply.status, 200);
        Metrics(reply.text())
    }

    /// The access log so far; panics when a line is not JSON.
    pub fn access_log(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path().join("access.log")).unwrap_or_default();
        // The last line may still be on its way.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"))).collect()
    }
    /// Waits until the access log has this many records.
    pub async fn records(&self, n: usize) -> Vec<Value> {
        wait_until(&format!("{n} access records"), || self.access_log().len() >= n).await;
        self.access_log()
    }
    /// Waits for one record with this outcome.
    pub async fn record_with(&self, outcome: &str) -> Value {
        wait_for(&format!("a record with outcome {outcome}"), || async {
            self.access_log().into_iter().find(|r| r["outcome"] == outcome)
        })
        .await
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.child.id() as i32).expect("a pid");
        rustix::process::kill_process(pid, signal).expect("signal");
    }
    /// Waits until the process has ended.
    pub async fn ended(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                return status;
            }
            assert!(start.elapsed() < DEADLINE, "tidegate did not end\n{}", self.everything());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal(rustix::process::Signal::TERM);
            let start = Instant::now();
            while matches!(self.child.try_wait(), Ok(None)) && start.elapsed() < Duration::from_millis(300) {
                std::thread::sleep(Duration::from_millis(5));
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("{}", self.everything());
        } else {
            assert!(!self.stderr().contains("panicked at"), "the proxy panicked\n{}", self.everything());
        }
    }
}

/// The text of `/metrics`, with the one question tests ask of it.
pub struct Metrics(pub String);

impl Metrics {
    /// Sum of all series of this name whose labels contain all of these.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let wanted: Vec<String> = labels.iter().map(|(k, v)| format!("{k}=\"{v}\"")).collect();
        self.0
            .lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
            .filter(|line| wanted.iter().all(|w| line.contains(w)))
            .map(|line| line.rsplit(' ').next().and_then(|v| v.parse::<f64>().ok()).expect("a sample value"))
            .sum()
    }
}
