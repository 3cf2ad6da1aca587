//! Step 2: TLS. The ClientHello is read first, so that what it asks for can choose how we answer.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use rustls::server::{Acceptor, ClientHello};
use rustls::{HandshakeKind, ProtocolVersion, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::{LazyConfigAcceptor, StartHandshake, TlsStream, server};

use crate::base::outcome::Outcome;
use crate::net::stream::Stream;
use crate::proxy::accept::Accepted;
use crate::proxy::{Worker, demand, respond, serve};
use crate::telemetry::metric::Counter;

/// Handshakes, then serves.
pub async fn run(worker: &Rc<Worker>, accepted: Accepted) {
    let Accepted { tcp, client, trusted, port, permit } = accepted;
    let deadline = worker.snapshot().server.timeouts.handshake;
    // One deadline over all of it, from accept on. Boxed: a parked connection must not carry the handshake's state.
    let shaken = tokio::time::timeout(deadline, Box::pin(shake(worker, tcp))).await;
    let tls = match shaken {
        Ok(Ok(tls)) => tls,
        Ok(Err(other)) => return worker.shard.add(other, 1),
        Err(_) => {
            worker.shard.outcome_only(Outcome::HandshakeTimeout);
            return worker.shard.add(Counter::HandshakeTimeout, 1);
        }
    };
    let session = tls.get_ref().1;
    let tls_version = match session.protocol_version() {
        Some(ProtocolVersion::TLSv1_2) => "1.2",
        _ => "1.3",
    };
    let resumed = session.handshake_kind() == Some(HandshakeKind::Resumed);
    worker.shard.add(
        match (tls_version, resumed) {
            ("1.2", false) => Counter::Tls12Full,
            ("1.2", true) => Counter::Tls12Resumed,
            (_, false) => Counter::Tls13Full,
            (_, true) => Counter::Tls13Resumed,
        },
        1,
    );
    let http2 = session.alpn_protocol() == Some(b"h2".as_slice());
    let sni = session.server_name().map(|name| normal(name).into_boxed_str());
    let stream = Stream::Tls(Box::new(TlsStream::Server(tls)));
    let intro = crate::proxy::context::Introduction {
        client,
        trusted,
        secure: true,
        http2,
        port,
        sni,
        tls_version: Some(tls_version),
        permit: Some(permit),
    };
    serve::run(worker, stream, intro).await;
}

/// ALPN name of the TLS-ALPN-01 challenge (RFC 8737 section 4).
const ACME_ALPN: &[u8] = b"acme-tls/1";

/// A handshake that ends with a connection to serve, or what is counted instead.
async fn shake(worker: &Rc<Worker>, tcp: TcpStream) -> Result<server::TlsStream<TcpStream>, Counter> {
    // Looked at before rustls, which would answer with an alert that plain HTTP clients cannot read.
    let mut first = [0u8; 1];
    let seen = tcp.peek(&mut first).await.map_err(|_| Counter::HandshakeIo)?;
    match first {
        _ if seen == 0 => return Err(Counter::HandshakeIo),
        [HANDSHAKE_RECORD] => {}
        [byte] if byte.is_ascii_alphabetic() => {
            answer_plain(worker, tcp).await;
            return Err(Counter::HandshakePlainHttp);
        }
        _ => return Err(Counter::HandshakeProtocol),
    }
    let acceptor = LazyConfigAcceptor::new(Acceptor::default(), tcp);
    let hello = acceptor.await.map_err(|error| reason(&error, true))?;
    let named = hello.client_hello().server_name().is_some();
    if let Some(config) = challenge(worker, &hello.client_hello()) {
        return answer_challenge(hello, config).await;
    }
    let mut snapshot = worker.snapshot();
    if let Some(refusing) = snapshot.refusing.clone()
        && let Some(name) = hello.client_hello().server_name().map(normal)
    {
        let Some(found) = demand::certificate(worker, snapshot, &name).await else {
            // Ends with an alert, because it finds no certificate.
            let _ = hello.into_stream(refusing).await;
            return Err(Counter::HandshakeNoCertificate);
        };
        snapshot = found;
    }
    hello.into_stream(snapshot.tls.clone()).await.map_err(|error| reason(&error, named))
}

/// Reads of unwanted bytes before a plain HTTP connection is closed: 16 KiB.
const WASTE_READS: usize = 16;

/// Content type of the record that a ClientHello comes in (RFC 8446 section 5.1).
const HANDSHAKE_RECORD: u8 = 22;

/// The settings for a TLS-ALPN-01 challenge that is ours. Only an authority offers `acme-tls/1`, and offers nothing
/// else (RFC 8737 section 3).
fn challenge(worker: &Worker, hello: &ClientHello<'_>) -> Option<Arc<ServerConfig>> {
    let mut offered = hello.alpn()?;
    if offered.next() != Some(ACME_ALPN) || offered.next().is_some() {
        return None;
    }
    worker.challenges.tls_alpn01(&normal(hello.server_name()?))
}

/// The handshake is the answer; nothing is sent after it (RFC 8737 section 3).
async fn answer_challenge(
    hello: StartHandshake<TcpStream>,
    config: Arc<ServerConfig>,
) -> Result<server::TlsStream<TcpStream>, Counter> {
    let mut tls = hello.into_stream(config).await.map_err(|error| reason(&error, true))?;
    // The authority has what it wanted and may have gone.
    let _ = tls.shutdown().await;
    Err(Counter::ChallengeTlsAlpn01)
}

/// A server name as hosts are written: lower case, without a dot at its end.
fn normal(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

fn reason(error: &io::Error, named: bool) -> Counter {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::General(text)) if text.contains("no server certificate chain resolved") => {
            if named {
                Counter::HandshakeUnknownName
            } else {
                Counter::HandshakeNoSni
            }
        }
        Some(_) => Counter::HandshakeProtocol,
        None => Counter::HandshakeIo,
    }
}

/// A method instead of a record: most often a browser or a script that forgot the `s`.
async fn answer_plain(worker: &Worker, mut tcp: TcpStream) {
    worker.shard.outcome_only(Outcome::PlainOnTls);
    let id = worker.next_request_id();
    // Best effort: whoever sent this may be gone already, and there is nobody else to tell.
    let _ = tcp.write_all(&respond::raw(Outcome::PlainOnTls, id.to_str().unwrap_or_default())).await;
    let _ = tcp.shutdown().await;
    // The request is still unread: closing now would reset the connection, and the answer with it.
    let mut waste = [0u8; 1024];
    for _ in 0..WASTE_READS {
        if !matches!(tcp.read(&mut waste).await, Ok(1..)) {
            break;
        }
    }
}
