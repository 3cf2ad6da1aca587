//! A small HTTPS API server, answered by a function; and the name server that it feeds.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::pebble::Ports;
use super::tls::Ca;
use super::tool;

/// A request as it came.
pub struct Asked {
    pub method: String,
    /// As it stands on the wire, with the query.
    pub target: String,
    pub headers: http::HeaderMap,
    pub body: Vec<u8>,
}

impl Asked {
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap()
    }

    /// The values of the query; `%2A` and the like are not decoded.
    pub fn query(&self, name: &str) -> Option<String> {
        let (_, query) = self.target.split_once('?')?;
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.into_iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// A running API; ends with the test's runtime.
pub struct Api {
    pub address: SocketAddr,
    pub ca_pem: String,
}

impl Api {
    /// `answer` gives status and body.
    pub async fn start(answer: impl Fn(Asked) -> (u16, String) + Send + Sync + 'static) -> Api {
        let ca = Ca::new("the API's own");
        let acceptor = TlsAcceptor::from(ca.leaf(&["localhost", "127.0.0.1"]).server_config());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answer = Arc::new(answer);
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, answer) = (acceptor.clone(), answer.clone());
                tokio::spawn(async move {
                    let Ok(tls) = acceptor.accept(tcp).await else { return };
                    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                        let answer = answer.clone();
                        async move {
                            let (parts, body) = request.into_parts();
                            let body = body.collect().await?.to_bytes().to_vec();
                            let target = parts.uri.to_string();
                            let method = parts.method.to_string();
                            let asked = Asked { method, target, headers: parts.headers, body };
                            // What it does outside (feeding a name server) blocks.
                            let done = tokio::task::spawn_blocking(move || answer(asked)).await;
                            let (status, body) = done.unwrap_or((500, "the test's API panicked".into()));
                            let answer =
                                Response::builder().status(status).body(Full::new(Bytes::from(body)));
                            Ok::<_, hyper::Error>(answer.unwrap())
                        }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(tls), service)
                        .await;
                });
            }
        });
        Api { address, ca_pem: ca.pem }
    }

    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }
}

/// The TXT records of Pebble's own name server, which takes values but gives none back.
#[derive(Clone)]
pub struct Names {
    management: String,
    values: Arc<Mutex<std::collections::BTreeMap<String, Vec<String>>>>,
    seen: Arc<Mutex<usize>>,
}

impl Names {
    pub fn of(ports: Ports) -> Names {
        Names { management: ports.names_management(), values: Arc::default(), seen: Arc::default() }
    }

    pub fn values(&self, host: &str) -> Vec<String> {
        self.values.lock().unwrap().get(host).cloned().unwrap_or_default()
    }

    /// The most values that stood at one name at once.
    pub fn most(&self) -> usize {
        *self.seen.lock().unwrap()
    }

    /// Whether every record is gone.
    pub fn is_empty(&self) -> bool {
        self.values.lock().unwrap().values().all(Vec::is_empty)
    }

    /// Replaces the values at a name (without the root's dot). Blocks.
    pub fn set(&self, host: &str, values: Vec<String>) {
        let mut all = self.values.lock().unwrap();
        self.post("clear-txt", &serde_json::json!({ "host": format!("{host}.") }));
        for value in &values {
            self.post("set-txt", &serde_json::json!({ "host": format!("{host}."), "value": value }));
        }
        let mut seen = self.seen.lock().unwrap();
        *seen = values.len().max(*seen);
        all.insert(host.to_owned(), values);
    }

    fn post(&self, what: &str, body: &serde_json::Value) {
        let output = std::process::Command::new("curl")
            .args(["--silent", "--fail", "--max-time", "20", "--data", &body.to_string()])
            .arg(format!("{}/{what}", self.management))
            .output()
            .expect("curl");
        tool::stdout_of(&output);
    }
}
