//! Step 8b: upgraded connections (WebSocket and others): bytes pass both ways until one side ends or both are
//! silent for too long.

use std::rc::Rc;
use std::task::Poll;

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncWriteExt, copy_bidirectional_with_sizes};

use crate::net::stream::{Guarded, Phase, Stream};
use crate::proxy::Worker;
use crate::proxy::context::{Connection, Context, Watch, Watched};
use crate::proxy::forward::Lease;
use crate::proxy::guard::Guard;
use crate::telemetry::metric::{Counter, Gauge};

/// Buffer for each direction of a tunnel.
const BUFFER: usize = 16 * 1024;

/// The backend's side of an upgraded connection, waiting for the client's side.
pub struct Tunnel {
    /// The stream to the backend.
    pub upstream: Stream,
    /// What the backend sent right behind its `101`.
    pub early: Bytes,
    /// Keeps the endpoint's in-flight count until the tunnel ends.
    pub lease: Lease,
    /// Recorded when the tunnel ends; set when the client's answer is made.
    pub context: Option<Box<Context>>,
}

/// Passes bytes both ways. `early` is what the client sent right behind its request.
pub async fn run(
    worker: &Rc<Worker>,
    connection: &Rc<Connection>,
    client: TokioIo<Guard>,
    early: Bytes,
    tunnel: Tunnel,
) {
    let Tunnel { upstream, early: from_upstream, lease, context } = tunnel;
    let Some(mut context) = context else { return };
    worker.shard.gauge_add(Gauge::TunnelsActive, 1);
    worker.shard.add(Counter::Tunnels, 1);
    connection.progress.enter(Phase::Tunnel);
    let mut client = client.into_inner();
    // The backend's side moves the same deadline: a byte either way keeps a tunnel alive.
    let mut upstream = Guarded::new(upstream, Watch(connection.clone()));
    let before = client.stream().written();
    pass(connection, &mut client, &mut upstream, &early, &from_upstream).await;
    // However it ended: most tunnels are cut, and their bytes were carried all the same.
    let (up, down) = (upstream.written(), client.stream().written() - before);
    worker.shard.add(Counter::TunnelBytesIn, up);
    worker.shard.add(Counter::TunnelBytesOut, down);
    context.tunnelled(up, down);
    worker.shard.gauge_add(Gauge::TunnelsActive, -1);
    drop(lease);
    context.complete();
}

/// Passes bytes until both sides ended, one broke, or a deadline passed; which of these makes no difference.
async fn pass(
    connection: &Connection,
    client: &mut Guard,
    upstream: &mut Watched,
    early: &[u8],
    from_upstream: &[u8],
) {
    let pass = async {
        client.write_all(from_upstream).await?;
        client.flush().await?;
        upstream.write_all(early).await?;
        upstream.flush().await?;
        copy_bidirectional_with_sizes(client, upstream, BUFFER, BUFFER).await
    };
    tokio::pin!(pass);
    std::future::poll_fn(|cx| match pass.as_mut().poll(cx) {
        Poll::Ready(_) => Poll::Ready(()),
        Poll::Pending => connection.progress.poll_overdue(cx).map(drop),
    })
    .await;
}
