//! Questions to a container engine: HTTP/1.1 over its Unix socket or a TCP port, answers bounded in bytes and in time.
//!
//! Docker's Engine API, which Podman speaks too. Five questions are asked, all of them reading: `GET /_ping`,
//! `GET /containers/json`, `GET /containers/{id}/json`, `GET /events`, and `GET /services/{id}` for tasks of a Swarm. Nothing
//! is ever changed.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::labels;
use crate::config::model::DockerSocket;

/// From connecting to the last byte of an answer; for events, to the first.
const DEADLINE: Duration = Duration::from_secs(10);
/// Bytes of the list of containers: 10,000 containers at 6 KiB.
const LIST_BYTES_MAX: usize = 64 << 20;
/// Bytes of what is told of one container.
const CONTAINER_BYTES_MAX: usize = 1 << 20;
/// Bytes of one event: it carries the container's labels.
const EVENT_BYTES_MAX: usize = 256 << 10;
/// After so long without a word, and so often from then on, the kernel asks whether the other side of a TCP connection lives.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// The newest version of the interface that is asked for; engines have older ones, and refuse too old ones.
const VERSION: (u32, u32) = (1, 47);
/// The oldest version that has all that is asked for.
const VERSION_MIN: (u32, u32) = (1, 24);
/// What happens to a container that matters here, in the words of Docker and of Podman.
const ACTIONS: &[&str] = &[
    "start",
    "restart",
    "unpause",
    "pause",
    "kill",
    "stop",
    "die",
    "died",
    "destroy",
    "remove",
    "health_status",
    "rename",
    "connect",
    "disconnect",
    // Of Swarm services.
    "update",
];

/// An engine that answers.
#[derive(Debug, Clone)]
pub struct Engine {
    socket: DockerSocket,
    version: (u32, u32),
}

/// A container as the list has it: enough to know whether what is known of it still holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Listed {
    pub id: String,
    /// `running`, `paused`, …
    pub state: String,
    /// In words, with the health: `Up 2 minutes (healthy)`.
    pub status: String,
    pub labels: Option<BTreeMap<String, String>>,
    pub network_settings: Networks,
}

/// A container as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Inspected {
    pub id: String,
    /// With a slash before it.
    pub name: String,
    pub state: State,
    pub config: Config,
    pub network_settings: Networks,
}

/// What a container does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct State {
    pub running: bool,
    pub paused: bool,
    /// RFC 3339, in UTC: later texts are later times.
    pub started_at: String,
    pub health: Option<Health>,
}

/// What the health check of its image says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Health {
    /// `starting`, `healthy`, `unhealthy`; `none` or nothing without a check.
    pub status: String,
}

/// What a container was made with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Config {
    pub labels: Option<BTreeMap<String, String>>,
    /// Keys like `80/tcp`.
    pub exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
    /// A name like `SIGQUIT` or a number; Podman gives a number.
    #[serde(deserialize_with = "text_or_number")]
    pub stop_signal: String,
    /// Seconds between that signal and the end; below 0: it is waited for without an end.
    pub stop_timeout: Option<i64>,
}

/// Where a container is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Networks {
    pub networks: Option<BTreeMap<String, Network>>,
    /// Ports published, by keys like `80/tcp`. The list has them elsewhere.
    pub ports: Option<BTreeMap<String, Option<Vec<Published>>>>,
}

/// A container's place in one network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Network {
    #[serde(rename = "IPAddress")]
    pub v4: String,
    #[serde(rename = "GlobalIPv6Address")]
    pub v6: String,
}

/// A port of this machine that leads into a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Published {
    pub host_ip: String,
    pub host_port: String,
}

/// A Swarm service.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Service {
    spec: Spec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Spec {
    labels: Option<BTreeMap<String, String>>,
}

/// Something that happened.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Event {
    /// `container`, `network` or `service`.
    #[serde(rename = "Type")]
    pub kind: String,
    /// `start`, `health_status: healthy`, …
    #[serde(rename = "Action")]
    pub action: String,
    #[serde(rename = "Actor")]
    pub actor: Actor,
}

/// To whom.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Actor {
    #[serde(rename = "ID")]
    pub id: String,
    /// Labels among them; also `signal` of a kill, and `container` of a network's events.
    pub attributes: BTreeMap<String, String>,
}

fn text_or_number<'de, D: serde::Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    Ok(match serde_json::Value::deserialize(from)? {
        serde_json::Value::String(text) => text,
        serde_json::Value::Number(number) => number.to_string(),
        _ => String::new(),
    })
}

impl Engine {
    /// Asks an engine whether it is there and how it wants to be spoken to.
    ///
    /// # Errors
    /// A sentence for the operator, without the socket's name.
    pub async fn find(socket: &DockerSocket) -> Result<Engine, String> {
        let response = within(ask(socket, "/_ping")).await?;
        let theirs = response.headers().get("api-version").and_then(|value| value.to_str().ok());
        let version = theirs.and_then(version).unwrap_or(VERSION_MIN).min(VERSION);
        body(response, CONTAINER_BYTES_MAX).await?;
        if version < VERSION_MIN {
            let (major, minor) = VERSION_MIN;
            return Err(format!(
                "this engine is too old: version {major}.{minor} of its interface is needed"
            ));
        }
        Ok(Engine { socket: socket.clone(), version })
    }

    /// Every container that runs or is paused.
    ///
    /// # Errors
    /// A sentence.
    pub async fn list(&self) -> Result<Vec<Listed>, String> {
        let answer = within(self.get("/containers/json", LIST_BYTES_MAX)).await?;
        let bytes = answer.ok_or("the engine knows no list of containers")?;
        serde_json::from_slice(&bytes)
            .map_err(|error| format!("the list of containers cannot be read: {error}"))
    }

    /// One container; `None` where there is no such one any more.
    ///
    /// # Errors
    /// A sentence.
    pub async fn inspect(&self, id: &str) -> Result<Option<Inspected>, String> {
        // Ids come from the engine; nothing but an id goes into the path.
        if !id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Ok(None);
        }
        let answer = within(self.get(&format!("/containers/{id}/json"), CONTAINER_BYTES_MAX)).await?;
        let read = |bytes: Bytes| {
            serde_json::from_slice(&bytes)
                .map_err(|error| format!("the container {id} cannot be read: {error}"))
        };
        answer.map(read).transpose()
    }

    /// The same, with what the labels of its Swarm service say of which its own say nothing.
    ///
    /// # Errors
    /// A sentence.
    pub async fn inspect_task(&self, id: &str) -> Result<Option<Inspected>, String> {
        let mut found = self.inspect(id).await?;
        if let Some(own) = found.as_mut().and_then(|found| found.config.labels.as_mut())
            && let Some(service) = own.get(labels::SWARM).cloned()
        {
            for (label, value) in self.service_labels(&service).await? {
                if label.starts_with(labels::PREFIX) {
                    own.entry(label).or_insert(value);
                }
            }
        }
        Ok(found)
    }

    /// The labels of a Swarm service; none where the engine does not know them (it is no manager) or a socket proxy keeps
    /// them back: then those of the container count alone.
    async fn service_labels(&self, id: &str) -> Result<BTreeMap<String, String>, String> {
        if !id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Ok(BTreeMap::new());
        }
        let path = self.path(&format!("/services/{id}"));
        let asking = async {
            let response = ask_any(&self.socket, &path).await?;
            if !response.status().is_success() {
                return Ok(None);
            }
            body(response, CONTAINER_BYTES_MAX).await.map(Some)
        };
        let Some(bytes) = within(asking).await? else { return Ok(BTreeMap::new()) };
        let service: Service = serde_json::from_slice(&bytes)
            .map_err(|error| format!("the service {id} cannot be read: {error}"))?;
        Ok(service.spec.labels.unwrap_or_default())
    }

    /// What happens from now on.
    ///
    /// # Errors
    /// A sentence.
    pub async fn events(&self) -> Result<Events, String> {
        let filters =
            serde_json::json!({ "type": ["container", "network", "service"], "event": ACTIONS }).to_string();
        let path = self.path(&format!("/events?filters={}", encoded(&filters)));
        let response = within(ask(&self.socket, &path)).await?;
        Ok(Events { body: response.into_body(), buffer: BytesMut::new(), skipping: false })
    }

    fn path(&self, path: &str) -> String {
        let (major, minor) = self.version;
        format!("/v{major}.{minor}{path}")
    }

    async fn get(&self, path: &str, bytes_max: usize) -> Result<Option<Bytes>, String> {
        let asked = self.path(path);
        let stream = ask_any(&self.socket, &asked).await?;
        match stream.status() {
            StatusCode::NOT_FOUND => Ok(None),
            _ => body(checked(stream, &asked)?, bytes_max).await.map(Some),
        }
    }
}

/// A stream of events.
#[derive(Debug)]
pub struct Events {
    body: Incoming,
    buffer: BytesMut,
    /// What comes belongs to an event that is too large to be kept.
    skipping: bool,
}

impl Events {
    /// The next event. May be dropped and called again: nothing is lost.
    ///
    /// # Errors
    /// A sentence: the stream has ended.
    pub async fn next(&mut self) -> Result<Event, String> {
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.buffer) {
                let line = self.buffer.split_to(end + 1);
                if std::mem::take(&mut self.skipping) {
                    continue;
                }
                // What cannot be understood is no reason to lose the rest: the regular look mends it.
                if let Ok(event) = serde_json::from_slice(&line) {
                    return Ok(event);
                }
                continue;
            }
            if self.buffer.len() > EVENT_BYTES_MAX {
                // Events carry all labels. One container's must not cost all others theirs: the regular look finds it.
                self.buffer.clear();
                self.skipping = true;
            }
            match self.body.frame().await {
                Some(Ok(frame)) => self.buffer.extend(frame.into_data().ok()),
                Some(Err(error)) => return Err(format!("the stream of events broke: {error}")),
                None => return Err("the engine ended the stream of events".into()),
            }
        }
    }
}

async fn within<T>(answer: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let answered = tokio::time::timeout(DEADLINE, answer).await;
    answered.unwrap_or_else(|_| Err(format!("no answer within {DEADLINE:?}")))
}

async fn ask(socket: &DockerSocket, path: &str) -> Result<Response<Incoming>, String> {
    checked(ask_any(socket, path).await?, path)
}

/// A socket proxy that refuses a question is the usual reason.
fn checked(response: Response<Incoming>, path: &str) -> Result<Response<Incoming>, String> {
    let question = path.split('?').next().unwrap_or_default();
    match response.status() {
        status if status.is_success() => Ok(response),
        StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => Err(format!(
            "`GET {question}` is not allowed ({}): a socket proxy must let it through",
            response.status()
        )),
        status => Err(format!("`GET {question}` is answered with {status}")),
    }
}

async fn ask_any(socket: &DockerSocket, path: &str) -> Result<Response<Incoming>, String> {
    match socket {
        DockerSocket::Unix(at) => {
            let stream = UnixStream::connect(at).await.map_err(|error| match error.kind() {
                std::io::ErrorKind::PermissionDenied => {
                    "permission denied: run Tidegate in the socket's group, or ask a socket proxy".to_owned()
                }
                std::io::ErrorKind::NotFound => "there is no such socket: is the engine running?".to_owned(),
                _ => format!("cannot connect: {error}"),
            })?;
            exchange(stream, "docker", path).await
        }
        DockerSocket::Tcp(at) => {
            let stream =
                TcpStream::connect(&**at).await.map_err(|error| format!("cannot connect: {error}"))?;
            // A stream of events is silent for hours, and so is a firewall that has forgotten it.
            let alive = TcpKeepalive::new().with_time(KEEP_ALIVE).with_interval(KEEP_ALIVE);
            let _ = SockRef::from(&stream).set_tcp_keepalive(&alive);
            exchange(stream, at, path).await
        }
    }
}

async fn exchange<S>(stream: S, host: &str, path: &str) -> Result<Response<Incoming>, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed = |error: hyper::Error| format!("the engine does not speak HTTP as it should: {error}");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    // Ends with the body: the sender is dropped here.
    tokio::spawn(connection);
    let agent = concat!("tidegate/", env!("CARGO_PKG_VERSION"));
    let request = Request::get(path).header(header::HOST, host).header(header::USER_AGENT, agent);
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
    sender.send_request(request).await.map_err(failed)
}

async fn body(response: Response<Incoming>, bytes_max: usize) -> Result<Bytes, String> {
    let whole = Limited::new(response.into_body(), bytes_max).collect().await;
    whole
        .map(http_body_util::Collected::to_bytes)
        .map_err(|error| format!("its answer cannot be read: {error}"))
}

fn version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.trim().split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Percent-encodes all but unreserved characters (RFC 3986 section 2.3).
fn encoded(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_engines_say_is_read_and_what_they_leave_out_is_nothing() {
        let text = r#"{"Id":"ab","Name":"/web-1","State":{"Running":true,"StartedAt":"2026-01-01T00:00:00Z",
            "Health":{"Status":"starting"}},"Config":{"Labels":null,"ExposedPorts":{"80/tcp":{}},"StopSignal":"SIGQUIT"},
            "NetworkSettings":{"Ports":{"80/tcp":[{"HostIp":"0.0.0.0","HostPort":"8080"}],"81/tcp":null},
            "Networks":{"bridge":{"IPAddress":"172.17.0.2","Gateway":"172.17.0.1"}}}}"#;
        let found: Inspected = serde_json::from_str(text).unwrap();
        assert_eq!(found.state.health.unwrap().status, "starting");
        assert_eq!(found.network_settings.networks.unwrap()["bridge"].v4, "172.17.0.2");
        assert!(found.config.labels.is_none() && found.config.stop_timeout.is_none());
        let podman: Config = serde_json::from_str(r#"{"StopSignal":15,"StopTimeout":-1}"#).unwrap();
        assert_eq!((&*podman.stop_signal, podman.stop_timeout), ("15", Some(-1)));
        assert_eq!(serde_json::from_str::<Inspected>("{}").unwrap(), Inspected::default());
        let event = r#"{"Type":"container","Action":"kill","Actor":{"ID":"ab","Attributes":{"signal":"15"}},"time":1}"#;
        assert_eq!(serde_json::from_str::<Event>(event).unwrap().actor.attributes["signal"], "15");
    }

    #[tokio::test]
    async fn regression_an_event_that_is_too_large_costs_itself_and_not_the_stream() {
        use tokio::io::AsyncWriteExt;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap().to_string();
        let engine = tokio::spawn(async move {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let event = |id: &str, label: &str| {
                format!(
                    "{{\"Type\":\"container\",\"Action\":\"kill\",\"Actor\":{{\"ID\":\"{id}\",\"Attributes\":{{\"a\":\"{label}\"}}}},\"time\":1}}\n"
                )
            };
            let large = event("large", &"x".repeat(3 * EVENT_BYTES_MAX));
            let text = [event("before", ""), large, event("after", "")].concat();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", text.len());
            tcp.write_all(head.as_bytes()).await.unwrap();
            tcp.write_all(text.as_bytes()).await.unwrap();
            tcp
        });
        let response = ask(&DockerSocket::Tcp(at.into()), "/events").await.unwrap();
        let mut events = Events { body: response.into_body(), buffer: BytesMut::new(), skipping: false };
        for id in ["before", "after"] {
            assert_eq!(events.next().await.unwrap().actor.id, id);
        }
        drop(engine.await.unwrap());
    }

    #[test]
    fn versions_and_filters_are_written_as_engines_want_them() {
        assert_eq!((version("1.41"), version("x"), version("1")), (Some((1, 41)), None, None));
        assert_eq!(encoded("{\"a\":[1]}"), "%7B%22a%22%3A%5B1%5D%7D");
    }
}
