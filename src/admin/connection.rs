//! Accepts and serves a bounded number of short connections; shared by the admin API and the metrics listener.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;

use super::io::{Clock, Io};

/// Connections served at once; the next ones wait in the kernel's queue.
pub const CONNECTIONS_MAX: usize = 32;
/// How long a request head may take.
pub const HEAD_TIME_MAX: Duration = Duration::from_secs(5);
/// How long a connection may take in all: one request, one answer.
pub const CONNECTION_TIME_MAX: Duration = Duration::from_secs(60);
/// Pause after a failed accept (no descriptors left), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub(super) type Answer = Response<Full<Bytes>>;

/// Accepts for ever. Must run inside a `LocalSet`.
pub(super) async fn accept<S, A, F>(mut next: A, handle: impl Fn(Request<Incoming>) -> F + 'static)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
    A: AsyncFnMut() -> io::Result<S>,
    F: Future<Output = Answer> + 'static,
{
    let handle = Rc::new(handle);
    let free = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        // The semaphore is never closed; should it be, there is nothing left to accept for.
        let Ok(permit) = free.clone().acquire_owned().await else { return };
        let stream = match next().await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "an admin or metrics connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let handle = handle.clone();
        tokio::task::spawn_local(async move {
            let _permit = permit;
            // A client that breaks off or stalls is its own affair: nothing to report.
            let _ = tokio::time::timeout(CONNECTION_TIME_MAX, serve_one(stream, handle)).await;
        });
    }
}

async fn serve_one<S, F>(stream: S, handle: Rc<impl Fn(Request<Incoming>) -> F>) -> hyper::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
    F: Future<Output = Answer>,
{
    let service = service_fn(move |request| {
        let answer = handle(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    hyper::server::conn::http1::Builder::new()
        .timer(Clock)
        .header_read_timeout(HEAD_TIME_MAX)
        .keep_alive(false)
        .serve_connection(Io(stream), service)
        .await
}

/// An answer with a body.
pub(super) fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

/// RFC 9110 section 15.5.6: a 405 names the methods that are allowed.
pub(super) fn with_allow(mut answer: Answer, allowed: &Method) -> Answer {
    let value = if *allowed == Method::GET { "GET, HEAD" } else { allowed.as_str() };
    if let Ok(value) = HeaderValue::from_str(value) {
        answer.headers_mut().insert(header::ALLOW, value);
    }
    answer
}
