//! Step 2: TLS. The ClientHello is read first, so that what it asks for can choose how we answer.

mod failure;

use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use rustls::server::{Acceptor, ClientHello};
use rustls::{HandshakeKind, ProtocolVersion, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::{LazyConfigAcceptor, StartHandshake, TlsStream, server};

use crate::base::address::ClientKey;
use crate::base::outcome::Outcome;
use crate::base::policy::PolicyKind;
use crate::config::model::Mode;
use crate::net::ahead::Ahead;
use crate::net::stream::{self, Stream};
use crate::policy::share::Counted;
use crate::policy::site_limit::Place;
use crate::proxy::accept::Accepted;
use crate::proxy::client_cert::{self, ClientCert};
use crate::proxy::context::{Handshake, Introduction};
use crate::proxy::fair::Share;
use crate::proxy::serve::Served;
use crate::proxy::shed::Shed;
use crate::proxy::turnstile::{Evicted, Refused, Ticket};
use crate::proxy::{Worker, demand, respond, serve};
use crate::snapshot::{Site, Snapshot};
use crate::telemetry::metric::Counter;
use crate::tls;
use crate::tls::client_identity::ClientIdentity;
use crate::tls::policy::Policy;

/// Handshakes; gives what serves the connection after it, if there is one.
pub async fn run(worker: &Rc<Worker>, accepted: Box<Accepted>) -> Option<Served> {
    let Accepted { tcp, client, trusted, port, local, permit } = *accepted;
    let server = worker.snapshot().server.clone();
    if !trusted {
        wait_after_floods(worker, client.ip(), server.limits.flood_delay).await;
    }
    let Ok(ticket) = worker.turnstile.enter(server.limits.handshakes) else {
        worker.shed(Shed::HandshakeQueue, None);
        return None;
    };
    // One deadline over all of it, from accept on.
    let driven = ticket.drive(Box::pin(shake(worker, &ticket, tcp)));
    let shaken = match tokio::time::timeout(server.timeouts.handshake, driven).await {
        Ok(Ok(Ok(shaken))) => shaken,
        Ok(Ok(Err(reason))) => {
            worker.count(reason);
            return None;
        }
        Ok(Err(Evicted)) => {
            worker.shed(Shed::HandshakeOldest, None);
            return None;
        }
        Err(_) => {
            worker.shard.outcome_only(Outcome::HandshakeTimeout);
            worker.shard.add(Counter::HandshakeTimeout, 1);
            return None;
        }
    };
    drop((ticket, server));
    let Shaken { tls, policy, place, share, counted } = shaken;
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
    let client_cert = client_cert(worker, &policy, session);
    let stream = Stream::Tls(Box::new(TlsStream::Server(tls)));
    let intro = Introduction {
        client,
        trusted,
        http2,
        port,
        local,
        handshake: Some(Handshake { version: tls_version, sni, policy, client_cert, place, share, counted }),
        permit: Some(permit),
    };
    Some(serve::run(worker, stream, intro))
}

/// A client whose connections ended in floods begins its new ones a moment later. Nothing is read meanwhile, so that this
/// costs no more than the socket, which counts under the client's cap.
async fn wait_after_floods(worker: &Worker, client: IpAddr, max: Duration) {
    let Some(wait) = worker.penalties.wait(ClientKey::of(client), worker.wheel.now(), max) else { return };
    worker.shed_client(Shed::Flooded, client);
    let timer = worker.wheel.timer();
    timer.set(wait);
    std::future::poll_fn(|cx| timer.poll_expired(cx)).await;
}

/// The certificate that the client proved to hold, where it was asked for one.
fn client_cert(
    worker: &Worker,
    policy: &Policy,
    session: &rustls::ServerConnection,
) -> Option<Box<ClientCert>> {
    policy.auth.as_ref()?;
    let identity = session.peer_certificates().and_then(ClientIdentity::of);
    let counter = if identity.is_some() { Counter::ClientCertVerified } else { Counter::ClientCertAbsent };
    worker.shard.add(counter, 1);
    identity.map(|identity| Box::new(ClientCert::new(identity)))
}

/// ALPN name of the TLS-ALPN-01 challenge (RFC 8737 section 4).
const ACME_ALPN: &[u8] = b"acme-tls/1";

/// What a handshake that succeeds leaves.
struct Shaken {
    tls: server::TlsStream<Ahead>,
    policy: Arc<Policy>,
    place: Option<Place>,
    share: Share,
    counted: Option<Counted>,
}

/// A handshake that ends with a connection to serve, or what is counted instead; `None` where it was counted already.
async fn shake(worker: &Rc<Worker>, ticket: &Ticket, tcp: TcpStream) -> Result<Shaken, Option<Counter>> {
    // Looked at before rustls, which would answer with an alert that plain HTTP clients cannot read.
    let mut tcp = Ahead::greeting(tcp);
    match tcp.first().await.map_err(|_| Counter::HandshakeIo)? {
        None => return Err(Some(Counter::HandshakeSilent)),
        Some(HANDSHAKE_RECORD) => {}
        Some(byte) if byte.is_ascii_alphabetic() => {
            answer_plain(worker, tcp).await;
            return Err(Some(Counter::HandshakePlainHttp));
        }
        Some(_) => {
            // Nothing is left of it here: neither a goodbye is owed nor a wait for one.
            stream::reset_on_close(tcp.tcp());
            return Err(Some(Counter::HandshakeNotTls));
        }
    }
    let mut acceptor = LazyConfigAcceptor::new(Acceptor::default(), tcp);
    let hello = match (&mut acceptor).await {
        Ok(hello) => hello,
        Err(error) => {
            hang_up(acceptor.take_io()).await;
            return Err(Some(failure::reason(&error, true)));
        }
    };
    let name = hello.client_hello().server_name().map(normal);
    if let Some(config) = challenge(worker, &hello.client_hello()) {
        return Err(Some(answer_challenge(hello, config).await));
    }
    let mut snapshot = worker.snapshot();
    if let (Some(refusing), Some(name)) = (snapshot.refusing.clone(), name.as_deref()) {
        // Before its turn: who waits for an authority keeps nobody from computing.
        let Some(found) = demand::certificate(worker, snapshot, name).await else {
            // Ends with an alert, because it finds no certificate.
            let _ = hello.into_stream(refusing).await;
            return Err(Some(Counter::HandshakeNoCertificate));
        };
        snapshot = found;
    }
    let index = site_of(&snapshot, name.as_deref());
    let Some((index, site)) = index.and_then(|index| Some((index, snapshot.sites.get(index)?))) else {
        // Ends with an alert as well: no certificate fits.
        let Err((error, tcp)) = hello.into_stream(snapshot.tls.clone()).into_fallible().await else {
            return Err(Some(Counter::HandshakeProtocol));
        };
        hang_up(Some(tcp)).await;
        return Err(Some(failure::reason(&error, name.is_some())));
    };
    // Before any cryptography: whoever is over the cap costs nothing.
    let Some(place) = site.places.take(site.max_connections) else {
        worker.shed(Shed::SiteCap, Some(&site.name));
        return Err(None);
    };
    let (share, counted) = owned(worker, ticket, &snapshot, site).await?;
    let config = snapshot.handshakes.get(index).unwrap_or(&snapshot.tls);
    let config = tls::server::for_client(config, hello.client_hello().cipher_suites());
    match ticket.compute(hello.into_stream(config).into_fallible()).await {
        Ok(mut tls) => {
            tls.get_mut().0.greeted();
            let (policy, place) = (site.policy.clone(), Some(place));
            Ok(Shaken { tls, policy, place, share, counted: Some(counted) })
        }
        Err((error, tcp)) => {
            let reason = failed(worker, site, &error, name.is_some());
            hang_up(Some(tcp)).await;
            Err(Some(reason))
        }
    }
}

/// The handshake is for a site: it is counted as its tenant's, and waits for a turn among the others of that tenant.
async fn owned(
    worker: &Worker,
    ticket: &Ticket,
    snapshot: &Snapshot,
    site: &Site,
) -> Result<(Share, Counted), Option<Counter>> {
    let (tenant, shares) = (&site.owner, &snapshot.server.shares);
    let enforced = shares.mode == Mode::Enforce;
    let shed = |why| {
        tenant.shed.fetch_add(1, Relaxed);
        worker.shed(why, Some(&tenant.name));
        Err(None)
    };
    if !worker.takes_new(site, &snapshot.server.overload) {
        return shed(Shed::Overload);
    }
    if !worker.may_connect(tenant, shares) {
        if enforced {
            return shed(Shed::ShareConnections);
        }
        site.would_block.count(PolicyKind::Share);
    }
    let (share, counted) = (Share::of(tenant), Counted::one(&tenant.connections));
    let lend = if enforced { shares.lend } else { 100 };
    match ticket.turn(share, lend, worker.shares.levels.kept()).await {
        Ok(()) => Ok((share, counted)),
        Err(Refused::Share) => shed(Shed::ShareHandshakes),
        Err(Refused::Full) => {
            worker.shed(Shed::HandshakeQueue, None);
            Err(None)
        }
    }
}

/// Ends a connection after an alert. Under TLS 1.3 a client may have sent its request already: closing on unread bytes
/// would reset the connection, and the client would never learn what was wrong.
async fn hang_up(tcp: Option<Ahead>) {
    let Some(mut tcp) = tcp else { return };
    let _ = tokio::time::timeout(FAREWELL, async {
        tcp.shutdown().await?;
        discard(&mut tcp).await
    })
    .await;
}

/// Reads what nobody wants, up to a bound.
async fn discard(tcp: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
    let mut waste = [0u8; 1024];
    for _ in 0..WASTE_READS {
        if tcp.read(&mut waste).await? == 0 {
            break;
        }
    }
    Ok(())
}

/// What is counted for a handshake that failed; refused certificates of clients are told too.
fn failed(worker: &Worker, site: &Site, error: &io::Error, named: bool) -> Counter {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    if let Some(refusal) = tls.filter(|_| site.policy.auth.is_some()).and_then(failure::certificate) {
        let (outcome, _) = client_cert::refused(refusal);
        worker.refuse_certificate(site, outcome);
    }
    failure::reason(error, named)
}

/// Position of the site that a handshake is for: the one with this name, else the one that answers for unknown ones.
fn site_of(snapshot: &Snapshot, name: Option<&str>) -> Option<usize> {
    name.and_then(|name| snapshot.find(name)).or(snapshot.default_site)
}

/// Reads of unwanted bytes before a connection is closed: 16 KiB.
const WASTE_READS: usize = 16;
/// How long a client may take to hear that its handshake failed.
const FAREWELL: Duration = Duration::from_secs(1);

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
async fn answer_challenge(hello: StartHandshake<Ahead>, config: Arc<ServerConfig>) -> Counter {
    match hello.into_stream(config).await {
        Ok(mut tls) => {
            // The authority has what it wanted and may have gone.
            let _ = tls.shutdown().await;
            Counter::ChallengeTlsAlpn01
        }
        Err(error) => failure::reason(&error, true),
    }
}

/// A server name as hosts are written: lower case, without a dot at its end.
fn normal(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

/// A method instead of a record: most often a browser or a script that forgot the `s`.
async fn answer_plain(worker: &Worker, mut tcp: Ahead) {
    worker.shard.outcome_only(Outcome::PlainOnTls);
    let id = worker.next_request_id();
    // Best effort: whoever sent this may be gone already, and there is nobody else to tell.
    let _ = tcp.write_all(&respond::raw(Outcome::PlainOnTls, id.to_str().unwrap_or_default())).await;
    let _ = tcp.shutdown().await;
    // The request is still unread: closing now would reset the connection, and the answer with it.
    let _ = discard(&mut tcp).await;
}
