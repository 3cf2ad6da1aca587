//! A container engine that speaks the real interface and does what a test says, for numbers and failures that a real one
//! does not give.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast;
use tokio::task::JoinHandle;

/// Events that a slow listener may be behind.
const EVENTS: usize = 100_000;

#[derive(Default)]
struct Containers {
    by_id: BTreeMap<String, Value>,
    services: BTreeMap<String, Value>,
    started: u64,
    asked: Vec<String>,
}

/// The engine.
pub struct FakeDocker {
    path: PathBuf,
    containers: Arc<Mutex<Containers>>,
    events: broadcast::Sender<String>,
    serving: Option<JoinHandle<()>>,
}

impl Drop for FakeDocker {
    fn drop(&mut self) {
        self.vanish();
    }
}

impl FakeDocker {
    /// Listens on this path.
    pub fn at(path: &Path) -> FakeDocker {
        let (events, _) = broadcast::channel(EVENTS);
        let mut engine =
            FakeDocker { path: path.to_path_buf(), containers: Arc::default(), events, serving: None };
        engine.appear();
        engine
    }

    /// Listens (again).
    pub fn appear(&mut self) {
        let listener = UnixListener::bind(&self.path).expect("the engine's socket");
        let (containers, events) = (self.containers.clone(), self.events.clone());
        self.serving = Some(tokio::spawn(async move {
            let mut all = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.expect("accept");
                let (containers, heard) = (containers.clone(), events.subscribe());
                all.spawn(async move {
                    let _ = serve(stream, containers, heard).await;
                });
                while all.try_join_next().is_some() {}
            }
        }));
    }

    /// Listens no more; every connection ends.
    pub fn vanish(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        if let Some(serving) = self.serving.take() {
            serving.abort();
        }
    }

    /// A container starts. Its address is the origin's.
    pub fn start(&self, id: &str, at: SocketAddr, labels: &[(&str, &str)]) {
        let mut all: BTreeMap<String, String> =
            labels.iter().map(|(label, value)| ((*label).to_owned(), (*value).to_owned())).collect();
        all.entry("tidegate.port".into()).or_insert(at.port().to_string());
        {
            let mut containers = self.containers.lock().unwrap();
            containers.started += 1;
            let started = format!("2026-01-01T00:00:00.{:09}Z", containers.started);
            let inspected = json!({
                "Id": id, "Name": format!("/{id}"),
                "State": { "Status": "running", "Running": true, "Paused": false, "StartedAt": started },
                "Config": { "Labels": all, "ExposedPorts": null, "StopSignal": "" },
                "NetworkSettings": { "Networks": { "test": { "IPAddress": at.ip().to_string(), "GlobalIPv6Address": "" } } },
            });
            containers.by_id.insert(id.to_owned(), inspected);
        }
        self.tell("start", id, json!(all));
    }

    /// Something happens to a container, and from now on nobody can read what the engine says of it.
    pub fn spoil(&self, id: &str) {
        self.containers.lock().unwrap().by_id.get_mut(id).expect("the container")["State"] = json!(7);
        self.tell("start", id, json!({}));
    }

    /// A Swarm service has these labels now.
    pub fn service(&self, id: &str, labels: &[(&str, &str)]) {
        let labels: BTreeMap<&str, &str> = labels.iter().copied().collect();
        let service = json!({ "ID": id, "Spec": { "Name": id, "Labels": labels } });
        self.containers.lock().unwrap().services.insert(id.to_owned(), service);
        let event = json!({ "Type": "service", "Action": "update", "Actor": { "ID": id, "Attributes": {} } });
        let _ = self.events.send(format!("{event}\n"));
    }

    /// The image of a container exposes this port.
    pub fn expose(&self, id: &str, port: u16) {
        let mut all = self.containers.lock().unwrap();
        let inspected = all.by_id.get_mut(id).expect("the container");
        inspected["Config"]["ExposedPorts"] = json!({ format!("{port}/tcp"): {} });
    }

    /// The engine tells it to end; it still runs.
    pub fn kill(&self, id: &str, signal: &str) {
        self.tell("kill", id, json!({ "signal": signal }));
    }

    /// It ends.
    pub fn die(&self, id: &str) {
        self.forget(id);
        self.tell("die", id, json!({}));
    }

    /// It is gone, and no event tells of it.
    pub fn forget(&self, id: &str) {
        self.containers.lock().unwrap().by_id.remove(id);
    }

    /// Every question so far.
    pub fn asked(&self) -> Vec<String> {
        self.containers.lock().unwrap().asked.clone()
    }

    fn tell(&self, action: &str, id: &str, attributes: Value) {
        let event = json!({
            "Type": "container", "Action": action, "Actor": { "ID": id, "Attributes": attributes }, "time": 1,
        });
        // Nobody may listen.
        let _ = self.events.send(format!("{event}\n"));
    }
}

async fn serve(
    mut stream: UnixStream,
    containers: Arc<Mutex<Containers>>,
    mut events: broadcast::Receiver<String>,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let mut words = head.split_whitespace();
    assert_eq!(words.next(), Some("GET"), "nothing but reading is asked for");
    let path = words.next().expect("a path").split('?').next().unwrap_or_default().to_owned();
    containers.lock().unwrap().asked.push(path.clone());
    let (status, body) = match path.split('/').collect::<Vec<_>>()[..] {
        ["", "_ping"] => (200, "OK".to_owned()),
        ["", "v1.41", "events"] => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await?;
            while let Ok(event) = events.recv().await {
                stream.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes()).await?;
            }
            return Ok(());
        }
        ["", "v1.41", "containers", "json"] => {
            let all = containers.lock().unwrap();
            let list: Vec<Value> = all
                .by_id
                .values()
                .map(|c| {
                    json!({
                        "Id": c["Id"], "Names": [c["Name"]], "State": "running", "Status": "Up 2 minutes",
                        "Labels": c["Config"]["Labels"],
                        "NetworkSettings": { "Networks": c["NetworkSettings"]["Networks"] },
                    })
                })
                .collect();
            (200, json!(list).to_string())
        }
        ["", "v1.41", "containers", id, "json"] => match containers.lock().unwrap().by_id.get(id) {
            Some(found) => (200, found.to_string()),
            None => (404, json!({ "message": "no such container" }).to_string()),
        },
        ["", "v1.41", "services", id] => match containers.lock().unwrap().services.get(id) {
            Some(found) => (200, found.to_string()),
            None => (503, json!({ "message": "This node is not a swarm manager." }).to_string()),
        },
        _ => (403, "forbidden".to_owned()),
    };
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 {status} X\r\nApi-Version: 1.41\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    stream.write_all(answer.as_bytes()).await
}
