//! A backend that does exactly what a test says, over raw sockets, and remembers every byte it was sent.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::wire::{Framing, Head, Wire, request_framing};
use super::{Gate, wait_until, within};

/// A request as it reached the origin.
#[derive(Debug, Clone)]
pub struct Received {
    pub head: Head,
    /// What the script read of the body.
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
    /// Which connection, counted from 0.
    pub connection: usize,
}

impl Received {
    pub fn method(&self) -> &str {
        self.head.line.split(' ').next().unwrap_or_default()
    }
    pub fn target(&self) -> &str {
        self.head.second()
    }
    pub fn field(&self, name: &str) -> Option<&str> {
        self.head.field(name)
    }
    /// The head as text, for failure messages and searches.
    pub fn raw(&self) -> String {
        String::from_utf8_lossy(&self.head.raw).into_owned()
    }
}

/// An answer for the simple scripts.
#[derive(Debug, Clone)]
pub struct Answer {
    status: u16,
    fields: Vec<(String, String)>,
    body: Vec<u8>,
    chunked: bool,
    trailers: Vec<(String, String)>,
    close: bool,
}

impl Answer {
    pub fn new(status: u16) -> Answer {
        Answer {
            status,
            fields: Vec::new(),
            body: Vec::new(),
            chunked: false,
            trailers: Vec::new(),
            close: false,
        }
    }
    pub fn ok(body: impl AsRef<[u8]>) -> Answer {
        Answer::new(200).body(body)
    }
    pub fn body(mut self, body: impl AsRef<[u8]>) -> Answer {
        self.body = body.as_ref().to_vec();
        self
    }
    pub fn field(mut self, name: &str, value: &str) -> Answer {
        self.fields.push((name.into(), value.into()));
        self
    }
    pub fn chunked(mut self) -> Answer {
        self.chunked = true;
        self
    }
    pub fn trailer(mut self, name: &str, value: &str) -> Answer {
        self.trailers.push((name.into(), value.into()));
        self.chunked()
    }
    pub fn close(mut self) -> Answer {
        self.close = true;
        self
    }

    fn bytes(&self, method: &str) -> Vec<u8> {
        let mut out = format!("HTTP/1.1 {} Scripted\r\n", self.status).into_bytes();
        for (name, value) in &self.fields {
            out.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        if self.close {
            out.extend_from_slice(b"Connection: close\r\n");
        }
        let bodiless = matches!(self.status, 204 | 304);
        if self.chunked {
            out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
        } else if !bodiless {
            out.extend_from_slice(format!("Content-Length: {}\r\n", self.body.len()).as_bytes());
        }
        out.extend_from_slice(b"\r\n");
        if bodiless || method == "HEAD" {
            return out;
        }
        if self.chunked {
            for piece in self.body.chunks(7) {
                out.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                out.extend_from_slice(piece);
                out.extend_from_slice(b"\r\n");
            }
            out.extend_from_slice(b"0\r\n");
            for (name, value) in &self.trailers {
                out.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
            }
            out.extend_from_slice(b"\r\n");
        } else {
            out.extend_from_slice(&self.body);
        }
        out
    }
}

/// One request in the hands of a script: read the body or not, write what you like, return to keep the connection.
pub struct Exchange {
    pub request: Received,
    pub wire: Wire,
    index: usize,
    shared: Arc<Shared>,
    unread: Framing,
    keep: bool,
}

impl Exchange {
    /// Reads the whole body and remembers it.
    pub async fn read_body(&mut self) -> io::Result<()> {
        let framing = std::mem::replace(&mut self.unread, Framing::None);
        let (body, trailers) = self.wire.body(framing).await?;
        let mut requests = self.shared.requests.lock().unwrap();
        requests[self.index].body.clone_from(&body);
        requests[self.index].trailers.clone_from(&trailers);
        (self.request.body, self.request.trailers) = (body, trailers);
        Ok(())
    }

    /// Writes raw bytes; an error means the proxy went away and is the script's to judge.
    pub async fn write(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.wire.try_send(bytes).await
    }

    /// Writes an answer.
    pub async fn answer(&mut self, answer: Answer) -> io::Result<()> {
        self.keep &= !answer.close;
        let bytes = answer.bytes(self.request.method());
        self.wire.try_send(bytes).await
    }

    /// Closes the connection when the script returns.
    pub fn close(&mut self) {
        self.keep = false;
    }

    /// Waits until the proxy closes the connection.
    pub async fn until_closed(&mut self) {
        while matches!(self.wire.fill().await, Ok(n) if n > 0) {}
        self.keep = false;
    }
}

#[derive(Default)]
struct Shared {
    requests: Mutex<Vec<Received>>,
    accepted: AtomicUsize,
    open: AtomicUsize,
}

type ScriptFuture = Pin<Box<dyn Future<Output = Option<Exchange>> + Send>>;
type Script = Arc<dyn Fn(Exchange) -> ScriptFuture + Send + Sync>;

/// A running backend; stops with its last handle.
pub struct Origin {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Origin {
    /// Answers every request, after reading its body, with what the closure says.
    pub async fn answering(answer: impl Fn(&Received) -> Answer + Send + Sync + 'static) -> Origin {
        Origin::start(None, simple(answer)).await
    }

    /// The same over TLS.
    pub async fn answering_tls(
        config: Arc<rustls::ServerConfig>,
        answer: impl Fn(&Received) -> Answer + Send + Sync + 'static,
    ) -> Origin {
        Origin::start(Some(TlsAcceptor::from(config)), simple(answer)).await
    }

    /// Answers `200` with this body.
    pub async fn saying(body: &'static str) -> Origin {
        Origin::answering(move |_| Answer::ok(body)).await
    }

    /// Answers `200`; requests with `held` in their target get through the gate first.
    pub async fn gated(gate: &Gate, held: &'static str) -> Origin {
        let gate = gate.clone();
        Origin::scripted(move |mut x| {
            let gate = gate.clone();
            async move {
                if x.request.target().contains(held) {
                    gate.pass().await;
                }
                x.answer(Answer::ok("done")).await.ok()?;
                Some(x)
            }
        })
        .await
    }

    /// Runs a script for every request. Returning the exchange keeps the connection, `None` closes it.
    pub async fn scripted<F>(script: impl Fn(Exchange) -> F + Send + Sync + 'static) -> Origin
    where
        F: Future<Output = Option<Exchange>> + Send + 'static,
    {
        Origin::start(None, Arc::new(move |exchange| Box::pin(script(exchange)))).await
    }

    /// The same over TLS.
    pub async fn scripted_tls<F>(
        config: Arc<rustls::ServerConfig>,
        script: impl Fn(Exchange) -> F + Send + Sync + 'static,
    ) -> Origin
    where
        F: Future<Output = Option<Exchange>> + Send + 'static,
    {
        let tls = Some(TlsAcceptor::from(config));
        Origin::start(tls, Arc::new(move |exchange| Box::pin(script(exchange)))).await
    }

    /// Answers at this address: a backend that comes back.
    pub async fn answering_at(
        address: SocketAddr,
        answer: impl Fn(&Received) -> Answer + Send + Sync + 'static,
    ) -> Origin {
        Origin::start_at(address, None, simple(answer)).await
    }

    async fn start(tls: Option<TlsAcceptor>, script: Script) -> Origin {
        Origin::start_at(([127, 0, 0, 1], 0).into(), tls, script).await
    }

    async fn start_at(address: SocketAddr, tls: Option<TlsAcceptor>, script: Script) -> Origin {
        let listener = TcpListener::bind(address).await.expect("bind the origin");
        let address = listener.local_addr().expect("origin address");
        let shared = Arc::new(Shared::default());
        let task = tokio::spawn(accept(listener, tls, script, shared.clone()));
        Origin { address, shared, task }
    }

    /// `127.0.0.1:port`
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `backends = ["127.0.0.1:port"]`
    pub fn backends(&self) -> String {
        format!("backends = [\"{}\"]", self.address)
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Received> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// The only request so far.
    pub fn only(&self) -> Received {
        let requests = self.requests();
        assert_eq!(requests.len(), 1, "the origin saw {} requests: {requests:#?}", requests.len());
        requests.into_iter().next().unwrap()
    }

    /// How many requests have arrived.
    pub fn count(&self) -> usize {
        self.shared.requests.lock().unwrap().len()
    }

    /// Waits until this many requests have arrived.
    pub async fn arrived(&self, n: usize) {
        wait_until(&format!("{n} requests at the origin"), || self.count() >= n).await;
    }

    /// Connections accepted since the start.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// Connections open now.
    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// Stops listening and closes every connection: the backend dies.
    pub async fn kill(self) -> SocketAddr {
        self.task.abort();
        let address = self.address;
        wait_until("the origin's port to close", || std::net::TcpStream::connect(address).is_err()).await;
        address
    }
}

fn simple(answer: impl Fn(&Received) -> Answer + Send + Sync + 'static) -> Script {
    let answer = Arc::new(answer);
    Arc::new(move |mut exchange: Exchange| {
        let answer = answer.clone();
        Box::pin(async move {
            exchange.read_body().await.ok()?;
            let scripted = answer(&exchange.request);
            exchange.answer(scripted).await.ok()?;
            Some(exchange)
        })
    })
}

/// Accepts until aborted. The connections live in a `JoinSet` of this task, so they die with it.
async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, script: Script, shared: Arc<Shared>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else { return };
        let _ = stream.set_nodelay(true);
        let index = shared.accepted.fetch_add(1, Ordering::SeqCst);
        let (script, shared, tls) = (script.clone(), shared.clone(), tls.clone());
        connections.spawn(async move {
            shared.open.fetch_add(1, Ordering::SeqCst);
            let _open = Defer(|| {
                shared.open.fetch_sub(1, Ordering::SeqCst);
            });
            let wire = match tls {
                None => Wire::over(stream),
                Some(tls) => match within("the origin's TLS handshake", tls.accept(stream)).await {
                    Ok(stream) => Wire::over(stream),
                    Err(_) => return,
                },
            };
            serve(wire, index, &script, &shared).await;
        });
    }
}

struct Defer<F: FnMut()>(F);
impl<F: FnMut()> Drop for Defer<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

async fn serve(mut wire: Wire, connection: usize, script: &Script, shared: &Arc<Shared>) {
    while let Ok(Some(head)) = wire.head().await {
        let unread = request_framing(&head);
        let request = Received { head, body: Vec::new(), trailers: Vec::new(), connection };
        let index = {
            let mut requests = shared.requests.lock().unwrap();
            requests.push(request.clone());
            requests.len() - 1
        };
        let exchange = Exchange { request, wire, index, shared: shared.clone(), unread, keep: true };
        match script(exchange).await {
            Some(exchange) if exchange.keep => wire = exchange.wire,
            _ => return,
        }
    }
}
