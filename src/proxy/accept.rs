//! Step 1: a socket comes in. Caps on connections are enforced before anything is spent on it.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

use crate::base::address::ClientKey;
use crate::config::model::Mode;
use crate::net::proxy_protocol;
use crate::policy::connection_limit::{Permit, Refusal};
use crate::proxy::shed::Shed;
use crate::proxy::{Worker, enforce, handshake, observe, serve};
use crate::telemetry::metric::{Counter, Gauge};

/// What a listener speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Plain HTTP.
    Http,
    /// HTTP under TLS.
    Https,
}

/// A socket that was let in.
pub struct Accepted {
    /// The stream.
    pub tcp: TcpStream,
    /// The client, or what PROXY protocol said.
    pub client: SocketAddr,
    /// The peer is a trusted proxy.
    pub trusted: bool,
    /// Port of the listener.
    pub port: u16,
    /// What the client connected to, or what PROXY protocol said.
    pub local: SocketAddr,
    /// Counts the connection until it is dropped.
    pub permit: Permit,
}

/// How long accepting rests when the process is out of descriptors: connections close meanwhile.
const REST: Duration = Duration::from_millis(100);

/// Accepts until the worker drains.
pub async fn run(worker: Rc<Worker>, listener: TcpListener, kind: Kind) {
    let own = listener.local_addr().unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0)));
    while !worker.draining() {
        match listener.accept().await {
            Ok((tcp, peer)) => admit(&worker, tcp, peer, own, kind),
            Err(error) => refused(&worker, &error).await,
        }
    }
}

async fn refused(worker: &Worker, error: &io::Error) {
    // A client that gave up while it waited is no news; running out of descriptors is, and looping on it would
    // burn the core that is needed to close some.
    if !matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
        worker.shed(Shed::Accept, None);
        tokio::time::sleep(REST).await;
    }
}

fn admit(worker: &Rc<Worker>, tcp: TcpStream, peer: SocketAddr, own: SocketAddr, kind: Kind) {
    let snapshot = worker.snapshot();
    let trusted = snapshot.server.trusted_proxies.contains(peer.ip());
    if snapshot.server.proxy_protocol && trusted {
        // The client is known only after its header: the cap per client is enforced then. Until then it is counted as
        // its proxy's.
        let Some(waiting) = permit(worker, peer, true) else { return };
        tokio::task::spawn_local(introduced(worker.clone(), tcp, peer, own, kind, waiting));
        return;
    }
    let Some(permit) = permit(worker, peer, trusted) else { return };
    let (port, local) = (own.port(), local(&tcp, own, peer));
    let accepted = Box::new(Accepted { tcp, client: peer, trusted, port, local, permit });
    tokio::task::spawn_local(connection(worker.clone(), accepted, kind));
}

/// What a peer connected to: the listener's own address, where it has only one.
fn local(tcp: &TcpStream, own: SocketAddr, peer: SocketAddr) -> SocketAddr {
    if own.ip().is_unspecified() {
        tcp.local_addr().unwrap_or(SocketAddr::new(peer.ip(), own.port()))
    } else {
        own
    }
}

/// Takes a place under the caps. The newest is the one refused: whoever is inside stays.
fn permit(worker: &Worker, client: SocketAddr, trusted: bool) -> Option<Permit> {
    if !trusted && denied(worker, client) {
        worker.shed_client(Shed::Address, client.ip());
        return None;
    }
    if !trusted && enforce::banned(worker, client.ip()) {
        worker.shed_client(Shed::Banned, client.ip());
        return None;
    }
    // Behind a proxy that nobody trusts yet there are many clients, too.
    let asked = match trusted || worker.examiner.doubts(&worker.snapshot(), client.ip()) {
        true => worker.connections.try_acquire_trusted(),
        false => worker.connections.try_acquire(ClientKey::of(client.ip())),
    };
    let why = match asked {
        Ok(permit) if !worker.takes_client(permit.held()) => Shed::OverloadClient,
        Ok(permit) => {
            observe::connected(worker, permit.nth());
            return Some(permit);
        }
        Err(Refusal::Client) => Shed::ClientCap,
        Err(Refusal::Total) => Shed::TotalCap,
        Err(Refusal::Descriptors) => Shed::Descriptors,
    };
    worker.shed_client(why, client.ip());
    None
}

/// Whether the server lets nobody in from there. What its list says in shadow is looked at for each request.
fn denied(worker: &Worker, client: SocketAddr) -> bool {
    let snapshot = worker.snapshot();
    let list = snapshot.addresses.as_ref().filter(|list| list.mode == Mode::Enforce);
    list.is_some_and(|list| !list.admits(client.ip()))
}

async fn introduced(
    worker: Rc<Worker>,
    mut tcp: TcpStream,
    peer: SocketAddr,
    own: SocketAddr,
    kind: Kind,
    waiting: Permit,
) {
    let deadline = worker.snapshot().server.timeouts.handshake;
    let Ok(Ok(header)) = tokio::time::timeout(deadline, proxy_protocol::read(&mut tcp)).await else {
        return worker.shed(Shed::ProxyHeader, Some(&peer.ip()));
    };
    // LOCAL and UNKNOWN: the proxy speaks for itself (its health check).
    let client = header.source.unwrap_or(peer);
    let trusted = header.source.is_none();
    drop(waiting);
    let Some(permit) = permit(&worker, client, trusted) else { return };
    let port = own.port();
    let local = header.destination.unwrap_or_else(|| local(&tcp, own, peer));
    let accepted = Box::new(Accepted { tcp, client, trusted, port, local, permit });
    // In a task of its own: what the header needed must not take room in the connection.
    tokio::task::spawn_local(connection(worker, accepted, kind));
}

async fn connection(worker: Rc<Worker>, accepted: Box<Accepted>, kind: Kind) {
    let (opened, closed, gauge) = match kind {
        Kind::Http => (Counter::OpenedHttp, Counter::ClosedHttp, Gauge::ActiveHttp),
        Kind::Https => (Counter::OpenedHttps, Counter::ClosedHttps, Gauge::ActiveHttps),
    };
    worker.shard.add(opened, 1);
    worker.shard.gauge_add(gauge, 1);
    let _counted = Counted { worker: worker.clone(), closed, gauge };
    let served = match kind {
        Kind::Http => Some(serve::plain(&worker, *accepted)),
        // Boxed: what only a handshake needs must not take room in every connection.
        Kind::Https => Box::pin(handshake::run(&worker, accepted)).await,
    };
    if let Some(served) = served {
        served.await;
    }
}

/// Counts a connection as closed however its task ends.
struct Counted {
    worker: Rc<Worker>,
    closed: Counter,
    gauge: Gauge,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.worker.shard.gauge_add(self.gauge, -1);
        self.worker.shard.add(self.closed, 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_peer_connected_to_is_told_whether_the_listener_has_one_address_or_all() {
        for at in ["127.0.0.1:0", "0.0.0.0:0", "[::]:0"] {
            let listener = TcpListener::bind(at).await.unwrap();
            let own = listener.local_addr().unwrap();
            let client = TcpStream::connect(("127.0.0.1", own.port()));
            let (client, accepted) = tokio::join!(client, listener.accept());
            let (tcp, peer) = accepted.unwrap();
            let told = local(&tcp, own, peer);
            let told = SocketAddr::new(told.ip().to_canonical(), told.port());
            assert_eq!(told, client.unwrap().peer_addr().unwrap(), "{at}");
        }
    }
}
