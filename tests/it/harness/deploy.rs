//! A service in real containers that is deployed again and again, and the load that must not notice.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::client::{H2, empty, full};
use super::{DEADLINE, Proxy, Reply, Wire, tool, within_for};

/// A static shell, for signals.
pub const BUSYBOX: &str = "/bin/busybox";

/// Whether this machine can run the tests.
#[must_use]
pub fn possible() -> bool {
    if !Path::new(BUSYBOX).exists() {
        tool::skip("there is no /bin/busybox (Debian: busybox-static)");
        return false;
    }
    tool::requires("docker", &["info"])
}

/// Runs the engine's command.
pub async fn docker(args: &[String]) -> String {
    let output = within_for(DEADLINE * 4, "docker", tool::run("docker", args)).await;
    tool::stdout_of(&output).trim().to_owned()
}

/// An image and a network of one test, and the containers made of them; removed with it.
pub struct Service {
    /// What everything of this test is called by.
    pub tag: String,
    labels: Vec<(String, String)>,
    made: u64,
    /// Running, oldest first.
    pub running: Vec<String>,
    linger: u32,
}

impl Drop for Service {
    fn drop(&mut self) {
        let docker = |args: &[&str]| Command::new("docker").args(args).output();
        let filter = format!("label=tidegate-test={}", self.tag);
        if let Ok(found) = docker(&["ps", "-aq", "--filter", &filter]) {
            let ids = tool::text(&found.stdout);
            let mut args = vec!["rm", "-f"];
            args.extend(ids.split_whitespace());
            let _ = docker(&args);
        }
        let _ = docker(&["rmi", "-f", &self.tag]);
        let _ = docker(&["network", "rm", &self.tag]);
    }
}

impl Service {
    /// Builds the image from nothing and makes the network. `linger`: how long a container goes on listening once told to
    /// stop, in milliseconds.
    pub async fn new(name: &str, linger: u32, labels: &[(&str, &str)]) -> Service {
        let tag = format!("tidegate-{name}-{}", std::process::id());
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let service = Service { tag, labels, made: 0, running: Vec::new(), linger };
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(BUSYBOX, folder.path().join("busybox")).unwrap();
        let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/support/app.rs");
        let app = folder.path().join("app");
        let args = crate::args![
            "-O",
            "--edition",
            "2024",
            "-C",
            "target-feature=+crt-static",
            source.display(),
            "-o",
            app.display()
        ];
        tool::stdout_of(&within_for(DEADLINE * 4, "rustc", tool::run("rustc", &args)).await);
        // The first process of a container ignores signals that it does not ask for, and the app cannot ask.
        let script = "trap 'busybox touch /stop' TERM; /app \"$1\" 80 /stop \"$2\" & wait $!; wait $!";
        std::fs::write(folder.path().join("run"), script).unwrap();
        let dockerfile = "FROM scratch\nCOPY busybox /bin/busybox\nCOPY app /app\nCOPY run /run.sh\nENV PATH=/bin\n\
                          EXPOSE 80\nENTRYPOINT [\"/bin/busybox\", \"sh\", \"/run.sh\"]\n";
        std::fs::write(folder.path().join("Dockerfile"), dockerfile).unwrap();
        docker(&crate::args!["build", "-q", "-t", service.tag, folder.path().display()]).await;
        docker(&crate::args!["network", "create", service.tag]).await;
        service
    }

    /// Starts one more container.
    pub async fn start(&mut self) -> String {
        self.start_as("well").await
    }

    /// The same of one that is `well`, `failing` or `sick`; see the app.
    pub async fn start_as(&mut self, how: &str) -> String {
        self.made += 1;
        let name = format!("{}-{}-{how}", self.tag, self.made);
        let mut args = crate::args!["run", "-d", "--rm", "--name", name, "--network", self.tag].to_vec();
        args.extend(crate::args!["--label", format!("tidegate-test={}", self.tag)]);
        for (label, value) in &self.labels {
            args.extend(crate::args!["--label", format!("{label}={value}")]);
        }
        args.extend(crate::args![self.tag, name, self.linger]);
        docker(&args).await;
        self.running.push(name.clone());
        name
    }

    /// Where a container is.
    pub async fn address(&self, name: &str) -> SocketAddr {
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        let ip = docker(&crate::args!["inspect", "-f", format, name]).await;
        format!("{ip}:80").parse().expect("an address")
    }

    /// Stops the oldest as deployments do: by the signal, with a time to finish.
    pub async fn stop_oldest(&mut self) {
        let name = self.running[0].clone();
        self.stop(&name).await;
    }

    /// Stops this one.
    pub async fn stop(&mut self, name: &str) {
        self.running.retain(|running| running != name);
        docker(&crate::args!["stop", name]).await;
    }

    /// Ends the oldest without a warning.
    pub async fn kill_oldest(&mut self) {
        let name = self.running.remove(0);
        docker(&crate::args!["kill", name]).await;
    }
}

/// What the load saw.
#[derive(Default)]
pub struct Seen {
    /// Requests that ended well.
    pub good: AtomicU64,
    /// Tunnels that were opened.
    pub tunnels: AtomicU64,
    /// Tunnels that ended, and were opened again.
    pub reopened: AtomicU64,
    /// Requests that the client sent again because its kept connection broke before the answer or in it.
    pub again: AtomicU64,
    failed: std::sync::Mutex<Vec<String>>,
}

impl Seen {
    fn note(&self, what: &str, result: Result<(), String>) {
        match result {
            Ok(()) => {
                self.good.fetch_add(1, Ordering::Relaxed);
            }
            Err(why) => self.failed.lock().unwrap().push(format!("{what}: {why}")),
        }
    }

    /// What failed.
    pub fn failed(&self) -> Vec<String> {
        self.failed.lock().unwrap().clone()
    }
}

/// Who is asked.
#[derive(Clone)]
pub enum Front {
    /// By TLS, HTTP/1.1 and HTTP/2.
    Proxy(Arc<Proxy>, String),
    /// In plain HTTP/1.1.
    Plain(SocketAddr, String),
}

impl Front {
    fn host(&self) -> &str {
        match self {
            Front::Proxy(_, host) | Front::Plain(_, host) => host,
        }
    }

    async fn wire(&self) -> Result<Wire, String> {
        match self {
            Front::Proxy(proxy, host) => {
                proxy.try_wire(host).await.map_err(|error| format!("connect: {error}"))
            }
            Front::Plain(address, _) => {
                let stream = tokio::net::TcpStream::connect(address).await;
                stream.map(Wire::over).map_err(|error| format!("connect: {error}"))
            }
        }
    }
}

/// A load of small requests, downloads, uploads and tunnels, until it is told to stop.
pub struct Load {
    /// What it saw.
    pub seen: Arc<Seen>,
    stop: Arc<AtomicBool>,
    tasks: tokio::task::JoinSet<()>,
}

const SMALL: usize = 4;
const UPLOAD: usize = 256 << 10;

impl Load {
    /// Begins. `changing`: also what must not be sent twice (uploads).
    pub fn on(front: &Front, tunnels: usize, changing: bool) -> Load {
        let (seen, stop) = (Arc::new(Seen::default()), Arc::new(AtomicBool::new(false)));
        let mut load = Load { seen, stop, tasks: tokio::task::JoinSet::new() };
        for _ in 0..SMALL {
            load.spawn(front, "GET", |front, seen, mut wire| async move {
                let result = get(&front, &seen, &mut wire, "/").await;
                (wire, result.map(drop))
            });
        }
        for _ in 0..2 {
            load.spawn(front, "download", |front, seen, mut wire| async move {
                let result = get(&front, &seen, &mut wire, "/big").await;
                (
                    wire,
                    result.and_then(
                        |length| if length == 1 << 20 { Ok(()) } else { Err(format!("{length} bytes")) },
                    ),
                )
            });
            if changing {
                load.spawn(front, "upload", |front, seen, mut wire| async move {
                    let result = upload(&front, &seen, &mut wire).await;
                    (wire, result)
                });
            }
        }
        for _ in 0..tunnels {
            let (front, seen, stop) = (front.clone(), load.seen.clone(), load.stop.clone());
            load.tasks.spawn(tunnel(front, seen, stop));
        }
        if let Front::Proxy(proxy, host) = front {
            for number in 0..SMALL {
                let (proxy, host, seen, stop) =
                    (proxy.clone(), host.clone(), load.seen.clone(), load.stop.clone());
                load.tasks.spawn(multiplexed(proxy, host, number, changing, seen, stop));
            }
        }
        load
    }

    fn spawn<F>(
        &mut self,
        front: &Front,
        what: &'static str,
        ask: impl Fn(Front, Arc<Seen>, Option<Wire>) -> F + Send + 'static,
    ) where
        F: Future<Output = (Option<Wire>, Result<(), String>)> + Send,
    {
        let (front, seen, stop) = (front.clone(), self.seen.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            let mut wire = None;
            while !stop.load(Ordering::Relaxed) {
                let result;
                (wire, result) = ask(front.clone(), seen.clone(), wire.take()).await;
                seen.note(what, result);
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
    }

    /// Ends; what is on its way is waited for.
    pub async fn end(mut self) -> Arc<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        within_for(DEADLINE, "the load to end", async {
            while let Some(ended) = self.tasks.join_next().await {
                ended.expect("a task of the load");
            }
        })
        .await;
        self.seen
    }
}

/// One exchange on a kept connection. A connection that the server closed between two requests is no failure: it is opened
/// again, as every client does.
async fn exchange(
    front: &Front,
    seen: &Seen,
    kept: &mut Option<Wire>,
    request: &[u8],
) -> Result<usize, String> {
    for attempt in 0..2 {
        let fresh = kept.is_none();
        let mut wire = match kept.take() {
            Some(wire) => wire,
            None => front.wire().await?,
        };
        let sent = wire.try_send(request).await;
        let reply = match sent {
            Ok(()) => within_for(DEADLINE, "an answer", wire.try_reply_to("GET")).await,
            Err(error) => Err(error),
        };
        match reply {
            Ok(reply) if reply.status == 200 => {
                let closes =
                    reply.field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
                *kept = (!closes).then_some(wire);
                return Ok(reply.body.len());
            }
            Ok(reply) => return Err(format!("{} {}", reply.status, reply.outcome())),
            Err(_) if !fresh && attempt == 0 => {
                seen.again.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => return Err(error.to_string()),
        }
    }
    Err("twice".into())
}

async fn get(front: &Front, seen: &Seen, wire: &mut Option<Wire>, path: &str) -> Result<usize, String> {
    exchange(front, seen, wire, format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", front.host()).as_bytes())
        .await
}

async fn upload(front: &Front, seen: &Seen, wire: &mut Option<Wire>) -> Result<(), String> {
    // A connection of its own: a client cannot know whether it may send an upload twice.
    *wire = None;
    let host = front.host();
    let mut request =
        format!("POST /up HTTP/1.1\r\nHost: {host}\r\nContent-Length: {UPLOAD}\r\n\r\n").into_bytes();
    request.resize(request.len() + UPLOAD, b'u');
    exchange(front, seen, wire, &request).await.map(drop)
}

/// Echoes once in a while. A tunnel that ends is opened again at once, and must open.
async fn tunnel(front: Front, seen: Arc<Seen>, stop: Arc<AtomicBool>) {
    let ask = format!(
        "GET /ws HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
        front.host()
    );
    while !stop.load(Ordering::Relaxed) {
        let mut wire = match front.wire().await {
            Ok(wire) => wire,
            Err(why) => return seen.note("tunnel", Err(why)),
        };
        let opened = match wire.try_send(&ask).await {
            Ok(()) => within_for(DEADLINE, "a tunnel", wire.head()).await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match opened {
            Ok(Some(head)) if head.line.contains(" 101 ") => {
                seen.tunnels.fetch_add(1, Ordering::Relaxed);
            }
            Ok(head) => {
                seen.note("tunnel", Err(head.map_or_else(|| "closed".into(), |head| head.line)));
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
            Err(why) => {
                seen.note("tunnel", Err(why));
                continue;
            }
        }
        while !stop.load(Ordering::Relaxed) {
            let echoed = async {
                wire.try_send("ping").await?;
                wire.exactly(4).await
            };
            match tokio::time::timeout(DEADLINE, echoed).await {
                Ok(Ok(bytes)) if bytes == b"ping" => {}
                _ => {
                    seen.reopened.fetch_add(1, Ordering::Relaxed);
                    break;
                }
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

async fn multiplexed(
    proxy: Arc<Proxy>,
    host: String,
    number: usize,
    changing: bool,
    seen: Arc<Seen>,
    stop: Arc<AtomicBool>,
) {
    let mut client = proxy.h2(&host).await;
    while !stop.load(Ordering::Relaxed) {
        let (method, path) = match number {
            0 if changing => ("POST", "/up"),
            1 => ("GET", "/big"),
            _ => ("GET", "/"),
        };
        let result = match h2_exchange(&mut client, method, path).await {
            // Nothing was sent: the connection had had its number of requests, or its age, and ended in good order (RFC 9113
            // section 6.8). Every client takes another.
            Err(error) if error.is_closed() && ended_well(&mut client).await => {
                client = proxy.h2(&host).await;
                h2_exchange(&mut client, method, path).await
            }
            result => result,
        };
        let result = match result {
            Ok(reply) if reply.status == 200 => Ok(()),
            Ok(reply) => Err(format!("{} {}", reply.status, reply.outcome())),
            Err(error) => Err(error.to_string()),
        };
        seen.note("h2", result);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn h2_exchange(client: &mut H2, method: &str, path: &str) -> hyper::Result<Reply> {
    let body = if method == "POST" { full(vec![b'u'; UPLOAD]) } else { empty() };
    let response = client.start(client.request(method, path).body(body).expect("a request")).await?;
    super::client::read(response).await
}

async fn ended_well(client: &mut H2) -> bool {
    matches!(within_for(DEADLINE, "the connection to end", &mut client.driver).await, Ok(Ok(())))
}
