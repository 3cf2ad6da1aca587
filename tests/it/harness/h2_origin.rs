//! A backend that speaks HTTP/2 and does exactly what a test says, down to the codes of its frames.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::wire::Io;
use super::{Gate, wait_until, within};

/// One request in the hands of a script.
pub struct Stream {
    pub head: http::request::Parts,
    pub body: RecvStream,
    pub respond: SendResponse<Bytes>,
    /// Which connection, counted from 0.
    pub connection: usize,
}

impl Stream {
    pub fn path(&self) -> &str {
        self.head.uri.path()
    }

    /// One value of a field.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.head.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// Reads the whole body; the error is what the client reset it with.
    pub async fn read(&mut self) -> Result<(Vec<u8>, HeaderMap), h2::Error> {
        let mut all = Vec::new();
        while let Some(piece) = self.body.data().await {
            let piece = piece?;
            self.body.flow_control().release_capacity(piece.len())?;
            all.extend_from_slice(&piece);
        }
        Ok((all, self.body.trailers().await?.unwrap_or_default()))
    }

    /// Sends a head; the body follows on the stream given back.
    pub fn head(&mut self, status: u16, fields: &[(&str, &str)], end: bool) -> SendStream<Bytes> {
        let mut response = Response::builder().status(status);
        for (name, value) in fields {
            response = response.header(*name, *value);
        }
        self.respond.send_response(response.body(()).unwrap(), end).expect("a head")
    }

    /// Sends a whole answer.
    pub async fn answer(&mut self, status: u16, body: impl Into<Bytes>) {
        let body = body.into();
        let mut stream = self.head(status, &[], body.is_empty());
        if !body.is_empty() {
            let _ = send(&mut stream, body, true).await;
        }
    }

    /// Waits until the client resets the stream; its code.
    pub async fn reset(&mut self) -> Reason {
        within("a reset", std::future::poll_fn(|cx| self.respond.poll_reset(cx))).await.expect("a code")
    }
}

/// Sends all of this as the client's window allows.
pub async fn send(stream: &mut SendStream<Bytes>, mut data: Bytes, end: bool) -> Result<(), h2::Error> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        match std::future::poll_fn(|cx| stream.poll_capacity(cx)).await {
            Some(Ok(room)) => {
                let piece = data.split_to(room.min(data.len()));
                stream.send_data(piece, end && data.is_empty())?;
            }
            Some(Err(error)) => return Err(error),
            None => return Err(Reason::CANCEL.into()),
        }
    }
    Ok(())
}

#[derive(Default)]
struct Shared {
    heads: Mutex<Vec<(http::request::Parts, usize)>>,
    accepted: AtomicUsize,
    open: AtomicUsize,
}

type Script = Arc<dyn Fn(Stream) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// What a backend is started with.
#[derive(Clone, Default)]
pub struct Settings {
    pub max_streams: Option<u32>,
    pub takes_tunnels: bool,
    pub window: Option<u32>,
    /// Opened: the first connection says GOAWAY and finishes what it has.
    pub goodbye: Gate,
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// Set: connections that come are closed at once; those that are there live on.
    pub refuses: Arc<AtomicBool>,
}

/// A running backend; stops with its last handle.
pub struct H2Origin {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Drop for H2Origin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl H2Origin {
    /// Runs a script for every request.
    pub async fn scripted<F>(
        settings: Settings,
        script: impl Fn(Stream) -> F + Send + Sync + 'static,
    ) -> H2Origin
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind the origin");
        let address = listener.local_addr().expect("origin address");
        let shared = Arc::new(Shared::default());
        let script: Script = Arc::new(move |stream| Box::pin(script(stream)));
        let task = tokio::spawn(accept(listener, settings, script, shared.clone()));
        H2Origin { address, shared, task }
    }

    /// Answers `200` with the method, path and length of the body.
    pub async fn echoing(settings: Settings) -> H2Origin {
        H2Origin::scripted(settings, |mut stream| async move {
            let Ok((body, _)) = stream.read().await else { return };
            let text = format!("{} {} {}", stream.head.method, stream.path(), body.len());
            stream.answer(200, text).await;
        })
        .await
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `backends` and `upstream` of a site.
    pub fn site(&self) -> String {
        format!("backends = [\"{}\"]\nupstream = {{ http = \"h2\" }}", self.address)
    }

    /// Heads of all requests so far, and on which connection each came.
    pub fn heads(&self) -> Vec<(http::request::Parts, usize)> {
        self.shared.heads.lock().unwrap().clone()
    }

    pub fn count(&self) -> usize {
        self.shared.heads.lock().unwrap().len()
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
}

async fn accept(listener: TcpListener, settings: Settings, script: Script, shared: Arc<Shared>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else { return };
        if settings.refuses.load(Ordering::SeqCst) {
            continue;
        }
        let _ = stream.set_nodelay(true);
        let index = shared.accepted.fetch_add(1, Ordering::SeqCst);
        let (settings, script, shared) = (settings.clone(), script.clone(), shared.clone());
        connections.spawn(async move {
            shared.open.fetch_add(1, Ordering::SeqCst);
            let io: Option<Box<dyn Io>> = match &settings.tls {
                None => Some(Box::new(stream)),
                Some(tls) => TlsAcceptor::from(tls.clone())
                    .accept(stream)
                    .await
                    .ok()
                    .map(|stream| Box::new(stream) as Box<dyn Io>),
            };
            if let Some(io) = io {
                serve(io, index, &settings, &script, &shared).await;
            }
            shared.open.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

async fn serve(io: Box<dyn Io>, index: usize, settings: &Settings, script: &Script, shared: &Arc<Shared>) {
    let mut builder = h2::server::Builder::new();
    if let Some(max) = settings.max_streams {
        builder.max_concurrent_streams(max);
    }
    if let Some(window) = settings.window {
        builder.initial_window_size(window);
    }
    if settings.takes_tunnels {
        builder.enable_connect_protocol();
    }
    let Ok(mut connection) = builder.handshake(io).await else { return };
    let mut streams = tokio::task::JoinSet::new();
    let mut told = false;
    loop {
        let next = tokio::select! {
            next = connection.accept() => next,
            () = settings.goodbye.pass(), if !told && index == 0 => {
                told = true;
                connection.graceful_shutdown();
                continue;
            }
        };
        let Some(Ok((request, respond))) = next else { return };
        let (head, body) = request.into_parts();
        shared.heads.lock().unwrap().push((head.clone(), index));
        streams.spawn(script(Stream { head, body, respond, connection: index }));
    }
}
